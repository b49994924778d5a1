"""One decoder of tokens for all families, and its graphs: `step` reads the next tokens, `score` says how probable they
are. Both carry what is kept of every layer as states; `models/cache` says what that is.

A layer that sees all before it keeps its keys and values as the cache policies say, by default as they are in a linear
cache, whose length is the capacity `slots`. One with a sliding window keeps them in a ring of `window + chunk - 1`
slots, as many as the tokens of a chunk can see; one of SCOUT keeps checkpoints. Where a policy looks at prompts only or
at single tokens only, prompts are read by a graph of their own, `prefill`.

Source: transformers' modeling files of the families, the reference that tests compare with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast as typed

import torch
from torch import Tensor, nn

from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.format.procedure import Pass, Procedure
from trt_compress.models.cache.caches import Caches, mark_sites, upkeep_graphs
from trt_compress.models.cache.contract import CacheLayer, NewEntries, Part
from trt_compress.models.cache.plain import Fixed, Ring
from trt_compress.models.cache.scout import Checkpoints
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, Layers, TensorSpec
from trt_compress.models.hosts.decoder_config import Caching, DecoderConfig, LayerConfig
from trt_compress.models.layers.first import first_layers
from trt_compress.models.layers.gated import GatedFeed
from trt_compress.models.layers.norms import RMSNorm
from trt_compress.models.layers.rope import Rope, turned
from trt_compress.models.layers.rope_form import RopeForm
from trt_compress.plugins.operator import at_site, cast

TIME = "time"


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

    def forward(self, x: Tensor, run: "DecoderRun") -> Tensor:
        """What tokens [B, T, C] receive; what is kept of them goes to the layer's memory."""
        config, (batch, count, _) = self.config, x.shape
        heads, groups = config.heads, config.kv_heads
        rows = self.qkv(x).reshape(batch, count, heads + 2 * groups, config.head_dim).transpose(1, 2)
        both, value = rows.split([heads + groups, groups], dim=1)
        if config.qk_norm:
            query, key = both.split([heads, groups], dim=1)
            both = torch.cat([self.q_norm(query), self.k_norm(key)], dim=1)
        before = both
        if self.layer.rope is not None:
            both = turned(both, run.table(self.layer.rope))
        y = run.attend(both.split([heads, groups], dim=1), before.split([heads, groups], dim=1), value, self.out)
        return typed(Tensor, self.out(y.transpose(1, 2).reshape(batch, count, heads * config.head_dim)))


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

    def forward(self, x: Tensor, run: "DecoderRun") -> Tensor:
        """Tokens [B, T, C] behind the layer."""
        update = self.attention(self.attention_norm(x), run)
        if self._post_norms:
            x = x + self.post_attention_layernorm(update)
            return typed(Tensor, x + self.post_feedforward_layernorm(self.feed(self.pre_feedforward_layernorm(x))))
        x = x + update
        return typed(Tensor, x + self.feed(self.post_attention_layernorm(x)))


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

    def forward(self, tokens: Tensor, run: "DecoderRun") -> Tensor:
        """Tokens int64 [B, T] → hidden states [B, T, C] before the last norm."""
        x = self.embed(tokens)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        run.begin(tokens.shape[1], x.dtype)
        for number, layer in enumerate(self.layers):
            with at_site(f"layers.{number}"), run.at_layer(number):
                x = layer(x, run)
        return typed(Tensor, x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., C]."""
        y: Tensor = self.head(self.norm(x))
        if self.config.logits_cap:
            y = torch.tanh(y / self.config.logits_cap) * self.config.logits_cap
        return y


class DecoderRun:
    """One run of a graph that reads tokens: where the layers find what they keep, and leave what they keep now."""

    def __init__(
        self,
        plan: Caches,
        ropes: Mapping[RopeForm, Rope],
        part: Part,
        states: Mapping[str, Tensor],
        *,
        seen: Tensor,
        count: Tensor | None,
    ) -> None:
        self._tables: dict[tuple[str | None, RopeForm], tuple[Tensor, Tensor]] = {}
        self._plan, self._ropes = plan, ropes
        self._part: Part = part
        self._states, self._seen, self._count = dict(states), seen, count
        self._lengths = plan.begin(self._states, seen)
        self._layer = 0
        self._carried: dict[str, Tensor] = {}

    def begin(self, tokens: int, dtype: torch.dtype) -> None:
        """Make the tables of the positions."""
        self._offsets, self._dtype = torch.arange(tokens, device=self._seen.device), dtype
        positions = self._seen[:, None] + self._offsets
        self._tables = {(None, form): rope.table(positions, dtype) for form, rope in self._ropes.items()}
        if self._count is None:
            self._count = torch.full_like(self._seen, tokens)

    def table(self, form: RopeForm) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions that this run's tokens have in the layer."""
        counted = self._plan.counts_positions(self._layer, self._lengths)
        if counted is None:
            return self._tables[None, form]
        suffix, first = counted
        if (suffix, form) not in self._tables:
            self._tables[suffix, form] = self._ropes[form].table(first[:, None] + self._offsets, self._dtype)
        return self._tables[suffix, form]

    @contextmanager
    def at_layer(self, number: int) -> Iterator[None]:
        """What is attended to inside belongs to this layer."""
        self._layer = number
        yield

    def attend(self, turned_: Sequence[Tensor], before: Sequence[Tensor], value: Tensor, project: nn.Module) -> Tensor:
        """Keep the entries of the run's tokens, and attend: [B, H, T, D]."""
        number = self._layer
        assert self._count is not None
        reading = NewEntries(
            query=turned_[0],
            key=turned_[1],
            value=value,
            query_before=before[0],
            key_before=before[1],
            count=self._count,
            seen=self._seen,
            lengths=self._plan.lengths_of(number, self._lengths),
            part=self._part,
            project=project,
            carried=self._carried,
        )
        memory = self._plan.memory(number, self._states)
        y: Tensor = self._plan.layers[number](reading, memory)
        self._states |= {f"{name}_{number}": value for name, value in memory.items()}
        return mark_sites(self._plan, number, y) if self._part == "step" else y

    def states(self) -> dict[str, Tensor]:
        """All states behind the run."""
        assert self._count is not None
        self._plan.advance(self._lengths, self._count, self._states)
        return self._states


class _Graph(CompressedModule):
    """A decoder with the tables of its positions, and what keeps its caches."""

    def __init__(self, decoder: Decoder, caching: Caching, plan: Caches, part: Part) -> None:
        super().__init__()
        self.decoder, self.caching = decoder, plan
        self.part: Part = part
        if part == "step":
            self.plan = plan.sites
        forms = dict.fromkeys(
            layer.rope for layer in decoder.config.layers[: len(decoder.layers)] if layer.rope is not None
        )
        self._ropes = {form: Rope(form, caching.context) for form in forms}
        specs = plan.state_specs(part)
        self._read = [str(state.name) for state in specs if state.input is not None]
        self._written = [str(state.name) for state in specs if state.output is not None]

    def read(
        self, tokens: Tensor, seen: Tensor, count: Tensor | None, states: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states [B, T, C] before the last norm, and the new states."""
        known = dict(zip(self._read, states, strict=True))
        run = DecoderRun(self.caching, self._ropes, self.part, known, seen=seen, count=count)
        x = self.decoder(tokens, run)
        made = run.states()
        return x, [made[name] for name in self._written]


class StepGraph(_Graph):
    """Reads tokens, and gives the logits behind the last of each sequence."""

    def forward(self, tokens: Tensor, count: Tensor, seen: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Tokens int64 [B, T], of which `count` [B] count, behind `seen` [B] others → logits [B, V], new states."""
        x, made = self.read(tokens, seen, count, states)
        last = (count - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[2])
        return self.decoder.logits(x.gather(1, last)[:, 0]), *made


class ScoreGraph(_Graph):
    """Reads tokens, and says how probable the token behind each of them is."""

    def forward(self, tokens: Tensor, following: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """Tokens int64 [B, T], those behind each of them, `count` [B] if rows are counted, `seen` [B], and states →
        natural logarithms [B, T], new states."""
        count, (seen, *states) = (given[0], given[1:]) if self.caching.counts else (None, given)
        x, made = self.read(tokens, seen, count, states)
        logits = cast(self.decoder.logits(x), torch.float32)
        chosen = logits.log_softmax(dim=-1).gather(2, following[..., None])
        return chosen[..., 0], *made


def decoder_graphs(decoder: Decoder, caching: Caching, plan: Caches) -> tuple[GraphSpec, ...]:
    """The graphs of a decoder: `step` and `score`, `prefill` where that is another one, and those of upkeep."""
    return *(_graph(decoder, caching, plan, part) for part in plan.parts), *upkeep_graphs(plan)


def decoder_procedure(plan: Caches, graphs: Sequence[GraphSpec]) -> Procedure:
    """How these graphs are run in turn."""
    first = plan.parts[0]
    step = Pass(graphs=("step",), tokens=1 if plan.prefills else TIME, logits="step.logits")
    prompt = Pass(graphs=(first,), tokens=TIME, logits=f"{first}.logits")
    feeds = {
        f"{graph.name}.{spec.name}": "next" if spec.name == "following" else spec.name
        for graph in graphs
        for spec in graph.inputs
    }
    score = Pass(graphs=("score",), tokens=TIME, logits="score.log_probability", rows="next")
    return Procedure(prompt=prompt, step=step, feeds=feeds, score=score, upkeep=plan.upkeep())


def fixed_of(config: DecoderConfig, caching: Caching, name: str) -> dict[int, Fixed]:
    """The layers that keep a window in a ring, or checkpoints."""
    found: dict[int, Fixed] = {}
    for number, layer in enumerate(config.layers):
        slots = caching.ring(layer)
        if slots is not None or layer.period is not None:
            of = CacheLayer(
                host=name,
                number=number,
                place=0,
                count=0,
                heads=config.heads,
                groups=config.kv_heads,
                head_dim=config.head_dim,
                scale=config.attention_scale,
                softcap=config.attention_cap,
                context=caching.context,
                chunk=caching.chunk,
                dtype=caching.dtype,
                rope=layer.rope,
            )
            if layer.period is not None:
                found[number] = Checkpoints(of, layer.period)
            elif slots is not None and layer.window is not None:
                found[number] = Ring(of, window=layer.window, slots=slots)
    return found


def _graph(decoder: Decoder, caching: Caching, plan: Caches, part: Part) -> GraphSpec:
    vocabulary, single = decoder.config.vocabulary, part == "step" and plan.prefills
    time = 1 if single else TIME
    tokens, count = _tokens("tokens", vocabulary, time), _numbers("count", 1, 1 if single else caching.chunk)
    seen = _numbers("seen", 0, caching.context)
    if part == "score":
        inputs = (tokens, _tokens("following", vocabulary, time), *([count] if plan.counts else []), seen)
        output = TensorSpec(name="log_probability", shape=(BATCH_SYMBOL, time))
    else:
        inputs = (tokens, count, seen)
        output = TensorSpec(name="logits", shape=(BATCH_SYMBOL, vocabulary))
    states = plan.state_specs(part)
    return GraphSpec(
        module=(ScoreGraph if part == "score" else StepGraph)(decoder, caching, plan, part).eval(),
        inputs=inputs,
        outputs=(output,),
        states=states,
        name=part,
        role=part,
        lengths={**({} if single else {TIME: (1, 1, caching.chunk)}), **plan.ranges(part)},
        capacities=plan.capacities(part),
        exact=frozenset(state.input for state in states if state.input is not None),
        layers=Layers(
            count=len(decoder.layers),
            first=lambda layers: _graph(decoder.first(layers), caching, plan.first(layers), part),
        ),
    )


def _tokens(name: str, vocabulary: int, time: int | str) -> TensorSpec:
    return TensorSpec(name=name, shape=(BATCH_SYMBOL, time), dtype="int64", values=(0, vocabulary - 1))


def _numbers(name: str, least: int, most: int) -> TensorSpec:
    return TensorSpec(name=name, shape=(BATCH_SYMBOL,), dtype="int64", values=(least, most))
