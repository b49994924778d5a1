"""gpu-check without a GPU: its rules on kernels with known faults, and every kernel by its rules in the emulation.

In the emulation each run takes another order of threads and blocks, so that a missing barrier gives other bits.
"""

import ctypes
import json
import shutil
import sys
import time
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.native.emulation import building
from tests.native.emulation.building import HERE, cuda_library, link, objects, operator_folders
from tests.native.emulation.host_device import HostDevice
from tests.processes import python_path
from trt_compress.errors import NativeError
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators
from trt_compress.plugins.testing import plugin_harness
from trt_compress.tools.gpu import check as gpu_check
from trt_compress.tools.gpu import runs as gpu_check_runs
from trt_compress.tools.gpu.check import Line, OperatorCheck, checks_of, compare, judge, judge_speed
from trt_compress.tools.gpu.device import CudaDevice, TorchMemory
from trt_compress.tools.gpu.guarded import Case, Kernels, run_case, run_in_turns
from trt_compress.tools.gpu.runs import CaseRunner
from trt_compress.tools.gpu.timing import HostClock, copy_bytes_per_s
from trt_compress.tools.machine import gpus

SEED = 20240
MOST_VALUES = 60_000  # of one tensor: above it the emulation takes too long
KERNELS = {folder.name for folder in operator_folders("cuda_op.cpp")}
OPERATORS = [operator for operator in operators().values() if operator.spec.torch_name in KERNELS]
FAULTS = {
    "wrong values": (1, "x: off by"),
    "writes beyond": (2, "wrote beyond output x"),
    "writes before": (3, "wrote beyond output x"),
    "writes into an input": (4, "wrote into input index"),
    "writes beyond its workspace": (5, "wrote beyond its workspace"),
    "gives other bits": (6, "a second run gives other bits"),
    "leaves an output out": (7, "an output is not written everywhere"),
    "lacks a barrier": (8, "a second run gives other bits"),
    "has a divergent barrier": (9, "not all threads reach: threads 0-4"),
    "refuses": (10, "TrtcTokenRestore: refused."),
    "reports a fault": (11, "a fault was reported: TrtcTokenRestore: an index is out of range."),
}
ENDS_PROCESS, KEEPS_SILENT, HANGS = 12, 13, 14


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = objects((HERE / "faulty_kernels.cpp", HERE / "cuda_emulation.cpp"))
    return link(tmp_path_factory.mktemp("faulty") / "libtrtc_cuda.so", parts, ["-shared"])


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda_library(tmp_path_factory.mktemp("emulated"), ["-O2"])


@pytest.fixture(scope="module")
def restore() -> list[OperatorCheck]:
    """Checks of TokenRestore that the faulty kernels can run."""
    made, skipped = checks_of(operators()["TrtcTokenRestore"], SEED)
    assert skipped == []
    return [check for check in made if check.dtype == "float32" and check.case.attributes == (("mode", 0),)]


@pytest.fixture
def wrong_data(restore: list[OperatorCheck]) -> list[OperatorCheck]:
    return [check for check in restore if check.case.must_report]


@pytest.fixture
def good_data(restore: list[OperatorCheck]) -> list[OperatorCheck]:
    return [check for check in restore if not check.case.must_report]


def set_fault(library: Path, fault: int) -> None:
    ctypes.CDLL(str(library)).trtcSetFault(fault)


def problems_of(library: Path, check: OperatorCheck) -> list[str]:
    ran = run_case(Kernels(library), HostDevice(library), check.case)
    return [*ran.problems, *(compare(check, ran.outputs) if ran.outputs else ())]


# ---- the rules -------------------------------------------------------------------------------------------------------


def test_sound_kernels_pass(faulty: Path, good_data: list[OperatorCheck]) -> None:
    set_fault(faulty, 0)
    assert Kernels(faulty).op_types() == ("TrtcTokenRestore",)
    assert [problems_of(faulty, check) for check in good_data] == [[]] * len(good_data)
    assert len(good_data) >= 4


def test_wrong_data_must_be_reported_and_nothing_written(faulty: Path, wrong_data: list[OperatorCheck]) -> None:
    names = [check.case.name for check in wrong_data]
    assert names == ["token_restore-index-negative", "token_restore-index-huge"]
    set_fault(faulty, 0)
    assert [problems_of(faulty, check) for check in wrong_data] == [[], []]
    set_fault(faulty, KEEPS_SILENT)
    assert problems_of(faulty, wrong_data[0]) == ["wrong data was not reported"]
    set_fault(faulty, FAULTS["gives other bits"][0])
    assert "wrong data, and yet output x was written" in problems_of(faulty, wrong_data[0])


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_found(what: str, faulty: Path, good_data: list[OperatorCheck]) -> None:
    fault, problem = FAULTS[what]
    set_fault(faulty, fault)
    check = next(check for check in good_data if check.sample.reason == "primes")
    assert problem in "; ".join(problems_of(faulty, check))


def test_a_case_is_the_same_when_it_was_stored(restore: list[OperatorCheck], tmp_path: Path) -> None:
    case = replace(restore[0].case, attributes=(("mode", 0), ("share", 0.5), ("forced", (1, 2))))
    case.save(tmp_path)
    loaded = Case.load(tmp_path / f"{case.name}.npz")
    assert replace(loaded, data=()) == replace(case, data=())
    assert all(np.array_equal(a, b) for a, b in zip(loaded.data, case.data, strict=True))


def test_comparison_sees_whole_numbers_infinities_and_bfloat16() -> None:
    operator = operators()["TrtcTokenMerge"]
    made, _ = checks_of(operator, SEED)
    check = next(check for check in made if check.dtype == "bfloat16" and check.case.outputs[0].shape[0] == 2)
    y, y_size, dest = check.expected
    bits = y.astype(np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    raw = [rounded.view(np.uint8).ravel(), *(a.view(np.uint8).ravel() for a in (y_size.astype(np.float32), dest))]
    assert compare(check, raw) == []
    moved = dest.copy()
    moved[0, :2] += 1
    assert compare(check, [*raw[:2], moved.view(np.uint8).ravel()]) == [
        f"dest: 2 of {dest.size} whole numbers are not as they must be"
    ]
    infinite = rounded.copy()
    infinite[0, 0, 0] = 0x7F80
    assert "y: off by inf" in compare(check, [infinite.view(np.uint8).ravel(), *raw[1:]])[0]
    wants_infinity = replace(
        check, expected=(np.where(np.arange(y.size).reshape(y.shape) == 0, -np.inf, y), y_size, dest)
    )
    assert compare(wants_infinity, raw) == ["y: infinities or NaN are not where they must be"]


def test_a_size_that_the_data_decide_has_room_for_the_largest() -> None:
    made, _ = checks_of(operators()["TrtcTokenSelectDynamic"], SEED)
    trimmed = [check for check in made if dict(check.case.attributes)["trim"] == 1 and not check.case.must_report]
    assert trimmed
    for check in trimmed:
        y, wanted = check.case.outputs[0], check.expected[0]
        assert y.shape[1] == dict(check.case.attributes)["max_kept"]
        assert y.used_bytes == (wanted.size * y.num_bytes // max(int(np.prod(y.shape)), 1))
        tail = np.zeros(y.num_bytes - y.used_bytes, dtype=np.uint8)
        if check.dtype == "float32":
            raw = [
                np.ascontiguousarray(a.astype(t.dtype)) for a, t in zip(check.expected, check.case.outputs, strict=True)
            ]
            flat = [array.reshape(-1).view(np.uint8) for array in raw]
            assert compare(check, [np.concatenate([flat[0], tail]), *flat[1:]]) == []


# ---- every kernel ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.spec.torch_name)
def test_kernels_keep_the_rules_in_every_order_of_threads(operator: Operator, emulated: Path) -> None:
    kernels, device = Kernels(emulated), HostDevice(emulated)
    made, skipped = checks_of(operator, SEED)
    assert skipped == []
    chosen = [
        check
        for check in made
        if max(t.num_bytes for t in (*check.case.inputs, *check.case.outputs)) <= 4 * MOST_VALUES
    ]
    assert len(chosen) >= 5
    wrong: dict[str, list[str]] = {}
    for check in chosen:
        ran = run_case(kernels, device, check.case)
        problems = [*ran.problems, *(compare(check, ran.outputs) if ran.outputs else ())]
        if problems:
            wrong[f"{check.case.name} ({check.sample.label})"] = problems
    assert wrong == {}


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU: make gpu-check runs")
def test_without_a_gpu_it_says_so_in_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_check.main(["--output", str(tmp_path / "out.jsonl")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("gpu-check needs an NVIDIA GPU, and ") and "run it on a machine with one" in said[0]
    assert not (tmp_path / "out.jsonl").exists()


def test_captured_calls_are_replayed(emulated: Path, good_data: list[OperatorCheck]) -> None:
    for check in good_data[:4]:
        ran = run_case(Kernels(emulated), HostDevice(emulated, captures=True), check.case, repeats=3)
        assert (ran.problems, compare(check, ran.outputs), len(ran.latencies_us)) == ((), [], 3), check.sample.label
        assert ran.was_captured


def test_memory_of_torch_by_its_addresses() -> None:
    memory = TorchMemory(torch.device("cpu"))
    pointer, other = memory.allocate(1000), memory.allocate(0)
    memory.fill(pointer, 0xA5, 1000)
    data = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)
    memory.write(pointer + 100, data.reshape(20, 25).T)  # not contiguous
    found = memory.read(pointer, 1000)
    assert (found[:100] == 0xA5).all() and (found[600:] == 0xA5).all()
    assert np.array_equal(found[100:600], data.reshape(20, 25).T.ravel())
    memory.write(other, data[:0])
    assert memory.read(pointer + 1000, 0).size == 0
    for call in (lambda: memory.read(pointer, 1001), lambda: memory.fill(pointer + 1, 0, 1000)):
        with pytest.raises(NativeError, match="100[01] bytes at 0x[0-9a-f]+ lie in nothing that was allocated"):
            call()
    memory.free(pointer)
    with pytest.raises(NativeError):
        memory.read(pointer, 1)


@pytest.mark.gpu
def test_a_gpu_captures_replays_and_says_its_errors() -> None:
    device = CudaDevice()
    pointer, other = device.allocate(64), device.allocate(64)
    device.fill(pointer, 1, 64)
    launch = device.captured(lambda: device._view(other, 64).copy_(device._view(pointer, 64)))
    for value in (3, 4):
        device.fill(pointer, value, 64)
        launch()
        device.synchronize()
        assert (device.read(other, 64) == value).all()
    launch.close()
    with pytest.raises(NativeError):
        device.captured(device.synchronize)
    assert len(device.latencies_us(lambda: device._view(other, 64).fill_(1), 7)) == 7


def test_gpu_check_takes_nothing_of_the_tests() -> None:
    for path in Path(gpu_check.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert '"tests"' not in text and "sys.path" not in text and "pytest" not in text, path.name


@pytest.fixture
def emulated_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path())
    worker = str(HERE / "emulated_worker.py")
    monkeypatch.setattr(gpu_check_runs, "python_command", lambda _, *given, between: [sys.executable, worker, *given])


@pytest.mark.usefixtures("emulated_worker")
def test_a_case_that_ends_the_process_does_not_end_the_run(
    faulty: Path, restore: list[OperatorCheck], tmp_path: Path
) -> None:
    names = ["fault0-first", f"fault{ENDS_PROCESS}-second", "fault1-third", "fault0-fourth"]
    checks = [replace(restore[1], case=replace(restore[1].case, name=name)) for name in names]
    runner = CaseRunner(faulty, tmp_path)
    results = runner.run([check.case for check in checks], deadline=time.monotonic() + 120, step="kernels")
    lines = judge(checks, results, lambda case: runner.outputs(case, "kernels"))
    assert [line.state for line in lines] == ["passed", "failed", "failed", "passed"]
    assert "the process ended with 77" in lines[1].detail and lines[2].detail.startswith("x: off by")


@pytest.mark.usefixtures("emulated_worker")
def test_what_time_does_not_allow_is_skipped(faulty: Path, restore: list[OperatorCheck], tmp_path: Path) -> None:
    runner = CaseRunner(faulty, tmp_path)
    results = runner.run([restore[0].case], deadline=time.monotonic() - 1, step="kernels")
    (line,) = judge(restore[:1], results, lambda case: runner.outputs(case, "kernels"))
    assert (line.state, line.detail) == ("skipped", "no time was left, or the GPU was lost")


@pytest.mark.usefixtures("emulated_worker")
def test_a_case_that_hangs_does_not_end_the_run(
    faulty: Path, restore: list[OperatorCheck], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check_runs, "STALL_S", 6.0)
    names = ["fault0-first", f"fault{HANGS}-second", "fault0-third"]
    cases = [replace(restore[1].case, name=name) for name in names]
    results = CaseRunner(faulty, tmp_path).run(cases, deadline=time.monotonic() + 120, step="kernels")
    assert [results[name]["problems"] for name in names] == [[], ["it hung: no result in 6 s"], []]


SANITIZER = """#!/bin/sh
# compute-sanitizer --tool T --target-processes all --error-exitcode 9 PROGRAM ...
test "$1 $3 $4 $5 $6" = "--tool --target-processes all --error-exitcode 9" || exit 1
shift 6
case "$1" in
*planted) PLANTED ;;
*) "$@" || exit 1; WORK ;;
esac
"""


@pytest.mark.usefixtures("emulated_worker")
@pytest.mark.parametrize(
    ("planted", "work", "state", "detail"),
    [
        ("exit 9", "exit 0", "passed", "1 cases; a planted mistake was found"),
        ("exit 9", "echo '========= Invalid read of size 4'; exit 9", "failed", "========= Invalid read of size 4"),
        ("exit 9", "echo '========= ERROR SUMMARY: 2 errors'", "failed", "========= ERROR SUMMARY: 2 errors"),
        ("exit 9", "exit 3", "failed", "it ended with 3 after 1 of 1 cases"),
        ("echo '========= RACECHECK SUMMARY: 1 hazard displayed'", "exit 0", "passed", "1 cases"),
        ("echo '========= Error: Device not supported'; exit 1", "", "skipped", "a planted mistake was not found"),
        ("exit 0", "exit 0", "skipped", "memcheck does not work here"),
    ],
)
def test_sanitizer_is_believed_if_it_finds_a_planted_mistake(
    planted: str,
    work: str,
    state: str,
    detail: str,
    faulty: Path,
    restore: list[OperatorCheck],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER.replace("PLANTED", planted).replace("WORK", work))
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_check_runs, "beside_nvcc", lambda name: str(tool))
    monkeypatch.setattr(gpu_check_runs, "plant", lambda folder, sm: folder / "planted")
    check = replace(restore[0], case=replace(restore[0].case, name="fault0-only"))
    line = gpu_check.check_sanitizer(CaseRunner(faulty, tmp_path), [check], "memcheck", 90, time.monotonic() + 120)
    assert line.state == state and detail in line.detail


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the path")
def test_the_planted_mistakes_compile(tmp_path: Path) -> None:
    assert gpu_check_runs.plant(tmp_path, 90).is_file()


def test_missing_sanitizer_is_said(faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_runs, "beside_nvcc", lambda name: None)
    line = gpu_check.check_sanitizer(CaseRunner(faulty, tmp_path), [], "racecheck", 90, time.monotonic() + 60)
    assert (line.state, line.detail) == ("skipped", "compute-sanitizer is not installed")


def test_every_operator_comes_first_under_the_sanitizer(restore: list[OperatorCheck]) -> None:
    names = ["a0", "a1", "a2", "b0", "b1"]
    cases = [replace(restore[0].case, name=name, op_type=name[0]) for name in names]
    assert [case.name for case in gpu_check_runs._spread(cases)] == ["a0", "b0", "a1", "b1", "a2"]


@pytest.mark.usefixtures("emulated_worker")
@pytest.mark.parametrize("fault", [0, FAULTS["gives other bits"][0]])
def test_sizes_that_change_between_calls(
    fault: int, faulty: Path, good_data: list[OperatorCheck], tmp_path: Path
) -> None:
    set_fault(faulty, fault)
    problems = run_in_turns(Kernels(faulty), HostDevice(faulty), [check.case for check in good_data])
    assert [problem.partition(": ")[2] for problem in problems] == (
        ["other bits than alone"] * len(good_data) if fault else []
    )
    small = [check for check in good_data if gpu_check._largest(check.case) <= gpu_check.SMALL_BYTES]
    (line,) = gpu_check.check_turns(CaseRunner(faulty, tmp_path), good_data, time.monotonic() + 60)
    assert (line.state, line.subject, line.detail) == ("passed", "TrtcTokenRestore", f"{len(small)} sizes")


def test_speed_is_bytes_of_the_contract_over_the_median(restore: list[OperatorCheck]) -> None:
    case = replace(restore[0].case, bytes_moved=2_000_000)
    result = {"problems": [], "median_us": 10.0, "min_us": 9.0, "p90_us": 12.0, "repeats": 100}
    (line,) = judge_speed([case], {case.name: result}, 400e9)
    assert line.numbers["gb_per_s"] == 200.0 and line.numbers["share_of_copy"] == 0.5
    assert line.detail == "10.0 us, 200.0 GB/s, 50.0 % of a copy"
    (line,) = judge_speed([case], {case.name: {"problems": ["it crashed"]}}, 400e9)
    assert (line.state, line.detail) == ("failed", "it crashed")
    assert judge_speed([case], {}, 400e9)[0].state == "skipped"


@pytest.mark.skipif("token_restore" not in KERNELS, reason="TokenRestore has no kernel")
def test_plugins_go_through_the_harness(
    restore: list[OperatorCheck], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = next(iter(building.interfaces().values()))
    library = SimpleNamespace(
        path=building.tensorrt_library(tmp_path, headers, ["-O2"]), operators=("TrtcTokenRestore",)
    )
    monkeypatch.setattr(gpu_check, "build", lambda **_: (SimpleNamespace(library=library, note=""),))
    monkeypatch.setattr(gpu_check, "tensorrt_headers", lambda given: given)
    monkeypatch.setattr(plugin_harness, "harness_on_gpu", building.harness)
    checks = restore[:3]
    lines = gpu_check.check_plugins(checks, 87, headers, tmp_path / "right", time.monotonic() + 300)
    assert [(line.subject, line.state) for line in lines] == [(check.case.name, "passed") for check in checks]
    assert all(line.detail.startswith("graph: skipped: CUDA is emulated") for line in lines)
    wrong = [replace(checks[0], expected=(checks[0].expected[0] + 1.0,))]
    (line,) = gpu_check.check_plugins(wrong, 87, headers, tmp_path / "wrong", time.monotonic() + 300)
    assert line.state == "failed" and line.detail.startswith("x: off by 1")
    (line,) = gpu_check.check_plugins(checks, 87, headers, tmp_path / "late", time.monotonic())
    assert (line.state, line.detail) == ("skipped", "no time was left")


def test_missing_headers_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plugin_harness, "all_headers", lambda: {})
    (line,) = gpu_check.check_plugins([], 87, None, tmp_path / "plugins", time.monotonic() + 300)
    assert line.state == "skipped" and line.detail.startswith("no TensorRT headers: ")


@pytest.mark.usefixtures("emulated_worker")
@pytest.mark.parametrize("is_sound", [True, False])
def test_rehearsal_of_the_whole_command(
    is_sound: bool,
    faulty: Path,
    restore: list[OperatorCheck],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All steps in order, with the emulation as the GPU: only `CudaDevice` and `CudaClock` need one."""
    restores = replace(operators()["TrtcTokenRestore"], samples=tuple(check.sample for check in restore[:4]))
    selects = operators()["TrtcTokenSelect"]
    library = SimpleNamespace(path=faulty, operators=("TrtcTokenRestore",))
    made = SimpleNamespace(library=library, note="", seconds=0.0, was_built=True)
    monkeypatch.setattr(gpu_check, "build", lambda **_: (made,))
    monkeypatch.setattr(gpu_check, "operators", lambda: {"TrtcTokenRestore": restores, "TrtcTokenSelect": selects})
    monkeypatch.setattr(
        gpu_check, "check_plugins", lambda *_: [Line(step="plugins", subject="harness", state="skipped")]
    )
    monkeypatch.setattr(gpu_check_runs, "beside_nvcc", lambda name: None)
    monkeypatch.setattr(gpu_check, "DTYPES", ("float32",))
    monkeypatch.setattr(gpu_check, "BENCHMARK_DTYPE", "float32")
    monkeypatch.setattr(gpu_check, "REPEATS", 20)
    monkeypatch.setattr(gpu_check, "copy_bytes_per_s", partial(copy_bytes_per_s, num_bytes=1 << 20, rounds=2))
    original = gpu_check.case_of

    def named(operator: Operator, sample: Any, inputs: Any, name: str, itemsize: int) -> Case:
        made = original(operator, sample, inputs, name, itemsize)
        return replace(made, name=f"fault{0 if is_sound else 1}-{made.name}")

    monkeypatch.setattr(gpu_check, "case_of", named)
    lines: list[Line] = []
    given = Namespace(minutes=5.0, seed=SEED, tensorrt=None)
    gpu_check.run(given, HostClock(), lines.append, tmp_path)
    states = {(line.step, line.state) for line in lines}
    assert ("kernels", "passed" if is_sound else "failed") in states
    assert ("kernels", "skipped") in states, "an operator without a kernel is named"
    assert {line.step for line in lines} == {
        *("build", "kernels", "turns", "benchmark", "plugins", "sanitizer-memcheck", "sanitizer-racecheck")
    }
    assert json.loads(json.dumps([line.to_json() for line in lines]))
    code = gpu_check.summarize(lines, tmp_path / "x.jsonl")
    assert code == (0 if is_sound else 3)
    assert "skipped" in capsys.readouterr().out
