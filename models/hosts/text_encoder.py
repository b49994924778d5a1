"""Text encoders of the BERT family from a directory: `hf:PATH`, model_type bert, as MiniLM and its like are.

Texts enter as tokens that are padded behind to one length, with how many of them are the text's; tokens leave with what
each stands for, and an embedding of the text: the mean of its tokens, or the first one, as sentence-transformers'
1_Pooling says, of length 1 where modules.json says so. `hf:PATH?tokens=64` builds it for texts of up to 64 tokens.

Source: BERT, arXiv:1810.04805; Sentence-BERT, arXiv:1908.10084; transformers' model bert for the names of tensors.
Differs: dropout, the pooler over the first token and heads of pre-training are left out; a merged token counts in the
mean as often as tokens are in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import reading
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import (
    ENCODER_OUTPUT,
    Asked,
    AttentionFacts,
    HostInfo,
    Site,
    layer_sites,
    leading_spans,
)
from trt_compress.models.hosts.audio_encoder import ACTIVATIONS, Activation, check_sizes, known_fields
from trt_compress.models.hosts.base import GraphSpec, Layers, LoadedHost, TensorSpec
from trt_compress.models.hosts.hf_directory import Pooling, longest_text, pooling_of, read_json, weight_files
from trt_compress.models.hosts.row import CompressedRow
from trt_compress.models.hosts.weights import load_tensors, read_files
from trt_compress.models.language.assets import directory_assets
from trt_compress.models.layers.attention import ATTENTION_TAPS, attention, merge_heads, split_heads
from trt_compress.plugins.operator import cast as to_dtype

FAMILY = "text_encoder"
MODEL_TYPES = ("bert",)
_HEADS = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
_LEFT_OUT = ("pooler.", "cls.", "embeddings.position_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """Sizes of an encoder; names as in a checkpoint's config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        check_sizes("bert", self, self.hidden_size, self.num_attention_heads)


class BertEmbeddings(nn.Module):
    """Words, learned positions, and the first of the token types, normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, C] of numbers of tokens [B, N]."""
        places = self.position_embeddings.weight[: tokens.shape[1]] + self.token_type_embeddings.weight[0]
        return cast(Tensor, self.LayerNorm(self.word_embeddings(tokens) + places))


class BertLayer(nn.Module):
    """A layer that normalises behind its sums; its tensors have the names of checkpoints."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads, self.activation = config.num_attention_heads, ACTIVATIONS[config.hidden_act]
        projections = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": projections, "output": _summed(width, width, config.layer_norm_eps)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _summed(inner, width, config.layer_norm_eps)

    def attend(self, tokens: Tokens, wanted: frozenset[Asked]) -> tuple[Tensor, Mapping[Asked, Tensor]]:
        """What attention adds to tokens [B, N, C], and the taps."""
        inner = cast(nn.ModuleDict, self.attention["self"])
        query, key, value = (split_heads(inner[name](tokens.x), self.heads) for name in ("query", "key", "value"))
        mixed, taps = attention(query, key, value, size=tokens.key_size, valid=tokens.valid, wanted=wanted)
        return cast(nn.ModuleDict, self.attention["output"])["dense"](merge_heads(mixed)), taps

    def between(self, x: Tensor) -> Tensor:
        """The normalisation behind the attention."""
        return cast(Tensor, cast(nn.ModuleDict, self.attention["output"])["LayerNorm"](x))

    def feed(self, x: Tensor) -> Tensor:
        """What the feed-forward part adds to tokens [B, N, C]."""
        return cast(Tensor, self.output["dense"](self.activation(self.intermediate["dense"](x))))

    def behind(self, x: Tensor) -> Tensor:
        """The normalisation behind the feed-forward part."""
        return cast(Tensor, self.output["LayerNorm"](x))


def _summed(inputs: int, width: int, eps: float) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inputs, width), "LayerNorm": nn.LayerNorm(width, eps=eps)})


class BertEncoder(nn.Module):
    """The encoder, for texts of up to `num_tokens`.

    Args:
        config: Sizes.
        num_tokens: Tokens of a text, those around it counted, and padding.
        pooling: How a text's embedding is made of its tokens.

    Raises:
        ConfigError: There are fewer positions.
    """

    def __init__(self, config: BertConfig, num_tokens: int, pooling: Pooling) -> None:
        super().__init__()
        if not 2 <= num_tokens <= config.max_position_embeddings:
            raise ConfigError(
                f"bert: texts of {num_tokens} tokens; this model takes 2 to {config.max_position_embeddings}, give "
                "?tokens=N in that range."
            )
        self.config, self.num_tokens, self.pooling = config, num_tokens, pooling
        self.embeddings = BertEmbeddings(config)
        rows = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": rows})

    @property
    def stack(self) -> list[BertLayer]:
        """The layers."""
        return cast(list[BertLayer], list(cast(nn.ModuleList, self.encoder["layer"])))

    def enter(self, tokens: Tensor, length: Tensor) -> Tokens:
        """Embedded tokens [B, N, C] of which the first `length` [B] are the text's."""
        valid = torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]
        return Tokens(x=self.embeddings(tokens), valid=valid)

    def pooled(self, x: Tensor, weight: Tensor) -> Tensor:
        """The embedding of each text.

        Args:
            x: Its tokens, [B, M, C].
            weight: How many tokens each stands for, 0 for padding, [B, M] float32.
        """
        wide = to_dtype(x, torch.float32)
        if self.pooling.first:
            found = wide[:, 0]
        else:
            shares = weight / weight.sum(dim=1, keepdim=True)
            found = (shares[:, None] @ wide)[:, 0]
        return to_dtype(nn.functional.normalize(found, dim=1) if self.pooling.unit else found, x.dtype)

    def forward(self, tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `CompressedText`, without compressors."""
        found = self.enter(tokens, length)
        for layer in self.stack:
            x = layer.between(found.x + layer.attend(found, frozenset())[0])
            found = found.with_x(layer.behind(x + layer.feed(x)))
        return leaving(self, found)


def leaving(model: BertEncoder, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, M, C], how many each stands for (0: padding) [B, M], and embeddings of the texts [B, C]."""
    assert tokens.valid is not None
    weight = torch.where(tokens.valid, tokens.sizes[..., 0], 0.0)
    return tokens.x, to_dtype(weight, tokens.x.dtype), model.pooled(tokens.x, weight)


def host_info(model: BertEncoder, name: str) -> HostInfo:
    """What compressors may know of `model`."""
    config = model.config
    depth, heads = config.num_hidden_layers, config.num_attention_heads
    return HostInfo(
        name=name,
        sites=(*layer_sites("after_attention", depth, taps=ATTENTION_TAPS), Site(kind=ENCODER_OUTPUT)),
        depth=depth,
        num_tokens=model.num_tokens,
        protected=leading_spans([("class", 1)]),
        width=config.hidden_size,
        attention=AttentionFacts(num_heads=heads, head_size=config.hidden_size // heads),
        padded=True,
    )


class CompressedText(CompressedRow):
    """An encoder with compressors between the attention and the feed-forward part of its layers, and behind it.

    Args:
        model: The model; it is called, never changed.
        specs: Compressors, in order.
        name: The model's name, for messages.

    Raises:
        ConfigError: a compressor does not fit the model.
    """

    def __init__(self, model: BertEncoder, specs: Sequence[CompressorSpec], *, name: str) -> None:
        super().__init__()
        self.model = model
        self.place(specs, host_info(model, name), row="model.encoder.layer")
        self.training = model.training
        if model.pooling.first and not all(step.keeps_prefix for step in self.placed.steps(ENCODER_OUTPUT)):
            raise ConfigError(
                f"{specs[-1].name}: the embeddings of {name} are its first token, which it drops; put it at a layer."
            )

    def forward(self, tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, M, C], what each stands for [B, M] and embeddings [B, C] of tokens [B, N] and counts [B]."""
        found, taps = self.model.enter(tokens, length), Taps()
        for number, layer in enumerate(self.model.stack):
            found = self.placed.layer(
                number, found, taps, layer.attend, layer.feed, between=layer.between, behind=layer.behind
            )
        return leaving(self.model, self.placed(ENCODER_OUTPUT, found, taps))


def text_graph(model: BertEncoder, specs: Sequence[CompressorSpec], *, name: str) -> GraphSpec:
    """The one graph of an encoder.

    Args:
        model: In eval mode.
        specs: Compressors, in order.
        name: The model's name, for messages.

    Raises:
        ConfigError: a compressor does not fit.
    """
    return _graph_of(CompressedText(model, specs, name=name).eval())


def _graph_of(module: CompressedText) -> GraphSpec:
    model, many = module.model, module.tokens_out
    last = model.config.vocab_size - 1
    return GraphSpec(
        module=module,
        inputs=(
            TensorSpec(name="tokens", shape=(BATCH_SYMBOL, model.num_tokens), dtype="int64", values=(0, last)),
            TensorSpec(name="length", shape=(BATCH_SYMBOL,), dtype="int64", values=(1, model.num_tokens)),
        ),
        outputs=(
            TensorSpec(name="hidden", shape=(BATCH_SYMBOL, many, module.width_out)),
            TensorSpec(name="size", shape=(BATCH_SYMBOL, many)),
            TensorSpec(name="embedding", shape=(BATCH_SYMBOL, module.width_out)),
        ),
        layers=Layers(
            count=model.config.num_hidden_layers, first=lambda count: _graph_of(module.first_layers(count).eval())
        ),
    )


def load(path: Path, *, weights: str | None = None, tokens: int | None = None) -> LoadedHost:
    """Load an encoder from a directory.

    Args:
        path: The directory.
        weights: Another file with its tensors; default: those in the directory.
        tokens: Tokens of the longest text; default: what sentence-transformers wrote there, or as many as it has
            positions for.

    Raises:
        ConfigError: a file is missing or cannot be read, or tensors do not fit; they are named.
        UnsupportedError: a variant that is not driven.
    """
    with reading(f"hf:{path}", "save the model again with save_pretrained"):
        return _load(path, weights, tokens)


def _load(path: Path, weights: str | None, tokens: int | None) -> LoadedHost:
    config = read_json(path / "config.json")
    _check_variant(config, path)
    sizes = BertConfig(**known_fields(BertConfig, config))
    model = BertEncoder(sizes, tokens or longest_text(path) or sizes.max_position_embeddings, pooling_of(path))
    tensors, info = read_files(weight_files(path, weights))
    load_tensors(model, _named(tensors), info.source)
    model.eval()
    source = f"hf:{path}" + ("" if tokens is None else f"?tokens={tokens}")
    assets = directory_assets(path, config)
    return LoadedHost(
        source=source,
        family=FAMILY,
        module=model,
        weights=replace(info, license=assets.license, license_files=assets.license_files, provenance=assets.provenance),
        attach=partial(_attach, model, source),
        preprocess={"kind": "text", "input": "tokens"},
        postprocess={"kind": "raw"},
        text=assets.text,
        files=assets.files,
    )


def _attach(model: BertEncoder, source: str, specs: Sequence[CompressorSpec]) -> tuple[GraphSpec, ...]:
    return (text_graph(model, specs, name=source),)


def _check_variant(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what BertModel can be beside an encoder with learned positions."""
    heads = config.get("architectures") or ["BertModel"]
    if heads[0] not in _HEADS:
        raise UnsupportedError(
            f"hf:{path}: architectures {str(heads[0])[:60]} is not supported; of bert the encoder is taken, out of "
            f"{', '.join(_HEADS)}."
        )
    places = config.get("position_embedding_type") or "absolute"
    if places != "absolute" or config.get("is_decoder") or config.get("add_cross_attention"):
        what = f"position_embedding_type {str(places)[:60]}" if places != "absolute" else "a decoder"
        raise UnsupportedError(f"hf:{path}: {what} is not supported; of bert encoders with absolute positions are.")


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under its own names: those of a model with a head, or of old versions, are the same."""
    old = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}
    named = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("bert.")
        for before, after in old.items():
            name = name.replace(before, after)
        if not name.startswith(_LEFT_OUT):
            named[name] = tensor
    return named
