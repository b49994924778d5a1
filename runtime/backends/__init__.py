"""What runs the graphs of a bundle: one small protocol (`base`), and a module for each library behind it."""

from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Graph
from trt_compress.plugins.library import Library
from trt_compress.runtime.backends.base import Executable
from trt_compress.runtime.backends.ort import OrtGraph

BACKENDS = ("ort-cpu", "ort-cuda")


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
    """Load one graph with one of `BACKENDS`.

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
