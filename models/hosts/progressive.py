"""Progressive encoding of a video (PVC): each frame's tokens build on those of the frames before it.

A Vision Transformer whose later blocks each begin with attention over time: a token attends to the tokens at its own
place in this frame and in those before. At the end the patches are folded into few tokens. What the graph needs of
earlier frames, keys and values of a fixed number of them, is state.

Source: PVC, arXiv:2412.09613.
Differs: which layers attend over time, in which order and how they begin is not stated there: the second half of the
    layers here, time before space, with an output that begins at zero. The time is that within the window of frames:
    it grows from 0 to 1 while the window fills, and stays there.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.format.graphs import BATCH_SYMBOL, StateSpec
from trt_compress.models.hosts.base import CompressedModule
from trt_compress.models.layers.attention import attention
from trt_compress.plugins.operator import cast

_HIDDEN = -3e4  # added to a logit; fp16 holds it
_SLOWEST = 10_000.0
_TIME_SCALE = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressiveConfig:
    """Sizes.

    Attributes:
        window: Frames that a token attends to, its own included.
        temporal_layers: Blocks that begin with attention over time, the last ones.
        stride: Patches in each direction that are folded into one token.
        time_width: Of the sinusoids that stand for a time.
        outputs: Numbers that are read off the tokens of a frame.
    """

    window: int = 4
    temporal_layers: int = 3
    stride: int = 4
    time_width: int = 256
    outputs: int = 12


class AdaLayerNorm(nn.Module):
    """LayerNorm whose scale and shift follow from the time, through `inner` channels; it begins as a plain one."""

    def __init__(self, width: int, time_width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.enter = nn.Linear(time_width, inner)
        self.leave = nn.Linear(inner, 2 * width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Tokens [B, N, C], for sinusoids [B, time_width]."""
        scale, shift = self.leave(functional.silu(self.enter(time)))[:, None].chunk(2, dim=-1)
        normed: Tensor = self.norm(x)
        adapted: Tensor = normed * (1 + scale) + shift
        return adapted


class TemporalAttention(nn.Module):
    """Attention of each token to those at its place in this frame and in those before."""

    def __init__(self, width: int, heads: int, time_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = AdaLayerNorm(width, time_width, width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, time: Tensor, past: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One frame.

        Args:
            x: Tokens, [B, N, C].
            time: Sinusoids, [B, time_width].
            past: Keys and values of the W - 1 frames before, the oldest first, [B, W - 1, N, 2 C].
            hidden: Added to the logits of each frame of the window, [B, 1, 1, 1, W].

        Returns:
            What is added to the tokens, and the keys and values for the next frame.
        """
        batch, count, width = x.shape
        normed = self.norm(x, time)
        window = torch.cat([past, self.key_value(normed)[:, None]], dim=1)
        frames = window.shape[1]
        keys, values = window.reshape(batch, frames, count, 2, self.heads, width // self.heads).unbind(dim=3)
        query = self.query(normed).reshape(batch, count, self.heads, 1, width // self.heads)
        mixed, _ = attention(query, keys.permute(0, 2, 3, 1, 4), values.permute(0, 2, 3, 1, 4), bias=hidden)
        return self.out(mixed.reshape(batch, count, width)), window[:, 1:]


class FoldTokens(nn.Module):
    """Patches into few tokens: stride x stride of them side by side, then a small network that knows the time."""

    def __init__(self, width: int, grid: tuple[int, int], config: ProgressiveConfig) -> None:
        super().__init__()
        self.grid, self.stride = grid, config.stride
        wide = width * config.stride**2
        self.norm = AdaLayerNorm(wide, config.time_width, width)
        self.enter, self.leave = nn.Linear(wide, width), nn.Linear(width, width)

    def forward(self, patches: Tensor, time: Tensor) -> Tensor:
        """Tokens [B, N / stride², C] of patches [B, N, C]."""
        batch, _, width = patches.shape
        rows, columns, stride = *self.grid, self.stride
        tiles = patches.reshape(batch, rows // stride, stride, columns // stride, stride, width)
        folded = tiles.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, stride * stride * width)
        tokens: Tensor = self.leave(functional.gelu(self.enter(self.norm(folded, time))))
        return tokens


class ProgressiveViT(CompressedModule):
    """A timm Vision Transformer with a class token, whose frames build on each other.

    Args:
        vit: The model; its head is not used.
        config: Sizes.
    """

    def __init__(self, vit: Any, config: ProgressiveConfig) -> None:
        super().__init__()
        self.vit, self.config = vit, config
        width, heads = vit.embed_dim, vit.blocks[0].attn.num_heads
        self.first_temporal = len(vit.blocks) - config.temporal_layers
        self.temporal = nn.ModuleList(
            TemporalAttention(width, heads, config.time_width) for _ in range(config.temporal_layers)
        )
        grid = vit.patch_embed.grid_size
        self.fold = FoldTokens(width, grid, config)
        self.num_tokens = grid[0] * grid[1] // config.stride**2
        self.read = nn.Linear(self.num_tokens * width, config.outputs)

    def states(self) -> tuple[StateSpec, ...]:
        """What is handed from frame to frame."""
        tokens = 1 + int(self.vit.patch_embed.num_patches)
        past = (BATCH_SYMBOL, self.config.window - 1, tokens, 2 * int(self.vit.embed_dim))
        return (
            StateSpec(input="frames_seen_in", output="frames_seen_out", shape=(BATCH_SYMBOL,), dtype="int64"),
            *(
                StateSpec(input=f"past_{layer}_in", output=f"past_{layer}_out", shape=past)
                for layer in range(self.first_temporal, len(self.vit.blocks))
            ),
        )

    def forward(self, frame: Tensor, seen: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """One frame.

        Args:
            frame: [B, 3, height, width].
            seen: Frames before this one, [B] int64.
            past: Keys and values of each temporal layer, [B, window - 1, 1 + N, 2 C].

        Returns:
            The frame's tokens [B, N / stride², C], what is read off them [B, outputs], and the new states.
        """
        vit = self.vit
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(frame)))
        time, hidden = self._time(seen, x.dtype), self._hidden(seen, x.dtype)
        after = []
        for number, block in enumerate(vit.blocks):
            if number >= self.first_temporal:
                place = number - self.first_temporal
                update, kept = self.temporal[place](x, time, past[place], hidden)
                x = x + update
                after.append(kept)
            x = block(x)
        tokens = self.fold(vit.norm(x)[:, 1:], time)
        return tokens, self.read(tokens.flatten(1)), seen + 1, *after

    def _time(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """Sinusoids of the time of the frame after `seen` ones, [B, time_width]."""
        last = self.config.window - 1
        time = cast(seen, torch.float32).clamp_max(last)[:, None] / max(last, 1) * _TIME_SCALE
        half = self.config.time_width // 2
        angles = time * torch.exp(torch.arange(half, device=seen.device) * (-math.log(_SLOWEST) / half))
        return cast(torch.cat([angles.cos(), angles.sin()], dim=1), dtype)

    def _hidden(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """Hides frames of the window that have not been, [B, 1, 1, 1, window]."""
        ago = torch.arange(self.config.window - 1, -1, -1, device=seen.device)
        return cast(torch.where(ago > seen[:, None], _HIDDEN, 0.0), dtype)[:, None, None, None]
