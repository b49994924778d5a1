"""DiffRate: prune by class attention and merge what is next, by numbers that were searched for every layer."""

from dataclasses import replace

import torch
from torch.nn import functional

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.methods.vision import DIFFRATE, DiffRateConfig
from trt_compress.models.compressors.base import Compressor, after_attention, averaged
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_select.op import token_select

_NEVER = -8.0  # below any cosine
_LEAST_SIZE = 2.0**-20


class DiffRate(Compressor):
    """Keep the tokens of the largest class attention; of these the last merge into the first."""

    method = DIFFRATE
    asks = frozenset({"class_attention"})
    layer_option = "prune_kept=[…], merge_kept=[…]"
    positions = "averaged"

    @classmethod
    def placements(cls, config: DiffRateConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Layers that remove a token."""
        if not host.has_class_token:
            raise UnsupportedError(
                f"diffrate: {host.name} has no class token, whose attention ranks the patches; use tome, avg_pool or "
                "random."
            )
        kept = config.kept
        what = "the lists are" if config.table is None else f"table={config.table} is"
        if len(kept) != host.depth:
            raise ConfigError(
                f"diffrate: {what} for {len(kept)} layers, and {host.name} has {host.depth}; give prune_kept and "
                "merge_kept with one number a layer."
            )
        if config.table is not None and host.num_tokens != kept[0][0]:
            raise ConfigError(
                f"diffrate: {what} for {kept[0][0]} tokens, and {host.name} has {host.num_tokens}; give prune_kept and "
                "merge_kept."
            )
        before, layers = host.num_tokens, []
        for layer, (_, left) in enumerate(kept):
            if left < before:
                layers.append(layer)
            before = min(before, left)
        return after_attention(layers)

    def __init__(self, config: DiffRateConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.prefix = arrival.prefix
        pruned, merged = config.kept[arrival.layer]
        self.pruned, self.merged = min(pruned, arrival.tokens), min(merged, arrival.tokens)
        if self.merged <= self.prefix:
            raise ConfigError(
                f"diffrate: merge_kept={merged} at layer {arrival.layer} leaves no patch beside the {self.prefix} "
                f"tokens in front of those of {arrival.host.name}; give {self.prefix + 1} or more."
            )
        self.tokens_out = self.merged

    @property
    def proportional_attention(self) -> bool:
        """Attention after this site weighs keys by size."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Tokens by falling class attention, each with the mean of those that merged into it."""
        front = range(self.prefix)
        x, index, _ = token_select(tokens.x, taps["class_attention"], num_kept=self.pruned, forced=front, order="score")
        kept, count = tokens.at(x, index), self.merged
        size = kept.sizes
        if self.merged == self.pruned:
            return replace(kept, size=size)
        unit = functional.normalize(x.float(), dim=-1)
        likeness = unit[:, count:] @ unit[:, :count].transpose(1, 2)
        place = torch.arange(count, device=x.device)
        best, to = torch.where(place < self.prefix, _NEVER, likeness).max(dim=2)
        joins = cast(to[..., None] == place, torch.float32).transpose(1, 2)
        itself = torch.eye(count, device=x.device).expand(x.shape[0], -1, -1)
        weight = torch.cat([itself, joins], dim=2) / (1 + joins.sum(dim=2, keepdim=True))
        first = torch.arange(count, device=x.device).expand(x.shape[0], -1)
        found = kept.at(token_mix(x, weight), first)
        return replace(
            found,
            size=(size[:, :count] + joins @ (best[..., None] * size[:, count:])).clamp_min(_LEAST_SIZE),
            position=averaged(
                kept.position,
                lambda places: (places[:, :count] + joins @ places[:, count:]) / (1 + joins.sum(dim=2, keepdim=True)),
            ),
        )
