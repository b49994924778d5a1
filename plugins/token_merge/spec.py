"""The contract of TokenMerge: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.spec import MOST_TOKENS, ON_A_GPU, AttributeSpec, OperandSpec, OpSpec, Shapes


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, n, c), *_ = inputs
    m = n - attributes["num_merged"]
    return (b, m, c), (b, m, 1), (b, n)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    b, n, c, d = (sizes[letter] for letter in "BNCD")
    m = n - sizes["num_merged"]
    return int(b * ((n + m) * c * itemsize + n * d * itemsize + (n + m) * 4 + n * 8))


def _flops(sizes: Mapping[str, Any]) -> int:
    b, n, c, d, r = *(sizes[letter] for letter in "BNCD"), sizes["num_merged"]
    pairs = ((n - sizes["num_protected"]) // 2) ** 2
    return int(b * (2 * pairs * d + 2 * r * c))


SPEC = OpSpec(
    name="TokenMerge",
    version=1,
    summary="Merge the most similar token pairs of each sequence, weighted by how many tokens each stands for.",
    inputs=(
        OperandSpec(name="x", axes=("B", "N", "C"), doc="tokens, finite"),
        OperandSpec(name="metric", axes=("B", "N", "D"), doc="similarity features, not normalised, of any values"),
        OperandSpec(name="size", axes=("B", "N", "1"), dtypes=("float32",), doc="tokens each row stands for, positive"),
    ),
    outputs=(
        OperandSpec(name="y", axes=("B", "M", "C"), same_dtype_as="x", doc="merged tokens"),
        OperandSpec(name="y_size", axes=("B", "M", "1"), same_dtype_as="size", doc="their sizes"),
        OperandSpec(name="dest", axes=("B", "N"), dtypes=("int64",), doc="row of y that each row of x went to"),
    ),
    attributes=(
        AttributeSpec(name="num_merged", kind="int", minimum=0, doc="tokens removed from each sequence"),
        AttributeSpec(name="num_protected", kind="int", minimum=0, doc="leading tokens that are never merged"),
        AttributeSpec(name="order", kind="int", minimum=0, maximum=1, doc="0: unmerged by position, 1: by similarity"),
    ),
    count="M = N - num_merged exactly; num_merged <= (N - num_protected) // 2",
    tie_break="a token goes to the most similar token of the smallest index; of equally similar tokens the one of the "
    "smallest index merges first",
    order="protected tokens, unmerged tokens of even position (by position, or most similar first), tokens of odd "
    "position",
    determinism="same input, same bits",
    limits=(
        "at least two tokens are not protected",
        "a feature row whose length in float32 is beyond 2**-50..2**64 (zeros, inf, NaN) has similarity 0 with all",
        f"N <= {MOST_TOKENS}",
        f"{ON_A_GPU}, and at most 8388480 tokens are not protected",
    ),
    tolerance={"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=_flops,
    source="ToMe, arXiv:2210.09461; code facebookresearch/ToMe af95e4b, tome/merge.py",
    differs="any number of leading tokens is protected (the original knows a class and a distillation token); ties go "
    "to the smaller index (the original leaves them open above 16 tokens); a zero feature row has similarity 0 (NaN "
    "there); too many merges are refused (cut silently there).",
)
