"""EViT: keep the patches that the class token attends to, fuse the others."""

import torch

from trt_compress.errors import UnsupportedError
from trt_compress.methods.vision import EVIT, EvitConfig
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


class Evit(Compressor):
    """Keep the patches of the largest class attention at a few layers."""

    method = EVIT
    signals = frozenset({"class_attention"})

    @classmethod
    def layers(cls, config: EvitConfig, host: HostInfo) -> tuple[int, ...]:
        """Layers that drop patches."""
        if not host.has_class_token:
            raise UnsupportedError(
                f"evit: {host.name} has no class token, whose attention ranks the patches; use tome, avg_pool or "
                "random."
            )
        return layers_or_quarters("evit", config.layers, host)

    def __init__(self, config: EvitConfig, host: HostInfo, layer: int, tokens_in: int) -> None:
        super().__init__(config, host, layer, tokens_in)
        self.num_prefix = host.num_prefix
        num_patches = tokens_in - host.num_prefix
        ratio = ratio_at(config.keep_ratio, config.layers or (), layer)
        kept = num_patches_kept(num_patches, ratio)
        self.num_kept = host.num_prefix + kept
        self.fuse = config.fuse and kept < num_patches
        self.tokens_out = self.num_kept + self.fuse

    def forward(self, state: TokenState, signals: Signals) -> TokenState:
        """Drop the patches of the least class attention."""
        assert signals.class_attention is not None
        x, index, rest = token_select(
            state.x,
            signals.class_attention,
            num_kept=self.num_kept,
            forced=range(self.num_prefix),
            order="score",
            remainder="fuse" if self.fuse else "drop",
        )
        size = gather_size(state.size, index)
        if size is not None and self.fuse:
            fused = gather_size(state.size, rest)
            assert fused is not None
            size = torch.cat([size, fused.sum(dim=1, keepdim=True)], dim=1)
        return TokenState(x=x, size=size)
