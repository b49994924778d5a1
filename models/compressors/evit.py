"""EViT: keep the patches that the class token attends to, fuse the others."""

import math
from dataclasses import dataclass

import torch

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.compressors.base import (
    Compressor,
    CompressorConfig,
    HostInfo,
    Signals,
    TokenState,
    check_layers,
    check_ratio,
    gather_size,
    quarter_layers,
    ratio_at,
)
from trt_compress.plugins.token_select.op import token_select


@dataclass(frozen=True, slots=True, kw_only=True)
class EvitConfig(CompressorConfig):
    """Options of EViT.

    Attributes:
        keep_ratio: Share of the patches kept at each layer, rounded up; one, or one a layer.
        layers: Layers after whose attention patches are dropped; default: at 1/4, 2/4 and 3/4 of the
            depth (3, 6, 9 of 12).
        fuse: Add one token that sums the dropped patches, weighted by their attention.
    """

    keep_ratio: float | tuple[float, ...] = 0.7
    layers: tuple[int, ...] | None = None
    fuse: bool = True

    def __post_init__(self) -> None:
        check_keep_ratios("evit", self.keep_ratio, self.layers)


def check_keep_ratios(name: str, keep_ratio: float | tuple[float, ...], layers: tuple[int, ...] | None) -> None:
    """Raise ConfigError unless every ratio is in (0, 1] and a list of them goes with a list of layers."""
    for ratio in keep_ratio if isinstance(keep_ratio, tuple) else (keep_ratio,):
        check_ratio(name, "keep_ratio", ratio)
    if isinstance(keep_ratio, tuple) and (layers is None or len(layers) != len(keep_ratio)):
        raise ConfigError(
            f"{name}: keep_ratio lists {len(keep_ratio)} ratios; give layers= with as many layers, ascending."
        )


def num_patches_kept(num_patches: int, keep_ratio: float) -> int:
    """Patches kept: the product rounded up, in floating point as the source does (0.07 * 100 keeps 8)."""
    return math.ceil(keep_ratio * num_patches)


class Evit(Compressor):
    """Keep the patches of the largest class attention at a few layers."""

    name = "evit"
    summary = "keeps the patches the class token attends to, fuses the rest (EViT)"
    source = "EViT, arXiv:2202.07800; code youweiliang/evit 5ca95a7, evit.py"
    differs = (
        "ties go to the smaller index (left open there); distillation and register tokens are kept like the class "
        "token (the source has none)."
    )
    signals = frozenset({"class_attention"})
    Config = EvitConfig

    @classmethod
    def layers(cls, config: EvitConfig, host: HostInfo) -> tuple[int, ...]:
        """Layers that drop patches."""
        if not host.has_class_token:
            raise UnsupportedError(
                f"evit: {host.name} has no class token, whose attention ranks the patches; use tome, avg_pool or "
                "random."
            )
        return check_layers("evit", quarter_layers(host.depth) if config.layers is None else config.layers, host)

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
