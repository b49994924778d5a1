"""Attention to chosen entries, where every query head may have chosen its own."""

from collections.abc import Callable

import torch
from torch import Tensor

AttendSome = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of queries [B, Hs, 1, D] and slots of each KV head, [B, G, K]: means [B, Hs, 1, D], logs of sums [B, Hs, 1]."""


def by_head(query: Tensor, index: Tensor, groups: int, attend: AttendSome) -> tuple[Tensor, Tensor]:
    """Attend to the slots of each query head, or of each KV head.

    Query heads with slots of their own are taken in turns, one of each KV head at a time, so that as many rows are read
    as they have chosen.

    Args:
        query: [B, H, 1, D].
        index: [B, H, K] or [B, G, K] int64.
        groups: KV heads, G.
        attend: What attends.

    Returns:
        Means [B, H, 1, D], and logarithms of the sums of exponentials [B, H, 1].
    """
    heads = query.shape[1]
    if index.shape[1] == groups:
        return attend(query, index)
    repeats = heads // groups
    queries, slots = (part.reshape(part.shape[0], groups, repeats, *part.shape[2:]) for part in (query, index))
    parts = [attend(queries[:, :, turn], slots[:, :, turn]) for turn in range(repeats)]
    y, lse = (torch.stack(list(of), dim=2) for of in zip(*parts, strict=True))
    return y.reshape(query.shape), lse.reshape(query.shape[:3])
