"""What a sweep found: a row for each setting, the words that judge it, and the setting that is recommended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trt_compress.runtime.evaluate import Scores
from trt_compress.runtime.measure.latency import LatencySummary, Speedup, Verdict
from trt_compress.runtime.proportion import Difference
from trt_compress.tools.sweep.settings import Kind

RESULT_VERSION = "1.0"
DOCUMENT = "trt-compress sweep"

Measure = Literal["accuracy", "agreement", "cosine"]
"""What a drop is measured in: right answers, the answers of dense, or the mean cosine to dense's outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting.

    Attributes:
        spec: Spec string; "none" is dense.
        kind: Dense, asked for, or `random` beside another.
        beside: Of a `random`: the settings that it stands beside.
        bundle: Its directory, where it is kept.
        tokens_in: Tokens before the first compressor; None where that varies or nothing compresses.
        tokens_out: Tokens behind the last.
        flops: Of one sample.
        scores: How good its answers are; the baseline is dense.
        latency: Of one run; None if it was not timed.
        speedup: Over dense, pairs of one interleaved run.
        timing: Whether the latency may be quoted.
        random: Its score less that of `random` with as many tokens, on the same samples.
        random_value: The score of that `random`.
        words: What has to be said of it.
    """

    spec: str
    kind: Kind
    beside: tuple[str, ...]
    bundle: str | None
    tokens_in: int | None
    tokens_out: int | None
    flops: float | None
    scores: Scores
    latency: LatencySummary | None = None
    speedup: Speedup | None = None
    timing: Verdict | None = None
    random: Difference | None = None
    random_value: float | None = None
    words: tuple[str, ...] = ()

    def value(self, measure: Measure) -> float | None:
        """Its score from 0 to 1."""
        if measure == "cosine":
            means = [found["cosine_mean"] for output in self.scores.outputs if (found := output.to_json())]
            known = [float(mean) for mean in means if mean is not None]
            return min(known, default=1.0 if self.kind == "dense" else None)
        share = self.scores.accuracy if measure == "accuracy" else self.scores.agreement
        return share.value if share is not None else 1.0 if self.kind == "dense" else None

    def drop_points(self, measure: Measure, dense: float | None) -> float | None:
        """By how many points it is below dense."""
        own = self.value(measure)
        return None if own is None or dense is None else round(100 * (dense - own), 9)  # 1 is 1, not a hair above

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "spec": self.spec,
            "kind": self.kind,
            "beside": list(self.beside),
            "bundle": self.bundle,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "flops": self.flops,
            "scores": self.scores.to_json(),
            "latency": self.latency.to_json() if self.latency else None,
            "speedup": self.speedup.to_json() if self.speedup else None,
            "timing": self.timing.to_json() if self.timing else None,
            "against_random": self.random.to_json() if self.random else None,
            "random_value": self.random_value,
            "words": list(self.words),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """One sweep, with all that is needed to repeat or to doubt it.

    Attributes:
        rows: Dense first.
        misfits: Settings that do not fit the model or failed, with the reason.
        alone: Settings without a `random` beside them, with the reason.
        failures: Samples that could not be read.
        measure: What a drop is measured in.
        max_drop: Points that may be lost.
        recommended: The spec of the fastest setting within them; None if there is none.
        advice: The recommendation in sentences.
        interrupted: The sweep was stopped before its end.
    """

    started_at: str
    model: dict[str, Any]
    data: dict[str, Any]
    protocol: dict[str, Any]
    rows: tuple[Row, ...]
    misfits: tuple[tuple[str, str], ...]
    alone: tuple[tuple[str, str], ...]
    failures: tuple[tuple[str, str], ...]
    measure: Measure
    max_drop: float
    recommended: str | None
    advice: tuple[str, ...]
    interrupted: bool
    device: dict[str, Any]
    versions: dict[str, str]

    @property
    def dense(self) -> Row:
        """The uncompressed model."""
        return self.rows[0]

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "document": DOCUMENT,
            "result_version": RESULT_VERSION,
            "started_at": self.started_at,
            "model": self.model,
            "data": self.data,
            "protocol": self.protocol,
            "measure": self.measure,
            "max_drop_points": self.max_drop,
            "recommended": self.recommended,
            "advice": list(self.advice),
            "interrupted": self.interrupted,
            "rows": [row.to_json() for row in self.rows],
            "do_not_fit": [{"spec": spec, "reason": reason} for spec, reason in self.misfits],
            "without_random": [{"spec": spec, "reason": reason} for spec, reason in self.alone],
            "failures": [{"sample": name, "reason": reason} for name, reason in self.failures],
            "device": self.device,
            "versions": self.versions,
        }


def words_of(row: Row, measure: Measure, dense: Row, max_drop: float) -> tuple[str, ...]:
    """What has to be said of a setting."""
    words = []
    if row.speedup is not None and row.kind != "dense":
        low, high = row.speedup.low, row.speedup.high
        if low is None or high is None:
            words.append("too few rounds to compare")
        elif high < 1:
            words.append("slower than dense here")
        elif low <= 1:
            words.append("no faster than dense here")
    if row.random is not None:
        if row.random.value < 0:
            noise = "" if row.random.high < 0 else ", within the noise"
            words.append(f"loses to random at the same budget{noise}")
        elif row.random.value == 0:
            words.append("no better than random at the same budget")
    elif row.random_value is not None and (own := row.value(measure)) is not None and own <= row.random_value:
        words.append("loses to random at the same budget")
    drop = row.drop_points(measure, dense.value(measure))
    if row.kind == "asked" and drop is not None and drop > max_drop:
        words.append(f"loses more than {points(max_drop)}")
    return tuple(words)


def recommend(rows: Sequence[Row], measure: Measure, max_drop: float) -> tuple[str | None, tuple[str, ...]]:
    """The fastest setting that loses at most `max_drop` points, and sentences that say so, or why there is none."""
    dense, asked = rows[0], [row for row in rows if row.kind == "asked"]
    if not asked:
        return None, ("No setting was measured, so none can be recommended.",)
    if any(row.speedup is None for row in asked):
        return None, ("The latency was not measured, so no setting can be recommended.",)
    if few := [row.speedup for row in asked if row.speedup is not None and row.speedup.low is None]:
        return None, (f"The rounds are too few to compare latencies ({few[0].reason}), so no setting is recommended.",)
    reference = dense.value(measure)

    def drop(row: Row) -> float:
        found = row.drop_points(measure, reference)
        return float("inf") if found is None else found

    def gain(row: Row) -> float:
        return row.speedup.median if row.speedup is not None else 0.0

    def surely_faster(row: Row) -> bool:
        return row.speedup is not None and row.speedup.low is not None and row.speedup.low > 1

    kept = [row for row in asked if drop(row) <= max_drop]
    fit = [row for row in kept if surely_faster(row)]
    if not fit:
        return None, tuple(_why_none(asked, kept, drop, gain, surely_faster, measure, max_drop))
    best = max(fit, key=gain)
    sentences = [
        f"Recommended: {best.spec}. It is {_gain_text(best)} as fast as dense here and "
        f"{_drop_text(best, measure, drop(best))}."
    ]
    change = best.scores.change
    if measure == "accuracy" and change is not None and -100 * change.low > max_drop:
        sentences.append(
            f"With {change.n} samples a loss of up to {-100 * change.low:.1f} points cannot be ruled out; more samples "
            "tell."
        )
    if best.random is not None and best.random.value <= 0:
        sentences.append(
            "random with as many tokens does as well on these data: the model can do without so many tokens, whichever "
            "they are."
        )
    if any(row.timing is not None and row.timing.status != "stable" for row in (dense, best)):
        sentences.append("The timing was not steady: repeat it on a quiet machine before you quote it.")
    return best.spec, tuple(sentences)


def _why_none(
    asked: Sequence[Row],
    kept: Sequence[Row],
    drop: Callable[[Row], float],
    gain: Callable[[Row], float],
    surely_faster: Callable[[Row], bool],
    measure: Measure,
    most: float,
) -> list[str]:
    who = f"None of the {len(asked)} settings" if len(asked) > 1 else f"{asked[0].spec} is not one that"
    sentences = [f"{who} loses at most {points(most)} and is surely faster than dense here."]
    if kept:
        best = max(kept, key=gain)
        sentences.append(
            f"Of those within {points(most)} the fastest is {best.spec}: {_gain_text(best)} as fast as dense."
        )
    if faster := [row for row in asked if surely_faster(row)]:
        best = min(faster, key=drop)
        sentences.append(
            f"Of those that are faster the best is {best.spec}, which {_drop_text(best, measure, drop(best))}."
        )
    else:
        sentences.append(
            "No setting is surely faster here: compression adds work of its own, which a small model may not earn "
            "back; a larger one or another device may tell otherwise."
        )
    return sentences


def points(value: float) -> str:
    """`1 point`, `2.5 points`."""
    return f"{value:g} point{'' if value == 1 else 's'}"


def _gain_text(row: Row) -> str:
    gain = row.speedup
    assert gain is not None
    interval = f" [{gain.low:.2f}, {gain.high:.2f}]" if gain.low is not None and gain.high is not None else ""
    return f"{gain.median:.2f}×{interval}"


def _drop_text(row: Row, measure: Measure, drop: float) -> str:
    change = row.scores.change
    if measure == "accuracy" and change is not None:
        if drop == 0:
            return f"is as accurate (n {change.n}, {change.won} won and {change.lost} lost)"
        ends = (100 * change.low, 100 * change.high) if drop < 0 else (-100 * change.high, -100 * change.low)
        words = f"{abs(drop):.1f} points of accuracy [{ends[0]:.1f}, {ends[1]:.1f}] (n {change.n})"
        return f"{'loses' if drop > 0 else 'gains'} {words}"
    if measure == "agreement":
        return f"gives another answer than dense in {drop:.1f} of 100 samples (n {row.scores.n})"
    return f"gives outputs whose mean cosine to dense's is {1 - drop / 100:.4f} (n {row.scores.n})"
