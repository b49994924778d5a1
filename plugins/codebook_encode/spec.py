"""The contract of CodebookEncode: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.spec import ON_A_GPU, AttributeSpec, OperandSpec, OpSpec, Shapes

MOST_BITS = 30  # of one sign code
MOST_LEVELS = 256  # of one FSQ dimension; above 1000 the widening of the range by 0.1 % would add a level

MOST_CHANNELS = 24  # of one FSQ token; with two levels each they have that many codes
CODEBOOK_LIMITS = (
    "a codebook holds at least one code",
    f"fsq: at most {MOST_CHANNELS} channels, 2 to {MOST_LEVELS} levels of a channel, at most 2**24 codes of a token",
    "levels that are none are an error in torch and ONNX Runtime, and reported on a GPU; as a function on TensorRT "
    "they are not noticed",
)


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, n, d), (s, _, _) = inputs
    return ((b, n, codes_per_token(attributes["kind"], s, d, attributes["group"])),)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    b, n, d, s, k = (sizes[letter] for letter in "BNDSK")
    return int((b * n * d + s * k * d) * itemsize + b * n * codes_per_token(sizes["kind"], s, d, sizes["group"]) * 8)


def _flops(sizes: Mapping[str, Any]) -> int:
    b, n, d, s, k = (sizes[letter] for letter in "BNDSK")
    return int(2 * b * n * s * k * d) if sizes["kind"] <= 1 else 0


def codes_per_token(kind: int, stages: int, width: int, group: int) -> int:
    """Last axis of the code."""
    return (stages, width, 1, width // group)[kind]


SPEC = OpSpec(
    name="CodebookEncode",
    version=1,
    summary="Replace each token by the numbers of its nearest codes.",
    inputs=(
        OperandSpec(name="x", axes=("B", "N", "D"), doc="tokens, finite"),
        OperandSpec(
            name="codebook",
            axes=("S", "K", "D"),
            doc="vector: K codes in S residual stages; table: K levels of each channel, S = 1; fsq: the number of "
            "levels of each channel, S = K = 1; sign: not read, S = K = 1",
        ),
    ),
    outputs=(
        OperandSpec(name="code", axes=("B", "N", "S or D or 1 or D/group"), dtypes=("int64",), doc="code numbers"),
    ),
    attributes=(
        AttributeSpec(name="kind", kind="int", minimum=0, maximum=3, doc="0: vector, 1: table, 2: fsq, 3: sign"),
        AttributeSpec(name="group", kind="int", minimum=1, maximum=MOST_BITS, doc="sign: channels of a code, else 1"),
    ),
    count="S, D, 1 or D / group codes of each token, by kind",
    tie_break="of equally near codes or levels the smaller number, of FSQ levels the even one; zero has sign bit 0",
    order="by stage, by channel, or by group of channels; the first channel is the lowest digit or bit",
    determinism="same input, same bits",
    limits=(
        "vector: the largest of x c - c c / 2 in float32, so distances that differ by less than its rounding may go "
        "either way",
        *CODEBOOK_LIMITS,
        "as a function on TensorRT ties as its TopK takes them",
        ON_A_GPU,
    ),
    tolerance={"float32": 0.0, "float16": 0.0, "bfloat16": 0.0},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=_flops,
    source="WavTokenizer, arXiv:2408.16532; KVQuant, arXiv:2401.18079; FlexTok, arXiv:2502.13967; "
    "WeTok, arXiv:2508.05599",
    differs="nearest by x c - c c / 2, which leaves out the part of the squared distance that all codes share.",
)
