"""The fakes of CUDA and TensorRT have the names, kinds, values and arguments of the real modules."""

import enum
import inspect
import re
from typing import Any

import pytest

from tests.fakes import cuda, tensorrt


def public(one: type) -> list[str]:
    return [name for name in vars(one) if not name.startswith("_") and name != "Severity"]


@pytest.mark.parametrize("fake", (*tensorrt.CLASSES, tensorrt.RtxExecutionContext), ids=lambda one: one.__name__)
def test_tensorrt_has_it(fake: type) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the real module: pip install 'trt-compress[rtx]'")
    real = getattr(trt, fake.__name__.replace("Rtx", "I"))
    if issubclass(fake, enum.IntEnum):
        assert {one.name: int(one) for one in fake}.items() <= {n: int(v) for n, v in real.__members__.items()}.items()
        return
    assert public(fake)
    for name in public(fake):
        mine, theirs = vars(fake)[name], getattr(real, name)
        if callable(mine):
            assert parameters(mine) in signatures(theirs), f"{fake.__name__}.{name}"
        elif isinstance(mine, property):
            assert isinstance(theirs, property), f"{fake.__name__}.{name}"
        else:
            assert int(mine) == int(theirs)


def test_a_configuration_has_what_is_set_on_it() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the real module: pip install 'trt-compress[rtx]'")
    for name in vars(tensorrt.IRuntimeConfig()):
        if not name.startswith("_"):
            assert getattr(trt.IRuntimeConfig, name).fset is not None


def test_cuda_has_it() -> None:
    real: Any = pytest.importorskip("cuda.bindings.runtime", reason="needs pip install 'trt-compress[cuda]'")
    names = [name for name in vars(cuda.FakeCuda) if name.startswith("cuda")]
    assert len(names) > 20
    for name in names:
        mine, theirs = getattr(cuda.FakeCuda, name), getattr(real, name)
        if isinstance(mine, type):
            for one in mine:  # type: ignore[attr-defined]
                assert int(getattr(theirs, one.name)) == int(one)
        elif callable(mine):
            head = str(theirs.__doc__).splitlines()[0]
            given = re.search(r"\((.*)\)", head)
            assert given is not None, head
            theirs_names = [re.sub(r":.*", "", part).split()[-1] for part in given.group(1).split(",") if part.strip()]
            assert parameters(mine) == theirs_names, name
        else:
            assert mine == int(theirs)


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def signatures(method: Any) -> list[list[str]]:
    """The names of the arguments of each form that a method of pybind11 has."""
    found = []
    for line in str(method.__doc__).splitlines():
        if given := re.search(rf"^\s*(?:\d+\. )?{re.escape(method.__name__)}\((self: .*)\) ->", line):
            plain = re.sub(r"\[[^\[\]]*\]|<[^<>]*>", "", re.sub(r"\[[^\[\]]*\]", "", given.group(1)))
            found.append([part.split(":")[0].strip() for part in plain.split(",")][1:])
    return found
