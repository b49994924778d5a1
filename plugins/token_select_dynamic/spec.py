"""The contract of TokenSelectDynamic: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.spec import MOST_TOKENS, ON_A_GPU, AttributeSpec, OperandSpec, OpSpec, Shapes


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, _, c), _ = inputs
    m = attributes["max_kept"]
    return (b, m, c), (b, m), (b, m), (b,), ()


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    b, n, c, capacity = *(sizes[letter] for letter in "BNC"), sizes["max_kept"]
    return int(b * (2 * capacity * c * itemsize + n * itemsize + capacity * (8 + itemsize) + 8) + 4)


def _flops(sizes: Mapping[str, Any]) -> int:
    return int(2 * sizes["B"] * sizes["N"]) if sizes["mode"] == 1 else 0


SPEC = OpSpec(
    name="TokenSelectDynamic",
    version=1,
    summary="Keep the tokens whose score reaches a threshold, or the best that hold a share of all score.",
    inputs=(
        OperandSpec(name="x", axes=("B", "N", "C"), doc="tokens"),
        OperandSpec(
            name="score",
            axes=("B", "N"),
            doc="importance of each token; infinity and NaN count as the largest number; by mass a negative one "
            "counts as 0",
        ),
    ),
    outputs=(
        OperandSpec(name="y", axes=("B", "M", "C"), same_dtype_as="x", doc="kept tokens by position, then zeros"),
        OperandSpec(name="index", axes=("B", "M"), dtypes=("int64",), doc="positions of the kept tokens, then -1"),
        OperandSpec(name="valid", axes=("B", "M"), same_dtype_as="x", doc="1 where there is a token, else 0"),
        OperandSpec(name="count", axes=("B",), dtypes=("int64",), doc="tokens kept of each item"),
        OperandSpec(name="largest", axes=(), dtypes=("int32",), doc="largest count of the batch"),
    ),
    attributes=(
        AttributeSpec(name="mode", kind="int", minimum=0, maximum=1, doc="0: threshold, 1: cumulative mass"),
        AttributeSpec(name="threshold", kind="float", doc="least score kept, or the share of the total score to hold"),
        AttributeSpec(name="min_kept", kind="int", minimum=0, doc="least number of tokens kept, the best"),
        AttributeSpec(name="max_kept", kind="int", minimum=1, doc="capacity: most tokens kept, the best"),
        AttributeSpec(name="forced", kind="ints", minimum=-1, doc="positions that are always kept; -1: none"),
        AttributeSpec(name="trim", kind="int", minimum=0, maximum=1, doc="0: M = max_kept, 1: M = largest"),
    ),
    count="M = max_kept, or the largest count if trimmed; each item has its own count in min_kept..max_kept",
    tie_break="of equal scores the smaller index is kept; a score equal to the threshold is kept",
    order="by position, the padding last",
    determinism="same input, same bits",
    data_sized="trim",
    limits=(
        "as a function on TensorRT max_kept <= 3840 (TopK), and ties as its TopK takes them",
        "trim = 1 makes a size that depends on the data: TensorRT copies it to the host, and captures no CUDA graph; "
        "the plugin declares it by a size tensor, and a builder that takes the function tunes for a length of one",
        f"N <= {MOST_TOKENS}",
        f"{ON_A_GPU}, and at most 256 positions are forced",
    ),
    tolerance={"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=_flops,
    source="thresholds of PruMerge, arXiv:2403.15388, MustDrop, arXiv:2411.10803, A-ToMe and TokenCorrCompressor",
    differs="forced tokens do not count toward the mass, and the count is held between min_kept and max_kept.",
)
