"""An ONNX file in ONNX Runtime on the CPU, for verification."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from trt_compress.errors import UnsupportedError
from trt_compress.plugins.library import Library
from trt_compress.runtime.backends.ort import register_native

Array = np.ndarray[Any, np.dtype[Any]]

EXACT, AS_DEPLOYED = "1", "4"
"""How precisely ONNX Runtime multiplies with quantized weights: 1 in float32; 4, its own choice, with the other factor
rounded to 8 bits."""


class OrtError(Exception):
    """Something went wrong inside ONNX Runtime, whose exceptions have no common base."""


def load_onnxruntime() -> ModuleType:
    """The module onnxruntime.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UnsupportedError(
            f"verification runs ONNX Runtime, and {error}.", hint="pip install 'trt-compress[cpu]'"
        ) from error


@contextlib.contextmanager
def _ort_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise OrtError((str(error).strip().splitlines() or [type(error).__name__])[0]) from error


class Runner:
    """A model in ONNX Runtime on the CPU; a call returns every output by name.

    Args:
        model: The file, or a model whose weights may be outside it.
        folder: Where those are.
        native: The native operators to run in place of the bodies.
        accuracy: `EXACT` or `AS_DEPLOYED`.

    Raises:
        OrtError: ONNX Runtime refuses it.
    """

    def __init__(
        self, model: Path | onnx.ModelProto, folder: Path, native: Library | None, accuracy: str = EXACT
    ) -> None:
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails comes back as an exception
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", accuracy)
        if native is not None:
            register_native(options, native)
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        with _ort_errors():
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, feed: Mapping[str, Array]) -> dict[str, Tensor]:
        """Run once.

        Raises:
            OrtError: it fails.
        """
        with _ort_errors():
            results = self._session.run(self._names, feed)
        return {name: torch.from_numpy(value) for name, value in zip(self._names, results, strict=True)}
