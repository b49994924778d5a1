"""Pooling of audio frames: a fixed number of neighbours becomes one (mean, maximum, or the last)."""

from typing import Literal

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.audio import FRAME_POOL, FramePoolConfig
from trt_compress.models.compressors.base import (
    Compressor,
    HostInfo,
    Signals,
    SiteKind,
    TokenState,
    check_layer,
)
from trt_compress.plugins.operator import cast

Mode = Literal["mean", "max", "last"]


class FramePool(Compressor):
    """Pool neighbouring frames at one layer, or behind the encoder."""

    method = FRAME_POOL

    @classmethod
    def site_of(cls, config: FramePoolConfig) -> SiteKind:
        """After the attention of a layer if one is named, else behind the encoder."""
        return "encoder_output" if config.layer is None else "after_attention"

    @classmethod
    def layers(cls, config: FramePoolConfig, host: HostInfo) -> tuple[int, ...]:
        """The one layer, if one is named."""
        return () if config.layer is None else check_layer("frame_pool", config.layer, host)

    def __init__(self, config: FramePoolConfig, host: HostInfo, layer: int, tokens_in: int) -> None:
        super().__init__(config, host, layer, tokens_in)
        self.config, self.num_prefix = config, host.num_prefix
        frames = tokens_in - host.num_prefix
        if config.stride > frames:
            raise ConfigError(
                f"frame_pool: stride={config.stride} is larger than the {frames} frames of {host.name} there; give at "
                f"most {frames}."
            )
        self.whole = frames // config.stride * config.stride
        self.rest = frames - self.whole if config.remainder == "keep" else 0
        self.tokens_out = host.num_prefix + self.whole // config.stride + (self.rest > 0)

    def forward(self, state: TokenState, signals: Signals) -> TokenState:
        """Pool everything but the prefix."""
        prefix = state.x[:, : self.num_prefix]
        frames = state.x[:, self.num_prefix :]
        size = None if state.size is None else state.size[:, self.num_prefix :]
        windows = [(self.whole // self.config.stride, slice(0, self.whole))]
        if self.rest:
            windows.append((1, slice(self.whole, self.whole + self.rest)))
        pooled = [
            self._pool(frames[:, part], None if size is None else size[:, part], count) for count, part in windows
        ]
        x = torch.cat([prefix, *(x for x, _ in pooled)], dim=1)
        if state.size is None and not self.rest:
            return TokenState(x=x)
        ones = torch.ones_like(prefix[..., :1], dtype=torch.float32)
        before = ones if state.size is None else state.size[:, : self.num_prefix]
        return TokenState(x=x, size=torch.cat([before, *(size for _, size in pooled)], dim=1))

    def _pool(self, x: Tensor, size: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
        """`count` windows of x [B, N, C], and the sizes of what comes out."""
        windows = x.reshape(x.shape[0], count, x.shape[1] // count, x.shape[2])
        sizes = torch.ones_like(windows[..., :1], dtype=torch.float32)
        if size is not None:
            sizes = size.reshape(*windows.shape[:3], 1)
        total = sizes.sum(dim=2)
        if self.config.mode == "max":
            return windows.amax(dim=2), total
        if self.config.mode == "last":
            return windows[:, :, -1], total
        if size is None:
            return windows.mean(dim=2), total
        return cast((windows.float() * sizes).sum(dim=2) / total, x.dtype), total
