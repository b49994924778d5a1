"""Token compression inside the graph: export, prove, build, time.

What is public is loaded on first use, so importing this package costs nothing and works on a device that has neither
torch nor onnx.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trt_compress.errors import TrtCompressError

if TYPE_CHECKING:
    from trt_compress import runtime
    from trt_compress.export.api import build, export, preflight, verify

__version__ = "0.1.0"
__all__ = ["TrtCompressError", "__version__", "build", "export", "preflight", "runtime", "verify"]


def __getattr__(name: str) -> Any:
    if name in ("export", "runtime"):  # packages; the former is callable under the name of its main function
        return import_module(f"trt_compress.{name}")
    if name in ("build", "preflight", "verify"):
        return getattr(import_module("trt_compress.export.api"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
