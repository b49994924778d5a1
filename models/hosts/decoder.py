"""One decoder of tokens for all families, and its graphs: `step` reads the next tokens, `score` says how probable they
are. Both carry the keys and values of every layer as states.

A layer that sees all before it keeps them in a linear cache, whose length is the capacity `slots`. One with a sliding
window keeps them in a ring of `window + chunk - 1` slots: as many as the tokens of a chunk can see. Rows of filling
tokens are written too, to slots that no token sees before a later one has overwritten them.

Source: transformers' modeling files of the families, the reference that tests compare with.
"""

from collections.abc import Mapping, Sequence
from typing import cast as typed

import torch
from torch import Tensor, nn

from trt_compress.format.graphs import BATCH_SYMBOL, Capacity, StateSpec
from trt_compress.format.procedure import Pass, Procedure
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, Layers, TensorSpec
from trt_compress.models.hosts.decoder_config import Caching, DecoderConfig, LayerConfig
from trt_compress.models.layers.first import first_layers
from trt_compress.models.layers.gated import GatedFeed
from trt_compress.models.layers.norms import RMSNorm
from trt_compress.models.layers.rope import Rope, turned
from trt_compress.models.layers.rope_form import RopeForm
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention_plain.op import kv_attention_plain
from trt_compress.plugins.operator import at_site, cast

TIME, SLOTS = "time", "slots"
_FIRST_SLOTS = 256  # of a cache that has just begun

Tables = Mapping[RopeForm, tuple[Tensor, Tensor]]


class Attention(nn.Module):
    """Attention over a cache, with grouped heads. Rows of `qkv` are those of queries, keys and values in turn."""

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_dim, config.qkv_bias)
        self.out = nn.Linear(config.heads * config.head_dim, config.width, config.out_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = (
                RMSNorm(config.head_dim, eps=config.eps, around_one=config.around_one) for _ in "qk"
            )

    def forward(
        self, x: Tensor, seen: Tensor, tables: Tables, keys: Tensor, values: Tensor, layout: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What tokens [B, T, C] receive, and the caches [B, G, L, D] with them."""
        config, (batch, count, _) = self.config, x.shape
        heads, groups = config.heads, config.kv_heads
        rows = self.qkv(x).reshape(batch, count, heads + 2 * groups, config.head_dim).transpose(1, 2)
        both, new_values = rows.split([heads + groups, groups], dim=1)
        if config.qk_norm:
            query, key = both.split([heads, groups], dim=1)
            both = torch.cat([self.q_norm(query), self.k_norm(key)], dim=1)
        if self.layer.rope is not None:
            both = turned(both, tables[self.layer.rope])
        query, key = both.split([heads, groups], dim=1)
        keys = kv_append(keys, cast(key, keys.dtype), seen, layout=layout)
        values = kv_append(values, cast(new_values, values.dtype), seen, layout=layout)
        y, _ = kv_attention_plain(
            query,
            keys,
            values,
            seen + count,
            scale=config.attention_scale,
            causal=True,
            window=self.layer.window or 0,
            softcap=config.attention_cap,
            layout=layout,
        )
        return self.out(y.transpose(1, 2).reshape(batch, count, heads * config.head_dim)), keys, values


class Layer(nn.Module):
    """Attention and feed-forward part, each behind a norm, and in front of one too where the family has it."""

    def __init__(self, config: DecoderConfig, layer: LayerConfig) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.width, eps=config.eps, around_one=config.around_one)

        self.attention_norm, self.attention = norm(), Attention(config, layer)
        self.post_attention_layernorm = norm()
        if config.post_norms:
            self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()
        self.feed = GatedFeed(config.width, config.inner, activation=config.activation, bias=config.feed_bias)
        self._post_norms = config.post_norms

    def forward(
        self, x: Tensor, seen: Tensor, tables: Tables, keys: Tensor, values: Tensor, layout: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, T, C] behind the layer, and its caches with them."""
        update, keys, values = self.attention(self.attention_norm(x), seen, tables, keys, values, layout)
        if self._post_norms:
            x = x + self.post_attention_layernorm(update)
            return x + self.post_feedforward_layernorm(self.feed(self.pre_feedforward_layernorm(x))), keys, values
        x = x + update
        return x + self.feed(self.post_attention_layernorm(x)), keys, values


class Decoder(nn.Module):
    """A decoder as its config says it, with the layers in `layers` and the head in `head`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList([Layer(config, layer) for layer in config.layers])
        self.norm = RMSNorm(config.width, eps=config.eps, around_one=config.around_one)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.tie()

    def tie(self) -> None:
        """Let the head be the embedding, where they are one."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    def first(self, count: int) -> "Decoder":
        """The first layers and what stands around them: the same tensors."""
        return first_layers(self, ["layers"], count)

    def forward(
        self, tokens: Tensor, seen: Tensor, states: Sequence[Tensor], ropes: Mapping[RopeForm, Rope], caching: Caching
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens int64 [B, T] behind `seen` [B] others → hidden states [B, T, C] before the last norm, new states."""
        x = self.embed(tokens)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        positions = seen[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        tables = {form: rope.table(positions, x.dtype) for form, rope in ropes.items()}
        made: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            ring = caching.ring(self.config.layers[number]) is not None
            keys, values = states[2 * number : 2 * number + 2]
            with at_site(f"layers.{number}"):
                x, keys, values = layer(x, seen, tables, keys, values, "ring" if ring else "linear")
            made += [keys, values]
        return x, made

    def logits(self, x: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., C]."""
        y: Tensor = self.head(self.norm(x))
        if self.config.logits_cap:
            y = torch.tanh(y / self.config.logits_cap) * self.config.logits_cap
        return y


class _Graph(CompressedModule):
    """A decoder with the tables of its positions."""

    def __init__(self, decoder: Decoder, caching: Caching) -> None:
        super().__init__()
        self.decoder, self.caching = decoder, caching
        forms = dict.fromkeys(
            layer.rope for layer in decoder.config.layers[: len(decoder.layers)] if layer.rope is not None
        )
        self._ropes = {form: Rope(form, caching.context) for form in forms}

    def read(self, tokens: Tensor, seen: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return typed("tuple[Tensor, list[Tensor]]", self.decoder(tokens, seen, states, self._ropes, self.caching))


class StepGraph(_Graph):
    """Reads tokens, and gives the logits behind the last of each sequence."""

    def forward(self, tokens: Tensor, count: Tensor, seen: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Tokens int64 [B, T], of which `count` [B] count, behind `seen` [B] others → logits [B, V], new states."""
        x, made = self.read(tokens, seen, states)
        last = (count - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[2])
        return self.decoder.logits(x.gather(1, last)[:, 0]), *made


class ScoreGraph(_Graph):
    """Reads tokens, and says how probable the token behind each of them is."""

    def forward(self, tokens: Tensor, following: Tensor, seen: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Tokens int64 [B, T], those behind each of them, and `seen` [B] → natural logarithms [B, T], new states."""
        x, made = self.read(tokens, seen, states)
        logits = cast(self.decoder.logits(x), torch.float32)
        chosen = logits.log_softmax(dim=-1).gather(2, following[..., None])
        return chosen[..., 0], *made


def decoder_graphs(decoder: Decoder, caching: Caching) -> tuple[GraphSpec, ...]:
    """The graphs `step` and `score` of a decoder."""
    return _step(decoder, caching), _score(decoder, caching)


def decoder_procedure(graphs: Sequence[GraphSpec]) -> Procedure:
    """How these graphs are run in turn."""
    step = Pass(graphs=("step",), tokens=TIME, logits="step.logits")
    feeds = {
        **{f"{graph.name}.{what}": what for graph in graphs for what in ("tokens", "seen")},
        "step.count": "count",
        "score.following": "next",
    }
    score = Pass(graphs=("score",), tokens=TIME, logits="score.log_probability", rows="next")
    return Procedure(prompt=step, step=step, feeds=feeds, score=score)


def _step(decoder: Decoder, caching: Caching) -> GraphSpec:
    return _graph(
        StepGraph(decoder, caching),
        name="step",
        inputs=(_tokens("tokens", decoder), _numbers("count", 1, caching.chunk), _numbers("seen", 0, caching.context)),
        output=TensorSpec(name="logits", shape=(BATCH_SYMBOL, decoder.config.vocabulary)),
        layers=Layers(count=len(decoder.layers), first=lambda count: _step(decoder.first(count), caching)),
    )


def _score(decoder: Decoder, caching: Caching) -> GraphSpec:
    return _graph(
        ScoreGraph(decoder, caching),
        name="score",
        inputs=(_tokens("tokens", decoder), _tokens("following", decoder), _numbers("seen", 0, caching.context)),
        output=TensorSpec(name="log_probability", shape=(BATCH_SYMBOL, TIME)),
        layers=Layers(count=len(decoder.layers), first=lambda count: _score(decoder.first(count), caching)),
    )


def _graph(
    module: _Graph, *, name: str, inputs: tuple[TensorSpec, ...], output: TensorSpec, layers: Layers
) -> GraphSpec:
    caching, states = module.caching, tuple(_states(module.decoder, module.caching))
    grows = any(SLOTS in state.shape for state in states)
    slots = Capacity(symbol=SLOTS, adds={"step": "tokens", "score": "tokens"})
    first = max(min(_FIRST_SLOTS, caching.context // 2), 1)
    lengths = {TIME: (1, 1, caching.chunk)}
    if grows:
        lengths[SLOTS] = (first, max(first, caching.context // 4), caching.context)
    return GraphSpec(
        module=module.eval(),
        inputs=inputs,
        outputs=(output,),
        states=states,
        name=name,
        role=name,
        lengths=lengths,
        capacities=(slots,) if grows else (),
        exact=frozenset(state.input for state in states if state.input is not None),
        layers=layers,
    )


def _states(decoder: Decoder, caching: Caching) -> list[StateSpec]:
    config = decoder.config
    return [
        StateSpec(
            input=f"{what}_{number}_in",
            output=f"{what}_{number}_out",
            shape=(BATCH_SYMBOL, config.kv_heads, caching.ring(layer) or SLOTS, config.head_dim),
            dtype=caching.dtype,
            name=f"{what}_{number}",
            kind="cache",
            layer=number,
            alias=True,
        )
        for number, layer in enumerate(config.layers[: len(decoder.layers)])
        for what in ("keys", "values")
    ]


def _tokens(name: str, decoder: Decoder) -> TensorSpec:
    return TensorSpec(name=name, shape=(BATCH_SYMBOL, TIME), dtype="int64", values=(0, decoder.config.vocabulary - 1))


def _numbers(name: str, least: int, most: int) -> TensorSpec:
    return TensorSpec(name=name, shape=(BATCH_SYMBOL,), dtype="int64", values=(least, most))
