"""Every kernel compiles for all SMs, warnings as errors, spills nothing and needs about the registers on record."""

import copy
import json
import shutil
from typing import Any

import pytest

from trt_compress.plugins import ptxas, resources
from trt_compress.plugins.build import SMS, Outcome, build


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    for tool in ("nvcc", "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"the kernels cannot be compiled without {tool}")
    return build(only=("cuda",), cuda="all")[0]


@pytest.mark.slow
def test_all_kernels_compile_for_all_sms(outcome: Outcome) -> None:
    assert outcome.library is not None
    info = outcome.library.info
    unknown = set(SMS) - set(info["sms"])
    assert not unknown or f"this nvcc does not know SM {', '.join(map(str, sorted(unknown)))}" in outcome.note
    assert info["ptx"] == info["sms"][-1]
    for name, by_sm in info["resources"].items():
        assert set(by_sm) == set(map(str, info["sms"])), name
        assert all({"registers", "stack_bytes", "spill_bytes"} == set(use) for use in by_sm.values()), name


@pytest.mark.slow
def test_no_kernel_spills(outcome: Outcome) -> None:
    assert outcome.library is not None
    assert resources.spills(outcome.library.info["resources"]) == []


@pytest.mark.slow
def test_kernels_need_what_is_on_record(outcome: Outcome) -> None:
    assert outcome.library is not None
    recorded = json.loads(resources.RECORD.read_text())
    found = resources.record_of(outcome.library)
    if recorded["compiler"] != found["compiler"]:
        pytest.skip(f"the record is of {recorded['compiler']} and this is {found['compiler']}")
    said = resources.jumps(recorded, found)
    assert said == [], "look at these; if they are meant: python -m trt_compress.plugins.resources"


SAID = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4trtc1a6kernelIfLi4EEEvi' for 'sm_87'
ptxas info    : Function properties for _ZN4trtc1a6kernelIfLi4EEEvi
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size
ptxas info    : Compiling entry function '_ZN4trtc1a6kernelIfLi4EEEvi' for 'sm_90a'
ptxas info    : Function properties for _ZN4trtc1a6kernelIfLi4EEEvi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers
"""


def test_what_ptxas_says_is_read() -> None:
    found = ptxas.resources(SAID.splitlines())
    assert found == {
        "_ZN4trtc1a6kernelIfLi4EEEvi": {
            "87": {"stack_bytes": 16, "spill_bytes": 20, "registers": 40},
            "90": {"stack_bytes": 0, "spill_bytes": 0, "registers": 32},
        }
    }
    assert resources.spills(found) == ["_ZN4trtc1a6kernelIfLi4EEEvi spills 20 bytes on SM 87"]
    if shutil.which("c++filt"):
        assert list(ptxas.demangled(found)) == ["trtc::a::kernel<float, 4>"]


def test_jumps_are_seen() -> None:
    recorded: dict[str, Any] = {"kernels": {"one": {"87": {"registers": 40, "spill_bytes": 0}}}}
    assert resources.jumps(recorded, recorded) == []
    found = copy.deepcopy(recorded)
    found["kernels"]["one"]["87"] = {"registers": 40 + resources.JUMP + 1, "spill_bytes": 4}
    found["kernels"]["two"] = {}
    assert resources.jumps(recorded, found) == [
        "two is not in the record",
        "one on SM 87: 40 → 49 registers",
        "one on SM 87: 0 → 4 bytes spilled",
    ]
    assert resources.jumps(found, recorded)[0] == "two is in the record and no more in the build"


def test_the_record_says_which_compiler_and_has_no_spills() -> None:
    recorded = json.loads(resources.RECORD.read_text())
    assert recorded["compiler"].startswith("NVIDIA ")
    assert resources.spills(recorded["kernels"]) == []
    assert all(set(by_sm) == {str(sm) for sm in resources.RECORDED_SMS} for by_sm in recorded["kernels"].values())
