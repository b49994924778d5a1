"""What decides the arithmetic of a decoder, as plain data without torch; which tensors it is made of, and how it is cut
into runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trt_compress.errors import ConfigError
from trt_compress.models.hosts.reading import CACHE_DTYPES, ReadingOptions
from trt_compress.models.layers.rope_form import RopeForm

DEFAULT_CONTEXT, DEFAULT_CHUNK = 4096, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """What layers of one model may differ in.

    Attributes:
        window: Tokens that one sees, its own counted; None: all before it.
        period: Every so many-th token is a checkpoint, and one sees these and itself; None: it sees all, or a window.
        rope: How queries and keys are turned by their positions; None: they are not.
    """

    window: int | None = None
    period: int | None = None
    rope: RopeForm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder of tokens.

    Attributes:
        family: Key of `decoder_families.FAMILIES`.
        vocabulary: Tokens that it knows.
        width: Channels of a token.
        inner: Channels inside the feed-forward part.
        heads, kv_heads, head_dim: Of the queries; of keys and values; channels of each.
        limit: Tokens of the longest sequence that it was made for.
        layers: Each layer.
        eps: Of all norms.
        activation: One of `layers.gated.ACTIVATIONS`.
        tied: The head is the embedding.
        fused: The checkpoint holds queries, keys and values as one tensor, and gate and up.
        qkv_bias, out_bias, feed_bias: Which linear layers have one.
        qk_norm: Queries and keys are normalized, head by head, before they are turned.
        post_norms: What attention and feed-forward part give is normalized before it is added.
        around_one: Weights of norms are kept less one.
        attention_scale: Factor of the products of queries and keys.
        attention_cap, logits_cap: These products, and the logits, become cap * tanh(x / cap); 0: they do not.
        embedding_scale: Factor of the embeddings.
    """

    family: str
    vocabulary: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    limit: int
    layers: tuple[LayerConfig, ...]
    eps: float
    activation: str = "silu"
    tied: bool = False
    fused: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    feed_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    around_one: bool = False
    attention_scale: float
    attention_cap: float = 0.0
    logits_cap: float = 0.0
    embedding_scale: float = 1.0

    @property
    def parameters(self) -> int:
        """Numbers of the weights, of a tied head once."""
        return sum(_product(shape) for shape in self.tensors().values())

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The tensors of a checkpoint: the official name of each with its shape, as transformers writes them."""
        return dict(self._named())

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Of each parameter of our module the tensors of which it is made, rows behind rows."""
        names = self.tensors()
        made: dict[str, list[str]] = {}
        for name in names:
            made.setdefault(_parameter_of(name), []).append(name)
        return {parameter: tuple(found) for parameter, found in made.items()}

    def _named(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, inner, queries, keys = (
            self.width,
            self.inner,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        yield "model.embed_tokens.weight", (self.vocabulary, width)
        for number in range(len(self.layers)):
            start = f"model.layers.{number}"
            yield f"{start}.input_layernorm.weight", (width,)
            attention, feed = f"{start}.self_attn", f"{start}.mlp"
            if self.fused:
                yield from _linear(f"{attention}.qkv_proj", queries + 2 * keys, width, self.qkv_bias)
            else:
                for letter, rows in (("q", queries), ("k", keys), ("v", keys)):
                    yield from _linear(f"{attention}.{letter}_proj", rows, width, self.qkv_bias)
            if self.qk_norm:
                yield f"{attention}.q_norm.weight", (self.head_dim,)
                yield f"{attention}.k_norm.weight", (self.head_dim,)
            yield from _linear(f"{attention}.o_proj", width, queries, self.out_bias)
            yield f"{start}.post_attention_layernorm.weight", (width,)
            if self.post_norms:
                yield f"{start}.pre_feedforward_layernorm.weight", (width,)
                yield f"{start}.post_feedforward_layernorm.weight", (width,)
            if self.fused:
                yield from _linear(f"{feed}.gate_up_proj", 2 * inner, width, self.feed_bias)
            else:
                yield from _linear(f"{feed}.gate_proj", inner, width, self.feed_bias)
                yield from _linear(f"{feed}.up_proj", inner, width, self.feed_bias)
            yield from _linear(f"{feed}.down_proj", width, inner, self.feed_bias)
        yield "model.norm.weight", (width,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caching:
    """How a decoder's graphs are cut.

    Attributes:
        context: Tokens of the longest sequence.
        chunk: Tokens of one run at most.
        dtype: Of keys and values in the caches, float32 or float16.
    """

    context: int
    chunk: int
    dtype: str = "float32"

    def ring(self, layer: LayerConfig) -> int | None:
        """Slots of the ring in which a layer keeps its window; None: it has none, or one that nothing ever leaves."""
        if layer.window is None or layer.window >= self.context:
            return None
        return layer.window + self.chunk - 1


def caching_of(config: DecoderConfig, reading: ReadingOptions, *, precision: str = "fp32", name: str) -> Caching:
    """What a user's wishes come to for a model.

    Raises:
        ConfigError: They go beyond what the model was made for.
    """
    context = reading.context or min(config.limit, DEFAULT_CONTEXT)
    if context > config.limit:
        raise ConfigError(
            f"--context {context} is more than the {config.limit} tokens that {name} was made for; give 1 to "
            f"{config.limit}."
        )
    if reading.chunk is not None and reading.chunk > context:
        raise ConfigError(f"--chunk {reading.chunk} is more than the context of {context} tokens; give 1 to {context}.")
    dtype = reading.cache_dtype or ("fp16" if precision == "fp16" else "fp32")
    return Caching(context=context, chunk=reading.chunk or min(DEFAULT_CHUNK, context), dtype=CACHE_DTYPES[dtype])


_OURS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj"), "qkv"),
        **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj"), "gate_up"),
        "self_attn": "attention",
        "mlp": "feed",
        "o_proj": "out",
        "down_proj": "down",
        "embed_tokens": "embed",
        "lm_head": "head",
        "input_layernorm": "attention_norm",
    }
)
"""Parts of the official names by those of our module."""


def _parameter_of(name: str) -> str:
    return ".".join(_OURS.get(part, part) for part in name.removeprefix("model.").split("."))


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product
