"""Pooling of audio frames: a fixed number of neighbours becomes one (mean, maximum, or the last)."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.methods.audio import FRAME_POOL, FramePoolConfig
from trt_compress.models.compressors.base import Compressor, after_attention, averaged, check_layer
from trt_compress.models.compressors.padding import pool_windows
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.operator import cast

Mode = Literal["mean", "max", "last"]


class FramePool(Compressor):
    """Pool neighbouring frames at one layer, or behind the encoder."""

    method = FRAME_POOL
    layer_option = "layer=…"
    positions = "averaged"
    takes_padding = True

    @classmethod
    def placements(cls, config: FramePoolConfig, host: HostInfo) -> tuple[Placement, ...]:
        """After the attention of a layer if one is named, else behind the encoder."""
        if config.layer is None:
            return (Placement(kind="encoder_output"),)
        return after_attention(check_layer("frame_pool", config.layer, host))

    def __init__(self, config: FramePoolConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.config, self.num_prefix, frames = config, arrival.prefix, arrival.patches
        if config.stride > frames:
            raise ConfigError(
                f"frame_pool: stride={config.stride} is larger than the {frames} frames of {arrival.host.name} there; "
                f"give at most {frames}."
            )
        self.whole = frames // config.stride * config.stride
        self.rest = frames - self.whole if config.remainder == "keep" else 0
        self.tokens_out = arrival.prefix + self.whole // config.stride + (self.rest > 0)

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Pool everything but the prefix."""
        if tokens.valid is not None:
            return self._padded(tokens, tokens.valid)
        prefix = tokens.x[:, : self.num_prefix]
        frames = tokens.x[:, self.num_prefix :]
        size = None if tokens.size is None else tokens.size[:, self.num_prefix :]
        pooled = [
            self._pool(frames[:, part], None if size is None else size[:, part], count) for count, part in self._windows
        ]
        x = torch.cat([prefix, *(x for x, _ in pooled)], dim=1)
        position = averaged(tokens.position, self._middle)
        if tokens.size is None and not self.rest:
            return replace(tokens, x=x, position=position)
        ones = torch.ones_like(prefix[..., :1], dtype=torch.float32)
        before = ones if tokens.size is None else tokens.size[:, : self.num_prefix]
        return replace(tokens, x=x, size=torch.cat([before, *(size for _, size in pooled)], dim=1), position=position)

    def _padded(self, tokens: Tokens, valid: Tensor) -> Tokens:
        """Pool what is no padding: a window with padding in it is dropped, or pooled as a shorter one."""
        p, stride, mode = self.num_prefix, self.config.stride, self.config.mode
        count = self.tokens_out - p
        used = min(count * stride, tokens.x.shape[1] - p)
        there = valid[:, p : p + used, None]
        frames = torch.where(there, tokens.x[:, p : p + used], 0).float()
        weight = torch.where(there, tokens.sizes[:, p : p + used], 0.0)
        pooled, total = pool_windows(frames, weight, stride)
        number = cast(there, torch.float32)
        _, inside = pool_windows(number, number, stride)
        if mode != "mean":
            place = torch.arange(used, device=there.device)[:, None] % stride
            end = inside.repeat_interleave(stride, dim=1)[:, :used] - 1
            if mode == "last":
                pooled, _ = pool_windows(frames, cast(there & (place == end), torch.float32), stride)
            else:
                low = torch.where(there, frames, torch.finfo(torch.float32).min)
                low = functional.pad(low, (0, 0, 0, count * stride - used), value=torch.finfo(torch.float32).min)
                pooled = torch.where(inside > 0, low.reshape(low.shape[0], count, stride, -1).amax(dim=2), 0.0)
        whole = inside[..., 0] > 0 if self.config.remainder == "keep" else inside[..., 0] == stride
        position = averaged(
            tokens.position,
            lambda places: torch.cat([places[:, :p], pool_windows(places[:, p : p + used], number, stride)[0]], dim=1),
        )
        size = None
        if tokens.size is not None or self.config.remainder == "keep":
            size = torch.cat([tokens.sizes[:, :p], torch.where(total > 0, total, 1.0)], dim=1)
        x = torch.cat([tokens.x[:, :p], cast(pooled, tokens.x.dtype)], dim=1)
        return replace(tokens, x=x, size=size, position=position, valid=torch.cat([valid[:, :p], whole], dim=1))

    @property
    def _windows(self) -> list[tuple[int, slice]]:
        """How many windows, and the frames that they are made of."""
        windows = [(self.whole // self.config.stride, slice(0, self.whole))]
        return [*windows, (1, slice(self.whole, self.whole + self.rest))] if self.rest else windows

    def _middle(self, places: Tensor) -> Tensor:
        """The mean place of every window of places [B, N, axes]."""
        frames = places[:, self.num_prefix :]
        means = [
            frames[:, part].reshape(frames.shape[0], count, -1, frames.shape[2]).mean(dim=2)
            for count, part in self._windows
        ]
        return torch.cat([places[:, : self.num_prefix], *means], dim=1)

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
