"""How far two tensors are apart, in float64 and a piece at a time: what a verification does with every state of every
step, where new memory of a state's size would take longer than all that is computed."""

import math
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

_PIECE = 1 << 15
_LEAST, _SHORTEST = 1e-6, 1e-8  # what is divided by, of values and of lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """The difference of two tensors of the same shape.

    Attributes:
        absolute: The largest error; NaN counts as infinite.
        relative: The same divided by the largest value that is expected.
        cosine: Of both as vectors.
    """

    absolute: float
    relative: float
    cosine: float


class _Room(threading.local):
    """Memory for a piece of each and of their difference, of this thread."""

    def __init__(self) -> None:
        self.pieces = tuple(torch.empty(_PIECE, dtype=torch.float64) for _ in range(3))


_room = _Room()


def apart(expected: Tensor, got: Tensor) -> Apart:
    """Compare two tensors of the same shape, of any dtypes, on the CPU."""
    ones, others = expected.detach().reshape(-1), got.detach().reshape(-1)
    worst = largest = product = one_squared = other_squared = 0.0
    for start in range(0, len(ones), _PIECE):
        count = min(_PIECE, len(ones) - start)
        one, other, difference = (piece[:count] for piece in _room.pieces)
        one.copy_(ones[start : start + count])
        other.copy_(others[start : start + count])
        largest = max(largest, _largest(one))
        product += float(torch.dot(one, other))
        one_squared += float(torch.dot(one, one))
        other_squared += float(torch.dot(other, other))
        worst = max(worst, _largest(torch.sub(one, other, out=difference)))
    lengths = max(math.sqrt(one_squared), _SHORTEST) * max(math.sqrt(other_squared), _SHORTEST)
    relative = worst / max(largest, _LEAST) if math.isfinite(worst) else math.inf
    return Apart(absolute=worst, relative=relative, cosine=product / lengths)


def _largest(values: Tensor) -> float:
    """The largest of absolute values; infinite if one is NaN."""
    low, high = torch.aminmax(values)
    found = max(-float(low), float(high))
    return math.inf if math.isnan(found) or math.isnan(float(high)) else found
