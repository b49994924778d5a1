"""The states of B sequences on a session: caches, scales, histories, and what else a run leaves for the next.

Their memory is made when they are first needed and then stays where it is. A run reads it where it lies and writes the
new value there (in place), or into a second memory, and the two change places (swapped); nothing is copied. Only a
state that gets longer with each run has new memory each time.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.runtime.backends.base import Binding, Buffer
from trt_compress.runtime.loaded import HasLoaded, LoadedGraph, Update
from trt_compress.runtime.state_memory import Memory, SwapTurn, Symbols, Value, bytes_of, check_count, limits_of
from trt_compress.suggest import did_you_mean

if TYPE_CHECKING:
    from trt_compress.runtime.states_file import SavedStates

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateInfo:
    """One state as it is.

    Attributes:
        name: Its key: the name that graphs share, or `graph.input`.
        shape: None: no run has needed it yet.
        update: How a run gives it anew.
        bytes: Of its value.
        addresses: Where its memory begins, on the device: one, or two that change places.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    update: Update
    bytes: int
    addresses: tuple[int, ...]


_Undo = list[tuple[Value, list[Buffer]]]
_WRITTEN: list[Buffer] = []  # in place of memory that there was before: what is written in place cannot be taken back


@dataclass(slots=True)
class _Step:
    """What one graph does with the states, for inputs of one shape."""

    graph: LoadedGraph
    symbols: Symbols
    written: _Undo = field(default_factory=list)
    swapped: tuple[SwapTurn, ...] = ()
    turning: tuple[SwapTurn, ...] = ()  # of those that any graph swaps
    grown: list[Value] = field(default_factory=list)
    grown_inputs: list[tuple[str, Value]] = field(default_factory=list)
    bindings: dict[tuple[int, ...], Binding] = field(default_factory=dict)


class States:
    """All states of B sequences on a session, from their beginning on. Many may live on one session.

    Each run takes them up to the next step. They are for one thread at a time; threads that run at the same time have
    states of their own.

    Where a state is updated in place, a run that fails while it writes leaves nothing to go on with: they then have to
    be reset. In all other cases a run that fails leaves them as they were.
    """

    def __init__(
        self, session: HasLoaded, *, batch: int | None = None, capacity: int | Mapping[str, int] | None = None
    ) -> None:
        """Begin B sequences.

        Args:
            session: What will run them.
            batch: B; None: as many as the first run brings.
            capacity: The most slots that the sequences may get, which are doubled up to that as they are needed: one
                number, or one for each symbol in the shapes of states; None: as many as the bundle allows.

        Raises:
            ConfigError: A number is out of range, or the bundle has no such capacity.
        """
        self.session = session
        self._loaded = session.loaded
        if batch is not None:
            check_count("batch", batch)
            if self._loaded.states and not any(BATCH_SYMBOL in one.shape for one in self._loaded.states.values()):
                raise ConfigError(f"batch={batch}; the bundle was exported for a fixed batch: leave it out.")
        self._memory = Memory(self._loaded, batch, limits_of(self._loaded, capacity))
        self._every_key = frozenset(self._loaded.states)
        self._steps: dict[str, _Step] = {}
        self._broken = False
        self._carried: list[frozenset[str]] = []  # states of the runs that are going on
        self._carried_lock = threading.Lock()  # held for an instant, never while a graph runs
        self._loaded.made.add(self)

    @classmethod
    def load(cls, path: str | Path, session: HasLoaded, *, capacity: int | Mapping[str, int] | None = None) -> "States":
        """Read what `save` wrote.

        Args:
            path: The file.
            session: A session of the same bundle.
            capacity: As for new states.

        Raises:
            BundleError: The file cannot be read, or holds states of another bundle.
            ConfigError: It holds more slots than the capacity allows.
        """
        from trt_compress.runtime.states_file import read_states

        return cls.of(read_states(Path(path), session.loaded), session, path=path, capacity=capacity)

    @classmethod
    def of(
        cls,
        saved: "SavedStates",
        session: HasLoaded,
        *,
        path: str | Path,
        capacity: int | Mapping[str, int] | None = None,
    ) -> "States":
        """As `load`, of what was read of the file at `path`."""
        made = cls(session, capacity=capacity)
        lengths = saved.lengths
        for symbol, limit in made._memory.limits.items():
            if limit is not None and lengths.get(symbol, 0) > limit:
                raise ConfigError(
                    f"'{path}' holds {lengths[symbol]} slots on '{symbol}', and the capacity is {limit}; load it with "
                    f"capacity={lengths[symbol]} or more."
                )
        for key, content in saved.contents.items():
            made._memory.values[key].hold(content)
        made._memory.lengths = {name: length for name, length in lengths.items() if name not in made._loaded.growing}
        return made

    def __repr__(self) -> str:
        if not self._loaded.graphs:
            return "<States of a closed session>"
        batch = "no" if self.batch is None else str(self.batch)
        return f"<States of {self._loaded.bundle.manifest.name}: {batch} sequences, {self.bytes} bytes>"

    @property
    def batch(self) -> int | None:
        """Number of sequences; None: no run has said it yet, or the bundle has it in its shapes."""
        return self._memory.lengths.get(BATCH_SYMBOL)

    @property
    def lengths(self) -> dict[str, int]:
        """How long each axis is that has a symbol, as far as it is known: the batch, the slots of capacities."""
        return dict(self._memory.lengths)

    @property
    def bytes(self) -> int:
        """Bytes of the values."""
        return sum(info.bytes for info in self.infos())

    @property
    def allocated_bytes(self) -> int:
        """Bytes of their memory, with that which swapped states change places with."""
        return sum(bytes_of(one) for value in self._memory.values.values() for one in value.memory)

    def infos(self) -> tuple[StateInfo, ...]:
        """Every state as it is: dtype, shape, how it is updated, and where its memory is."""
        found = []
        for key, value in self._memory.values.items():
            memory = value.memory
            found.append(
                StateInfo(
                    name=key,
                    dtype=value.dtype,
                    shape=value.current.shape if memory else None,
                    update=self._loaded.update(key),
                    bytes=value.bytes,
                    addresses=tuple(one.address for one in memory),
                )
            )
        return tuple(found)

    def value(self, name: str) -> Array | None:
        """A copy of a state, or None: no run has needed it yet. Of a dtype that numpy lacks the bits, as integers.

        Raises:
            ConfigError: There is no such state, or another thread is using it.
        """
        if name not in self._memory.values:
            near = did_you_mean(name, self._memory.values)
            raise ConfigError(
                f"There is no state '{name}'; there are {', '.join(self._memory.values) or 'none'}.{near}"
            )
        with self._alone():
            value = self._memory.values[name]
            return np.array(value.current.read()) if value.memory else None

    def reset(self) -> None:
        """Begin anew: the next run starts from the initial values, with any batch, and the smallest capacity.

        Raises:
            ConfigError: Another thread is using them.
        """
        with self._alone(broken=True):
            self._steps.clear()
            self._memory.forget()
            self._broken = False

    def fork(self) -> "States":
        """The same sequences a second time, from where they are; what is run on the one does not change the other.

        Raises:
            ConfigError: Another thread is using them.
        """
        with self._alone():
            made = States(self.session)
            made._memory = self._memory.copy()
            return made

    def repeat(self, count: int) -> None:
        """Have every sequence `count` times, one behind the other: B becomes `count * B`, sequence b becomes those from
        `count * b` on.

        Raises:
            ConfigError: The count is below 1, the batch is not known yet, or another thread is using them.
            UnsupportedError: The bundle has a fixed batch, or a state belongs to all sequences together.
        """
        check_count("count", count)
        with self._alone():
            rows = [row for row in range(self._memory.known_batch()) for _ in range(count)]
            self._take(rows)

    def keep(self, rows: Iterable[int]) -> None:
        """Keep these sequences, in this order, and let go of the others; one may be there several times.

        Args:
            rows: Their numbers, from 0.

        Raises:
            ConfigError: One is not there, none is given, the batch is not known yet, or another thread is using them.
            UnsupportedError: The bundle has a fixed batch, or a state belongs to all sequences together.
        """
        with self._alone():
            batch, numbers = self._memory.known_batch(), list(rows)
            for row in numbers:
                if isinstance(row, bool | np.bool) or not isinstance(row, int | np.integer) or not 0 <= row < batch:
                    raise ConfigError(f"rows={numbers!r:.200} names {row!r:.50}; the sequences are 0 to {batch - 1}.")
            if not numbers:
                raise ConfigError("rows=[] keeps no sequence; give at least one, or reset().")
            self._take([int(row) for row in numbers])

    def join(self, other: "States", order: Iterable[int]) -> None:
        """Take another's sequences in, which is of no further use.

        Args:
            other: Of the same session.
            order: All numbers from 0, in the order in which the sequences then are: first count these, behind them
                the other's.

        Raises:
            ConfigError: Another thread is using one of them, or they have to be reset.
            UnsupportedError: The bundle has a fixed batch, or a state belongs to all sequences together.
        """
        with self._alone(), other._alone():
            self._steps.clear()
            self._memory.join(other._memory, list(order))

    @property
    def limits(self) -> dict[str, int | None]:
        """The most slots of each capacity."""
        return dict(self._memory.limits)

    def reserve(self, slots: Mapping[str, int]) -> None:
        """Have room for that many slots: a capacity that has less is doubled until it suffices, up to its limit.

        Args:
            slots: By the symbol of the capacity.

        Raises:
            ConfigError: There is no such capacity, or another thread is using the states.
            ShapeError: It would be above the limit. Nothing has changed.
        """
        memory = self._memory
        if all(memory.lengths.get(symbol, -1) >= count for symbol, count in slots.items()):
            return
        with self._alone():
            wanted = {symbol: memory.room(symbol, count) for symbol, count in slots.items()}
            self._steps.clear()
            memory.lengthen({symbol: length for symbol, length in wanted.items() if length > memory.lengths[symbol]})

    def save(self, path: str | Path, *, beside: Mapping[str, Array] | None = None) -> None:
        """Write the states to a file, as a whole or not at all.

        Args:
            path: The file.
            beside: What else it is to hold, by name; `load` passes it over.

        Raises:
            ConfigError: Another thread is using them.
            OSError: The file cannot be written.
        """
        from trt_compress.runtime.states_file import SavedStates, write_states

        with self._alone():
            contents = {key: value.current.read() for key, value in self._memory.values.items() if value.memory}
            write_states(Path(path), self._loaded, SavedStates(self._memory.lengths, contents, beside or {}))

    # ---- runs -------------------------------------------------------------------------------------------------------

    def run(self, graph: LoadedGraph, symbols: Symbols, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a graph, for the session.

        Args:
            graph: The graph.
            symbols: What each symbol of the inputs stands for; the same object for inputs of the same shapes.
            inputs: Those that are no states, checked.

        Returns:
            Its outputs that are no states.

        Raises:
            ConfigError: Another thread is using the states, or they have to be reset.
            ShapeError: A state would not fit.
            UnsupportedError: The backend failed.
        """
        undo: _Undo = []
        turned: list[SwapTurn] = []
        self._claim(graph.keys)
        try:
            return self._run(graph, symbols, inputs, undo, turned)
        except BaseException:
            self._take_back(undo, turned)
            raise
        finally:
            self._give_back(graph.keys)

    def run_all(
        self,
        graphs: Iterable[LoadedGraph],
        symbols: Symbols,
        feed: Callable[[LoadedGraph], Mapping[str, Array]],
        took: Callable[[LoadedGraph, Mapping[str, Array]], None],
    ) -> None:
        """Run graphs in order, as `run`: the states of all of them go on, or none does.

        Args:
            graphs: The graphs.
            symbols: As for `run`, of the inputs of all of them.
            feed: The inputs of a graph.
            took: Is given its outputs.
        """
        undo: _Undo = []
        turned: list[SwapTurn] = []
        self._claim(self._every_key)
        try:
            for graph in graphs:
                took(graph, self._run(graph, symbols, feed(graph), undo, turned))
        except BaseException:
            self._take_back(undo, turned)
            raise
        finally:
            self._give_back(self._every_key)

    def in_run(self, name: str) -> Array | None:
        """A state as `took` finds it, in the midst of `run_all`: its memory itself, not to be kept."""
        value = self._memory.values[name]
        return value.current.read() if value.memory else None

    @property
    def is_broken(self) -> bool:
        """Whether a run failed while it wrote in place, so that they have to be reset."""
        return self._broken

    def _take_back(self, undo: _Undo, turned: list[SwapTurn]) -> None:
        """Have the states as they were before a run that failed, where that can be."""
        new = {id(value) for value, before in undo if not before and before is not _WRITTEN}
        self._broken = self._broken or any(before is _WRITTEN and id(value) not in new for value, before in undo)
        for turn in turned:
            turn.now = 1 - turn.now
        for value, memory in reversed(undo):
            if memory is not _WRITTEN:
                value.memory = memory
        self._steps.clear()
        self._memory.lengths = self._memory.known_lengths()

    def _run(
        self, graph: LoadedGraph, symbols: Symbols, given: Mapping[str, Array], undo: _Undo, turned: list[SwapTurn]
    ) -> dict[str, Array]:
        step = self._steps.get(graph.name)
        if step is None or step.symbols is not symbols:
            step = self._prepare(graph, symbols, undo)
        turns = tuple([turn.now for turn in step.turning])
        binding = step.bindings.get(turns)
        if binding is None:
            binding = step.bindings[turns] = self._bind(step)
        held = {name: value.current for name, value in step.grown_inputs}
        undo += step.written
        try:
            outputs, made = binding.run(given, held)
        except UnsupportedError:
            self._find_misfit(step, given)
            raise
        for turn in step.swapped:
            turn.now = 1 - turn.now
            turned.append(turn)
        for value, buffer in zip(step.grown, made, strict=True):
            self._memory.check_fits(value, buffer.shape, symbols)
            undo.append((value, value.memory))
            value.memory = [buffer]
        return outputs

    def _prepare(self, graph: LoadedGraph, symbols: Symbols, undo: _Undo) -> _Step:
        """Check that the states fit these inputs, and make those that there are not yet."""
        undo += [(value, []) for value in self._memory.fit(graph.keys, symbols)]
        step, values, swapped = _Step(graph, symbols), self._memory.values, []
        for output, key in graph.writes.items():
            value = values[key]
            if output in graph.executable.in_place:
                step.written.append((value, _WRITTEN))
            elif value.grows:
                step.grown.append(value)
            else:
                swapped.append(value.turn)
        step.swapped = tuple(dict.fromkeys(swapped))
        turning = [values[key].turn for key in graph.keys if self._loaded.update(key) == "swapped"]
        step.turning = tuple(dict.fromkeys(turning))
        step.grown_inputs = [(name, values[key]) for name, key in graph.reads.items() if values[key].grows]
        before = self._steps.get(graph.name)
        if before is not None:  # the memory is the same: whatever changes it forgets all steps
            step.bindings = before.bindings
        self._steps[graph.name] = step
        return step

    def _bind(self, step: _Step) -> Binding:
        graph, values = step.graph, self._memory.values
        reads = {name: values[key].current for name, key in graph.reads.items() if not values[key].grows}
        writes, makes = {}, []
        for output, key in graph.writes.items():
            if values[key].grows:
                makes.append(output)
            elif output in graph.executable.in_place:
                writes[output] = values[key].current
            else:
                writes[output] = values[key].other()
        return graph.executable.bind(reads, writes, makes)

    def _find_misfit(self, step: _Step, given: Mapping[str, Array]) -> None:
        """Say which state a graph gave another shape, if it failed because the memory for it has its own."""
        if step.written or not step.swapped:
            return
        reads = {name: self._memory.values[key].current.read() for name, key in step.graph.reads.items()}
        try:
            found = step.graph.executable.run({**given, **reads})
        except UnsupportedError:
            return
        for output, key in step.graph.writes.items():
            self._memory.check_fits(self._memory.values[key], found[output].shape, step.symbols)

    def let_go(self) -> None:
        """Let go of all memory, and of the graphs, as the session was closed."""
        self._steps.clear()
        self._memory.forget()

    def _take(self, rows: list[int]) -> None:
        self._steps.clear()
        self._memory.take(rows)

    # ---- threads ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self, *, broken: bool = False) -> Iterator[None]:
        self._claim(self._every_key, broken=broken)
        try:
            if not self._loaded.graphs:
                raise ConfigError("The session of these states is closed; open the bundle again.")
            yield
        finally:
            self._give_back(self._every_key)

    def _claim(self, keys: frozenset[str], *, broken: bool = False) -> None:
        """Have states for oneself; whoever else needs one of them meanwhile is refused, and waits for nothing."""
        with self._carried_lock:
            for carried in self._carried:
                if not keys.isdisjoint(carried):
                    raise ConfigError(
                        f"Another thread is using these states ({_some(keys)}), which hold the history of one caller; "
                        "give each thread states of its own, by session.new_states()."
                    )
            if self._broken and not broken:
                raise ConfigError(
                    "A run failed while it was writing these states in place, so that nothing is known of them; "
                    "reset() them."
                )
            self._carried.append(keys)

    def _give_back(self, keys: frozenset[str]) -> None:
        with self._carried_lock:
            self._carried.remove(keys)


def _some(names: frozenset[str]) -> str:
    first, *rest = sorted(names)
    return f"'{first}' and {len(rest)} more" if rest else f"'{first}'"
