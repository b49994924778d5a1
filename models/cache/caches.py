"""What keeps the cache of every layer of a decoder, and the states, lengths and graphs that come of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import cast as typed

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.format.graphs import BATCH_SYMBOL, Capacity, StateSpec
from trt_compress.format.procedure import Upkeep
from trt_compress.methods.cache import PlainConfig
from trt_compress.models.cache.contract import (
    DUE,
    ROWS,
    SEEN,
    CachePolicy,
    CacheState,
    Length,
    Memory,
    NewEntries,
    Part,
    Reader,
    Selector,
    Store,
    Use,
)
from trt_compress.models.cache.plain import Fixed, Plain
from trt_compress.models.cache.sizes import bytes_of, with_bytes
from trt_compress.models.compressors.place import GraphPlan, SitePlan
from trt_compress.models.compressors.sites import Arrival, HostInfo
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, Layers, TensorSpec
from trt_compress.plugins.operator import at_site, mark_tensor

READ_PARTS: tuple[Part, ...] = ("prefill", "step", "score")
_FIRST_SLOTS = 256  # of a cache that has just begun


class LayerCache(nn.Module):
    """What keeps one layer's entries: its store, or what the model says; and what chooses and reads them."""

    def __init__(
        self, number: int, store: Store | Fixed, selector: Selector | None = None, reader: Reader | None = None
    ) -> None:
        super().__init__()
        self.number, self.store, self.selector, self.reader = number, store, selector, reader

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Keep the entries of T tokens and attend: [B, H, T, D]."""
        if isinstance(self.store, Fixed):
            return typed(Tensor, self.store(reading, memory))
        if self.reader is not None and reading.part == "step":
            y = self.reader(reading, self.store, memory)
        else:
            y = self.store(reading, memory)
        if self.selector is not None and reading.part in self.selector.observes:
            self.selector.observe(reading, self.store, self.store.readable(memory))
        return typed(Tensor, y)

    def bytes_of(self, tokens: int) -> int:
        """Bytes of one sequence of so many tokens: all that is stored, of as many entries as are then kept."""
        return self.store.bytes if isinstance(self.store, Fixed) else bytes_of(self.policies, tokens)

    @property
    def policies(self) -> list[CachePolicy]:
        """Its store, unless the model says what it keeps, and what chooses and reads."""
        return [each for each in (self.store, self.selector, self.reader) if isinstance(each, CachePolicy)]

    def states(self) -> Iterator[CacheState]:
        """What is kept of the layer."""
        yield from self.store.cache_states()
        for policy in (self.selector, self.reader):
            if policy is not None:
                yield from policy.cache_states()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers whose rows are as many, counted once.

    Attributes:
        suffix: Of the names of its lengths and symbols.
        layers: Their numbers.
        lengths: How rows are counted.
        counted: They are counted in states; if not, a row is a token that was read.
        selector: What chooses in all of them.
        period: Rows in full precision that are packed at once.
    """

    suffix: str
    layers: tuple[int, ...]
    lengths: tuple[Length, ...]
    counted: bool
    selector: Selector | None
    period: int | None

    def state(self, length: str) -> str:
        """The name of the state with a length."""
        return f"{length}{self.suffix}"

    def symbol(self, length: str) -> str:
        """The capacity that rows of a kind lie in."""
        (found,) = (each.symbol for each in self.lengths if each.name == length)
        return f"{found}{self.suffix}"


class Caches(nn.Module):
    """What keeps the caches of all layers, or of the first of them.

    Attributes:
        caches: One for each layer.
        groups: Layers that are counted together; those whose model says what they keep are in none.
        sites: What happens at the layers, for the manifest.
    """

    def __init__(self, caches: Sequence[LayerCache], sites: Sequence[SitePlan], *, context: int) -> None:
        super().__init__()
        self.caches = nn.ModuleList(caches)
        self.sites = tuple(sites)
        self.groups = _groups(caches)
        self._context = context

    @property
    def layers(self) -> list[LayerCache]:
        """One for each layer."""
        return [typed(LayerCache, each) for each in self.caches]

    @property
    def counts(self) -> bool:
        """Whether rows are counted in states, or tokens have to be told from filling."""
        stores = (layer.store for layer in self.layers)
        return any(group.counted for group in self.groups) or any(
            isinstance(store, Store) and store.needs_count for store in stores
        )

    @property
    def prefills(self) -> bool:
        """Whether prompts are read by a graph of their own."""
        return any(
            layer.reader is not None
            or (isinstance(layer.store, Store) and layer.store.own_prompts)
            or (layer.selector is not None and layer.selector.observes and layer.selector.prompt_only)
            for layer in self.layers
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        """Graphs that read tokens."""
        return READ_PARTS if self.prefills else READ_PARTS[1:]

    def first(self, count: int) -> "Caches":
        """The plan of the first layers."""
        sites = [site for site in self.sites if site.layer < count]
        short = Caches(self.layers[:count], sites, context=self._context)
        kept = {group.layers[0]: group.suffix for group in self.groups}
        short.groups = tuple(replace(group, suffix=kept[group.layers[0]]) for group in short.groups)
        return short

    # ---- while tokens are read

    def begin(self, states: Mapping[str, Tensor], seen: Tensor) -> dict[str, Mapping[str, Tensor]]:
        """The lengths of each group, by its suffix."""
        return {
            group.suffix: {
                each.name: states[group.state(each.name)] if group.counted else seen for each in group.lengths
            }
            for group in self.groups
        }

    def lengths_of(self, number: int, lengths: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Those of a layer."""
        return next((lengths[group.suffix] for group in self.groups if number in group.layers), {})

    def counts_positions(self, number: int, lengths: Mapping[str, Mapping[str, Tensor]]) -> tuple[str, Tensor] | None:
        """The suffix of a layer's group and the position of the next token in its cache, [B], where positions are those
        of entries; None: they are those of tokens."""
        for group in self.groups:
            if number in group.layers and group.selector is not None and group.selector.in_cache:
                store = typed(Store, self.layers[number].store)
                return group.suffix, store.entries(lengths[group.suffix])
        return None

    def advance(self, lengths: Mapping[str, Mapping[str, Tensor]], count: Tensor, made: dict[str, Tensor]) -> None:
        """Put the lengths behind `count` [B] more tokens into `made`."""
        for group in self.groups:
            if group.counted:
                made |= {group.state(name): value for name, value in lengths[group.suffix].items()}
                made[group.state(ROWS)] = lengths[group.suffix][ROWS] + count

    def memory(self, number: int, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a layer keeps, by short names, as a graph has it."""
        return {
            state.name: states[f"{state.name}_{number}"]
            for state in self.layers[number].states()
            if f"{state.name}_{number}" in states
        }

    # ---- states and capacities

    def state_specs(self, part: str) -> tuple[StateSpec, ...]:
        """The states of a graph: of a part that reads tokens, `flush` or `compact`."""
        found = [
            self._spec(cache.number, state, use)
            for cache in self.layers
            for state in cache.states()
            if (use := self._use(cache, state, part))
        ]
        for group in self.groups:
            if group.counted and self._touches(group, part):
                names = [each.name for each in group.lengths if part != "compact" or each.name == ROWS]
                found += [_length_spec(group.state(name), self._length_use(part, name)) for name in names]
        return tuple(found)

    def capacities(self, part: str) -> tuple[Capacity, ...]:
        """The capacities of a graph; how many rows they get is the same in all of them."""
        parts = self.parts
        found = []
        for group in self.groups:
            for each in group.lengths:
                adds: dict[str, int | str] = {name: each.read for name in parts if each.read}
                if each.flush:
                    adds["flush"] = each.flush
                found.append(
                    Capacity(
                        symbol=group.symbol(each.name),
                        used=group.state(each.name) if group.counted else None,
                        adds=adds,
                    )
                )
        used = {dim for state in self.state_specs(part) for dim in state.shape if isinstance(dim, str)}
        return tuple(each for each in found if each.symbol in used)

    def ranges(self, part: str) -> dict[str, tuple[int, int, int]]:
        """Smallest, usual and largest length of each capacity of a graph."""
        symbols = {each.symbol for each in self.capacities(part)}
        found = {}
        for group in self.groups:
            for each in group.lengths:
                symbol = group.symbol(each.name)
                if symbol in symbols:
                    whole = (each.most or -(-self._context // each.unit)) + each.spare
                    first, selector = each.first, group.selector
                    if each.name == ROWS and selector is not None:
                        first = max(first, selector.looks_at)
                        held = max(selector.at_most + selector.layer.chunk, first)  # if it chooses behind each chunk
                        whole = held if selector.moments == ("run",) else max(whole, held * selector.in_chunks)
                    begin = max(min(_FIRST_SLOTS // each.unit, whole // 2), first, 1)
                    found[symbol] = (begin, max(begin, whole // 4), max(whole, begin + 1))
        return found

    def upkeep(self) -> tuple[Upkeep, ...]:
        """What is run in between."""
        found: list[Upkeep] = []
        for group in self.groups:
            if group.selector is not None:
                found += [
                    Upkeep(
                        graph="compact",
                        after=after,
                        capacity=group.symbol(ROWS),
                        at_least=group.selector.at_most + 1,
                    )
                    for after in group.selector.moments
                ]
        for group in self.groups:
            if group.period is not None:
                store = typed(Store, self.layers[group.layers[0]].store)
                found += [
                    Upkeep(graph="flush", after=after, capacity=group.symbol(ROWS), at_least=store.packs_from(after))
                    for after in store.flush_after
                ]
        return tuple(found)

    def _use(self, cache: LayerCache, state: CacheState, part: str) -> Use:
        if part == "flush":
            packs = not isinstance(cache.store, Fixed) and cache.store.period is not None
            return state.flush if packs else ""
        if part == "compact":
            return state.compact if cache.selector is not None else ""
        return state.read if part in state.parts or not self.prefills else ""

    def _touches(self, group: Group, part: str) -> bool:
        if part == "flush":
            return group.period is not None
        return part != "compact" or group.selector is not None

    def _length_use(self, part: str, name: str) -> Use:
        return "rw" if part in ("flush", "compact") or name == ROWS else "r"

    def _spec(self, number: int, state: CacheState, use: Use) -> StateSpec:
        name = f"{state.name}_{number}"
        group = next((each for each in self.groups if number in each.layers), None)
        names = set() if group is None else {each.name for each in group.lengths}
        shape = tuple(
            dim if isinstance(dim, int) or group is None or dim not in names else group.symbol(dim)
            for dim in state.shape
        )
        return StateSpec(
            input=f"{name}_in" if "r" in use else None,
            output=f"{name}_out" if "w" in use else None,
            shape=(BATCH_SYMBOL, *shape),
            dtype=state.dtype,
            name=name,
            kind=state.kind,
            layer=number,
            compare=state.compare,
            bits=state.bits,
            alias=use == "rw",
        )


def caches_of(plan: GraphPlan, host: HostInfo, fixed: Mapping[int, Fixed]) -> Caches:
    """What keeps the caches of a decoder, from what the placer placed.

    Args:
        plan: Of the graph with the layers' caches.
        host: The decoder; its layers with a `kv_cache` site are those that policies act at.
        fixed: The layers whose model says what they keep, by number.

    Raises:
        ConfigError: Two policies of a layer do not go together.
    """
    assert host.cache is not None
    sites = {site.layer: site for site in host.sites if site.kind == "kv_cache"}
    caches = []
    for number in range(host.depth):
        if number in fixed:
            caches.append(LayerCache(number, fixed[number]))
            continue
        site = sites[number]
        found: dict[str, nn.Module] = {}
        for policy in plan.acting(site.name):
            kind = policy.method.kind
            if kind in found:
                raise ConfigError(
                    f"{policy.method.name}: {typed(Store, found[kind]).method.name} is the {kind} of layer {number} "
                    f"already; a layer has one {kind}, so give one of them."
                )
            found[kind] = policy
        store = found.get("store") or Plain(PlainConfig(), _arrival(host, number))
        cache = LayerCache(
            number,
            typed(Store, store),
            typed("Selector | None", found.get("selector")),
            typed("Reader | None", found.get("reader")),
        )
        _check_together(cache)
        caches.append(cache)
    _check_removes(caches, host.cache.capacity)
    return Caches(caches, with_bytes(plan.sites, [each.policies for each in caches]), context=host.cache.capacity)


class UpkeepGraph(CompressedModule):
    """`flush` or `compact`: it takes states and gives them anew."""

    def __init__(self, plan: Caches, part: str) -> None:
        super().__init__()
        self.caching, self.part = plan, part
        specs = plan.state_specs(part)
        self._read = [str(each.name) for each in specs if each.input is not None]
        self._written = [str(each.name) for each in specs if each.output is not None]
        self.takes_seen = part == "compact" and any(
            layer.selector is not None and layer.selector.needs_seen for layer in plan.layers
        )

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What the graph takes, in the order of its states, behind `seen` [B] if it takes that → the new states."""
        seen, arrays = (given[0], given[1:]) if self.takes_seen else (None, given)
        states = dict(zip(self._read, arrays, strict=True))
        groups = [
            group
            for group in self.caching.groups
            if (group.period if self.part == "flush" else group.selector) is not None
        ]
        known: dict[str, Tensor] = {} if seen is None else {SEEN: seen}
        if self.part == "compact":
            known[DUE] = self._due(groups, states)
        for group in groups:
            self._group(group, states, known)
        return tuple(states[name] for name in self._written)

    def _due(self, groups: Sequence[Group], states: Mapping[str, Tensor]) -> Tensor:
        """Sequences of which some layer has more than it may have, [B]."""
        over = [states[group.state(ROWS)] > typed(Selector, group.selector).at_most for group in groups]
        return reduce(torch.logical_or, over)

    def _group(self, group: Group, states: dict[str, Tensor], known: Mapping[str, Tensor]) -> None:
        lengths = {
            each.name: states[group.state(each.name)] for each in group.lengths if group.state(each.name) in states
        }
        after = dict(lengths)
        for number in group.layers:
            cache = self.caching.layers[number]
            store = typed(Store, cache.store)
            memory = self.caching.memory(number, states)
            with at_site(f"cache.{number}"):
                if self.part == "flush":
                    store.flush(lengths, memory)
                    after = {**lengths, **store.flushed(lengths)}
                    if cache.selector is not None:
                        cache.selector.packed(lengths[ROWS] - after[ROWS], memory)
                else:
                    selector = typed(Selector, cache.selector)
                    choice = selector.choose({**lengths, **known}, store.readable(memory))
                    store.keep(choice, memory)
                    selector.kept(choice, memory)
                    after = {**lengths, ROWS: choice.count}
            states |= {f"{name}_{number}": value for name, value in memory.items()}
        states |= {group.state(name): value for name, value in after.items()}


def upkeep_graphs(plan: Caches) -> tuple[GraphSpec, ...]:
    """The graphs `compact` and `flush`, those that are needed."""
    needed = dict.fromkeys(entry.graph for entry in plan.upkeep())
    return tuple(_upkeep_graph(plan, part) for part in needed)


def _upkeep_graph(plan: Caches, part: str) -> GraphSpec:
    module, states = UpkeepGraph(plan, part), plan.state_specs(part)
    seen = TensorSpec(name="seen", shape=(BATCH_SYMBOL,), dtype="int64", values=(0, 2**31 - 1))
    return GraphSpec(
        module=module.eval(),
        inputs=(seen,) if module.takes_seen else (),
        outputs=(),
        states=states,
        name=part,
        role=part,
        lengths=plan.ranges(part),
        capacities=plan.capacities(part),
        exact=frozenset(state.input for state in states if state.input is not None),
        layers=Layers(count=len(plan.layers), first=lambda count: _upkeep_graph(plan.first(count), part)),
    )


def mark_sites(plan: Caches, number: int, y: Tensor) -> Tensor:
    """What leaves the cache of a layer, known by its site once for each policy."""
    with at_site(f"cache.{number}"):
        for site in plan.sites:
            if site.layer == number:
                y = mark_tensor("tokens", y)
    return y


def _arrival(host: HostInfo, number: int) -> Arrival:
    (site,) = (each for each in host.sites if each.kind == "kv_cache" and each.layer == number)
    return Arrival(host=host, site=site, tokens=site.tokens or 0, prefix=0, has_class_token=False, width=site.width)


def _check_together(cache: LayerCache) -> None:
    if isinstance(cache.store, Fixed):
        return
    if cache.reader is not None:
        _check_reads(cache.reader, cache.store, cache.selector)
    if cache.selector is None:
        return
    if cache.store.not_selectable is not None:
        raise ConfigError(
            f"{cache.selector.method.name}: cannot choose what is kept, as {cache.store.method.name} "
            f"{cache.store.not_selectable}."
        )
    if cache.selector.merges and "keys" not in {state.name for state in cache.store.cache_states()}:
        raise ConfigError(
            f"{cache.selector.method.name}: merges entries into others, and {cache.store.method.name} has packed them; "
            "take a store that keeps new keys as they are."
        )
    if cache.selector.in_cache and "keys" not in {state.name for state in cache.store.cache_states()}:
        raise ConfigError(
            f"{cache.selector.method.name}: positions in the cache turn keys that move, and {cache.store.method.name} "
            "has packed them; give positions=kept, or take a store that keeps new keys as they are."
        )
    if cache.selector.every is not None and cache.store.period is not None:
        raise ConfigError(
            f"{cache.selector.method.name}: every={cache.selector.every} chooses among generated tokens, which "
            f"{cache.store.method.name} packs in groups that cannot be torn; leave every out, or take a store that "
            "packs nothing."
        )


def _check_reads(reader: Reader, store: Store, selector: Selector | None) -> None:
    name = reader.method.name
    if store.not_readable is not None:
        raise ConfigError(
            f"{name}: cannot read some entries without the others, as {store.method.name} {store.not_readable}."
        )
    if selector is not None and reader.carries and not selector.alike:
        raise ConfigError(
            f"{name}: what one layer chooses is read in others, and {selector.method.name} keeps other entries in each "
            "layer or KV head; take a selector that keeps the same in all, as streamingllm, or leave one of both out."
        )


def _check_removes(caches: Sequence[LayerCache], context: int) -> None:
    selectors = [cache.selector for cache in caches if cache.selector is not None]
    least = min((selector.at_most for selector in selectors), default=0)
    if least >= context:
        name = selectors[0].method.name
        raise ConfigError(
            f"{name}: every layer would keep {least} entries, and the context has {context} tokens, so that none is "
            f"removed; give a smaller budget, or leave {name} out."
        )


def _groups(caches: Sequence[LayerCache]) -> tuple[Group, ...]:
    found: dict[object, list[LayerCache]] = {}
    for cache in caches:
        if isinstance(cache.store, Fixed):
            continue
        selector = cache.selector
        key = (
            cache.store.lengths(),
            cache.store.period,
            None if selector is None else (type(selector), selector.counted_as, selector.at_most),
        )
        found.setdefault(key, []).append(cache)
    groups = []
    for place, members in enumerate(found.values()):
        store, selector = typed(Store, members[0].store), members[0].selector
        lengths = store.lengths()
        groups.append(
            Group(
                suffix=f"_{place}" if place else "",
                layers=tuple(each.number for each in members),
                lengths=lengths,
                counted=selector is not None or len(lengths) > 1,
                selector=selector,
                period=store.period,
            )
        )
    return tuple(groups)


def _length_spec(name: str, use: Use) -> StateSpec:
    return StateSpec(
        input=f"{name}_in" if "r" in use else None,
        output=f"{name}_out" if "w" in use else None,
        shape=(BATCH_SYMBOL,),
        dtype="int64",
        name=name,
        kind="length",
        alias=use == "rw",
    )
