"""The native library for ONNX Runtime, built once into the user's cache; what must be importable from other folders."""

import shutil
import sys
from pathlib import Path

import pytest

from trt_compress.plugins.build import build
from trt_compress.plugins.library import Library

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "plugins")]


@pytest.fixture(scope="session")
def native_library() -> Library:
    """The CPU operators of these very sources."""
    missing = [tool for tool in ("cmake",) if shutil.which(tool) is None]
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        missing.append("a C++ compiler")
    if missing:
        pytest.skip(f"the native operators cannot be built without {' and '.join(missing)}")
    (outcome,) = build(only=("onnxruntime",))
    if outcome.library is None:
        pytest.fail(outcome.note)
    return outcome.library
