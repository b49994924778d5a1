"""Where methods act, what they may ask for there, and what they may know of the model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

SiteKind = Literal[
    "patch_embed",
    "after_attention",
    "block_routing",
    "encoder_output",
    "connector",
    "before_layer",
    "kv_cache",
    "output_head",
    "codec",
]
TapKind = Literal["keys", "class_attention", "history_queries"]
"""Tensors that hosts compute for methods:

keys: keys of a layer, averaged over the heads, [B, N, D].
class_attention: attention of the class token to every token at a layer, averaged over the heads, [B, N].
history_queries: how much the object queries of the last frame need each token, [R, N] of R windows.
"""
SpanKind = Literal["class", "distillation", "register", "text", "image", "sink"]

ENCODER_OUTPUT: Final = "encoder_output"
MODEL = "model"  # the graph of a model that has only one
_ADDRESSES = {
    "after_attention": "blocks.{}",
    "block_routing": "blocks.{}",
    "before_layer": "before.{}",
    "kv_cache": "cache.{}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A tensor that a method asks the host for.

    Attributes:
        kind: What it is.
        layer: The layer that it is taken from.
    """

    kind: TapKind
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place of a graph where methods can act.

    Attributes:
        kind: What kind of place it is.
        layer: The layer that it belongs to; None: it stands for itself.
        graph: The graph that it is in.
        taps: What the host computes at this layer for those that ask.
        tokens: Tokens of one group here, where that is not what left the site before; all may be removed. None: it is.
        width: Channels of these; None: not told.
        groups: Groups of one sample: windows, images.
        padding: Tokens of all groups together that fill up windows.
    """

    kind: SiteKind
    layer: int | None = None
    graph: str = MODEL
    taps: frozenset[TapKind] = frozenset()
    tokens: int | None = None
    width: int | None = None
    groups: int = 1
    padding: int = 0

    @property
    def name(self) -> str:
        """Its address inside its graph: `blocks.3`, `cache.3`, `encoder_output`."""
        return _ADDRESSES.get(self.kind, self.kind).format(self.layer)

    @property
    def address(self) -> str:
        """Its address in the model: `blocks.3`, or `step/cache.3` where there are several graphs."""
        return self.name if self.graph == MODEL else f"{self.graph}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Neighbouring tokens of one kind, from `start` up to and without `stop`."""

    kind: SpanKind
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Tokens in it."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFacts:
    """How the layers attend.

    Attributes:
        num_heads: Heads of the queries.
        head_size: Channels of one head.
        num_kv_heads: Heads of keys and values; None: as many.
        causal: A token attends to none behind it.
        rotary: Queries and keys are rotated by their positions.
    """

    num_heads: int
    head_size: int
    num_kv_heads: int | None = None
    causal: bool = False
    rotary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFacts:
    """What is kept of earlier runs.

    Attributes:
        layers: Layers with keys and values that outlive a run.
        capacity: Entries at most; None: no limit of the model's own.
    """

    layers: tuple[int, ...]
    capacity: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostInfo:
    """What a method may know of its host.

    Attributes:
        name: The host, for messages.
        sites: Where methods can act, in the order in which a graph comes to them.
        depth: Number of layers.
        num_tokens: Tokens that enter layer 0, all spans included.
        protected: Tokens that no method removes: class, distillation and register tokens, text around an image.
        width: Channels of a token; None: not told.
        attention: How its layers attend; None: not told.
        cache: What it keeps of earlier runs; None: nothing.
        grid: Rows and columns of patches; None: they have none.
        padded: Inputs are padded to one length, and `Tokens.valid` tells what is no padding.
    """

    name: str
    sites: tuple[Site, ...]
    depth: int
    num_tokens: int
    protected: tuple[Span, ...] = ()
    width: int | None = None
    attention: AttentionFacts | None = None
    cache: CacheFacts | None = None
    grid: tuple[int, int] | None = None
    padded: bool = False

    @property
    def kinds(self) -> tuple[SiteKind, ...]:
        """Kinds of site it has, each once."""
        return tuple(dict.fromkeys(site.kind for site in self.sites))

    @property
    def num_prefix(self) -> int:
        """Protected tokens in front of the first that is not."""
        return _run_length(self.protected)

    @property
    def has_class_token(self) -> bool:
        """Whether token 0 is a class token, so that there is a class-attention row."""
        return any(span.kind == "class" and span.start == 0 and span.length for span in self.protected)

    def layers_with(self, kind: SiteKind, tap: TapKind | None = None) -> tuple[int, ...]:
        """Layers that have a site of this kind, and compute this tap if one is named."""
        return tuple(
            site.layer
            for site in self.sites
            if site.kind == kind and site.layer is not None and (tap is None or tap in site.taps)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a method wants to act.

    Attributes:
        kind: At sites of this kind.
        layers: At these layers, ascending; None: at the one site of this kind.
        graph: In this graph; None: in every graph that has such sites.
    """

    kind: SiteKind
    layers: tuple[int, ...] | None = None
    graph: str | None = None

    def covers(self, site: Site) -> bool:
        """Whether a site is one of these."""
        here = self.layers is None or site.layer in self.layers
        return here and site.kind == self.kind and self.graph in (None, site.graph)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What arrives at a site: what a method is built for.

    Attributes:
        host: The model.
        site: The place.
        tokens: Tokens of one group, those behind the last one that may be removed left out.
        prefix: Protected tokens in front.
        has_class_token: Token 0 is a class token.
        width: Channels; None: not told.
    """

    host: HostInfo
    site: Site
    tokens: int
    prefix: int
    has_class_token: bool
    width: int | None

    @property
    def patches(self) -> int:
        """Tokens that may be removed."""
        return self.tokens - self.prefix

    @property
    def layer(self) -> int:
        """The layer of the site; behind the last one it is their number."""
        return self.host.depth if self.site.layer is None else self.site.layer


def layer_sites(kind: SiteKind, depth: int, *, taps: Iterable[TapKind] = (), graph: str = MODEL) -> tuple[Site, ...]:
    """A site of this kind at each of `depth` layers."""
    return tuple(Site(kind=kind, layer=layer, graph=graph, taps=frozenset(taps)) for layer in range(depth))


def leading_spans(kinds: Sequence[tuple[SpanKind, int]]) -> tuple[Span, ...]:
    """Spans that stand one behind the other at the beginning, by kind and length; empty ones are left out."""
    spans, start = [], 0
    for kind, length in kinds:
        if length:
            spans.append(Span(kind=kind, start=start, stop=start + length))
        start += length
    return tuple(spans)


def _run_length(spans: Sequence[Span]) -> int:
    """Tokens that spans cover without a gap from the first token on."""
    end = 0
    for span in sorted(spans, key=lambda span: span.start):
        if span.start > end:
            break
        end = max(end, span.stop)
    return end
