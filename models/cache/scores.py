"""How much query rows attend to the entries of a cache."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.plugins.attention_score.op import attention_score
from trt_compress.plugins.operator import cast

_HIDDEN = -1e4
_LEAST = -1e30


def scores_of_last(query: Tensor, keys: Tensor, length: Tensor, *, scale: float, softcap: float = 0.0) -> Tensor:
    """Attention of the last rows to every entry, the mean over these rows.

    Args:
        query: Of the last R tokens, [B, H, R, D].
        keys: Of a cache, [B, G, L, D].
        length: Entries of each sequence, [B] int64, R or more; the last R are those of the rows.
        scale: Factor of the products.
        softcap: These become cap * tanh(x / cap); 0: they do not.

    Returns:
        [B, H, L] in float32; behind the length 0.
    """
    rows = query.shape[2]
    number = length[:, None] - rows + torch.arange(rows, device=keys.device)
    return attention_to(query, keys, number, length, scale=scale, softcap=softcap)


def attention_to(
    query: Tensor,
    keys: Tensor,
    position: Tensor,
    length: Tensor,
    *,
    scale: float,
    softcap: float = 0.0,
    rows: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Attention that rows pay to every entry.

    Args:
        query: [B, H, R, D].
        keys: Of a cache, [B, G, L, D]; what stands behind the length does not matter.
        position: The slot of each row, up to which it sees, [B, R] int64; -1: it sees nothing and pays nothing.
        length: Entries of each sequence, [B] int64.
        scale, softcap: Of the products.
        rows: The mean over the rows, or their sum.

    Returns:
        [B, H, L] in float32; behind the length 0.
    """
    keys = cast(keys, query.dtype)
    if not softcap:
        return attention_score(query, keys, position, length=length, scale=scale, causal=True, rows=rows, heads="none")
    batch, heads, count, width = query.shape
    groups, slots = keys.shape[1:3]
    slot = torch.arange(slots, device=keys.device)
    clean = torch.where((slot < length[:, None])[:, None, :, None], keys, torch.zeros_like(keys)).float()
    each = query.float().reshape(batch, groups, -1, width)  # query heads of a KV head one behind the other
    products = (each @ clean.transpose(2, 3)).reshape(batch, heads, count, slots) * scale
    visible = ((slot <= position[..., None]) & (slot < length[:, None, None]))[:, None]
    bent = torch.where(visible, torch.tanh(products / softcap) * softcap, _HIDDEN).softmax(dim=3)
    paid = torch.where(visible, bent, 0.0)
    return paid.mean(dim=2) if rows == "mean" else paid.sum(dim=2)


def attention_beside(
    query: Tensor, keys: Tensor, position: Tensor, others: Tensor, *, scale: float, softcap: float = 0.0
) -> Tensor:
    """Attention that rows pay to the entries of one part of a cache, beside what they pay to another.

    Args:
        query: [B, H, R, D].
        keys: Of the part, [B, G, L, D]; what stands behind the largest position does not matter.
        position: The slot of each row, up to which it sees, [B, R] int64; -1: it sees nothing and pays nothing.
        others: Logarithms of the sums of exponentials over the other part, [B, H, R].
        scale, softcap: Of the products.

    Returns:
        The sum over the rows and the query heads of each KV head, [B, G, L] in float32.
    """
    batch, heads, count, width = query.shape
    groups, slots = keys.shape[1:3]
    slot = torch.arange(slots, device=keys.device)
    there = slot <= position.amax(dim=1, keepdim=True)
    clean = torch.where(there[:, None, :, None], keys, torch.zeros_like(keys)).float()
    products = (query.float().reshape(batch, groups, -1, width) @ clean.transpose(2, 3)) * scale
    if softcap:
        products = torch.tanh(products / softcap) * softcap
    products = products.reshape(batch, groups, -1, count, slots)
    visible = (slot <= position[..., None])[:, None, None]
    base = others.reshape(batch, groups, -1, count, 1)
    hidden = torch.where(visible, products, _LEAST)
    peak = torch.maximum(hidden.amax(dim=4, keepdim=True), base)
    paid = torch.where(visible, torch.exp(hidden - peak), 0.0)
    total = paid.sum(dim=4, keepdim=True) + torch.exp(base - peak)
    return (paid / total).sum(dim=(2, 3))


def pooled(score: Tensor, how: str, kernel: int) -> Tensor:
    """Pool scores [B, H, L] along the entries; an average divides by the kernel at the borders too."""
    if kernel == 1:
        return score
    pool = functional.max_pool1d if how == "max" else functional.avg_pool1d
    return pool(score, kernel, stride=1, padding=kernel // 2)


def of_groups(score: Tensor, groups: int, how: str) -> Tensor:
    """Scores of query heads [B, H, L] as those of KV heads [B, G, L]: "mean", "sum" or "max"."""
    batch, heads, slots = score.shape
    parts = score.reshape(batch, groups, heads // groups, slots)
    return parts.amax(dim=2) if how == "max" else parts.sum(dim=2) if how == "sum" else parts.mean(dim=2)
