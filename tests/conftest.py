"""What all tests share: tests that need hardware or a library that is not here are skipped, with the reason."""

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests import translations
from tests.typed_commands import Typed
from trt_compress.locks import locked
from trt_compress.plugins.library import Library
from trt_compress.tools.machine import gpus


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--attack", action="store_true", help="run the long form of the attacks, and record what they saw")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the short form has no cases of."""
    if not config.getoption("--attack"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if torch := sys.modules.get("torch"):  # what a test draws depends on no test before it
        torch.manual_seed(0)
    if translations.MODULE in sys.modules:
        translations.build_once()
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("nvidia-smi reports no GPU")
    if item.get_closest_marker("trt") and find_spec("tensorrt") is None:
        pytest.skip("the package tensorrt is not installed")


@cache
def _has_gpu() -> bool:
    return bool(gpus())


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """Runs commands as a user types them, each a process of its own, with all that they load there already."""
    with Typed(tmp_path_factory.mktemp("typed")) as typed:
        yield typed


@pytest.fixture(scope="session")
def native_library() -> Library:
    """The native operators for ONNX Runtime, of these very sources, built once into the user's cache."""
    from trt_compress.plugins.build import build

    missing = [tool for tool in ("cmake",) if shutil.which(tool) is None]
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        missing.append("a C++ compiler")
    if missing:
        pytest.skip(f"the native operators cannot be built without {' and '.join(missing)}")
    (outcome,) = build(only=("onnxruntime",))
    if outcome.library is None:
        pytest.fail(outcome.note)
    return outcome.library


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """What takes long to make, once for all workers: its name, and what puts it in a place; nobody changes it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exported"
    folder.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        output = folder / hashlib.sha256(name.encode()).hexdigest()[:16]
        lock, whole = output.with_suffix(".lock"), output.with_suffix(".whole")
        lock.touch()
        with locked(lock, patience=900):
            if not whole.exists():
                make(output)
                whole.touch()
        return output

    return made


@pytest.fixture(scope="session")
def exported(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[..., Path]:
    """Export zoo:digits_vit, once for each set of options and all workers; copy a bundle before you change it."""

    @cache
    def export(compress: str = "tome:num_merged=4", **options: Any) -> Path:
        from trt_compress.export import api

        def make(output: Path) -> None:
            api.export_model("zoo:digits_vit", output=output, compress=compress, **options)

        return made_once(repr((compress, sorted(options.items()))), make)

    return export
