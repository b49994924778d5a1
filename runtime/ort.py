"""Run a graph with ONNX Runtime, on the CPU or with CUDA, and never on the one when the other was asked for."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from trt_compress.errors import BundleError, UnsupportedError
from trt_compress.runtime.bundle import Bundle
from trt_compress.runtime.manifest import Graph

Array = np.ndarray[Any, np.dtype[Any]]

_PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
_EXTRAS = {"ort-cpu": "cpu", "ort-cuda": "gpu"}


class OrtGraph:
    """One graph, loaded."""

    def __init__(self, bundle: Bundle, graph: Graph, backend: str, threads: int | None, spin: bool) -> None:
        ort = _load(backend)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors come back as exceptions with the same text
        if threads is not None:
            options.intra_op_num_threads = threads
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = _PROVIDERS[backend]
        try:
            self._session = ort.InferenceSession(str(bundle.file(graph.file)), options, providers=[provider])
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load '{graph.file}' of '{bundle.path}': {_first_line(error)}."
            ) from error
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
