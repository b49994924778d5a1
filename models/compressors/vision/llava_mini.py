"""LLaVA-Mini's compression: a few learned queries attend to all patches of an image."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.methods.connectors import LLAVA_MINI, LlavaMiniConfig
from trt_compress.models.compressors.base import Compressor, averaged
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.models.compressors.vision.behind import behind_tower, need_grid
from trt_compress.models.compressors.vision.connector import (
    CrossAttention,
    Shapes,
    fitting,
    mlp,
    need_heads,
    need_width,
    norm,
    normal,
    packed_attention,
    part_of,
    perceptron,
    read_weights,
    side,
)

_COMPRESSOR, _PROJECTOR = "compressor.", "mm_projector."
_EPS = 1e-5


def resampler_of(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of the compressor, and of the projector where there is one, in float32.

    They are `compressor.…` and `mm_projector.…`, with or without the names of the parts of a model in front; or those
    of the compressor alone, without any.

    Raises:
        ConfigError: some are missing, too many, or do not fit together; they are named.
    """
    found = part_of(tensors, f"{_COMPRESSOR}ln_kv.weight")
    if found:
        found = {name: each for name, each in found.items() if name.startswith((_COMPRESSOR, _PROJECTOR))}
    else:
        found = {_COMPRESSOR + name: each for name, each in part_of(tensors, "ln_kv.weight").items()}
    count, width = (side(found, f"{_COMPRESSOR}query", axis) for axis in (0, 1))
    projected = any(name.startswith(_PROJECTOR) for name in found)
    last = side(found, f"{_PROJECTOR}2.weight", 0)
    shapes: Shapes = {
        f"{_COMPRESSOR}query": (count, width),
        f"{_COMPRESSOR}pos_embed": (count, width),
        **packed_attention(f"{_COMPRESSOR}attn", width),
        **norm(f"{_COMPRESSOR}ln_q", width),
        **norm(f"{_COMPRESSOR}ln_kv", width),
        **(mlp("mm_projector", width, last) if projected else {}),
    }
    return fitting("llava_mini", found, where, shapes, "the compressor of one model of LLaVA-Mini, with its projector")


class LlavaMini(Compressor):
    """A connector: its tokens have the width of what reads them, if the projector is given too."""

    method = LLAVA_MINI
    positions = "averaged"
    keeps_prefix = False

    queries: Tensor
    places: Tensor

    @classmethod
    def placements(cls, config: LlavaMiniConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        return behind_tower()

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: Any) -> Mapping[str, Tensor]:
        """Its tensors out of those of a model."""
        return resampler_of(tensors, "the file")

    def __init__(self, config: LlavaMiniConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        grid, self.prefix = need_grid("llava_mini", arrival), arrival.prefix
        tensors = resampler_of(read_weights("llava_mini", config.weights), str(config.weights))
        query, table = tensors[f"{_COMPRESSOR}query"], tensors[f"{_COMPRESSOR}pos_embed"]
        count, width = query.shape
        need_width("llava_mini", width, str(config.weights), arrival)
        need_heads("llava_mini", config.heads, width)
        self.norm = normal(tensors, f"{_COMPRESSOR}ln_kv", _EPS)
        self.attend = CrossAttention(tensors, f"{_COMPRESSOR}attn", config.heads)
        projected = f"{_PROJECTOR}0.weight" in tensors
        self.project = perceptron(tensors, "mm_projector") if projected else nn.Identity()
        with torch.no_grad():
            queries = normal(tensors, f"{_COMPRESSOR}ln_q", _EPS)(query) + table
        self.register_buffer("queries", queries[None], persistent=False)
        self.register_buffer("places", places_of(table, grid)[None], persistent=False)
        self.tokens_out = count
        self.width_out = tensors[f"{_PROJECTOR}2.weight"].shape[0] if projected else None

    @property
    def acts(self) -> bool:
        """It always does: each token is made anew."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """One token of each query."""
        patches = self.norm(tokens.x[:, self.prefix :])
        query = self.queries.expand(patches.shape[0], -1, -1)
        x = self.project(self.attend(query, patches + self.places, patches))

        def mean(at: Tensor) -> Tensor:
            return functional.adaptive_avg_pool1d(at[:, self.prefix :].transpose(1, 2), self.tokens_out).transpose(1, 2)

        share = tokens.sizes[:, self.prefix :].sum(dim=1, keepdim=True) / self.tokens_out
        return replace(
            tokens, x=x, size=share.expand(-1, self.tokens_out, -1), position=averaged(tokens.position, mean)
        )


def places_of(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions of the patches [rows * columns, C]: the square table of the queries [count, C], resized to their grid.

    Raises:
        ConfigError: The table is not square.
    """
    count, width = table.shape
    across = math.isqrt(count)
    if across * across != count:
        raise ConfigError(
            f"llava_mini: {count} queries are no square, so their positions cannot be resized; give a compressor with "
            "1, 4, 9 or another square of queries."
        )
    if grid == (across, across):
        return table
    square = table.reshape(1, across, across, width).permute(0, 3, 1, 2)
    resized = functional.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], width)
