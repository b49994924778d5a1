"""DART: a few patches of large keys, and for each those of the others that are least like it."""

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.methods.towers import DART, DartConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.compressors.vision.behind import (
    behind_tower,
    best_of,
    keep_patches,
    last_layer,
    need_patches,
    places,
    rows_at,
)

_TAKEN = -8.0  # below any cosine


class Dart(Compressor):
    """Keep pivots, and what duplicates them least."""

    method = DART
    layer_option = "layer=…"

    @classmethod
    def placements(cls, config: DartConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        return behind_tower()

    @classmethod
    def taps(cls, config: DartConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """Keys of all heads."""
        return (Tap(kind="keys", layer=last_layer("dart", config.layer, host), heads="each"),)

    def __init__(self, config: DartConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        (self.keys,) = self.taps(config, arrival.host, arrival.site)
        self.prefix, self.pivots, self.order = arrival.prefix, config.pivots, config.order
        budget = int(arrival.patches * config.keep_ratio) if config.num_kept is None else config.num_kept
        self.each = budget // config.pivots
        self.kept = config.pivots * (1 + self.each)
        need_patches("dart", self.kept, f"num_kept={budget} beside {config.pivots} pivots", arrival)
        self.tokens_out = arrival.prefix + self.kept

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Pivots and what they choose, in their order."""
        keys = taps.at(self.keys)[:, :, self.prefix :].float()
        pivots = best_of(keys.abs().sum(dim=(1, 3)), self.pivots)
        if self.order == "position":
            pivots = pivots.sort(dim=1).values
        patches = tokens.x[:, self.prefix :]
        taken = places(pivots, patches.shape[1]).sum(dim=1)
        if self.each:
            taken = least_alike(patches, rows_at(patches, pivots), taken, self.each)
        return keep_patches(tokens, taken, self.prefix, self.kept)


def least_alike(x: Tensor, pivots: Tensor, taken: Tensor, each: int) -> Tensor:
    """Let each pivot in turn take the tokens that are least like it of those that are left.

    Args:
        x: Tokens, [B, N, C].
        pivots: What they are compared with, by cosine, [B, P, C].
        taken: Tokens that are taken already, ones and zeros [B, N].
        each: How many each pivot takes.

    Returns:
        All that are taken, ones and zeros [B, N]; of equally unlike tokens the smaller index is taken.
    """
    unlike = -(functional.normalize(pivots.float(), dim=-1) @ functional.normalize(x.float(), dim=-1).transpose(1, 2))
    for number in range(pivots.shape[1]):
        left = torch.where(taken > 0, _TAKEN, unlike[:, number])
        taken = taken + places(best_of(left, each), x.shape[1]).sum(dim=1)
    return taken
