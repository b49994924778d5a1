"""Random dropping: the honest floor that every selection must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.models.compressors.base import (
    Compressor,
    HostInfo,
    KeepRatioConfig,
    Signals,
    TokenState,
    gather_size,
    num_patches_kept,
    ratio_at,
)
from trt_compress.plugins.token_select.op import token_select


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomConfig(KeepRatioConfig):
    """Options of random dropping.

    Attributes:
        seed: Which patches; the choice is a constant of the graph, the same for every input.
    """

    method = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        KeepRatioConfig.__post_init__(self)
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
        return config.layers_of(host)

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
