"""`trt-compress bench`: what it prints, what it records, what it refuses."""

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trt_compress.export.bundle import update_bundle
from trt_compress.runtime import Bundle
from trt_compress.runtime.measure.latency import Speedup, summarize
from trt_compress.tools.bench.result import compare_outputs
from trt_compress.tools.bench.verdicts import slower_words
from trt_compress.tools.machine import cpu_cores

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Maker = Callable[..., Path]


def test_a_bundle_beside_its_baseline(cli: Cli, make_bundle: Maker, tmp_path: Path) -> None:
    bundle, baseline = make_bundle("merged", compressor="tome"), make_bundle("dense")
    finished = cli("bench", bundle, "--baseline", baseline, "--pairs", 64, "--threads", 1, "--json", "result.json")
    assert finished.returncode == 0, finished.stderr
    assert "merged" in finished.stdout and "Speed-up over the baseline: " in finished.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["protocol"] == {
        "kind": "closed loop, interleaved ABAB",
        "backend": "ort-cpu",
        "threads": 1,
        "spinning": False,
        "batch": 4,
        "pairs": 64,
        "warmup": 5,
        "inputs": "random, seed 0",
    }
    measured, dense = result["sides"]
    assert (measured["role"], dense["role"]) == ("bundle", "baseline")
    assert (measured["identity"]["compression"], dense["identity"]["compression"]) == ("tome:num_merged=13", "none")
    assert measured["latency"]["n"] == len(measured["latencies_ns"]) == 64
    assert measured["first_inference_ns"] > 0 and measured["identity"]["graph_bytes"] > 0
    alike = {"n": 4, "max_abs": 0.0, "cosine": pytest.approx(1.0), "top1_agreement": 1.0}
    assert result["quality"] == {"scores": alike}
    for side in result["sides"]:
        assert (
            min(side["latencies_ns"]) == side["latency"]["min_ns"]
            and summarize(side["latencies_ns"]).median_ns == (side["latency"]["median_ns"])
        )
    assert measured["latency"]["min_ns"] <= measured["latency"]["median_ns"] <= measured["latency"]["p90_ns"]
    assert result["speedup"]["low"] <= result["speedup"]["median"] <= result["speedup"]["high"]
    assert result["device"]["cores"] == cpu_cores() and result["versions"]["onnxruntime"]


def test_a_bundle_that_is_slower_than_its_baseline_is_said_out_loud() -> None:
    gain = Speedup(median=0.8, low=0.7, high=0.9, n=64)
    assert (
        gain.is_slower and not replace(gain, high=1.1).is_slower and not replace(gain, median=1.2, high=1.3).is_slower
    )
    assert replace(gain, low=None, high=None).is_slower
    point = SimpleNamespace(workload="decode", fill=128, speedup=gain)
    for result, where in ((SimpleNamespace(points=(), speedup=gain), ""),
                          (SimpleNamespace(points=(point,), speedup=gain), ", decode at 128")):  # fmt: skip
        (said,) = slower_words(result)  # type: ignore[arg-type]
        assert f"slower than its baseline on this machine{where}: 0.80× (0.70 to 0.90)." in said
    assert slower_words(SimpleNamespace(points=(), speedup=replace(gain, high=1.1))) == []  # type: ignore[arg-type]
    assert slower_words(SimpleNamespace(points=(), speedup=None)) == []  # type: ignore[arg-type]


def test_outputs_are_compared_item_by_item() -> None:
    ours = {"a": np.array([[1.0, 0.0], [3.0, 4.0]]), "b": np.array([1.0, 2.0]), "n": np.array([1, 2])}
    theirs = {"a": np.array([[0.0, 1.0], [3.0, 4.5]]), "b": np.array([1.0, 2.0]), "n": np.array([1, 2])}
    compared = compare_outputs(ours, theirs)
    assert set(compared) == {"a", "b"}  # whole numbers are no scores
    assert compared["a"] == {"n": 2, "max_abs": 1.0, "cosine": 0.0, "top1_agreement": 0.5}
    assert compared["b"] == {"n": 2, "max_abs": 0.0, "cosine": 1.0}


def test_a_benchmark_can_be_reported_and_held_to_a_budget(cli: Cli, make_bundle: Maker, tmp_path: Path) -> None:
    bundle, baseline = make_bundle("merged", compressor="tome"), make_bundle("dense")
    cli("bench", bundle, "--baseline", baseline, "--pairs", 70, "--threads", 1, "--json", "result.json")
    finished = cli("report", "result.json", "-o", "out", "--json")
    assert finished.returncode == 0, finished.stderr
    report, result = json.loads(finished.stdout), json.loads((tmp_path / "result.json").read_text())
    assert report["speedup"]["median"] == result["speedup"]["median"]
    assert [side["verdict"]["status"] for side in report["sides"]] == [s["verdict"]["status"] for s in result["sides"]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.report.json", "result.report.html"}
    gate = cli("compare", "result.json", "--budget", "speedup>=1000,scores_cosine>=0.99")
    assert gate.returncode == 3 and "1 of 2 limits are broken: speedup is" in gate.stderr


def test_json_to_stdout_is_one_document(cli: Cli, make_bundle: Maker) -> None:
    finished = cli("bench", make_bundle("dense"), "--pairs", 20, "--batch", 2, "--json", "-")
    result = json.loads(finished.stdout)
    assert result["speedup"] is None and len(result["sides"]) == 1
    assert result["protocol"]["batch"] == 2


def test_a_percentile_needs_enough_runs(cli: Cli, make_bundle: Maker) -> None:
    finished = cli("bench", make_bundle("dense"), "--pairs", 20)
    assert "bundle: p90: n too small: 20 of 64." in finished.stdout


def test_inputs_come_from_a_file(cli: Cli, make_bundle: Maker, tmp_path: Path) -> None:
    np.savez(tmp_path / "given.npz", images=np.ones((3, 8), np.float32))
    finished = cli("bench", make_bundle("dense"), "--pairs", 15, "--inputs", "given.npz", "--json", "-")
    assert json.loads(finished.stdout)["protocol"]["batch"] == 3


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--batch", "0"), 2, "batch=0; give at least 1."),
        (("--pairs", "0"), 2, "pairs=0"),
        (("--backend", "ort-cpo"), 2, "Did you mean 'ort-cpu'?"),
        (("--inputs", "none.npz"), 2, "'none.npz' does not exist"),
        (("--inputs", "text.npz"), 2, "'text.npz' is not a readable .npz file"),
        (("--inputs", "wrong.npz"), 2, "input 'image' is not known; there is images. Did you mean 'images'?"),
        (("--inputs", "empty.npz"), 2, "The arrays of --inputs hold no item; give at least one."),
        (("--inputs", "wrong.npz", "--batch", "2"), 2, "leave one of the two out"),
        (("--baseline", "other"), 2, "compare bundles of the same model and precision."),
        (("--json", "nowhere/result.json"), 2, "'nowhere/result.json' cannot be written"),
        (("--baseline", "infinite"), 3, "is not finite, so its latency means nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused(
    cli: Cli, make_bundle: Maker, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    bundle = make_bundle("dense")
    make_bundle("other", width=16)
    make_bundle("infinite", scale=math.inf)
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "wrong.npz", image=np.ones((3, 8), np.float32))
    np.savez(tmp_path / "empty.npz", images=np.ones((0, 8), np.float32))
    finished = cli("bench", bundle, "--warmup", 0, "--pairs", 15, *options)
    assert finished.returncode == code
    assert message in " ".join(finished.stderr.split()) and "Traceback" not in finished.stderr


def test_a_baseline_of_another_precision_is_refused(cli: Cli, make_bundle: Maker) -> None:
    bundle, other = make_bundle("dense"), make_bundle("half")
    opened = Bundle.open(other)
    update_bundle(opened, replace(opened.manifest, precision="fp16"), {})
    finished = cli("bench", bundle, "--baseline", other)
    assert finished.returncode == 2
    assert "The bundle is fp32 and the baseline fp16; export both in one precision." in finished.stderr
