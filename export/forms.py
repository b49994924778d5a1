"""The ONNX file of a graph in the form that a target gets: one that the bundle holds, or one made from it here."""

from pathlib import Path

from trt_compress.errors import BundleError, UnsupportedError
from trt_compress.export.targets import Target
from trt_compress.foreign import reading
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Graph
from trt_compress.plugins.spec import DOMAIN
from trt_compress.runtime.onnx_nodes import read_nodes
from trt_compress.runtime.onnx_source import OnnxSource, copy_graph


def target_file(bundle: Bundle, graph: Graph, target: Target, *, with_plugins: bool, folder: Path) -> Path:
    """The file that a build for `target` reads, checked and in a folder of the caller's alone.

    Where the bundle has none for this target and the packages that make one (torch and onnx) are not installed, it is
    the graph's own file, which holds the bodies of all operators: TensorRT reads those too, in the same layers.

    Args:
        bundle: The bundle.
        graph: One of its graphs.
        target: Where the file goes.
        with_plugins: Whether a plugin library will be there; without it the file needs its bodies.
        folder: An empty folder for the file, and for the weights that are beside it.

    Raises:
        BundleError: A file is missing or was changed, or the ONNX file names one that the manifest does not list.
        UnsupportedError: Plugins are to be used, the target takes them in a file without bodies only, the bundle has
            none, and none can be made here.
    """
    bodies = target.lowering != "plugin" or not with_plugins
    for lowered in bundle.manifest.lowered:
        if (lowered.target, lowered.graph) == (target.name, graph.name) and bodies == (lowered.lowering != "plugin"):
            return copy_graph(bundle, lowered.file, folder)
    if bodies and target.lowering == "plugin":
        return copy_graph(bundle, graph.file, folder)
    try:
        import onnx

        from trt_compress.export.lower import lower_for_target
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "trt_compress"):
            raise
        if bodies:
            return copy_graph(bundle, graph.file, folder)
        raise UnsupportedError(
            f"'{bundle.path}' has no file for '{target.name}', and making one here needs '{missing}', which is not "
            f"installed; export with --target {target.name} where the model is exported, or build with --plugins no."
        ) from None
    source = copy_graph(bundle, graph.file, folder)
    file = source.with_name(f"{graph.name}.{target.name}.onnx")  # beside its weights
    onnx.save_model(lower_for_target(onnx.load(source, load_external_data=False), target), file)
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


def operator_nodes_of(bundle: Bundle, file: str) -> dict[str, str]:
    """Op type of every operator node of an ONNX file of a bundle, by its name; read without the package onnx.

    Raises:
        BundleError: The file cannot be read.
    """
    with OnnxSource(bundle, file) as source:
        with reading(f"{source}", "export the bundle again", error=BundleError):
            return {node.name: node.op_type for node in read_nodes(source.view) if node.domain == DOMAIN}
