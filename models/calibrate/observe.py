"""A model that shows what passes its sites: an observer is placed like a method, so that every host can be watched."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trt_compress.errors import InternalError
from trt_compress.format.graphs import BATCH_SYMBOL, StateSpec
from trt_compress.methods import CompressorConfig, CompressorSpec, Method
from trt_compress.methods.config import CACHE_KINDS
from trt_compress.models.calibrate.observe_cache import Look, watched_cache
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.calibration import Batch, Passing
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.registry import compressor_class
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.hosts.base import GraphSpec, LoadedHost

Reads = Callable[[Sequence[GraphSpec], Batch], Iterator[Mapping[str, Tensor]]]
"""Reads sequences by a procedure: its graphs, and tokens → what each run of a graph puts out, by `graph.output`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserverConfig(CompressorConfig):
    """What an observer watches for.

    Attributes:
        of: The method whose sites and taps they are.
        placements: Other sites; None: the method's own.
        taps: More taps.
        infos: Takes what is known of the model.
        seen: Takes what came to each site in the run that is going on.
    """

    of: CompressorSpec
    placements: tuple[Placement, ...] | None = None
    taps: tuple[Tap, ...] = ()
    infos: list[HostInfo] = field(default_factory=list, compare=False)
    seen: dict[str, Passing] = field(default_factory=dict, compare=False)


OBSERVER = Method(
    name="observer",
    summary="watches what comes to sites and changes nothing",
    source="none: part of calibration",
    differs="nothing: there is no original.",
    config=ObserverConfig,
    implementation="models.calibrate.observe:Observer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserverSpec(CompressorSpec):
    """The place of an observer among the methods of a spec."""

    @property
    def method(self) -> Method:
        """The observer, which no spec string names."""
        return OBSERVER


class Observer(Compressor):
    """Keep what comes to a site, and hand it on as it is."""

    method = OBSERVER
    takes_padding = True
    takes_stale = True

    @classmethod
    def placements(cls, config: ObserverConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Those that are asked for, or those of the method."""
        config.infos.append(host)
        if config.placements is not None:
            return config.placements
        return compressor_class(config.of.method).placements(config.of.config, host)

    @classmethod
    def taps(cls, config: ObserverConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """Those of the method at its own sites, and those that are asked for."""
        own: tuple[Tap, ...] = ()
        if config.placements is None:
            own = compressor_class(config.of.method).taps(config.of.config, host, site)
        return tuple(dict.fromkeys((*own, *config.taps)))

    def __init__(self, config: ObserverConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.config, self.arrival, self.tokens_out = config, arrival, arrival.tokens

    @property
    def acts(self) -> bool:
        """Always: it sees."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """The tokens, as they came."""
        self.config.seen[self.arrival.site.address] = Passing(arrival=self.arrival, tokens=tokens, taps=taps)
        return tokens


class WatchedHost:
    """A model on which one method of a spec is calibrated; `CalibrationHost` says what it does.

    Args:
        host: The model.
        specs: All methods.
        number: Which of them is calibrated.
        reads: How a model with a procedure is run; needed by one.
    """

    def __init__(
        self, host: LoadedHost, specs: Sequence[CompressorSpec], number: int, *, reads: Reads | None = None
    ) -> None:
        self._host, self._specs, self._number, self._reads = host, tuple(specs), number, reads
        self._info: HostInfo | None = None
        if (host.procedure is None) != (reads is None):
            raise InternalError(f"{host.source} is watched with{'out' if reads is None else ''} what reads sequences.")

    @property
    def info(self) -> HostInfo:
        """What is known of the model."""
        if self._info is None:
            config = ObserverConfig(of=self._specs[self._number], placements=None)
            self._attached(ObserverSpec(name="observer", config=config))
            self._info = config.infos[0]
        return self._info

    def graphs(self) -> tuple[GraphSpec, ...]:
        """The graphs of the model with the other methods in place, which are run on data."""
        return self._attached(None)

    def observe(
        self, batches: Iterable[Batch], *, placements: Sequence[Placement] | None = None, taps: Sequence[Tap] = ()
    ) -> Iterator[Mapping[str, Passing]]:
        """What comes to sites, by their addresses, run by run."""
        config = ObserverConfig(
            of=self._specs[self._number],
            placements=None if placements is None else tuple(placements),
            taps=tuple(taps),
        )
        graphs = self._attached(ObserverSpec(name="observer", config=config))
        for batch in batches:
            for _ in self._runs(graphs, batch):
                if config.seen:  # runs of a procedure in which nothing passed a site are left out
                    yield dict(config.seen)
                    config.seen.clear()

    def outputs(
        self, batches: Iterable[Batch], config: CompressorConfig | None = None
    ) -> Iterator[Mapping[str, Tensor]]:
        """What the model puts out, run by run, by `graph.output`."""
        spec = None if config is None else replace(self._specs[self._number], config=config)
        graphs = self._attached(spec)
        for batch in batches:
            yield from self._runs(graphs, batch)

    def outputs_with(self, spec: CompressorSpec, batches: Iterable[Batch]) -> Iterator[Mapping[str, Tensor]]:
        """What the model puts out, run by run, with another method in place, and with gradients."""
        graphs = self._attached(spec)
        for batch in batches:
            yield from self._runs(graphs, batch, gradients=True)

    def watch_caches(self, batches: Iterable[Batch], look: Look) -> Iterator[Mapping[str, Tensor]]:
        """What the model puts out, run by run, while all its caches are plain and each layer's is looked at."""
        others = [spec for spec in self._specs if spec.method.kind not in CACHE_KINDS]
        graphs = self._host.attach((*others, watched_cache(look)))
        for batch in batches:
            yield from self._runs(graphs, batch)

    def _attached(self, spec: CompressorSpec | None) -> tuple[GraphSpec, ...]:
        own = () if spec is None else (spec,)
        return self._host.attach((*self._specs[: self._number], *own, *self._specs[self._number + 1 :]))

    def _runs(
        self, graphs: Sequence[GraphSpec], batch: Batch, *, gradients: bool = False
    ) -> Iterator[Mapping[str, Tensor]]:
        """Outputs by `graph.output` of each run: one, or of a model with states one for each step."""
        if self._reads is not None:
            yield from self._reads(graphs, batch)
            return
        links = {to: source for source, to in self._host.links}
        steps = _steps(graphs, batch)
        count = len(next(iter(batch.values())))
        kept: dict[str, Tensor] = {}
        for step in range(1 if steps is None else steps):
            found: dict[str, Tensor] = {}
            for graph in graphs:
                inputs = []
                for spec in graph.inputs:
                    name = f"{graph.name}.{spec.name}"
                    if name in links:
                        inputs.append(found[links[name]])
                        continue
                    array = batch[name if name in batch else spec.name]
                    inputs.append(torch.from_numpy(array if steps is None else array[:, step]))
                for state in graph.states:
                    if state.input is not None:
                        place = _place(graph, state)
                        inputs.append(kept[place] if place in kept else _initial(graph, state, count))
                with torch.set_grad_enabled(gradients):
                    out: Any = graph.module(*inputs)
                parts = (out,) if isinstance(out, Tensor) else tuple(out)
                names = [f"{graph.name}.{spec.name}" for spec in graph.outputs]
                written = [_place(graph, state) for state in graph.states if state.output is not None]
                found |= dict(zip(names, parts, strict=False))
                kept |= dict(zip(written, parts[len(names) :], strict=True))
            yield found


def _place(graph: GraphSpec, state: StateSpec) -> str:
    """What a state is kept under between runs: its name, if graphs share it."""
    return state.name or f"{graph.name}.{state.port}"


def _steps(graphs: Sequence[GraphSpec], batch: Batch) -> int | None:
    """Runs that follow each other in a batch; None: the model has no states, and there is one."""
    if not any(graph.states for graph in graphs):
        return None
    return min(len(array[0]) for array in batch.values())


def _initial(graph: GraphSpec, state: StateSpec, batch: int) -> Tensor:
    """A state before the first run; of a capacity there is as much as there may be."""
    capacities = {capacity.symbol for capacity in graph.capacities}
    known = {symbol: graph.lengths[symbol][2] for symbol in capacities} | {BATCH_SYMBOL: batch}
    shape = [known.get(dim, 0) if isinstance(dim, str) else dim for dim in state.shape]
    value = 0.0 if isinstance(state.initial, str) else state.initial["fill"]
    return torch.full(shape, value, dtype=getattr(torch, state.dtype))
