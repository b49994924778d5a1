"""DivPrune: the patches that are farthest from each other, chosen one by one."""

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.methods.towers import DIVPRUNE, DivPruneConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.models.compressors.vision.behind import behind_tower, keep_patches, need_patches, places, rows_at

_FAR, _NEVER = 8.0, -8.0  # a distance is 0 to 2


class DivPrune(Compressor):
    """Keep patches so that the least distance between any two is large."""

    method = DIVPRUNE

    @classmethod
    def placements(cls, config: DivPruneConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        return behind_tower()

    def __init__(self, config: DivPruneConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.prefix = arrival.prefix
        ratio = max(1, round(config.keep_ratio * arrival.patches))
        self.kept = ratio if config.num_kept is None else config.num_kept
        need_patches("divprune", self.kept, f"num_kept={self.kept}", arrival)
        self.tokens_out = arrival.prefix + self.kept

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """The patches that were chosen, in their order."""
        return keep_patches(tokens, spread(tokens.x[:, self.prefix :], self.kept), self.prefix, self.kept)


def spread(x: Tensor, count: int) -> Tensor:
    """Which tokens are chosen: first the one whose nearest other is farthest, then always the one farthest from those.

    Args:
        x: Tokens, [B, N, C]; their distance is one less the cosine.
        count: How many are chosen.

    Returns:
        Ones and zeros, [B, N]; of equally far tokens the smaller index is chosen.
    """
    unit = functional.normalize(x.float(), dim=-1)
    number = x.shape[1]
    distance = 1 - unit @ unit.transpose(1, 2)
    itself = torch.eye(number, device=x.device)
    first = torch.where(itself > 0, _FAR, distance).amin(dim=2).argmax(dim=1, keepdim=True)
    chosen, nearest = places(first, number), rows_at(distance, first)
    for _ in range(count - 1):
        best = torch.where(chosen > 0, _NEVER, nearest)[:, 0].argmax(dim=1, keepdim=True)
        nearest = torch.minimum(nearest, rows_at(distance, best))
        chosen = torch.maximum(chosen, places(best, number))
    return chosen[:, 0]
