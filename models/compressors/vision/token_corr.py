"""TokenCorrCompressor: how repetitive an image is says how many patches are kept, and attention says which."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.methods.towers import TOKEN_CORR, TokenCorrConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.padding import packed
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.compressors.vision.behind import (
    behind_tower,
    early_layer,
    last_layer,
    need_class_token,
    need_patches,
    places,
    ranks,
    rows_at,
)
from trt_compress.models.compressors.vision.prumerge import outliers_among
from trt_compress.models.layers.attention import merge_heads
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_select.op import token_select

_UNLIKE = -8.0  # below any cosine


class TokenCorr(Compressor):
    """Keep what an early and a late layer attend to, and add each other patch to the kept one of the nearest key."""

    method = TOKEN_CORR
    layer_option = "layer=…"

    @classmethod
    def placements(cls, config: TokenCorrConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        need_class_token("token_corr", host)
        return behind_tower()

    @classmethod
    def taps(cls, config: TokenCorrConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """Keys and class attention of the early layer, and class attention of the late one."""
        early = early_layer("token_corr", config.early_layer, host)
        late = last_layer("token_corr", config.layer, host)
        return (
            Tap(kind="keys", layer=early, heads="each"),
            Tap(kind="class_attention", layer=early),
            Tap(kind="class_attention", layer=late),
        )

    def __init__(self, config: TokenCorrConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.keys, self.early, self.late = self.taps(config, arrival.host, arrival.site)
        self.prefix, self.alpha, self.beta = arrival.prefix, config.alpha, config.beta * arrival.patches
        self.kept = max(1, int(arrival.patches * config.keep_ratio)) if config.num_kept is None else config.num_kept
        need_patches("token_corr", self.kept, f"num_kept={self.kept}", arrival)
        self.tokens_out = arrival.prefix + self.kept

    @property
    def acts(self) -> bool:
        """How many are kept depends on the image, also where all may be."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """The kept patches in their order, with what was added to them."""
        unit = functional.normalize(merge_heads(taps.at(self.keys))[:, self.prefix :].float(), dim=-1)
        early, late = (taps.at(tap)[:, self.prefix :].float() for tap in (self.early, self.late))
        likeness = unit @ unit.transpose(1, 2)
        index, valid = self._chosen(likeness, early, late)
        return self._merged(tokens, likeness, late, index, valid)

    def _chosen(self, likeness: Tensor, early: Tensor, late: Tensor) -> tuple[Tensor, Tensor]:
        """Places [B, K] of the kept patches, ascending, and which of these there are."""
        number = early.shape[1]
        alike = cast(likeness > self.alpha, torch.float32).sum(dim=2) - 1  # itself is not counted
        distinct = cast(alike <= self.beta, torch.float32).sum(dim=1, keepdim=True)
        by_early, by_late = ranks(early), ranks(late)
        seen = torch.where(by_early < distinct, number + by_early, 2.0 * number)
        turn = torch.where(outliers_among(late), by_late, seen)
        turn = torch.where((turn.amin(dim=1, keepdim=True) >= 2 * number) & (by_late < 1), 0.0, turn)
        wanted = turn < 2 * number
        first = ranks(-turn) < self.kept
        chosen = wanted & first
        place = cast(torch.arange(number, device=early.device), torch.float32)
        order = torch.where(chosen, 2.0 * number - place, -place)
        _, index, _ = token_select(order[..., None], order, num_kept=self.kept, order="score")
        count = cast(chosen, torch.int64).sum(dim=1, keepdim=True)
        return index, torch.arange(self.kept, device=early.device) < count

    def _merged(self, tokens: Tokens, likeness: Tensor, late: Tensor, index: Tensor, valid: Tensor) -> Tokens:
        """The patches at index [B, K] that are valid, each with those nearest to it, weighed by attention."""
        there = cast(valid[..., None], torch.float32)
        itself = places(index, late.shape[1]) * there
        near = torch.where(valid[..., None], rows_at(likeness, index), _UNLIKE)
        joins = places(near.argmax(dim=1), self.kept).transpose(1, 2) * (1 - itself.sum(dim=1, keepdim=True))
        patches, sizes = tokens.x[:, self.prefix :], tokens.sizes
        x = torch.cat([tokens.x[:, : self.prefix], token_mix(patches, itself + joins * late[:, None])], dim=1)
        batch = index.shape[0]
        front = torch.arange(self.prefix, device=index.device).expand(batch, -1)
        found = tokens.at(x, torch.cat([front, index + self.prefix], dim=1))
        size = torch.cat([sizes[:, : self.prefix], (itself + joins) @ sizes[:, self.prefix :]], dim=1)
        whole = torch.cat([torch.ones(batch, self.prefix, dtype=torch.bool, device=index.device), valid], dim=1)
        return packed(replace(found, size=size, valid=whole))
