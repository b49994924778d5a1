"""The contract of KVDequantize: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.kv_sizes import CODES, SCALES, sizes_of
from trt_compress.plugins.spec import FLOATS, AttributeSpec, OperandSpec, OpSpec, Shapes


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, g, length, width), *_ = inputs
    return ((b, g, length, width * (8 // attributes["bits"])),)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    b, g, length, d = (sizes[letter] for letter in "BGLD")
    return int(b * g * length * d * itemsize + sum(sizes_of(sizes, "", 2)))  # in float16, of each KV head


_SCALE_AXES = ("1 or B", "1 or G", "L/group or 1 or L", "D or D/group or 1")

SPEC = OpSpec(
    name="KVDequantize",
    version=1,
    summary="Bring packed codes of a key-value cache back to values.",
    inputs=(
        OperandSpec(name="code", axes=("B", "G", "L", "D*bits/8"), dtypes=CODES, doc="codes as KVQuantize packs them"),
        OperandSpec(
            name="scale",
            axes=_SCALE_AXES,
            dtypes=SCALES,
            doc="step of each group: [B, G, L/group, D] for axis 0, [B, G, L, D/group] for axis 1; 1 instead of B or "
            "G: items, or KV heads, share it",
        ),
        OperandSpec(
            name="minimum", axes=_SCALE_AXES, dtypes=SCALES, same_dtype_as="scale", doc="least value of each group"
        ),
    ),
    outputs=(
        OperandSpec(name="x", axes=("B", "G", "L", "D"), dtypes=FLOATS, dtype_attribute="to", doc="keys or values"),
    ),
    attributes=(
        AttributeSpec(name="bits", kind="int", minimum=2, maximum=8, doc="bits of a code: 8, 4 or 2"),
        AttributeSpec(
            name="axis", kind="int", minimum=0, maximum=1, doc="0: groups of tokens of one channel; 1: of channels"
        ),
        AttributeSpec(name="group", kind="int", minimum=0, doc="elements of a group, a divisor; 0: the whole axis"),
        AttributeSpec(name="to", kind="int", minimum=1, maximum=16, doc="of x: 1 float32, 10 float16, 16 bfloat16"),
    ),
    order="as the codes",
    determinism="same input, same bits, in every form but a body inside TensorRT, which may fuse roundings",
    arithmetic="x = t(h(code * scale) + minimum), multiplied and added in float32, one rounding each (no fused "
    "multiply-add). h rounds to float16 if both the scales and x are float16 and the result is finite; else it changes "
    "nothing. t rounds to the type of x",
    limits=(
        "D is a multiple of 8 / bits",
        "on the GPU L and D < 2**31 - 4096",
        "as a function L >= 1: ONNX Runtime refuses the body otherwise",
    ),
    tolerance={"float32": 0.0, "float16": 0.0, "bfloat16": 0.0},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=lambda sizes: 2 * int(sizes["B"] * sizes["G"] * sizes["L"] * sizes["D"]),
    source="KIVI, arXiv:2402.02750; code jy-yuan/KIVI 876b4d2, quant/new_pack.py",
    differs="codes are packed planar in bytes as ZipCache does (KIVI: in 32-bit words); a float16 range beyond 65504 "
    "does not overflow.",
)
