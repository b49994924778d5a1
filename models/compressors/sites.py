"""Where methods act, what they may ask for there, and what they may know of the model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from trt_compress.errors import InternalError
from trt_compress.models.layers.rope_form import RopeForm

SiteKind = Literal[
    "patch_embed",
    "after_attention",
    "block_routing",
    "encoder_output",
    "pictures",
    "connector",
    "before_layer",
    "kv_cache",
    "output_head",
    "codec",
]
TapKind = Literal[
    "keys",
    "queries",
    "values",
    "class_attention",
    "probe_scores",
    "hidden",
    "history_queries",
    "text_space",
    "texts",
    "question",
    "picture_size",
]
"""Tensors that hosts compute for methods; N counts the tokens that came to the layer.

keys, queries, values: of a layer, averaged over the heads, [B, N, D], or of each head, [B, H, N, D].
class_attention: attention of the class token to every token at a layer, averaged over the heads, [B, N].
probe_scores: attention of a few query rows to every token, reduced as a `Probe` says, [B, N] or for heads [B, H, N].
hidden: the tokens that came to the layer, [B, N, C].
history_queries: how much the object queries of the last frame need each token, [R, N] of R windows.
text_space: the tokens in the space of texts, where a text has a vector too, [B, N, P].
texts: vectors of a text beside the picture, which the graph takes as an input, [B, S, P]; a row of zeros is none.
question: what a language model makes of the last token of a question, which the graph takes as an input, [B, T].
picture_size: height and width of the picture that crops were cut out of, which the graph takes as an input, [B, 2].
"""
BESIDE: Final[frozenset[TapKind]] = frozenset({"texts", "question", "picture_size"})
"""Of these, what comes from beside the picture and belongs to no token."""
SpanKind = Literal["class", "distillation", "register", "text", "image", "sink"]

ENCODER_OUTPUT: Final = "encoder_output"
PICTURES: Final = "pictures"
"""Behind it: tokens of all pictures of a sample, one picture behind the other, without those in front of patches."""
MODEL = "model"  # the graph of a model that has only one
_ADDRESSES = {
    "after_attention": "blocks.{}",
    "block_routing": "blocks.{}",
    "before_layer": "before.{}",
    "kv_cache": "cache.{}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Which query rows of a layer score its keys, and how that is reduced: AttentionScore's attributes.

    Attributes:
        start, stop, step: The rows, as a slice of the tokens that came to the layer; negative ones count from the end,
            and a slice that reaches over them takes as many as there are. The default is all of them.
        first_key, stop_key: The span of keys that is scored; a stop that is not positive counts from the end. The
            default is all of them.
        softmax: Over "all" keys or the "span"; "none" gives logits.
        rows: Over the rows "mean", "sum", "max", or the "last" alone.
        heads: Over the heads "mean", "sum", "max"; "group_mean", "group_sum", "group_max" of each KV head; "none".
        normalize: Divide sums by the "probes" that see a key, or by the "tokens" that would.
        pool, head_kernel, kernel: Pooling along the keys, before and after heads are reduced.
    """

    start: int | None = None
    stop: int | None = None
    step: int = 1
    first_key: int = 0
    stop_key: int = 0
    softmax: Literal["none", "all", "span"] = "all"
    rows: Literal["mean", "sum", "max", "last"] = "mean"
    heads: Literal["none", "group_mean", "group_sum", "group_max", "mean", "sum", "max"] = "mean"
    normalize: Literal["none", "probes", "tokens"] = "none"
    pool: Literal["avg", "max"] = "avg"
    head_kernel: int = 1
    kernel: int = 1

    @property
    def of_any_length(self) -> bool:
        """Whether the rows can be those of each item's own tokens, where the items of a batch are of unequal length.

        A span of keys that ends some keys before the last then ends so many before each item's own; what is behind it
        has the score 0.
        """
        from_end = (self.start or 0) < 0
        rows = not from_end or (self.step == 1 and (self.stop is None or self.stop < 0))
        return rows and self.softmax != "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A tensor that a method asks the host for.

    Attributes:
        kind: What it is.
        layer: The layer that it is taken from.
        heads: Of keys, queries and values the mean over the heads, or "each" of them.
        rotated: Keys and queries as they are multiplied; False: as they were before rotary positions.
        probe: Of probe_scores, which rows and how.
        rows: Of texts, how many vectors of a text there may be.
        channels: Of a question, how many it has.
    """

    kind: TapKind
    layer: int
    heads: Literal["mean", "each"] = "mean"
    rotated: bool = True
    probe: Probe | None = None
    rows: int = 1
    channels: int = 0

    def __post_init__(self) -> None:
        if (self.probe is not None) != (self.kind == "probe_scores"):
            raise InternalError(f"a tap of {self.kind} {'lacks' if self.probe is None else 'has'} a probe.")

    @property
    def asked(self) -> "Asked":
        """What is asked of its layer: the kind, where that says all."""
        plain = self.heads == "mean" and self.rotated and self.probe is None
        plain = plain and (self.rows, self.channels) == (1, 0)
        return self.kind if plain else replace(self, layer=0)


Asked = TapKind | Tap
"""What a layer is asked for: a kind of tap, or, where that does not say all, a tap with 0 for its layer."""


def as_tap(asked: Asked) -> Tap:
    """What is asked of a layer, in full."""
    return asked if isinstance(asked, Tap) else Tap(kind=asked, layer=0)


def token_axis(asked: Asked) -> int:
    """The axis of a tapped tensor that runs along the tokens, from its end."""
    kind = asked.kind if isinstance(asked, Tap) else asked
    return -1 if kind in ("class_attention", "probe_scores", "history_queries") else -2


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
        capacity: Tokens of the longest sequence.
        chunk: Tokens that are read at once at most.
        scale, softcap: Of the products of queries and keys; a cap of 0 is none.
        dtype: Of keys and values that no method keeps otherwise.
        ropes: How each layer turns queries and keys by their positions, None where it does not; empty: none does.
    """

    capacity: int
    chunk: int
    scale: float
    softcap: float = 0.0
    dtype: str = "float32"
    ropes: tuple[RopeForm | None, ...] = ()


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
        crops: Rows and columns of the crops that each sample has behind a thumbnail; None: a sample is one picture.
        padded: Inputs are padded behind to one length, and `Tokens.valid` tells what is no padding.
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
    crops: tuple[int, int] | None = None
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


def sites_of_layers(depth: int, *, taps: Iterable[TapKind] = ()) -> tuple[Site, ...]:
    """For each layer the site in front of it, and the one after its attention, which gives these taps."""
    before, after = layer_sites("before_layer", depth), layer_sites("after_attention", depth, taps=taps)
    return tuple(site for both in zip(before, after, strict=True) for site in both)


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
