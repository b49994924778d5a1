"""What the bytes of a GGUF tensor mean: numbers by the package `gguf`, and whole numbers where they are that.

Source: ggml's quantized types as `gguf.quants` reads them.
"""

import math
from collections.abc import Callable
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
_GROUP = 32

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
    """A matrix of Q8_0 or Q4_0 as codes and scales, exactly; None: it is of another type.

    A block of Q4_0 with a negative scale has its codes turned round and a zero point of -1.
    """
    import torch

    from trt_compress.models.layers.blocks import WholeNumbers

    if stored.type not in ("Q8_0", "Q4_0") or len(stored.shape) != 2:
        return None
    rows, width = stored.shape
    size = stored.bytes // max(rows * width // _GROUP, 1)
    blocks = torch.frombuffer(read(0, stored.bytes), dtype=torch.uint8).reshape(rows, width // _GROUP, size)
    scale = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    if not bool(torch.isfinite(scale).all()):
        return None
    if stored.type == "Q8_0":
        codes = blocks[..., 2:].contiguous().view(torch.int8)
        if bool((scale < 0).any()):
            return None
        return WholeNumbers(bits=8, group=_GROUP, codes=codes.reshape(rows, width), scale=scale)
    halves = blocks[..., 2:]
    codes = torch.cat([halves & 15, halves >> 4], dim=-1).view(torch.int8) - 8
    turned = scale < 0
    zero = -turned.to(torch.int8) if bool(turned.any()) else None
    codes = torch.where(turned[..., None], -codes - 1, codes)
    return WholeNumbers(bits=4, group=_GROUP, codes=codes.reshape(rows, width), scale=scale.abs(), zero=zero)


def small_floats(stored: GgufTensor, read: Read) -> list[float]:
    """The numbers of a short tensor of float32, without torch."""
    values: np.ndarray[Any, np.dtype[np.float32]] = np.frombuffer(read(0, stored.bytes), dtype="<f4")
    return [float(value) for value in values]
