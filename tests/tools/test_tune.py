"""`trt-compress tune`: schedules, the staircase, the search and its record, what is taken and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.typed_commands import Typed
from trt_compress.errors import ConfigError
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.runtime.evaluate import Scores
from trt_compress.runtime.measure.latency import speedup, summarize, verdict
from trt_compress.runtime.proportion import difference, share
from trt_compress.tools.bench.result import BenchResult, Role, Side
from trt_compress.tools.evaluate import Evaluation
from trt_compress.tools.sweep.result import Row, SweepResult
from trt_compress.tools.tune.judge import Judge, only_graph, shape_of
from trt_compress.tools.tune.result import before_confirming, judged, limits_from, metrics_of, rounds_for
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
    from trt_compress.runtime.labelled.data import limited
    from trt_compress.tools.held_out import held_out

    assert TensorInfo
    data = limited(held_out("zoo:digits_vit", "image"), 24)
    judge = Judge(load_host("zoo:digits_vit"), data, Classifier(output="logits", classes=10, labels=()))
    far = [judge.distance(f"tome:num_merged={count}") for count in (2, 6)]
    assert judge.samples == 24 and judge.distance("none") == 0 and 0 < far[0] < far[1]


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


def test_rounds_are_as_many_as_a_budget_needs() -> None:
    assert [rounds_for(limits_from(text), None) for text in (None, "p90_ms<=1", "p95_ms<=1", "p99_ms<=1")] == [
        64,
        64,
        130,
        662,
    ]


# ---- the command ----------------------------------------------------------------------------------------------------

TUNE = ("tune", "zoo:digits_vit", "--compress", "tome", "--trials", "12", "--finalists", "1", "--rounds", "20",
        "--samples", "16", "--limit", "40", "--threads", "1", "--no-native")  # fmt: skip


@pytest.mark.slow
def test_nothing_is_so_fast_and_what_was_found_is_taken_up_again(commands: Typed, tmp_path: Path) -> None:
    refused = commands(*TUNE, "--min-gain", "50", "-o", "tuned", "--json", "-", folder=tmp_path)
    document = json.loads(refused.out)
    assert refused.code == 3 and document["status"] == "refused", refused.err
    assert "None of the" in refused.err and "50×" in refused.err and "The dense bundle is tuned/dense" in refused.err
    assert "tome" not in (tmp_path / "tuned/recipe.toml").read_text()
    trials = (tmp_path / "tuned/trials.jsonl").read_text().splitlines()
    assert len(trials) == 13 and document["trials"] == 12 and document["front"]
    rows = document["sweeps"]["fp32"]["rows"]
    assert [row["kind"] for row in rows][0] == "dense" and {"asked", "random"} <= {row["kind"] for row in rows}
    assert all(row["latency"]["n"] == 20 for row in rows)
    assert json.loads((tmp_path / "tuned/tune.json").read_text())["status"] == "refused"

    again = commands(*TUNE, "-o", "tuned", folder=tmp_path)
    assert again.code == 2 and "holds a tuning already; give --resume" in again.err
    other = commands(*TUNE, "-o", "tuned", "--resume", "--batch", "2", folder=tmp_path)
    assert other.code == 2 and "of a search with batch 1, and 2 is given" in other.err
    (tmp_path / "tuned/trials.jsonl").write_text("\n".join(trials[:8]) + "\n")  # as after Ctrl-C
    gone_on = commands(*TUNE, "-o", "tuned", "--resume", "--min-gain", "50", folder=tmp_path)
    assert gone_on.code == 3
    assert (tmp_path / "tuned/trials.jsonl").read_text().splitlines()[:8] == trials[:8]
    assert len((tmp_path / "tuned/trials.jsonl").read_text().splitlines()) == 13
