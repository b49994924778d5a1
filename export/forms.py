"""The ONNX file of a graph in the form that a target gets: one that the bundle holds, or one made from it here."""

import mmap
from pathlib import Path

from trt_compress.errors import BundleError, UnsupportedError
from trt_compress.export.targets import Target
from trt_compress.plugins.spec import DOMAIN
from trt_compress.runtime.bundle import Bundle
from trt_compress.runtime.manifest import Graph
from trt_compress.runtime.onnx_nodes import read_nodes


def target_file(bundle: Bundle, graph: Graph, target: Target, *, with_plugins: bool, folder: Path) -> Path:
    """The file that a build for `target` reads.

    Where the bundle has none for this target and the packages that make one (torch and onnx) are not installed, it is
    the graph's own file, which holds the bodies of all operators: TensorRT reads those too, in the same layers.

    Args:
        bundle: The bundle.
        graph: One of its graphs.
        target: Where the file goes.
        with_plugins: Whether a plugin library will be there; without it the file needs its bodies.
        folder: An empty folder for a file that has to be made.

    Raises:
        UnsupportedError: Plugins are to be used, the target takes them in a file without bodies only, the bundle has
            none, and none can be made here.
    """
    bodies = target.lowering != "plugin" or not with_plugins
    for lowered in bundle.manifest.lowered:
        if (lowered.target, lowered.graph) == (target.name, graph.name) and bodies == (lowered.lowering != "plugin"):
            return bundle.file(lowered.file)
    source = bundle.file(graph.file)
    if bodies and target.lowering == "plugin":
        return source
    try:
        import onnx

        from trt_compress.export.lower import lower_for_target
        from trt_compress.export.onnx_file import save_onnx
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "trt_compress"):
            raise
        if bodies:
            return source
        raise UnsupportedError(
            f"'{bundle.path}' has no file for '{target.name}', and making one here needs '{missing}', which is not "
            f"installed; export with --target {target.name} where the model is exported, or build with --plugins no."
        ) from None
    (file, *_) = save_onnx(lower_for_target(onnx.load(source), target), folder / f"{graph.name}.onnx")
    return file


def is_pruned(bundle: Bundle) -> bool:
    """Whether a graph's own file was removed, as one target needs another form of it."""
    return any(graph.file not in bundle.manifest.files for graph in bundle.manifest.graphs)


def source_file(bundle: Bundle, graph: Graph) -> str:
    """Name of the file that a graph's operators are read from: its own, or in a pruned bundle that of a target."""
    if graph.file not in bundle.manifest.files:
        for lowered in bundle.manifest.lowered:
            if lowered.graph == graph.name:
                return lowered.file
    return graph.file


def operator_nodes_of(file: Path) -> dict[str, str]:
    """Op type of every operator node of an ONNX file, by its name; read without the package onnx.

    Raises:
        BundleError: The file cannot be read.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            with memoryview(mapped) as view:
                return {node.name: node.op_type for node in read_nodes(view) if node.domain == DOMAIN}
    except (OSError, ValueError) as error:
        raise BundleError(f"'{file}' is not a readable ONNX file: {error}.") from None
