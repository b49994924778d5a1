"""What a tuning found: what was measured, what was refused and why, and what is taken or why nothing is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trt_compress.errors import ConfigError
from trt_compress.runtime.measure.latency import SAMPLES_NEEDED, Speedup
from trt_compress.suggest import not_known
from trt_compress.tools.evaluate import METRICS as QUALITY
from trt_compress.tools.report.budget import Held, Limit, hold, parse_budget
from trt_compress.tools.report.metrics import Better, Metric

if TYPE_CHECKING:
    from trt_compress.tools.bench.result import BenchResult
    from trt_compress.tools.evaluate import Evaluation
    from trt_compress.tools.sweep.result import Row, SweepResult

RESULT_VERSION = "1.0"
DOCUMENT = "trt-compress tune"
LATENCIES: Mapping[str, str] = {
    "min_ms": "min_ns",
    "mean_ms": "mean_ns",
    "p50_ms": "median_ns",
    "p90_ms": "p90_ns",
    "p95_ms": "p95_ns",
    "p99_ms": "p99_ns",
}
METRICS: Mapping[str, tuple[str, Better]] = {
    **{name: ("ms", "lower") for name in LATENCIES},
    "speedup": ("×", "higher"),
    "speedup_low": ("×", "higher"),
    "accuracy_drop": ("points", "lower"),
    **{name: QUALITY[name] for name in ("accuracy", "accuracy_low", "top5", "agreement", "agreement_low", "cosine")},
}
"""What a budget may name; `accuracy_drop` is of agreement with dense where the data have no labels."""
OF_QUALITY = tuple(name for name in METRICS if name not in LATENCIES and not name.startswith("speedup"))
DEFAULT_DROP = Limit(metric="accuracy_drop", relation="<=", value=1.0)
_ENOUGH_ROUNDS = 64

Status = Literal["found", "refused"]


def limits_from(budget: str | None) -> list[Limit]:
    """The limits of a budget; one that says nothing of the answers allows a loss of one point.

    Raises:
        ConfigError: It does not follow the grammar, or names what tune does not measure.
    """
    limits = parse_budget(budget) if budget is not None else []
    for limit in limits:
        if limit.metric.lower() not in METRICS:
            raise ConfigError(not_known("budget: metric", limit.metric, METRICS))
    return limits if any(limit.metric.lower() in OF_QUALITY for limit in limits) else [*limits, DEFAULT_DROP]


def rounds_for(limits: Sequence[Limit], rounds: int | None) -> int:
    """How often each setting is run: as often as the percentiles of a budget need.

    Raises:
        ConfigError: Fewer were asked for.
    """
    percents = {f"p{percent:g}_ms": needed for percent, needed in SAMPLES_NEEDED.items()}
    needed = {limit.metric: percents.get(limit.metric.lower(), 1) for limit in limits}
    most = max(needed.values(), default=1)
    if rounds is not None and rounds < most:
        name = next(name for name, count in needed.items() if count == most)
        raise ConfigError(f"rounds={rounds} do not state {name}, which takes {most}; give --rounds {most} or more.")
    return max(_ENOUGH_ROUNDS, most) if rounds is None else rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """A setting measured once more beside dense, in sessions of its own.

    Attributes:
        precision: Of its bundle.
        row: What the sweep found of it.
        bench: Its latency beside dense.
        evaluation: Its answers beside dense's.
        held: The limits, and what was seen.
        reason: Why it is refused; None: it is not.
    """

    precision: str
    row: "Row"
    bench: "BenchResult"
    evaluation: "Evaluation"
    held: tuple[Held, ...]
    reason: str | None

    @property
    def gain(self) -> Speedup:
        """How many times as fast as dense it is."""
        assert self.bench.speedup is not None
        return self.bench.speedup

    def sentence(self) -> str:
        """What was found of it, in words."""
        metrics = metrics_of(self.bench, self.evaluation)
        drop, ms = metrics["accuracy_drop"].value, metrics["p50_ms"].value
        return (
            f"{self.row.spec} in {self.precision}: {gain_text(self.gain)} as fast as dense, median {ms:.3g} ms, "
            f"accuracy_drop {(drop or 0.0) + 0.0:.2g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "spec": self.row.spec,
            "precision": self.precision,
            "bundle": self.row.bundle,
            "bench": self.bench.to_json(),
            "evaluation": self.evaluation.to_json(),
            "budget": [
                {"limit": str(held.limit), "value": held.value, "passed": held.passed, "reason": held.reason}
                for held in self.held
            ],
            "refused": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneResult:
    """One tuning, with all that is needed to repeat or to doubt it.

    Attributes:
        request: What was asked for.
        samples: How many the search looked at and how many the scores are of, whether they are others, and a sentence.
        staircase: What a layer takes here with fewer tokens.
        trials: Trials of the search.
        front: Those that no other beats, as plain data.
        tokens: Of each setting that was measured, the tokens that come in and those behind each layer.
        sweeps: For each precision what was measured.
        misfits: Methods that do not fit the model, with the reason.
        confirmed: Settings that were measured once more, in order.
        refused: Settings that were measured and are not taken: precision, spec, reason.
        winner: The one that is taken; None: none is.
        bundle: The bundle to deploy: the winner's, or dense.
        advice: The result in sentences.
    """

    started_at: str
    request: dict[str, Any]
    samples: dict[str, Any]
    staircase: dict[str, Any]
    trials: int
    front: tuple[dict[str, Any], ...]
    tokens: Mapping[str, tuple[int, ...]]
    sweeps: "Mapping[str, SweepResult]"
    misfits: tuple[tuple[str, str], ...]
    confirmed: tuple[Confirmed, ...]
    refused: tuple[tuple[str, str, str], ...]
    winner: Confirmed | None
    bundle: str
    advice: tuple[str, ...]
    device: dict[str, Any]
    versions: dict[str, str]

    @property
    def status(self) -> Status:
        """Whether a setting is taken."""
        return "refused" if self.winner is None else "found"

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "document": DOCUMENT,
            "result_version": RESULT_VERSION,
            "started_at": self.started_at,
            "status": self.status,
            "request": self.request,
            "winner": None if self.winner is None else self.winner.to_json(),
            "bundle": self.bundle,
            "advice": list(self.advice),
            "samples": self.samples,
            "staircase": self.staircase,
            "trials": self.trials,
            "front": list(self.front),
            "tokens": {spec: list(counts) for spec, counts in self.tokens.items()},
            "confirmed": [one.to_json() for one in self.confirmed],
            "refused": [
                {"precision": precision, "spec": spec, "reason": reason} for precision, spec, reason in self.refused
            ],
            "do_not_fit": [{"method": name, "reason": reason} for name, reason in self.misfits],
            "sweeps": {precision: found.to_json() for precision, found in self.sweeps.items()},
            "device": self.device,
            "versions": self.versions,
        }


def metrics_of(bench: "BenchResult", evaluation: "Evaluation") -> dict[str, Metric]:
    """The numbers of a setting by the names that a budget calls them."""
    side, gain = bench.sides[0], bench.speedup
    found: dict[str, tuple[float | None, str | None]] = {}
    for name, field in LATENCIES.items():
        ns = getattr(side.latency, field)
        found[name] = (None if ns is None else ns / 1e6, side.latency.reasons.get(field))
    assert gain is not None
    found["speedup"], found["speedup_low"] = (gain.median, gain.reason), (gain.low, gain.reason)
    quality = evaluation.metrics()
    for name in OF_QUALITY:
        if name in quality:
            found[name] = (quality[name].value, quality[name].reason)
    found["accuracy_drop"] = (_drop(evaluation, quality), None)
    return {
        name: Metric(
            name=name,
            value=value,
            reason=reason or "not known" if value is None else None,
            unit=METRICS[name][0],
            better=METRICS[name][1],
            n=side.latency.n if name in LATENCIES else evaluation.scores.n if name in OF_QUALITY else gain.n,
        )
        for name, (value, reason) in found.items()
    }


def _drop(evaluation: "Evaluation", quality: Mapping[str, Metric]) -> float | None:
    """Points lost: of accuracy, without labels of agreement with dense, without classes of the mean cosine to it."""
    if quality["drop_points"].value is not None:
        return quality["drop_points"].value
    if quality["agreement"].value is not None:
        return round(100 * (1 - quality["agreement"].value), 9)
    means = [found["cosine_mean"] for output in evaluation.scores.outputs if (found := output.to_json())]
    known = [mean for mean in means if mean is not None]
    return round(100 * (1 - min(known)), 9) if known else None


def before_confirming(
    rows: "Sequence[Row]", found: "SweepResult", limits: Sequence[Limit], min_gain: float
) -> "tuple[list[Row], list[tuple[str, str]]]":
    """Which settings of a sweep are worth a second measurement, the fastest first, and why the others are not."""
    dense = found.dense.value(found.measure)
    drops = [limit.value for limit in limits if limit.metric.lower() == "accuracy_drop" and limit.relation == "<="]
    good: list[Row] = []
    refused: list[tuple[str, str]] = []
    for row in rows:
        reason = None
        drop = row.drop_points(found.measure, dense)
        if row.speedup is None or row.speedup.low is None:
            reason = "it was not timed often enough to be compared"
        elif (row.speedup.high or 0.0) < min_gain:
            reason = f"it is {gain_text(row.speedup)} as fast as dense in its precision, less than {min_gain:g}×"
        elif drop is not None and drops and drop > min(drops):
            reason = f"it loses {drop:.2g} points of {found.measure}, more than {min(drops):g}"
        elif (why := _floor(row, found)) is not None:
            reason = why
        if reason is None:
            good.append(row)
        else:
            refused.append((row.spec, reason))
    return sorted(good, key=lambda row: -(row.speedup.median if row.speedup else 0.0)), refused


def _floor(row: "Row", found: "SweepResult") -> str | None:
    """Why a setting is no better than `random` with as many tokens; None: it is, or there is no such random."""
    value = row.value(found.measure)
    if row.random_value is None or value is None or value > row.random_value:
        return None
    return (
        f"it does not beat random with as many tokens: {found.measure} {value:.4g}, and random's {row.random_value:.4g}"
    )


def judged(
    bench: "BenchResult", evaluation: "Evaluation", limits: Sequence[Limit], min_gain: float
) -> tuple[tuple[Held, ...], str | None]:
    """The limits and what was seen of a setting, and why it is refused; None: it is not."""
    held = tuple(hold(limits, metrics_of(bench, evaluation)))
    gain = bench.speedup
    if gain is None or gain.low is None or gain.high is None:
        return held, "the runs are too few to compare it with dense"
    if gain.high < min_gain:
        return held, f"it is {gain_text(gain)} as fast as dense, less than {min_gain:g}×"
    if gain.low < min_gain:
        noisy = [f"{side.role}: {side.verdict.reason}" for side in bench.sides if side.verdict.status != "stable"]
        return held, (
            f"the machine is too noisy to decide: {gain_text(gain)} as fast as dense, which may be less than "
            f"{min_gain:g}×" + (f" ({noisy[0]})" if noisy else "")
        )
    broken = [one.sentence() for one in held if not one.passed]
    return held, "; ".join(broken) or None


def gain_text(gain: Speedup) -> str:
    """`1.32× [1.28, 1.35]`."""
    interval = f" [{gain.low:.2f}, {gain.high:.2f}]" if gain.low is not None and gain.high is not None else ""
    return f"{gain.median:.2f}×{interval}"
