"""The contract of TokenMix: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.spec import ON_A_GPU, AttributeSpec, OperandSpec, OpSpec, Shapes


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, _, c), (_, m, _) = inputs
    return ((b, m, c),)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    b, m, n, c = (sizes[letter] for letter in "BMNC")
    return int((b * (n + m) * c + b * m * n) * itemsize)


def _flops(sizes: Mapping[str, Any]) -> int:
    b, m, n, c = (sizes[letter] for letter in "BMNC")
    return int(2 * b * m * n * c)


SPEC = OpSpec(
    name="TokenMix",
    version=1,
    summary="Mix the tokens of each sequence by a matrix: low-pass, pooling, resizing, or soft assignment.",
    inputs=(
        OperandSpec(name="x", axes=("B", "N", "C"), doc="tokens"),
        OperandSpec(name="weight", axes=("1 or B", "M", "N"), doc="one matrix for all items, or one for each"),
    ),
    outputs=(OperandSpec(name="y", axes=("B", "M", "C"), same_dtype_as="x", doc="mixed tokens"),),
    attributes=(
        AttributeSpec(
            name="normalize", kind="int", minimum=0, maximum=1, doc="0: the matrix as it is, 1: softmax of each row"
        ),
    ),
    count="M rows, one for each row of the matrix",
    order="by row of the matrix",
    determinism="same input, same bits",
    limits=("the body computes in float32 whatever the dtype of x", ON_A_GPU),
    tolerance={"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=_flops,
    source="y = W x of Fourier-VLM, arXiv:2508.06038, LLaVolta, arXiv:2406.20092, and other linear compressors",
    differs="sums are float32 whatever the dtype; no normalisation after the sum.",
)
