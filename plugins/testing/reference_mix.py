"""Threshold selection, mixing, attention scores and codebooks, from their papers and contracts."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from trt_compress.plugins.testing.reference_base import Array, Counted, Expected, Reference, gap, ordinary, stack

# ---- TokenSelectDynamic ---------------------------------------------------------------------------------------------


def _dynamic_row(
    x: Array, score: Array, mode: int, threshold: float, least: int, most: int, forced: list[int]
) -> tuple[list[int], float]:
    """Kept positions, ascending, and how near the number was to being another."""
    score = ordinary(score)
    always = [i for i in range(len(x)) if i in forced]
    free = sorted((i for i in range(len(x)) if i not in forced), key=lambda i: (-score[i], i))
    margin = math.inf
    if mode == 0:
        wanted = sum(score[i] >= threshold for i in free)
        margin = gap(threshold, score[free]) if free else math.inf
    else:
        mass = [max(value, 0.0) for value in score]
        share = threshold * sum(mass[i] for i in free)
        wanted, held = 0, 0.0
        while wanted < len(free) and held < share:
            held += mass[free[wanted]]
            wanted += 1
        reached = [sum(mass[i] for i in free[:number]) for number in range(len(free) + 1)]
        margin = min((abs(value - share) for value in reached if value != share), default=math.inf)
    number = min(max(len(always) + wanted, len(always), least), most)
    return sorted(always + free[: number - len(always)]), margin


def token_select_dynamic(
    x: Array,
    score: Array,
    *,
    mode: int,
    threshold: float,
    min_kept: int,
    max_kept: int,
    forced: list[int],
    trim: int,
) -> Expected:
    limit = float(np.float32(threshold))
    rows = [_dynamic_row(x[b], score[b], mode, limit, min_kept, max_kept, list(forced)) for b in range(len(x))]
    count = [len(kept) for kept, _ in rows]
    length = max(count) if trim == 1 else max_kept
    y, index, valid = np.zeros((len(x), length, x.shape[2])), np.full((len(x), length), -1), np.zeros((len(x), length))
    for b, (kept, _) in enumerate(rows):
        for slot, position in enumerate(kept):
            y[b, slot], index[b, slot], valid[b, slot] = x[b, position], position, 1
    outputs = (y, index.astype(np.int64), valid, np.array(count, dtype=np.int64), np.array(max(count), dtype=np.int32))
    return Expected(outputs=outputs, margin=min(margin for _, margin in rows))


# ---- TokenMix -------------------------------------------------------------------------------------------------------


def _softmax(logits: Array) -> Array:
    largest = max(logits)
    weights = np.array([math.exp(value - largest) for value in logits])
    shares: Array = weights / weights.sum()
    return shares


def token_mix(x: Array, weight: Array, *, normalize: int) -> Expected:
    y = np.zeros((len(x), weight.shape[1], x.shape[2]))
    for b, m in itertools.product(range(len(x)), range(weight.shape[1])):
        row = weight[b if len(weight) > 1 else 0, m]
        row = _softmax(row) if normalize == 1 else row
        for n in range(x.shape[1]):
            y[b, m] += row[n] * x[b, n]
    return Expected(outputs=(y,))


# ---- AttentionScore -------------------------------------------------------------------------------------------------


def _pool(score: Array, how: int, width: int) -> Array:
    """Along the last axis; what lies outside counts as 0 in an average, and not at all in a maximum."""
    n, reach = score.shape[-1], width // 2
    pooled = np.zeros_like(score)
    for j in range(n):
        window = score[..., max(0, j - reach) : min(n, j + reach + 1)]
        pooled[..., j] = window.max(axis=-1) if how == 1 else window.sum(axis=-1) / width
    return pooled


def _weights(logits: Array, sees: list[bool]) -> Array:
    weights = np.zeros(len(logits))
    if any(sees):
        weights[sees] = _softmax(logits[sees])
    return weights


def _score_item(q: Array, k: Array, position: Array, bias: Array, span: range, options: Mapping[str, Any]) -> Array:
    heads, rows, groups, n = len(q), q.shape[1], len(k), k.shape[1]
    used = [rows - 1] if options["rows"] == 3 else list(range(rows))
    keys = list(range(n)) if options["softmax"] == 1 else list(span)
    per_head = np.zeros((heads, len(span)))
    for h in range(heads):
        of_rows = []
        for r in used:
            logits = k[h // (heads // groups)][keys] @ q[h, r] * np.float32(options["scale"]) + bias[h, r][keys]
            sees = [options["causal"] == 0 or j <= position[r] for j in keys]
            values = logits if options["softmax"] == 0 else _weights(logits, sees)
            of_rows.append(values[[keys.index(j) for j in span]])
        if options["rows"] == 2:
            per_head[h] = np.max(of_rows, axis=0)
        else:
            per_head[h] = np.sum(of_rows, axis=0) / (len(used) if options["rows"] == 0 else 1)
        for place, j in enumerate(span):
            if options["normalize"] == 1:
                per_head[h, place] /= max(1, sum(options["causal"] == 0 or j <= position[r] for r in used))
            if options["normalize"] == 2:
                per_head[h, place] /= n - j
    pool, how = options["pool"], options["heads"]
    per_head = _pool(per_head, pool, options["head_kernel"][0])
    number = heads if how == 0 else groups if how <= 3 else 1
    parts = per_head.reshape(number, heads // number, len(span))
    reduce: Any = {0: np.sum, 1: np.mean, 2: np.sum, 3: np.max, 4: np.mean, 5: np.sum, 6: np.max}[how]
    return _pool(reduce(parts, axis=1), pool, options["kernel"][0])


def attention_score(
    q: Array,
    k: Array,
    position: Array,
    bias: Array,
    length: Array,
    *,
    start: int,
    stop: int,
    counted: int,
    **options: Any,
) -> Expected:
    batch, n = len(q), k.shape[2]
    full = np.broadcast_to(bias, (batch, q.shape[1], q.shape[2], n))
    places = np.broadcast_to(position, (batch, q.shape[2]))
    parts = q.shape[1] if options["heads"] == 0 else k.shape[1] if options["heads"] <= 3 else 1
    score = np.zeros((batch, parts, (stop if stop > 0 else n + stop) - start))
    for b in range(batch):
        own = min(max(int(length[b % len(length)]), 0), n) if counted else n  # as if there were no more keys
        span = range(start, min(stop, own) if stop > 0 else own + stop)
        if span:
            found = _score_item(q[b], k[b, :, :own], places[b], full[b, :, :, :own], span, options)
            score[b, :, : len(span)] = found
    return Expected(outputs=(score,))


# ---- CodebookEncode, CodebookDecode ---------------------------------------------------------------------------------


def _nearest(distances: Array) -> tuple[int, float]:
    """The first of the smallest, and how much larger the next other one is."""
    best = 0
    for number, distance in enumerate(distances):
        if distance < distances[best]:
            best = number
    return best, gap(float(distances[best]), distances)


def _fsq_digit(value: float, levels: int) -> tuple[int, float]:
    down = 0.5 if levels % 2 == 0 else 0.0
    reach = (levels - 1) * (1 + 1e-3) / 2
    bounded = math.tanh(value + math.atanh(down / reach)) * reach - down
    return round(bounded) + levels // 2, abs(abs(bounded - math.floor(bounded)) - 0.5)


def _encode_token(x: Array, codebook: Array, kind: int, group: int) -> Expected:
    codes: list[int] = []
    margins: list[float] = []
    if kind == 0:
        residual = x
        for words in codebook:
            best, margin = _nearest(((words - residual) ** 2).sum(axis=1))
            residual = residual - words[best]
            codes.append(best)
            margins.append(margin)
    elif kind == 1:
        for d, value in enumerate(x):
            best, margin = _nearest(np.abs(codebook[0, :, d] - value))
            codes.append(best)
            margins.append(margin)
    elif kind == 2:
        step, code = 1, 0
        for value, levels in zip(x, codebook[0, 0], strict=True):
            digit, margin = _fsq_digit(float(value), int(levels))
            code += digit * step
            step *= int(levels)
            margins.append(margin)
        codes.append(code)
    else:
        for first in range(0, len(x), group):
            codes.append(sum(2**bit for bit in range(group) if x[first + bit] > 0))
    return Expected(outputs=(np.array(codes, dtype=np.int64),), margin=min(margins, default=math.inf))


def codebook_encode(x: Array, codebook: Array, *, kind: int, group: int) -> Expected:
    return stack([stack([_encode_token(token, codebook, kind, group) for token in tokens]) for tokens in x])


def _decode_token(code: Array, codebook: Array, kind: int, group: int) -> Array:
    if kind == 0:
        stages: Array = np.sum([words[number] for words, number in zip(codebook, code, strict=True)], axis=0)
        return stages
    if kind == 1:
        return np.array([codebook[0, number, d] for d, number in enumerate(code)])
    values = []
    if kind == 2:
        left = int(code[0])
        for levels in codebook[0, 0].astype(int):
            left, digit = divmod(left, levels)
            values.append((digit - levels // 2) / (levels // 2))
    else:
        for number in code:
            left = int(number)
            for _ in range(group):
                left, bit = divmod(left, 2)
                values.append(1.0 if bit else -1.0)
    return np.array(values, dtype=np.float64)


def codebook_decode(code: Array, codebook: Array, *, kind: int, group: int) -> Expected:
    return Expected(outputs=(np.array([[_decode_token(row, codebook, kind, group) for row in item] for item in code]),))


OF: Mapping[str, Reference] = {
    "TrtcTokenSelectDynamic": token_select_dynamic,
    "TrtcTokenMix": token_mix,
    "TrtcAttentionScore": attention_score,
    "TrtcCodebookEncode": codebook_encode,
    "TrtcCodebookDecode": codebook_decode,
}
COUNTED: Mapping[str, Counted] = {
    # 6 tokens in and out, a score for each of 10, for each of 6 slots an 8-byte position and a validity, an 8-byte
    # count, a 4-byte largest; two operations for each score's part of the running sum
    "TrtcTokenSelectDynamic": Counted(
        sizes={"B": 2, "N": 10, "C": 3, "mode": 1, "max_kept": 6},
        bytes_moved=2 * (6 * 3 * 2 + 6 * 3 * 2 + 10 * 2 + 6 * 8 + 6 * 2 + 8) + 4,
        flops=2 * 2 * 10,
    ),
    # 10 tokens in, 4 out, a matrix of 4 by 10 for each item
    "TrtcTokenMix": Counted(
        sizes={"B": 2, "M": 4, "N": 10, "C": 3, "normalize": 0},
        bytes_moved=2 * (10 * 3 * 2 + 4 * 3 * 2 + 4 * 10 * 2),
        flops=2 * (2 * 4 * 10 * 3),
    ),
    # 4 heads of 3 rows against 2 KV heads of 10 keys, an 8-byte position for each row, a 4-byte score for the 8 keys
    # from 1 to 8 in each of 2 groups
    "TrtcAttentionScore": Counted(
        sizes={"B": 2, "H": 4, "G": 2, "R": 3, "N": 10, "D": 5, "softmax": 1, "start": 1, "stop": -1, "rows": 1}
        | {"heads": 1},
        bytes_moved=2 * (4 * 3 * 5 * 2 + 2 * 10 * 5 * 2 + 2 * 8 * 4) + 3 * 8,
        flops=2 * (2 * 4 * 3 * 10 * 5),
    ),
    # 10 tokens of 4 in, 3 stages of 7 codes, 3 numbers of 8 bytes for each token
    "TrtcCodebookEncode": Counted(
        sizes={"B": 2, "N": 10, "D": 4, "S": 3, "K": 7, "kind": 0, "group": 1},
        bytes_moved=2 * 10 * 4 * 2 + 3 * 7 * 4 * 2 + 2 * 10 * 3 * 8,
        flops=2 * (2 * 10 * 3 * 7 * 4),
    ),
    # the same the other way; two sums of 4 for each token
    "TrtcCodebookDecode": Counted(
        sizes={"B": 2, "N": 10, "D": 4, "S": 3, "K": 7, "kind": 0, "group": 1},
        bytes_moved=2 * 10 * 4 * 2 + 3 * 7 * 4 * 2 + 2 * 10 * 3 * 8,
        flops=2 * 10 * 2 * 4,
    ),
}
