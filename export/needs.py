"""Which libraries an export and a verification need, and whether they are here; none of them is loaded."""

import importlib.util

from trt_compress.errors import UnsupportedError

EXPORT_NEEDS = ("torch", "onnx", "onnxscript", "timm", "safetensors", "tomli_w", "onnxruntime")
_WHO = {"onnxruntime": "Verification, which runs ONNX Runtime,"}
_EXTRAS = {"onnxruntime": "cpu"}


def require_modules(*modules: str) -> None:
    """Raise UnsupportedError for the first of these modules that is not installed."""
    for module in modules:
        if not _is_here(module):
            raise UnsupportedError(
                f"{_WHO.get(module, 'This command')} needs '{module}', which is not installed.",
                hint=f'pip install "trt-compress[{_EXTRAS.get(module, "export")}]"',
            )


def _is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a finder says no, or the module has been put in by hand
        return False
