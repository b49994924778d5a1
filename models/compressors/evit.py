"""EViT: keep the patches that the class token attends to, fuse the others."""

from dataclasses import replace

import torch

from trt_compress.methods.vision import EVIT, EvitConfig
from trt_compress.models.compressors.base import (
    Compressor,
    after_attention,
    averaged,
    layers_or_quarters,
    num_patches_kept,
    ratio_at,
    refuse_without_class_token,
)
from trt_compress.models.compressors.padding import PaddedSelection, Selected, packed
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_select.op import token_select


class Evit(Compressor):
    """Keep the patches of the largest class attention at a few layers."""

    method = EVIT
    asks = frozenset({"class_attention"})
    takes_padding = True

    @classmethod
    def placements(cls, config: EvitConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Layers that drop patches."""
        refuse_without_class_token("evit", host)
        return after_attention(layers_or_quarters("evit", config.layers, host))

    def __init__(self, config: EvitConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.num_prefix = arrival.prefix
        ratio = ratio_at(config.keep_ratio, config.layers or (), arrival.layer)
        kept = num_patches_kept(arrival.patches, ratio)
        self.num_kept = arrival.prefix + kept
        self.fuse = config.fuse and kept < arrival.patches
        self.tokens_out = self.num_kept + self.fuse
        self.padded: PaddedSelection | None = None
        if arrival.host.padded:
            self.padded = PaddedSelection(arrival.tokens, arrival.prefix, lambda n: num_patches_kept(n, ratio))

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Drop the patches of the least class attention; the fused one stands in the middle of what is in it."""
        if self.padded is not None:
            return self._of_padded(self.padded(tokens, taps["class_attention"], "score"), tokens, taps)
        x, index, rest = token_select(
            tokens.x,
            taps["class_attention"],
            num_kept=self.num_kept,
            forced=range(self.num_prefix),
            order="score",
            remainder="fuse" if self.fuse else "drop",
        )
        kept = tokens.at(x, index)
        if not self.fuse:
            return kept
        fused = tokens.at(x, rest)
        size, position = kept.size, kept.position
        if size is not None and fused.size is not None:
            size = torch.cat([size, fused.size.sum(dim=1, keepdim=True)], dim=1)
        middle = averaged(fused.position, lambda places: places.mean(dim=1, keepdim=True))
        if position is not None and middle is not None:
            position = torch.cat([position, middle], dim=1)
        return replace(kept, size=size, position=position)

    def _of_padded(self, kept: Selected, tokens: Tokens, taps: Taps) -> Tokens:
        """The same in a padded batch: an item of which nothing was dropped has no fused token."""
        if not self.fuse:
            return kept.tokens
        found, dropped = kept.tokens, cast(kept.dropped, torch.float32)
        weight = torch.where(kept.dropped, taps["class_attention"].float(), 0.0)
        x = torch.cat([found.x, token_mix(torch.where(kept.dropped[..., None], tokens.x, 0), weight[:, None])], dim=1)
        size, position = found.size, found.position
        if size is not None:
            of_dropped = (dropped[..., None] * tokens.sizes).sum(dim=1, keepdim=True)
            size = torch.cat([size, of_dropped.clamp_min(1)], dim=1)
        share = (dropped / dropped.sum(dim=1, keepdim=True).clamp_min(1))[:, None]
        middle = averaged(tokens.position, lambda places: share @ places)
        if position is not None and middle is not None:
            position = torch.cat([position, middle], dim=1)
        any_dropped = dropped.sum(dim=1, keepdim=True) > 0
        valid = None if found.valid is None else torch.cat([found.valid, any_dropped], dim=1)
        return packed(replace(found, x=x, size=size, position=position, valid=valid))
