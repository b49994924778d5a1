"""The contract of KVAttention: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.kv_sizes import CODES, SCALES, sizes_of
from trt_compress.plugins.spec import AttributeSpec, OperandSpec, OpSpec, Shapes

MOST_WINDOW = 2**31 - 1  # so that numbers of slots less a window do not overflow


def output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, h, t, d), *_ = inputs
    return (b, h, t, d), (b, h, t)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    """Queries in and out, what is read of the cache once with float16 scales of each KV head, 4 bytes a row."""
    b, h, t, d = (sizes[letter] for letter in "BHTD")
    cache = sum(_side_bytes(sizes, which) for which in ("k_", "v_"))
    sides = side_bytes(sizes)
    return int(b * h * t * (2 * d * itemsize + 4) + cache + sides + index_bytes(sizes) + 8 * b)


def _side_bytes(sizes: Mapping[str, Any], which: str) -> int:
    """Of all slots, or of those that are chosen: each of these may need a group of its own."""
    if not sizes["indexed"]:
        return sum(sizes_of(sizes, which, 2))
    group = sizes[f"{which}group"] if sizes[f"{which}axis"] == 1 else 1
    return sum(sizes_of({**sizes, "L": sizes["K"], f"{which}axis": 1, f"{which}group": group}, which, 2))


def side_bytes(sizes: Mapping[str, Any]) -> int:
    """Factors in float16, and the table once for all heads and items, of the slots that are read."""
    slots, per_head = read_slots(sizes), sizes["B"] * sizes["G"]
    blocks = min(sizes["L"] // (sizes["block"] or max(sizes["L"], 1)), slots)
    rank = sizes["k_rank"] + sizes["v_rank"]
    return int(2 * per_head * rank * (slots + blocks * sizes["D"]) + 4 * slots * sizes["turned"])


def read_slots(sizes: Mapping[str, Any]) -> int:
    """Slots of a KV head that are read."""
    return int(sizes["K"] if sizes["indexed"] else sizes["L"])


def index_bytes(sizes: Mapping[str, Any]) -> int:
    """An index of its own for each KV head."""
    return int(8 * sizes["B"] * sizes["G"] * sizes["K"]) if sizes["indexed"] else 0


def flops(sizes: Mapping[str, Any]) -> int:
    b, h, t, d = (sizes[letter] for letter in "BHTD")
    return int(4 * b * h * t * d * read_slots(sizes))


def _flops(sizes: Mapping[str, Any]) -> int:
    """A product with each row of the basis of a block, and one with each factor; a key turned once for all queries."""
    b, h, t = (sizes[letter] for letter in "BHT")
    slots, rank = read_slots(sizes), sizes["k_rank"] + sizes["v_rank"]
    blocks = min(sizes["L"] // (sizes["block"] or max(sizes["L"], 1)), slots)
    turns = 3 * b * sizes["G"] * slots * sizes["turned"]
    return int(flops(sizes) + 2 * b * h * t * rank * (slots + blocks * sizes["D"]) + turns)


def _cache(which: str, name: str) -> tuple[OperandSpec, ...]:
    axes = ("1 or B", "1 or G", f"L/{which}_group or 1 or L", f"D or D/{which}_group or 1")
    return (
        OperandSpec(
            name=f"{which}_code",
            axes=("B", "G", "L", f"D*{which}_bits/8"),
            dtypes=CODES,
            doc=f"{name} as KVQuantize packs them",
        ),
        OperandSpec(name=f"{which}_scale", axes=axes, dtypes=SCALES, doc=f"step of each group of {name}"),
        OperandSpec(
            name=f"{which}_minimum",
            axes=axes,
            dtypes=SCALES,
            same_dtype_as=f"{which}_scale",
            doc=f"least value of each group of {name}",
        ),
    )


def _format(which: str, name: str) -> tuple[AttributeSpec, ...]:
    axis_doc = f"groups of {name}: 0 tokens of one channel, 1 channels of one token"
    return (
        AttributeSpec(name=f"{which}_bits", kind="int", minimum=2, maximum=8, doc=f"bits of a code of {name}: 8, 4, 2"),
        AttributeSpec(name=f"{which}_axis", kind="int", minimum=0, maximum=1, doc=axis_doc),
        AttributeSpec(name=f"{which}_group", kind="int", minimum=0, doc="elements of a group; 0: the whole axis"),
    )


def _factors(which: str, name: str, leader: str | None) -> tuple[OperandSpec, ...]:
    ranks = f"{which}_rank or 1"
    return (
        OperandSpec(
            name=f"{which}_factor",
            axes=("B or 1", "G or 1", "L or 1", ranks),
            dtypes=SCALES,
            same_dtype_as=leader,
            doc=f"{which}_rank: factors of each of {name}, for the rows of its block's basis, whose weighted sum is "
            "added to it; else one number, not looked at",
        ),
        OperandSpec(
            name=f"{which}_basis",
            axes=("B or 1", "G or 1", "L/block or 1", f"{which}_rank*D or 1"),
            dtypes=SCALES,
            same_dtype_as="k_factor",
            doc=f"{which}_rank: rows of D channels of each block of {name}, one behind another",
        ),
    )


ROPE = OperandSpec(
    name="rope",
    axes=("1 or B", "1 or G", "L or 1", "turned or 1"),
    dtypes=("float32",),
    doc="turned: cosines, then as many sines, that turn channel i of a slot's key with channel i + turned / 2; else "
    "one number, not looked at",
)
SIDES = (
    AttributeSpec(
        name="k_rank",
        kind="int",
        minimum=0,
        of_input="k_factor",
        doc="rows of the basis of a block of keys; 0: nothing is added to keys",
    ),
    AttributeSpec(
        name="v_rank",
        kind="int",
        minimum=0,
        of_input="v_factor",
        doc="rows of the basis of a block of values; 0: nothing is added to values",
    ),
    AttributeSpec(name="block", kind="int", minimum=0, doc="slots that share a basis; 0: all"),
    AttributeSpec(
        name="turned",
        kind="int",
        minimum=0,
        of_input="rope",
        doc="channels of a key, the first ones, that are turned as it is read, after what is added; 0: none",
    ),
)

# What the attention operators share.
Q = OperandSpec(name="q", axes=("B", "H", "T", "D"), doc="queries, finite")
LENGTH = OperandSpec(
    name="length",
    axes=("B", "1 or G"),
    least_rank=1,
    dtypes=("int64",),
    doc="tokens written, those of the queries last; in a linear cache the slots in use, from the front; for all KV "
    "heads of an item, or for each",
)
BIAS = OperandSpec(
    name="bias",
    axes=("1 or B", "1 or G or H", "1 or T", "1 or L"),
    doc="added to the scaled products, finite or -inf; for a KV head it holds for all its query heads",
)
INDEX = OperandSpec(
    name="index",
    axes=("1 or B", "1 or G", "K"),
    dtypes=("int64",),
    doc="indexed: the slots that the queries of a KV head attend to, in any order, each once; an entry that is not a "
    "slot in use, like -1, is none. Else it is not looked at",
)
OUTPUTS = (
    OperandSpec(name="y", axes=("B", "H", "T", "D"), same_dtype_as="q", doc="weighted means of the values"),
    OperandSpec(
        name="lse",
        axes=("B", "H", "T"),
        dtypes=("float32",),
        doc="natural log of the sum of exponentials; -inf where no slot is seen, and y is 0 there",
    ),
)
ATTENDING = (
    AttributeSpec(name="scale", kind="float", minimum=0.0, doc="factor of the products; 0: 1 / sqrt(D)"),
    AttributeSpec(
        name="causal",
        kind="int",
        minimum=0,
        maximum=1,
        doc="1: query t, which has the number length - T + t, sees no larger ones",
    ),
    AttributeSpec(
        name="window",
        kind="int",
        minimum=0,
        maximum=MOST_WINDOW,
        doc="query t sees numbers above length - T + t - window, and those below sinks; 0: no limit",
    ),
    AttributeSpec(
        name="softcap",
        kind="float",
        minimum=0.0,
        doc="scaled products p become tanh(p / softcap) * softcap; 0: they stay",
    ),
    AttributeSpec(
        name="layout",
        kind="int",
        minimum=0,
        maximum=1,
        doc="0: linear, slot s holds number s; 1: ring, slot s holds the largest number below length that "
        "KVAppend puts there",
    ),
    AttributeSpec(
        name="sinks",
        kind="int",
        minimum=0,
        maximum=MOST_WINDOW,
        doc="first numbers, which a window does not hide and a ring keeps in the first slots",
    ),
    AttributeSpec(
        name="indexed",
        kind="int",
        minimum=0,
        maximum=1,
        of_input="index",
        doc="1: only slots that the index names are read, under the same rules; 0: all",
    ),
)
LIMITS = (
    "H is a multiple of G",
    "a length above L is taken as L in a linear cache, a negative one as 0",
    "ring: sinks < L",
    "a slot that the index names twice counts twice",
)
AS_A_FUNCTION = "as a function L >= 1 and T >= 1: ONNX Runtime refuses the body otherwise"
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}

SPEC = OpSpec(
    name="KVAttention",
    version=1,
    summary="Attend over a packed key-value cache: grouped heads, causal, sliding window behind sinks, rings, soft "
    "cap, additive bias, chosen slots, rows with a part of low rank, keys turned on reading; with the log of the sum "
    "of exponentials, so that a full-precision tail can be merged.",
    inputs=(
        Q,
        *_cache("k", "keys"),
        *_cache("v", "values"),
        LENGTH,
        BIAS,
        INDEX,
        *_factors("k", "keys", None),
        *_factors("v", "values", "k_factor"),
        ROPE,
    ),
    outputs=OUTPUTS,
    attributes=(*_format("k", "keys"), *_format("v", "values"), *ATTENDING, *SIDES),
    order="as q",
    determinism="same input, same bits, on the same device and for the same sizes",
    arithmetic="keys and values are code * scale + minimum in float32; products, softmax and sums are in float32",
    limits=(
        *LIMITS,
        "block divides L; turned is even, at most D",
        "on the GPU D <= 512, and the codes, or the scales, of one KV head take less than 2 GiB",
        AS_A_FUNCTION,
    ),
    tolerance=TOLERANCE,
    output_shapes=output_shapes,
    bytes_moved=_bytes_moved,
    flops=_flops,
    source="KIVI, arXiv:2402.02750; GEAR, arXiv:2403.05527; KVQuant, arXiv:2401.18079; FlashDecoding, "
    "https://pytorch.org/blog/flash-decoding; code jy-yuan/KIVI 876b4d2",
    differs="the full-precision tail is not part of the operator: merge it by lse; grouped query heads, windows and "
    "biases are taken. GEAR's outliers are not part of it.",
)
