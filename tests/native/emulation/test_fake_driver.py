"""The layer over the CUDA driver, on a libcuda of the tests that is strict about its arguments and runs on the CPU."""

import ctypes
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.native.emulation.building import HERE, cuda_library, link, objects
from trt_compress.errors import PluginError, UnsupportedError
from trt_compress.plugins.registry import operators
from trt_compress.plugins.testing import plugin_harness
from trt_compress.tools.gpu import check as gpu_check
from trt_compress.tools.gpu import device as gpu_check_device
from trt_compress.tools.gpu import runs as gpu_check_runs
from trt_compress.tools.gpu.check import Check, checks_of, compare, judge
from trt_compress.tools.gpu.device import SIGNATURES, CudaDevice, load_driver
from trt_compress.tools.gpu.guarded import Kernels, run_case
from trt_compress.tools.gpu.runs import Runner

SEED = 20241
STEPS = ("build", "kernels", "turns", "benchmark", "plugins", "sanitizer-memcheck", "sanitizer-racecheck")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("driver")


@pytest.fixture(scope="module")
def driver(folder: Path) -> Path:
    return link(folder / "libcuda.so.1", objects([HERE / "fake_driver.cpp"]), ["-shared"])


@pytest.fixture(scope="module")
def kernels(folder: Path) -> Path:
    return cuda_library(folder, ["-O2"])


@pytest.fixture
def device(driver: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDevice]:
    monkeypatch.setattr(gpu_check_device, "DRIVER", str(driver))
    before = alive(driver)
    yield CudaDevice()
    memory, streams, *others = alive(driver)
    assert (memory, others) == (before[0], before[2:]), "memory, events, graphs or executables are left"
    assert streams == before[1] + 1


def alive(driver: Path) -> list[int]:
    """How much memory, and how many streams, events, graphs and executables there are."""
    library = ctypes.CDLL(str(driver))
    library.trtcFakeAlive.restype = ctypes.c_char_p
    return [int(number) for number in library.trtcFakeAlive().split()]


def calls(driver: Path, function: str) -> int:
    return int(ctypes.CDLL(str(driver)).trtcFakeCalls(function.encode()))


@pytest.fixture(scope="module")
def merges() -> list[Check]:
    made, _ = checks_of(operators()["TrtcTokenMerge"], SEED)
    return [check for check in made if check.case.data[0].nbytes <= 4096][:8]


# ---- memory, streams, graphs, events ---------------------------------------------------------------------------------


def test_facts(device: CudaDevice) -> None:
    assert device.facts() == {
        "name": "Fake H100",
        "sm": 90,
        "multiprocessors": 132,
        "memory_bytes": 80 << 30,
        "l2_bytes": 4 << 20,
        "clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "cuda_driver": "13.0",
    }


def test_every_call_has_its_types_and_is_in_the_driver(driver: Path) -> None:
    library = load_driver(str(driver))
    for function, types in SIGNATURES.items():
        assert tuple(getattr(library, function).argtypes) == types
    with pytest.raises(ctypes.ArgumentError):
        library.cuMemFree_v2("text")


def test_memory(device: CudaDevice) -> None:
    pointer = device.allocate(1000)
    assert pointer > 1 << 32, "an address that is cut to 32 bits would be another"
    data = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)
    device.fill(pointer, 0xA5, 1000)
    device.write(pointer + 100, data)
    found = device.read(pointer, 1000)
    assert (found[:100] == 0xA5).all() and (found[600:] == 0xA5).all() and np.array_equal(found[100:600], data)
    device.write(pointer, data.reshape(20, 25).T)  # not contiguous
    assert np.array_equal(device.read(pointer, 500), data.reshape(20, 25).T.ravel())
    assert device.read(pointer, 0).size == 0
    for call in (lambda: device.read(pointer, 1001), lambda: device.fill(pointer + 1, 0, 1000)):
        with pytest.raises(PluginError, match=r"^cuMem\w+: invalid argument\.$"):
            call()
    device.free(pointer)
    with pytest.raises(PluginError, match="invalid argument"):
        device.read(pointer, 1)


def test_sizes_beyond_32_bits(device: CudaDevice) -> None:
    size = (5 << 30) + 3
    pointer = device.allocate(size)
    device.write(pointer + size - 2, np.array([7, 9], dtype=np.uint8))
    assert device.read(pointer + size - 3, 3).tolist() == [0, 7, 9]
    device.free(pointer)


def test_a_capture_and_its_replays(device: CudaDevice, driver: Path) -> None:
    a, b = device.allocate(64), device.allocate(64)
    device.fill(a, 1, 64)
    device.fill(b, 2, 64)
    launch = device.captured(lambda: device._must("cuMemcpyDtoDAsync_v2", b, a, 64, device.stream))
    assert (device.read(b, 64) == 2).all(), "a capture does nothing by itself"
    for value in (3, 4):
        device.fill(a, value, 64)
        launch()
        device.synchronize()
        assert (device.read(b, 64) == value).all()
    launch.close()
    with pytest.raises(PluginError, match="cuGraphLaunch: invalid resource handle"):
        launch()
    device.free(a)
    device.free(b)


def test_a_capture_that_fails_ends(device: CudaDevice) -> None:
    def allocates() -> None:
        device.allocate(8)

    with pytest.raises(PluginError, match="cuMemAlloc_v2: operation would make the legacy stream depend"):
        device.captured(allocates)
    with pytest.raises(PluginError, match="cuStreamSynchronize: operation not permitted when stream is capturing"):
        device.captured(device.synchronize)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.captured(interrupted)
    device.captured(lambda: None).close()


def test_times_and_the_copy(device: CudaDevice, driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_device, "_LEAST_FLUSH_BYTES", 1 << 16)
    monkeypatch.setattr(gpu_check_device, "_COPY_BYTES", 1 << 20)
    times = device.latencies_us(lambda: None, 7)
    assert len(times) == 7 and all(time >= 0 for time in times)
    launches = calls(driver, "cuGraphLaunch")
    assert device.copy_bytes_per_second(5) > 1e6
    assert calls(driver, "cuGraphLaunch") == launches + 5 + gpu_check_device._WARM_UP
    pointer, num_bytes = device._flush or (0, 0)
    assert num_bytes == 4 * (4 << 20), "four times the level 2 cache"
    device.free(pointer)


def test_errors_are_said(device: CudaDevice, monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    monkeypatch.setenv("TRTC_FAKE_FAIL", f"cuMemAlloc_v2:{calls(driver, 'cuMemAlloc_v2') + 1}")
    with pytest.raises(PluginError, match=r"^cuMemAlloc_v2: out of memory\.$"):
        device.allocate(8)
    device.free(device.allocate(8))


def test_no_gpu_no_driver_old_driver(driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_device, "DRIVER", str(driver))
    monkeypatch.setenv("TRTC_FAKE_GPUS", "0")
    with pytest.raises(UnsupportedError, match="the NVIDIA driver shows no GPU"):
        CudaDevice()
    with pytest.raises(UnsupportedError, match="there is no NVIDIA driver"):
        load_driver(str(tmp_path / "libcuda.so.1"))
    empty = tmp_path / "empty.cpp"
    empty.write_text("int nothing;\n")
    with pytest.raises(UnsupportedError, match="has no cuInit: it is older than CUDA 12"):
        load_driver(str(link(tmp_path / "empty.so", objects([empty]), ["-shared"])))


# ---- kernels under it ------------------------------------------------------------------------------------------------


def test_cases_run_with_captures(device: CudaDevice, kernels: Path, merges: list[Check]) -> None:
    library = Kernels(kernels)
    for check in merges:
        ran = run_case(library, device, check.case, repeats=3)
        assert (ran.problems, compare(check, ran.outputs)) == ((), []), check.sample.label
        assert ran.was_captured and len(ran.latencies_us) == 3
    device.free((device._flush or (0, 0))[0])


@pytest.fixture
def on_path(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver for processes that are started, by its name."""
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{driver.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}")


@pytest.mark.usefixtures("on_path")
def test_the_worker_itself(kernels: Path, merges: list[Check], tmp_path: Path) -> None:
    runner = Runner(kernels, tmp_path)
    results = runner.run([check.case for check in merges], deadline=time.monotonic() + 60, step="kernels")
    lines = judge(merges, results, lambda case: runner.outputs(case, "kernels"))
    assert {(line.state, line.detail) for line in lines} == {("passed", "")}
    assert all(result["was_captured"] for result in results.values())
    (line,) = gpu_check.check_turns(runner, merges, time.monotonic() + 60)
    assert (line.state, line.detail) == ("passed", f"{len(merges)} sizes")


@pytest.mark.usefixtures("on_path")
def test_a_kernel_that_takes_the_context_along(merges: list[Check], tmp_path: Path) -> None:
    """The case that did it fails, and those after it run in another process."""
    made, _ = checks_of(operators()["TrtcTokenRestore"], SEED)
    good = next(check for check in made if check.dtype == "float32" and check.case.attributes == (("mode", 0),))
    parts = objects((HERE / "faulty_kernels.cpp", HERE / "cuda_emulation.cpp"))
    library = link(tmp_path / "libtrtc_cuda.so", parts, ["-shared"])
    cases = [replace(good.case, name=name) for name in ("first", "second")]
    divergent = 9
    runner = Runner(library, tmp_path / "run")
    (tmp_path / "run").mkdir()
    results = runner.run(cases, deadline=time.monotonic() + 60, step="kernels")
    assert [results[case.name]["problems"] for case in cases] == [[], []]
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import ctypes, sys\nfrom pathlib import Path\nfrom trt_compress.tools.gpu import worker as w\n"
        "library, folder, names = map(Path, sys.argv[1:4])\n"
        f"if names.read_text().startswith('first'):\n    ctypes.CDLL(str(library)).trtcSetFault({divergent})\n"
        "w.run_folder(w.Kernels(library), w.CudaDevice(), folder, names.read_text().split())\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gpu_check_runs, "python_command", lambda _, *given, between: [sys.executable, str(worker), *given]
        )
        results = runner.run(cases, deadline=time.monotonic() + 60, step="again")
    assert results["first"]["problems"] == ["cuStreamSynchronize: unspecified launch failure."]
    assert results["second"]["problems"] == [] and runner.crashes == 1


@pytest.mark.usefixtures("on_path")
def test_the_whole_command(
    kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], driver: Path
) -> None:
    """gpu-check from its command line, with everything real but the driver, nvcc and the sanitizer."""
    monkeypatch.setattr(gpu_check_device, "DRIVER", str(driver))
    restore = operators()["TrtcTokenRestore"]
    few = replace(restore, samples=restore.samples[:3])
    library = SimpleNamespace(path=kernels, operators=("TrtcTokenRestore",))
    made = SimpleNamespace(library=library, note="", seconds=1.5, was_built=True)
    monkeypatch.setattr(gpu_check, "build", lambda **_: (made,))
    monkeypatch.setattr(gpu_check, "operators", lambda: {"TrtcTokenRestore": few})
    monkeypatch.setattr(gpu_check, "find_program", lambda name: f"/bin/{name}")
    monkeypatch.setattr(gpu_check, "REPEATS", 10)
    monkeypatch.setattr(gpu_check_device, "_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(gpu_check_runs, "beside_nvcc", lambda name: None)
    monkeypatch.setattr(plugin_harness, "all_headers", lambda: {})
    output = tmp_path / "out.jsonl"
    code = gpu_check.main(["--output", str(output), "--seed", "5", "--minutes", "3", "--commit", "abc"])
    said = capsys.readouterr().out
    assert code == 0, said
    record, *lines = map(json.loads, output.read_text().splitlines())
    assert record["gpu"]["name"] == "Fake H100" and record["seed"] == 5 and record["kernels"]
    assert tuple(dict.fromkeys(line["step"] for line in lines)) == STEPS
    assert [line["detail"] for line in lines if line["state"] == "skipped"] == [
        plugin_harness.NO_HEADERS,
        *["compute-sanitizer is not installed"] * 2,
    ]
    timed = next(line for line in lines if line["step"] == "benchmark" and line["subject"] != "copy")
    assert timed["repeats"] == 10 and timed["share_of_copy"] > 0
    assert said.startswith("Fake H100, SM 90, CUDA driver 13.0, seed 5")
