"""Token Transforming: every patch spreads over several of the kept ones, by the similarity of their keys."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.methods.vision import TOKEN_TRANSFORM, TokenTransformConfig
from trt_compress.models.compressors.base import (
    Compressor,
    after_attention,
    averaged,
    layers_or_quarters,
    num_patches_kept,
    ratio_at,
    refuse_without_class_token,
)
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_select.op import token_select

_UNLIKE = -8.0  # below any cosine


def shares(keys: Tensor, kept: Tensor, *, temperature: float, spread: int) -> Tensor:
    """What part of every patch goes into each kept one; the parts of a patch sum to one.

    Args:
        keys: Of all patches, [B, N, D].
        kept: Places of the kept ones, [B, M] int64.
        temperature: Of the softmax over the kept ones; the smaller, the nearer to one alone.
        spread: Kept ones that a patch goes to, those of the most similar keys; equal similarities count once. 0: all
            of them.

    Returns:
        [B, M, N] in fp32.
    """
    unit = functional.normalize(keys.float(), dim=-1)
    some = torch.gather(unit, 1, kept[..., None].expand(-1, -1, unit.shape[2]))
    likeness = some @ unit.transpose(1, 2)
    if 0 < spread < kept.shape[1]:
        limit = likeness.amax(dim=1, keepdim=True)
        for _ in range(spread - 1):
            limit = torch.where(likeness < limit, likeness, _UNLIKE).amax(dim=1, keepdim=True)
        parts = torch.where(likeness < limit, 0.0, (likeness / temperature).softmax(dim=1))
        return parts / parts.sum(dim=1, keepdim=True)
    return (likeness / temperature).softmax(dim=1)


class TokenTransform(Compressor):
    """Keep the patches of the largest class attention; all patches spread over them."""

    method = TOKEN_TRANSFORM
    asks = frozenset({"class_attention", "keys"})
    positions = "averaged"

    @classmethod
    def placements(cls, config: TokenTransformConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Layers that remove patches."""
        refuse_without_class_token("token_transform", host)
        return after_attention(layers_or_quarters("token_transform", config.layers, host))

    def __init__(self, config: TokenTransformConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.prefix, self.config = arrival.prefix, config
        ratio = ratio_at(config.keep_ratio, config.layers or (), arrival.layer)
        self.tokens_out = arrival.prefix + num_patches_kept(arrival.patches, ratio)

    @property
    def proportional_attention(self) -> bool:
        """Attention after this site weighs keys by size."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """The tokens in front, and at the place of each kept patch the mean of all by their shares and sizes."""
        front, size = self.prefix, tokens.sizes
        score = taps["class_attention"]
        _, index, _ = token_select(tokens.x, score, num_kept=self.tokens_out, forced=range(front))
        part = shares(
            taps["keys"][:, front:],
            index[:, front:] - front,
            temperature=self.config.temperature,
            spread=self.config.spread,
        )
        mass = part @ size[:, front:]
        weight = part * size[:, front:].transpose(1, 2) / mass
        return replace(
            tokens,
            x=torch.cat([tokens.x[:, :front], token_mix(tokens.x[:, front:], weight)], dim=1),
            size=torch.cat([size[:, :front], mass], dim=1),
            position=averaged(
                tokens.position, lambda places: torch.cat([places[:, :front], weight @ places[:, front:]], dim=1)
            ),
        )
