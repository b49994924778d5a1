"""Fourier-VLM: the low frequencies of the grid of patches, as a smaller grid."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.towers import FOURIER, FourierConfig
from trt_compress.models.compressors.base import Compressor, averaged
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.models.compressors.vision.behind import behind_tower, need_grid
from trt_compress.plugins.token_mix.op import token_mix


class Fourier(Compressor):
    """Mix the patches by one constant matrix: cosine transform, low corner, back."""

    method = FOURIER
    positions = "averaged"

    matrix: Tensor
    areas: Tensor

    @classmethod
    def placements(cls, config: FourierConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        return behind_tower()

    def __init__(self, config: FourierConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        grid = need_grid("fourier", arrival)
        sides = [new_side(side, config.ratio) if config.side is None else config.side for side in grid]
        if sides[0] > grid[0] or sides[1] > grid[1]:
            raise ConfigError(
                f"fourier: side={config.side} is larger than the grid of {grid[0]} x {grid[1]} patches; give at most "
                f"{min(grid)}."
            )
        self.prefix, self.scale = arrival.prefix, config.scale
        whole = low_pass(grid, (sides[0], sides[1]), config.scale)
        self.register_buffer("matrix", whole, persistent=False)
        rows, columns = (_shares(before, after) for before, after in zip(grid, sides, strict=True))
        self.register_buffer("areas", torch.kron(rows, columns), persistent=False)
        self.tokens_out = arrival.prefix + sides[0] * sides[1]

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """The smaller grid, by rows."""
        front = self.prefix
        x = torch.cat([tokens.x[:, :front], token_mix(tokens.x[:, front:], self.matrix)], dim=1)
        of_rest = self.areas @ tokens.sizes[:, front:]
        size = torch.cat([tokens.sizes[:, :front], of_rest], dim=1)
        mean = self.areas / self.areas.sum(dim=1, keepdim=True)
        position = averaged(tokens.position, lambda at: torch.cat([at[:, :front], mean @ at[:, front:]], dim=1))
        return replace(tokens, x=x, size=size, position=position)


def new_side(side: int, ratio: float) -> int:
    """What is left of a side: the product in floating point, cut, and at least 1."""
    return max(int(side * ratio), 1)


def low_pass(grid: tuple[int, int], left: tuple[int, int], scale: str = "code") -> Tensor:
    """The matrix [rows * columns left, rows * columns] that brings a grid to its low frequencies, in float32.

    Args:
        grid: Rows and columns.
        left: Of the smaller grid.
        scale: As `FourierConfig` says.
    """
    whole = torch.kron(*(_of_side(before, after) for before, after in zip(grid, left, strict=True)))
    factor = math.prod(grid) / math.prod(left)
    scaled: Tensor = whole * {"code": 1.0, "constant": factor**-0.5, "none": factor**0.5}[scale]
    return scaled.float()


def _of_side(before: int, after: int) -> Tensor:
    """[after, before]: the inverse cosine transform of the first `after` frequencies of a side, in float64."""
    return _cosines(after).T @ _cosines(before)[:after]


def _cosines(count: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II), a frequency a row, [count, count]."""
    at = torch.arange(count, dtype=torch.float64)
    rows: Tensor = torch.cos(math.pi * at[:, None] * (2 * at + 1) / (2 * count)) * (2 / count) ** 0.5
    rows[0] /= 2**0.5
    return rows


def _shares(before: int, after: int) -> Tensor:
    """How much of each place of a side lies in each of the smaller one, [after, before]."""
    edges = torch.arange(after + 1, dtype=torch.float64) * before / after
    at = torch.arange(before, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], at + 1) - torch.maximum(edges[:-1, None], at)
    return overlap.clamp_min(0).float()
