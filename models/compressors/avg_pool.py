"""Average pooling along the token sequence (LLaVolta's visual pooling)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.methods.vision import AVG_POOL, AvgPoolConfig
from trt_compress.models.compressors.base import Compressor, after_attention, averaged, check_layer
from trt_compress.models.compressors.padding import pool_windows
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.operator import cast


def pool_tokens(x: Tensor, stride: int) -> Tensor:
    """Mean of every `stride` neighbouring rows of x [B, N, C]; a last window that is not full is averaged too."""
    batch, n, channels = x.shape
    whole = n - n % stride
    pooled = x[:, :whole].reshape(batch, whole // stride, stride, channels).mean(dim=2)
    return pooled if whole == n else torch.cat([pooled, x[:, whole:].mean(dim=1, keepdim=True)], dim=1)


def pool_spans(hidden: Tensor, starts: Sequence[Sequence[int]], *, length: int, stride: int) -> Tensor:
    """Pool image spans inside sequences of hidden states.

    Args:
        hidden: Hidden states, [B, L, C].
        starts: First position of every image span of every sequence, ascending; the same number of spans in each.
        length: Length of a span; a multiple of stride.
        stride: Neighbouring states that become one.

    Returns:
        [B, L - spans * (length - length // stride), C].

    Raises:
        ShapeError: a span leaves the sequence, spans overlap, or sequences would end up of different length.

    Source: LLaVolta, arXiv:2406.20092; code Beckschen/LLaVolta 31ec151, llava_llama.py.
    Differs: any span length (576 there), checked spans.
    """
    if len(starts) != hidden.shape[0] or len({len(s) for s in starts}) != 1:
        raise ShapeError(
            f"avg_pool: {len(starts)} lists of spans for a batch of {hidden.shape[0]}; give each sequence "
            "the same number of spans."
        )
    if length % stride:
        raise ShapeError(
            f"avg_pool: length={length} is no multiple of stride={stride}; choose a stride that divides it."
        )
    return torch.stack([_pool_row(row, spans, length, stride) for row, spans in zip(hidden, starts, strict=True)])


def _pool_row(row: Tensor, spans: Sequence[int], length: int, stride: int) -> Tensor:
    parts, position = [], 0
    for start in spans:
        if start < position or start + length > row.shape[0]:
            raise ShapeError(
                f"avg_pool: a span at {start} of length {length} does not fit into {row.shape[0]} positions "
                f"from {position} on."
            )
        parts += [row[position:start], pool_tokens(row[None, start : start + length], stride)[0]]
        position = start + length
    return torch.cat([*parts, row[position:]])


def pool_positions(
    positions: Tensor, starts: Sequence[Sequence[int]], *, length: int, stride: int, half_precision: bool = False
) -> Tensor:
    """Position ids that go with `pool_spans`: the mean of each window, rounded down.

    Args:
        positions: Position ids, [B, L] or [1, L], int64.
        starts: As for `pool_spans`.
        length: As for `pool_spans`.
        stride: As for `pool_spans`.
        half_precision: Average in float16 as the original does; above 1024 that rounds halves to even numbers, above
            2048 it loses odd positions.

    Returns:
        [B, L'], int64.

    Source: LLaVolta, arXiv:2406.20092; code Beckschen/LLaVolta 31ec151, llava_llama.py.
    Differs: exact by default; the original's float16 is a precision bug.
    """
    ids = positions.expand(len(starts), -1)[..., None].double()
    pooled = pool_spans(ids, starts, length=length, stride=stride)
    if half_precision:
        in_span = torch.zeros_like(ids)
        for row, spans in zip(in_span, starts, strict=True):
            for start in spans:
                row[start : start + length] = 1
        was_pooled = pool_spans(in_span, starts, length=length, stride=stride) > 0
        halved = pool_spans(ids.half().double(), starts, length=length, stride=stride).half().double()
        pooled = torch.where(was_pooled, halved, pooled)
    return pooled[..., 0].floor().long()


class AvgPool(Compressor):
    """Average neighbouring patches at one layer."""

    method = AVG_POOL
    layer_option = "layer=…"
    positions = "averaged"
    takes_padding = True

    @classmethod
    def placements(cls, config: AvgPoolConfig, host: HostInfo) -> tuple[Placement, ...]:
        """The one layer that pools."""
        return after_attention(check_layer("avg_pool", host.depth // 4 if config.layer is None else config.layer, host))

    def __init__(self, config: AvgPoolConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.stride, self.num_prefix, num_patches = config.stride, arrival.prefix, arrival.patches
        if config.stride > num_patches:
            raise ConfigError(
                f"avg_pool: stride={config.stride} is larger than the {num_patches} patches at layer {arrival.layer} "
                f"of {arrival.host.name}; give at most {num_patches}."
            )
        self.tokens_out = arrival.prefix + -(-num_patches // config.stride)

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Pool everything but the prefix."""
        p, stride = self.num_prefix, self.stride
        if tokens.valid is not None:
            return self._padded(tokens, tokens.valid)
        position = averaged(
            tokens.position, lambda places: torch.cat([places[:, :p], pool_tokens(places[:, p:], stride)], dim=1)
        )
        if tokens.size is None:
            x = torch.cat([tokens.x[:, :p], pool_tokens(tokens.x[:, p:], stride)], dim=1)
            return replace(tokens, x=x, position=position)
        size = pool_tokens(tokens.size[:, p:], stride)
        weighted = pool_tokens(tokens.x[:, p:].float() * tokens.size[:, p:], stride) / size
        patches = tokens.size.shape[1] - p
        window = torch.full((size.shape[1], 1), stride, dtype=torch.float32, device=size.device)
        window[-1] = patches - stride * (size.shape[1] - 1)
        return replace(
            tokens,
            x=torch.cat([tokens.x[:, :p], weighted.to(tokens.x.dtype)], dim=1),
            size=torch.cat([tokens.size[:, :p], size * window], dim=1),
            position=position,
        )

    def _padded(self, tokens: Tokens, valid: Tensor) -> Tokens:
        """Means of what is no padding; a window without a token is padding."""
        p, stride = self.num_prefix, self.stride
        weight = torch.where(valid[..., None], tokens.sizes, 0.0)[:, p:]
        pooled, total = pool_windows(torch.where(valid[..., None], tokens.x, 0)[:, p:].float(), weight, stride)
        there = cast(valid[:, p:, None], torch.float32)
        position = averaged(
            tokens.position,
            lambda places: torch.cat([places[:, :p], pool_windows(places[:, p:], there, stride)[0]], dim=1),
        )
        size = None
        if tokens.size is not None:
            size = torch.cat([tokens.size[:, :p], torch.where(total > 0, total, 1.0)], dim=1)
        return replace(
            tokens,
            x=torch.cat([tokens.x[:, :p], cast(pooled, tokens.x.dtype)], dim=1),
            size=size,
            position=position,
            valid=torch.cat([valid[:, :p], total[..., 0] > 0], dim=1),
        )
