"""KVQuantize: keys or values to packed codes, with a scale and a minimum for each group."""

import torch
from torch import Tensor

from trt_compress.plugins.kv_format import (
    AXIS_NAMES,
    BITS,
    CONSTANTS,
    DTYPE_OF,
    ONNX_NUMBER,
    PROBES,
    check_choice,
    check_group,
    check_packing,
    format_text,
    group_text,
    grouped,
    is_half_text,
    pack,
    rounded,
    rounded_text,
)
from trt_compress.plugins.kv_quantize.spec import SPEC
from trt_compress.plugins.kv_sizes import scale_shape
from trt_compress.plugins.operator import Operator, check_tensor, register_fake, run_operator
from trt_compress.plugins.spec import Sample

BODY = f"""
  {CONSTANTS}
  {PROBES}
  {format_text()}
  v_l = Shape <start = 2, end = 3> (x)
  v_d = Shape <start = 3, end = 4> (x)
  {group_text()}
  scale_type_ = Constant <value_int: int = @scale_type> ()
  i10 = Constant <value_int = 10> ()
  {is_half_text("x_is_half", "x")}
  scale_is_half = Equal (scale_type_, i10)
  half = And (x_is_half, scale_is_half)

  x32 = Cast <to = 1> (x)
  values = Reshape (x32, grouped_shape)
  v_reduced = Constant <value_ints = [3]> ()
  lo = ReduceMin <keepdims = 1> (values, v_reduced)
  hi = ReduceMax <keepdims = 1> (values, v_reduced)
  stored_minimum = Cast <to: int = @scale_type> (lo)
  low = Cast <to = 1> (stored_minimum)
  base_float = Cast <to = 1> (base)
  one = Constant <value_float = 1.0> ()
  zero = Constant <value_float = 0.0> ()
  levels = Sub (base_float, one)
  range = Sub (hi, lo)
  {rounded_text("range_h", "range")}
  step = Div (range_h, levels)
  {rounded_text("step_h", "step")}
  stored_scale = Cast <to: int = @scale_type> (step_h)
  scale32 = Cast <to = 1> (stored_scale)

  is_flat = Equal (scale32, zero)
  divisor = Where (is_flat, one, scale32)
  above = Sub (values, low)
  {rounded_text("above_h", "above")}
  quotient = Div (above_h, divisor)
  {rounded_text("quotient_h", "quotient")}
  level = Round (quotient_h)
  at_least = Max (level, zero)
  clipped = Min (at_least, levels)
  codes = Where (is_flat, zero, clipped)

  v_rest = Div (v_d, v_parts)
  parts_shape = Concat <axis = 0> (v00, v_l, v_parts, v_rest)
  parts = Reshape (codes, parts_shape)
  column32 = Cast <to = 1> (column)
  weighted = Mul (parts, column32)
  packed = ReduceSum <keepdims = 0> (weighted, v_reduced)
  code = Cast <to = 2> (packed)

  # [L / group, D] for axis 0, [L, D / group] for axis 1
  l_channel = Mul (groups, by_channel)
  l_token = Mul (v_l, axis_)
  v_l_scales = Add (l_channel, l_token)
  d_channel = Mul (v_d, by_channel)
  d_token = Mul (groups, axis_)
  v_d_scales = Add (d_channel, d_token)
  scale_shape = Concat <axis = 0> (v00, v_l_scales, v_d_scales)
  scale = Reshape (stored_scale, scale_shape)
  minimum = Reshape (stored_minimum, scale_shape)
"""


@torch.library.custom_op("trt_compress::kv_quantize", mutates_args=())
def _kv_quantize(x: Tensor, bits: int, axis: int, group: int, scale_type: int) -> tuple[Tensor, Tensor, Tensor]:
    half = x.dtype == torch.float16 and scale_type == ONNX_NUMBER[torch.float16]
    values = grouped(x.float(), axis, group)
    lo, hi = values.amin(dim=3, keepdim=True), values.amax(dim=3, keepdim=True)
    levels = (1 << bits) - 1
    minimum = lo.to(DTYPE_OF[scale_type])
    scale = rounded(rounded(hi - lo, half) / levels, half).to(DTYPE_OF[scale_type])
    divisor = torch.where(scale == 0, 1.0, scale.float())
    quotient = rounded(rounded(values - minimum.float(), half) / divisor, half)
    code = torch.where(scale == 0, 0.0, quotient.round().clamp(0, levels)).reshape(x.shape)
    shape = scale_shape(*x.shape, axis=axis, group=group)
    return pack(code, bits), scale.reshape(shape).clone(), minimum.reshape(shape).clone()


register_fake(SPEC, _kv_quantize)


def kv_quantize(
    x: Tensor, *, bits: int, axis: str, group: int = 0, scale_type: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize keys or values to 8, 4 or 2 bits and pack the codes into bytes.

    Args:
        x: Keys or values, [B, G, L, D], fp16 | bf16 | fp32, finite.
        bits: 8, 4 or 2; D must be a multiple of 8 / bits.
        axis: "channel": a group is `group` consecutive tokens of one channel (KIVI's keys); "token": `group`
            consecutive channels of one token (its values).
        group: Elements of a group, a divisor of L (channel) or D (token); 0 takes the whole axis.
        scale_type: torch.float16 or torch.float32.

    Returns:
        Codes [B, G, L, D * bits / 8] uint8; scales and minima, [B, G, L / group, D] or [B, G, L, D / group].

    Raises:
        ConfigError: an attribute is not allowed.
        ShapeError: x has the wrong shape or dtype, or D does not fill whole bytes.

    Source: KIVI, arXiv:2402.02750; code jy-yuan/KIVI 876b4d2, quant/new_pack.py.
    Differs: see SPEC.differs.
    """
    check_tensor("kv_quantize", "x", x, (None, None, None, None), "BGLD")
    _, _, length, d = x.shape
    check_choice("kv_quantize", "bits", bits, BITS)
    along = AXIS_NAMES.index(check_choice("kv_quantize", "axis", axis, AXIS_NAMES))
    check_choice("kv_quantize", "scale_type", scale_type, [torch.float16, torch.float32])
    check_packing("kv_quantize", "x", d, bits)
    checked = check_group("kv_quantize", "group", group, length if along == 0 else d, "LD"[along])
    attributes = {"bits": bits, "axis": along, "group": checked, "scale_type": ONNX_NUMBER[scale_type]}
    code, scale, minimum = run_operator(SPEC, [x], attributes)
    return code, scale, minimum


def quantize_tokens(
    x: Tensor, *, bits: int, scale_type: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Quantize with one scale and one minimum for each token, over the channels of all its KV heads.

    Args:
        x: Keys or values, [B, G, L, D], as kv_quantize takes them.
        bits: 8, 4 or 2; D must be a multiple of 8 / bits.
        scale_type: torch.float16 or torch.float32.

    Returns:
        Codes [B, G, L, D * bits / 8] uint8; scales and minima [B, 1, L, 1]: as kv_dequantize and kv_attention take them
        with axis "token" and group 0.

    Raises:
        ConfigError: an attribute is not allowed.
        ShapeError: x has the wrong shape or dtype, or D does not fill whole bytes.

    Source: ZipCache, arXiv:2405.14256; code ThisisBillhe/ZipCache b6932b9, CompressUtils/compress_function.py.
    Differs: codes are packed head by head.
    """
    check_tensor("quantize_tokens", "x", x, (None, None, None, None), "BGLD")
    parts = 8 // check_choice("quantize_tokens", "bits", bits, BITS)
    b, g, length, d = x.shape
    check_packing("quantize_tokens", "x", d, bits)
    # Part p of a byte is channel p * width on of its head: so one head of all channels has them part by part.
    width = d // parts
    beside = x.reshape(b, g, length, parts, width).permute(0, 2, 3, 1, 4).reshape(b, 1, length, g * d)
    code, scale, minimum = kv_quantize(beside, bits=bits, axis="token", scale_type=scale_type)
    return code.reshape(b, length, g, width).transpose(1, 2).contiguous(), scale, minimum


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    shape = [sample.axes[a] for a in "BGLD"]
    x = torch.randn(shape, generator=generator)
    if sample.values == "fp16_range":
        x = x.clamp(-2, 2) * 3e4
    if sample.values == "zeros":
        x = torch.zeros(shape)
    if sample.values == "ties":  # on the levels and half way between them: every step a power of two
        x = torch.randint(0, 2 * (1 << sample.attributes["bits"]) - 1, shape, generator=generator) / 4  # type: ignore[operator]
    if sample.values == "constants":  # every second channel and token
        x[:, :, :, ::2] = -0.3
        x[:, :, ::2] = 0.1
    return (x,)


def _sample(
    b: int, g: int, length: int, d: int, reason: str, *, bits: int, axis: int, group: int = 0, scale_type: int = 10,
    values: str = "normal",
) -> Sample:  # fmt: skip
    attributes = {"bits": bits, "axis": axis, "group": group, "scale_type": scale_type}
    axes = {"B": b, "G": g, "L": length, "D": d}
    return Sample(axes=axes, attributes=attributes, reason=reason, values=values)


OPERATOR = Operator(
    spec=SPEC,
    function=kv_quantize,
    body=BODY,
    make_inputs=_make_inputs,
    samples=(
        _sample(1, 1, 1, 1, "one value", bits=8, axis=0),
        _sample(1, 1, 1, 4, "one byte, a group of one token", bits=2, axis=0),
        _sample(2, 3, 7, 20, "primes, all tokens a group", bits=2, axis=0),
        _sample(2, 3, 7, 20, "primes, all channels a group", bits=4, axis=1),
        _sample(2, 2, 12, 20, "groups of 3 tokens", bits=2, axis=0, group=3),
        _sample(2, 2, 5, 24, "groups of 3 channels, which cut the parts of a byte", bits=2, axis=1, group=3),
        _sample(2, 2, 8, 16, "groups of 1: every step is 0", bits=4, axis=1, group=1),
        _sample(2, 2, 64, 8, "float32 scales", bits=2, axis=0, group=32, scale_type=1),
        _sample(2, 2, 9, 33, "8 bits, an odd width", bits=8, axis=0, group=9, scale_type=1),
        _sample(1, 2, 6, 64, "8 bits, groups of channels", bits=8, axis=1, group=32),
        _sample(1, 2, 32, 16, "values half way between two levels", bits=2, axis=0, group=32, values="ties"),
        _sample(1, 2, 6, 64, "values half way between, 4 bits", bits=4, axis=1, group=32, values="ties"),
        _sample(2, 2, 8, 16, "constant groups along tokens", bits=2, axis=0, group=4, values="constants"),
        _sample(2, 2, 8, 16, "constant groups along channels", bits=4, axis=1, group=4, values="constants"),
        _sample(1, 1, 4, 8, "zeros", bits=4, axis=0, values="zeros"),
        _sample(1, 2, 16, 16, "ranges beyond float16", bits=4, axis=0, group=8, values="fp16_range"),
        _sample(1, 2, 16, 16, "ranges beyond float16, 8 bits", bits=8, axis=1, group=8, values="fp16_range"),
        _sample(1, 4, 128, 128, "KIVI's keys, a flush of 128 tokens", bits=2, axis=0, group=32),
        _sample(1, 4, 129, 128, "KIVI's values, one token more than a flush", bits=2, axis=1, group=32),
        _sample(1, 2, 2048, 64, "a long prompt", bits=4, axis=0, group=64),
    ),
)
