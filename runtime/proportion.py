"""Shares of a sample with the interval that they allow to state.

Source: Wilson 1927, doi:10.1080/01621459.1927.10502953, for one share; Agresti and Min 2005, doi:10.1002/sim.1781, for
the difference of two shares of the same things.
"""

import math
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


def share(count: int, n: int) -> Share:
    """`count` of `n`; n is 1 or more."""
    value, square = count / n, _Z * _Z
    middle = (value + square / (2 * n)) / (1 + square / n)
    reach = _Z / (1 + square / n) * math.sqrt(value * (1 - value) / n + square / (4 * n * n))
    low, high = (0.0 if count == 0 else middle - reach), (1.0 if count == n else middle + reach)
    return Share(value=value, count=count, n=n, low=low, high=high)


def difference(won: int, lost: int, n: int) -> Difference:
    """The difference of two shares of the same `n` things; `won` are only in ours and `lost` only in theirs."""
    more, less, total = won + 0.5, lost + 0.5, n + 2
    middle = (more - less) / total
    reach = _Z * math.sqrt(more + less - (more - less) ** 2 / total) / total
    low, high = max(-1.0, middle - reach), min(1.0, middle + reach)
    return Difference(value=(won - lost) / n, low=low, high=high, won=won, lost=lost, n=n)
