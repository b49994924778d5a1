"""Budgets: limits that the numbers of a report are held to.

Grammar: `metric<=value` or `metric>=value`, several joined by commas: `p99_ms<=33,accuracy>=0.98`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trt_compress.errors import ConfigError
from trt_compress.suggest import did_you_mean
from trt_compress.tools.report.metrics import Metric
from trt_compress.tools.report.numbers import number

_LIMIT = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([^\s,<>=]+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit of a budget."""

    metric: str
    relation: Literal["<=", ">="]
    value: float

    def __str__(self) -> str:
        return f"{self.metric}{self.relation}{self.value:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One limit and what was seen; a number that is not there breaks it, and `reason` says why it is not there."""

    limit: Limit
    value: float | None
    passed: bool
    reason: str | None

    def sentence(self) -> str:
        """What was seen and what is allowed."""
        if self.value is None:
            return (
                f"{self.limit.metric} is not known ({self.reason}), allowed {self.limit.relation} {self.limit.value:g}"
            )
        of = f" ({self.reason})" if self.reason else ""
        return f"{self.limit.metric}{of} is {number(self.value)}, allowed {self.limit.relation} {self.limit.value:g}"


def parse_budget(text: str) -> list[Limit]:
    """Read a budget.

    Raises:
        ConfigError: It does not follow the grammar; the message names the part.
    """
    limits = []
    for part in text.split(","):
        match = _LIMIT.fullmatch(part)
        value = _finite(match.group(3)) if match else None
        if match is None or value is None:
            raise ConfigError(
                f"The budget has the part '{part.strip()}'; write metric<=value or metric>=value, several joined by "
                "commas, such as p99_ms<=33,fps>=30."
            )
        relation: Literal["<=", ">="] = "<=" if match.group(2) == "<=" else ">="
        limits.append(Limit(metric=match.group(1), relation=relation, value=value))
    return limits


def hold(
    limits: Sequence[Limit], metrics: Mapping[str, Metric], absent: Callable[[str], Metric | None] = lambda name: None
) -> list[Held]:
    """Compare numbers with their limits.

    Args:
        limits: The budget.
        metrics: What was measured, by name.
        absent: Of a name that is not among them: the number as others have it, or None if no report has it.

    Raises:
        ConfigError: A limit names a number that no report has.
    """
    held = []
    for limit in limits:
        metric = metrics.get(limit.metric) or metrics.get(limit.metric.lower()) or absent(limit.metric.lower())
        if metric is None:
            hint = did_you_mean(limit.metric, metrics) or " `trt-compress compare --json` lists what it has."
            raise ConfigError(f"The budget names '{limit.metric}', which this report does not have.{hint}")
        if metric.value is None:
            held.append(Held(limit=limit, value=None, passed=False, reason=metric.reason))
            continue
        passed = metric.value <= limit.value if limit.relation == "<=" else metric.value >= limit.value
        seen_in = ", ".join(filter(None, [metric.of, f"n {metric.n}" if metric.n is not None else ""]))
        held.append(Held(limit=limit, value=metric.value, passed=passed, reason=seen_in or None))
    return held


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
