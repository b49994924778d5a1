"""What a cache policy is: a selector that chooses entries, a store that keeps them, a reader that attends to some.

A layer has one store, at most one selector, and at most one reader. What one layer keeps lies in states by short names
(`keys`, `values`, `codes`), which `Caches` gives the layer's number. How many rows there are is kept once for all
layers that are alike, by the names of `Store.lengths`: `rows` are those in full precision, in which new tokens arrive
and among which a selector chooses.

A policy acts in up to three kinds of graphs: those that read tokens (`prefill`, `step`, `score`), `flush`, which packs
rows, and `compact`, which keeps the chosen ones. None of the last two has weights of the model.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from trt_compress.errors import InternalError, UnsupportedError
from trt_compress.models.compressors.base import Acting
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.models.layers.rope_form import RopeForm
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_compact.op import kv_compact
from trt_compress.plugins.token_select.op import token_select

Part = Literal["prefill", "step", "score"]
"""Kinds of graphs that read tokens."""

Use = Literal["", "r", "w", "rw"]
"""Whether a graph reads a state, writes it, or both."""

Memory = MutableMapping[str, Tensor]
"""What one layer keeps, by the short names of its states; a policy puts new tensors in their places."""

ROWS = "rows"
"""The length of what is kept in full precision."""

SEEN, DUE = "seen", "due"
"""Beside the lengths a selector is told, [B] each: tokens that were read by now, if it needs that; and whether a layer
has more entries of a sequence than it may have. Of others nothing is removed."""

_MOST, _LEAST = 1e30, -1e30  # scores of entries that are kept in any case, and of slots that hold none


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    """A layer as its policies know it.

    Attributes:
        host: The model's name, for messages.
        number: The layer.
        place, count: Its place among the layers that policies act at, from 0, and how many these are.
        heads, groups, head_dim: Heads of queries; of keys and values; channels of each.
        scale, softcap: Of the products of queries and keys; a cap of 0 is none.
        context: Tokens of the longest sequence.
        chunk: Tokens of one run at most.
        dtype: Of keys and values in full precision.
        rope: How it turns queries and keys by their positions; None: it does not.
    """

    host: str
    number: int
    place: int
    count: int
    heads: int
    groups: int
    head_dim: int
    scale: float
    softcap: float
    context: int
    chunk: int
    dtype: str
    rope: RopeForm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheState:
    """A state of one layer.

    Attributes:
        name: Short; `keys` becomes `keys_3`.
        shape: Behind the batch: numbers, and names of `Store.lengths` for axes that grow with these.
        dtype: numpy's name.
        kind, compare, bits: As of a `StateSpec`.
        read, flush, compact: What these graphs do with it.
        parts: The graphs that read tokens and touch it.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    kind: str = "cache"
    compare: str | None = None
    bits: int | None = None
    read: Use = "rw"
    flush: Use = ""
    compact: Use = ""
    parts: tuple[Part, ...] = ("prefill", "step", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How many rows of a kind each sequence has, once for all layers that are alike.

    Attributes:
        name: `rows`, or another that the store has.
        symbol: Of the capacity that these rows lie in.
        unit: Tokens of one row.
        read, flush: Rows that a run of these graphs may add; "tokens" for as many as are read.
        first: Rows that the capacity begins with at least.
        spare: Rows that it may have beyond those of a whole context.
        most: Rows that there are at most; None: those of a whole context.
        share: Of the tokens that are kept, so many have rows of this kind, where kinds divide them.
    """

    name: str
    symbol: str
    unit: int = 1
    read: int | Literal["tokens"] = 0
    flush: int = 0
    first: int = 1
    spare: int = 0
    most: int | None = None
    share: float = 1.0


@dataclass(slots=True, kw_only=True)
class NewEntries:
    """What one layer is given of T tokens that are read.

    Attributes:
        query: Turned by their positions, [B, H, T, D].
        key, value: Of the same tokens, [B, G, T, D]; the keys turned.
        query_before, key_before: Before they were turned.
        count: How many of the T are tokens and no filling, [B] int64.
        seen: Tokens that were read before, [B] int64: the position of the first.
        lengths: Rows of each kind before, [B] int64 each, by name.
        part: The graph.
        project: The layer's projection of what all heads receive, [B, T, H * D] → [B, T, C]; for calibration.
        carried: What one layer hands to those behind it, within the run.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_before: Tensor
    key_before: Tensor
    count: Tensor
    seen: Tensor
    lengths: Mapping[str, Tensor]
    part: Part
    project: Callable[[Tensor], Tensor] | None = None
    carried: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> Tensor:
        """Rows in full precision, those of this run and its filling with them, [B]."""
        return self.lengths[ROWS] + self.query.shape[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotKeys:
    """Keys of a part of a cache, for a reader to choose from.

    Attributes:
        keys: As numbers, [B, G, S, D]; what stands behind the length does not matter.
        length: Slots that hold entries, from the front, [B] int64.
    """

    keys: Tensor
    length: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a selector keeps.

    Attributes:
        index: Rows in the order in which they are then kept, [B, G, K] int64, each once; all of them are there, K is at
            most L.
        count: How many of the first are kept, [B] int64; the rest only fills up.
        ascending: They are in the order in which they were, so that they can be moved in place.
    """

    index: Tensor
    count: Tensor
    ascending: bool = False

    def of(self, rows: Tensor) -> Tensor:
        """The chosen rows [B, G, K, …] of rows [B, G, L, …]."""
        tail = rows.shape[3:]
        places = self.index.reshape(*self.index.shape, *(1,) * len(tail)).expand(*self.index.shape, *tail)
        return rows.gather(2, places)

    def moved(self, cache: Tensor) -> Tensor:
        """A cache [B, G, L, W] with the chosen rows in front; the slots behind them do not matter."""
        if self.ascending:
            return kv_compact(cache, self.index)
        return in_front(cache, self.of(cache))


class CachePolicy(Acting):
    """What selectors, stores and readers have in common.

    Attributes:
        layer: The layer that it acts at.
    """

    keeps_prefix: ClassVar[bool] = True
    layer_option: ClassVar[str] = "layers=[…]"

    @classmethod
    def placements(cls, config: Any, host: HostInfo) -> tuple[Placement, ...]:
        """At every layer that sees all that came before."""
        return (Placement(kind="kv_cache"),)

    def __init__(self, config: Any, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.layer = cache_layer(arrival)
        self.tokens_out = self.tokens_in

    @property
    def acts(self) -> bool:
        """It does."""
        return True

    def cache_states(self) -> tuple[CacheState, ...]:
        """What it keeps of one layer."""
        return ()

    def bytes_at(self, rows: Mapping[str, int]) -> int:
        """Bytes of what it keeps of one sequence in one layer, with so many rows of each kind."""
        return sum(
            math.prod(rows[dim] if isinstance(dim, str) else dim for dim in state.shape)
            * np.dtype(state.dtype).itemsize
            for state in self.cache_states()
        )


class Store(CachePolicy):
    """How entries are kept and attended to.

    Attributes:
        keeps_rest: No entry is removed.
        flush_after: After what rows in full precision are packed.
        needs_count: It has to tell tokens from filling, also where texts are scored.
        own_prompts: Prompts are read by a graph of their own.
    """

    keeps_rest = True
    own_prompts: ClassVar[bool] = False
    needs_count: ClassVar[bool] = False
    flush_after: tuple[str, ...] = ("run",)

    @abstractmethod
    def lengths(self) -> tuple[Length, ...]:
        """How its rows are counted, those in full precision first."""

    @abstractmethod
    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Keep the entries of T tokens and attend to all there are: [B, H, T, D]."""

    @property
    def not_selectable(self) -> str | None:
        """Why a selector cannot choose among its rows, as the end of `STORE …`; None: it can."""
        return None

    @property
    def not_readable(self) -> str | None:
        """Why a reader cannot attend to some of its entries, as the end of `STORE …`; None: it can."""
        return "attends to all that it keeps at once"

    @property
    def period(self) -> int | None:
        """Rows in full precision that are packed at once; None: none are."""
        return None

    def packs_from(self, after: str) -> int | None:
        """From how many rows in full precision on they are packed after "prompt", "step" or "run"."""
        return self.period

    def settled(self, tokens: int) -> Mapping[str, int]:
        """How many rows of each kind there are when so many tokens were kept and whole periods are packed."""
        period, (first, *packed) = self.period, self.lengths()
        if period is None:
            return {first.name: tokens}
        rest = tokens % period
        return {first.name: rest, **{each.name: (tokens - rest) // each.unit for each in packed}}

    def bytes_of(self, tokens: int) -> int:
        """Bytes of one sequence in one layer when so many tokens were kept: all that is stored of them."""
        return self.bytes_at(self.settled(tokens))

    @property
    def bytes_per_token(self) -> float:
        """Bytes by which one layer of a sequence grows with a token, on average over a period."""
        period = self.period or 1
        return (self.bytes_of(2 * period) - self.bytes_of(period)) / period

    def readable(self, memory: Memory) -> Memory:
        """What a selector looks at: `keys` and `values` of all rows as numbers; what it puts in goes to the memory."""
        return memory

    def slot_keys(self, reading: NewEntries, memory: Memory) -> tuple[SlotKeys, ...]:
        """The keys of all slots behind `forward`, in parts, which are numbered one behind the other."""
        raise InternalError(f"{self.method.name} tells no keys of slots.")

    def forward_some(self, reading: NewEntries, memory: Memory, index: Tensor) -> Tensor:
        """Keep the entry of one token, and attend to some of all: [B, H, 1, D].

        Args:
            reading: The token.
            memory: What the layer keeps.
            index: Slots that are read, as `slot_keys` numbers them, of each query head or of each KV head,
                [B, H | G, K] int64, each once; one that holds no entry is none. One at least holds one.
        """
        raise InternalError(f"{self.method.name} attends to no chosen entries.")

    def flush(self, lengths: Mapping[str, Tensor], memory: Memory) -> None:
        """Pack the oldest rows of sequences that have `period` of them or more; leave the others as they are."""

    def flushed(self, lengths: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The lengths behind `flush`, which all layers share."""
        return lengths

    def entries(self, lengths: Mapping[str, Tensor]) -> Tensor:
        """How many entries there are of each sequence, [B]."""
        return torch.stack([lengths[each.name] * each.unit for each in self.lengths()]).sum(dim=0)

    def keep(self, choice: Choice, memory: Memory) -> None:
        """Keep the chosen rows in full precision at the front, in their order."""
        for name in ("keys", "values"):
            memory[name] = choice.moved(memory[name])


class Selector(CachePolicy):
    """Which entries are kept.

    Attributes:
        budget: Entries of a KV head that are kept at most.
        observes: Graphs in which it looks at what is read.
        prompt_only: It looks at prompts only: they are read by a graph of their own.
        in_cache: Positions are those of the entries in the cache, not those of the tokens in their text.
        alike: All layers and KV heads keep the entries of the same tokens.
        needs_seen: To choose it has to know how many tokens each sequence has read, `lengths[SEEN]`.
        merges: It puts other keys and values in the places of some.
    """

    keeps_rest = False
    observes: tuple[Part, ...] = ()
    prompt_only: bool = True
    in_cache: bool = False
    alike: ClassVar[bool] = False
    needs_seen: ClassVar[bool] = False
    merges: ClassVar[bool] = False

    budget: int

    def __init__(self, config: Any, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.budget = self.entries(config)
        self.tokens_out = min(self.budget, self.tokens_in)

    @abstractmethod
    def entries(self, config: Any) -> int:
        """The budget of its layer."""

    def kept_of(self, tokens: int) -> int:
        """Entries of a KV head that are kept of a prompt of so many tokens."""
        return min(tokens, self.budget)

    @property
    def every(self) -> int | None:
        """It chooses anew while tokens are generated, when a layer has so many entries more; None: it does not."""
        return None

    @property
    def in_chunks(self) -> bool:
        """It chooses behind every chunk of a prompt, not only behind the last."""
        return False

    @property
    def moments(self) -> tuple[str, ...]:
        """After what it may have to choose, as `Upkeep.after` names it."""
        if self.every is None:
            return ("chunk" if self.in_chunks else "prompt",)
        return ("run",) if self.in_chunks else ("prompt", "step")

    @property
    def at_most(self) -> int:
        """Entries that a layer has at most behind a choice: with `every`, a sequence waits until it has that many more
        than the budget, in prompts too."""
        return self.budget + (self.every or 1) - 1

    @property
    def looks_at(self) -> int:
        """Rows that there have to be room for where it chooses."""
        return self.at_most

    @property
    def counted_as(self) -> object:
        """Layers with equal ones keep equally many entries of every sequence."""
        return self.budget

    def observe(self, reading: NewEntries, store: Store, memory: Memory) -> None:
        """Look at what is read, behind the store: `memory` has the new entries."""

    @abstractmethod
    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """Choose among the rows of a layer, `memory["keys"]` and `memory["values"]` [B, G, L, D]."""

    def kept(self, choice: Choice, memory: Memory) -> None:
        """Bring what it keeps for each row into the new order."""

    def packed(self, went: Tensor, memory: Memory) -> None:
        """The store has packed the oldest `went` [B] rows: drop what is kept for each of them."""

    def keep_best(self, score: Tensor, length: Tensor, *, first: int = 0, recent: int = 0) -> Choice:
        """The choice of the budget's best rows by scores [B, G, L], as `best`; whoever has fewer than would be chosen
        from keeps all."""
        waits = self.at_most > self.budget
        kept = torch.where(length > self.at_most, self.budget, length) if waits else None
        return best(score, length, self.at_most, first=first, recent=recent, kept=kept)


class Reader(CachePolicy):
    """Which of the entries a generated token attends to. Prompts are read in a graph of their own, without it.

    Attributes:
        carries: What one layer chooses is read in others.
    """

    keeps_rest = True
    carries: ClassVar[bool] = False

    @abstractmethod
    def forward(self, reading: NewEntries, store: Store, memory: Memory) -> Tensor:
        """Keep the entry of one token and attend: [B, H, 1, D]."""


def cache_layer(arrival: Arrival) -> CacheLayer:
    """A layer as its policies know it.

    Raises:
        UnsupportedError: The host does not tell what they need.
    """
    host = arrival.host
    if host.attention is None or host.cache is None:
        raise UnsupportedError(f"{host.name} does not tell how it attends and what it keeps.")
    layers = host.layers_with("kv_cache")
    return CacheLayer(
        host=host.name,
        number=arrival.layer,
        place=layers.index(arrival.layer),
        count=len(layers),
        heads=host.attention.num_heads,
        groups=host.attention.num_kv_heads or host.attention.num_heads,
        head_dim=host.attention.head_size,
        scale=host.cache.scale,
        softcap=host.cache.softcap,
        context=host.cache.capacity,
        chunk=host.cache.chunk,
        dtype=host.cache.dtype,
        rope=host.cache.ropes[arrival.layer] if host.cache.ropes else None,
    )


def in_front(cache: Tensor, rows: Tensor) -> Tensor:
    """A cache [B, G, L, W] with rows [B, G, K, W] in its first slots; the others keep theirs."""
    start = torch.zeros(cache.shape[0], dtype=torch.int64, device=cache.device)
    return kv_append(cache, rows, start)


def best(
    score: Tensor, length: Tensor, budget: int, *, first: int = 0, recent: int = 0, kept: Tensor | None = None
) -> Choice:
    """Keep the rows of the largest scores, in the order in which they are; of equal ones the older.

    Args:
        score: Of every slot, [B, G, L], finite; what it says of slots behind the length does not matter.
        length: Rows of each sequence, [B] int64.
        budget: How many are kept; all, where there are fewer. L is at least this.
        first, recent: Of the oldest and of the newest, so many are kept whatever their score.
        kept: How many are kept of each sequence, [B] int64, at most the budget; None: the budget.
    """
    batch, groups, slots = score.shape
    slot = torch.arange(slots, device=score.device)
    end = length[:, None]
    forced = ((slot < first) | (slot >= end - recent))[:, None]
    there = (slot < end)[:, None]
    ranked = torch.where(there, torch.where(forced, _MOST, score.float().clamp(_LEAST / 2, _MOST / 2)), _LEAST)
    flat = ranked.reshape(batch * groups, slots)
    order = "position" if kept is None else "score"
    _, index, _ = token_select(flat[..., None], flat, num_kept=budget, order=order)
    index = index.reshape(batch, groups, budget)
    if kept is None:
        return Choice(index=index, count=length.clamp(max=budget), ascending=True)
    kept = torch.minimum(kept, length)
    behind = torch.arange(budget, device=score.device) >= kept[:, None, None]
    place = (index + torch.where(behind, slots, 0)).reshape(batch * groups, budget).float()
    _, order_, _ = token_select(place[..., None], -place, num_kept=budget, order="score")
    return Choice(index=index.gather(2, order_.reshape(batch, groups, budget)), count=kept)
