"""The memory of the states of B sequences: made when it is first needed, then cut, repeated and lengthened."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, ShapeError, UnsupportedError
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.runtime.backends.base import Buffer, carrier
from trt_compress.runtime.loaded import Loaded
from trt_compress.suggest import did_you_mean

Array = np.ndarray[Any, np.dtype[Any]]
Symbols = Mapping[str, int]


class SwapTurn:
    """Which of two memories is current, of all states that the same graphs swap: one number, as it is of all of them.

    What a step reads and writes beside its graphs has left the processor's caches meanwhile; so it is kept small.
    """

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0


class Value:
    """The value of one state: its memory, and which part of it is current."""

    __slots__ = ("dtype", "dims", "grows", "key", "make", "memory", "turn")

    def __init__(self, key: str, loaded: Loaded, turn: SwapTurn) -> None:
        spec = loaded.states[key]
        self.key = key
        self.dtype = spec.dtype
        self.dims = spec.shape
        self.grows = loaded.grows(key)
        self.make = next(graph.executable.buffer for graph in loaded.graphs.values() if key in graph.keys)
        self.memory: list[Buffer] = []
        self.turn = turn

    @property
    def current(self) -> Buffer:
        """Where the value is."""
        return self.memory[self.turn.now if len(self.memory) > 1 else 0]

    @property
    def bytes(self) -> int:
        """Of the value; 0 if it has no memory yet."""
        return bytes_of(self.current) if self.memory else 0

    def hold(self, content: Array) -> None:
        """Take a content, which is given away, in place of all memory that there is."""
        self.memory = [self.make(content, self.dtype)]

    def other(self) -> Buffer:
        """The memory that the next value goes to where it may not go into the current one."""
        if len(self.memory) == 1:
            empty = self.make(np.empty(self.current.shape, carrier(self.dtype)), self.dtype)
            self.memory = [empty, *self.memory] if self.turn.now else [*self.memory, empty]
        return self.memory[1 - self.turn.now]


class Memory:
    """The memory of all states of B sequences.

    Attributes:
        batch: B, if the caller has said it.
        limits: The most that each axis may get whose length the caller may choose; None: any.
        values: By key.
        lengths: How long each axis is that has a symbol, as far as it is known.
    """

    def __init__(self, loaded: Loaded, batch: int | None, limits: Mapping[str, int | None]) -> None:
        self._loaded = loaded
        self.batch = batch
        self.limits = dict(limits)
        turns: dict[frozenset[str], SwapTurn] = {}
        self.values = {key: Value(key, loaded, turns.setdefault(loaded.swap(key), SwapTurn())) for key in loaded.states}
        self.lengths: dict[str, int] = {}
        self.forget()

    def forget(self) -> None:
        """Let go of all of it, and begin with the smallest capacities."""
        for value in self.values.values():
            value.memory = []
        self.lengths = {} if self.batch is None else {BATCH_SYMBOL: self.batch}
        for symbol in self._loaded.capacities:
            self.lengths[symbol] = self.room(symbol, self._loaded.ranges[symbol].min)

    def copy(self) -> "Memory":
        """The same content in memory of its own."""
        made = Memory(self._loaded, self.batch, self.limits)
        made.lengths = dict(self.lengths)
        for key, value in self.values.items():
            if value.grows:  # its memory is never written to again
                made.values[key].memory = list(value.memory)
            elif value.memory:
                made.values[key].hold(np.array(value.current.read()))
        return made

    def fit(self, keys: Collection[str], symbols: Symbols) -> list[Value]:
        """Check that states fit the inputs of a run, and make those that there are not yet; returns these.

        Raises:
            ConfigError: A length is not known.
            ShapeError: A state has another length. Nothing has changed.
        """
        mine = {key: value for key, value in self.values.items() if key in keys}
        shapes = {key: tuple(self._length(value, dim, symbols) for dim in value.dims) for key, value in mine.items()}
        new = [value for value in mine.values() if not value.memory]
        contents = self._initial({value.key: shapes[value.key] for value in new})
        for value in new:
            value.hold(contents[value.key])
        named = {dim for value in mine.values() for dim in value.dims if isinstance(dim, str)}
        self.lengths |= {dim: symbols[dim] for dim in named & symbols.keys()}
        return new

    def _initial(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """Initial values of these shapes, by key."""
        try:
            return {key: self._loaded.initials[key].value(shape) for key, shape in shapes.items()}
        except MemoryError:
            wanted = sum(math.prod(shape) * carrier(self.values[key].dtype).itemsize for key, shape in shapes.items())
            raise UnsupportedError(
                f"There is no memory for the states, which would take {wanted} bytes; run fewer sequences, or give a "
                "smaller capacity."
            ) from None

    def _length(self, value: Value, dim: int | str, symbols: Symbols) -> int:
        """How long an axis of a state has to be for these inputs."""
        if isinstance(dim, int):
            return dim
        held = self.lengths.get(dim)
        given = symbols.get(dim, held)
        if given is None:
            if dim not in self._loaded.growing:
                raise ConfigError(
                    f"Nothing says yet how long the state '{value.key}' is on '{dim}'; run a graph with an input that "
                    "does, or make the states with batch=…."
                )
            return 0
        if held is not None and given != held:
            said = f"the state '{value.key}' holds {held} from the run before; call reset() to start anew"
            if dim in self._loaded.capacities:
                said = f"the states have {held} slots on it; give an input as long as that"
            elif dim == BATCH_SYMBOL and self.batch is not None:
                said = f"the states are of {held} sequences; make others with batch={given}"
            raise ShapeError(f"This run has '{dim}' = {given}, and {said}.")
        return given

    def check_fits(self, value: Value, shape: tuple[int, ...], symbols: Symbols) -> None:
        """Refuse what a graph gave as the new value of a state if it has another shape, or is too long."""
        fits = len(shape) == len(value.dims)
        for dim, length in zip(value.dims, shape, strict=False):
            limit = self.limits.get(dim) if isinstance(dim, str) else None
            if dim not in self._loaded.growing:
                fits = fits and length == (symbols.get(dim, self.lengths.get(dim)) if isinstance(dim, str) else dim)
            elif limit is not None and length > limit:
                raise ShapeError(
                    f"This run would make the state '{value.key}' {length} long on '{dim}'; its capacity is {limit}. "
                    "Call reset(), or export with a larger capacity."
                )
        if not fits:
            raise ShapeError(
                f"The graph gave {value.dtype} of shape {list(shape)} for the state '{value.key}', which the manifest "
                f"has as {value.dtype} of shape {list(value.dims)}; export the bundle again."
            )

    def known_lengths(self) -> dict[str, int]:
        """What the memory that there is, and what the caller has chosen, say of the symbols."""
        known = {symbol: self.lengths[symbol] for symbol in self._loaded.capacities if symbol in self.lengths}
        if self.batch is not None:
            known[BATCH_SYMBOL] = self.batch
        for value in self.values.values():
            if value.memory:
                pairs = zip(value.dims, value.current.shape, strict=True)
                known |= {dim: n for dim, n in pairs if isinstance(dim, str) and dim not in self._loaded.growing}
        return known

    def known_batch(self) -> int:
        """B, where the sequences can be taken apart."""
        fixed = [key for key, value in self.values.items() if BATCH_SYMBOL not in value.dims]
        if len(fixed) == len(self.values):
            raise UnsupportedError(
                "The states of this bundle have no axis of sequences, as it was exported for a fixed batch; export it "
                "with a range of batches to take sequences apart."
            )
        if fixed:
            raise UnsupportedError(
                f"The state '{fixed[0]}' has no axis of sequences, so that it belongs to all of them together, and "
                "they cannot be taken apart."
            )
        if BATCH_SYMBOL not in self.lengths:
            raise ConfigError("These states have no batch yet; make them with batch=…, or run once.")
        return self.lengths[BATCH_SYMBOL]

    def take(self, rows: list[int]) -> None:
        """Have these sequences in place of those that there are."""
        if rows == list(range(self.known_batch())):
            return
        taken = {
            key: value.make(np.take(value.current.read(), rows, axis=value.dims.index(BATCH_SYMBOL)), value.dtype)
            for key, value in self.values.items()
            if value.memory
        }
        for key, buffer in taken.items():
            self.values[key].memory = [buffer]
        if self.batch is not None:
            self.batch = len(rows)
        self.lengths[BATCH_SYMBOL] = len(rows)

    def join(self, other: "Memory", order: list[int]) -> None:
        """Have another's sequences behind these, and then all of them in this order."""
        batch = self.known_batch() + other.known_batch()
        more = {symbol: length for symbol, length in self.lengths.items() if length > other.lengths.get(symbol, length)}
        other.lengthen({symbol: length for symbol, length in more.items() if symbol in self._loaded.capacities})
        joined = {}
        for key, value in self.values.items():
            if not value.memory:
                continue
            axis, mine = value.dims.index(BATCH_SYMBOL), value.current.read()
            shape = (*mine.shape[:axis], other.known_batch(), *mine.shape[axis + 1 :])
            theirs = other.values[key]
            held = theirs.current.read() if theirs.memory else self._loaded.initials[key].value(shape)
            joined[key] = np.take(np.concatenate([mine, held], axis=axis), order, axis=axis)
        for key, content in joined.items():
            self.values[key].hold(content)
        if self.batch is not None:
            self.batch = batch
        self.lengths[BATCH_SYMBOL] = batch

    def room(self, symbol: str, count: int) -> int:
        """The length that a capacity gets when `count` slots are needed."""
        capacity = self._loaded.capacities.get(symbol)
        if capacity is None:
            known = ", ".join(f"'{one}'" for one in self._loaded.capacities) or "none"
            raise ConfigError(f"The bundle has no capacity '{symbol}'; there is {known}.")
        limit = self.limits[symbol]
        assert limit is not None  # that of the bundle, if the caller gave none
        if count > limit:
            raise ShapeError(
                f"{count} slots are needed on '{symbol}', and these states may have {limit}; make them with a larger "
                f"capacity (the bundle allows {self._loaded.ranges[symbol].max}), or reset them."
            )
        length = self.lengths.get(symbol, count)
        while length < count:
            length *= 2
        return min(-(-length // capacity.multiple) * capacity.multiple, limit)

    def lengthen(self, lengths: Mapping[str, int]) -> None:
        """Give capacities more slots; what is in the first ones stays, and the initial value is behind it."""
        shapes = {}
        for key, value in self.values.items():
            if value.memory and not lengths.keys().isdisjoint(value.dims):
                pairs = zip(value.dims, value.current.shape, strict=True)
                shapes[key] = tuple(lengths.get(dim, n) if isinstance(dim, str) else n for dim, n in pairs)
        longer = self._initial(shapes)
        for key in list(longer):  # one by one, so that the old and the new are not all there at once
            value, content = self.values[key], longer.pop(key)
            before = value.current.read()
            content[tuple(map(slice, before.shape))] = before
            del before
            value.hold(content)
        self.lengths |= lengths


def limits_of(loaded: Loaded, capacity: int | Mapping[str, int] | None) -> dict[str, int | None]:
    """The most that each axis may get whose length the caller may choose."""
    most: dict[str, int | None] = {**{symbol: one.max for symbol, one in loaded.ranges.items()}, **loaded.growing}
    if capacity is None:
        return most
    if not most:
        raise ConfigError(f"capacity={capacity!r:.100}; the states of this bundle have a fixed size: leave it out.")
    lows = {symbol: loaded.ranges[symbol].min if symbol in loaded.ranges else 1 for symbol in most}
    if not isinstance(capacity, Mapping):
        check_count("capacity", capacity)
        highs = [high for high in most.values() if high is not None]
        if len(highs) == len(most) and capacity > max(highs) or capacity < min(lows.values()):
            raise _out_of_range(capacity, min(lows.values()), max(highs, default=None))
        limits = {symbol: max(low, min(capacity, most[symbol] or capacity)) for symbol, low in lows.items()}
        return {symbol: _rounded(loaded, symbol, limit) for symbol, limit in limits.items()}
    for symbol, count in capacity.items():
        if symbol not in most:
            near = did_you_mean(str(symbol), most)
            raise ConfigError(f"The bundle has no capacity '{symbol}'; there is {', '.join(most)}.{near}")
        check_count("capacity", count)
        low, high = lows[symbol], most[symbol]
        if count < low or high is not None and count > high:
            raise _out_of_range(count, low, high)
        most[symbol] = _rounded(loaded, symbol, count)
    return most


def _rounded(loaded: Loaded, symbol: str, limit: int) -> int:
    """A limit as a multiple of what the capacity's lengths are multiples of."""
    if symbol not in loaded.capacities:
        return limit
    multiple = loaded.capacities[symbol].multiple
    return min(-(-limit // multiple) * multiple, loaded.ranges[symbol].max)


def _out_of_range(count: int, low: int, high: int | None) -> ConfigError:
    allowed = f"from {low} to {high}" if high is not None else f"at least {low}"
    return ConfigError(f"capacity={count}; the bundle allows {allowed}: give that, or export it for longer sequences.")


def check_count(what: str, count: object) -> None:
    """Refuse what is no number of things."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"{what}={count!r:.50}; give a whole number of at least 1.")


def bytes_of(buffer: Buffer) -> int:
    """Bytes of a tensor."""
    return int(np.prod(buffer.shape, dtype=np.int64)) * carrier(buffer.dtype).itemsize
