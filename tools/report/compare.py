"""Compare two reports, or the two sides of one interleaved run.

Only pairs of one interleaved run make a ratio with an interval. Of two runs the difference is shown, and no speed-up is
claimed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.tools.report.budget import Held, Limit, hold
from trt_compress.tools.report.metrics import Metric, absent_metric, metrics_of
from trt_compress.tools.report.record import Ratio, Report, ReportSide
from trt_compress.tools.report.sections import judged, run_sections

TWO_RUNS = "two runs, no speed-up claimed: only pairs of one interleaved run make a ratio"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedMetric:
    """One number of both; `change` is (b − a) / a, None where it cannot be said."""

    a: Metric
    b: Metric

    @property
    def change(self) -> float | None:
        """Relative difference of b from a."""
        if self.a.value is None or self.b.value is None or self.a.value == 0 or self.a.of != self.b.of:
            return None
        return (self.b.value - self.a.value) / abs(self.a.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two things that were measured, side by side.

    Attributes:
        ratio: Median of pairwise ratios a/b of their latencies, if they ran interleaved; else None, and `claim` says
            why.
        verdicts, judged: Of both, as the reports have them, and in words.
        own: Speed-ups of a and b over their own baselines.
        differs: What else differs between the runs: name, a, b.
    """

    names: tuple[str, str]
    verdicts: tuple[str, str]
    judged: tuple[str, str]
    rows: tuple[ComparedMetric, ...]
    ratio: Ratio | None
    claim: str
    own: tuple[Ratio | None, Ratio | None]
    differs: tuple[tuple[str, str, str], ...]
    budget: tuple[Held, ...]

    def broken(self) -> list[Held]:
        """The limits that do not hold."""
        return [held for held in self.budget if not held.passed]

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "document": "trt-compress comparison",
            "a": self.names[0],
            "b": self.names[1],
            "verdicts": list(self.verdicts),
            "claim": self.claim,
            "ratio": self.ratio.to_json() if self.ratio else None,
            "own_speedups": [ratio.to_json() if ratio else None for ratio in self.own],
            "differs": [{"what": what, "a": a, "b": b} for what, a, b in self.differs],
            "metrics": [
                {
                    "name": row.a.name,
                    "unit": row.a.unit,
                    "a": row.a.value,
                    "b": row.b.value,
                    "change": row.change,
                    "a_reason": row.a.reason,
                    "b_reason": row.b.reason,
                }
                for row in self.rows
            ],
            "budget": [
                {"limit": str(held.limit), "value": held.value, "passed": held.passed, "reason": held.reason}
                for held in self.budget
            ],
        }


def compare_reports(a: Report, b: Report, limits: Sequence[Limit] = ()) -> Comparison:
    """Compare the first sides of two reports; the budget is b's."""
    first, second = a.sides[0], b.sides[0]
    return _comparison(
        (a, first), (b, second), names=(_name(a, first), _name(b, second)), ratio=None, claim=TWO_RUNS, limits=limits
    )


def compare_sides(report: Report, limits: Sequence[Limit] = ()) -> Comparison:
    """Compare the baseline (a) of one interleaved run with the bundle (b); the budget is the bundle's.

    Raises:
        ConfigError: The report has one side only.
    """
    if len(report.sides) < 2 or report.speedup is None:
        raise ConfigError(
            f"The report '{report.title}' has one side only; give a second report, or a result of "
            "`trt-compress bench --baseline`."
        )
    bundle, baseline = report.sides[0], report.sides[1]
    return _comparison(
        (report, baseline),
        (report, bundle),
        names=(f"{baseline.identity.name} (baseline)", bundle.identity.name),
        ratio=report.speedup,
        claim=f"{report.speedup.n} pairs of one interleaved run",
        limits=limits,
    )


def _comparison(
    a: tuple[Report, ReportSide],
    b: tuple[Report, ReportSide],
    *,
    names: tuple[str, str],
    ratio: Ratio | None,
    claim: str,
    limits: Sequence[Limit],
) -> Comparison:
    ours, theirs = metrics_of(*a), metrics_of(*b)
    what = "report" if a[0] is not b[0] else "side"
    rows = []
    for name in dict.fromkeys([*ours, *theirs]):
        absent = Metric(name=name, value=None, reason=f"only the other {what} has it", unit="", better="neither")
        row = ComparedMetric(a=ours.get(name, absent), b=theirs.get(name, absent))
        if row.a.value is not None or row.b.value is not None:
            rows.append(row)
    separate = a[0] is not b[0]
    return Comparison(
        names=names,
        verdicts=(a[1].verdict.status, b[1].verdict.status),
        judged=(judged(a[1]).word, judged(b[1]).word),
        rows=tuple(rows),
        ratio=ratio,
        claim=claim,
        own=(a[0].speedup, b[0].speedup) if separate else (None, None),
        differs=_differences(a, b),
        budget=tuple(hold(limits, theirs, lambda name: absent_metric(name, b[1]))),
    )


def _name(report: Report, side: ReportSide) -> str:
    return f"{side.identity.name} ({report.started_at})" if report.started_at else side.identity.name


def _differences(a: tuple[Report, ReportSide], b: tuple[Report, ReportSide]) -> tuple[tuple[str, str, str], ...]:
    """What differs in model, protocol and machine: the things that a difference in speed may come from."""
    facts = []
    for report, side in (a, b):
        identity = side.identity
        values = {
            "bundle": identity.name,
            "model": identity.model,
            "weights": identity.weights,
            "compression": identity.compression,
            "precision": identity.precision,
            "backend": identity.backend,
            "native library": identity.plugins or "none",
        }
        for section in run_sections(report):
            values |= {
                str(row[0]): str(row[1]) for row in section.rows if row[0] not in ("started", "report made with")
            }
        facts.append(values)
    names = dict.fromkeys([*facts[0], *facts[1]])
    pairs = ((name, facts[0].get(name, "-"), facts[1].get(name, "-")) for name in names)
    return tuple((name, mine, theirs) for name, mine, theirs in pairs if mine != theirs and not name.startswith("wall"))
