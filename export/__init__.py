"""PyTorch to a proven bundle: trace, lower, preflight, verify, build. Callable: `trt_compress.export(...)`."""

import sys
from types import ModuleType
from typing import Any


class _ExportModule(ModuleType):
    """This package under the name of its main function: `trt_compress.export(...)` and `trt_compress.export.trace`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from trt_compress.export.api import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _ExportModule
