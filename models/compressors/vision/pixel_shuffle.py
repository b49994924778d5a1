"""Pixel shuffle: the channels of a block of patches side by side, as vendors put it in front of their projectors."""

from dataclasses import replace

from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.towers import PIXEL_SHUFFLE, PixelShuffleConfig
from trt_compress.models.compressors.base import Compressor, averaged
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.models.compressors.vision.behind import behind_tower, need_grid


class PixelShuffle(Compressor):
    """Fewer and wider tokens; nothing is lost."""

    method = PIXEL_SHUFFLE
    positions = "averaged"
    keeps_prefix = False

    @classmethod
    def placements(cls, config: PixelShuffleConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        return behind_tower()

    def __init__(self, config: PixelShuffleConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.grid, self.scale, self.columns = (
            need_grid("pixel_shuffle", arrival),
            config.scale,
            config.order == "columns",
        )
        if self.grid[0] % self.scale or self.grid[1] % self.scale:
            raise ConfigError(
                f"pixel_shuffle: scale={self.scale} does not divide the grid of {self.grid[0]} x {self.grid[1]} "
                "patches; give a number that divides both sides."
            )
        if arrival.width is None:
            raise ConfigError(f"pixel_shuffle: {arrival.host.name} does not tell the width of its tokens; use fourier.")
        self.prefix = arrival.prefix
        self.tokens_out = arrival.patches // self.scale**2
        self.width_out = arrival.width * self.scale**2

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Blocks of patches, by rows or columns."""
        front, scale = self.prefix, self.scale
        size = self._blocks(tokens.sizes[:, front:]).sum(dim=2, keepdim=True)

        def middle(at: Tensor) -> Tensor:
            blocks = self._blocks(at[:, front:])
            return blocks.reshape(*blocks.shape[:2], scale**2, -1).mean(dim=2)

        position = averaged(tokens.position, middle)
        return replace(tokens, x=self._blocks(tokens.x[:, front:]), size=size, position=position)

    def _blocks(self, x: Tensor) -> Tensor:
        """[B, rows * columns, C] to [B, blocks, scale * scale * C]."""
        batch, scale = x.shape[0], self.scale
        rows, columns = self.grid[0] // scale, self.grid[1] // scale
        split = x.reshape(batch, rows, scale, columns, scale, x.shape[2])
        order = (0, 3, 1, 2, 4, 5) if self.columns else (0, 1, 3, 2, 4, 5)
        return split.permute(*order).reshape(batch, rows * columns, scale**2 * x.shape[2])
