"""What runs the graphs of a bundle: one small protocol (`base`), and a module for each library behind it."""

from collections.abc import Sequence
from pathlib import Path

from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Graph
from trt_compress.plugins.library import Library
from trt_compress.runtime.backends.base import Executable
from trt_compress.runtime.backends.engines import LIBRARIES, Engines, choose_engines
from trt_compress.runtime.backends.ort import OrtGraph
from trt_compress.runtime.backends.tensorrt import EngineGraph, EngineRuntime

OF_ONNX = ("ort-cpu", "ort-cuda")
"""Those that run the ONNX files."""

OF_ENGINES = tuple(LIBRARIES)
"""Those that run engines."""

BACKENDS = (*OF_ONNX, *OF_ENGINES)


def load_graph(
    bundle: Bundle,
    graph: Graph,
    backend: str,
    threads: int | None,
    spin: bool,
    native: Library | None,
    *,
    pack: bool = True,
) -> Executable:
    """Load the ONNX file of one graph with one of `OF_ONNX`.

    Args:
        bundle: The bundle.
        graph: The graph.
        backend: What runs it.
        threads: Threads of one operator on the CPU; None leaves the number to the backend.
        spin: Threads wait for work in a busy loop.
        native: The library of operators that is taken, checked.
        pack: Let the backend keep weights a second time, in the order in which it multiplies them.

    Raises:
        BundleError: The graph is not what the manifest says, or the backend cannot load it.
        UnsupportedError: The backend is not installed, or this machine cannot run it.
    """
    return OrtGraph(bundle, graph, backend, threads, spin, native, pack)


def load_engines(
    bundle: Bundle, graphs: Sequence[Graph], backend: str, native: bool | str | Path | None
) -> tuple[dict[str, Executable], Engines]:
    """Load the engines of graphs with one of `OF_ENGINES`.

    Args:
        bundle: The bundle.
        graphs: The graphs.
        backend: What runs them.
        native: The library of plugins, as `choose_engines` takes it.

    Returns:
        Them by name, and what was chosen.

    Raises:
        BundleError, PluginError, UnsupportedError: As `choose_engines`, or TensorRT cannot load one.
    """
    chosen = choose_engines(bundle, graphs, backend, native)
    runtime = EngineRuntime(chosen.machine, chosen.plugins if isinstance(chosen.plugins, Library) else None)
    return {graph.name: EngineGraph(bundle, graph, chosen, runtime) for graph in graphs}, chosen
