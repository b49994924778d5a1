"""QueCC: queries that know the question take in the details of their own windows, from several layers of the tower."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from trt_compress.methods.connectors import QUECC, QueccConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.compressors.vision.behind import behind_tower, need_grid
from trt_compress.models.compressors.vision.connector import (
    CrossAttention,
    Levels,
    fitting,
    given,
    linear,
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
)

_EPS = 1e-6


def quecc_of(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a QueCC, in float32, with or without the names of the parts of a model in front.

    Raises:
        ConfigError: some are missing, too many, or do not fit together; they are named.
    """
    found = part_of(tensors, "q_downsample.weight")
    width, levels = side(found, "q_proj.0.weight", 0), side(found, "k_proj.0.weight", 1)
    text, window = side(found, "text_projection.0.weight", 1), side(found, "q_downsample.weight", 3)
    shapes = {
        **linear("text_projection.0", text, width),
        **norm("text_projection.1", width),
        **mlp("q_proj", width, width),
        **norm("q_proj.3", width),
        **mlp("k_proj", levels, width),
        **norm("k_proj.3", width),
        **mlp("v_proj", levels, width),
        **norm("v_proj.3", width),
        "q_downsample.weight": (width, 1, window, window),
        "q_downsample.bias": (width,),
        **packed_attention("clip_attn", width),
    }
    return fitting("quecc", found, where, shapes, "the tensors of one connector of QueCC")


class QueccConnector(nn.Module):
    """What it computes of features, whatever they are of.

    Args:
        tensors: As `quecc_of` gives them.
        grid: Rows and columns of patches.
        heads: Of the attention.
    """

    def __init__(self, tensors: Mapping[str, Tensor], grid: tuple[int, int], heads: int) -> None:
        super().__init__()
        kernel = tensors["q_downsample.weight"]
        width, self.grid, self.scale = kernel.shape[0], grid, kernel.shape[3]
        self.text_in = given(tensors["text_projection.0.weight"], tensors["text_projection.0.bias"])
        self.text_norm = normal(tensors, "text_projection.1", _EPS)
        self.query_in, self.key_in, self.value_in = (
            perceptron(tensors, f"{part}_proj", _EPS) for part in ("q", "k", "v")
        )
        self.downsample = nn.Conv2d(width, width, self.scale, self.scale, groups=width)
        self.downsample.load_state_dict({"weight": kernel, "bias": tensors["q_downsample.bias"]})
        self.attend = CrossAttention(tensors, "clip_attn", heads)

    def forward(self, x: Tensor, several: Tensor, question: Tensor) -> Tensor:
        """One token of each window, [B, windows, C].

        Args:
            x: Patches, [B, N, C].
            several: Those of several layers side by side, [B, N, layers * C].
            question: What the language model makes of its last token, [B, T].
        """
        asked = x + self.text_norm(self.text_in(question))[:, None]
        square = self.query_in(asked).transpose(1, 2).unflatten(2, self.grid)
        query = self.downsample(square).flatten(2).transpose(1, 2)
        return self.attend.in_windows(query, self.key_in(several), self.value_in(several), self.grid, self.scale)


class Quecc(Compressor):
    """A connector in front of any projector, which reads the question too."""

    method = QUECC
    positions = "averaged"
    keeps_prefix = False

    @classmethod
    def placements(cls, config: QueccConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        return behind_tower()

    @classmethod
    def taps(cls, config: QueccConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """What left the layers that it reads, and the question, whose channels its weights tell."""
        levels = Levels("quecc", config.layers, host).taps()
        if config.weights is None:
            return levels
        return (_question(read_weights("quecc", config.weights), host), *levels)

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: Any) -> Mapping[str, Tensor]:
        """Its tensors out of those of a model."""
        return quecc_of(tensors, "the file")

    def __init__(self, config: QueccConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.grid, self.prefix = need_grid("quecc", arrival), arrival.prefix
        tensors = quecc_of(read_weights("quecc", config.weights), str(config.weights))
        width, self.scale = tensors["q_downsample.weight"].shape[0], tensors["q_downsample.weight"].shape[3]
        need_width("quecc", width, str(config.weights), arrival)
        need_heads("quecc", config.heads, width)
        need_windows("quecc", self.scale, self.grid)
        self.several = Levels("quecc", config.layers, arrival.host)
        need_levels("quecc", tensors["k_proj.0.weight"].shape[1], str(config.weights), self.several, arrival)
        self.connector = QueccConnector(tensors, self.grid, config.heads)
        self.question = _question(tensors, arrival.host)
        self.tokens_out = arrival.patches // self.scale**2

    @property
    def acts(self) -> bool:
        """It always does: each token is made anew."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """A token of each window."""
        front = self.prefix
        several = self.several.of(tokens, taps)[:, front:]
        x = self.connector(tokens.x[:, front:], several, taps.at(self.question))
        return of_windows(tokens, x, front, self.grid, self.scale)


def _question(tensors: Mapping[str, Tensor], host: HostInfo) -> Tap:
    """The question, as wide as the tensors take it; 0: they do not say."""
    return Tap(kind="question", layer=host.depth, channels=side(tensors, "text_projection.0.weight", 1))
