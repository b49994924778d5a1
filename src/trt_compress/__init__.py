"""Token compression inside the graph: export, prove, build, time.

What is public is loaded on first use, so importing this package costs nothing and works on a device that has neither
torch nor onnx.
"""

# ruff: noqa: E402
import os
import sys

if sys.argv[:1] == ["-m"]:  # `python -m trt_compress…` is being found, and the current folder stands first on its path
    from trt_compress import current_folder

    current_folder.forget()

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trt_compress.errors import TrtCompressError
from trt_compress.version import __version__

if TYPE_CHECKING:
    from trt_compress import runtime
    from trt_compress.export.api import export_model
    from trt_compress.export.calibration import calibrate
    from trt_compress.export.check import preflight
    from trt_compress.export.engines import build
    from trt_compress.runtime.session import Session
    from trt_compress.tools.bench.bundle import bench
    from trt_compress.tools.evaluate import evaluate
    from trt_compress.tools.evaluate_text import evaluate_text
    from trt_compress.tools.listing import list_compressors, list_models, list_operators, list_targets
    from trt_compress.tools.reporting import compare, report
    from trt_compress.tools.streaming import run
    from trt_compress.tools.sweep.run import sweep
    from trt_compress.tools.tune.run import tune
    from trt_compress.tools.verifying import verify

# ONNX Runtime would write a number of this machine into HOME, and warn where it may not.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Session",
    "TrtCompressError",
    "__version__",
    "bench",
    "build",
    "calibrate",
    "compare",
    "evaluate",
    "evaluate_text",
    "export_model",
    "list_compressors",
    "list_models",
    "list_operators",
    "list_targets",
    "preflight",
    "report",
    "run",
    "runtime",
    "sweep",
    "tune",
    "verify",
]

_LIVES_IN = {
    "Session": "runtime.session",
    "bench": "tools.bench.bundle",
    "build": "export.engines",
    "calibrate": "export.calibration",
    "compare": "tools.reporting",
    "evaluate": "tools.evaluate",
    "evaluate_text": "tools.evaluate_text",
    "export_model": "export.api",
    "list_compressors": "tools.listing",
    "list_models": "tools.listing",
    "list_operators": "tools.listing",
    "list_targets": "tools.listing",
    "preflight": "export.check",
    "report": "tools.reporting",
    "run": "tools.streaming",
    "sweep": "tools.sweep.run",
    "tune": "tools.tune.run",
    "verify": "tools.verifying",
}


def __getattr__(name: str) -> Any:
    if name == "runtime":
        return import_module("trt_compress.runtime")
    if name in _LIVES_IN:
        return getattr(import_module(f"trt_compress.{_LIVES_IN[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
