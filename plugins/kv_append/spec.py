"""The contract of KVAppend: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.spec import FLOATS, AttributeSpec, OperandSpec, OpSpec, Shapes

ROWS = (*FLOATS, "uint8")


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    return (inputs[0],)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    """Rows read and written, and one position for each item."""
    return int(2 * sizes["B"] * sizes["G"] * sizes["T"] * sizes["W"] * itemsize + 8 * sizes["B"])


SPEC = OpSpec(
    name="KVAppend",
    version=1,
    summary="Write the rows of new tokens into a cache, in place: linear, as a ring, or as a ring behind fixed sinks.",
    inputs=(
        OperandSpec(name="cache", axes=("B", "G", "L", "W"), dtypes=ROWS, doc="one row for each slot"),
        OperandSpec(
            name="rows", axes=("B", "G", "T", "W"), dtypes=ROWS, same_dtype_as="cache", doc="rows of the new tokens"
        ),
        OperandSpec(
            name="position",
            axes=("B", "1 or G"),
            least_rank=1,
            dtypes=("int64",),
            doc="tokens written before, 0 or more, of an item or of each of its KV heads",
        ),
    ),
    outputs=(
        OperandSpec(
            name="cache_out",
            axes=("B", "G", "L", "W"),
            same_dtype_as="cache",
            aliases="cache",
            doc="the cache after it",
        ),
    ),
    attributes=(
        AttributeSpec(name="layout", kind="int", minimum=0, maximum=1, doc="0: linear, 1: ring"),
        AttributeSpec(name="sinks", kind="int", minimum=0, doc="first slots that a ring never overwrites; linear: 0"),
    ),
    count="T rows for each item and KV head",
    order="token t has number p = position + t and goes to slot p; in a ring, if p >= sinks, to slot "
    "sinks + (p - sinks) mod (L - sinks)",
    determinism="same input, same bits",
    arithmetic="rows are copied bit by bit; slots that no token goes to keep theirs",
    limits=(
        "linear: position + T <= L; ring: T <= L - sinks; position >= 0. Anything else is an error, and as a function "
        "on TensorRT, which checks no index, it is undefined",
        "on the GPU the slots of one KV head take less than 2 GiB",
    ),
    tolerance={"float32": 0.0, "float16": 0.0, "bfloat16": 0.0},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=lambda sizes: 0,
    source="StreamingLLM, arXiv:2309.17453, sinks and recent tokens; TensorScatter of ONNX opset 24",
    differs="an out-of-range write is an error (ignored by TensorRT's KV cache layer, wrapped by index arithmetic "
    "elsewhere); the ring overwrites the oldest slot where StreamingLLM moves all of them.",
)
