"""VisionZip: dominant patches by class attention, contextual ones that the rest is merged into."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.methods.towers import VISIONZIP, VisionZipConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Probe, Site, Tap
from trt_compress.models.compressors.vision.behind import behind_tower, last_layer, places, rows_at
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_select.op import token_select


class VisionZip(Compressor):
    """Keep what is attended to, in its order, and behind it a few sums of the rest."""

    method = VISIONZIP
    layer_option = "layer=…"
    keeps_prefix = False

    targets: Tensor
    others: Tensor

    @classmethod
    def placements(cls, config: VisionZipConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        return behind_tower()

    @classmethod
    def taps(cls, config: VisionZipConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """Keys, and what the class token attends to, or without one all tokens."""
        layer = last_layer("visionzip", config.layer, host)
        return (cls._scores(layer, host), Tap(kind="keys", layer=layer))

    @classmethod
    def _scores(cls, layer: int, host: HostInfo) -> Tap:
        if host.has_class_token:
            return Tap(kind="class_attention", layer=layer)
        return Tap(kind="probe_scores", layer=layer, probe=Probe())

    def __init__(self, config: VisionZipConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        host = arrival.host
        self.layer = last_layer("visionzip", config.layer, host)
        self.score = self._scores(self.layer, host)
        self.prefix, self.num_class = arrival.prefix, int(arrival.has_class_token)
        self.dominant, self.contextual = config.num_dominant - self.num_class, config.num_contextual
        rest = arrival.patches - self.dominant
        if rest < self.contextual:
            raise ConfigError(
                f"visionzip: num_dominant={config.num_dominant} and num_contextual={config.num_contextual} are too "
                f"many for the {arrival.patches} patches that {host.name} gives; give at most "
                f"{arrival.patches + self.num_class} together."
            )
        step = max(1, rest // self.contextual)
        targets = list(range(0, rest, step))[: self.contextual]
        others = [place for place in range(rest) if place not in targets]
        self.register_buffer("targets", torch.tensor(targets), persistent=False)
        self.register_buffer("others", torch.tensor(others, dtype=torch.int64), persistent=False)
        self.tokens_out = self.num_class + self.dominant + self.contextual

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Class token, dominant patches, and each contextual one with the mean of what it takes in added to it."""
        score = taps.at(self.score)[:, self.prefix :]
        keys = taps.of("keys", self.layer)[:, self.prefix :]
        patches = tokens.at(tokens.x[:, self.prefix :], self._places(tokens.x, self.prefix, tokens.x.shape[1]))
        x, kept, rest = token_select(patches.x, score, num_kept=self.dominant)
        batch = rest.shape[0]
        remaining = patches.at(rows_at(patches.x, rest), rest)
        unit = functional.normalize(rows_at(keys, rest).float(), dim=-1)
        targets = self.targets.expand(batch, -1)
        joins = self._joins(unit)
        count = joins.sum(dim=2, keepdim=True)
        weight = places(targets, rest.shape[1]) + joins / count.clamp_min(1)
        contextual = remaining.at(token_mix(remaining.x, weight), targets)
        contextual = replace(contextual, size=contextual.sizes + joins @ remaining.sizes)
        parts = [patches.at(x, kept), contextual]
        if self.num_class:
            parts.insert(0, tokens.at(tokens.x[:, :1], self._places(tokens.x, 0, 1)))
        return _in_turn(parts)

    def _joins(self, unit: Tensor) -> Tensor:
        """Which of the rest each target takes in, [B, targets, rest], of keys of length 1 [B, rest, D]."""
        batch, rest = unit.shape[:2]
        if not len(self.others):
            return torch.zeros(batch, len(self.targets), rest, device=unit.device)
        others, targets = unit.index_select(1, self.others), unit.index_select(1, self.targets)
        likeness = others @ targets.transpose(1, 2)
        to = places(likeness.argmax(dim=2), len(self.targets))  # the lowest of equal ones
        return to.transpose(1, 2) @ places(self.others[None], rest)

    @staticmethod
    def _places(x: Tensor, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=x.device).expand(x.shape[0], -1)


def _in_turn(parts: list[Tokens]) -> Tokens:
    """Tokens one behind the other, with what is known of them."""
    x = torch.cat([part.x for part in parts], dim=1)
    size = torch.cat([part.sizes for part in parts], dim=1)
    positions = [part.position for part in parts if part.position is not None]
    position = torch.cat(positions, dim=1) if len(positions) == len(parts) else None
    return replace(parts[0], x=x, size=size, position=position)
