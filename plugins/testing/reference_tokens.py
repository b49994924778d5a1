"""Merging, selecting and restoring tokens once more, in plain loops."""

import math
from collections.abc import Mapping

import numpy as np

from trt_compress.plugins.testing.reference_base import Array, Counted, Expected, Reference, gap, ordinary, stack


def _direction(row: Array) -> Array:
    """The row at length 1; of zeros if its length, as float32 has it, is nothing to divide by."""
    if not np.isfinite(row).all():
        return np.zeros_like(row)
    norm = math.sqrt(float(row @ row))
    return row / norm if 2**-50 <= norm < 2**64 else np.zeros_like(row)


def _merge_row(x: Array, metric: Array, size: Array, num_merged: int, num_protected: int, order: int) -> Expected:
    n = len(x)
    a_rows = [i for i in range(num_protected, n) if i % 2 == 0]
    b_rows = [i for i in range(num_protected, n) if i % 2 == 1]
    unit = [_direction(row) for row in metric]
    targets = np.array([unit[b] for b in b_rows]).reshape(len(b_rows), metric.shape[1])
    best: dict[int, float] = {}
    partner: dict[int, int] = {}
    gap_of: dict[int, float] = {}
    for a in a_rows:
        best[a], partner[a], gap_of[a] = 0.0, -1, math.inf
        if not b_rows:
            continue
        similarity = targets @ unit[a]
        winner = 0
        for j in range(1, len(b_rows)):
            if similarity[j] > similarity[winner]:  # an equal one of larger index loses
                winner = j
        best[a], partner[a] = float(similarity[winner]), b_rows[winner]
        gap_of[a] = gap(float(similarity[winner]), similarity)
    ranking = sorted(a_rows, key=lambda a: (-best[a], a))  # equally similar: the smaller index merges first
    merged, left = ranking[:num_merged], ranking[num_merged:]
    margins = [gap_of[a] for a in merged]
    if merged and left:
        margins.append(gap(best[merged[-1]], np.array([best[a] for a in left])))
    if order == 1:
        margins += [gap(best[a], np.array([best[b]])) for a, b in zip(left, left[1:], strict=False)]
    else:
        left = sorted(left)

    rows = [[i] for i in range(num_protected)] + [[a] for a in left] + [[b] for b in b_rows]
    row_of = {members[0]: row for row, members in enumerate(rows)}
    for a in merged:
        rows[row_of[partner[a]]].append(a)
    dest = np.zeros(n, dtype=np.int64)
    y, y_size = np.zeros((len(rows), x.shape[1])), np.zeros((len(rows), 1))
    for row, members in enumerate(rows):
        for token in members:
            dest[token] = row
            y[row] += x[token] * size[token]
            y_size[row] += size[token]
        y[row] /= y_size[row]
    return Expected(outputs=(y, y_size, dest), margin=min(margins, default=math.inf))


def token_merge(x: Array, metric: Array, size: Array, *, num_merged: int, num_protected: int, order: int) -> Expected:
    return stack(
        [_merge_row(*row, num_merged, num_protected, order) for row in zip(x, metric, size, strict=True)],
    )


def _select_row(x: Array, score: Array, num_kept: int, forced: list[int], order: int, remainder: int) -> Expected:
    n, compared = len(x), ordinary(score)
    free = sorted((i for i in range(n) if i not in forced), key=lambda i: (-compared[i], i))
    kept = sorted(i for i in forced if i >= 0)
    kept += free[: num_kept - len(kept)]
    index = kept if order == 1 else sorted(kept)
    rest = sorted(set(range(n)) - set(kept))
    y = [x[i] for i in index]
    if remainder == 1:
        fused = np.zeros(x.shape[1])
        for i in rest:
            fused += score[i] * x[i]
        y.append(fused)
    tokens = np.array(y).reshape(len(y), x.shape[1])
    return Expected(outputs=(tokens, np.array(index, dtype=np.int64), np.array(rest, dtype=np.int64)))


def token_select(x: Array, score: Array, *, num_kept: int, forced: list[int], order: int, remainder: int) -> Expected:
    rows = zip(x, score, strict=True)
    return stack([_select_row(*row, num_kept, list(forced), order, remainder) for row in rows])


def token_restore(y: Array, index: Array, *, mode: int) -> Expected:
    x = np.zeros((y.shape[0], index.shape[1], y.shape[2]))
    for b in range(len(index)):
        for i, number in enumerate(index[b]):
            if mode == 0:
                x[b, i] = y[b, number]
            else:
                x[b, number] = y[b, i]
    return Expected(outputs=(x,))


OF: Mapping[str, Reference] = {
    "TrtcTokenMerge": token_merge,
    "TrtcTokenSelect": token_select,
    "TrtcTokenRestore": token_restore,
}

# B=2 sequences of N=10 tokens with C=3 values.
COUNTED: Mapping[str, Counted] = {
    # x and metric (D=4) in, M=7 tokens out, a 4-byte size for every token in and out, 8 bytes of dest for every one in
    "TrtcTokenMerge": Counted(
        sizes={"B": 2, "N": 10, "C": 3, "D": 4, "num_merged": 3, "num_protected": 1},
        bytes_moved=2 * (10 * 3 * 2 + 7 * 3 * 2 + 10 * 4 * 2 + 10 * 4 + 7 * 4 + 10 * 8),
        flops=2 * (2 * 4 * 4 * 4 + 2 * 3 * 3),  # 4 even tokens by 4 odd ones by D, then 3 weighted sums of C
    ),
    # all tokens in since the rest is summed, 6 kept and the sum out, a score and an 8-byte position for every token
    "TrtcTokenSelect": Counted(
        sizes={"B": 2, "N": 10, "C": 3, "num_kept": 6, "remainder": 1},
        bytes_moved=2 * (10 * 3 * 2 + 7 * 3 * 2 + 10 * 2 + 10 * 8),
        flops=2 * (2 * 4 * 3),
    ),
    # M=4 tokens in, 10 out, an 8-byte index for each
    "TrtcTokenRestore": Counted(
        sizes={"B": 2, "N": 10, "M": 4, "C": 3, "mode": 0},
        bytes_moved=2 * (4 * 3 * 2 + 10 * 3 * 2 + 10 * 8),
        flops=0,
    ),
}
