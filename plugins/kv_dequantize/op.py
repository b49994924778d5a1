"""KVDequantize: packed codes back to keys or values."""

import torch
from torch import Tensor

from trt_compress.plugins.kv_dequantize.spec import SPEC
from trt_compress.plugins.kv_format import (
    AXIS_NAMES,
    BITS,
    CONSTANTS,
    DTYPE_OF,
    ONNX_NUMBER,
    PROBES,
    check_choice,
    check_packed,
    dequantized,
    is_half_text,
    product_text,
    rounded_text,
)
from trt_compress.plugins.kv_sizes import scale_shape
from trt_compress.plugins.operator import Operator, register_fake, run_operator
from trt_compress.plugins.spec import Sample

BODY = f"""
  {CONSTANTS}
  {PROBES}
  {product_text()}
  to_ = Constant <value_int: int = @to> ()
  i10 = Constant <value_int = 10> ()
  {is_half_text("scale_is_half", "scale")}
  to_half = Equal (to_, i10)
  half = And (scale_is_half, to_half)
  {rounded_text("product_h", "product")}
  sum = Add (product_h, low)
  values = Reshape (sum, values_shape)
  x = Cast <to: int = @to> (values)
"""


@torch.library.custom_op("trt_compress::kv_dequantize", mutates_args=())
def _kv_dequantize(
    code: Tensor, scale: Tensor, minimum: Tensor, bits: int, axis: int, group: int, to: int
) -> Tensor:  # fmt: skip
    half = scale.dtype == torch.float16 and to == ONNX_NUMBER[torch.float16]
    values = dequantized(code, scale, minimum, bits=bits, axis=axis, group=group, half=half)
    return values.to(DTYPE_OF[to])


register_fake(SPEC, _kv_dequantize)


def kv_dequantize(
    code: Tensor, scale: Tensor, minimum: Tensor, *, bits: int, axis: str, group: int = 0, to: torch.dtype
) -> Tensor:
    """Bring packed codes of a key-value cache back to values.

    Args:
        code: Codes as kv_quantize packs them, [B, G, L, D * bits / 8], uint8.
        scale: Step of each group, [B, G, L / group, D] or [B, G, L, D / group], fp16 | fp32. B or G may be 1: items,
            or KV heads, share it.
        minimum: Least value of each group, shape and dtype of `scale`.
        bits: 8, 4 or 2.
        axis: "channel" or "token", as for kv_quantize.
        group: Elements of a group; 0 is the whole axis.
        to: torch.float32, torch.float16 or torch.bfloat16.

    Returns:
        Keys or values, [B, G, L, D] in `to`.

    Raises:
        ConfigError: an attribute is not allowed.
        ShapeError: a tensor has the wrong shape or dtype.

    Source: KIVI, arXiv:2402.02750; code jy-yuan/KIVI 876b4d2, quant/new_pack.py.
    Differs: see SPEC.differs.
    """
    check_choice("kv_dequantize", "bits", bits, BITS)
    along = AXIS_NAMES.index(check_choice("kv_dequantize", "axis", axis, AXIS_NAMES))
    check_choice("kv_dequantize", "to", to, list(ONNX_NUMBER))
    tensors, anything = (code, scale, minimum), (None, None, None, None)
    checked = check_packed("kv_dequantize", "", tensors, anything, bits=bits, axis=along, group=group)
    attributes = {"bits": bits, "axis": along, "group": checked, "to": ONNX_NUMBER[to]}
    return run_operator(SPEC, tensors, attributes)[0]


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, g, length, d = (sample.axes[a] for a in "BGLD")
    bits, axis, group = (int(sample.attributes[name]) for name in ("bits", "axis", "group"))  # type: ignore[arg-type]
    shape = [int(size) for size in scale_shape(b, g, length, d, axis=axis, group=group)]
    code = torch.randint(0, 256, (b, g, length, d * bits // 8), generator=generator, dtype=torch.uint8)
    if sample.values == "shared":
        shape[:2] = 1, 1
    scale, minimum = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    if sample.values == "fp16_range":
        scale = torch.full(shape, 120000.0 / ((1 << bits) - 1))
        minimum = torch.full(shape, -60000.0)
    dtype = torch.float32 if sample.values == "fp32_scales" else torch.float16
    return code, scale.to(dtype), minimum.to(dtype)


def _sample(
    b: int, g: int, length: int, d: int, reason: str, *, bits: int, axis: int, group: int = 0, to: int = 1,
    values: str = "normal",
) -> Sample:  # fmt: skip
    attributes = {"bits": bits, "axis": axis, "group": group, "to": to}
    axes = {"B": b, "G": g, "L": length, "D": d}
    return Sample(axes=axes, attributes=attributes, reason=reason, values=values)


OPERATOR = Operator(
    spec=SPEC,
    function=kv_dequantize,
    body=BODY,
    make_inputs=_make_inputs,
    samples=(
        _sample(1, 1, 1, 1, "one value", bits=8, axis=0),
        _sample(1, 1, 1, 4, "one byte", bits=2, axis=1),
        _sample(2, 3, 7, 20, "primes, all tokens a group", bits=2, axis=0, to=10),
        _sample(2, 3, 7, 20, "primes, all channels a group", bits=4, axis=1, to=10),
        _sample(2, 2, 12, 20, "groups of 3 tokens", bits=2, axis=0, group=3),
        _sample(2, 2, 5, 24, "groups of 3 channels, which cut the parts of a byte", bits=2, axis=1, group=3, to=10),
        _sample(2, 2, 8, 16, "groups of 1", bits=4, axis=1, group=1),
        _sample(2, 2, 64, 8, "float32 scales", bits=2, axis=0, group=32, values="fp32_scales"),
        _sample(2, 2, 64, 8, "float32 scales, float16 out", bits=4, axis=0, group=32, to=10, values="fp32_scales"),
        _sample(2, 2, 9, 33, "8 bits, an odd width", bits=8, axis=0, group=9),
        _sample(1, 2, 6, 64, "8 bits, groups of channels", bits=8, axis=1, group=32, to=10),
        _sample(1, 2, 16, 16, "ranges beyond float16", bits=4, axis=0, group=8, to=10, values="fp16_range"),
        _sample(2, 3, 5, 16, "a scale for a token of all KV heads and items", bits=4, axis=1, values="shared"),
        _sample(1, 4, 128, 128, "KIVI's keys, a flush of 128 tokens", bits=2, axis=0, group=32, to=10),
        _sample(1, 4, 129, 128, "KIVI's values, one token more than a flush", bits=2, axis=1, group=32, to=10),
        _sample(1, 2, 2048, 64, "a long prompt", bits=4, axis=0, group=64, to=10),
    ),
)
