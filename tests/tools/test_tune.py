"""`trt-compress tune`: schedules, the staircase, the search and its record, what is taken and what is refused."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.attack.small_bundle import write_small
from tests.processes import environment
from tests.typed_commands import Typed
from trt_compress.errors import ConfigError
from trt_compress.export.options import OPTIONS
from trt_compress.export.recipe import OF_INT8
from trt_compress.format.bundle import Bundle
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.runtime.evaluate import Scores
from trt_compress.runtime.labelled.data import LabelledData, LabelledSample, limited, without
from trt_compress.runtime.measure.latency import speedup, summarize, verdict
from trt_compress.runtime.proportion import difference, share
from trt_compress.tools.bench.result import BenchResult, Role, Side
from trt_compress.tools.evaluate import Evaluation
from trt_compress.tools.sweep.result import Row, SweepResult
from trt_compress.tools.tune import run
from trt_compress.tools.tune.judge import Judge, only_graph, shape_of
from trt_compress.tools.tune.page import page_from_tune
from trt_compress.tools.tune.result import (
    Confirmed,
    TuneResult,
    before_confirming,
    judged,
    limits_from,
    metrics_of,
    rounds_for,
)
from trt_compress.tools.tune.schedule import Shape, left_behind, methods_from, spec_of, starts
from trt_compress.tools.tune.search import Trial, begin_trials, front, keep_trial, read_trials, search
from trt_compress.tools.tune.staircase import Staircase, measured, request_of, write_block

SHAPE = Shape(tokens=65, prefix=1, layers=8)

# ---- schedules ------------------------------------------------------------------------------------------------------


def tokens_behind(spec: str) -> dict[int, int]:
    graph = only_graph(load_host("zoo:digits_vit"), spec)
    return {site.layer: int(site.tokens_out) for site in graph.module.plan}


@pytest.mark.parametrize("removed", [(4,) * 8, (0, 9, 0, 3, 0, 0, 1, 0), (12,) * 8, (0,) * 7 + (12,)])
@pytest.mark.parametrize("method", ["tome", "evit:fuse=false", "diffrate"])
def test_a_schedule_is_what_the_model_does(method: str, removed: tuple[int, ...]) -> None:
    left = left_behind(SHAPE, removed)
    spec = spec_of(method.partition(":")[0], methods_from([method])[method], SHAPE, left)
    found = tokens_behind(spec)
    before = (SHAPE.tokens, *left[:-1])
    acting = {layer: new for layer, (old, new) in enumerate(zip(before, left, strict=True)) if new < old}
    assert {layer: tokens for layer, tokens in found.items() if layer in acting} == acting


def test_at_most_half_of_the_patches_leave_at_a_layer() -> None:
    assert left_behind(SHAPE, (64, 64, 1, 0, 0, 0, 0, 0)) == (33, 17, 16, 16, 16, 16, 16, 16)
    assert min(left_behind(SHAPE, (64,) * 8)) == 2


def test_a_search_begins_with_schedules_that_leave_what_they_say() -> None:
    constant, half, least, falling, rising = (left_behind(SHAPE, removed) for removed in starts(SHAPE))
    assert [kept[-1] for kept in (constant, half, falling, rising)] == [49, 33, 33, 33] and least[-1] < 33
    assert falling[3] < half[3] < rising[3]


def test_shapes_are_those_of_the_model() -> None:
    assert shape_of(load_host("zoo:digits_vit")) == SHAPE


def test_options_that_are_given_stay() -> None:
    asked = methods_from(["tome:proportional_attention=false", "evit"])
    assert asked == {"tome:proportional_attention=false": {"proportional_attention": False}, "evit": {}}
    spec = spec_of("tome", asked["tome:proportional_attention=false"], SHAPE, left_behind(SHAPE, (4,) * 8))
    assert parse_spec(spec)[0].config.to_json()["proportional_attention"] is False


# ---- staircase ------------------------------------------------------------------------------------------------------


def test_a_layer_is_timed_at_every_count(tmp_path: Path) -> None:
    import onnxruntime
    import torch

    host = load_host("zoo:digits_vit")
    width = write_block(only_graph(host), tmp_path, opset=20, max_batch=8)
    session = onnxruntime.InferenceSession(str(tmp_path / "block.onnx"))
    x = np.random.default_rng(0).standard_normal((3, 20, width)).astype("float32")
    vit: Any = host.module
    with torch.no_grad():
        expected = vit.blocks[0](torch.from_numpy(x)).numpy()
    found = np.asarray(session.run(None, {"x": x})[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    request = request_of(SHAPE, width=width, batch=4, threads=1, backend="ort-cpu") | {"rounds": 3, "warmup": 1}
    steps = measured(tmp_path, request, batch=4, say=lambda text: None)
    assert steps.counts[0] == 2 and steps.counts[-1] == 65 and set(steps.block_ns) == {1, 4}
    assert all(ns > 0 for ns in steps.block_ns[4]) and steps.floor in steps.counts


def test_what_a_schedule_saves_follows_from_the_steps() -> None:
    steps = Staircase(counts=(1, 17, 33, 65), block_ns={1: (100.0, 100.0, 200.0, 400.0)}, batch=1)
    assert steps.floor == 17 and steps.block(25) == 150
    assert steps.saved_ns(SHAPE, (65,) * 8) == 0
    assert steps.saved_ns(SHAPE, (33, *(33,) * 7)) == pytest.approx(200 * 2 / 3 + 7 * 200)
    assert steps.saved_ns(SHAPE, (17,) * 8) == steps.saved_ns(SHAPE, (17,) * 7 + (2,))


def test_a_step_that_something_else_slowed_is_smoothed() -> None:
    steps = Staircase(counts=(1, 2, 3, 4), block_ns={1: (10.0, 90.0, 30.0, 40.0)}, batch=1)
    values = [steps.block(count) for count in (1, 2, 3, 4)]
    assert values == sorted(values) and values[3] < 90


# ---- search ---------------------------------------------------------------------------------------------------------


def searched(kept: Sequence[Trial], trials: int, keep: Any = lambda trial: None) -> list[Trial]:
    def score(method: str, spec: str, left: Sequence[int]) -> tuple[float, float]:
        if left[0] < 60:
            raise ConfigError("too early")
        return float(sum(left)) + (50 if method == "evit" else 0), float(65 - left[-1])

    return search(
        {"tome": {}, "evit": {}}, SHAPE, score, trials=trials, seed=1, kept=kept, keep=keep, say=lambda text: None
    )


def test_a_search_finds_what_no_other_beats_and_notes_what_does_not_fit() -> None:
    found = searched((), 60)
    assert [trial.number for trial in found] == list(range(60))
    assert {trial.refused for trial in found} >= {None, "too early"}
    best = front(found)
    values = [(trial.predicted_ns, trial.loss) for trial in found if trial.predicted_ns and trial.loss is not None]
    for one in best:
        assert one.predicted_ns and one.loss is not None
        assert not [
            v for v in values if v[0] <= one.predicted_ns and v[1] <= one.loss and v != (one.predicted_ns, one.loss)
        ]
    assert all(a.predicted_ns < b.predicted_ns and a.loss > b.loss for a, b in zip(best, best[1:], strict=False))  # type: ignore[operator]
    begun = front(found[:10])
    assert min(trial.predicted_ns or 0 for trial in best) <= min(trial.predicted_ns or 0 for trial in begun)


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    record, request = tmp_path / "trials.jsonl", {"model": "zoo:digits_vit", "batch": 1}
    begin_trials(record, request)
    first = searched((), 20, lambda trial: keep_trial(record, trial))
    assert read_trials(record, request) == first
    with record.open("a") as file:
        file.write('{"number": 20, "method": "to')  # cut off by a power failure
    kept = read_trials(record, request)
    assert kept == first
    new: list[Trial] = []
    assert searched(kept, 30, new.append)[:20] == first and [trial.number for trial in new] == list(range(20, 30))
    keep_trial(record, new[0])
    with pytest.raises(ConfigError, match="of a search with batch 1, and 4 is given; give the same, or another folder"):
        read_trials(record, request | {"batch": 4})
    record.write_text("x\n")
    with pytest.raises(ConfigError, match="is no record of a search"):
        read_trials(record, request)


def test_dense_is_not_far_from_itself_and_more_merging_is_farther() -> None:
    from trt_compress.format.manifest import TensorInfo
    from trt_compress.runtime.evaluate import Classifier
    from trt_compress.tools.held_out import held_out

    assert TensorInfo
    data = limited(held_out("zoo:digits_vit", "image"), 24)
    judge = Judge(load_host("zoo:digits_vit"), data, Classifier(output="logits", classes=10, labels=()))
    far = [judge.distance(f"tome:num_merged={count}") for count in (2, 6)]
    assert judge.samples == 24 and judge.distance("none") == 0 and 0 < far[0] < far[1]

    right = {spec: right_answers(spec, data) for spec in ("none", "tome:num_merged=[12,12,12,12,8,3,1,1]")}
    assert right["none"] > right["tome:num_merged=[12,12,12,12,8,3,1,1]"]
    for spec, count in right.items():
        assert judge.drop_points(spec) == pytest.approx(100 * (right["none"] - count) / 24)


def right_answers(spec: str, data: LabelledData) -> int:
    module = only_graph(load_host("zoo:digits_vit"), spec).module.eval()
    x = torch.from_numpy(np.concatenate([sample.load()[-1]["image"] for sample in data.samples]))
    labels = [sample.label for sample in data.samples]
    with torch.no_grad():
        return int((module(x).argmax(dim=1) == torch.tensor(labels)).sum())


# ---- samples, options and files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "apart"), [(10, 3), (7, 7 - 1), (64, 32), (5, 0)])
def test_what_is_scored_is_what_was_not_searched(total: int, apart: int) -> None:
    samples = [LabelledSample(name=str(number), label=None, load=lambda: ()) for number in range(total)]
    data = LabelledData(source="made", form="numbers", samples=samples)
    searched = {sample.name for sample in limited(data, apart).samples} if apart else set()
    scored = {sample.name for sample in without(data, apart).samples}
    assert len(searched) == apart and not searched & scored and len(searched | scored) == total
    if apart:
        assert f"without {apart} that a search looked at" in without(data, apart).form
    with pytest.raises(ConfigError, match=f"leaves none of the {total} samples"):
        without(data, total)


GIVEN: dict[str, Any] = {
    "weights": "weights.safetensors",
    "precision": "int8",
    "weights_bits": "4:16",
    "int8": "dynamic",
    "calibrate": "samples.npz",
    "int8_share": "0.5",
    "keep_precision": "auto:2",
    "int8_rest": "fp16",
}


@pytest.mark.parametrize("keyword", [option.keyword for option in OPTIONS if option.swept])
def test_whatever_is_said_of_an_export_reaches_it(keyword: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it in INT8, and without INT8 all but what is of INT8 alone."""
    seen: list[dict[str, Any]] = []

    def sweep(model: str, **given: Any) -> Any:
        seen.append(given)
        return SimpleNamespace(interrupted=False)

    monkeypatch.setattr(run, "sweep", sweep)
    asked: Any = SimpleNamespace(
        options={name: None for name in GIVEN if name != "precision"} | {keyword: GIVEN[keyword]},
        data={"data": None, "labels": None, "classes": None, "resample": None},
        folder=Path("tuned"),
        **dict.fromkeys(("model", "batch", "warmup", "threads", "limit", "native", "trust_paths")),
    )
    for precision in ("fp32", "int8"):
        run._sweep(asked, precision, ["tome:num_merged=4"], rounds=3, say=print)
    floats, int8 = seen
    assert (floats["precision"], int8["precision"]) == ("fp32", "int8")
    if keyword != "precision":
        assert int8[keyword] == GIVEN[keyword] and floats.get(keyword) == (
            None if keyword in OF_INT8 else GIVEN[keyword]
        )


def test_a_result_is_replaced_in_one_step_and_the_other_kind_goes(tmp_path: Path) -> None:
    one, other = write_small(tmp_path / "one", "picture"), write_small(tmp_path / "other", "sound")
    target, dense = tmp_path / "tuned" / "bundle", tmp_path / "tuned" / "dense"
    run._put(one, target, instead_of=dense)
    missed: list[int] = []
    ended = Event()

    def watch() -> None:
        while not ended.is_set():
            if not (target / "manifest.json").exists():
                missed.append(1)

    watcher = Thread(target=watch)
    watcher.start()
    for number in range(20):
        run._put(other if number % 2 == 0 else one, target, instead_of=dense)
    ended.set()
    watcher.join()
    assert missed == [] and Bundle.open(target).manifest.name == "picture"
    run._put(other, dense, instead_of=target)
    assert [path.name for path in (tmp_path / "tuned").iterdir()] == ["dense"]
    assert Bundle.open(dense).manifest.digest == Bundle.open(other).manifest.digest


def trial_of(number: int, ns: float, drop: float) -> tuple[Trial, float]:
    return Trial(
        number=number,
        method="tome",
        removed=(1,),
        left=(1,),
        spec=f"tome:num_merged={number}",
        predicted_ns=ns,
        loss=1 / (number + 1),
        refused=None,
        sampler={},
    ), drop


@pytest.mark.parametrize(
    ("drops", "taken"),
    [
        ([9, 5, 2, 1, 0.5, 0, 0, 0, 0, 0], [1, 2, 3, 6, 9]),  # the fastest that hold, and the next two that do not
        ([0] * 10, [0, 2, 4, 7, 9]),
        ([9] * 10, [5, 6, 7, 8, 9]),  # none held: those that lost least
    ],
)
def test_what_is_measured_lost_little_in_the_search(drops: list[float], taken: list[int]) -> None:
    trials = [trial_of(number, 100.0 + number, drop) for number, drop in enumerate(drops)]
    asked: Any = SimpleNamespace(limits=limits_from("accuracy_drop<=1"), finalists=5)
    look: Any = SimpleNamespace(dense_ns=200.0)
    found = run._chosen([trial for trial, _ in trials], {t.spec: d for t, d in trials}, asked, look)
    assert [trial.number for trial in found] == taken
    look.dense_ns = 104.0
    faster = run._chosen([trial for trial, _ in trials], {t.spec: d for t, d in trials}, asked, look)
    assert faster and max(trial.number for trial in faster) <= 4


# ---- what is taken --------------------------------------------------------------------------------------------------


def bench_of(ours: Sequence[int], dense: Sequence[int]) -> BenchResult:
    both: tuple[tuple[Role, Sequence[int]], ...] = (("bundle", ours), ("baseline", dense))
    sides = tuple(
        Side(
            role=role,
            identity={},
            first_inference_ns=1,
            latencies_ns=tuple(ns),
            latency=summarize(ns),
            verdict=verdict(ns, device="cpu"),
        )
        for role, ns in both
    )
    return BenchResult(
        protocol={}, sides=sides, speedup=speedup(ours, dense), quality=None, device={}, versions={}, started_at=""
    )


def scores_of(right: int, dense: int = 95, n: int = 100) -> Scores:
    return Scores(
        n=n,
        accuracy=share(right, n),
        top5=None,
        baseline_accuracy=share(dense, n),
        change=difference(max(0, right - dense), max(0, dense - right), n),
        agreement=share(right, n),
        not_finite=0,
        outputs=(),
        classes=(),
    )


def evaluation_of(scores: Scores, *, labelled: bool = True) -> Evaluation:
    return Evaluation(
        started_at="",
        bundle={},
        baseline={},
        data={"labelled": 100 if labelled else 0},
        scores=scores,
        failures=(),
        left_out=(),
        protocol={},
        device={},
        versions={},
        seconds=0.0,
    )


STEADY = [1_000_000 + step % 7 for step in range(140)]
FASTER = [ns * 3 // 4 for ns in STEADY]
NOISY = [[int(ns) for ns in 1e6 * np.exp(0.4 * np.random.default_rng(side).standard_normal(140))] for side in (1, 2)]


@pytest.mark.parametrize(
    ("ours", "dense", "right", "budget", "reason"),
    [
        (FASTER, STEADY, 95, None, None),
        (FASTER, STEADY, 95, "p95_ms<=0.8,accuracy_drop<=0", None),
        (FASTER, STEADY, 95, "p95_ms<=0.7", "p95_ms (n 140) is 0.750, allowed <= 0.7"),
        (FASTER, STEADY, 93, None, "accuracy_drop (n 100) is 2.00, allowed <= 1"),
        (FASTER, STEADY, 93, "accuracy>=0.93", None),
        (STEADY, FASTER, 95, None, "it is 0.75× [0.75, 0.75] as fast as dense, less than 1.02×"),
        (STEADY, STEADY, 95, None, "it is 1.00× [1.00, 1.00] as fast as dense, less than 1.02×"),
        (NOISY[0], NOISY[1], 95, None, "the machine is too noisy to decide: "),
    ],
)
def test_a_setting_is_held_to_gain_and_budget(
    ours: list[int], dense: list[int], right: int, budget: str | None, reason: str | None
) -> None:
    _, found = judged(bench_of(ours, dense), evaluation_of(scores_of(right)), limits_from(budget), 1.02)
    assert found == reason if reason is None else (found or "").startswith(reason), found


def test_without_labels_a_drop_is_of_agreement() -> None:
    scores = replace(scores_of(97), accuracy=None, baseline_accuracy=None, change=None)
    found = metrics_of(bench_of(FASTER, STEADY), evaluation_of(scores, labelled=False))
    assert found["accuracy_drop"].value == pytest.approx(3) and found["accuracy"].value is None


def row_of(spec: str, right: int, gain: float, random: float | None) -> Row:
    kept = [int(1e6 / gain)] * 20
    return Row(
        spec=spec,
        kind="asked",
        beside=(),
        bundle=None,
        tokens_in=65,
        tokens_out=33,
        flops=1.0,
        scores=scores_of(right),
        latency=summarize(kept),
        speedup=speedup(kept, [1_000_000] * 20),
        timing=None,
        random_value=random,
    )


def test_what_loses_to_random_or_to_dense_is_not_measured_again() -> None:
    rows = [
        row_of("good", 95, 1.3, 0.9),
        row_of("better", 95, 1.5, 0.9),
        row_of("slow", 95, 0.9, 0.8),
        row_of("bad", 90, 1.5, 0.8),
        row_of("lucky", 95, 1.5, 0.95),
        row_of("alone", 95, 1.2, None),
    ]
    dense = replace(row_of("none", 95, 1.0, None), kind="dense")
    found: Any = SweepResult(
        started_at="",
        model={},
        data={},
        protocol={},
        rows=(dense, *rows),
        misfits=(),
        alone=(),
        failures=(),
        measure="accuracy",
        max_drop=1.0,
        recommended=None,
        advice=(),
        interrupted=False,
        device={},
        versions={},
    )
    good, refused = before_confirming(rows, found, limits_from(None), 1.02)
    assert [row.spec for row in good] == ["better", "good", "alone"]
    reasons = dict(refused)
    assert "less than 1.02×" in reasons["slow"] and "loses 5 points of accuracy, more than 1" in reasons["bad"]
    assert reasons["lucky"].startswith("it does not beat random with as many tokens: accuracy 0.95, and random's 0.95")


def tuned(*, winner: bool) -> TuneResult:
    rows = [
        row_of("tome:num_merged=4", 95, 1.3, 0.9),
        row_of("evit:keep_ratio=0.5", 80, 1.5, 0.7),
        row_of("tome:num_merged=1", 90, 1.1, 0.85),
    ]
    dense = replace(row_of("none", 95, 1.0, None), kind="dense")
    floor = replace(row_of("random:keep_ratio=0.5", 70, 1.4, None), kind="random", beside=("tome:num_merged=4",))
    found: Any = SweepResult(
        started_at="",
        model={"source": "zoo:digits_vit", "weights": "own <b>", "precision": "fp32"},
        data={"source": "held-out", "form": "digits", "answered": 296, "samples": 296, "classes": None},
        protocol={"rounds": 20, "batch": 1, "threads": 1, "kind": "in turns", "interval": "95 %"},
        rows=(dense, *rows, floor),
        misfits=(),
        alone=(),
        failures=(),
        measure="accuracy",
        max_drop=1.0,
        recommended=None,
        advice=(),
        interrupted=False,
        device={},
        versions={},
    )
    taken = Confirmed(
        precision="fp32",
        row=rows[0],
        bench=bench_of(FASTER, STEADY),
        evaluation=evaluation_of(scores_of(95)),
        held=(),
        reason=None,
    )
    return TuneResult(
        started_at="2026-01-01T00:00:00",
        request={
            "model": "zoo:digits_vit",
            "methods": ["tome", "evit"],
            "precisions": ["fp32"],
            "budget": ["accuracy_drop <= 1"],
            "min_gain": 1.02,
            "batch": 1,
            "seed": 0,
            "rounds": 20,
        },
        samples={"searched": 64, "scored": 296, "apart": True, "said": "The search looked at 64 samples."},
        staircase={"counts": [2, 33, 65], "block_ms": {"1": [0.1, 0.2, 0.4]}, "batch": 1, "floor_tokens": 33},
        trials=12,
        front=(),
        tokens={"tome:num_merged=4": (65, 61, 57, 57), "evit:keep_ratio=0.5": (65, 65, 33, 33)},
        sweeps={"fp32": found},
        misfits=(("crossget", "it has no <class>"),),
        confirmed=(),
        refused=(("fp32", "tome:num_merged=1", "it is 1.00× as fast as dense, less than 1.02×"),),
        winner=taken if winner else None,
        bundle="tuned/bundle",
        advice=("Take it.",) if winner else ("None of them is taken.",),
        device={"cpu": "A", "cores": 2},
        versions={},
    )


def test_the_page_shows_staircase_front_and_what_was_refused() -> None:
    page = page_from_tune(tuned(winner=True))
    assert "<strong>take</strong>" in page and "<strong>refused</strong>" in page_from_tune(tuned(winner=False))
    assert "tome in fp32: 95.0 %, 0.769 ms, tokens 65 → 61 → 57 ×2" in page, "said where the mark is pointed at"
    assert page.count("taken: tome in fp32") == 2, "once in each size of the plot"
    assert "65 tokens, batch 1: 0.400 ms" in page and page.count(">nothing is gained below<") == 2
    assert "It is 1.00× as fast as dense, less than 1.02×." in page and "it has no &lt;class&gt;" in page
    assert "own &lt;b&gt;" in page and "<b>" not in page and "The search looked at 64 samples." in page
    on_front = page.partition("<h2>The Pareto front</h2>")[2].partition("</table>")[0]
    assert "1, taken" not in on_front and "2, taken" in on_front, "evit is faster, tome is taken"
    assert on_front.count("<tr>") == 3 and ">all<" not in on_front, "head, evit, tome: dense is slower than tome"


def test_rounds_are_as_many_as_a_budget_needs() -> None:
    assert [rounds_for(limits_from(text), None) for text in (None, "p90_ms<=1", "p95_ms<=1", "p99_ms<=1")] == [
        64,
        64,
        130,
        662,
    ]


# ---- the command ----------------------------------------------------------------------------------------------------

TUNE = ("tune", "zoo:digits_vit", "--compress", "tome", "--trials", "12", "--finalists", "1", "--rounds", "20",
        "--samples", "16", "--limit", "40", "--threads", "1", "--no-native", "--weights-bits", "8",
        "--min-gain", "50")  # fmt: skip


def interrupted(folder: Path, *arguments: str, lines: int) -> tuple[int, str, list[str]]:
    """Ctrl-C when the search has written so many lines; the exit code, stderr, and the lines at the end."""
    record = folder / "tuned/trials.jsonl"
    command = [sys.executable, "-m", "trt_compress", *arguments]
    variables = environment(OMP_NUM_THREADS="1", COLUMNS="2000")
    with subprocess.Popen(command, cwd=folder, env=variables, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (record.exists() and len(record.read_text().splitlines()) >= lines):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    return process.returncode, said, record.read_text().splitlines()


@pytest.mark.slow
def test_an_interrupted_tuning_goes_on_and_ends_with_a_refusal(commands: Typed, tmp_path: Path) -> None:
    code, said, trials = interrupted(tmp_path, *TUNE, "-o", "tuned", lines=4)
    assert code == 130 and "Interrupted; what was found is kept in tuned" in said and "Traceback" not in said, said
    assert 4 <= len(trials) < 13 and not (tmp_path / "tuned/tune.json").exists()
    again = commands(*TUNE, "-o", "tuned", folder=tmp_path)
    assert again.code == 2 and "holds a tuning already; give --resume" in again.err
    other = commands(*TUNE, "-o", "tuned", "--resume", "--batch", "2", folder=tmp_path)
    assert other.code == 2 and "of a search with batch 1, and 2 is given" in other.err
    write_small(tmp_path / "tuned/bundle", "picture")  # as of an end that found one

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "tuned/settings").glob("*/*/manifest.json")}
    refused = commands(*TUNE, "-o", "tuned", "--resume", "--json", "-", within=300, folder=tmp_path)
    document = json.loads(refused.out)
    assert refused.code == 3 and document["status"] == "refused", refused.err
    assert "The one setting that was measured is not taken" in refused.err and "50×" in refused.err
    assert "The dense bundle is tuned/dense" in refused.err
    assert (tmp_path / "tuned/trials.jsonl").read_text().splitlines()[: len(trials)] == trials
    assert len((tmp_path / "tuned/trials.jsonl").read_text().splitlines()) == 13
    assert kept and all(path.stat().st_mtime_ns == changed for path, changed in kept.items()), "exported again"
    assert not (tmp_path / "tuned/bundle").exists(), "an earlier end's"
    recipe = (tmp_path / "tuned/recipe.toml").read_text()
    assert "tome" not in recipe and 'weights_bits = "8' in recipe
    assert document["trials"] == 12 and document["front"] and document["bundle"] == "tuned/dense"
    assert document["samples"] | {"said": ""} == {"searched": 16, "scored": 24, "apart": True, "said": ""}
    rows = document["sweeps"]["fp32"]["rows"]
    assert [row["kind"] for row in rows][0] == "dense" and {"asked", "random"} <= {row["kind"] for row in rows}
    assert all(row["latency"]["n"] == 20 and row["scores"]["n"] == 24 for row in rows)
    assert json.loads((tmp_path / "tuned/tune.json").read_text())["status"] == "refused"
    assert "<strong>refused</strong>" in (tmp_path / "tuned/tune.html").read_text()
