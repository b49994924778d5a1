"""Random dropping: the honest floor that every selection must beat."""

import torch
from torch import Tensor

from trt_compress.methods.vision import RANDOM, RandomConfig
from trt_compress.models.compressors.base import (
    Compressor,
    after_attention,
    layers_or_quarters,
    num_patches_kept,
    ratio_at,
)
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.token_select.op import token_select


class RandomDrop(Compressor):
    """Keep a fixed random subset of the patches."""

    method = RANDOM
    no_padding = "draws its choice for one number of tokens, and another for another"
    priority: Tensor

    @classmethod
    def placements(cls, config: RandomConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Layers that drop patches."""
        return after_attention(layers_or_quarters("random", config.layers, host))

    def __init__(self, config: RandomConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.num_prefix = arrival.prefix
        ratio = ratio_at(config.keep_ratio, config.layers or (), arrival.layer)
        self.tokens_out = arrival.prefix + num_patches_kept(arrival.patches, ratio)
        generator = torch.Generator().manual_seed(config.seed * 1000 + arrival.layer)
        # Whole numbers, so that a model in half precision still ranks them apart.
        self.register_buffer("priority", torch.randperm(arrival.tokens, generator=generator)[None], persistent=False)

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Drop the patches of the lowest fixed priority."""
        score = self.priority.to(torch.float32).expand(tokens.x.shape[0], -1)
        x, index, _ = token_select(tokens.x, score, num_kept=self.tokens_out, forced=range(self.num_prefix))
        return tokens.at(x, index)
