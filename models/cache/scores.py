"""How much query rows attend to the entries of a cache."""

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.plugins.attention_score.op import attention_score

HIDDEN = -1e4


def scores_of_last(query: Tensor, keys: Tensor, length: Tensor, *, scale: float) -> Tensor:
    """Attention of the last rows to every entry, the mean over these rows.

    Args:
        query: Of the last R tokens, [B, H, R, D].
        keys: Of a cache, [B, G, L, D].
        length: Entries of each sequence, [B] int64, R or more; the last R are those of the rows.
        scale: Factor of the products.

    Returns:
        [B, H, L] in float32; behind the length 0.
    """
    rows = query.shape[2]
    number = length[:, None] - rows + torch.arange(rows, device=keys.device)
    return attention_score(query, keys, number, length=length, scale=scale, causal=True, heads="none")


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
