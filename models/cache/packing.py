"""What stores that pack rows share: blocks of tokens, rows that move up, and two parts of a cache as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.plugins.kv_quantize.op import kv_quantize
from trt_compress.plugins.operator import cast

_NOTHING = -1e30  # the logarithm of the sum of no exponentials
_BYTE = 255.0


def rows_of(blocks: Tensor, tokens: int) -> Tensor:
    """Blocks [B, G, P, tokens * W] as rows [B, G, P * tokens, W]."""
    batch, groups, _, width = blocks.shape
    return blocks.reshape(batch, groups, -1, width // tokens)


def blocks_of(rows: Tensor, tokens: int) -> Tensor:
    """Rows [B, G, P * tokens, W] as blocks [B, G, P, tokens * W]."""
    batch, groups, _, width = rows.shape
    return rows.reshape(batch, groups, -1, tokens * width)


def rows_from(rows: Tensor, length: Tensor, count: int) -> Tensor:
    """The first `count` of rows [B, G, L, D]; those at and behind the length [B] are zeros."""
    there = torch.arange(count, device=rows.device) < length[:, None]
    return torch.where(there[:, None, :, None], rows[:, :, :count], torch.zeros_like(rows[:, :, :count]))


def moved_up(rows: Tensor, went: Tensor) -> Tensor:
    """Rows [B, G, L, D] without the first `went` [B] of them; what stands behind the others does not matter."""
    slots = rows.shape[2]
    index = (torch.arange(slots, device=rows.device) + went[:, None]).clamp(max=slots - 1)
    return rows.gather(2, index[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))


def merged(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Attention to two parts of a cache as attention to both: means [B, H, T, D] with logarithms of sums [B, H, T].

    Each token sees something of the second part.
    """
    (y, lse), (other, base) = first, second
    weight = (1 / (1 + torch.exp(base - lse)))[..., None].to(y.dtype)
    return other + (y - other) * weight


def both(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The same where both parts may be empty, with the logarithm of the sum of exponentials of both, finite."""
    (y, lse), (other, base) = first, second
    lse, base = lse.clamp(min=_NOTHING), base.clamp(min=_NOTHING)
    peak = torch.maximum(lse, base)
    mine, theirs = torch.exp(lse - peak), torch.exp(base - peak)
    weight = (mine / (mine + theirs))[..., None].to(y.dtype)
    return other + (y - other) * weight, peak + (mine + theirs).log()


def code_planes(codes: Tensor, planes: Sequence[int]) -> list[Tensor]:
    """Codes [B, G, L, D] int64 in parts of so many bits, the lowest first, each packed in bytes of equal parts of the
    axis.

    A part runs back where the one above it is odd: of codes that are one apart one part differs, by one.
    """
    rest, made = codes.float(), list[Tensor]()
    for bits in planes:
        above = (rest / 2**bits).floor()
        part = rest - above * 2**bits
        odd = above - (above / 2).floor() * 2
        part = part + odd * (2**bits - 1 - 2 * part)
        pieces = part.chunk(8 // bits, dim=-1)
        packed = pieces[0]
        for number, piece in enumerate(pieces[1:], start=1):
            packed = packed + piece * 2 ** (bits * number)
        made.append(_bytes_of(packed))
        rest = above
    return made


def codes_of_planes(packed: Sequence[Tensor], planes: Sequence[int]) -> Tensor:
    """The codes [B, G, L, D] int64 that lie in bytes [B, G, L, D * bits / 8] of their parts."""
    total: Tensor | None = None
    for each, bits in zip(reversed(packed), reversed(planes), strict=True):
        rest, pieces = _numbers_of(each), list[Tensor]()
        for _ in range(8 // bits):
            above = (rest / 2**bits).floor()
            pieces.append(rest - above * 2**bits)
            rest = above
        part = torch.cat(pieces, dim=-1)
        if total is None:
            total = part
        else:
            odd = total - (total / 2).floor() * 2
            total = total * 2**bits + part + odd * (2**bits - 1 - 2 * part)
    assert total is not None
    return cast(total, torch.int64)


def _bytes_of(numbers: Tensor) -> Tensor:
    """Whole numbers 0..255 [B, G, L, W] as bytes.

    By the operator that packs, as TensorRT has no bytes inside of a graph: 0 and 255 beside each row make its least
    code 0 and the step 1.
    """
    ends = torch.tensor([0.0, _BYTE], device=numbers.device).expand(*numbers.shape[:3], 2)
    code, _, _ = kv_quantize(torch.cat([numbers, ends], dim=3), bits=8, axis="token", scale_type=torch.float32)
    return code[..., : numbers.shape[3]]


def _numbers_of(packed: Tensor) -> Tensor:
    """Bytes [B, G, L, W] as whole numbers 0..255 in float32."""
    step = torch.ones(1, 1, packed.shape[2], 1, device=packed.device)
    return kv_dequantize(packed, step, torch.zeros_like(step), bits=8, axis="token", to=torch.float32)
