"""Which samples are run in the dear forms.

Every sample is run in every form, once. What multiplies that, a second opset, an engine built by TensorRT-RTX, a half
precision of a sample whose reference takes a second, is done for a covering subset: every pair of kinds of attributes,
precision and input values that any sample has is in it, and so are the least and the largest size of every axis. What
lies apart from that rule is in the samples twice, under another size in the middle.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TypeVar

from trt_compress.plugins.spec import Sample

_FEW = 8  # up to here an attribute is a choice or a small number; above, an amount
Key = TypeVar("Key")


def covering(samples: Iterable[tuple[Key, Sample, str]]) -> list[Key]:
    """The keys of few samples in place of all, each given with its precision."""
    cases = list(samples)
    sizes: dict[str, list[int]] = {}
    for _, sample, _ in cases:
        for axis, size in sample.axes.items():
            sizes.setdefault(axis, []).append(size)
    ends = {axis: {min(found), max(found)} for axis, found in sizes.items()}
    facts = [_facts(sample, dtype, ends) for _, sample, dtype in cases]
    left = set().union(*facts)
    chosen: list[Key] = []
    while left:
        best = max(range(len(cases)), key=lambda place: len(facts[place] & left))
        chosen.append(cases[best][0])
        left -= facts[best]
    return chosen


def is_dear(sample: Sample) -> bool:
    """Whether the reference takes a second or so: it goes through pairs of tokens, or through rows, heads and keys."""
    sizes = sample.axes
    scores = sizes["B"] * sizes.get("H", 1) * sizes.get("R", 1) * sizes.get("N", 1) * sizes.get("D", 1)
    return max(sizes.get(axis, 0) for axis in "NL") > 1000 or ("R" in sizes and scores > 10**7)


def _facts(sample: Sample, dtype: str, ends: dict[str, set[int]]) -> set[object]:
    kinds = [(name, _kind(value)) for name, value in sample.attributes.items()]
    kinds += [("values", sample.values), ("dtype", dtype), ("refused", sample.refused)]
    return {
        *combinations(kinds, 2),
        *((axis, size) for axis, size in sample.axes.items() if size in ends[axis]),
        *((axis, "odd") for axis, size in sample.axes.items() if size % 8),
    }


def _kind(value: float | Sequence[int]) -> str:
    if isinstance(value, int):
        return str(value) if abs(value) <= _FEW else f"{'-' if value < 0 else ''}many"
    if isinstance(value, float):
        return "zero" if value == 0 else "negative" if value < 0 else "positive"
    return f"{min(len(value), 2)} of a list"
