"""`trt-compress sweep`: ranges, what fits, random at the same budget, the recommendation, and an interruption."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trt_compress
from trt_compress.errors import ConfigError
from trt_compress.models.hosts.registry import load_host
from trt_compress.runtime.evaluate import Scores
from trt_compress.runtime.measure.latency import Speedup, interleave_many, speedup, summarize, verdict
from trt_compress.runtime.proportion import difference, share
from trt_compress.tools.sweep import run as sweep_run
from trt_compress.tools.sweep.page import page_from_sweep
from trt_compress.tools.sweep.result import Row, SweepResult, recommend, words_of
from trt_compress.tools.sweep.run import in_groups
from trt_compress.tools.sweep.settings import Setting, expand, expand_all, plan_sweep

# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("tome:num_merged=4", ["tome:num_merged=4"]),
        ("tome:num_merged=2|4|4", ["tome:num_merged=2", "tome:num_merged=4"]),
        ("none|x", None),
        ("tome:num_merged=[1,2]|[3,4]", ["tome:num_merged=[1,2]", "tome:num_merged=[3,4]"]),
        (
            "evit:keep_ratio=0.7|0.5,fuse=true|false",
            ["evit", "evit:fuse=false", "evit:keep_ratio=0.5", "evit:keep_ratio=0.5,fuse=false"],
        ),
        (
            "tome:num_merged=1|2+avg_pool:stride=2|3",
            [f"tome:num_merged={n}+avg_pool{s}" for n in (1, 2) for s in ("", ":stride=3")],
        ),
    ],
)
def test_a_range_stands_where_a_value_may(text: str, specs: list[str] | None) -> None:
    if specs is None:
        with pytest.raises(ConfigError, match="has a '|' where no value stands"):
            expand(text)
    else:
        assert list(expand(text)) == specs


@pytest.mark.parametrize("text", ["tome:num_merged=|2", "tome:num_merged=2|", "tome:num_merged=2||3"])
def test_an_empty_value_in_a_range(text: str) -> None:
    with pytest.raises(ConfigError, match="has an empty value; write a range as name:key=2|4|8"):
        expand(text)


def test_settings_are_measured_once_and_dense_by_itself() -> None:
    assert expand_all(["none", "evit", "tome:num_merged=2|3", "evit:keep_ratio=0.7"]) == (
        "evit",
        "tome:num_merged=2",
        "tome:num_merged=3",
    )


def tokens_at_layers(host: Any, spec: str) -> dict[int, int]:
    from trt_compress.methods import parse_spec

    return {site.layer: site.tokens_out for graph in host.attach(parse_spec(spec)) for site in graph.module.plan}


@pytest.mark.parametrize("model", ["zoo:digits_vit", "zoo:keyword_spotter"])
def test_defaults_are_every_method_that_fits_with_random_beside_it(model: str) -> None:
    host = load_host(model)
    plan = plan_sweep(host, ())
    assert plan.settings[0] == Setting(spec="none", kind="dense")
    asked = [setting.spec for setting in plan.settings if setting.kind == "asked"]
    methods = [spec.partition(":")[0] for spec in asked]
    assert {methods.count(method) for method in methods} == {3} and "random" not in methods
    assert {"tome", "avg_pool"} <= set(methods) and {"toc3d", "static_reuse"} <= {name for name, _ in plan.misfits}
    assert all(reason for _, reason in (*plan.misfits, *plan.alone))
    counterparts = [setting for setting in plan.settings if setting.kind == "random"]
    partners = {spec for setting in counterparts for spec in setting.beside}
    assert partners | {spec for spec, _ in plan.alone} == set(asked)
    for setting in counterparts:
        for spec in setting.beside:
            assert tokens_at_layers(host, setting.spec) == tokens_at_layers(host, spec)


def test_what_does_not_fit_is_listed_with_its_reason() -> None:
    plan = plan_sweep(load_host("zoo:digits_vit"), ["frame_stack", "tome:num_merged=99", "evit"], random=False)
    assert [setting.spec for setting in plan.settings] == ["none", "evit"]
    assert [name for name, _ in plan.misfits] == ["frame_stack", "tome:num_merged=99"]
    assert "acts at encoder_output" in plan.misfits[0][1] and "num_merged" in plan.misfits[1][1]


def test_random_that_was_asked_for_is_its_own_floor() -> None:
    plan = plan_sweep(load_host("zoo:digits_vit"), ["random:keep_ratio=0.5"])
    assert [(setting.spec, setting.kind) for setting in plan.settings[1:]] == [("random:keep_ratio=0.5", "asked")]


# ---- words and recommendation ---------------------------------------------------------------------------------------


def scores(right: int, dense: int = 95, n: int = 100) -> Scores:
    change = difference(max(0, right - dense), max(0, dense - right), n)
    return Scores(
        n=n,
        accuracy=share(right, n),
        top5=None,
        baseline_accuracy=share(dense, n),
        change=change,
        agreement=share(right, n),
        not_finite=0,
        outputs=(),
        classes=(),
    )


def row(spec: str, right: int, gain: float | None, *, random: tuple[int, int] | None = None, ms: float = 1.0) -> Row:
    ns = [int(ms * 1e6)] * 20
    return Row(
        spec=spec,
        kind="dense" if spec == "none" else "asked",
        beside=(),
        bundle=None,
        tokens_in=65,
        tokens_out=33,
        flops=1e6,
        scores=scores(right),
        latency=summarize(ns),
        timing=verdict(ns, device="cpu"),
        speedup=None if gain is None else Speedup(median=gain, low=gain - 0.05, high=gain + 0.05, n=64),
        random=None if random is None else difference(*random, 100),
        random_value=None if random is None else 0.9,
    )


DENSE = row("none", 95, None)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (row("a", 95, 1.3, random=(5, 0)), ()),
        (row("a", 95, 0.9), ("slower than dense here",)),
        (row("a", 95, 1.02), ("no faster than dense here",)),
        (row("a", 90, 1.3), ("loses more than 1 point",)),
        (row("a", 95, 1.3, random=(0, 20)), ("loses to random at the same budget",)),
        (row("a", 95, 1.3, random=(4, 5)), ("loses to random at the same budget, within the noise",)),
        (row("a", 95, 1.3, random=(3, 3)), ("no better than random at the same budget",)),
    ],
)
def test_what_has_to_be_said_is_said(found: Row, words: tuple[str, ...]) -> None:
    assert words_of(found, "accuracy", DENSE, 1.0) == words


@pytest.mark.parametrize(
    ("rows", "chosen", "said"),
    [
        ([row("slow", 95, 0.9), row("good", 95, 1.3), row("lossy", 80, 2.0)], "good", "Recommended: good. It is 1.30×"),
        ([row("a", 95, 1.3), row("b", 94, 1.5)], "b", r"loses 1.0 points of accuracy \[.*\] \(n 100\)"),
        ([row("a", 95, 1.3)], "a", "With 100 samples a loss of up to .* cannot be ruled out"),
        ([row("a", 95, 1.3, random=(2, 2))], "a", "random with as many tokens does as well"),
        (
            [row("slow", 95, 0.9), row("lossy", 80, 2.0)],
            None,
            "None of the 2 settings loses at most 1 point and is sure",
        ),
        (
            [row("slow", 95, 0.9), row("lossy", 80, 2.0)],
            None,
            "Of those that are faster the best is lossy, which loses 15",
        ),
        ([row("slow", 95, 0.9)], None, "No setting is surely faster here"),
        ([], None, "No setting was measured"),
    ],
)
def test_the_fastest_within_the_loss_is_recommended(rows: Sequence[Row], chosen: str | None, said: str) -> None:
    import re

    found, sentences = recommend([DENSE, *rows], "accuracy", 1.0)
    assert found == chosen and re.search(said, " ".join(sentences))


def test_too_few_rounds_claim_nothing() -> None:
    few = replace(row("a", 95, 1.5), speedup=speedup([1, 1, 1], [2, 2, 2]))
    assert words_of(few, "accuracy", DENSE, 1.0) == ("too few rounds to compare",)
    found, (sentence,) = recommend([DENSE, few], "accuracy", 1.0)
    assert found is None and "too few to compare latencies (n too small: 3 of 6 pairs)" in sentence


def test_all_are_timed_in_turns_that_change_direction() -> None:
    order: list[str] = []
    ticks = iter(range(1000))
    calls = [lambda name=name: order.append(name) for name in "abc"]
    found = interleave_many(calls, warmup=1, rounds=3, clock=lambda: next(ticks))
    assert "".join(order) == "abccbaabccba"
    assert found == [(1, 1, 1)] * 3
    with pytest.raises(ConfigError, match="rounds=0"):
        interleave_many(calls, warmup=0, rounds=0)


def test_what_does_not_fit_in_memory_at_once_is_timed_in_several_runs() -> None:
    assert in_groups([3, 3, 3, 3], 100) == [[0, 1, 2, 3]]
    assert in_groups([3, 3, 3, 3], 7) == [[0, 1], [2, 3]]
    assert in_groups([9, 1, 9], 5) == [[0], [1], [2]]
    assert in_groups([3, 3], -1) == [[0], [1]] and in_groups([], 7) == [[]]


# ---- the whole ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 held-out digits as arrays."""
    from trt_compress.models.zoo.data.digits import digits_split

    split = digits_split()
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, image=split.test_images[:60], label=split.test_labels[:60])
    return path


@pytest.fixture(scope="module")
def swept(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepResult, Path]:
    folder = tmp_path_factory.mktemp("sweep") / "made"
    found = trt_compress.sweep(
        "zoo:digits_vit",
        data=digits,
        compress=["tome:num_merged=6", "frame_stack"],
        output=folder,
        rounds=20,
        max_drop=50,
    )
    return found, folder


def test_a_sweep(swept: tuple[SweepResult, Path]) -> None:
    found, folder = swept
    dense, tome, random = found.rows
    assert (dense.kind, tome.spec, random.kind, random.beside) == ("dense", "tome:num_merged=6", "random", (tome.spec,))
    assert tome.tokens_out == random.tokens_out == 17 and dense.tokens_out is None
    assert dense.flops and tome.flops and tome.flops < 0.7 * dense.flops
    assert all(row.latency and row.latency.n == 20 for row in found.rows) and tome.speedup and tome.speedup.n == 20
    assert dense.scores.accuracy and dense.scores.accuracy.count == 60 and tome.scores.agreement is not None
    assert found.protocol["interleaved_runs"] == 1
    assert tome.random is not None and tome.random_value == random.value("accuracy")
    assert [name for name, _ in found.misfits] == ["frame_stack"]
    document = json.loads((folder / "sweep.json").read_text())
    assert document == json.loads(json.dumps(found.to_json())) and document["document"] == "trt-compress sweep"
    assert trt_compress.runtime.Session.open(folder / "tome-num_merged-6").inputs["image"].shape[1:] == (1, 8, 8)
    direct = trt_compress.evaluate(folder / "tome-num_merged-6", data=found.data["source"], baseline=folder / "dense")
    assert direct.scores.to_json() | {"outputs": []} == tome.scores.to_json()


def test_the_page_shows_every_setting(swept: tuple[SweepResult, Path]) -> None:
    page = page_from_sweep(swept[0])
    for words in ("tome:num_merged=6", "frame_stack", "random beside tome:num_merged=6", "Accuracy over latency"):
        assert words in page
    assert page.count("<script") == 1
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000", "")


def test_what_was_exported_is_taken_again_and_an_interruption_keeps_what_is_done(
    swept: tuple[SweepResult, Path], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = swept
    exported: list[str] = []
    real = sweep_run.export_model

    def export(*given: Any, compress: str, **more: Any) -> Any:
        exported.append(compress)
        if compress.startswith("random"):
            raise KeyboardInterrupt
        return real(*given, compress=compress, **more)

    monkeypatch.setattr(sweep_run, "export_model", export)
    specs = ["tome:num_merged=6", "avg_pool"]
    told: list[str] = []
    found = trt_compress.sweep("zoo:digits_vit", data=digits, compress=specs, output=folder, progress=told.append)
    assert exported == ["avg_pool", found_random(specs[1])] and any(text.endswith("kept from before") for text in told)
    assert found.interrupted and [row.spec for row in found.rows][:3] == ["none", *specs]
    assert found.recommended is None and "latency was not measured" in found.advice[0]
    document = json.loads((folder / "sweep.json").read_text())
    assert (
        document["interrupted"] and len(document["rows"]) == len(found.rows) and document["rows"][1]["latency"] is None
    )
    assert "Interrupted" in page_from_sweep(found)


def found_random(spec: str) -> str:
    plan = plan_sweep(load_host("zoo:digits_vit"), [spec])
    return next(setting.spec for setting in plan.settings if setting.kind == "random")


def test_nothing_that_fits_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="frame_stack: acts at encoder_output"):
        trt_compress.sweep("zoo:digits_vit", data="held-out", compress="frame_stack")


def test_a_detector_is_sent_to_run_before_anything_is_exported() -> None:
    with pytest.raises(ConfigError, match="'zoo:surround_detector' is a detector.*--labels scene.npz` gives its mAP"):
        trt_compress.sweep("zoo:surround_detector", data="held-out", compress="toc3d")


def test_without_labels_the_answers_of_dense_are_the_measure(swept: tuple[SweepResult, Path], tmp_path: Path) -> None:
    from trt_compress.models.zoo.data.digits import digits_split

    np.savez(tmp_path / "x.npz", image=digits_split().test_images[:40])
    found = trt_compress.sweep(
        "zoo:digits_vit", data=tmp_path / "x.npz", compress="tome:num_merged=6", output=swept[1], rounds=3, warmup=0
    )
    dense, tome, random = found.rows
    assert found.measure == "agreement" and dense.value("agreement") == 1.0 and tome.scores.accuracy is None
    assert (
        tome.scores.agreement and tome.scores.agreement.n == 40 and tome.value("agreement") != random.value("accuracy")
    )
    assert tome.random is not None and tome.random.n == 40
    assert "agreement" in page_from_sweep(found)
