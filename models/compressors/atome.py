"""A-ToMe: merging of adjacent audio frames, which keeps their order in time."""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.methods.audio import ATOME, AtomeConfig
from trt_compress.models.compressors.base import Compressor, after_attention, averaged, layers_or_quarters, ratio_at
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_select.op import token_select


def link_similarity(keys: Tensor) -> Tensor:
    """Cosine between the keys [B, N, D] of neighbours, [B, N - 1], in float32."""
    unit = functional.normalize(keys.float(), dim=-1)
    return (unit[:, :-1] * unit[:, 1:]).sum(dim=-1)


def segment_matrix(last: Tensor, size: Tensor) -> Tensor:
    """The matrix that averages every segment of frames.

    Args:
        last: Last frame of every segment but the final one, ascending, [B, M - 1].
        size: What each frame counts, [B, N, 1].

    Returns:
        [B, M, N]: row m holds the shares of the frames of segment m, and sums to one.
    """
    n = size.shape[1]
    end = functional.pad(last, (0, 1), value=n - 1)[..., None]
    start = functional.pad(last, (1, 0), value=-1)[..., None]
    position = torch.arange(n, device=last.device)
    weight = ((position > start) & (position <= end)) * size.transpose(1, 2)
    return weight / weight.sum(dim=2, keepdim=True)


class Atome(Compressor):
    """Merge the most similar neighbours after the attention of a few layers."""

    method = ATOME
    no_padding = "counts the links that merge for one number of tokens"
    asks = frozenset({"keys"})
    positions = "averaged"

    @classmethod
    def placements(cls, config: AtomeConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Layers that merge."""
        return after_attention(layers_or_quarters("atome", config.layers, host))

    def __init__(self, config: AtomeConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.config, self.num_prefix = config, arrival.prefix
        ratio = ratio_at(config.merge_ratio, config.layers or (), arrival.layer)
        self.num_merged = max(0, math.floor(ratio * (arrival.patches - 1)))
        self.tokens_out = arrival.tokens - self.num_merged

    @property
    def proportional_attention(self) -> bool:
        """Whether attention after this site weighs keys by size."""
        return self.config.proportional_attention

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Merge frames; keys are the similarity feature."""
        prefix, size = self.num_prefix, tokens.sizes
        x, frame_size = tokens.x[:, prefix:], size[:, prefix:]
        distance = -link_similarity(taps["keys"][:, prefix:])
        num_kept = x.shape[1] - 1 - self.num_merged
        _, last, _ = token_select(distance[..., None], distance, num_kept=num_kept)
        matrix = segment_matrix(last, frame_size)
        merged = token_mix(x, matrix)
        sums = cast(matrix > 0, torch.float32) @ frame_size
        position = averaged(
            tokens.position, lambda places: torch.cat([places[:, :prefix], matrix @ places[:, prefix:]], dim=1)
        )
        return replace(
            tokens,
            x=torch.cat([tokens.x[:, :prefix], merged], dim=1),
            size=torch.cat([size[:, :prefix], sums], dim=1),
            position=position,
        )
