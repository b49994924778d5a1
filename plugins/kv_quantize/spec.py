"""The contract of KVQuantize: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.kv_sizes import CODES, SCALES, scale_shape, sizes_of
from trt_compress.plugins.spec import AttributeSpec, OperandSpec, OpSpec, Shapes


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    (b, g, length, d), *_ = inputs
    scales = scale_shape(b, g, length, d, axis=attributes["axis"], group=attributes["group"])
    return (b, g, length, d * attributes["bits"] // 8), scales, scales


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    b, g, length, d = (sizes[letter] for letter in "BGLD")
    return int(b * g * length * d * itemsize + sum(sizes_of(sizes, "", 2 if sizes["scale_type"] == 10 else 4)))


_SCALE_AXES = ("B", "G", "L/group or 1 or L", "D or D/group or 1")

SPEC = OpSpec(
    name="KVQuantize",
    version=1,
    summary="Quantize keys or values to 8, 4 or 2 bits, asymmetrically, and pack the codes into bytes.",
    inputs=(OperandSpec(name="x", axes=("B", "G", "L", "D"), doc="keys or values, finite"),),
    outputs=(
        OperandSpec(
            name="code",
            axes=("B", "G", "L", "D*bits/8"),
            dtypes=CODES,
            doc="codes; D is split into 8 / bits equal parts p_i, and byte = sum of p_i << (bits * i)",
        ),
        OperandSpec(
            name="scale",
            axes=_SCALE_AXES,
            dtypes=SCALES,
            dtype_attribute="scale_type",
            doc="step of each group: [B, G, L/group, D] for axis 0, [B, G, L, D/group] for axis 1",
        ),
        OperandSpec(
            name="minimum",
            axes=_SCALE_AXES,
            dtypes=SCALES,
            dtype_attribute="scale_type",
            doc="least value of each group, as scale",
        ),
    ),
    attributes=(
        AttributeSpec(name="bits", kind="int", minimum=2, maximum=8, doc="bits of a code: 8, 4 or 2"),
        AttributeSpec(
            name="axis",
            kind="int",
            minimum=0,
            maximum=1,
            doc="0: a group is consecutive tokens of one channel; 1: consecutive channels of one token",
        ),
        AttributeSpec(name="group", kind="int", minimum=0, doc="elements of a group, a divisor; 0: the whole axis"),
        AttributeSpec(name="scale_type", kind="int", minimum=1, maximum=10, doc="of the scales: 1 float32, 10 float16"),
    ),
    order="as x",
    determinism="same input, same bits, in every form but a body inside TensorRT, which may fuse roundings",
    arithmetic="with lo and hi the least and largest value of a group and n = 2**bits - 1, in float32: "
    "minimum = s(lo); scale = s(h(h(hi - lo) / n)); code = clip(rint(h(h(x - minimum) / scale)), 0, n), and 0 where "
    "scale is 0. rint rounds half to even. s rounds to the type of the scales. h rounds to float16 if both x and the "
    "scales are float16 and the result is finite; else it changes nothing. Divisions are IEEE; nothing is fused",
    limits=(
        "D is a multiple of 8 / bits",
        "float16 scales hold values within +-65504",
        "on the GPU L and D < 2**31 - 4096, at most 6144 groups in a token, fewer than 2**31 groups of tokens in all",
        "as a function L >= 1: ONNX Runtime refuses the body otherwise",
    ),
    tolerance={"float32": 0.0, "float16": 0.0, "bfloat16": 0.0},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=lambda sizes: 0,
    source="KIVI, arXiv:2402.02750; code jy-yuan/KIVI 876b4d2, quant/new_pack.py",
    differs="codes are packed planar in bytes as ZipCache does (KIVI: in 32-bit words); a constant group has code 0 "
    "(undefined there) and is exact either way; a float16 range beyond 65504 does not overflow.",
)
