"""Token compression inside the graph: export, prove, build, time.

What is public is loaded on first use, so importing this package costs nothing and works on a device that has neither
torch nor onnx.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trt_compress.errors import TrtCompressError

if TYPE_CHECKING:
    from trt_compress import runtime
    from trt_compress.export.api import build, export_model, preflight, verify
    from trt_compress.tools.evaluate import evaluate
    from trt_compress.tools.sweep.run import sweep

__version__ = "0.1.0"
__all__ = [
    "TrtCompressError",
    "__version__",
    "build",
    "evaluate",
    "export_model",
    "preflight",
    "runtime",
    "sweep",
    "verify",
]

_LIVES_IN = dict.fromkeys(("build", "export_model", "preflight", "verify"), "export.api")
_LIVES_IN |= {"evaluate": "tools.evaluate", "sweep": "tools.sweep.run"}


def __getattr__(name: str) -> Any:
    if name == "runtime":
        return import_module("trt_compress.runtime")
    if name in _LIVES_IN:
        return getattr(import_module(f"trt_compress.{_LIVES_IN[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
