"""`trt-compress bench` of bundles that read tokens: prompts and steps apart, at each fill, beside a baseline."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.counter_bundles import PERIOD, write, write_viewer
from trt_compress import bench
from trt_compress.errors import ConfigError
from trt_compress.export.bundle import update_bundle
from trt_compress.format.procedure import Upkeep
from trt_compress.runtime import Session
from trt_compress.runtime.measure.latency import speedup, summarize
from trt_compress.runtime.sequences import Sequences

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_prompts_and_steps_are_timed_apart_at_each_fill(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "b")
    half = write(tmp_path / "half")
    update_bundle(half, replace(half.manifest, precision="fp16"), {})
    options = ("--fill", "9,4", "--new", 16, "--pairs", 15, "--batch", 2, "--threads", 1, "--json", "result.json")
    finished = cli("bench", "b", "--baseline", "half", *options)
    assert finished.returncode == 0, finished.stderr
    lines = [line.split() for line in finished.stdout.splitlines()]
    assert [line[:3] for line in lines if line[:1] in (["prefill"], ["decode"]) and line[1].isdigit()] == [
        [workload, str(fill), role]
        for workload in ("prefill", "decode")
        for fill in (4, 9)
        for role in ("bundle", "baseline")
    ]
    assert "baseline: counter, none, fp16." in finished.stdout and "× (" in finished.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    points = result["points"]
    assert [(point["workload"], point["fill"]) for point in points] == [
        *(("prefill", 4), ("prefill", 9)),
        *(("decode", 4), ("decode", 9)),
    ]
    last = points[-1]
    assert result["protocol"]["workload"] == "decode" and result["protocol"]["fill"] == 9
    assert result["speedup"] == last["speedup"] == speedup(*(s["latencies_ns"] for s in last["sides"])).to_json()
    assert [side["latencies_ns"] for side in result["sides"]] == [side["latencies_ns"] for side in last["sides"]]
    assert result["quality"]["logits"]["cosine"] == pytest.approx(1)
    for point in points:
        for side in point["sides"]:
            ns, steps = side["latencies_ns"], point["workload"] == "decode"
            assert len(ns) == (16 if steps else 15) and side["latency"] == summarize(ns).to_json()
            assert side["tokens_per_s"] == pytest.approx(2 * (1 if steps else point["fill"]) * len(ns) * 1e9 / sum(ns))
    # runs of three tokens leave none in the tail behind 4 tokens and three behind 9; then there are 6 steps of warm-up
    held = {4: (0 + 6) % PERIOD, 9: (3 + 6) % PERIOD}
    assert [point["sides"][0]["with_upkeep"] for point in points[2:]] == [
        [step for step in range(16) if (held[fill] + step + 1) % PERIOD == 0] for fill in (4, 9)
    ]


def test_bytes_are_those_of_the_states_at_the_fill(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", upkeep=(Upkeep(graph="flush", after="run", capacity="slots", at_least=15),))
    measured = bench(bundle.path, fill=[3, 10], new=2, warmup=0, pairs=1, workload="decode")
    with Session.open(bundle) as session:
        for point, fill in zip(measured.points, (3, 10), strict=True):
            sequence = Sequences(session)
            sequence.read([np.zeros(fill, np.int64)])
            (side,) = point.sides
            assert side.state_bytes == sequence.states.bytes and len(side.latencies_ns) == 2


def test_a_result_of_tokens_is_reported(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "b")
    cli("bench", "b", "--baseline", "b", "--fill", "4,9", "--new", 16, "--pairs", 6, "--json", "result.json")
    finished = cli("report", "result.json", "--html", "--json")
    assert finished.returncode == 0, finished.stderr
    report, result = json.loads(finished.stdout), json.loads((tmp_path / "result.json").read_text())
    assert report["speedup"] == result["points"][-1]["speedup"]
    for shown, point in zip(report["points"], result["points"], strict=True):
        for side, measured in zip(shown["sides"], point["sides"], strict=True):
            assert side["latency"]["median_ns"] == measured["latency"]["median_ns"]
            assert side["verdict"] == measured["verdict"]["status"]
    bundle = report["sides"][0]
    assert bundle["compression"]["kv_bytes_after"] == result["points"][-1]["sides"][0]["state_bytes"]
    assert bundle["verdict"]["status"] == result["sides"][0]["verdict"]["status"]
    page = (tmp_path / "result.report.html").read_text()
    assert "Prompts and steps" in page and "decode at 9, baseline" in page
    assert "prefill at 4, bundle" in cli("report", "result.json").stdout
    assert cli("compare", "result.json", "--budget", "kv_bytes<=1").returncode == 3


def test_usual_fills_go_as_far_as_the_context(tmp_path: Path) -> None:
    bundle = write_viewer(tmp_path / "b", vocabulary=12)  # without capacities it reads texts of any length
    measured = bench(bundle.path, workload="prefill", pairs=1, warmup=0)
    assert [(point.workload, point.fill) for point in measured.points] == [("prefill", 128), ("prefill", 2048)]
    measured = bench(bundle.path, context=300, new=10, workload="decode")
    assert [point.fill for point in measured.points] == [128, 300 - 10 - 6]
    assert measured.protocol["context"] == 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workload", "decod"), "workload 'decod' is not known; there are prefill, decode. Did you mean 'decode'?"),
        (("--fill", "4,x"), "--fill '4,x': give numbers of tokens with commas between them, such as 128,2048."),
        (("--fill", "0"), "fill=[0], new=64, context=None; give numbers of at least 1."),
        (("--new", "0"), "new=0"),
        (("--context", "20", "--fill", "10"), "A prompt of 10 and 70 steps are more than the 20 tokens that --context"),
        (("--inputs", "x.npz"), "--inputs: a bundle that reads tokens is timed on seeded random ones; leave it out."),
        (("--graph", "flush", "--fill", "3"), "--fill is of bundles that read tokens, and a single graph is asked for"),
        (("--baseline", "dense"), "reads no tokens, and the other bundle does; compare bundles of one model."),
        (("--baseline", "viewer"), "The bundle knows 4 tokens and the baseline 12; compare bundles of one model."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused(
    cli: Cli, make_bundle: Callable[..., Path], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    write(tmp_path / "b")
    write_viewer(tmp_path / "viewer", vocabulary=12)
    make_bundle("dense")
    np.savez(tmp_path / "x.npz", tokens=np.zeros((1, 3), np.int64))
    finished = cli("bench", "b", *options)
    assert finished.returncode == 2 and finished.stderr.count("\n") <= 4
    assert message in " ".join(finished.stderr.split()) and "Traceback" not in finished.stderr


def test_workloads_of_a_bundle_that_reads_no_tokens(cli: Cli, make_bundle: Callable[..., Path]) -> None:
    finished = cli("bench", make_bundle("dense"), "--fill", "128")
    assert finished.returncode == 2
    assert "--fill is of bundles that read tokens, and 'dense' reads no tokens; leave it out." in finished.stderr
    with pytest.raises(ConfigError, match="--new is of bundles that read tokens"):
        bench(make_bundle("dense2"), new=3)
