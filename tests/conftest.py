"""What all tests share: tests that need hardware or a library that is not here are skipped, with the reason."""

from functools import cache
from importlib.util import find_spec

import pytest

from trt_compress.tools.machine import gpus


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("nvidia-smi reports no GPU")
    if item.get_closest_marker("trt") and find_spec("tensorrt") is None:
        pytest.skip("the package tensorrt is not installed")


@cache
def _has_gpu() -> bool:
    return bool(gpus())
