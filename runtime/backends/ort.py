"""Run a graph with ONNX Runtime, on the CPU or with CUDA, and never on the one when the other was asked for."""

import importlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from trt_compress.errors import BundleError, PluginError, UnsupportedError
from trt_compress.files import mapped
from trt_compress.foreign import reading
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Graph
from trt_compress.plugins.library import Library
from trt_compress.runtime.onnx_nodes import Node, read_nodes
from trt_compress.runtime.onnx_source import OnnxSource
from trt_compress.strays import temporary_folder

Array = np.ndarray[Any, np.dtype[Any]]

_PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
_EXTRAS = {"ort-cpu": "cpu", "ort-cuda": "gpu"}
_DOMAIN = "trt_compress"

OperatorPath = Literal["native", "function"]
"""How an operator runs: as a custom operator of the native library, or as the standard operators of its body."""


class OrtGraph:
    """One graph, loaded.

    Attributes:
        files: What was read of the bundle for it.
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: Graph,
        backend: str,
        threads: int | None,
        spin: bool,
        native: Library | None = None,
    ) -> None:
        ort = _load(backend)
        options = _options(ort)
        if threads is not None:
            options.intra_op_num_threads = threads
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if native is not None:
            register_native(options, native)
        provider = _PROVIDERS[backend]
        with OnnxSource(bundle, graph.file) as source:
            self._session = _load_source(source, options, provider)
            source.confirm()
            source.rest()
        self.files = source.files
        self._weights = source.weights  # the session reads from their memory
        if self._session.get_providers()[0] != provider:
            raise UnsupportedError(
                f"The backend '{backend}' was asked for and ONNX Runtime could not start it; it would have run on "
                f"{self._session.get_providers()[0]}. Install the CUDA and cuDNN that onnxruntime-gpu "
                f"{ort.__version__} needs, or choose the backend 'ort-cpu'."
            )
        self._name = graph.name
        self._outputs = [info.name for info in graph.outputs]
        _compare(graph, "inputs", [info.name for info in self._session.get_inputs()])
        _compare(graph, "outputs", [info.name for info in self._session.get_outputs()])

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph on all of its inputs and return all of its outputs, by bare name."""
        try:
            results = self._session.run(self._outputs, inputs)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise UnsupportedError(f"ONNX Runtime failed in the graph '{self._name}': {_first_line(error)}.") from error
        return dict(zip(self._outputs, results, strict=True))


def register_native(options: Any, library: Library) -> None:
    """Let the native operators run in sessions that are made with these options. The library has been checked.

    Raises:
        PluginError: ONNX Runtime cannot load it.
    """
    ort = importlib.import_module("onnxruntime")
    try:
        options.register_custom_ops_library(str(library.path))
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise PluginError(
            f"ONNX Runtime {ort.__version__} cannot load '{library.path}' ({_first_line(error)}); build it again with "
            "'trt-compress plugins build --force'."
        ) from error


def operator_paths(model: OnnxSource | Path, library: Library | None) -> dict[str, OperatorPath]:
    """What ONNX Runtime makes of every operator of ours in a graph, read from the graph that it runs.

    Args:
        model: The ONNX file: of a bundle, or one that the caller has made.
        library: The native library that is registered; None: none is.

    Returns:
        By node name (the op type where a node has none, numbered where names repeat): "native" if the node is still
        there when ONNX Runtime has prepared the graph, "function" if its body took its place.

    Raises:
        BundleError: The file cannot be loaded.
        PluginError: The library cannot be loaded.
    """
    asked = _unique_names(_nodes(model))
    if not asked:
        return {}
    ort = importlib.import_module("onnxruntime")
    with temporary_folder("prepared") as folder:
        prepared = folder / "prepared.onnx"
        options = _options(ort)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.optimized_model_filepath = str(prepared)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        if library is not None:
            register_native(options, library)
        _load_source(model, options, "CPUExecutionProvider")
        left = set(_unique_names(_nodes(prepared)))
    return {name: "native" if name in left else "function" for name in asked}


def _options(ort: ModuleType) -> Any:
    """Options of every session: errors come back as exceptions with the same text, and ONNX is what is loaded."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its own log would put what stands in a graph on the terminal as it is
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _load_source(source: OnnxSource | Path, options: Any, provider: str) -> Any:
    """An ONNX Runtime session of a file, with the weights that are handed over beside it.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """
    ort = importlib.import_module("onnxruntime")
    model, name = (source.model, source) if isinstance(source, OnnxSource) else (str(source), f"'{source}'")
    try:
        if isinstance(source, OnnxSource) and source.weights:
            make = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
            values = [make(weight.data, weight.dtype) for weight in source.weights.values()]
            options.add_external_initializers(list(source.weights), values)
        session = ort.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {name}: {_first_line(error)}.") from error
    if isinstance(model, bytes) and hasattr(session, "_model_bytes"):
        session._model_bytes = None  # kept there to start it again with other providers, which is never done here
    return session


def _nodes(model: OnnxSource | Path) -> list[Node]:
    """The nodes of our operators in an ONNX file."""
    with reading(str(model) if isinstance(model, OnnxSource) else f"'{model}'", "export it again", error=BundleError):
        if isinstance(model, OnnxSource):
            view = model.view
        else:
            with model.open("rb") as file:
                view = mapped(file)
        return [node for node in read_nodes(view) if node.domain == _DOMAIN]


def _unique_names(nodes: list[Node]) -> list[str]:
    names = [node.name or node.op_type for node in nodes]
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        unique.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return unique


def onnxruntime_version() -> str:
    """Version of the installed ONNX Runtime."""
    return str(importlib.import_module("onnxruntime").__version__)


def _load(backend: str) -> ModuleType:
    extra = f"install trt-compress[{_EXTRAS[backend]}]"
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UnsupportedError(f"The backend '{backend}' needs ONNX Runtime, and {error}; {extra}.") from None
    available = ort.get_available_providers()
    if _PROVIDERS[backend] not in available:
        raise UnsupportedError(
            f"The backend '{backend}' needs {_PROVIDERS[backend]}, and the installed onnxruntime {ort.__version__} has "
            f"{', '.join(available)}; {extra} in place of onnxruntime, or choose the backend 'ort-cpu'."
        )
    return ort


def _compare(graph: Graph, kind: str, found: list[str]) -> None:
    listed = [info.name for info in getattr(graph, kind)]
    if sorted(listed) != sorted(found):
        raise BundleError(
            f"The {kind} of '{graph.file}' are {', '.join(found)}, and the manifest lists {', '.join(listed)}; "
            "export the bundle again."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
