"""Padding: what methods share to leave it out, so that an item of a padded batch comes out as it does alone.

Padding stands behind the tokens of an item, when tokens come to a site and when they leave it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trt_compress.models.compressors.passing import Tokens
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_select.op import token_select

_LAST = -3e38  # a score below that of every token
_NO_SIZE = 2.0**-60  # of padding in a weighted mean: beside a token it changes no bit, and alone it is no 0 / 0


def packed(tokens: Tokens) -> Tokens:
    """The same tokens in their order, and the padding behind them."""
    if tokens.valid is None:
        return tokens
    x, index, _ = token_select(tokens.x, cast(tokens.valid, torch.float32), num_kept=tokens.x.shape[1], order="score")
    return tokens.at(x, index)


def padding_apart(features: Tensor, valid: Tensor) -> Tensor:
    """Features with which TokenMerge pairs no token with padding while there are tokens.

    Args:
        features: What tokens are compared by, [B, N, D].
        valid: [B, N].

    Returns:
        [B, N, D + 2]: of tokens the cosine c becomes (c + 1) / 2; every other pair has one below 0.
    """
    wide = features.float()
    unit = torch.nn.functional.normalize(wide, dim=-1)
    odd = (torch.arange(valid.shape[1], device=valid.device) % 2 == 1)[:, None]
    # tokens, padding at even and padding at odd places: three directions in a plane, 120 degrees apart
    side = torch.where(odd, 0.75**0.5, -(0.75**0.5)).expand(valid.shape[0], -1, -1)
    token = torch.cat([unit, torch.ones_like(side), torch.zeros_like(side)], dim=2)
    other = torch.cat([torch.zeros_like(unit), torch.full_like(side, -0.5), side], dim=2)
    return torch.where(valid[..., None], token, other)


def without_padding(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """x and sizes for a weighted mean into which padding does not enter: zeros, and next to no size."""
    if tokens.valid is None:
        return tokens.x, tokens.sizes
    valid = tokens.valid[..., None]
    return torch.where(valid, tokens.x, 0), torch.where(valid, tokens.sizes, _NO_SIZE)


def merged_valid(size: Tensor) -> Tensor:
    """Which tokens [B, M] have a token in them, by the sizes [B, M, 1] that come of `without_padding`."""
    return size[..., 0] > 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """Tokens that were kept, and of which item how many.

    Attributes:
        tokens: The kept ones.
        dropped: Tokens that were not, [B, N] bool.
    """

    tokens: Tokens
    dropped: Tensor


class PaddedSelection(torch.nn.Module):
    """Keep the best of each item, as many as it would keep alone.

    Args:
        num_tokens: N, with prefix and padding.
        prefix: Tokens in front that stay.
        kept_of: Patches kept of a number of patches.
    """

    table: Tensor

    def __init__(self, num_tokens: int, prefix: int, kept_of: Callable[[int], int]) -> None:
        super().__init__()
        self.prefix, self.num_kept = prefix, prefix + kept_of(num_tokens - prefix)
        counts = [min(prefix + kept_of(max(0, n - prefix)), n) for n in range(num_tokens + 1)]
        self.register_buffer("table", torch.tensor(counts), persistent=False)

    def forward(self, tokens: Tokens, score: Tensor, order: str) -> Selected:
        """The best by scores [B, N], in their order by "position" or "score", padding behind them."""
        valid = torch.ones_like(score, dtype=torch.bool) if tokens.valid is None else tokens.valid
        count = self.table[valid.sum(dim=1)]
        masked = torch.where(valid, score.float(), _LAST)
        x, index, _ = token_select(tokens.x, masked, num_kept=self.num_kept, forced=range(self.prefix), order="score")
        place = torch.arange(self.num_kept, device=index.device)
        kept = replace(tokens.at(x, index), valid=place < count[:, None])
        numbers = torch.arange(score.shape[1], device=index.device)
        hit = (index[..., None] == numbers) & (place < count[:, None])[..., None]
        dropped = valid & ~(cast(hit, torch.float32).sum(dim=1) > 0)
        if order == "position":
            early = torch.where(place < count[:, None], -cast(index, torch.float32), _LAST)
            x, among, _ = token_select(kept.x, early, num_kept=self.num_kept, order="score")
            kept = kept.at(x, among)
        return Selected(tokens=kept, dropped=dropped)


def pool_windows(values: Tensor, weight: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Weighted means of neighbours.

    Args:
        values: [B, N, C], float32.
        weight: [B, N, 1], float32; 0 for padding.
        window: Neighbours that become one; a last window may be shorter.

    Returns:
        [B, ceil(N / window), C], and the sum of the weights of each, [B, ceil(N / window), 1].
    """
    missing = -values.shape[1] % window
    weighted = torch.nn.functional.pad(values * weight, (0, 0, 0, missing))
    weight = torch.nn.functional.pad(weight, (0, 0, 0, missing))
    total = weight.reshape(weight.shape[0], -1, window, 1).sum(dim=2)
    sums = weighted.reshape(values.shape[0], -1, window, values.shape[2]).sum(dim=2)
    return sums / total.clamp_min(_NO_SIZE), total
