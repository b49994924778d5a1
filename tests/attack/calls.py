"""Operator calls made from a seed: lawful ones with hostile values, and ones that are broken in one place or more.

Needs numpy alone, so that a process under a sanitizer starts quickly. A call is made in two steps, since a session of
ONNX Runtime is made for its attributes and types: `attributes_of`, then `inputs_of` as often as wanted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Random = np.random.Generator
Attributes = dict[str, Any]
FLOATS = ("float32", "float32", "float32", "float16", "bfloat16")
LARGEST = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}
EXTREMES = (-(2**63), -(2**62), -(2**31) - 1, -1, 0, 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of one operator. bfloat16 tensors are held as float32 arrays of numbers that bfloat16 has."""

    name: str
    attributes: Attributes
    inputs: tuple[Array, ...]
    dtypes: tuple[str, ...]

    @property
    def op_type(self) -> str:
        return f"Trtc{self.name}"


def one(random: Random, choices: Sequence[Any]) -> Any:
    return choices[int(random.integers(len(choices)))]


def whole(random: Random, low: int, high: int) -> int:
    """A whole number in low..high, the ends more often than the others."""
    if random.random() < 0.25:
        return int(one(random, (low, high)))
    return int(random.integers(low, high + 1))


def in_type(values: Array, dtype: str) -> Array:
    """The nearest numbers of a type."""
    with np.errstate(over="ignore", under="ignore"):
        values = values.astype(np.float32)
        if dtype == "float16":
            return values.astype(np.float16)
        if dtype == "bfloat16":
            bits = values.view(np.uint32).astype(np.uint64)
            near = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
            return np.where(np.isnan(values), values, near)
    return values


def floats(random: Random, shape: Sequence[int], dtype: str, kind: str = "") -> Array:
    """Finite numbers: normal, on a grid with ties and both zeros, all equal, subnormal, or large."""
    kind = kind or one(random, ("normal", "normal", "normal", "grid", "equal", "tiny", "large", "spread"))
    values = random.standard_normal(shape)
    if kind == "grid":
        values = random.integers(-3, 4, shape) * np.where(random.random(shape) < 0.5, 1.0, -1.0)
    elif kind == "equal":
        values = np.full(shape, float(random.integers(-4, 5)) / 2)
    elif kind == "tiny":
        values = values * (1e-39 if dtype != "float16" else 3e-7)
    elif kind == "large":
        values = np.clip(values, -2, 2) * (1e3 if dtype == "float16" else 1e12)
    elif kind == "spread":
        values = values * 10.0 ** random.uniform(-3, 3, shape)
    return in_type(values, dtype)


def broken(random: Random, values: Array, share: float) -> Array:
    """Some of the values are no numbers."""
    found = values.copy()
    spots = random.random(values.shape) < share
    found[spots] = random.choice([np.nan, np.inf, -np.inf], int(spots.sum()))
    return found


def a_type(random: Random) -> str:
    return str(one(random, FLOATS))


def batch_of(random: Random) -> int:
    return int(one(random, (0, 1, 1, 2, 2, 3)))


def forced_of(random: Random, most: int) -> list[int]:
    if random.random() < 0.5:
        return [-1]
    return sorted({int(random.integers(0, 14)) for _ in range(whole(random, 1, max(most, 1)))})


# ---- attributes -----------------------------------------------------------------------------------------------------


def _merge(random: Random) -> Attributes:
    return {"num_merged": whole(random, 0, 9), "num_protected": whole(random, 0, 5), "order": whole(random, 0, 1)}


def _select(random: Random) -> Attributes:
    forced = forced_of(random, 4)
    least = len([position for position in forced if position >= 0])
    kept = whole(random, least, least + 12)
    return {"num_kept": kept, "forced": forced, "order": whole(random, 0, 1), "remainder": whole(random, 0, 1)}


def _dynamic(random: Random) -> Attributes:
    forced, mode = forced_of(random, 4), whole(random, 0, 1)
    most = whole(random, max(len([position for position in forced if position >= 0]), 1), 16)
    thresholds = (0.0, 0.25, 0.5, 0.75, 0.9) if mode else (0.0, -1.0, 0.5, 1.0, 1e30, -1e30)
    return {
        **{"mode": mode, "threshold": one(random, thresholds), "min_kept": whole(random, 0, most), "max_kept": most},
        **{"forced": forced, "trim": whole(random, 0, 1)},
    }


def _score(random: Random) -> Attributes:
    softmax = whole(random, 0, 2)
    rows = whole(random, 0, 3)
    return {
        **{"scale": one(random, (1.0, 0.5, 0.35355338, -0.25, 0.0)), "softmax": softmax, "rows": rows},
        "causal": whole(random, 0, 1) if softmax else 0,
        **{"start": whole(random, 0, 6), "stop": whole(random, -6, 0)},
        **{"heads": whole(random, 0, 6), "normalize": whole(random, 0, 2) if rows == 1 else 0},
        **{"pool": whole(random, 0, 1), "head_kernel": [one(random, (1, 1, 3, 5))]},
        **{"kernel": [one(random, (1, 1, 3, 7, 33))], "counted": one(random, (0, 0, 1))},
    }


def _codebook(random: Random) -> Attributes:
    kind = whole(random, 0, 3)
    return {"kind": kind, "group": one(random, (1, 2, 5, 8, 30)) if kind == 3 else 1}


def _format(random: Random, prefix: str = "") -> Attributes:
    return {
        f"{prefix}bits": one(random, (8, 4, 2)),
        f"{prefix}axis": whole(random, 0, 1),
        f"{prefix}group": one(random, (0, 1, 2, 4, 8)),
    }


def _append(random: Random) -> Attributes:
    layout = whole(random, 0, 1)
    return {"layout": layout, "sinks": whole(random, 0, 5) if layout else 0}


def _attending(random: Random) -> Attributes:
    layout = whole(random, 0, 1)
    return {
        **{"scale": one(random, (0.0, 0.5)), "causal": whole(random, 0, 1), "window": one(random, (0, 0, 1, 3, 1000))},
        **{"softcap": one(random, (0.0, 0.0, 1.0, 30.0)), "layout": layout},
        "sinks": one(random, (0, 0, 1, 3)) if layout else one(random, (0, 0, 2, 2**31 - 1)),
        "indexed": one(random, (0, 0, 1)),
    }


def _sides(random: Random) -> Attributes:
    """Products of low rank, and channels of keys that are turned."""
    return {
        **{f"{which}_rank": one(random, (0, 0, 1, 2, 5)) for which in "kv"},
        **{"block": one(random, (0, 0, 1, 2, 4)), "turned": one(random, (0, 0, 2, 4))},
    }


ATTRIBUTES: Mapping[str, Callable[[Random], Attributes]] = {
    "TokenMerge": _merge,
    "TokenSelect": _select,
    "TokenSelectDynamic": _dynamic,
    "TokenRestore": lambda random: {"mode": whole(random, 0, 1)},
    "TokenMix": lambda random: {"normalize": whole(random, 0, 1)},
    "AttentionScore": _score,
    "CodebookEncode": _codebook,
    "CodebookDecode": _codebook,
    "KVQuantize": lambda random: {**_format(random), "scale_type": one(random, (1, 10))},
    "KVDequantize": lambda random: {**_format(random), "to": one(random, (1, 10, 16))},
    "KVAppend": _append,
    "KVCompact": lambda random: {},
    "KVAttention": lambda random: {
        **_format(random, "k_"),
        **_format(random, "v_"),
        **_attending(random),
        **_sides(random),
    },
    "KVAttentionPlain": lambda random: _attending(random),
}
NAMES = tuple(ATTRIBUTES)

# ---- types: those of the inputs, of each attribute set one choice ----------------------------------------------------


def types_of(random: Random, name: str) -> tuple[str, ...]:
    """Types of the inputs."""
    first, second = a_type(random), a_type(random)
    scale = one(random, ("float32", "float16"))
    k_scale, v_scale = one(random, ("float32", "float16")), one(random, ("float32", "float16"))
    cache, rows = one(random, (first, "uint8")), a_type(random)
    return {
        "TokenMerge": (first, second, "float32"),
        "TokenSelect": (first, second),
        "TokenSelectDynamic": (first, second),
        "TokenRestore": (first, "int64"),
        "TokenMix": (first, second),
        "AttentionScore": (first, a_type(random), "int64", second, "int64"),
        "CodebookEncode": (first, second),
        "CodebookDecode": ("int64", first),
        "KVQuantize": (first,),
        "KVDequantize": ("uint8", scale, scale),
        "KVAppend": (cache, cache, "int64"),
        "KVCompact": (cache, "int64"),
        "KVAttention": (
            *(first, "uint8", k_scale, k_scale, "uint8", v_scale, v_scale, "int64", second, "int64"),
            *(scale, scale, scale, scale, "float32"),
        ),
        "KVAttentionPlain": (first, rows, rows, "int64", second, "int64"),
    }[name]


# ---- inputs within the contract -------------------------------------------------------------------------------------


def _rows(random: Random, shape: Sequence[int], dtype: str) -> Array:
    if dtype == "uint8":
        return random.integers(0, 256, shape, dtype=np.uint8)
    return floats(random, shape, dtype)


def _merge_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    least = a["num_protected"] + max(2 * a["num_merged"], 2)
    b, n, c, d = batch_of(random), whole(random, least, least + 14), whole(random, 0, 9), whole(random, 1, 9)
    metric = in_type(random.standard_normal((b, n, d)), types[1])
    kind = one(random, ("normal", "normal", "directions", "zeros", "broken", "all broken", "tiny", "huge"))
    if kind == "directions":  # similarities are exactly 0, 1 or -1
        metric = np.eye(d, dtype=np.float32)[random.integers(0, d, (b, n))]
        metric = in_type(metric * 2.0 ** random.integers(-3, 4, (b, n, 1)) * one(random, (1.0, -1.0)), types[1])
    elif kind == "zeros":
        metric[random.random((b, n)) < 0.4] = -0.0
    elif kind in ("broken", "all broken"):
        metric = broken(random, metric, 0.1 if kind == "broken" else 1.0)
    elif kind in ("tiny", "huge") and types[1] != "float16":  # beyond the lengths that count
        metric[random.random((b, n)) < 0.4] *= np.float32(1e-25 if kind == "tiny" else 1e25)
        metric = in_type(metric, types[1])
    x = floats(random, (b, n, c), types[0], one(random, ("normal", "grid", "equal", "large")))
    size = random.integers(1, 6, (b, n, 1)) * one(random, (1.0, 0.25, 1e3))
    return x, metric, size.astype(np.float32)


def _scores(random: Random, shape: Sequence[int], dtype: str, finite: bool) -> Array:
    kind = one(random, ("", "", "ties", "broken", "all broken"))
    if kind == "ties":
        return in_type(random.integers(-1, 3, shape) / 2, dtype)
    score = floats(random, shape, dtype)
    if kind and not finite:
        return broken(random, score, 0.3 if kind == "broken" else 1.0)
    return score


def _tokens_at_least(random: Random, a: Attributes, kept: int) -> int:
    least = max(kept, max(a["forced"]) + 1, 1)
    return whole(random, least, least + 20)


def _select_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    fuse = a["remainder"] == 1
    b, n, c = batch_of(random), _tokens_at_least(random, a, a["num_kept"] + a["remainder"]), whole(random, 0, 9)
    kinds = ("normal", "grid", "equal")
    x = floats(random, (b, n, c), types[0], one(random, kinds) if fuse else "")
    score = floats(random, (b, n), types[1], one(random, kinds)) if fuse else _scores(random, (b, n), types[1], False)
    return x, score


def _dynamic_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    b, n, c = batch_of(random), _tokens_at_least(random, a, a["max_kept"]), whole(random, 0, 9)
    score = _scores(random, (b, n), types[1], False)
    return floats(random, (b, n, c), types[0]), np.abs(score) if random.random() < 0.5 else score


def _restore_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    b, m, c = batch_of(random), whole(random, 1, 20), whole(random, 0, 9)
    n = m if a["mode"] else whole(random, 0, 30)
    index = random.integers(0, m, (b, n))
    if a["mode"]:
        index = np.argsort(random.random((b, n)), axis=1)
    return floats(random, (b, m, c), types[0]), index.astype(np.int64)


def _mix_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    b, n, m, c = batch_of(random), whole(random, 1, 24), whole(random, 0, 20), whole(random, 0, 20)
    x = floats(random, (b, n, c), types[0], one(random, ("normal", "grid", "equal")))
    weight = floats(random, (one(random, (1, b)), m, n), types[1], one(random, ("normal", "grid", "equal")))
    return x, weight


def _score_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    b, g, r, d = batch_of(random), whole(random, 1, 3), whole(random, 1, 5), whole(random, 1, 9)
    h = g * whole(random, 1, 3)
    least = a["start"] + 1 - a["stop"]
    n = whole(random, least, least + 18)
    kinds = ("normal", "normal", "grid", "equal")
    q, k = floats(random, (b, h, r, d), types[0], one(random, kinds)), floats(random, (b, g, n, d), types[1])
    k = np.clip(k, -4, 4)
    places = one(random, ((r,), (r,), (1, r), (b, r)))
    position = random.integers(-1, n + 1, places)
    if random.random() < 0.2:
        position = random.choice(np.array(EXTREMES), places)
    lengths = one(random, ((1,), (b,)))
    length = np.where(
        random.random(lengths) < 0.2, random.choice(np.array(EXTREMES), lengths), random.integers(0, n + 2, lengths)
    )
    length = length.astype(np.int64)
    shape = [one(random, (1, size)) for size in (b, h, r, n)]
    return q, k, position.astype(np.int64), floats(random, shape, types[3], one(random, kinds)), length


def _levels(random: Random, d: int) -> Array:
    levels = []
    for _ in range(d):
        left = 2**24 // math.prod(levels) // 2 ** (d - len(levels) - 1)
        levels.append(int(min(one(random, (2, 3, 4, 5, 7, 8, 16, 256)), left)))
    return np.array(levels, dtype=np.float32).reshape(1, 1, d)


def _book(random: Random, a: Attributes, dtype: str) -> Array:
    kind = a["kind"]
    if kind == 3:
        return np.ones(
            (1, 1, a["group"] * whole(random, 0 if a["group"] == 1 else 1, 3)), in_type(np.ones(1), dtype).dtype
        )
    if kind == 2:
        return in_type(_levels(random, whole(random, 1, 8)), dtype)
    s, k, d = whole(random, 1, 3) if kind == 0 else 1, whole(random, 1, 20), whole(random, 1, 9)
    return floats(random, (s, k, d), dtype, one(random, ("normal", "grid", "equal", "large")))


def _encode_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    book = _book(random, a, types[1])
    kinds = ("normal", "grid", "equal") if a["kind"] < 3 else ("normal", "grid", "equal", "tiny", "large")
    return floats(random, (batch_of(random), whole(random, 0, 12), book.shape[2]), types[0], one(random, kinds)), book


def _decode_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    book, kind = _book(random, a, types[1]), a["kind"]
    s, k, d = book.shape
    most = int(np.prod(book.astype(np.float64))) if kind == 2 else 2 ** a["group"] if kind == 3 else k
    width = (s, d, 1, d // a["group"])[kind]
    return random.integers(0, most, (batch_of(random), whole(random, 0, 12), width)), book


def _cache_sizes(random: Random, a: Attributes, prefix: str = "") -> tuple[int, int]:
    """L and D that groups and packing allow."""
    parts, group = 8 // a[f"{prefix}bits"], a[f"{prefix}group"] or 1
    length, width = whole(random, 1, 12), parts * whole(random, 1, 5)
    if a[f"{prefix}axis"] == 0:
        return group * whole(random, 1, max(12 // group, 1)), width
    return length, math.lcm(parts, group) * whole(random, 1, 3)


def _quantize_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    length, width = _cache_sizes(random, a)
    x = floats(random, (batch_of(random), whole(random, 1, 3), length, width), types[0])
    return (np.clip(x, -59904, 59904).astype(x.dtype) if a["scale_type"] == 10 else x,)  # a number of all three types


def _packed(
    random: Random, a: Attributes, prefix: str, sizes: tuple[int, int, int, int], dtype: str
) -> tuple[Array, Array, Array]:
    b, g, length, width = sizes
    group, axis = a[f"{prefix}group"], a[f"{prefix}axis"]
    shape = (
        (b, g, length // group if group else 1, width) if axis == 0 else (b, g, length, width // group if group else 1)
    )
    code = random.integers(0, 256, (b, g, length, width * a[f"{prefix}bits"] // 8), dtype=np.uint8)
    if random.random() < 0.3:  # scales that items, or KV heads, share
        shape = (one(random, (1, b)), 1, *shape[2:])
    levels = 2 ** a[f"{prefix}bits"] - 1
    scale = in_type((random.random(shape) + 0.5) * 4 / levels, dtype)
    return code, scale, in_type(random.standard_normal(shape) - 2, dtype)


def _dequantize_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    length, width = _cache_sizes(random, a)
    code, scale, minimum = _packed(random, a, "", (batch_of(random), whole(random, 1, 3), length, width), types[1])
    if random.random() < 0.3:
        scale = floats(random, scale.shape, types[1], one(random, ("grid", "tiny", "spread")))
    return code, scale, minimum


def _append_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    b, g, w = batch_of(random), whole(random, 1, 3), whole(random, 0, 9)
    length = a["sinks"] + whole(random, 1, 12)
    t = whole(random, 0, length - a["sinks"])
    most = 2**62 if a["layout"] and random.random() < 0.2 else 40 if a["layout"] else length - t
    position = random.integers(0, most + 1, one(random, ((b,), (b, 1), (b, g)))).astype(np.int64)
    return _rows(random, (b, g, length, w), types[0]), _rows(random, (b, g, t, w), types[0]), position


def _compact_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    b, g, length, w = batch_of(random), whole(random, 1, 3), whole(random, 1, 14), whole(random, 0, 9)
    kept = whole(random, 0, length)
    order = np.argsort(random.random((b, g, length)), axis=2)[:, :, :kept]
    return _rows(random, (b, g, length, w), types[0]), np.sort(order, axis=2).astype(np.int64)


def _attend_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    groups = [a[f"{which}_group"] or 1 for which in "kv"]
    by_token = [a[f"{which}_axis"] == 1 for which in "kv"]
    parts = [8 // a[f"{which}_bits"] for which in "kv"]
    width = math.lcm(*parts, *(group for group, wide in zip(groups, by_token, strict=True) if wide))
    length = math.lcm(*(group for group, wide in zip(groups, by_token, strict=True) if not wide))
    length = math.lcm(length, a["block"] or 1)
    width, length = width * whole(random, 1, 2), length * whole(random, 1, max(12 // length, 1))
    width *= -(-a["turned"] // width) or 1
    length *= a["sinks"] // length + 1 if a["layout"] else 1
    b, g = batch_of(random), whole(random, 1, 2)
    k = _packed(random, a, "k_", (b, g, length, width), types[2])
    v = _packed(random, a, "v_", (b, g, length, width), types[5])
    q, *others = _attending_inputs(random, a, types[0], types[8], (b, g, length, width))
    return q, *k, *v, *others, *_side_inputs(random, a, types[10], (b, g, length, width))


def _side_inputs(random: Random, a: Attributes, dtype: str, sizes: tuple[int, int, int, int]) -> list[Array]:
    """Factors, and a table that turns keys, or zeros that nobody looks at."""
    b, g, length, width = sizes
    blocks = length // a["block"] if a["block"] else 1
    found = []
    for which in "kv":
        rank = a[f"{which}_rank"]
        shapes = ((b, g, length, rank), (b, g, blocks, rank * width)) if rank else ((1, 1, 1, 1),) * 2
        found += [floats(random, shape, dtype, "normal") for shape in shapes]
    half = a["turned"] // 2
    angle = random.random((one(random, (1, b)), one(random, (1, g)), length, half)) * 20
    table = np.concatenate([np.cos(angle), np.sin(angle)], axis=3) if half else np.zeros((1, 1, 1, 1))
    return [*found, table.astype(np.float32)]


def _attend_plain_inputs(random: Random, a: Attributes, types: Sequence[str]) -> tuple[Array, ...]:
    b, g, width = batch_of(random), whole(random, 1, 2), whole(random, 1, 20)
    length = whole(random, 1, 12) + (a["sinks"] if a["layout"] else 0)
    kinds = ("normal", "grid", "equal")
    k, v = (floats(random, (b, g, length, width), types[1], one(random, kinds)) for _ in range(2))
    q, *others = _attending_inputs(random, a, types[0], types[4], (b, g, length, width))
    return q, k, v, *others


def _attending_inputs(
    random: Random, a: Attributes, q_type: str, bias_type: str, sizes: tuple[int, int, int, int]
) -> tuple[Array, Array, Array, Array]:
    """Queries, lengths, biases and an index for a cache of these sizes."""
    b, g, length, width = sizes
    t = one(random, (1, 1, 2, 3, 11))
    h = g * whole(random, 1, 3)
    q = floats(random, (b, h, t, width), q_type, one(random, ("normal", "grid", "equal")))
    most = length * (3 if a["layout"] else 1) + 2
    lengths = one(random, ((b,), (b,), (b, 1), (b, g)))
    used = np.where(
        random.random(lengths) < 0.15,
        random.choice(np.array(EXTREMES), lengths),
        random.integers(0, most + 1, lengths),
    )
    shape = (one(random, (1, b)), one(random, (1, g, h)), one(random, (1, t)), one(random, (1, length)))
    bias = floats(random, shape, bias_type, one(random, ("normal", "grid", "equal")))
    if random.random() < 0.3:
        bias[random.random(shape) < 0.4] = -np.inf
    return q, used.astype(np.int64), bias, _index(random, a, (one(random, (1, b)), one(random, (1, g)), length))


def _index(random: Random, a: Attributes, sizes: tuple[int, int, int]) -> Array:
    """Slots in any order, none twice, and entries that are none."""
    if not a["indexed"]:
        return np.full((1, 1, 1), -1)
    kept = whole(random, 1, sizes[2])
    index = np.argsort(random.random(sizes), axis=2)[..., :kept]
    spots = random.random(index.shape) < one(random, (0.0, 0.3, 1.0))
    return np.where(spots, random.choice(np.array([-1, *EXTREMES[:2], sizes[2]]), index.shape), index).astype(np.int64)


INPUTS: Mapping[str, Callable[[Random, Attributes, Sequence[str]], tuple[Array, ...]]] = {
    "TokenMerge": _merge_inputs,
    "TokenSelect": _select_inputs,
    "TokenSelectDynamic": _dynamic_inputs,
    "TokenRestore": _restore_inputs,
    "TokenMix": _mix_inputs,
    "AttentionScore": _score_inputs,
    "CodebookEncode": _encode_inputs,
    "CodebookDecode": _decode_inputs,
    "KVQuantize": _quantize_inputs,
    "KVDequantize": _dequantize_inputs,
    "KVAppend": _append_inputs,
    "KVCompact": _compact_inputs,
    "KVAttention": _attend_inputs,
    "KVAttentionPlain": _attend_plain_inputs,
}


def lawful_call(random: Random, name: str, attributes: Attributes, types: Sequence[str]) -> Call:
    """A call that the contract allows."""
    inputs = INPUTS[name](random, attributes, types)
    return Call(name=name, attributes=attributes, inputs=inputs, dtypes=tuple(types))


# ---- calls that break something -------------------------------------------------------------------------------------


def broken_attributes(random: Random, attributes: Attributes) -> Attributes:
    """One attribute has a value that nobody meant."""
    if not attributes:
        return attributes
    name = one(random, list(attributes))
    value = attributes[name]
    if isinstance(value, list):
        value = [int(one(random, EXTREMES)) for _ in range(whole(random, 1, 3))]
    elif isinstance(value, float):
        value = one(random, (math.nan, math.inf, -math.inf, 1e38, -1.0, 1.0))
    else:
        value = int(one(random, (*EXTREMES, 2, 3, 17)))
    return {**attributes, name: value}


def broken_call(random: Random, call: Call) -> Call:
    """Values that are no numbers or no indices, or shapes that do not fit."""
    inputs = list(call.inputs)
    for _ in range(whole(random, 1, 2)):
        spot = int(random.integers(len(inputs)))
        array = inputs[spot]
        kind = one(random, ("values", "values", "values", "shape", "rank", "vast"))
        if kind == "values" and array.dtype.kind == "f":
            inputs[spot] = broken(random, array, one(random, (0.1, 0.5, 1.0)))
        elif kind == "values" and array.dtype == np.int64:
            spots = random.random(array.shape) < one(random, (0.1, 1.0))
            inputs[spot] = np.where(spots, random.choice(np.array(EXTREMES), array.shape), array)
        elif kind == "shape" and array.ndim:
            shape = list(array.shape)
            axis = int(random.integers(array.ndim))
            shape[axis] = max(shape[axis] + int(one(random, (-1, 1, -shape[axis], 3))), 0)
            if array.size:
                inputs[spot] = np.resize(array, shape)
            elif math.prod(shape) < 2**20:  # it may have been vast
                inputs[spot] = np.zeros(shape, array.dtype)
        elif kind == "vast" and array.ndim > 1:  # nothing, of sizes whose products no number holds
            shape = [int(one(random, (0, 1, 3, 2**20, 2**31, 2**40))) for _ in array.shape]
            shape[0] = 0
            if math.prod(size for size in shape if size) < 2**59:
                inputs[spot] = np.zeros(shape, array.dtype)
        elif kind == "rank":
            inputs[spot] = array.reshape(-1) if random.random() < 0.5 else array[None]
    return replace(call, inputs=tuple(np.ascontiguousarray(array) for array in inputs))
