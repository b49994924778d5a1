"""Whether graphs, links, states, capacities and procedure of a manifest fit each other: each misfit is one sentence.

Whoever reads a manifest that passes may look up every name in it without a doubt.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trt_compress.format.graphs import BATCH_SYMBOL, MOST_ELEMENTS, Capacity, Dim, Graph, Link, Range, State, TensorInfo
from trt_compress.format.procedure import FEEDS, KEPT, MOMENTS, ROWS, SEEN, Pass, Procedure, range_of

_SHARED = ("shape", "dtype", "initial", "capacity", "kind", "layer", "compare", "bits")  # what graphs may not differ in
_READERS = ("prefill", "step", "embed", "head")  # roles of the graphs of a pass
_ONLY_IN_TURN = ("prefill", "step", "flush", "compact", "score")  # roles that a procedure alone gives a turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The parts of a manifest that name each other."""

    graphs: tuple[Graph, ...]
    links: tuple[Link, ...]
    states: tuple[State, ...]
    lengths: Mapping[str, Range]
    capacities: tuple[Capacity, ...]
    procedure: Procedure | None

    def problems(self) -> Iterator[str]:
        """What does not fit, the first of it first."""
        yield from self._link_problems()
        yield from self._state_problems()
        yield from self._length_problems()
        yield from (problem for each in self.capacities for problem in self._capacity_problems(each))
        if self.procedure is None:
            yield from self._role_problems()
        else:
            yield from self._procedure_problems(self.procedure)

    def _tensors(self, side: str) -> dict[str, TensorInfo]:
        return {f"{graph.name}.{info.name}": info for graph in self.graphs for info in getattr(graph, side)}

    def _by_name(self) -> dict[str, Graph]:
        return {graph.name: graph for graph in self.graphs}

    def _link_problems(self) -> Iterator[str]:
        order = {graph.name: index for index, graph in enumerate(self.graphs)}
        inputs, outputs = self._tensors("inputs"), self._tensors("outputs")
        for link in self.links:
            if link.source not in outputs:
                yield f"'{link.source}' is linked to '{link.to}' but is no output of a graph"
            elif link.to not in inputs:
                yield f"'{link.source}' is linked to '{link.to}', which is no input of a graph"
            elif order[_graph(link.source)] >= order[_graph(link.to)]:
                yield f"'{link.source}' is linked to '{link.to}', which runs no later"
        fed = [link.to for link in self.links] + [f"{s.graph}.{s.input}" for s in self.states if s.input is not None]
        for to, count in Counter(fed).items():
            if count > 1:
                yield f"input '{to}' is fed {count} times"

    def _state_problems(self) -> Iterator[str]:
        inputs, outputs = self._tensors("inputs"), self._tensors("outputs")
        first: dict[str, State] = {}
        for state in self.states:
            for name, tensors, does in ((state.input, inputs, "enters"), (state.output, outputs, "leaves as")):
                whole = f"{state.graph}.{name}"
                if name is not None and whole not in tensors:
                    side = "input" if tensors is inputs else "output"
                    yield f"the state '{state.key}' {does} '{whole}', which is no {side} of a graph"
                elif name is not None and tensors[whole].dtype != state.dtype:
                    yield f"the state '{state.key}' is {state.dtype}, and '{whole}' is {tensors[whole].dtype}"
            same = first.setdefault(state.key, state)
            if state is same:
                if state.name is not None and "." in state.name:
                    yield f"the state name '{state.name}' has a dot"
            elif state.graph == same.graph:
                yield f"graph '{state.graph}' has two states named '{state.name}'"
            elif any(getattr(state, part) != getattr(same, part) for part in _SHARED):
                yield f"the graphs '{same.graph}' and '{state.graph}' share the state '{state.name}' and differ in it"
        read = {state.key for state in self.states if state.input is not None}
        written = {state.key for state in self.states if state.output is not None}
        for key, state in first.items():
            if key not in read:
                yield f"the state '{key}' is written by '{state.graph}', and no graph reads it"
            if key not in written and not (isinstance(state.initial, dict) and "file" in state.initial):
                yield f"the state '{key}' is read by '{state.graph}', and no graph writes it"

    def _length_problems(self) -> Iterator[str]:
        for symbol, length in self.lengths.items():
            if symbol == BATCH_SYMBOL:
                yield "'lengths' has 'batch', whose range stands in 'batch'"
            elif not 0 <= length.min <= length.opt <= length.max <= MOST_ELEMENTS:
                said = f"{length.min}:{length.opt}:{length.max}"
                yield f"the lengths {said} of '{symbol[:60]}' are not in ascending order from 0 to {MOST_ELEMENTS}"

    def _capacity_problems(self, capacity: Capacity) -> Iterator[str]:
        symbol = capacity.symbol
        what = f"the capacity '{symbol[:60]}'"
        if [each.symbol for each in self.capacities].count(symbol) > 1:
            yield f"{what} is listed twice"
        if symbol not in self.lengths:
            yield f"{what} has no lengths in 'lengths'"
        elif self.lengths[symbol].min < 1 or not 1 <= capacity.multiple <= self.lengths[symbol].max:
            yield f"{what} begins with {self.lengths[symbol].min} slots in multiples of {capacity.multiple}"
        elif self.lengths[symbol].max % capacity.multiple:
            yield f"{what} ends at {self.lengths[symbol].max}, which is no multiple of {capacity.multiple}"
        if not any(symbol in state.shape for state in self.states):
            yield f"{what} is in no state's shape"
        if any(symbol in state.shape and state.capacity is not None for state in self.states):
            yield f"{what} is in a state that has a capacity of its own"
        if capacity.used is not None:
            counts = [state for state in self.states if state.key == capacity.used]
            if not counts:
                yield f"{what} names the state '{capacity.used[:120]}', which there is not"
            elif any((s.kind, s.dtype, s.shape) != ("length", "int64", (BATCH_SYMBOL,)) for s in counts):
                yield f"{what} counts by '{capacity.used}', which is no state of the kind 'length', int64 [batch]"
        for graph, count in capacity.adds.items():
            if graph not in self._by_name():
                yield f"{what} names the graph '{graph[:60]}', which there is not"
            if count != "tokens" and not (isinstance(count, int) and 0 <= count <= MOST_ELEMENTS):
                yield f"{what} has '{str(count)[:60]}' slots added by '{graph[:60]}'; it is a number, or \"tokens\""

    def _role_problems(self) -> Iterator[str]:
        """Of a bundle without a procedure: whether its graphs' roles say all about how they are run."""
        for graph in self.graphs:
            if graph.role in _ONLY_IN_TURN:
                yield f"graph '{graph.name}' has the role '{graph.role}', and no 'procedure' says when it is run"
        levels = [graph for graph in self.graphs if graph.role == "model"]
        for graph in levels[1:]:
            if len(levels) < len(self.graphs) or self.links or self._open_ends(graph) != self._open_ends(levels[0]):
                yield (
                    f"the graphs '{levels[0].name}' and '{graph.name}' both have the role 'model', so that a run takes "
                    "one of them, and they do not have the same inputs and outputs, are linked, or stand beside others"
                )

    def _open_ends(self, graph: Graph) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        """Inputs and outputs of a graph but its states."""
        mine = [state for state in self.states if state.graph == graph.name]
        read, written = {state.input for state in mine}, {state.output for state in mine}
        return (
            tuple(info for info in graph.inputs if info.name not in read),
            tuple(info for info in graph.outputs if info.name not in written),
        )

    def _procedure_problems(self, procedure: Procedure) -> Iterator[str]:
        graphs, inputs = self._by_name(), self._tensors("inputs")
        named = [(f"'procedure.{name}'", part.graphs) for name, part in procedure.passes.items()]
        named += [("'procedure.media'", each.graphs) for each in procedure.media]
        named += [("'procedure.upkeep'", (each.graph,)) for each in procedure.upkeep]
        for what, names in named:
            if not names:
                yield f"{what} names no graph"
            for name in names:
                if name not in graphs:
                    yield f"{what} names the graph '{name[:60]}', which there is not; there are {', '.join(graphs)}"
        if any(name not in graphs for _, names in named for name in names):
            return
        for feed, what in procedure.feeds.items():
            if feed not in inputs:
                yield f"'procedure.feeds' names '{feed[:120]}', which is no input of a graph"
            elif what not in FEEDS:
                yield f"'procedure.feeds' gives '{feed}' '{what[:60]}'; there are {', '.join(FEEDS)}"
            elif inputs[feed].dtype not in ("int64", "int32"):
                yield f"'procedure.feeds' gives '{feed}' '{what}', which are int64 or int32; it is {inputs[feed].dtype}"
        symbols = [capacity.symbol for capacity in self.capacities]
        if procedure.position not in (SEEN, KEPT, *symbols):
            allowed = ", ".join((SEEN, KEPT, *symbols))
            yield f"'procedure.position' is '{procedure.position[:60]}'; there are {allowed}"
        if procedure.position == KEPT and "positions" in procedure.feeds.values():
            yield "'procedure.position' is 'kept', and 'procedure.feeds' has positions made"
        for name, part in procedure.passes.items():
            roles = ("score", *_READERS) if name == "score" else _READERS
            yield from self._pass_problems(f"'procedure.{name}'", part, roles, procedure)
        if procedure.step.rows == "next" or procedure.prompt.rows == "next":
            yield "'procedure.step' and 'procedure.prompt' give logits, and \"next\" is for 'procedure.score' alone"
        yield from self._upkeep_problems(procedure)
        for each in procedure.media:
            yield from self._turn_problems("'procedure.media'", each.graphs, ("vision", "audio", "text"))
        yield from _placeholder_problems(procedure)
        idle = [graph for graph in self.graphs if not any(graph.name in names for _, names in named)]
        for graph in idle:
            yield f"graph '{graph.name}' has the role '{graph.role}', and no part of 'procedure' runs it"

    def _pass_problems(self, what: str, part: Pass, roles: Sequence[str], procedure: Procedure) -> Iterator[str]:
        if isinstance(part.tokens, str) and part.tokens not in self.lengths:
            yield f"{what} reads '{part.tokens[:60]}' tokens, whose lengths are not in 'lengths'"
            return
        low, high = range_of(part, self.lengths)
        if not 1 <= low <= high <= MOST_ELEMENTS:
            yield f"{what} reads {low} to {high} tokens in a run; it is 1 or more"
        if part is procedure.step and not low <= 1 <= high:
            yield f"{what} reads {low} to {high} tokens in a run; a step reads 1"
        yield from self._turn_problems(what, part.graphs, roles, procedure.feeds)
        fed = [name for name, kind in procedure.feeds.items() if _graph(name) in part.graphs and kind == "tokens"]
        if not fed:
            yield f"{what} is given no tokens by 'procedure.feeds'"
        inputs, outputs = self._tensors("inputs"), self._tensors("outputs")
        for name, kind in procedure.feeds.items():
            if _graph(name) in part.graphs and name in inputs:
                wanted = 1 if kind in ("count", "seen") else 2
                if len(inputs[name].shape) != wanted:
                    yield f"'procedure.feeds' gives '{name}' '{kind}', of {wanted} axes; it has {inputs[name].shape}"
                elif wanted == 2 and not _holds(inputs[name].shape[1], part.tokens):
                    yield f"{what} reads {part.tokens} tokens in a run, and '{name}' takes {inputs[name].shape[1]}"
        if part.rows not in ROWS:
            yield f"{what} gives the rows '{part.rows[:60]}'; there are {', '.join(ROWS)}"
        elif part.logits is None:
            yield f"{what} names no logits"
        elif part.logits not in outputs or _graph(part.logits) not in part.graphs:
            yield f"{what} names the logits '{part.logits[:120]}', which is no output of its graphs"
        elif len(outputs[part.logits].shape) != {"last": 2, "all": 3, "next": 2}[part.rows]:
            shape = list(outputs[part.logits].shape)
            yield f"{what} gives the rows \"{part.rows}\" of '{part.logits}', which has the shape {shape}"

    def _upkeep_problems(self, procedure: Procedure) -> Iterator[str]:
        symbols = [capacity.symbol for capacity in self.capacities]
        for each in procedure.upkeep:
            what = f"'procedure.upkeep' of '{each.graph[:60]}'"
            given = {name for name, kind in procedure.feeds.items() if kind == "seen"}
            yield from self._turn_problems(what, (each.graph,), ("flush", "compact"), given)
            if each.after not in MOMENTS:
                yield f"{what} is due after '{each.after[:60]}'; there are {', '.join(MOMENTS)}"
            if (each.capacity is None) != (each.at_least is None):
                yield f"{what} has one of 'capacity' and 'at_least'; it has both, or neither"
            elif each.capacity is not None and each.capacity not in symbols:
                yield f"{what} names the capacity '{each.capacity[:60]}', which there is not"
            elif each.at_least is not None and each.at_least < 1:
                yield f"{what} is due from {each.at_least} slots on; it is 1 or more"

    def _turn_problems(
        self, what: str, names: Sequence[str], roles: Sequence[str], given: Collection[str] | None = None
    ) -> Iterator[str]:
        """Whether these graphs have a role that is theirs in a turn, and every input is given in it.

        With None the caller of the runtime gives what is neither linked nor a state.
        """
        order, graphs = [graph.name for graph in self.graphs], self._by_name()
        if [order.index(name) for name in names] != sorted({order.index(name) for name in names}):
            yield f"{what} names its graphs in another order than 'graphs', or twice"
        linked = {link.to: link.source for link in self.links}
        held = {f"{state.graph}.{state.input}" for state in self.states}
        for name in names:
            if graphs[name].role not in roles:
                yield f"{what} names '{name}', which has the role '{graphs[name].role}'; it is {' or '.join(roles)}"
            for info in graphs[name].inputs:
                whole = f"{name}.{info.name}"
                by_link = whole in linked and _graph(linked[whole]) in names
                if given is not None and not (by_link or whole in held or whole in given):
                    yield f"{what} runs '{name}', and nothing gives it its input '{info.name}'"


def _placeholder_problems(procedure: Procedure) -> Iterator[str]:
    """What is wrong with the tokens that stand in a prompt for what media find."""
    tokens = Counter(each.token for each in procedure.media if each.token is not None)
    for each in procedure.media:
        if (each.token is None) != (each.rows is None):
            yield "'procedure.media' has one of 'token' and 'rows'; it has both, or neither"
        elif each.token is None or each.rows is None:
            continue
        elif not 0 <= each.token <= MOST_ELEMENTS or not 1 <= each.rows <= MOST_ELEMENTS:
            yield f"'procedure.media' has the token {each.token} stand for each of {each.rows} rows"
        elif tokens[each.token] > 1:
            yield f"'procedure.media' has the token {each.token} stand for more than one of the media"
    fed = [feed for feed, what in procedure.feeds.items() if what == "rows"]
    if fed and not tokens:
        yield f"'procedure.feeds' gives '{fed[0][:120]}' 'rows', and no token of 'procedure.media' stands for one"


def _graph(tensor: str) -> str:
    """The graph of `graph.tensor`."""
    return tensor.partition(".")[0]


def _holds(axis: Dim, tokens: Dim) -> bool:
    """Whether an axis can have the length of a pass; a symbol is checked by its range elsewhere."""
    return axis == tokens or isinstance(axis, str) and isinstance(tokens, int)
