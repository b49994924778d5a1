"""The contract of CodebookDecode: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.codebook_encode.spec import CODEBOOK_LIMITS, MOST_BITS, codes_per_token
from trt_compress.plugins.spec import ON_A_GPU, AttributeSpec, OperandSpec, OpSpec, Shapes


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, n, _), (_, _, d) = inputs
    return ((b, n, d),)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    b, n, d, s, k = (sizes[letter] for letter in "BNDSK")
    codes = codes_per_token(sizes["kind"], s, d, sizes["group"])
    rows = min(k, b * n) if sizes["kind"] <= 1 else 1
    return int((b * n * d + s * rows * d) * itemsize + b * n * codes * 8)


def _flops(sizes: Mapping[str, Any]) -> int:
    b, n, d, s = (sizes[letter] for letter in "BNDS")
    return int(b * n * d * (s - 1)) if sizes["kind"] == 0 else 0


SPEC = OpSpec(
    name="CodebookDecode",
    version=1,
    summary="Put back the tokens that code numbers stand for.",
    inputs=(
        OperandSpec(name="code", axes=("B", "N", "S or D or 1 or D/group"), dtypes=("int64",), doc="code numbers"),
        OperandSpec(name="codebook", axes=("S", "K", "D"), doc="as in CodebookEncode"),
    ),
    outputs=(OperandSpec(name="y", axes=("B", "N", "D"), same_dtype_as="codebook", doc="tokens"),),
    attributes=(
        AttributeSpec(name="kind", kind="int", minimum=0, maximum=3, doc="0: vector, 1: table, 2: fsq, 3: sign"),
        AttributeSpec(name="group", kind="int", minimum=1, maximum=MOST_BITS, doc="sign: channels of a code, else 1"),
    ),
    count="N tokens, one for each row of codes",
    order="by position",
    determinism="same input, same bits",
    limits=(
        *CODEBOOK_LIMITS,
        "a number that is no code is an error in torch and ONNX Runtime; as a function on TensorRT it is not noticed",
        "stages are summed in float32, the first one first",
        ON_A_GPU,
    ),
    tolerance={"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=_flops,
    source="WavTokenizer, arXiv:2408.16532; KVQuant, arXiv:2401.18079; FlexTok, arXiv:2502.13967; "
    "WeTok, arXiv:2508.05599",
    differs="a number that is no code is refused instead of being read from somewhere.",
)
