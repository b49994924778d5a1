"""How many tokens a text has by the size of the vocabulary: T(V) = a·V^(-b) + c, and the size that reaches a target.

Source: Crosslingual tokenizer inequities (excerpts of the study; its code was not read).
Differs: the fit is least squares with a, b and c at least 0, the exponent found on a grid that is narrowed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError

LEAST = 3
"""Sizes that a fit needs, as it has three unknowns."""

_LARGEST = 10**9
_STEEPEST = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """A fit of T(V) = a·V^(-b) + c.

    Attributes:
        a, b, c: What was fitted.
        worst: The largest error over the sizes, as a share of the tokens there.
        sizes: The sizes it was fitted to.
    """

    a: float
    b: float
    c: float
    worst: float
    sizes: tuple[int, ...]

    def tokens(self, size: float) -> float:
        """Tokens at a size of the vocabulary."""
        return float(self.a * size**-self.b + self.c)

    def size_for(self, tokens: float) -> int | None:
        """The smallest vocabulary with at most so many tokens; None: no size has."""
        if self.a <= 0 or self.b <= 0:
            return min(self.sizes) if tokens >= self.c else None
        if tokens <= self.c:
            return None
        size = (self.a / (tokens - self.c)) ** (1 / self.b)
        return None if size > _LARGEST else max(1, int(np.ceil(size - 1e-9)))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"a": self.a, "b": self.b, "c": self.c, "worst_share": self.worst, "sizes": list(self.sizes)}


def fit_power_law(sizes: Sequence[int], tokens: Sequence[int]) -> PowerLaw:
    """Fit tokens to sizes of vocabularies.

    Raises:
        ConfigError: There are fewer than three different sizes.
    """
    if len(set(sizes)) < LEAST:
        raise ConfigError(
            f"A fit over vocabulary sizes needs {LEAST} different ones, and there are {len(set(sizes))}; give more "
            "tokenizers with --tokenizer."
        )
    x, y = np.asarray(sizes, np.float64), np.asarray(tokens, np.float64)
    low, high = 1e-3, _STEEPEST
    best = (np.inf, 0.0, 0.0, 0.0)
    for _ in range(4):
        grid = np.linspace(low, high, 201)
        best = min(best, *(_at(x, y, float(b)) for b in grid))
        width = (high - low) / 100
        low, high = max(1e-3, best[2] - width), min(_STEEPEST, best[2] + width)
    _, a, b, c = best
    worst = float(np.max(np.abs(a * x**-b + c - y) / np.maximum(y, 1)))
    return PowerLaw(a=a, b=b, c=c, worst=worst, sizes=tuple(sorted(set(sizes))))


def _at(x: "np.ndarray[Any, Any]", y: "np.ndarray[Any, Any]", b: float) -> tuple[float, float, float, float]:
    """The squared error of the best a and c for an exponent, and these."""
    power = x**-b
    spread = power - power.mean()
    a = max(0.0, float(spread @ (y - y.mean()) / max(float(spread @ spread), 1e-300)))
    c = float(y.mean() - a * power.mean())
    if c < 0:
        a, c = float(power @ y / (power @ power)), 0.0
    error = a * power + c - y
    return float(error @ error), a, b, c
