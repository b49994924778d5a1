"""Random dropping: the honest floor that every selection must beat."""

import torch
from torch import Tensor

from trt_compress.methods.vision import RANDOM, RandomConfig
from trt_compress.models.compressors.base import (
    Compressor,
    HostInfo,
    Signals,
    TokenState,
    gather_size,
    layers_or_quarters,
    num_patches_kept,
    ratio_at,
)
from trt_compress.plugins.token_select.op import token_select


class RandomDrop(Compressor):
    """Keep a fixed random subset of the patches."""

    method = RANDOM
    priority: Tensor

    @classmethod
    def layers(cls, config: RandomConfig, host: HostInfo) -> tuple[int, ...]:
        """Layers that drop patches."""
        return layers_or_quarters("random", config.layers, host)

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
