"""The contract of TokenRestore: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.spec import ON_A_GPU, AttributeSpec, OperandSpec, OpSpec, Shapes


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, _, c), (_, n) = inputs
    return ((b, n, c),)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    b, n, m, c = (sizes[letter] for letter in "BNMC")
    return int(b * ((n + m) * c * itemsize + n * 8))


SPEC = OpSpec(
    name="TokenRestore",
    version=1,
    summary="Copy compressed tokens back to every position they stand for, or undo a reordering.",
    inputs=(
        OperandSpec(name="y", axes=("B", "M", "C"), doc="compressed tokens"),
        OperandSpec(
            name="index",
            axes=("B", "N"),
            dtypes=("int64",),
            doc="unmerge: row of y for each position; unpermute: position of each row of y, a permutation with N = M",
        ),
    ),
    outputs=(OperandSpec(name="x", axes=("B", "N", "C"), same_dtype_as="y", doc="restored tokens"),),
    attributes=(AttributeSpec(name="mode", kind="int", minimum=0, maximum=1, doc="0: unmerge, 1: unpermute"),),
    count="N rows, one for each index",
    order="by position",
    determinism="same input, same bits",
    limits=(f"{ON_A_GPU}, and a permutation has at most 393216 tokens",),
    tolerance={"float32": 0.0, "float16": 0.0, "bfloat16": 0.0},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=lambda sizes: 0,
    source="ToMe, arXiv:2210.09461, unmerge; ToC3D, arXiv:2409.00633, restoring the token order",
    differs="one operator for both directions of an index.",
)
