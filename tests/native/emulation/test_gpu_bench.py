"""The figures of a GPU, rehearsed: every step with the kernels that the emulation runs, and what is wrong is found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.native.emulation.building import cuda_library
from trt_compress.errors import GateError
from trt_compress.plugins.native_torch import CudaKernels
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch, sample_inputs
from trt_compress.tools.gpu import cases as gpu_cases
from trt_compress.tools.gpu import end_to_end as gpu_end_to_end
from trt_compress.tools.gpu import kernels as gpu_kernels
from trt_compress.tools.gpu.account import kind_of
from trt_compress.tools.gpu.kernels import Bench, check
from trt_compress.tools.gpu.models import TINY, flops
from trt_compress.tools.gpu.timing import HostClock, Recorder, copy_bytes_per_s, ratio, run_record
from trt_compress.tools.machine import gpus


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda_library(tmp_path_factory.mktemp("emulated"), ["-O2"])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
@pytest.mark.parametrize("script", [gpu_kernels, gpu_end_to_end], ids=lambda script: script.WHO)
def test_without_a_gpu_they_say_so_in_a_sentence(
    script: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert script.main(["--output", str(tmp_path / "out.jsonl")]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"{script.WHO} needs an NVIDIA GPU, and torch ") and said.endswith("by --dry-run.")
    assert not (tmp_path / "out.jsonl").exists()


# ---- kernels ---------------------------------------------------------------------------------------------------------


def test_rehearsal_of_the_kernels(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ["--dry-run", "--library", str(library), "--rounds", "2", "--output", str(output), "--commit", "abc"]
    code = gpu_kernels.main(arguments)
    said = capsys.readouterr().out
    assert code == 0, said
    run, copied, *lines = records(output)
    names = [case.name for case in (*gpu_cases.LARGE, *gpu_cases.SMALL)]
    assert [line["case"] for line in lines][-len(names) :] == names and len(lines) == len(names) + 7
    assert {line["verdict"] for line in lines} == {"rehearsed"}, said
    assert all(line["dry_run"] and line["kernels"] == run["kernels"] for line in lines)
    assert run["case"] == "run" and run["gpu"]["name"] == "rehearsal on the CPU" and copied["gb_per_s"] > 0
    by_case = {line["case"]: line for line in lines}
    merge = by_case["TokenMerge, 64 images"]
    assert merge["same_as_textbook"] == 1.0 and merge["wanted"] == gpu_cases.MERGE_WANTED
    for line in lines:
        assert line["expected"]["why"] and line["operator"] and line["time_us"]["ours"]["n"] == 2


def test_cases_are_large_and_lawful_and_named_once() -> None:
    cases = (*gpu_cases.LARGE, *gpu_cases.SMALL)
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        names = {attribute.name for attribute in case.operator.spec.attributes}
        for dry_run in (False, True):
            assert set(case.sample(dry_run).attributes) == names, case.name
    for case in gpu_cases.LARGE:
        # Several times the level 2 cache of an H200 (60 MB).
        assert 3 * 60e6 < Bench.bytes_moved(case, case.sample(False)) < 1.2e9, case.name
    wanted = {case.operator.spec.name for case in gpu_cases.LARGE if case.wanted == 0.8}
    assert wanted == {
        "TokenSelect",
        "TokenRestore",
        "KVQuantize",
        "KVAppend",
        "KVCompact",
        "CodebookDecode",
        "TokenMix",
    }


def test_a_floor_is_bytes_over_the_copy_or_operations_over_the_rate(tmp_path: Path) -> None:
    clock = HostClock()
    recorder = Recorder(tmp_path / "out.jsonl", run_record("x", clock, commit="abc", dry_run=True))
    bench = Bench(clock, None, recorder, deadline=float("inf"), rounds=8, dry_run=True)
    bench.copy_bytes_per_s, bench.fp32_per_s = 1e6, 1e30
    case = next(case for case in gpu_cases.LARGE if case.op_type == "TrtcTokenMix")
    line = bench.large(case)
    b, n, m, c = (case.tiny[letter] for letter in "BNMC")
    num_bytes = 2 * (b * (n + m) * c + m * n)  # one matrix for all
    assert line["bytes_moved"] == num_bytes and line["floor_us"] == num_bytes
    low, high = line["time_us"]["ours"]["min_us"], 1e9
    assert num_bytes / high < line["share_of_floor"]["median"] <= num_bytes / low * 1.01
    bench.fp32_per_s = 1.0
    assert bench.large(case)["floor_us"] == 2e6 * b * m * n * c
    assert bench.large(case)["verdict"] == "met", "a time below its floor"


def test_a_wrong_kernel_is_not_timed(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HostClock()
    recorder = Recorder(tmp_path / "out.jsonl", run_record("x", clock, commit=None, dry_run=True))
    kernels = CudaKernels(library, device_type="cpu")
    bench = Bench(clock, kernels, recorder, deadline=float("inf"), rounds=2, dry_run=True)

    def altered(operator: Any, sample: Sample, inputs: Any) -> tuple[torch.Tensor, ...]:
        outputs = call_torch(operator, sample, inputs)
        return (outputs[0] * 1.1, *outputs[1:])

    monkeypatch.setattr(gpu_kernels, "call_torch", altered)
    bench.run("TokenRestore, unmerge")
    line = recorder.lines[-1]
    assert line["verdict"] == "failed" and "token_restore: x is off by" in line["detail"]
    assert "time_us" not in line
    monkeypatch.setattr(bench, "deadline", 0.0)
    bench.run("KVAppend, one")
    assert recorder.lines[-1]["detail"] == "no time was left"


def test_decisions_may_differ_by_rounding_only() -> None:
    operator = operators()["TrtcTokenMerge"]
    attributes = {"num_merged": 3, "num_protected": 1, "order": 0}
    sample = Sample(axes={"B": 4, "N": 17, "C": 8, "D": 8}, attributes=attributes, reason="")
    inputs = sample_inputs(operator, sample, seed=3)
    wanted = call_torch(operator, sample, inputs)
    check(operator, sample, inputs, wanted, wanted)
    other = call_torch(operator, sample, (inputs[0], inputs[1].flip(1), inputs[2]))
    with pytest.raises(GateError, match="a decision is worse than the best by"):
        check(operator, sample, inputs, other, wanted)
    with pytest.raises(GateError, match="token_merge: y is off by"):
        check(operator, sample, inputs, (wanted[0] + 1, *wanted[1:]), wanted)


def test_ratios_are_of_pairs() -> None:
    found = ratio([10.0] * 9 + [30.0], [5.0] * 9 + [10.0])
    assert found == {"median": 2.0, "interval": [2.0, 2.0], "n": 10}
    assert copy_bytes_per_s(HostClock(), float("inf"), num_bytes=1 << 16, rounds=3) > 0


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rehearsal_of_the_models(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ["--dry-run", "--library", str(library), "--rounds", "2", "--output", str(output), "--no-engines"]
    code = gpu_end_to_end.main(arguments)
    assert code == 0, capsys.readouterr().out
    _, *lines = records(output)
    assert [line["case"] for line in lines] == [f"PyTorch, tiny, batch {batch}" for batch in (2, 1)]
    for line in lines:
        assert line["verdict"] == "rehearsed" and line["kernel_calls"] == {"TrtcTokenMerge": 3 * 2}
        assert min(line["agreement"].values()) > 0.9999
        assert set(line["account"]) == {"dense", "tome"} and line["account"]["tome"]["total_us"] > 0
        assert {"tome, eager", "textbook", "tome, torch form of the operator"} <= set(line["speedups_over_dense"])
        assert line["fewer_flops"] > 1.1 and line["expected"]["why"]


def test_models_that_are_not_the_same_function_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HostClock()
    recorder = Recorder(tmp_path / "out.jsonl", run_record("x", clock, commit=None, dry_run=True))
    run = gpu_end_to_end.EndToEnd(clock, None, recorder, deadline=float("inf"), rounds=1, dry_run=True)
    variants = TINY[0].variants(clock.device, torch.float32)
    with torch.no_grad():
        assert min(run.agreement(variants, torch.randn(2, 3, 32, 32)).values()) > 0.9999
        variants["tome"] = variants["dense"]
        with pytest.raises(GateError, match="logits differ"):
            run.agreement({**variants, "textbook": torch.nn.Sequential(variants["dense"], torch.nn.ReLU())},
                          torch.randn(2, 3, 32, 32))  # fmt: skip


def test_operations_are_counted() -> None:
    vit = TINY[0].make()
    dense, fewer = flops(vit, 0, 32), flops(vit, 3, 32)
    c, n = 32, 17
    assert dense == 2 * 16 * 3 * 64 * c + 3 * 2 * (12 * n * c**2 + 2 * n**2 * c)
    assert dense / fewer > 1.2


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void trtc::token_merge::matchKernel(Problem, void*)", "token merging"),
        ("sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("fmha_cutlassF_f16_aligned_64x64_rf_sm80", "attention"),
        ("void at::native::vectorized_layer_norm_kernel", "normalisation"),
        ("void at::native::elementwise_kernel<128, 4, GeluCUDAKernel>", "elementwise and the rest"),
        ("void at::native::bitonicSortKVInPlace", "sorting and scattering"),
    ],
)
def test_kernels_have_a_kind(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


@pytest.mark.slow
def test_engines_are_tried_and_what_they_say_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    code = gpu_end_to_end.main(["--dry-run", "--rounds", "2", "--output", str(output)])
    lines = {line["case"]: line for line in records(output)}
    assert code == 0
    assert lines["ONNX Runtime, batch 2"]["verdict"] == "rehearsed"
    assert lines["TensorRT"]["detail"] == "the package tensorrt is not installed"
    for capability in ("portable", "SM80"):
        refused = lines[f"TensorRT-RTX, {capability} engine"]
        assert refused["verdict"] == "refused" and refused["stage"] == "deserialize", refused["detail"]
        assert refused["steps"][0]["stage"] == "plan" and refused["steps"][0]["bytes"] > 1e5
