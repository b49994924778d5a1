"""Tensors that outlive a run of a graph."""

from collections.abc import Mapping
from dataclasses import dataclass

Dim = int | str
"""A length, or a symbol that means one number in the whole graph."""

BATCH_SYMBOL = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec:
    """A tensor that a run hands to the next one: what leaves as `output` comes back as `input`.

    Attributes:
        shape: A symbol that no input has marks an axis that grows, from 0 in the first run.
        initial: "zeros" or {"fill": number}.
        capacity: The longest that a growing axis may get.
        name: Graphs that name a state alike carry on the same tensor; None: it belongs to its graph alone.
    """

    input: str
    output: str
    shape: tuple[Dim, ...]
    dtype: str = "float32"
    initial: str | Mapping[str, float] = "zeros"
    capacity: int | None = None
    name: str | None = None
