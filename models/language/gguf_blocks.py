"""What the bytes of a GGUF tensor mean: numbers by the package `gguf`, and whole numbers where they are that.

Source: ggml's quantized types as `gguf.quants` reads them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.foreign import needs_extra
from trt_compress.models.language.gguf_file import GgufTensor

if TYPE_CHECKING:
    from torch import Tensor

    from trt_compress.models.layers.blocks import WholeNumbers

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
"""Types that hold numbers as they are, and torch's names for them."""

_PIECE = 1 << 22  # numbers that are worked on at once

Read = Callable[[int, int], bytearray]
"""Bytes of a tensor, from one up to another."""


def numbers(stored: GgufTensor, read: Read) -> "Tensor":
    """The tensor: of a plain type as it is, of blocks rounded to float16.

    Raises:
        ConfigError: A number of a block is too large for that.
    """
    import torch

    if stored.type in PLAIN:
        dtype = getattr(torch, PLAIN[stored.type])
        if not stored.bytes:
            return torch.empty(stored.shape, dtype=dtype)
        return torch.frombuffer(read(0, stored.bytes), dtype=dtype).reshape(stored.shape)
    with needs_extra("gguf"):
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

    kind = GGMLQuantizationType[stored.type]
    rows, width = math.prod(stored.shape[:-1]), stored.shape[-1]
    found = torch.empty((rows, width), dtype=torch.float16)
    bytes_of_row = stored.bytes // max(rows, 1)
    several = max(1, _PIECE // max(width, 1))
    for first in range(0, rows, several):
        last = min(first + several, rows)
        packed = np.frombuffer(read(first * bytes_of_row, last * bytes_of_row), dtype=np.uint8)
        piece = torch.from_numpy(dequantize(packed.reshape(last - first, bytes_of_row), kind))
        if not float(piece.abs().max()) <= torch.finfo(torch.float16).max:
            raise ConfigError(
                f"gguf: a tensor of {stored.type} {list(stored.shape)} holds numbers beyond those of float16; it is "
                "damaged, or give the model in F16 or F32."
            )
        found[first:last] = piece
    return found.reshape(stored.shape)


def whole_numbers(stored: GgufTensor, read: Read) -> "WholeNumbers | None":
    """A matrix of blocks as codes and scales, exactly; None: it is of another type, or damaged.

    Codes of up to 4 bits stay so, others take 8. What a block adds to all of its numbers comes as `least`. A block with
    a negative scale has its codes turned round; of Q4_0, whose codes reach from -8 to 7, also a zero point of -1.
    """
    import torch

    from trt_compress.models.layers.blocks import WholeNumbers

    form = _FORMS.get(stored.type)
    if form is None or len(stored.shape) != 2:
        return None
    rows, width = stored.shape
    size = stored.bytes // max(rows * width // form.length, 1)
    blocks = torch.frombuffer(read(0, stored.bytes), dtype=torch.uint8).reshape(-1, size)
    codes, scale, least = form.read(blocks)
    if not bool(torch.isfinite(scale).all()) or least is not None and not bool(torch.isfinite(least).all()):
        return None
    zero = None
    turned = scale < 0
    if bool(turned.any()):
        reaches = int(codes.min()) == (-8 if form.bits == 4 else -128)
        if reaches and form.bits == 8:
            return None
        parts = codes.reshape(*scale.shape, -1)
        codes = torch.where(turned[..., None], -parts - int(reaches), parts).reshape(codes.shape)
        zero = -turned.to(torch.int8).reshape(rows, -1) if reaches else None
    return WholeNumbers(
        bits=form.bits,
        group=form.group,
        codes=codes.reshape(rows, width),
        scale=scale.abs().reshape(rows, -1),
        zero=zero,
        least=None if least is None else least.reshape(rows, -1),
    )


@dataclass(frozen=True, slots=True)
class _Form:
    """How a type keeps numbers.

    Attributes:
        length: Numbers of a block.
        bits: That their codes fit into, 4 or 8.
        group: Numbers that share a scale.
        read: Blocks uint8 [blocks, bytes] → codes int8 [blocks, length], scales [blocks, length / group], and what
            codes of 0 stand for, float32 of the same shape; None: 0.
    """

    length: int
    bits: int
    group: int
    read: "Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]"


def _halves(blocks: "Tensor", first: int) -> "tuple[Tensor, Tensor]":
    """Two columns of float16, [blocks, 1]."""
    import torch

    both = blocks[:, first : first + 4].contiguous().view(torch.float16)
    return both[:, :1], both[:, 1:]


def _nibbles(packed: "Tensor") -> "Tensor":
    """The low halves of bytes, and behind them the high ones, on the last axis."""
    import torch

    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _bits(packed: "Tensor", width: int) -> "Tensor":
    """Pieces of bytes, those at the low end first: [..., 8 / width, bytes]."""
    import torch

    return torch.stack([packed >> at & (1 << width) - 1 for at in range(0, 8, width)], dim=-2)


def _round_middle(codes: "Tensor", middle: int) -> "Tensor":
    import torch

    return codes.view(torch.int8) - middle


def _q8_0(blocks: "Tensor") -> "tuple[Tensor, Tensor, Tensor | None]":
    import torch

    return blocks[:, 2:].contiguous().view(torch.int8), _halves(blocks, 0)[0], None


def _q4_0(blocks: "Tensor") -> "tuple[Tensor, Tensor, Tensor | None]":
    return _round_middle(_nibbles(blocks[:, 2:]), 8), _halves(blocks, 0)[0], None


def _q4_1(blocks: "Tensor") -> "tuple[Tensor, Tensor, Tensor | None]":
    scale, least = _halves(blocks, 0)
    return _round_middle(_nibbles(blocks[:, 4:]), 8), scale, least.float() + 8 * scale.float()


def _fifth_bits(packed: "Tensor") -> "Tensor":
    """The bits of 4 bytes in order, each as the fifth of a code."""
    import torch

    at = torch.arange(8, dtype=torch.uint8)
    return (packed[..., None] >> at & 1).flatten(1) << 4


def _q5_0(blocks: "Tensor") -> "tuple[Tensor, Tensor, Tensor | None]":
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _round_middle(codes, 16), _halves(blocks, 0)[0], None


def _q5_1(blocks: "Tensor") -> "tuple[Tensor, Tensor, Tensor | None]":
    scale, least = _halves(blocks, 0)
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _round_middle(codes, 16), scale, least.float() + 16 * scale.float()


def _q2_k(blocks: "Tensor") -> "tuple[Tensor, Tensor, Tensor | None]":
    codes = _bits(blocks[:, 16:80].reshape(-1, 2, 32), 2).flatten(1)
    scale, least = (part.float() for part in _halves(blocks, 80))
    parts = blocks[:, :16]
    scale, least = scale * (parts & 15), -least * (parts >> 4)
    return _round_middle(codes, 0), scale, least


def _q3_k(blocks: "Tensor") -> "tuple[Tensor, Tensor, Tensor | None]":
    import torch

    low = _bits(blocks[:, 32:96].reshape(-1, 2, 32), 2).flatten(1)
    high = _bits(blocks[:, :32], 1).flatten(1)
    parts = _nibbles(blocks[:, 96:104]) | _bits(blocks[:, 104:108], 2).flatten(1) << 4
    scale = blocks[:, 108:].contiguous().view(torch.float16).float() * (parts.view(torch.int8) - 32)
    return _round_middle(low | high << 2, 4), scale, None


def _scales_of_six_bits(packed: "Tensor") -> "tuple[Tensor, Tensor]":
    """Eight factors of scales and eight of what is taken off, out of 12 bytes."""
    import torch

    first, second, third = packed.reshape(-1, 3, 4).unbind(1)
    scale = torch.cat([first & 63, third & 15 | first >> 6 << 4], dim=1)
    return scale, torch.cat([second & 63, third >> 4 | second >> 6 << 4], dim=1)


def _q4_k(blocks: "Tensor", codes: "Tensor | None" = None, middle: int = 8) -> "tuple[Tensor, Tensor, Tensor | None]":
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).flatten(1) if codes is None else codes
    scale, least = (part.float() for part in _halves(blocks, 0))
    of_scale, of_least = _scales_of_six_bits(blocks[:, 4:16])
    scale, least = scale * of_scale, least * of_least
    return _round_middle(codes, middle), scale, middle * scale - least


def _q5_k(blocks: "Tensor") -> "tuple[Tensor, Tensor, Tensor | None]":
    codes = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).flatten(1)
    return _q4_k(blocks, codes | _bits(blocks[:, 16:48], 1).flatten(1) << 4, 16)


def _q6_k(blocks: "Tensor") -> "tuple[Tensor, Tensor, Tensor | None]":
    import torch

    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64))
    high = _bits(blocks[:, 128:192].reshape(-1, 2, 32), 2).flatten(2)
    parts = blocks[:, 192:208].contiguous().view(torch.int8)
    scale = blocks[:, 208:].contiguous().view(torch.float16).float() * parts
    return _round_middle((low | high << 4).flatten(1), 32), scale, None


_FORMS = {
    "Q8_0": _Form(32, 8, 32, _q8_0),
    "Q4_0": _Form(32, 4, 32, _q4_0),
    "Q4_1": _Form(32, 4, 32, _q4_1),
    "Q5_0": _Form(32, 8, 32, _q5_0),
    "Q5_1": _Form(32, 8, 32, _q5_1),
    "Q2_K": _Form(256, 4, 16, _q2_k),
    "Q3_K": _Form(256, 4, 16, _q3_k),
    "Q4_K": _Form(256, 4, 32, _q4_k),
    "Q5_K": _Form(256, 8, 32, _q5_k),
    "Q6_K": _Form(256, 8, 16, _q6_k),
}


def small_floats(stored: GgufTensor, read: Read) -> list[float]:
    """The numbers of a short tensor of float32, without torch."""
    values: np.ndarray[Any, np.dtype[np.float32]] = np.frombuffer(read(0, stored.bytes), dtype="<f4")
    return [float(value) for value in values]
