"""What the references of all operators share."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """`outputs` are in the order of the contract. `margin` is how far the nearest decision between two different
    numbers was from going the other way; results that differ by less than rounding may be ordered either way."""

    outputs: tuple[Array, ...]
    margin: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Bytes and operations of one call in half precision (2 bytes a value), counted by hand."""

    sizes: Mapping[str, Any]
    bytes_moved: int
    flops: int


Reference = Callable[..., Expected]


def stack(rows: list[Expected]) -> Expected:
    outputs = tuple(np.stack(parts) for parts in zip(*(row.outputs for row in rows), strict=True))
    return Expected(outputs=outputs, margin=min(row.margin for row in rows))


def ordinary(score: Array) -> Array:
    """Scores as they are compared: whatever is not less than the largest float32 counts as that."""
    largest = float(np.finfo(np.float32).max)
    return np.array([value if value < largest else largest for value in score])


def gap(value: float, others: Array) -> float:
    """Distance of a value to the nearest other number that is not the very same."""
    distances = np.abs(others - value)
    return float(distances[distances > 0].min(initial=math.inf))
