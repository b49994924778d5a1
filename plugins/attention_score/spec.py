"""The contract of AttentionScore: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.spec import ON_A_GPU, AttributeSpec, OperandSpec, OpSpec, Shapes

SOFTMAX = ("none", "all", "span")
ROWS = ("mean", "sum", "max", "last")
HEADS = ("none", "group_mean", "group_sum", "group_max", "mean", "sum", "max")
NORMALIZE = ("none", "probes", "tokens")
POOL = ("avg", "max")


def span_length(n: int, start: int, stop: int) -> int:
    """Keys of the span among `n`; a `stop` that is not positive counts from their end."""
    return (stop if stop > 0 else n + stop) - start


def _parts(reduction: int, h: int, g: int) -> int:
    """Scores of an item: of each head, each KV head, or all together."""
    return h if reduction == 0 else g if reduction <= 3 else 1


def _work(sizes: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and keys that must be looked at."""
    n = sizes["N"]
    rows = 1 if ROWS[sizes["rows"]] == "last" else sizes["R"]
    return rows, n if SOFTMAX[sizes["softmax"]] == "all" else span_length(n, sizes["start"], sizes["stop"])


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, h, _, _), (_, g, n, _), *_ = inputs
    return ((b, _parts(attributes["heads"], h, g), span_length(n, attributes["start"], attributes["stop"])),)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    b, h, g, d, n = (sizes[letter] for letter in "BHGDN")
    rows, keys = _work(sizes)
    scores = _parts(sizes["heads"], h, g) * span_length(n, sizes["start"], sizes["stop"])
    return int(b * ((h * rows + g * keys) * d * itemsize + scores * 4) + rows * 8)


def _flops(sizes: Mapping[str, Any]) -> int:
    rows, keys = _work(sizes)
    return int(2 * sizes["B"] * sizes["H"] * rows * keys * sizes["D"])


SPEC = OpSpec(
    name="AttentionScore",
    version=1,
    summary="Attention of chosen query rows to every key, reduced over rows and heads; no full attention matrix.",
    inputs=(
        OperandSpec(name="q", axes=("B", "H", "R", "D"), doc="probe rows of the queries"),
        OperandSpec(name="k", axes=("B", "G", "N", "D"), doc="keys; query head h reads KV head h // (H / G)"),
        OperandSpec(
            name="position",
            axes=("1 or B", "R"),
            least_rank=1,
            dtypes=("int64",),
            doc="key position of each row, for causal masking; for all items, or for each",
        ),
        OperandSpec(
            name="bias",
            axes=("1 or B", "1 or H", "1 or R", "1 or N"),
            doc="added to the scaled logits, finite; not counted in bytes_moved",
        ),
        OperandSpec(
            name="length",
            axes=("1 or B",),
            dtypes=("int64",),
            doc="counted: the keys that each item has, from the front: what lies behind is no key, whatever it holds. "
            "Else it is not looked at",
        ),
    ),
    outputs=(
        OperandSpec(
            name="score",
            axes=("B", "1 or G or H", "stop-start"),
            dtypes=("float32",),
            doc="score of each key in the span",
        ),
    ),
    attributes=(
        AttributeSpec(name="scale", kind="float", doc="factor of q k before bias and softmax"),
        AttributeSpec(
            name="causal", kind="int", minimum=0, maximum=1, doc="1: a row sees keys up to its position, 0: all"
        ),
        AttributeSpec(
            name="softmax", kind="int", minimum=0, maximum=2, doc="0: none (logits), 1: over all keys, 2: over the span"
        ),
        AttributeSpec(name="start", kind="int", minimum=0, doc="first key of the span"),
        AttributeSpec(name="stop", kind="int", doc="end of the span; not positive: counted from the end of the keys"),
        AttributeSpec(
            name="rows",
            kind="int",
            minimum=0,
            maximum=3,
            doc="over rows 0: mean, 1: sum, 2: maximum, 3: the last alone",
        ),
        AttributeSpec(
            name="heads",
            kind="int",
            minimum=0,
            maximum=6,
            doc="0: each head, 1..3: mean, sum, maximum of each KV group, 4..6: mean, sum, maximum of all heads",
        ),
        AttributeSpec(
            name="normalize",
            kind="int",
            minimum=0,
            maximum=2,
            doc="divide a key's score by 0: nothing, 1: the rows that see it, 2: the tokens that would see it, N - j",
        ),
        AttributeSpec(
            name="pool", kind="int", minimum=0, maximum=1, doc="pooling along the keys 0: average, 1: maximum"
        ),
        AttributeSpec(
            name="head_kernel",
            kind="ints",
            minimum=1,
            doc="width of the pooling before heads are reduced, odd; 1: none",
        ),
        AttributeSpec(
            name="kernel", kind="ints", minimum=1, doc="width of the pooling after heads are reduced, odd; 1: none"
        ),
        AttributeSpec(
            name="counted",
            kind="int",
            minimum=0,
            maximum=1,
            of_input="length",
            doc="1: each item is scored as if its keys ended at its length, a stop from the end and N included; keys "
            "of the span that it does not have get 0. 0: every item has all keys",
        ),
    ),
    count="one score for each key of the span, for each head, each KV head, or all heads together",
    order="by position of the key",
    determinism="same input, same bits",
    limits=(
        "0 <= start < stop <= N once stop is counted from the end",
        "a length above N is taken as N, a negative one as 0",
        "a row that sees no key gives it weight 0",
        "average pooling divides by the kernel at the borders too",
        "H is a multiple of G; at least one head, one row and one channel",
        ON_A_GPU,
    ),
    tolerance={"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=_flops,
    source="SnapKV, arXiv:2404.14469; H2O, arXiv:2306.14048; ZipCache, arXiv:2405.14256; FastV, arXiv:2403.06764",
    differs="scores are float32 whatever the dtype of q; a row that sees nothing gives 0, not NaN.",
)
