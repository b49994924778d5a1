"""What a method is: a configuration, where it acts, what it asks for, and a module for every site it acts at."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.format.graphs import StateSpec
from trt_compress.methods.config import CompressorConfig, Method, check_ascending
from trt_compress.models.compressors.calibration import Alphabet, Calibrated, CalibrationData, CalibrationHost
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap, TapKind

PositionRule = Literal["kept", "averaged", "renumbered"]


class Acting(nn.Module, ABC):
    """One method at one site, of whatever kind. A subclass sets the class variables, `placements` and `__init__`.

    Attributes:
        method: Its entry in the list of methods: name, summary, source, options.
        asks: Kinds of tap that it needs of the layer it acts at.
        layer_option: How a spec string says at which layers it acts.
        alone: Why no other method can act beside it, as the end of `NAME: …`; None: others can.
        takes_padding: It knows which tokens are padding (`Tokens.valid`) and heeds it: the tokens of an item come out
            as they do alone, and padding behind them.
        no_padding: Why it does not, as the end of `NAME: HOST pads its inputs, and NAME …`.
        takes_stale: It may have taps of tokens that other methods have changed since.
        keeps_prefix: Class, distillation and register tokens leave the site in front of the others, as they came.
        keeps_rest: What it does not pass on is kept and comes back; no token is removed.
        tokens_in: Tokens that come to the site; set by the base.
        tokens_out: Tokens that leave the site; set by `__init__`.
        width_out: Channels that leave the site; None: as many as came.
    """

    method: ClassVar[Method]
    asks: ClassVar[frozenset[TapKind]] = frozenset()
    layer_option: ClassVar[str] = "layers=[…]"
    alone: ClassVar[str | None] = None
    takes_padding: ClassVar[bool] = False
    no_padding: ClassVar[str] = "cannot tell padding from tokens"
    takes_stale: ClassVar[bool] = False
    keeps_prefix: ClassVar[bool] = True
    keeps_rest: ClassVar[bool] = False

    tokens_in: int
    tokens_out: int
    width_out: int | None = None

    @classmethod
    @abstractmethod
    def placements(cls, config: Any, host: HostInfo) -> tuple[Placement, ...]:
        """Where it acts in `host`.

        Raises:
            ConfigError: a layer is asked for that the host does not have.
            UnsupportedError: the host lacks what the method stands on.
        """

    @classmethod
    def taps(cls, config: Any, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """What it needs at a site: by default, of the site's own layer, what `asks` says."""
        layer = host.depth if site.layer is None else site.layer
        return tuple(Tap(kind=kind, layer=layer) for kind in sorted(cls.asks))

    @classmethod
    def levels(cls, config: Any) -> Mapping[str, CompressorConfig]:
        """Graphs that carry on the same states, by name, of which a run takes one; by default there is one, without."""
        return {"": config}

    @classmethod
    def calibrate(cls, host: CalibrationHost, data: CalibrationData, config: Any) -> Calibrated:
        """Make the artifact that it takes, from what a model computes of data.

        Args:
            host: The model, with the other methods of the spec in place.
            data: What to run it on. Each part can be gone through as often as needed and comes in batches, so that
                sums, tables and centroids are made without holding all of it.
            config: Its options, without the artifact.

        Raises:
            ConfigError: the data are too few, or do not suit.
            UnsupportedError: it has nothing to calibrate.
        """
        raise UnsupportedError(
            f"{cls.method.name}: nothing is known of how to calibrate it; give trained tensors with --tensors FILE."
        )

    @classmethod
    def samples(cls, alphabet: Alphabet, config: Any) -> CalibrationData | None:
        """Samples to calibrate with where nobody gives data; None: there must be data.

        The same alphabet makes the same samples.

        Raises:
            ConfigError: The model reads too few tokens for them.
        """
        return None

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: Any) -> Mapping[str, Tensor]:
        """The tensors of its artifact out of those that were trained elsewhere; by default all of them.

        Raises:
            ConfigError: some are missing, or have no place in it.
        """
        return tensors

    def __init__(self, config: Any, arrival: Arrival) -> None:
        super().__init__()
        self.tokens_in = arrival.tokens

    @property
    def acts(self) -> bool:
        """Whether it has any effect: it removes tokens, changes their width, or owns states."""
        return self.tokens_out < self.tokens_in or self.width_out is not None or bool(self.states())

    def states(self) -> tuple[StateSpec, ...]:
        """States that it owns: the graph takes and gives them, and `Tokens.memory` holds them by their inputs."""
        return ()


class Compressor(Acting):
    """A method that changes the tokens which pass its site. A subclass sets `forward` too.

    Attributes:
        positions: What becomes of positions: the remaining tokens keep theirs, what is merged has the mean, rounded
            down, or they count anew from 0.
    """

    positions: ClassVar[PositionRule] = "kept"

    @property
    def proportional_attention(self) -> bool:
        """Whether attention after this site weighs keys by size."""
        return False

    @abstractmethod
    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Compress the tokens of one site."""


def quarter_layers(depth: int) -> tuple[int, ...]:
    """Layers at one, two and three quarters of the depth: 3, 6, 9 of 12."""
    return tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)}))


def check_layers(name: str, layers: Sequence[int], host: HostInfo) -> tuple[int, ...]:
    """Return `layers` as they are; raise ConfigError if they do not ascend, or if the host lacks one."""
    check_ascending(name, layers)
    if wrong := [layer for layer in layers if layer >= host.depth]:
        raise ConfigError(
            f"{name}: layers={list(layers)} names layer {wrong[0]}, but {host.name} has layers 0..{host.depth - 1}."
        )
    return tuple(layers)


def check_layer(name: str, layer: int, host: HostInfo) -> tuple[int]:
    """Return the one layer; raise ConfigError if the host lacks it."""
    if not 0 <= layer < host.depth:
        raise ConfigError(f"{name}: layer={layer} is out of range; {host.name} has layers 0..{host.depth - 1}.")
    return (layer,)


def layers_or_quarters(name: str, layers: Sequence[int] | None, host: HostInfo) -> tuple[int, ...]:
    """The layers that were asked for, or those at one, two and three quarters of the depth, ascending."""
    return check_layers(name, quarter_layers(host.depth) if layers is None else layers, host)


def refuse_without_class_token(name: str, host: HostInfo, *, instead: str = "tome, avg_pool or random") -> None:
    """Refuse a method that ranks patches by the class token's attention where there is no such token.

    Raises:
        UnsupportedError: There is none; it names the methods that do without.
    """
    if not host.has_class_token:
        raise UnsupportedError(
            f"{name}: {host.name} has no class token, whose attention ranks the patches; use {instead}."
        )


def after_attention(layers: Sequence[int]) -> tuple[Placement, ...]:
    """After the attention of these layers."""
    return (Placement(kind="after_attention", layers=tuple(layers)),)


def num_patches_kept(num_patches: int, keep_ratio: float) -> int:
    """Patches kept: the product rounded up, in floating point as EViT's code does (0.07 * 100 keeps 8)."""
    return math.ceil(keep_ratio * num_patches)


def ratio_at(ratios: float | tuple[float, ...], layers: Sequence[int], layer: int) -> float:
    """The keep ratio at `layer`: the one ratio, or the one at the layer's place in `layers`."""
    return ratios[list(layers).index(layer)] if isinstance(ratios, tuple) else ratios


def averaged(position: Tensor | None, mean: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Positions of merged tokens: the mean of what is in them, rounded down.

    Args:
        position: [B, N] or [B, N, axes] int64; None: nobody asks.
        mean: [B, N, axes] to [B, M, axes] in float32, as the tokens are merged.

    Source: LLaVolta, arXiv:2406.20092.
    """
    if position is None:
        return None
    merged = mean(position.reshape(*position.shape[:2], -1).to(torch.float32)).floor().to(torch.int64)
    return merged.reshape(*merged.shape[:2], *position.shape[2:])


def averaged_by_row(position: Tensor | None, row: Tensor, size: Tensor, count: int) -> Tensor | None:
    """Positions of `count` merged tokens, where each token [B, N] went to `row` [B, N] with its size [B, N, 1]."""
    if position is None:
        return None
    shares = (row[:, None] == torch.arange(count, device=row.device)[:, None]) * size.transpose(1, 2)
    return averaged(position, lambda values: shares @ values / shares.sum(dim=2, keepdim=True))
