"""PruMerge: patches that the class token attends to, each with its nearest neighbours by key, and a sum of the rest."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.methods.towers import PRUMERGE, PruMergeConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.padding import packed
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.compressors.vision.behind import (
    behind_tower,
    best_of,
    layer_ahead,
    need_class_token,
    need_patches,
    places,
    rows_at,
)
from trt_compress.models.layers.attention import merge_heads
from trt_compress.plugins.attention_score.op import attention_score
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_mix.op import token_mix


class PruMerge(Compressor):
    """Keep the patches of the largest class attention, merge the others into them."""

    method = PRUMERGE
    layer_option = "layer=…"

    counts: Tensor

    @classmethod
    def placements(cls, config: PruMergeConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        need_class_token(cls.method.name, host)
        return behind_tower()

    @classmethod
    def taps(cls, config: PruMergeConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """Queries and keys of all heads."""
        layer = layer_ahead(cls.method.name, config.layer, host, "queries")
        return tuple(Tap(kind=kind, layer=layer, heads="each") for kind in ("queries", "keys"))

    def __init__(self, config: PruMergeConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        name, patches = self.method.name, arrival.patches
        self.queries, self.keys = self.taps(config, arrival.host, arrival.site)
        self.prefix, self.adaptive = arrival.prefix, config.adaptive
        self.kept = max(1, int(patches * config.keep_ratio)) if config.num_kept is None else config.num_kept
        need_patches(name, self.kept, f"num_kept={self.kept}", arrival)
        self.neighbours = min(config.neighbours, patches - 1)
        fewest = self.fewest_kept
        counts = [max(fewest, min(int(patches * (n / patches)), self.kept)) for n in range(patches + 1)]
        self.register_buffer("counts", torch.tensor(counts), persistent=False)
        self.tokens_out = arrival.prefix + self.kept + 1

    @property
    def fewest_kept(self) -> int:
        """Patches that are kept where there is no outlier."""
        return 0

    @property
    def acts(self) -> bool:
        """It changes tokens even where none goes."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Class token, kept patches by falling attention, and one sum of all others."""
        attention, unit = self._seen(taps)
        index = best_of(attention, self.kept)
        return self._merged(tokens, attention, unit, index, self._valid(attention, index))

    def _seen(self, taps: Taps) -> tuple[Tensor, Tensor]:
        """Class attention [B, patches] over all channels, heads not split, and keys of length 1 [B, patches, C]."""
        return attention_and_keys(taps, self.queries, self.keys, self.prefix)

    def _valid(self, attention: Tensor, index: Tensor) -> Tensor:
        """Which of the best [B, K] are kept: all, or of the outliers as many as there are."""
        if not self.adaptive:
            return torch.ones_like(index, dtype=torch.bool)
        return torch.arange(self.kept, device=index.device) < self.counts[outliers(attention)][:, None]

    def _merged(self, tokens: Tokens, attention: Tensor, unit: Tensor, index: Tensor, valid: Tensor) -> Tokens:
        """The patches at index [B, K] that are valid, with their neighbours, and the sum of all that are not kept."""
        count = attention.shape[1]
        itself = places(index, count)
        kept = cast(valid[..., None], torch.float32)
        likeness = rows_at(unit, index) @ unit.transpose(1, 2) - 4 * itself  # no patch is its own neighbour
        least = likeness.topk(self.neighbours, dim=2).values[..., -1:]
        near = cast(likeness >= least, torch.float32)
        gone = 1 - (itself * kept).sum(dim=1, keepdim=True)
        weight = torch.cat([itself + near * attention[:, None], gone * attention[:, None]], dim=1)
        patches = tokens.x[:, self.prefix :]
        x = torch.cat([tokens.x[:, : self.prefix], token_mix(patches, weight)], dim=1)
        batch, rows = index.shape
        front = torch.arange(self.prefix, device=index.device).expand(batch, -1)
        last = gone[:, 0].argmax(dim=1, keepdim=True)  # the sum of the rest stands where the first of them stood
        found = tokens.at(x, torch.cat([front, index + self.prefix, last + self.prefix], dim=1))
        stands_for = torch.cat([tokens.sizes[:, : self.prefix], rows_at(tokens.sizes[:, self.prefix :], index)], dim=1)
        rest = gone @ tokens.sizes[:, self.prefix :]
        there = torch.ones(batch, 1, dtype=torch.bool, device=index.device)
        whole = torch.cat([there.expand(-1, self.prefix), valid, there], dim=1)
        found = replace(found, size=torch.cat([stands_for, rest], dim=1))
        return packed(replace(found, valid=whole)) if self.pads else found

    @property
    def pads(self) -> bool:
        """How many are kept depends on the image."""
        return self.adaptive


def attention_and_keys(taps: Taps, queries: Tap, keys: Tap, prefix: int) -> tuple[Tensor, Tensor]:
    """Class attention [B, patches] over all channels, heads not split, and keys of length 1 [B, patches, C]."""
    query, key = merge_heads(taps.at(queries)[:, :, :1]), merge_heads(taps.at(keys))
    attention = attention_score(query[:, None], key[:, None], start=prefix)
    return attention.float(), functional.normalize(key[:, prefix:].float(), dim=-1)


def outliers(values: Tensor) -> Tensor:
    """How many of each row [B, N] are above the third quartile by more than 1.5 times the middle half; [B] int64."""
    return outliers_among(values).sum(dim=1)


def outliers_among(values: Tensor) -> Tensor:
    """Which of each row [B, N] are above the third quartile by more than 1.5 times the middle half."""
    ordered = values.sort(dim=1).values
    low, high = (_quantile(ordered, share) for share in (0.25, 0.75))
    return values > high + 1.5 * (high - low)


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Between the two nearest of ascending values [B, N], linearly; [B, 1]."""
    place = share * (ordered.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[1] - 1)
    first = ordered[:, below : below + 1]
    return first + (place - below) * (ordered[:, above : above + 1] - first)
