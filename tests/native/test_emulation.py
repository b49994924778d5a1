"""The CPU stand-in for CUDA computes what CUDA would, and catches what a GPU might let pass."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.native.emulation.building import HERE, SANITIZE, link, objects

SOURCES = (HERE / "cuda_emulation.cpp", HERE / "emulation_checks.cpp")
BUILDS = {
    "plain": ((), ()),
    "sanitized": (SANITIZE, SANITIZE),
    "ucontext": (("-DTRTC_FIBERS_UCONTEXT",), ()),
}
# What the program must have reported: a check that silently did not run would pass otherwise.
CHECKS = {
    *("sum", "counters", "fast", "scan", "shuffles", "shuffles of wide and narrow types", "votes of a block"),
    *("atomics", "last block", "indices", "empty grid", "runtime calls"),
    *("shared memory is filled anew for each block", "shared memory that the device has"),
    *("shared memory without opting in", "too many threads"),
    *("a thread returns before a barrier", "two barriers", "a barrier against a shuffle"),
    *("half a warp shuffles with all", "a mask without its own lane", "a mask beyond the block"),
    *("a shuffle from outside the mask", "a trap"),
    *("sound code gives the same in every order", "a missing barrier in a scan shows"),
    *("a missing barrier between neighbours shows", "a seed gives the same order again"),
    *("every half and bfloat16 there and back", "rounding to half and bfloat16 is that of common/half.h"),
    "conversions to integers saturate",
}
UNSANITIZED = {"write beyond shared memory", "write before shared memory"}


@pytest.fixture(scope="module", params=list(BUILDS))
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    compile_flags, link_flags = BUILDS[request.param]
    program = tmp_path_factory.mktemp("emulation") / "checks"
    return request.param, link(program, objects(SOURCES, compile_flags), link_flags)


def test_emulator_does_what_cuda_does(build: tuple[str, Path]) -> None:
    name, program = build
    done = subprocess.run([program], capture_output=True, text=True)
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line for line in lines if not line["ok"]] == []
    assert done.returncode == 0, done.stderr
    orders = {"ascending order", "descending order", "random order"}
    wanted = CHECKS | orders | (set() if name == "sanitized" else UNSANITIZED)
    assert {line["check"] for line in lines} == wanted


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("static", "index 256 out of bounds for type 'int [256]'"),
        ("dynamic", "use-after-poison"),
        ("global", "heap-buffer-overflow"),
    ],
)
def test_sanitizer_sees_an_overrun(what: str, message: str, tmp_path: Path) -> None:
    program = link(tmp_path / "checks", objects(SOURCES, SANITIZE), SANITIZE)
    done = subprocess.run([program, "--overrun", what], capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr
    assert "emulation_checks.cpp" in done.stderr
