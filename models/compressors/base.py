"""What a compressor is: a configuration, and a module for every site it acts at."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.methods.config import Method, check_ascending

SiteKind = Literal[
    "patch_embed",
    "after_attention",
    "block_routing",
    "encoder_output",
    "before_decoder_layer",
    "kv_cache",
    "output_head",
    "codec",
]
Signal = Literal["keys", "class_attention", "history_queries", "previous", "age"]
USUAL_SIGNALS: Mapping[SiteKind, frozenset[Signal]] = MappingProxyType(
    {
        "after_attention": frozenset({"keys", "class_attention"}),
        "block_routing": frozenset({"history_queries"}),
        "patch_embed": frozenset({"previous", "age"}),
    }
)
"""What a host computes where it has a site; behind the encoder, where no layer is left, nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """What a compressor may know of its host.

    Attributes:
        name: The host, for messages.
        sites: Kinds of site it has.
        depth: Number of layers.
        num_tokens: Tokens that enter layer 0, the prefix included.
        num_prefix: Leading tokens that are no patches: class, distillation and register tokens.
        has_class_token: Token 0 is a class token, so there is a class-attention row.
        scored_layers: Layers before which the model can score its tokens by object queries.
        whole_layers: Layers that attend to a whole image where the others attend to windows of `num_tokens`.
        num_patches: Tokens of a whole image, where there are windows.
        width: Channels of a token; None: not told.
        signals: What it computes at each kind of site, for the compressors that ask for it.
    """

    name: str
    sites: frozenset[SiteKind]
    depth: int
    num_tokens: int
    num_prefix: int
    has_class_token: bool
    scored_layers: tuple[int, ...] = ()
    whole_layers: tuple[int, ...] = ()
    num_patches: int = 0
    width: int | None = None
    signals: Mapping[SiteKind, frozenset[Signal]] = field(default_factory=lambda: USUAL_SIGNALS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Which tokens of each of R windows pass a block, and how its updates come back to all of them.

    Attributes:
        index: Positions of the K tokens that pass by themselves, [R, K].
        dest: Row of the update for every token, [R, N]: its place in `index`, or K.
        weight: What makes the representative of the others, [R, 1, N]; None: there is none.
    """

    index: Tensor
    dest: Tensor
    weight: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenState:
    """Tokens [B, N, C], and what is known of them.

    Attributes:
        x: The tokens.
        size: How many original tokens each stands for, [B, N, 1] in fp32; None: one each.
        route: Set where tokens only go around a block: all of them are still there.
        position: Where each stood before the site, [B, N] int64; None: not known.
    """

    x: Tensor
    size: Tensor | None = None
    route: Route | None = None
    position: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What the host offers at a site; only what a compressor declares is computed.

    Attributes:
        keys: Keys averaged over the heads, [B, N, D].
        class_attention: Attention of the class token to every token, averaged over the heads, [B, N].
        scores: How much the object queries of the last frame need each token, [B, N].
        previous: The tokens of the site as they were when they were last computed, [B, N, C].
        age: Frames since each token was last computed, [B, N]; `NEVER` if it has not been.
    """

    keys: Tensor | None = None
    class_attention: Tensor | None = None
    scores: Tensor | None = None
    previous: Tensor | None = None
    age: Tensor | None = None


class Compressor(nn.Module, ABC):
    """One method at one site. A subclass sets the class variables, `layers`, `__init__` and `forward`.

    Attributes:
        method: Its entry in the list of methods: name, summary, source, options.
        site: Kind of site it acts at.
        signals: What it needs from the attention before the site.
        layer_option: How a spec string says at which layers it acts.
        keeps_prefix: Class, distillation and register tokens leave the site in front of the others, as they came.
        proportional_attention: Later attention adds log(size) to the logits of every key.
        tokens_out: Tokens that leave the site; set by `__init__`.
        width_out: Channels that leave the site; None: as many as came.
    """

    method: ClassVar[Method]
    site: ClassVar[SiteKind] = "after_attention"
    signals: ClassVar[frozenset[Signal]] = frozenset()
    layer_option: ClassVar[str] = "layers=[…]"
    keeps_prefix: ClassVar[bool] = True

    tokens_out: int
    width_out: int | None = None

    @classmethod
    def site_of(cls, config: Any) -> SiteKind:
        """Kind of site it acts at with these options."""
        return cls.site

    @classmethod
    @abstractmethod
    def layers(cls, config: Any, host: HostInfo) -> tuple[int, ...]:
        """Layers of `host` after whose attention this method acts, ascending; none at the encoder's output."""

    def __init__(self, config: Any, host: HostInfo, layer: int, tokens_in: int) -> None:
        super().__init__()

    @property
    def proportional_attention(self) -> bool:
        """Whether attention after this site weighs keys by size."""
        return False

    @abstractmethod
    def forward(self, state: TokenState, signals: Signals) -> TokenState:
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


def num_patches_kept(num_patches: int, keep_ratio: float) -> int:
    """Patches kept: the product rounded up, in floating point as EViT's code does (0.07 * 100 keeps 8)."""
    return math.ceil(keep_ratio * num_patches)


def ratio_at(ratios: float | tuple[float, ...], layers: Sequence[int], layer: int) -> float:
    """The keep ratio at `layer`: the one ratio, or the one at the layer's place in `layers`."""
    return ratios[list(layers).index(layer)] if isinstance(ratios, tuple) else ratios


def gather_size(size: Tensor | None, index: Tensor) -> Tensor | None:
    """Sizes [B, N, 1] of the tokens at `index` [B, K]."""
    return None if size is None else torch.gather(size, 1, index[..., None])
