"""What is run in turn on one side of a comparison: the consecutive runs of one graph, or a procedure.

Both sides follow the same text (`trt_compress.format.procedure`) and carry their own states, so that a difference that
grows shows. A side says what it computes with by `Compute`: the torch modules, or the ONNX files.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from trt_compress.errors import GateError
from trt_compress.format.graphs import BATCH_SYMBOL, Capacity, Range, State, StateSpec
from trt_compress.format.manifest import Graph, Manifest
from trt_compress.format.procedure import KEPT, SEEN, Pass, Procedure, Run, keep_up, rows_of, runs_of
from trt_compress.format.wiring import Wiring
from trt_compress.models.hosts.base import GraphSpec, Scenario, Steps

Array = np.ndarray[Any, np.dtype[Any]]
Values = Mapping[str, Tensor]
Compute = Callable[[str, Mapping[str, Array]], tuple[Values, Values]]
"""Run a graph: its name, its inputs and states → its outputs and new states, and what was seen at its sites.

The first is empty if the run failed; the course ends there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One run of a graph.

    Attributes:
        graph: Its name.
        step: Counts the runs of the course from 1; 0 if there is nothing to count.
        moment: Where in a procedure it is, "step 3"; "" outside of one.
        outputs: Outputs and new states by name.
        sites: What was seen at its sites.
    """

    graph: str
    step: int
    moment: str
    outputs: Values
    sites: Values


def of_layers(manifest: Manifest, graphs: Sequence[GraphSpec]) -> Manifest:
    """A manifest without the inputs, outputs and states that these graphs, the first layers of its own, have not."""
    kept = {graph.name: graph for graph in graphs}
    inputs = {name: {spec.name for spec in graph.all_inputs} for name, graph in kept.items()}
    outputs = {name: {spec.name for spec in graph.all_outputs} for name, graph in kept.items()}
    return replace(
        manifest,
        graphs=tuple(
            replace(
                graph,
                inputs=tuple(info for info in graph.inputs if info.name in inputs[graph.name]),
                outputs=tuple(info for info in graph.outputs if info.name in outputs[graph.name]),
            )
            if graph.name in kept
            else graph
            for graph in manifest.graphs
        ),
        states=tuple(
            state
            for state in manifest.states
            if state.graph not in kept or state.port in inputs[state.graph] | outputs[state.graph]
        ),
    )


def initial_state(state: StateSpec, lengths: Mapping[str, int]) -> Array:
    """What a state holds before the first run; an axis whose symbol has no length is empty."""
    shape = [lengths.get(dim, 0) if isinstance(dim, str) else dim for dim in state.shape]
    value = 0 if isinstance(state.initial, str) else state.initial["fill"]
    return np.full(shape, value, np.dtype(state.dtype))


@dataclass(slots=True)
class Course:
    """One side of a comparison on its way: what it computes with, and its states by their key."""

    compute: Compute
    states: dict[str, Array] = field(default_factory=dict)

    def runs(self, graph: str, states: Sequence[State], steps: Steps, lengths: Mapping[str, int]) -> Iterator[Event]:
        """Consecutive runs of one graph, the first from the initial states."""
        for number, arrays in enumerate(steps, start=1):
            event = self._run(graph, states, arrays, lengths, number if states else 0, "")
            self._keep(states, event)
            yield event
            if not event.outputs:
                return

    def _run(
        self,
        graph: str,
        states: Sequence[State],
        given: Mapping[str, Array],
        lengths: Mapping[str, int],
        step: int,
        moment: str,
    ) -> Event:
        feed = dict(given)
        for state in states:
            if state.key not in self.states:
                self.states[state.key] = initial_state(state, lengths)
            if state.input is not None:
                feed[state.input] = self.states[state.key]
        outputs, sites = self.compute(graph, feed)
        return Event(graph=graph, step=step, moment=moment, outputs=outputs, sites=sites)

    def _keep(self, states: Sequence[State], event: Event) -> None:
        for state in states:
            if state.output is not None and state.output in event.outputs:
                self.states[state.key] = event.outputs[state.output].numpy()


class ProcedureCourse(Course):
    """A scenario, as a manifest says that its graphs are run, or a host of its own."""

    def __init__(self, compute: Compute, manifest: Manifest | Wiring, scenario: Scenario) -> None:
        super().__init__(compute)
        assert manifest.procedure is not None
        self._manifest, self._scenario = manifest, scenario
        self._procedure: Procedure = manifest.procedure
        self._graphs: dict[str, Graph] = {graph.name: graph for graph in manifest.graphs}
        self._states = {name: [s for s in manifest.states if s.graph == name] for name in self._graphs}
        self._capacities: dict[str, Capacity] = {each.symbol: each for each in manifest.capacities}
        self._lengths = {symbol: manifest.lengths[symbol].min for symbol in self._capacities}
        self._links = {link.to: link.source for link in manifest.links}
        self._seen = np.zeros(len(scenario.prompt), np.int64)
        self._rows: list[Array] = []
        self._count = 0
        self._came = Counter[str]()

    def events(self) -> Iterator[Event]:
        """All runs, in order.

        Raises:
            GateError: The procedure cannot go on: a capacity or a length is exceeded, or upkeep does not help.
        """
        scenario, batch = self._scenario, len(self._scenario.prompt)
        texts = [np.concatenate([ids, steps]) for ids, steps in zip(scenario.prompt, scenario.steps, strict=True)]
        yield from self._text(self._procedure.prompt, "prompt", texts)
        due = {entry.graph for entry in self._procedure.upkeep if entry.after in ("step", "run")}
        in_prompt = Counter(self._came)
        ends = False
        for number in range(len(scenario.steps[0]) if batch else 0):
            if ends:  # what came last has been read by a step
                break
            ends = scenario.enough is not None and number + 1 >= scenario.enough
            ends = ends and all(self._came[graph] > max(in_prompt[graph], 1) for graph in due)
            run = Run(start=-1, tokens=1, counts=(1,) * batch, moments=("run", "step"))
            yield from self._read(self._procedure.step, run, f"step {number + 1}", texts)
        if self._procedure.score is not None:
            self.states.clear()
            self._seen = np.zeros_like(self._seen)
            self._lengths = {symbol: self._manifest.lengths[symbol].min for symbol in self._capacities}
            yield from self._text(self._procedure.score, "score", scenario.prompt)

    def _text(self, part: Pass, name: str, texts: Sequence[Array]) -> Iterator[Event]:
        """What stands before the prompts of the scenario, and the runs of a pass that read them."""
        scenario, placed = self._scenario, bool(self._scenario.media)
        for number, media in enumerate(self._procedure.media if placed else (), start=1):
            yield from self._pass(media.graphs, f"media {number}", {}, scenario.media)
        try:
            rows = [rows_of(self._procedure.media, ids.tolist(), placed=placed) for ids in scenario.prompt]
            counts = [len(ids) for ids in scenario.prompt]
            runs = list(runs_of(part, self._manifest.lengths, counts, scoring=name == "score"))
        except ValueError as error:
            raise GateError(f"verification failed: {error}.") from None
        self._rows = [np.array(each, np.int64) for each in rows]
        for number, run in enumerate(runs, start=1):
            yield from self._read(part, run, f"{name} run {number}", texts)

    def _read(self, part: Pass, run: Run, moment: str, texts: Sequence[Array]) -> Iterator[Event]:
        """One run of a pass, and the upkeep that is then due."""
        tokens = np.zeros((len(texts), run.tokens), np.int64)
        following, stand_for = tokens.copy(), np.full_like(tokens, -1)
        for row, (text, count, seen) in enumerate(zip(texts, run.counts, self._seen, strict=True)):
            tokens[row, :count] = text[seen : seen + count]
            after = text[seen + 1 : seen + count + 1]
            following[row, : len(after)] = after
            rows = self._rows[row][seen : seen + count]
            stand_for[row, : len(rows)] = rows
        self._reserve(part.graphs, run.tokens, moment)
        before = self._seen if self._procedure.position in (SEEN, KEPT) else self._used(self._procedure.position)
        feeds = {
            "tokens": tokens,
            "next": following,
            "count": np.array(run.counts, np.int64),
            "seen": self._seen,
            "positions": before[:, None] + np.arange(run.tokens),
            "rows": stand_for,
        }
        yield from self._pass(part.graphs, moment, feeds, {})
        self._seen = self._seen + np.array(run.counts)
        kept: list[Event] = []

        def maintain(graph: str) -> None:
            self._came[graph] += 1
            self._reserve((graph,), 0, f"{graph} after {moment}")
            kept.extend(self._pass((graph,), f"{graph} after {moment}", {"seen": self._seen}, {}))

        try:
            keep_up(self._procedure, run.moments, lambda symbol: self._used(symbol).tolist(), maintain)
        except ValueError as error:
            yield from kept
            raise GateError(f"verification failed after {moment}: {error}.") from None
        yield from kept

    def _pass(
        self, graphs: Sequence[str], moment: str, feeds: Mapping[str, Array], given: Mapping[str, Array]
    ) -> Iterator[Event]:
        """Run graphs in order; the new states take the place of the old ones when all have run."""
        values: dict[str, Array] = {}
        events = []
        for name in graphs:
            arrays: dict[str, Array] = {}
            read = {state.input for state in self._states[name]}
            for info in self._graphs[name].inputs:
                full = f"{name}.{info.name}"
                if full in self._procedure.feeds:
                    arrays[info.name] = feeds[self._procedure.feeds[full]].astype(info.dtype)
                elif full in self._links:
                    arrays[info.name] = values[self._links[full]]
                elif full in given:
                    arrays[info.name] = given[full]
                elif info.name not in read:
                    raise GateError(
                        f"verification failed: {moment} has nothing for the input '{full}': no state, no link, no "
                        "feed, and nothing in the scenario; give it there, as media."
                    )
            lengths = {BATCH_SYMBOL: len(self._scenario.prompt), **self._lengths}
            self._count += 1
            event = self._run(name, self._states[name], arrays, lengths, self._count, moment)
            values |= {f"{name}.{tensor}": value.numpy() for tensor, value in event.outputs.items()}
            events.append(event)
        for event in events:
            self._keep(self._states[event.graph], event)
        yield from events

    def _used(self, symbol: str) -> Array:
        key = self._capacities[symbol].used
        if key is None:
            return self._seen
        return self.states[key] if key in self.states else np.zeros_like(self._seen)

    def _reserve(self, graphs: tuple[str, ...], tokens: int, moment: str) -> None:
        """Lengthen what the next run may fill.

        Raises:
            GateError: It would be longer than its limit.
        """
        for symbol, capacity in self._capacities.items():
            needed = capacity.needed(graphs, int(self._used(symbol).max(initial=0)), tokens)
            limits: Range = self._manifest.lengths[symbol]
            if needed > limits.max:
                raise GateError(
                    f"verification failed: {moment} needs {needed} slots of '{symbol}', and there are {limits.max} at "
                    "most; the procedure has to make room before, or the scenario be shorter."
                )
            length = max(self._lengths[symbol], 1)
            while length < needed:
                length = min(-(-2 * length // capacity.multiple) * capacity.multiple, limits.max)
            if length > self._lengths[symbol]:
                self._lengthen(symbol, length)

    def _lengthen(self, symbol: str, length: int) -> None:
        self._lengths[symbol] = length
        lengths = {BATCH_SYMBOL: len(self._scenario.prompt), **self._lengths}
        for state in self._manifest.states:
            if symbol in state.shape and state.key in self.states:
                before, longer = self.states[state.key], initial_state(state, lengths)
                longer[tuple(slice(size) for size in before.shape)] = before
                self.states[state.key] = longer
