"""Quantizing as the papers' own code did it, against ours: codes, scales and reconstruction must have its bits."""

import torch
from torch import Tensor

from tests.golden.golden_data import call

ONNX_NUMBER = {torch.float32: 1, torch.float16: 10}


def quantize(form: str, x: Tensor, *, bits: int, axis: int, group: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, one a byte, scales and minima in x's dtype; axis 0 is along the tokens of a channel."""
    attributes = {"bits": bits, "axis": axis, "group": group, "scale_type": ONNX_NUMBER[x.dtype]}
    code, scale, minimum = call(form, "TrtcKVQuantize", attributes, x)
    return spread(code, bits), scale, minimum


def dequantize(
    form: str, codes: Tensor, scale: Tensor, minimum: Tensor, *, bits: int, axis: int, group: int = 0
) -> Tensor:
    attributes = {"bits": bits, "axis": axis, "group": group, "to": ONNX_NUMBER[scale.dtype]}
    return call(form, "TrtcKVDequantize", attributes, join(codes, bits), scale, minimum)[0]


def spread(packed: Tensor, bits: int) -> Tensor:
    """Bytes of equal parts of the last axis, the first part in the low bits, as one code a byte."""
    return torch.cat([packed.int() // 2 ** (bits * part) % 2**bits for part in range(8 // bits)], dim=-1).byte()


def join(codes: Tensor, bits: int) -> Tensor:
    parts = codes.int().chunk(8 // bits, dim=-1)
    return sum((part * 2 ** (bits * number) for number, part in enumerate(parts)), torch.zeros(())).byte()


def codes_in_words(words: Tensor, bits: int) -> Tensor:
    """32-bit words of consecutive codes, the first in the low bits, as one code a byte."""
    codes = [(words.long() % 2**32) // 2 ** (bits * place) % 2**bits for place in range(32 // bits)]
    return torch.stack(codes, dim=-1).flatten(-2).byte()


def heads_beside(x: Tensor) -> Tensor:
    """[B, H, T, d] as one head of all channels, [B, 1, T, H * d]."""
    return x.transpose(1, 2).flatten(2)[:, None]


def heads_apart(x: Tensor, num_heads: int) -> Tensor:
    return x[:, 0].unflatten(-1, (num_heads, -1)).transpose(1, 2)
