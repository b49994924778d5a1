"""Random dropping: the honest floor that every selection must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.models.compressors.base import (
    Compressor,
    CompressorConfig,
    HostInfo,
    Signals,
    TokenState,
    check_layers,
    gather_size,
    quarter_layers,
    ratio_at,
)
from trt_compress.models.compressors.evit import check_keep_ratios, num_patches_kept
from trt_compress.plugins.token_select.op import token_select


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomConfig(CompressorConfig):
    """Options of random dropping.

    Attributes:
        keep_ratio: Share of the patches kept at each layer, rounded up; one, or one a layer.
        layers: Layers after whose attention patches are dropped; default: at 1/4, 2/4, 3/4 of the depth.
        seed: Which patches; the choice is a constant of the graph, the same for every input.
    """

    keep_ratio: float | tuple[float, ...] = 0.7
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_keep_ratios("random", self.keep_ratio, self.layers)
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"random: seed={self.seed} is out of range; give 0 to {2**31 - 1}.")


class RandomDrop(Compressor):
    """Keep a fixed random subset of the patches."""

    name = "random"
    summary = "keeps random patches: the floor that a method must beat"
    source = "none: a baseline"
    differs = "nothing: there is no original."
    Config = RandomConfig
    priority: Tensor

    @classmethod
    def layers(cls, config: RandomConfig, host: HostInfo) -> tuple[int, ...]:
        """Layers that drop patches."""
        return check_layers("random", quarter_layers(host.depth) if config.layers is None else config.layers, host)

    def __init__(self, config: RandomConfig, host: HostInfo, layer: int, tokens_in: int) -> None:
        super().__init__(config, host, layer, tokens_in)
        self.num_prefix = host.num_prefix
        num_patches = tokens_in - host.num_prefix
        ratio = ratio_at(config.keep_ratio, config.layers or (), layer)
        self.tokens_out = host.num_prefix + num_patches_kept(num_patches, ratio)
        generator = torch.Generator().manual_seed(config.seed * 1000 + layer)
        # Whole numbers, so that a model in half precision still ranks them apart.
        self.register_buffer("priority", torch.randperm(tokens_in, generator=generator)[None], persistent=False)

    def forward(self, state: TokenState, signals: Signals) -> TokenState:
        """Drop the patches of the lowest fixed priority."""
        score = self.priority.to(torch.float32).expand(state.x.shape[0], -1)
        x, index, _ = token_select(state.x, score, num_kept=self.tokens_out, forced=range(self.num_prefix))
        return TokenState(x=x, size=gather_size(state.size, index))
