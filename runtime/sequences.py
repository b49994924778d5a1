"""Sequences of tokens that a bundle reads by its procedure: `trt_compress.format.procedure` says what happens when.

This is that text for a session: it makes what the graphs are fed, has room for their states, runs them in turn and
keeps their states up. What the logits are used for is not its matter.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import BundleError, ConfigError, UnsupportedError
from trt_compress.format.graphs import BATCH_SYMBOL, Capacity
from trt_compress.format.manifest import Manifest
from trt_compress.format.procedure import KEPT, SEEN, Pass, Procedure, Run, keep_up, rows_of, runs_of
from trt_compress.runtime.inputs import InputCheck
from trt_compress.runtime.loaded import LoadedGraph
from trt_compress.runtime.session import Session
from trt_compress.runtime.states import States
from trt_compress.suggest import not_known

Array = np.ndarray[Any, np.dtype[Any]]
_SEEN, _ATTENDED = "seen", "attended"  # beside saved states
_NONE = np.zeros(0, np.int64)


class _NoNumbers(Exception):
    """A run gave NaN, as has the cache of a layer."""

    def __init__(self, layer: int) -> None:
        super().__init__(layer)
        self.layer = layer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """What is the same each time that some graphs run one after the other.

    Attributes:
        check: Of the inputs that come from outside.
        sources: For each graph its inputs, and whose value each gets: `graph.tensor`.
        made: The inputs that the procedure makes, what each is, and its dtype.
    """

    check: InputCheck
    sources: dict[str, tuple[tuple[str, str], ...]]
    made: tuple[tuple[str, str, str], ...]


class Sequences:
    """B sequences that are read side by side, from their beginning on. Many may live on one session.

    Attributes:
        session: What runs them.
        states: Their states; to keep or to repeat some of them, use `keep` here.
        upkeeps: How often a graph was run for upkeep.
    """

    def __init__(self, session: Session, *, batch: int = 1, capacity: int | Mapping[str, int] | None = None) -> None:
        """Begin B sequences.

        Args:
            session: Of a bundle with a procedure, with the graphs that reading or scoring takes (`graphs_for`).
            batch: B.
            capacity: The most slots that the states may get; see `States`.

        Raises:
            ConfigError: The bundle has no procedure, a graph of it is not loaded, or a number is out of range.
        """
        manifest = session.bundle.manifest
        if manifest.procedure is None:
            raise ConfigError(
                f"'{session.bundle.path}' has no procedure by which it would read tokens; run it with Session.run."
            )
        self.session = session
        self._missing = {what: self._not_loaded(what) for what in ("read", "score")}
        if all(self._missing.values()):
            self._require("read")
        fixed = manifest.fixed_batch
        if fixed not in (None, batch):
            raise ConfigError(
                f"batch={batch}; '{session.bundle.path}' was exported for a fixed batch: begin {fixed} sequences."
            )
        self.states: States = session.new_states(batch=batch if fixed is None else None, capacity=capacity)
        self._procedure: Procedure = manifest.procedure
        self._manifest = manifest
        self._links = {link.to: link.source for link in manifest.links}
        self._seen = np.zeros(batch, np.int64)
        self._attended = False
        self.upkeeps = 0
        self._turns: dict[tuple[str, ...], _Turn] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        session: Session,
        *,
        capacity: int | Mapping[str, int] | None = None,
        beside: dict[str, Array] | None = None,
    ) -> "Sequences":
        """Read what `save` wrote, to go on from there.

        Args:
            path: The file.
            session: A session of the same bundle, as for new sequences.
            capacity: As for new sequences.
            beside: Is given, by the names that it has, what else the file holds.

        Raises:
            BundleError: The file cannot be read, holds states of another bundle, or not what sequences have read.
            ConfigError: It holds more slots than the capacity allows, and as for new sequences.
        """
        from trt_compress.runtime.states_file import read_states

        saved = read_states(Path(path), session.loaded, (_SEEN, _ATTENDED, *(beside or ())))
        seen, attended = (saved.beside.get(name) for name in (_SEEN, _ATTENDED))
        if seen is None or attended is None:
            raise BundleError(
                f"'{path}' holds states, and not how many tokens their sequences have read; load it with "
                "Session.load_states, or save sequences."
            )
        batch = saved.lengths.get(BATCH_SYMBOL)
        typed = seen.dtype == np.int64 and seen.ndim == 1 and attended.dtype == np.bool_ and attended.ndim == 0
        if not typed or batch not in (None, len(seen)) or not ((seen >= 0) & (seen < 2**31)).all() or not len(seen):
            raise BundleError(f"'{path}' does not say how many tokens its sequences have read; save them again.")
        made = cls(session, batch=len(seen), capacity=capacity)
        made.states = States.of(saved, session, path=path, capacity=capacity)
        made._seen, made._attended = np.array(seen), bool(attended)
        if beside is not None:
            beside.update({name: saved.beside[name] for name in beside if name in saved.beside})
        return made

    def _not_loaded(self, what: str) -> list[str]:
        needed = graphs_for(self.session.bundle.manifest, read=what == "read", score=what == "score")
        return [name for name in needed if name not in self.session.graphs]

    def _require(self, what: str) -> None:
        """Refuse to read, or to score, without the graphs for it."""
        if missing := self._missing[what]:
            raise ConfigError(f"The procedure runs the graph '{missing[0]}', which is not loaded; open it, too.")

    @property
    def seen(self) -> tuple[int, ...]:
        """Tokens that each sequence has read."""
        return tuple(self._seen.tolist())

    def attend(self, inputs: Mapping[str, Array]) -> None:
        """Run what stands before the prompt: pictures, sound, a question.

        Args:
            inputs: By `graph.tensor`, in the dtype and shape that the graphs take.

        Raises:
            ConfigError: Tokens were read already, or an input is missing or unknown.
            ShapeError, UnsupportedError: As `Session.run`.
        """
        if self._seen.any():
            raise ConfigError("What stands beside the tokens is read before them; begin new sequences.")
        taken = {f"{name}.{tensor}" for media in self._procedure.media for name in media.graphs
                 for tensor in self.session.inputs_of(name)}  # fmt: skip
        if unknown := [name for name in inputs if name not in taken]:
            raise ConfigError(not_known("input", unknown[0], sorted(taken)))
        for media in self._procedure.media:
            self._turn(media.graphs, {name: value for name, value in inputs.items() if _graph(name) in media.graphs})
        self._attended = True

    def read(
        self, prompts: Sequence[Array], *, between: Callable[[int], None] | None = None, goes_on: bool = False
    ) -> Array:
        """Read tokens that are known.

        Args:
            prompts: For each sequence its tokens, integers [N]; N may differ where the bundle can tell filling apart.
            between: Is called before each run with the number of tokens that were read; what it raises ends the
                reading there.
            goes_on: They are parts of prompts, and not the last ones: what is due behind a prompt is not yet.

        Returns:
            The logits behind the last token of each sequence, [B, V].

        Raises:
            ConfigError: They are not as many as sequences, or too few or too many to be read at once, or do not hold
                the tokens that stand for what media found.
            ShapeError: A capacity would be exceeded.
            BundleError: Upkeep does not make room.
            UnsupportedError: The backend failed.
        """
        self._require("read")
        texts = self._checked(prompts)
        found: Array | None = None
        for run, logits in self._runs(self._procedure.prompt, texts, between, goes_on=goes_on):
            rows = logits if logits.ndim == 2 else logits[np.arange(len(texts)), np.maximum(run.counts, 1) - 1]
            found = np.zeros_like(rows) if found is None else found
            for row, text in enumerate(texts):
                if run.start < len(text) <= run.start + run.tokens:
                    found[row] = rows[row]
        assert found is not None  # there was a token, so there was a run
        return found

    def step(self, tokens: Sequence[int] | Array, *, ended: Sequence[bool] | None = None) -> Array:
        """Read the next token of each sequence.

        Args:
            tokens: B of them.
            ended: Sequences that read none, as they have ended; None: all go on.

        Returns:
            The logits behind them, [B, V]; of a sequence that has ended, anything.

        Raises:
            ConfigError, ShapeError, BundleError, UnsupportedError: As `read`.
        """
        self._require("read")
        given = np.asarray(tokens)
        if given.shape != self._seen.shape or given.dtype.kind not in "iu":
            raise ConfigError(f"{given.dtype} {list(given.shape)} was given; give {len(self._seen)} integers.")
        counts = [1] * len(given) if ended is None else [int(not over) for over in ended]
        if len(counts) != len(given) or (min(counts, default=1) == 0 and not self.tells_filling):
            raise ConfigError(
                f"ended={ended!r:.100}; the bundle cannot tell filling from tokens, so that all {len(given)} sequences "
                "read one: take those that have ended out of the states."
            )
        run = Run(start=0, tokens=1, counts=tuple(counts), moments=("run", "step"))
        logits = self._run(self._procedure.step, run, [given[row : row + 1] for row in range(len(given))], None)
        return logits if logits.ndim == 2 else logits[:, -1]

    def score(self, texts: Sequence[Array]) -> list[Array]:
        """Read texts, and say how probable they are behind what was read before.

        Args:
            texts: For each sequence its tokens, integers [N]. To score what follows a prompt, read the prompt without
                its last token and begin the text with that.

        Returns:
            For each the natural logarithms of the probability of its tokens, from the second on, [N - 1].

        Raises:
            ConfigError: The bundle gives no logits of every token, and as `read`.
            ShapeError, BundleError, UnsupportedError: As `read`.
        """
        part = self._procedure.score or self._procedure.prompt
        if part.rows == "last":
            raise ConfigError(f"'{self.session.bundle.path}' gives the logits of the last token only, and scores none.")
        self._require("score")
        tokens = self._checked(texts)
        found: list[list[Array]] = [[] for _ in tokens]
        for run, values in self._runs(part, tokens, scoring=True):
            for row, text in enumerate(tokens):
                following = text[run.start + 1 : run.start + run.counts[row] + 1]
                each = values[row, : len(following)]
                found[row].append(each if part.rows == "next" else _log_softmax(each)[range(len(each)), following])
        return [np.concatenate(parts) for parts in found]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order, and let go of the others; one may be there several times.

        Raises:
            ConfigError, UnsupportedError: As `States.keep`.
        """
        if list(rows) == list(range(len(self._seen))):
            return  # which a fixed batch can do as well
        self.states.keep(rows)
        self._seen = self._seen[list(rows)]

    def fork(self) -> "Sequences":
        """The same sequences a second time, from where they are; what the one reads does not change the other.

        Raises:
            ConfigError: Another thread is using the states.
        """
        made = Sequences(self.session, batch=len(self._seen))
        made.states, made._seen, made._attended = self.states.fork(), self._seen.copy(), self._attended
        return made

    def save(self, path: str | Path, *, beside: Mapping[str, Array] | None = None) -> None:
        """Write the states, and what was read, to a file, as a whole or not at all; `load` goes on from there.

        Args:
            path: The file.
            beside: What else it is to hold, by name.

        Raises:
            ConfigError: Another thread is using the states.
            OSError: The file cannot be written.
        """
        read = {_SEEN: self._seen, _ATTENDED: np.array(self._attended)}
        self.states.save(path, beside={**(beside or {}), **read})

    def _checked(self, prompts: Sequence[Array]) -> list[Array]:
        texts = [np.asarray(text) for text in prompts]
        if len(texts) != len(self._seen):
            raise ConfigError(f"{len(texts)} texts were given; there are {len(self._seen)} sequences.")
        for text in texts:
            if text.ndim != 1 or text.dtype.kind not in "iu":
                raise ConfigError(f"A text is {text.dtype} {list(text.shape)}; give the numbers of its tokens, [N].")
        lengths = sorted({len(text) for text in texts})
        if lengths[-1] == 0:
            raise ConfigError("There is no token to read; give at least one.")
        if len(lengths) > 1 and not self.tells_filling:
            raise ConfigError(
                f"The texts have {lengths[0]} to {lengths[-1]} tokens, and the bundle cannot tell filling from tokens; "
                "give texts of equal length, or sequences of their own."
            )
        return texts

    def _rows(self, texts: Sequence[Array]) -> list[Array] | None:
        """The rows of media that the tokens of texts stand for; None: no token stands for any."""
        media = self._procedure.media
        if all(each.token is None for each in media):
            return None
        found = []
        for text, seen in zip(texts, self._seen, strict=True):
            try:
                found.append(np.array(rows_of(media, text.tolist(), placed=self._attended and not seen), np.int64))
            except ValueError as error:
                raise ConfigError(f"{_sentence(error)}.") from None
        return found

    @property
    def tells_filling(self) -> bool:
        """Whether sequences may read unequally many tokens in a run."""
        return "count" in self._procedure.feeds.values()

    def _runs(
        self,
        part: Pass,
        texts: Sequence[Array],
        between: Callable[[int], None] | None = None,
        *,
        scoring: bool = False,
        goes_on: bool = False,
    ) -> Iterator[tuple[Run, Array]]:
        """The runs that read whole texts, each with what it gave."""
        rows = self._rows(texts)
        try:
            lengths = [len(text) for text in texts]
            runs = list(runs_of(part, self._manifest.lengths, lengths, scoring=scoring, goes_on=goes_on))
        except ValueError as error:
            raise ConfigError(f"{_sentence(error)}.") from None
        for run in runs:
            if min(run.counts) < run.tokens and not self.tells_filling:
                raise ConfigError(
                    f"{len(texts[0])} tokens are not read in runs of at least {run.tokens}, and the bundle cannot tell "
                    "filling from tokens; give more or fewer."
                )
            if between is not None:
                between(run.start)
            stand_for = None if rows is None else [each[run.start :] for each in rows]
            yield run, self._run(part, run, [text[run.start :] for text in texts], stand_for)

    def _run(self, part: Pass, run: Run, texts: Sequence[Array], rows: Sequence[Array] | None) -> Array:
        """One run of a pass on the beginnings of texts, and the upkeep that is then due; returns what it gives."""
        if aside := self._without_room(part, run):
            return self._run_without(aside, part, run, texts, rows)
        counts = np.array(run.counts, np.int64)

        def filled(nothing: int, values: Callable[[int], Array]) -> Array:
            found = np.full((len(texts), run.tokens), nothing, np.int64)
            for row in range(len(texts)):
                part = values(row)
                found[row, : len(part)] = part
            return found

        def make(what: str) -> Array:
            if what == "tokens":
                return filled(0, lambda row: texts[row][: run.counts[row]])
            if what == "next":
                return filled(0, lambda row: texts[row][1 : run.counts[row] + 1])
            if what == "rows":
                return filled(-1, lambda row: _NONE if rows is None else rows[row][: run.counts[row]])
            if what == "positions":
                position = self._procedure.position
                first = self._seen if position in (SEEN, KEPT) else self._used(position)
                return first[:, None] + np.arange(run.tokens)
            return counts if what == "count" else self._seen

        self._reserve(part.graphs, run.tokens)
        values = self._turn(part.graphs, self._fed(part.graphs, make), check=str(part.logits))
        self._seen = self._seen + counts

        def maintain(graph: str) -> None:
            self._reserve((graph,), 0)
            self._turn((graph,), self._fed((graph,), lambda what: {"seen": self._seen}[what]))
            self.upkeeps += 1

        try:
            keep_up(self._procedure, run.moments, lambda symbol: self._used(symbol).tolist(), maintain)
        except ValueError as error:
            raise BundleError(f"The bundle's procedure is at fault: {error}; export the bundle again.") from None
        return values[str(part.logits)]

    def _without_room(self, part: Pass, run: Run) -> list[int]:
        """The sequences that read nothing in a run beside others, and for whose filling there is no room."""
        if min(run.counts) > 0 or max(run.counts) == 0 or self._manifest.fixed_batch is not None:
            return []
        limits, full = self.states.limits, np.zeros(len(run.counts), bool)
        for each in self._capacities(part.graphs):
            limit = limits.get(each.symbol)
            if limit is not None:
                full |= each.needed(part.graphs, 0, run.tokens) + self._used(each.symbol) > limit
        return [row for row, count in enumerate(run.counts) if count == 0 and full[row]]

    def _run_without(
        self, aside: Sequence[int], part: Pass, run: Run, texts: Sequence[Array], rows: Sequence[Array] | None
    ) -> Array:
        """`_run` of all other sequences; those that are set aside stay as they are."""
        going = [row for row in range(len(texts)) if row not in aside]
        held, seen = self.states.fork(), self._seen
        held.keep(aside)
        self.states.keep(going)
        self._seen = seen[going]
        places = [*going, *aside]
        order = [places.index(row) for row in range(len(texts))]
        some = replace(run, counts=tuple(run.counts[row] for row in going))
        try:
            found = self._run(part, some, [texts[row] for row in going], rows and [rows[row] for row in going])
        finally:
            read = seen.copy()
            read[going] = self._seen
            with contextlib.suppress(ConfigError):  # what failed while it wrote has to be reset, and was said already
                self.states.join(held, order)
                self._seen = read
        logits = np.zeros((len(texts), *found.shape[1:]), found.dtype)
        logits[going] = found
        return logits

    def _fed(self, graphs: tuple[str, ...], make: Callable[[str], Array]) -> dict[str, Array]:
        """What the procedure gives to graphs."""
        made = self._same(graphs).made
        return {name: make(what).astype(dtype, copy=False) for name, what, dtype in made}

    def _same(self, graphs: tuple[str, ...]) -> _Turn:
        found = self._turns.get(graphs)
        if found is None:
            infos = {f"{graph}.{tensor}": info for graph in graphs
                     for tensor, info in self.session.inputs_of(graph).items()}  # fmt: skip
            feeds = self._procedure.feeds.items()
            found = self._turns[graphs] = _Turn(
                check=InputCheck({name: info for name, info in infos.items() if name not in self._links}),
                sources={
                    graph: tuple(
                        (tensor, self._links.get(f"{graph}.{tensor}", f"{graph}.{tensor}"))
                        for tensor in self.session.inputs_of(graph)
                    )
                    for graph in graphs
                },
                made=tuple((name, what, infos[name].dtype) for name, what in feeds if _graph(name) in graphs),
            )
        return found

    def _turn(self, graphs: tuple[str, ...], given: Mapping[str, Array], *, check: str = "") -> dict[str, Array]:
        """Run graphs in order, each on what is given, linked, or held by the states; returns `graph.tensor`.

        If `check` of them holds NaN, and the cache of a layer does, the states are as before.
        """
        same = self._same(graphs)
        symbols = same.check.symbols(given)
        values = dict(given)

        def feed(graph: LoadedGraph) -> dict[str, Array]:
            return {tensor: values[source] for tensor, source in same.sources[graph.name]}

        def took(graph: LoadedGraph, outputs: Mapping[str, Array]) -> None:
            values.update({f"{graph.name}.{tensor}": value for tensor, value in outputs.items()})
            if check in values and np.isnan(values[check].max(initial=-np.inf)):  # NaN is the largest, too
                self._refuse_nan()

        loaded = self.session.loaded.graphs
        if not loaded:
            raise ConfigError("The session is closed; open the bundle again.")
        try:
            self.states.run_all([loaded[name] for name in graphs], symbols, feed, took)
        except _NoNumbers as error:
            after = "have to be begun anew" if self.states.is_broken else "are as they were before it"
            raise UnsupportedError(
                f"A run behind {max(self.seen)} tokens gives NaN, and so does first the cache of layer {error.layer}; "
                f"the sequences {after}. Verify the bundle, or export it in a precision of more range."
            ) from None
        return values

    def _refuse_nan(self) -> None:
        """Raise if a cache holds NaN: with the first layer whose does."""
        layers = {state.key: state.layer for state in self._manifest.states if state.layer is not None}
        for key, layer in sorted(layers.items(), key=lambda item: item[1]):
            held = self.states.in_run(key)
            if held is not None and held.dtype.kind == "f" and np.isnan(held).any():
                raise _NoNumbers(layer)

    def _used(self, symbol: str) -> Array:
        """Slots of a capacity that each sequence uses."""
        (key,) = (capacity.used for capacity in self._manifest.capacities if capacity.symbol == symbol)
        held = None if key is None else self.states.value(key)
        if key is None:
            return self._seen
        return np.zeros_like(self._seen) if held is None else held

    def _capacities(self, graphs: tuple[str, ...]) -> list[Capacity]:
        """Those of the states of some graphs."""
        return [each for each in self._manifest.capacities if any(graph in each.adds for graph in graphs)]

    def _reserve(self, graphs: tuple[str, ...], tokens: int) -> None:
        slots = {
            capacity.symbol: capacity.needed(graphs, int(self._used(capacity.symbol).max(initial=0)), tokens)
            for capacity in self._capacities(graphs)
        }
        if slots:
            self.states.reserve(slots)


def graphs_for(manifest: Manifest, *, read: bool = True, score: bool = False) -> list[str]:
    """The graphs that `Session.open` has to load for sequences that read tokens, or score texts.

    A graph more is a copy more of the weights that ONNX Runtime rearranges for it.
    """
    procedure = manifest.procedure
    if procedure is None:
        return [graph.name for graph in manifest.graphs]
    wanted = (procedure.reading if read else frozenset()) | (procedure.scoring if score else frozenset())
    return [graph.name for graph in manifest.graphs if graph.name in wanted]


def _graph(name: str) -> str:
    """The graph of `graph.tensor`."""
    return name.partition(".")[0]


def _sentence(error: ValueError) -> str:
    """What was raised, with a capital letter."""
    return f"{str(error)[:1].upper()}{str(error)[1:]}"


def _log_softmax(logits: Array) -> Array:
    """Natural logarithms of probabilities, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
