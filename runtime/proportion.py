"""Shares of a sample with the interval that they allow to state.

Source: Wilson 1927, doi:10.1080/01621459.1927.10502953, for one share; Agresti and Min 2005, doi:10.1002/sim.1781, for
the difference of two shares of the same things. Things that were drawn in groups count for as many as would be as
certain if each were drawn alone: Kish 1965, "Survey Sampling", chapter 5; Korn and Graubard 1998, Survey Methodology
24(2), for intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_Z = 1.959963984540054  # of a two-sided interval of 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """`count` of `n` things, and the 95 % interval (Wilson's) of the share that they are a sample of."""

    value: float
    count: int
    n: int
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """By how much a share differs from another of the same things, with its 95 % interval.

    Attributes:
        value: Ours less theirs.
        won: Things that only ours has.
        lost: Things that only theirs has.
        n: All of them.
    """

    value: float
    low: float
    high: float
    won: int
    lost: int
    n: int

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


def share(count: int, n: int, *, effect: float = 1.0) -> Share:
    """`count` of `n`; n is 1 or more, and `effect` what `effect_of_groups` gives."""
    value, square, alone = count / n, _Z * _Z, n / effect
    middle = (value + square / (2 * alone)) / (1 + square / alone)
    reach = _Z / (1 + square / alone) * math.sqrt(value * (1 - value) / alone + square / (4 * alone * alone))
    low, high = (0.0 if count == 0 else middle - reach), (1.0 if count == n else middle + reach)
    return Share(value=value, count=count, n=n, low=low, high=high)


def difference(won: int, lost: int, n: int, *, effect: float = 1.0) -> Difference:
    """The difference of two shares of the same `n` things; `won` are only in ours and `lost` only in theirs, and
    `effect` is what `effect_of_groups` gives."""
    more, less, total = won + 0.5, lost + 0.5, n + 2
    middle = (more - less) / total
    reach = _Z * math.sqrt(effect * (more + less - (more - less) ** 2 / total)) / total
    low, high = max(-1.0, middle - reach), min(1.0, middle + reach)
    return Difference(value=(won - lost) / n, low=low, high=high, won=won, lost=lost, n=n)


def effect_of_groups(groups: Sequence[Sequence[float]]) -> float:
    """By how much the variance of a mean is larger than if each thing had been drawn alone, at least 1.

    Args:
        groups: The values of things, of each group that was drawn at once; none is empty.
    """
    n, count = sum(map(len, groups)), len(groups)
    mean = sum(map(sum, groups)) / n
    alone = sum((value - mean) ** 2 for group in groups for value in group)
    together = sum((sum(group) - mean * len(group)) ** 2 for group in groups)
    if count < 2 or alone == 0:
        return 1.0
    return max(1.0, together / alone * (n - 1) / n * count / (count - 1))
