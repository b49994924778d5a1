"""TokenPacker: coarse queries take in the details of their own windows, from several layers of the tower."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from trt_compress.methods.connectors import TOKENPACKER, TokenPackerConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.compressors.vision.behind import behind_tower, need_grid
from trt_compress.models.compressors.vision.connector import (
    CrossAttention,
    Levels,
    fitting,
    given,
    mlp,
    need_heads,
    need_levels,
    need_width,
    need_windows,
    norm,
    normal,
    of_windows,
    packed_attention,
    part_of,
    perceptron,
    read_weights,
    side,
    windows,
)

_EPS = 1e-6


def packer_of(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a TokenPacker, in float32, with or without the names of the parts of a model in front.

    Raises:
        ConfigError: some are missing, too many, or do not fit together; they are named.
    """
    found = part_of(tensors, "q_proj_1.weight")
    width, levels = side(found, "q_proj_1.weight", 1), side(found, "k_proj_1.0.weight", 1)
    out = side(found, "mlp.2.weight", 0)
    shapes = {
        "q_proj_1.weight": (width, width),
        **mlp("k_proj_1", levels, width),
        **mlp("v_proj_1", levels, width),
        **norm("ln_q_1", width),
        **norm("ln_k_1", width),
        **norm("ln_v_1", width),
        **packed_attention("clip_attn", width),
        **mlp("mlp", width, out),
    }
    return fitting("tokenpacker", found, where, shapes, "the tensors of one mm_projector of TokenPacker")


class Packer(nn.Module):
    """What it computes of features, whatever they are of.

    Args:
        tensors: As `packer_of` gives them.
        grid: Rows and columns of patches.
        scale: Rows and columns of a window.
        heads: Of the attention.
    """

    def __init__(self, tensors: Mapping[str, Tensor], grid: tuple[int, int], scale: int, heads: int) -> None:
        super().__init__()
        self.grid, self.scale = grid, scale
        self.query_in = given(tensors["q_proj_1.weight"], None)
        self.key_in, self.value_in = (perceptron(tensors, name) for name in ("k_proj_1", "v_proj_1"))
        self.query_norm, self.key_norm, self.value_norm = (
            normal(tensors, name, _EPS) for name in ("ln_q_1", "ln_k_1", "ln_v_1")
        )
        self.attend = CrossAttention(tensors, "clip_attn", heads)
        self.project = perceptron(tensors, "mlp")

    def forward(self, x: Tensor, several: Tensor) -> Tensor:
        """[B, windows, E] of patches [B, N, C], and of those of several layers side by side [B, N, layers * C]."""
        query = self.query_norm(self.query_in(self._middle(x)))
        key, value = self.key_norm(self.key_in(several)), self.value_norm(self.value_in(several))
        found: Tensor = self.project(self.attend.in_windows(query, key, value, self.grid, self.scale))
        return found

    def _middle(self, x: Tensor) -> Tensor:
        """What a linear resize without smoothing reads of each window: its middle patch, or the mean of the four."""
        inner = windows(x, self.grid, self.scale)
        square = inner.reshape(*inner.shape[:2], self.scale, self.scale, inner.shape[3])
        part = slice((self.scale - 1) // 2, self.scale // 2 + 1)
        return square[:, :, part, part].mean(dim=(2, 3))


class TokenPacker(Compressor):
    """A connector: its tokens have the width of what reads them."""

    method = TOKENPACKER
    positions = "averaged"
    keeps_prefix = False

    @classmethod
    def placements(cls, config: TokenPackerConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        return behind_tower()

    @classmethod
    def taps(cls, config: TokenPackerConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """What left the layers that it reads."""
        return Levels("tokenpacker", config.layers, host).taps()

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: Any) -> Mapping[str, Tensor]:
        """Its tensors out of those of a model."""
        return packer_of(tensors, "the file")

    def __init__(self, config: TokenPackerConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.grid, self.prefix, self.scale = need_grid("tokenpacker", arrival), arrival.prefix, config.scale
        tensors = packer_of(read_weights("tokenpacker", config.weights), str(config.weights))
        width, wide = (tensors[name].shape[1] for name in ("q_proj_1.weight", "k_proj_1.0.weight"))
        need_width("tokenpacker", width, str(config.weights), arrival)
        need_heads("tokenpacker", config.heads, width)
        need_windows("tokenpacker", self.scale, self.grid)
        self.several = Levels("tokenpacker", config.layers, arrival.host)
        need_levels("tokenpacker", wide, str(config.weights), self.several, arrival)
        self.packer = Packer(tensors, self.grid, self.scale, config.heads)
        self.tokens_out = arrival.patches // self.scale**2
        self.width_out = tensors["mlp.2.weight"].shape[0]

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """A token of each window."""
        front = self.prefix
        x = self.packer(tokens.x[:, front:], self.several.of(tokens, taps)[:, front:])
        return of_windows(tokens, x, front, self.grid, self.scale)
