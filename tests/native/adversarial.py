"""Calls that a kernel may get wrong: ties everywhere, nothing and everything kept, and scores that are no numbers.

Both the CPU kernels and the emulated ones are held against the reference in plain loops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Value = int | float | Sequence[int]
MERGE, SELECT, RESTORE, DYNAMIC = "TrtcTokenMerge", "TrtcTokenSelect", "TrtcTokenRestore", "TrtcTokenSelectDynamic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call, whose outputs the contract decides to the last index."""

    name: str
    op_type: str
    attributes: Mapping[str, Value]
    inputs: tuple[Array, ...]


def scores(kind: str, tokens: int, dtype: Any = np.float32) -> Array:
    """Two items of scores."""
    generator = np.random.default_rng(tokens)
    score = generator.standard_normal((2, tokens)).astype(np.float32)
    spots = generator.random((2, tokens)) < 0.5
    if kind == "ties":
        score = generator.integers(0, 3, (2, tokens)).astype(np.float32)
    elif kind == "equal":
        score[:] = -0.5
    elif kind == "zeros":
        score = np.where(spots, np.float32(0.0), np.float32(-0.0))
    elif kind == "nan":
        score[spots] = np.nan
        score[1] = np.nan
    elif kind == "infinite":
        score[spots] = np.inf
        score[generator.random((2, tokens)) < 0.3] = -np.inf
        score[1] = np.inf
    elif kind == "overflow":  # what float16 makes of large scores
        score = np.clip(np.abs(score) * 1e5, 0, np.inf)
    with np.errstate(over="ignore"):
        return score.astype(dtype)


KINDS = ("normal", "ties", "equal", "zeros", "nan", "infinite")


def select_calls() -> list[Call]:
    found = []
    for kind in KINDS:
        for tokens, kept, forced in (
            *((1, 0, [-1]), (1, 1, [-1]), (1, 1, [0]), (2, 1, [1]), (33, 0, [-1]), (33, 33, [3])),
            *((33, 1, [32]), (33, 20, list(range(33))[-18:]), (65, 7, [0, 64])),
        ):
            for order in (0, 1):
                x = np.random.default_rng(0).standard_normal((2, tokens, 3)).astype(np.float32)
                attributes = {"num_kept": kept, "forced": forced, "order": order, "remainder": 0}
                name = f"select-{kind}-{tokens}-{kept}-{order}"
                found.append(Call(name=name, op_type=SELECT, attributes=attributes, inputs=(x, scores(kind, tokens))))
    x = np.random.default_rng(0).standard_normal((2, 9, 4)).astype(np.float16)
    attributes = {"num_kept": 4, "forced": [8], "order": 1, "remainder": 0}
    overflow = scores("overflow", 9, np.float16)
    found.append(Call(name="select-overflow", op_type=SELECT, attributes=attributes, inputs=(x, overflow)))
    return found


def dynamic_calls() -> list[Call]:
    found = []
    for kind in KINDS:
        for tokens, (least, most), forced in (
            *((1, (0, 1), [-1]), (1, (1, 1), [0]), (33, (0, 33), [-1]), (33, (0, 2), [31, 32])),
            *((33, (33, 33), [-1]), (33, (5, 20), [16]), (65, (0, 64), [64])),
        ):
            for threshold, trim in ((0.0, 0), (0.5, 1), (1e30, 1), (-1e30, 0)):
                x = np.random.default_rng(0).standard_normal((2, tokens, 3)).astype(np.float32)
                attributes = {
                    **{"mode": 0, "threshold": threshold, "min_kept": least, "max_kept": most},
                    **{"forced": forced, "trim": trim},
                }
                name = f"dynamic-{kind}-{tokens}-{least}-{most}-{threshold}"
                found.append(Call(name=name, op_type=DYNAMIC, attributes=attributes, inputs=(x, scores(kind, tokens))))
    return found


def merge_calls() -> list[Call]:
    found = []
    generator = np.random.default_rng(5)
    for metric_kind in ("equal", "two", "zeros", "large"):
        for tokens, merged, protected in (
            *((2, 0, 0), (2, 1, 0), (3, 1, 1), (9, 0, 1), (9, 4, 0), (9, 1, 7), (9, 1, 6), (33, 16, 0), (33, 16, 1)),
            *((34, 8, 17), (64, 5, 40)),
        ):
            for order in (0, 1):
                metric = np.ones((2, tokens, 4), np.float32)
                if metric_kind == "two":  # one of two directions each: similarities are exactly 0 or 1
                    metric = np.eye(4, dtype=np.float32)[generator.integers(0, 2, (2, tokens))]
                elif metric_kind == "zeros":
                    metric[:, ::2] = 0
                elif metric_kind == "large":  # float16 whose squares are beyond its range
                    metric = (np.eye(4)[generator.integers(0, 3, (2, tokens))] * 6e4).astype(np.float16)
                x = generator.standard_normal((2, tokens, 3)).astype(np.float32)
                size = generator.integers(1, 4, (2, tokens, 1)).astype(np.float32)
                attributes = {"num_merged": merged, "num_protected": protected, "order": order}
                name = f"merge-{metric_kind}-{tokens}-{merged}-{protected}-{order}"
                found.append(Call(name=name, op_type=MERGE, attributes=attributes, inputs=(x, metric, size)))
    return found


def restore_calls() -> list[Call]:
    generator = np.random.default_rng(6)
    found = []
    for rows, tokens, channels in ((1, 1, 1), (1, 40, 3), (5, 40, 7), (33, 33, 8), (7, 0, 3), (3, 5, 0)):
        y = generator.standard_normal((2, rows, channels)).astype(np.float32)
        index = generator.integers(0, rows, (2, tokens))
        found.append(Call(name=f"restore-{rows}-{tokens}", op_type=RESTORE, attributes={"mode": 0}, inputs=(y, index)))
    y = generator.standard_normal((2, 33, 5)).astype(np.float32)
    index = np.stack([generator.permutation(33), np.arange(33)[::-1]])
    found.append(Call(name="restore-permuted", op_type=RESTORE, attributes={"mode": 1}, inputs=(y, index)))
    return found


def many_tokens() -> list[Call]:
    """4097, one more than a power of two that blocks and tables like; everything is tied with something."""
    generator = np.random.default_rng(7)
    tokens = 4097
    x = generator.standard_normal((1, tokens, 2)).astype(np.float32)
    score = scores("ties", tokens)[:1]
    forced = {"forced": [0, 4096]}
    dynamic = {"mode": 0, "threshold": 1.0, "min_kept": 0, "max_kept": 4000, **forced, "trim": 1}
    return [
        Call(
            name="select-4097",
            op_type=SELECT,
            attributes={"num_kept": 2049, **forced, "order": 1, "remainder": 0},
            inputs=(x, score),
        ),
        Call(name="dynamic-4097", op_type=DYNAMIC, attributes=dynamic, inputs=(x, score)),
        Call(
            name="merge-4097",
            op_type=MERGE,
            attributes={"num_merged": 2048, "num_protected": 1, "order": 0},
            inputs=(
                x,
                np.eye(4, dtype=np.float32)[generator.integers(0, 4, (1, tokens))],
                np.ones((1, tokens, 1), np.float32),
            ),
        ),
    ]


def decided_calls() -> list[Call]:
    return [*select_calls(), *dynamic_calls(), *merge_calls(), *restore_calls()]
