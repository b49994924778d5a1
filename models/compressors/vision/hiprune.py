"""HiPrune: objects that a middle layer attends to, their neighbours, and what the last layer attends to."""

import torch

from trt_compress.errors import ConfigError
from trt_compress.methods.towers import HIPRUNE, HiPruneConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Probe, Site, Tap
from trt_compress.models.compressors.vision.behind import (
    behind_tower,
    best_of,
    keep_patches,
    last_layer,
    need_grid,
    need_patches,
    places,
)

_ABOVE_ALL = 8.0  # attention is at most 1


class HiPrune(Compressor):
    """Keep patches by the attention that all tokens pay to them, in two layers."""

    method = HIPRUNE
    layer_option = "layer=…"

    @classmethod
    def placements(cls, config: HiPruneConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        return behind_tower()

    @classmethod
    def taps(cls, config: HiPruneConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """What all tokens attend to, in the layer that finds anchors and in the last."""
        wanted = host.depth // 3 if config.object_layer is None else config.object_layer
        if wanted >= host.depth:
            raise ConfigError(
                f"hiprune: object_layer={wanted} is out of range; {host.name} has layers 0..{host.depth - 1}."
            )
        layers = (wanted, last_layer("hiprune", config.layer, host))
        return tuple(Tap(kind="probe_scores", layer=layer, probe=Probe()) for layer in layers)

    def __init__(self, config: HiPruneConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.first, self.last = self.taps(config, arrival.host, arrival.site)
        _, columns = need_grid("hiprune", arrival)
        patches = arrival.patches
        self.prefix, self.steps = arrival.prefix, (-1, 1, -columns, columns)
        ratio = max(1, round(patches * config.keep_ratio))
        self.kept = ratio if config.num_kept is None else config.num_kept
        need_patches("hiprune", self.kept, f"num_kept={self.kept}", arrival)
        self.anchors = round(self.kept * config.alpha / (1 + len(self.steps)))
        if self.anchors * (1 + len(self.steps)) > self.kept:
            raise ConfigError(
                f"hiprune: alpha={config.alpha} asks for {self.anchors} anchors with their neighbours, more than the "
                f"{self.kept} patches that are kept; give a smaller alpha."
            )
        self.tokens_out = arrival.prefix + self.kept

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Anchors and their neighbours, and the best of the others, in their order."""
        early, late = (taps.at(tap)[:, self.prefix :].float() for tap in (self.first, self.last))
        if self.anchors:
            anchors = best_of(early, self.anchors)
            count = early.shape[1]
            near = [anchors, *((anchors + step).clamp(0, count - 1) for step in self.steps)]
            chosen = places(torch.cat(near, dim=1), count).sum(dim=1) > 0
            late = torch.where(chosen, _ABOVE_ALL, late)
        return keep_patches(tokens, late, self.prefix, self.kept)
