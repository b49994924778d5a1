"""Packed key-value caches as the KV operators share them: codes in bytes, a scale and a minimum for each group.

A value is `code * scale + minimum`. Codes of `bits` bits are packed planar along D: D is split into 8 / bits equal
parts p_i, and byte = sum of p_i << (bits * i). A group is `group` consecutive tokens of one channel (axis 0) or `group`
consecutive channels of one token (axis 1); 0 is the whole axis. Scales and minima have axes 0 and 1 of the codes, or 1
where all items, or all KV heads, share them.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.kv_sizes import CODES, SCALES, scale_shape
from trt_compress.plugins.operator import check_broadcast, check_tensor
from trt_compress.plugins.spec import FLOATS, ONNX_NUMBERS
from trt_compress.suggest import not_known

BITS = (8, 4, 2)
AXIS_NAMES = ("channel", "token")  # of the attribute `axis`: one scale for each channel, or for each token
ONNX_NUMBER: Mapping[torch.dtype, int] = {getattr(torch, dtype): ONNX_NUMBERS[dtype] for dtype in FLOATS}
DTYPE_OF: Mapping[int, torch.dtype] = {number: dtype for dtype, number in ONNX_NUMBER.items()}
LARGEST_HALF = 65504.0

Choice = TypeVar("Choice")


def check_choice(op: str, name: str, value: object, allowed: Sequence[Choice]) -> Choice:
    """Return `value` if it is one of `allowed`; raise ConfigError otherwise."""
    for choice in allowed:
        if type(value) is type(choice) and value == choice:
            return choice
    names = [str(choice).removeprefix("torch.") for choice in allowed]
    given = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    raise ConfigError(not_known(f"{op}: {name}", given, names))


def check_group(op: str, name: str, group: object, length: int, letter: str) -> int:
    """Return `group` if it is 0 or divides the axis it runs along; raise ConfigError otherwise."""
    if isinstance(group, bool) or not isinstance(group, int) or group < 0:
        raise ConfigError(f"{op}: {name}={group!r} is not allowed; give 0 (all of {letter}) or a divisor of {letter}.")
    if group and length % group:
        raise ConfigError(f"{op}: {name}={group} does not divide {letter}={length}; give 0 (all of it) or a divisor.")
    return group


def check_packing(op: str, name: str, width: int, bits: int) -> None:
    """Raise ShapeError unless `width` values of `bits` bits fill whole bytes."""
    if width % (8 // bits):
        raise ShapeError(f"{op}: {name} has D={width}, which {bits}-bit codes do not pack into whole bytes; "
                         f"it must be a multiple of {8 // bits}.")  # fmt: skip


def check_packed(
    op: str, prefix: str, tensors: Sequence[Tensor], shape: Sequence[int | None], *, bits: int, axis: int, group: object
) -> int:
    """Raise unless code, scale and minimum fit together as a cache of `shape` [B, G, L, D]; None is any size.

    Returns:
        The group.
    """
    code, scale, minimum = tensors
    b, g, length, d = shape
    check_tensor(op, f"{prefix}code", code, (b, g, length, None if d is None else d * bits // 8), "BGLW", CODES)
    b, g, length, width = code.shape
    d = width * 8 // bits
    checked = check_group(op, f"{prefix}group", group, length if axis == 0 else d, "LD"[axis])
    wanted = scale_shape(b, g, length, d, axis=axis, group=checked)
    allowed = ((1, b), (1, g), *((size,) for size in wanted[2:]))
    check_broadcast(op, f"{prefix}scale", scale, allowed, "BGLD", SCALES)
    check_tensor(op, f"{prefix}minimum", minimum, scale.shape, "BGLD", [str(scale.dtype).removeprefix("torch.")])
    return checked


def grouped(x: Tensor, axis: int, group: int) -> Tensor:
    """[B, G, L, D] as [B, G, P, group, Q]: the elements of a group are on axis 3."""
    b, g, length, d = x.shape
    if axis == 0:
        return x.reshape(b, g, length // group if group else 1, group or length, d)
    return x.reshape(b, g, length * (d // group if group else 1), group or d, 1)


def grouped_scale(scale: Tensor, axis: int) -> Tensor:
    """A scale or minimum as float32 [B, G, P, 1, Q]."""
    return scale.float().unsqueeze(3) if axis == 0 else scale.float().flatten(2)[..., None, None]


def rounded(value: Tensor, half: bool) -> Tensor:
    """`value` rounded to float16 where `half` asks for it and it does not overflow; float32."""
    if not half:
        return value
    short = value.half().float()
    return torch.where(short.isfinite(), short, value)


def pack(code: Tensor, bits: int) -> Tensor:
    """Codes [..., D] as bytes [..., D * bits / 8]."""
    parts = code.to(torch.uint8).reshape(*code.shape[:-1], 8 // bits, code.shape[-1] * bits // 8)
    weight = torch.tensor([[1 << (bits * i)] for i in range(8 // bits)], dtype=torch.uint8, device=code.device)
    packed: Tensor = (parts * weight).sum(-2, dtype=torch.uint8)
    return packed


def unpack(code: Tensor, bits: int) -> Tensor:
    """Bytes [..., W] as codes [..., W * 8 / bits], uint8."""
    parts = [(code >> (bits * i)) & ((1 << bits) - 1) for i in range(8 // bits)]
    return torch.cat(parts, dim=-1)


def dequantized(
    code: Tensor, scale: Tensor, minimum: Tensor, *, bits: int, axis: int, group: int, half: bool = False
) -> Tensor:
    """Values in float32; `half` rounds the product to float16."""
    codes = unpack(code, bits).float()
    product = rounded(grouped(codes, axis, group) * grouped_scale(scale, axis), half)
    return (product + grouped_scale(minimum, axis)).reshape(codes.shape)


# ---- the same in ONNX text, for bodies ------------------------------------------------------------------------------

# Constants that the texts below use.
CONSTANTS = """
  powers = Constant <value_ints = [1, 4, 16, 64, 256]> ()
  i0 = Constant <value_int = 0> ()
  i1 = Constant <value_int = 1> ()
  i2 = Constant <value_int = 2> ()
  i4 = Constant <value_int = 4> ()
  i8 = Constant <value_int = 8> ()
  v0 = Constant <value_ints = [0]> ()
  v1 = Constant <value_ints = [1]> ()
  v3 = Constant <value_ints = [3]> ()
  v4 = Constant <value_ints = [4]> ()
  v00 = Constant <value_ints = [0, 0]> ()
"""


def format_text(prefix: str = "") -> str:
    """Nodes for `{prefix}bits`: weights of the parts in a byte, as an int64 column, and the number of levels."""
    return f"""
  {prefix}bits_ = Constant <value_int: int = @{prefix}bits> ()
  {prefix}half_bits = Div ({prefix}bits_, i2)
  {prefix}num_parts = Div (i8, {prefix}bits_)
  {prefix}v_parts = Reshape ({prefix}num_parts, v1)
  {prefix}base = Gather (powers, {prefix}half_bits)
  {prefix}v_step = Reshape ({prefix}half_bits, v1)
  {prefix}weights = Slice (powers, v0, v4, v0, {prefix}v_step)
  {prefix}column = Unsqueeze ({prefix}weights, v1)
"""


def group_text(prefix: str = "") -> str:
    """Nodes for the shapes of the groups, from `{prefix}v_l` and `{prefix}v_d`, the sizes of L and D."""
    return f"""
  {prefix}axis_ = Constant <value_int: int = @{prefix}axis> ()
  {prefix}group_ = Constant <value_int: int = @{prefix}group> ()
  {prefix}by_channel = Sub (i1, {prefix}axis_)
  {prefix}along_l = Mul ({prefix}v_l, {prefix}by_channel)
  {prefix}along_d = Mul ({prefix}v_d, {prefix}axis_)
  {prefix}length = Add ({prefix}along_l, {prefix}along_d)
  {prefix}is_whole = Equal ({prefix}group_, i0)
  {prefix}v_group = Where ({prefix}is_whole, {prefix}length, {prefix}group_)
  {prefix}groups = Div ({prefix}length, {prefix}v_group)
  # axis 0 is [L / group, group, D], axis 1 is [L * D / group, group, 1]
  {prefix}l_groups = Mul ({prefix}v_l, {prefix}groups)
  {prefix}outer_channel = Mul ({prefix}groups, {prefix}by_channel)
  {prefix}outer_token = Mul ({prefix}l_groups, {prefix}axis_)
  {prefix}v_outer = Add ({prefix}outer_channel, {prefix}outer_token)
  {prefix}inner_channel = Mul ({prefix}v_d, {prefix}by_channel)
  {prefix}v_inner = Add ({prefix}inner_channel, {prefix}axis_)
  {prefix}grouped_shape = Concat <axis = 0> (v00, {prefix}v_outer, {prefix}v_group, {prefix}v_inner)
  {prefix}scale_grouped_shape = Concat <axis = 0> (v00, {prefix}v_outer, v1, {prefix}v_inner)
"""


def parts_text(prefix: str, code: str) -> str:
    """Nodes from bytes `code` to `{prefix}parts32`, float32 [B, G, L, parts, W], after format_text()."""
    return f"""
  {prefix}column32 = Cast <to = 6> ({prefix}column)
  {prefix}base32 = Cast <to = 6> ({prefix}base)
  {prefix}all_bytes = Gather (powers, i4)
  {prefix}all_bytes32 = Cast <to = 6> ({prefix}all_bytes)
  # the same bytes may come as int8; Mod brings them to 0..255
  {prefix}signed = Cast <to = 6> ({code})
  {prefix}byte = Mod ({prefix}signed, {prefix}all_bytes32)
  {prefix}byte_rows = Unsqueeze ({prefix}byte, v3)
  {prefix}shifted = Div ({prefix}byte_rows, {prefix}column32)
  {prefix}parts = Mod ({prefix}shifted, {prefix}base32)
  {prefix}parts32 = Cast <to = 1> ({prefix}parts)
"""


def product_text(prefix: str = "") -> str:
    """Nodes from `{prefix}code` and its scales to `{prefix}product` and `{prefix}low`, float32 [B, G, P, group, Q]."""
    return f"""
  {format_text(prefix)}
  {prefix}v_l = Shape <start = 2, end = 3> ({prefix}code)
  {prefix}v_w = Shape <start = 3, end = 4> ({prefix}code)
  {prefix}v_d = Mul ({prefix}v_w, {prefix}num_parts)
  {group_text(prefix)}
  {parts_text(prefix, f"{prefix}code")}
  {prefix}codes = Reshape ({prefix}parts32, {prefix}grouped_shape)
  {prefix}scale32 = Cast <to = 1> ({prefix}scale)
  {prefix}scale_column = Reshape ({prefix}scale32, {prefix}scale_grouped_shape)
  {prefix}minimum32 = Cast <to = 1> ({prefix}minimum)
  {prefix}low = Reshape ({prefix}minimum32, {prefix}scale_grouped_shape)
  {prefix}product = Mul ({prefix}codes, {prefix}scale_column)
  {prefix}values_shape = Concat <axis = 0> (v00, {prefix}v_l, {prefix}v_d)
"""


# 1/3 tells types apart: in float16 it is another number than in float32 or bfloat16.
PROBES = """
  third = Constant <value_float = 0.3333333333> ()
  third_half = Constant <value_float = 0.333251953125> ()
  largest_half = Constant <value_float = 65504.0> ()
"""


def is_half_text(name: str, tensor: str) -> str:
    """Nodes for `name`, whether `tensor` is float16."""
    return f"""
  {name}_probe = CastLike (third, {tensor})
  {name}_probe32 = Cast <to = 1> ({name}_probe)
  {name} = Equal ({name}_probe32, third_half)
"""


def rounded_text(result: str, value: str) -> str:
    """Nodes for `rounded`: `value` rounded to float16 where the scalar `half` asks for it and it does not overflow."""
    return f"""
  {result}_short = Cast <to = 10> ({value})
  {result}_back = Cast <to = 1> ({result}_short)
  {result}_fits = LessOrEqual ({result}_back, largest_half)
  {result}_taken = And ({result}_fits, half)
  {result} = Where ({result}_taken, {result}_back, {value})
"""
