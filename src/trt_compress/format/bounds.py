"""Limits of the numbers that a manifest's `preprocess` and `postprocess` hold: each excess is one sentence."""

import math
from collections.abc import Iterator, Mapping, Sequence

Shape = Sequence[int | str]

FASTEST = 10_000_000
"""The highest sample rate, in samples a second."""

MOST_SAMPLES = 2**31 - 1
"""The longest sound, in samples."""

_SMALLEST, _LARGEST = 1e-9, 1e9  # of factors and offsets: beyond, float32 has no numbers left for the result


def not_of(name: str, value: str, allowed: Sequence[str] | Mapping[str, int]) -> Iterator[str]:
    """A word that is none of those that are allowed."""
    if value not in allowed:
        yield f"{name} is '{value[:60]}'; it is one of {', '.join(allowed)}"


def out_of(name: str, value: int | None, low: int, high: int) -> Iterator[str]:
    """A whole number beyond its limits; None is left to whoever reads it."""
    if value is not None and not low <= value <= high:
        yield f"{name} is {value}; it is {low} to {high}"


def bad_factor(name: str, value: float, *, positive: bool = False) -> Iterator[str]:
    """A factor that is 0, not finite, or so large or small that float32 has no numbers left for the result."""
    if not _SMALLEST <= (value if positive else abs(value)) <= _LARGEST:
        yield f"{name} is {value:g}; it is {'above' if positive else 'not'} 0, and from {_SMALLEST:g} to {_LARGEST:g}"


def bad_offset(name: str, value: float) -> Iterator[str]:
    """An offset that is not finite, or too large."""
    if not (math.isfinite(value) and abs(value) <= _LARGEST):
        yield f"{name} is {value:g}; it is at most {_LARGEST:g}"
