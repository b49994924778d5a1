"""The graphs of a bundle as they were loaded: what a session runs, and what its states are tied to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol
from weakref import WeakSet

from trt_compress.digest import sha256
from trt_compress.format.bundle import Bundle
from trt_compress.format.graphs import Capacity, Range
from trt_compress.format.manifest import Graph, State, TensorInfo
from trt_compress.runtime.backends.base import Executable
from trt_compress.runtime.initial import Initial

Update = Literal["in place", "swapped", "grown", "read"]
"""How a run gives the new value of a state: in the memory of the old one; in a second memory, and the two change places
(swapped); in new memory, as the state gets longer with each run (grown); or not at all, as the graphs only read it."""


@dataclass(frozen=True, slots=True)
class LoadedGraph:
    """One graph: its tensors by bare name, states apart.

    Attributes:
        reads: Input → key of the state that it takes.
        writes: Output → key of the state that it gives.
        keys: Of all of them.
    """

    name: str
    executable: Executable
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    reads: Mapping[str, str]
    writes: Mapping[str, str]
    keys: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", frozenset((*self.reads.values(), *self.writes.values())))


class Loaded:
    """A bundle with the graphs of it that were loaded.

    Attributes:
        graphs: By name, in order; empty once the session was closed.
        states: By key, as the first graph that has it declares it.
        initials: By key.
        growing: Symbols of axes that get longer with each run → the most they may get to, or None.
        capacities: Symbols of axes whose length is chosen → how.
        ranges: Their smallest and largest length.
        made: What holds states on these graphs.
    """

    def __init__(self, bundle: Bundle, executables: Mapping[str, Executable]) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.made: WeakSet[LetsGo] = WeakSet()
        mine = [state for state in manifest.states if state.graph in executables]
        self.graphs = {
            graph.name: _loaded(graph, executables[graph.name], [state for state in mine if state.graph == graph.name])
            for graph in manifest.graphs
            if graph.name in executables
        }
        self.states: dict[str, State] = {}
        for state in mine:
            self.states.setdefault(state.key, state)
        self.initials = {key: Initial(state, bundle) for key, state in self.states.items()}
        self.capacities: dict[str, Capacity] = {one.symbol: one for one in manifest.capacities}
        self.ranges: dict[str, Range] = {symbol: manifest.lengths[symbol] for symbol in self.capacities}
        taken = {(state.graph, state.input) for state in manifest.states}
        given = {
            dim
            for graph in manifest.graphs
            for info in graph.inputs
            if (graph.name, info.name) not in taken
            for dim in info.shape
        }
        self.growing: dict[str, int | None] = {
            dim: state.capacity
            for state in self.states.values()
            for dim in state.shape
            if isinstance(dim, str) and dim not in given and dim not in self.capacities
        }

    def grows(self, key: str) -> bool:
        """Whether a state gets longer with each run."""
        return any(dim in self.growing for dim in self.states[key].shape)

    def swap(self, key: str) -> frozenset[str]:
        """The graphs that write a state into a second memory."""
        return frozenset(
            name
            for name, graph in self.graphs.items()
            for output, of in graph.writes.items()
            if of == key and output not in graph.executable.in_place
        )

    def update(self, key: str) -> Update:
        """How a run gives a state anew; of several graphs that do it differently, the one that costs most."""
        if self.grows(key):
            return "grown"
        written = [
            output in graph.executable.in_place
            for graph in self.graphs.values()
            for output, of in graph.writes.items()
            if of == key
        ]
        if not written:
            return "read"
        return "in place" if all(written) else "swapped"

    def identity(self) -> str:
        """A hash of what gives the states their meaning: graphs, their weights, and the states themselves.

        What a later build adds to the bundle is no part of it.
        """
        manifest = self.bundle.manifest
        files = sorted({name for graph in manifest.graphs for name in (graph.file, *graph.external_data)})
        said = {
            "graphs": [graph.to_json() for graph in manifest.graphs],
            "states": [state.to_json() for state in manifest.states],
            "files": {name: manifest.files[name].sha256 for name in files if name in manifest.files},
        }
        return sha256(json.dumps(said, sort_keys=True))


class LetsGo(Protocol):
    """What holds memory for the graphs, until they are closed."""

    def let_go(self) -> None:
        """Let go of it."""
        ...


class HasLoaded(Protocol):
    """A session."""

    @property
    def loaded(self) -> Loaded:
        """What it runs."""
        ...


def _loaded(graph: Graph, executable: Executable, states: list[State]) -> LoadedGraph:
    reads = {state.input: state.key for state in states if state.input is not None}
    writes = {state.output: state.key for state in states if state.output is not None}
    return LoadedGraph(
        name=graph.name,
        executable=executable,
        inputs={info.name: info for info in graph.inputs if info.name not in reads},
        outputs={info.name: info for info in graph.outputs if info.name not in writes},
        reads=reads,
        writes=writes,
    )
