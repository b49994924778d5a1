"""What stores that pack rows share: blocks of tokens, rows that move up, and two parts of a cache as one."""

import torch
from torch import Tensor


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
