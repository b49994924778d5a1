"""Perplexity of a text with the interval that it allows to state, alone and against another bundle's.

The text is cut into windows, each scored from its beginning on. The interval is that of a bootstrap over blocks of
neighbouring tokens, as what is hard to tell comes in clusters: Künsch 1989, doi:10.1214/aos/1176347265, with blocks
that do not overlap (Carlstein 1986, doi:10.1214/aos/1176350057). Two bundles are compared on the same blocks.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 64
"""Tokens of a block."""

RESAMPLES = 2000
FEWEST_BLOCKS = 10
"""With fewer, no interval is stated."""

_SHARES = (0.025, 0.975)
_AT_ONCE = 50  # resamples


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """The perplexity of a text: e to the mean of the negative logarithms of its tokens' probabilities.

    Attributes:
        low, high: Its 95 % interval; None: the text is too short for one.
        tokens: How many were scored.
        blocks: How many blocks they make.
        bits_per_byte: What the text would take if it were coded by these probabilities, of whatever tokenizer.
    """

    value: float
    low: float | None
    high: float | None
    tokens: int
    blocks: int
    bits_per_byte: float

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityChange:
    """A perplexity against another of the same tokens.

    Attributes:
        ratio: Ours by theirs.
        low, high: Its 95 % interval; None: the text is too short for one.
        difference: Ours less theirs.
    """

    ratio: float
    low: float | None
    high: float | None
    difference: float

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


def windows_of(tokens: Sequence[int], size: int, begin: Sequence[int] = ()) -> list[list[int]]:
    """A text in windows that are scored one by one.

    Args:
        tokens: Of the text, without what begins a text.
        size: Tokens of a window; the last may be shorter, but has two at least.
        begin: What every window begins with, as a text does.
    """
    step = size - len(begin)
    found = [[*begin, *tokens[start : start + step]] for start in range(0, len(tokens), step)]
    return [window for window in found if len(window) > max(1, len(begin))]


def perplexity_of(scores: Sequence[Array], text_bytes: int, *, seed: int = 0) -> Perplexity:
    """The perplexity of windows.

    Args:
        scores: For each window the natural logarithms of the probabilities of its tokens, all finite.
        text_bytes: Bytes of the text that was scored.
        seed: Of the bootstrap.
    """
    sums, counts = _blocks(scores)
    mean = -sums.sum() / counts.sum()
    low, high = _interval(sums, counts, seed)
    return Perplexity(
        value=_exp(mean),
        low=None if high is None else _exp(-high),
        high=None if low is None else _exp(-low),
        tokens=int(counts.sum()),
        blocks=len(counts),
        bits_per_byte=-float(sums.sum()) / math.log(2) / max(text_bytes, 1),
    )


def change_of(ours: Sequence[Array], theirs: Sequence[Array], *, seed: int = 0) -> PerplexityChange:
    """Two perplexities of the same windows against each other; arguments as for `perplexity_of`."""
    our_sums, counts = _blocks(ours)
    their_sums, _ = _blocks(theirs)
    low, high = _interval(our_sums - their_sums, counts, seed)
    means = [-sums.sum() / counts.sum() for sums in (our_sums, their_sums)]
    return PerplexityChange(
        ratio=_exp(means[0] - means[1]),
        low=None if high is None else _exp(-high),
        high=None if low is None else _exp(-low),
        difference=_exp(means[0]) - _exp(means[1]),
    )


def _blocks(scores: Sequence[Array]) -> tuple[Array, Array]:
    """The sum of each block, and how many tokens it has; no block goes beyond its window."""
    sums, counts = [], []
    for values in scores:
        for start in range(0, len(values), BLOCK):
            part = values[start : start + BLOCK]
            sums.append(float(part.sum(dtype=np.float64)))
            counts.append(len(part))
    return np.array(sums), np.array(counts, np.float64)


def _interval(sums: Array, counts: Array, seed: int) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean."""
    number = len(counts)
    if number < FEWEST_BLOCKS:
        return None, None
    random, shares, means = np.random.default_rng(seed), np.full(number, 1 / number), []
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn = random.multinomial(number, shares, _AT_ONCE)
        means.append((drawn @ sums) / (drawn @ counts))
    low, high = np.quantile(np.concatenate(means), _SHARES)
    return float(low), float(high)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return sys.float_info.max  # infinity is no number of JSON
