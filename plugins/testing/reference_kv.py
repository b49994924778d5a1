"""The operators of packed key-value caches once more, in plain loops.

Where the contract fixes every rounding, so does the reference: numpy scalars of float32 and float16, step by step.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from trt_compress.plugins.testing.reference_base import Array, Counted, Expected, Reference

Index = tuple[slice | int, ...]


def _groups(shape: tuple[int, ...], axis: int, group: int) -> Iterator[tuple[Index, Index]]:
    """Where the elements of each group are, and where its scale is."""
    b, g, length, d = shape
    size = group or (length if axis == 0 else d) or 1
    for i, j in itertools.product(range(b), range(g)):
        if axis == 0:
            for start, channel in itertools.product(range(0, length, size), range(d)):
                yield (i, j, slice(start, start + size), channel), (i, j, start // size, channel)
        else:
            for token, start in itertools.product(range(length), range(0, d, size)):
                yield (i, j, token, slice(start, start + size)), (i, j, token, start // size)


def _scale_shape(shape: tuple[int, ...], axis: int, group: int) -> tuple[int, ...]:
    b, g, length, d = shape
    return (b, g, length // (group or length), d) if axis == 0 else (b, g, length, d // (group or d))


def _spread(scale: Array, shape: tuple[int, ...], axis: int, group: int) -> Array:
    """Scales that items or heads share, written out for each."""
    return np.broadcast_to(scale, _scale_shape(shape, axis, group) if np.prod(shape) else scale.shape)


def _half(value: Array, half: bool) -> Array:
    """float32 `value` through float16, unless that overflows."""
    if not half:
        return value
    with np.errstate(over="ignore"):
        short = value.astype(np.float16).astype(np.float32)
    return np.where(np.isinf(short), value, short)


def _bfloat16(value: Array) -> Array:
    """float32 to the nearest number of 8 significant bits, half to even."""
    bits = value.astype(np.float32).view(np.uint32).astype(np.uint64)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return kept.astype(np.uint32).view(np.float32)


def kv_quantize(x: Array, *, bits: int, axis: int, group: int, scale_type: int) -> Expected:
    half = x.dtype == np.float16 and scale_type == 10
    stored = np.float16 if scale_type == 10 else np.float32
    levels = np.float32(2**bits - 1)
    code = np.zeros(x.shape, dtype=np.uint8)
    scale = np.zeros(_scale_shape(x.shape, axis, group), dtype=stored)
    minimum = np.zeros_like(scale)
    for elements, place in _groups(x.shape, axis, group):
        values = x[elements].astype(np.float32)
        low = values.min().astype(stored)
        span = _half(values.max() - values.min(), half)
        step = np.asarray(_half(span / levels, half)).astype(stored)
        minimum[place], scale[place] = low, step
        if step == 0:
            continue
        above = _half(values - low.astype(np.float32), half)
        level = _half(above / step.astype(np.float32), half)
        for number, value in np.ndenumerate(level):
            whole = math.floor(value)
            rest = float(value) - whole
            whole += rest > 0.5 or (rest == 0.5 and whole % 2 == 1)
            code[elements][number] = min(max(whole, 0), 2**bits - 1)
    parts = 8 // bits
    width = x.shape[3] // parts
    packed = np.zeros((*x.shape[:3], width), dtype=np.uint8)
    for part in range(parts):
        packed += code[..., part * width : (part + 1) * width] * np.uint8(2 ** (bits * part))
    return Expected(outputs=(packed, scale, minimum))


def _codes(packed: Array, bits: int) -> Array:
    parts = [packed.astype(np.int64) // 2 ** (bits * part) % 2**bits for part in range(8 // bits)]
    return np.concatenate(parts, axis=3)


def kv_dequantize(
    code: Array, scale: Array, minimum: Array, *, bits: int, axis: int, group: int, to: int
) -> Expected:  # fmt: skip
    codes = _codes(code, bits).astype(np.float32)
    half = scale.dtype == np.float16 and to == 10
    scale, minimum = (_spread(one, codes.shape, axis, group) for one in (scale, minimum))
    x = np.zeros(codes.shape, dtype=np.float32)
    for elements, place in _groups(codes.shape, axis, group):
        product = _half(codes[elements] * scale[place].astype(np.float32), half)
        x[elements] = product + minimum[place].astype(np.float32)
    return Expected(outputs=(_bfloat16(x) if to == 16 else x.astype(np.float16 if to == 10 else np.float32),))


def kv_append(cache: Array, rows: Array, position: Array, *, layout: int, sinks: int) -> Expected:
    cache_out = cache.copy()
    for b, g, t in np.ndindex(rows.shape[:3]):
        slot = int(position[b] if position.ndim == 1 else position[b, g if position.shape[1] > 1 else 0]) + t
        if layout == 1 and slot >= cache.shape[2]:  # as often around as it takes
            period = cache.shape[2] - sinks
            slot -= (slot - cache.shape[2] + period) // period * period
        cache_out[b, g, slot] = rows[b, g, t]
    return Expected(outputs=(cache_out,))


def kv_compact(cache: Array, index: Array) -> Expected:
    cache_out = cache.copy()
    for b, g, k in np.ndindex(index.shape):
        cache_out[b, g, k] = cache[b, g, index[b, g, k]]
    return Expected(outputs=(cache_out,))


def _values(code: Array, scale: Array, minimum: Array, bits: int, axis: int, group: int) -> Array:
    codes = _codes(code, bits)
    scale, minimum = (_spread(one, codes.shape, axis, group) for one in (scale, minimum))
    values = np.zeros(codes.shape)
    for elements, place in _groups(codes.shape, axis, group):
        values[elements] = codes[elements] * scale[place] + minimum[place]
    return values


def _add_products(rows: Array, factor: Array, basis: Array, rank: int, block: int) -> None:
    """Adds to each row the rows of its block's basis times its factors."""
    d = rows.shape[3]
    for b, g, slot in np.ndindex(rows.shape[:3]):
        place = slot // block if block else 0
        for r in range(rank):
            rows[b, g, slot] += factor[b, g, slot, r] * basis[b, g, place, r * d : (r + 1) * d]


def _turned(rows: Array, rope: Array, turned: int) -> Array:
    """Pairs of channels as complex numbers, each times one on the unit circle."""
    half = turned // 2
    found = rows.copy()
    for b, g, slot in np.ndindex(rows.shape[:3] if turned else (0,) * 3):
        table = rope[b if rope.shape[0] > 1 else 0, g if rope.shape[1] > 1 else 0, slot]
        pairs = (rows[b, g, slot, :half] + 1j * rows[b, g, slot, half:turned]) * (table[:half] + 1j * table[half:])
        found[b, g, slot, :turned] = [*pairs.real, *pairs.imag]
    return found


def _numbers(length: int, slots: int, layout: int, sinks: int) -> list[int]:
    """The number of the token in each slot, -1 where there is none: they are written one after another."""
    found = [-1] * slots
    first = range(min(max(length, 0), slots))
    for number in first:
        found[number] = number
    if layout == 1:
        period = slots - sinks
        for number in range(max(slots, length - 2 * slots), max(length, 0)):
            found[sinks + (number - sinks) % period] = number
    return found


def _attend(
    q: Array, k: Array, v: Array, length: Array, bias: Array, index: Array, *, scale: float, causal: int, window: int,
    softcap: float, layout: int, sinks: int, indexed: int,
) -> Expected:  # fmt: skip
    batch, heads, queries, d = q.shape
    kv_heads, slots = k.shape[1:3]
    y, lse = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    for b, h, t in np.ndindex(batch, heads, queries):
        kv_head = h // (heads // kv_heads)
        given = int(length[b] if length.ndim == 1 else length[b, kv_head if length.shape[1] > 1 else 0])
        used = max(given, 0) if layout else min(max(given, 0), slots)
        named = index[b if index.shape[0] > 1 else 0, kv_head if index.shape[1] > 1 else 0]
        own = used - queries + t
        seen = [
            slot
            for slot, number in enumerate(_numbers(used, slots, layout, sinks))
            if (not indexed or slot in named)
            and number >= 0
            and (not causal or number <= own)
            and (not window or number < sinks or number > own - window)
        ]
        if not seen:
            continue
        bias_head = {1: 0, kv_heads: kv_head, heads: h}[bias.shape[1]] if bias.shape[1] > 1 else 0
        added = np.broadcast_to(bias[b if bias.shape[0] > 1 else 0, bias_head, t if bias.shape[2] > 1 else 0], (slots,))
        products = k[b, kv_head, seen] @ q[b, h, t] * (scale or 1 / math.sqrt(d))
        logits = (softcap * np.tanh(products / softcap) if softcap else products) + added[seen]
        if not np.isfinite(logits).any():
            continue
        highest = logits.max()
        weights = np.exp(logits - highest)
        y[b, h, t] = weights @ v[b, kv_head, seen] / weights.sum()
        lse[b, h, t] = highest + math.log(weights.sum())
    return Expected(outputs=(y, lse))


def kv_attention(
    q: Array, k_code: Array, k_scale: Array, k_minimum: Array, v_code: Array, v_scale: Array, v_minimum: Array,
    length: Array, bias: Array, index: Array, k_factor: Array, k_basis: Array, v_factor: Array, v_basis: Array,
    rope: Array, *, k_bits: int, k_axis: int, k_group: int, v_bits: int, v_axis: int, v_group: int, k_rank: int,
    v_rank: int, block: int, turned: int, **attending: Any,
) -> Expected:  # fmt: skip
    k = _values(k_code, k_scale, k_minimum, k_bits, k_axis, k_group)
    v = _values(v_code, v_scale, v_minimum, v_bits, v_axis, v_group)
    for rows, factor, basis, rank in ((k, k_factor, k_basis, k_rank), (v, v_factor, v_basis, v_rank)):
        _add_products(rows, factor, basis, rank, block)
    k = _turned(k, rope, turned)
    return _attend(q, k, v, length, bias, index, **attending)


def kv_attention_plain(
    q: Array, k: Array, v: Array, length: Array, bias: Array, index: Array, **attending: Any
) -> Expected:
    return _attend(q, k, v, length, bias, index, **attending)


OF: Mapping[str, Reference] = {"TrtcKVAttention": kv_attention, "TrtcKVAttentionPlain": kv_attention_plain}

# Their roundings are part of the contract, so they take the inputs in the dtypes they have.
EXACT: Mapping[str, Reference] = {
    "TrtcKVQuantize": kv_quantize,
    "TrtcKVDequantize": kv_dequantize,
    "TrtcKVAppend": kv_append,
    "TrtcKVCompact": kv_compact,
}

_FORMAT = {"bits": 2, "axis": 0, "group": 5}

# B=2 items, G=3 KV heads, L=10 slots of D=8 values.
COUNTED: Mapping[str, Counted] = {
    # 8 values in; 2 bytes of codes; for every 5 slots 8 scales and 8 minima of 2 bytes
    "TrtcKVQuantize": Counted(
        sizes={"B": 2, "G": 3, "L": 10, "D": 8, **_FORMAT, "scale_type": 10},
        bytes_moved=2 * 3 * (10 * 8 * 2 + 10 * 2 + 2 * 8 * 2 * 2),
        flops=0,
    ),
    "TrtcKVDequantize": Counted(
        sizes={"B": 2, "G": 3, "L": 10, "D": 8, **_FORMAT, "to": 10},
        bytes_moved=2 * 3 * (10 * 8 * 2 + 10 * 2 + 2 * 8 * 2 * 2),
        flops=2 * 3 * 10 * 8 * 2,
    ),
    # 4 rows of W=6 values read and written, whatever the length of the cache, and one position for each item
    "TrtcKVAppend": Counted(
        sizes={"B": 2, "G": 3, "L": 10, "T": 4, "W": 6, "layout": 0, "sinks": 0},
        bytes_moved=2 * 3 * 4 * 6 * 2 * 2 + 2 * 8,
        flops=0,
    ),
    "TrtcKVCompact": Counted(
        sizes={"B": 2, "G": 3, "L": 10, "K": 4, "W": 6},
        bytes_moved=2 * 3 * 4 * (6 * 2 * 2 + 8),
        flops=0,
    ),
    # keys as above; values of 4 bits with one scale and one minimum for each slot; H=6 heads of T=2 queries in and out,
    # and 4 bytes for each of them; a length for each item; for each slot 1 factor of its key and 2 of its value, and as
    # many rows of each of 2 blocks; 4 numbers that turn keys, once for all. Products: of each query with each row of a
    # basis, and with each factor; 4 channels of each key times 2 numbers, in pairs added
    "TrtcKVAttention": Counted(
        sizes={"B": 2, "H": 6, "G": 3, "T": 2, "L": 10, "D": 8, "k_bits": 2, "k_axis": 0, "k_group": 5}
        | {"v_bits": 4, "v_axis": 1, "v_group": 0, "scale": 0.0, "causal": 0, "window": 0}
        | {"softcap": 0.0, "layout": 0, "sinks": 0, "indexed": 0, "k_rank": 1, "v_rank": 2, "block": 5, "turned": 4},
        bytes_moved=2 * 3 * (10 * 2 + 2 * 8 * 2 * 2)
        + 2 * 3 * (10 * 4 + 10 * 2 * 2)
        + 2 * 6 * 2 * (8 * 2 * 2 + 4)
        + 2 * 8
        + 2 * 3 * (10 * 3 + 2 * 3 * 8) * 2
        + 10 * 4 * 4,
        flops=2 * 6 * 2 * 10 * (8 * 2 + 8 * 2) + 2 * 6 * 2 * 3 * (2 * 8 + 10) * 2 + 2 * 3 * 10 * 4 * 3,
    ),
    # keys and values as above, with 2 bytes for each number of the keys and values
    "TrtcKVAttentionPlain": Counted(
        sizes={"B": 2, "H": 6, "G": 3, "T": 2, "L": 10, "D": 8, "scale": 0.0, "causal": 0, "window": 0}
        | {"softcap": 0.0, "layout": 0, "sinks": 0, "indexed": 0},
        bytes_moved=2 * 3 * 10 * 8 * 2 * 2 + 2 * 6 * 2 * (8 * 2 * 2 + 4) + 2 * 8,
        flops=2 * 6 * 2 * 10 * (8 * 2 + 8 * 2),
    ),
}
