"""Tokens that are not all computed: those that pass a block and come back, and those whose rows are kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_restore.op import token_restore


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Which tokens of each of R windows pass a block, and how its updates come back to all of them.

    Attributes:
        index: Positions of the K tokens that pass by themselves, [R, K].
        dest: Row of the update for every token, [R, N]: its place in `index`, or K.
        weight: What makes the representative of the others, [R, 1, N]; None: there is none.
    """

    index: Tensor
    dest: Tensor
    weight: Tensor | None

    def take(self, x: Tensor) -> Tensor:
        """The tokens of x [R, N, C] that pass: the chosen ones in the order of `index`, then the representative."""
        chosen = token_restore(x, self.index)
        return chosen if self.weight is None else torch.cat([chosen, token_mix(x, self.weight)], dim=1)

    def give_back(self, x: Tensor, update: Tensor) -> Tensor:
        """Add what a block did to the tokens that passed, [R, M, C], to all tokens x [R, N, C].

        Each token that did not pass receives the representative's update, or nothing if there is no representative.
        """
        if self.weight is None:
            update = torch.cat([update, torch.zeros_like(update[:, :1])], dim=1)
        return x + token_restore(update, self.dest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """Which tokens of N are computed now, and which keep the rows that were computed for them before.

    Attributes:
        rows: Where each token's row stands in the new rows followed by all stored ones, [B, N] int64.
        known: Whether a token has been computed at any time, [B, N] bool.
    """

    rows: Tensor
    known: Tensor

    def keep(self, new: Tensor, stored: Tensor) -> Tensor:
        """Stored rows [B, N, C] with the new ones [B, K, C] in their places."""
        return token_restore(torch.cat([new, stored], dim=1), self.rows)


def rows_to_keep(index: Tensor, num_tokens: int) -> Tensor:
    """Where each token's row stands in the new rows followed by all stored ones.

    Args:
        index: Tokens that have new rows, [B, K] int64, in the order of these rows.
        num_tokens: N.

    Returns:
        [B, N] int64: the number of its new row, or K + n for token n that has none.
    """
    num_new = index.shape[1]
    is_new = (index[:, :, None] == torch.arange(num_tokens, device=index.device)).to(torch.float32)
    row = torch.matmul(torch.arange(num_new, dtype=torch.float32, device=index.device)[None], is_new)[:, 0]
    stored = torch.arange(num_tokens, dtype=torch.float32, device=index.device) + num_new
    return torch.where(is_new.sum(dim=1) > 0, row, stored).to(torch.int64)
