"""The contract of TokenSelect: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.spec import MOST_TOKENS, ON_A_GPU, AttributeSpec, OperandSpec, OpSpec, Shapes


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, n, c), _ = inputs
    k = attributes["num_kept"]
    return (b, k + attributes["remainder"], c), (b, k), (b, n - k)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    b, n, c, k, fuse = *(sizes[letter] for letter in "BNC"), sizes["num_kept"], sizes["remainder"]
    read, written = (n if fuse else k), k + fuse
    return int(b * ((read + written) * c * itemsize + n * itemsize + n * 8))


def _flops(sizes: Mapping[str, Any]) -> int:
    b, n, c = (sizes[letter] for letter in "BNC")
    return int(2 * b * (n - sizes["num_kept"]) * c) if sizes["remainder"] else 0


SPEC = OpSpec(
    name="TokenSelect",
    version=1,
    summary="Keep the tokens of the largest scores and those that are forced; drop the rest or fuse it into one token.",
    inputs=(
        OperandSpec(name="x", axes=("B", "N", "C"), doc="tokens"),
        OperandSpec(
            name="score", axes=("B", "N"), doc="importance of each token; infinity and NaN count as the largest number"
        ),
    ),
    outputs=(
        OperandSpec(name="y", axes=("B", "M", "C"), same_dtype_as="x", doc="kept tokens, then the fused one if asked"),
        OperandSpec(
            name="index", axes=("B", "K"), dtypes=("int64",), doc="positions of the kept tokens, in that order"
        ),
        OperandSpec(name="rest", axes=("B", "N-K"), dtypes=("int64",), doc="the other positions, ascending"),
    ),
    attributes=(
        AttributeSpec(name="num_kept", kind="int", minimum=0, doc="tokens kept, the forced ones included"),
        AttributeSpec(name="forced", kind="ints", minimum=-1, doc="positions that are always kept; -1: none"),
        AttributeSpec(name="order", kind="int", minimum=0, maximum=1, doc="0: by position, 1: by descending score"),
        AttributeSpec(name="remainder", kind="int", minimum=0, maximum=1, doc="0: drop, 1: fuse"),
    ),
    count="M = num_kept, plus one if the rest is fused",
    tie_break="of equal scores the smaller index is kept, and comes first",
    order="by position, or forced tokens by position and then the others by descending score",
    determinism="same input, same bits",
    limits=(
        "as a function on TensorRT num_kept <= 3840 (TopK), and ties as its TopK takes them",
        f"N <= {MOST_TOKENS}",
        f"{ON_A_GPU}, and at most 256 positions are forced",
    ),
    tolerance={"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=_flops,
    source="EViT, arXiv:2202.07800; code youweiliang/evit 5ca95a7, evit.py and helpers.py",
    differs="order by position is offered and is the default; ties go to the smaller index (left open there).",
)
