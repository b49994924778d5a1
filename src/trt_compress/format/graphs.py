"""Graphs, the tensors between them, and the tensors that outlive a run: what a host declares and the manifest says."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from trt_compress.format.record import Record, one_of

Dim = int | str
"""The length of an axis: a number, or a symbol such as "batch" that means the same number in the whole bundle."""

BATCH_SYMBOL = "batch"
"""The symbol of the axis of samples, or of the sequences that run side by side."""

DTYPES = frozenset(
    "bool int4 uint4 int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64 float4_e2m1 "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0 complex64 complex128".split()
)
"""What a tensor may be; numpy does not have all of them, and a session refuses those that it lacks."""

ROLES: Mapping[str, str] = {
    "model": "the whole model in one run; several graphs of this role are keep levels, of which each run takes one",
    "encode": "the first half of a codec: a signal becomes codes",
    "decode": "the second half of a codec: codes become a signal",
    "vision": "pictures or frames become features",
    "audio": "sound becomes features",
    "text": "a text beside the sequence, such as a question, becomes features",
    "embed": "tokens, and features in their places, become embeddings",
    "prefill": "reads a whole prompt at once and fills the states",
    "step": "reads the next tokens of a sequence, one or a chunk, and carries the states on",
    "flush": "packs what a state's tail holds into the state behind it; it has no weights",
    "compact": "moves the entries that are kept to the front of a state; it has no weights",
    "score": "says how probable each token of a text is",
    "head": "hidden states become logits",
}
"""What a graph may be for."""

STATE_KINDS: Mapping[str, str] = {
    "history": "anything else that a run needs of those before it",
    "cache": "one row for each token read: keys, values, or their packed codes",
    "scale": "what turns the codes of a cache into numbers: steps, least values, tables, low-rank parts, outliers",
    "tail": "the newest rows of a cache, which are not packed yet",
    "length": "how many slots of a capacity each sequence uses",
    "position": "the position of each sequence's next token",
    "index": "slots or tokens that were chosen",
    "score": "what selects entries: accumulated attention, probe rows",
    "features": "what an encoder found, for the graphs that read it",
}
"""What a state may hold. All but "history" belong to a sequence that is read token by token."""

COMPARISONS: Mapping[str, str] = {
    "close": "within the tolerance of the precision",
    "equal": "the same values",
    "codes": "packed codes, at most one step apart where they differ",
}
"""How verification compares a state."""

MOST_AXES = 8  # of TensorRT
MOST_ELEMENTS = 2**31 - 1  # of one tensor, likewise
LARGEST_BATCH = 65535  # blocks in the y and z axes of a CUDA grid
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Range(Record):
    """The lengths of an axis: the smallest, the usual one, and the largest."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo(Record):
    """One input or output of a graph; `dtype` is numpy's name for it ("float32")."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph(Record):
    """One ONNX file.

    Attributes:
        role: What it is for, one of `ROLES`.
    """

    name: str
    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    role: str = field(default="model", metadata=one_of(*ROLES))
    external_data: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Link(Record):
    """An output that feeds an input of a later graph, both as `graph.tensor`."""

    source: str = field(metadata={"json": "from"})
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec(Record):
    """A tensor that outlives a run of a graph: what leaves as `output` is there as `input` when it is next needed.

    Three kinds of axes: a number, or a symbol that an input of the run has, is as long in every run. The symbol of a
    `Capacity` is as long as whoever runs the bundle has chosen, alike in `input` and `output`; the first slots are in
    use. Any other symbol grows by what each run adds to it, from 0 in the first run.

    Attributes:
        input: Where the graph takes it; None: it only writes it.
        output: Where the graph gives it anew; None: it only reads it.
        initial: What it holds before the first run: "zeros", {"fill": number}, or in a manifest {"file": "name.npy"}.
        capacity: The longest that a growing axis may get.
        name: Graphs that name a state alike carry on the same tensor; None: it belongs to its graph alone, which then
            reads and writes it.
        kind: What it holds, one of `STATE_KINDS`.
        layer: The layer that it belongs to, from 0; None: to none, or to several.
        compare: How verification compares it, one of `COMPARISONS`; None: floats "close", the rest "equal".
        bits: Of one of the codes packed in a byte, which are compared one by one: 8, 4, 2 or 1; where `compare` is
            "codes".
        alias: The graph allows that `output` takes the memory of `input`: nothing reads the old value after it.
    """

    input: str | None = None
    output: str | None = None
    shape: tuple[Dim, ...]
    dtype: str = "float32"
    initial: str | dict[str, Any] = "zeros"
    capacity: int | None = None
    name: str | None = None
    kind: str = field(default="history", metadata=one_of(*STATE_KINDS))
    layer: int | None = None
    compare: str | None = field(default=None, metadata=one_of(*COMPARISONS, None))
    bits: int | None = None
    alias: bool = False

    @property
    def comparison(self) -> str:
        """How verification compares it, said or not: one of `COMPARISONS`."""
        return self.compare or ("close" if "float" in self.dtype else "equal")

    @property
    def port(self) -> str:
        """What the graph calls it: its input, or its output where there is no input."""
        return self.input or self.output or ""

    @property
    def carried(self) -> tuple[str, str] | None:
        """Its input and its output, if the graph has both."""
        return None if self.input is None or self.output is None else (self.input, self.output)

    def of(self, graph: str) -> "State":
        """The same, as a state of this graph."""
        return State(graph=graph, **{item.name: getattr(self, item.name) for item in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class State(StateSpec):
    """A state of one graph of the bundle."""

    graph: str

    @property
    def key(self) -> str:
        """What identifies the tensor: the shared name, or `graph.input`, which no name can be."""
        return self.name or f"{self.graph}.{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity(Record):
    """A symbol in the shapes of states whose length is chosen by whoever runs the bundle, within `Manifest.lengths`.

    It starts at the smallest length and is doubled, rounded up to `multiple`, when a run needs more, up to the limit
    that was asked for, at most the largest length. A longer buffer holds what the shorter one held, and the initial
    value behind it. A state that is a ring has no capacity: a ring of another length is another ring.

    Attributes:
        symbol: The symbol.
        used: The state [batch] of kind "length", by its key, that says how many slots each sequence uses; None: as
            many as it has read tokens.
        adds: By graph, the most slots that one run may add to a sequence: a number, or "tokens" for as many as it
            reads. A graph that is not listed adds none.
        multiple: What each length is a multiple of.
    """

    symbol: str
    used: str | None = None
    adds: dict[str, int | str] = field(default_factory=dict)
    multiple: int = 1

    def needed(self, graphs: tuple[str, ...], used: int, tokens: int) -> int:
        """Slots that have to be there before these graphs run.

        Args:
            graphs: The graphs of one run.
            used: Slots that the fullest sequence uses.
            tokens: Tokens that the run reads for each sequence.
        """
        added = (self.adds.get(graph, 0) for graph in graphs)
        return used + sum(tokens if isinstance(count, str) else count for count in added)


def name_problem(name: str) -> bool:
    """Whether something cannot be a name: it is empty, too long, or cannot be printed."""
    return not name or len(name) > _LONGEST_NAME or not name.isprintable()


def tensor_problems(what: str, dtype: str, shape: tuple[Dim, ...]) -> Iterator[str]:
    """What is wrong with a tensor's dtype or shape."""
    if dtype not in DTYPES:
        yield f"{what} is of the dtype '{dtype[:60]}'; there are {', '.join(sorted(DTYPES))}"
    if len(shape) > MOST_AXES:
        yield f"{what} has {len(shape)} axes; there are at most {MOST_AXES}"
    if any(name_problem(dim) if isinstance(dim, str) else not 0 <= dim <= MOST_ELEMENTS for dim in shape):
        said = str(list(shape))[:200]
        yield f"{what} has the shape {said}; an axis is a name, or a number from 0 to {MOST_ELEMENTS}"
    elif math.prod(dim for dim in shape if isinstance(dim, int)) > MOST_ELEMENTS:
        yield f"{what} has the shape {list(shape)}; a tensor has at most {MOST_ELEMENTS} elements"


def graph_problems(graph: Graph) -> Iterator[str]:
    """What is wrong with one graph, whatever the others are."""
    if name_problem(graph.name) or "/" in graph.name or "\\" in graph.name:
        yield f"'{graph.name[:60]}' cannot be the name of a graph, as files are named after it"
    if graph.role not in ROLES:
        yield (
            f"graph '{graph.name[:60]}' has the role '{graph.role[:60]}', and this trt-compress knows "
            f"{', '.join(ROLES)}"
        )
    for infos in (graph.inputs, graph.outputs):
        for info in infos:
            if name_problem(info.name):
                yield f"graph '{graph.name}' has a tensor of the name '{info.name[:60]}', which cannot be one"
            yield from tensor_problems(f"'{graph.name}.{info.name}'", info.dtype, info.shape)
        for name, count in Counter(info.name for info in infos).items():
            if count > 1:
                yield f"graph '{graph.name}' has two tensors named '{name}'"


def state_problems(state: State) -> Iterator[str]:
    """What is wrong with one state, whatever the others are."""
    what = f"state '{state.key[:120]}'"
    yield from tensor_problems(what, state.dtype, state.shape)
    if state.capacity is not None and not 0 <= state.capacity <= MOST_ELEMENTS:
        yield f"{what} has the capacity {state.capacity}"
    if state.carried is None and state.name is None:
        yield f"{what} is read or written by the graph '{state.graph[:60]}' alone, and has no name for the others"
    if state.kind not in STATE_KINDS:
        yield f"{what} is of the kind '{state.kind[:60]}'; there are {', '.join(STATE_KINDS)}"
    if state.compare is not None and state.compare not in COMPARISONS:
        yield f"{what} has the comparison '{state.compare[:60]}'; there are {', '.join(COMPARISONS)}"
    if state.layer is not None and not 0 <= state.layer < 100_000:
        yield f"{what} is of the layer {state.layer}"
    if (state.bits is not None) != (state.compare == "codes"):
        yield f"{what} has {state.bits} bits, and its comparison is {state.compare}; codes have bits, and nothing else"
    elif state.bits not in (None, 8, 4, 2, 1):
        yield f"{what} has codes of {state.bits} bits; there are 8, 4, 2 and 1"
    if state.alias and state.carried is None:
        yield f"{what} may be updated in place, and the graph '{state.graph[:60]}' does not both read and write it"
