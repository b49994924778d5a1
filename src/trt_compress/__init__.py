"""Token compression inside the graph: export, prove, build, time.

The public functions load what they need on first use, so importing this package costs nothing and works on a device
that has neither torch nor onnx.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trt_compress import runtime as runtime
    from trt_compress.export.api import ExportResult as ExportResult
    from trt_compress.export.api import build as build
    from trt_compress.export.api import export as export
    from trt_compress.export.api import verify as verify

__version__ = "0.1.0"
