"""The loop that writes: it reads prompts, chooses a token for each sequence, steps, and gives out what is certain."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.runtime.generate.detokenize import Detokenizer, StopTexts
from trt_compress.runtime.generate.sampling import Chooser, Sampling, log_probabilities, most_probable
from trt_compress.runtime.sequences import Sequences

Array = np.ndarray[Any, np.dtype[Any]]

Hook = Callable[[list[list[int]], Array], Array]
"""Changes logits before a token is chosen: the new tokens of each sequence, and logits [B, V] in float32 → [B, V].
B are all sequences that were begun side by side; the rows of those that have ended are 0, and nobody looks at them."""

STOP, LENGTH, CONTEXT, CANCELLED = "stop", "length", "context", "cancelled"
"""Why an answer ended: a token or a text that ends it, as many tokens as were asked for, no room, or the caller."""


TOKENS, LOGITS = "tokens", "logits"
"""Beside the saved sequence of a prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One new token.

    Attributes:
        logprob: Natural logarithm of the probability that the model gave it, before any setting; None: not asked for.
        top: The most probable tokens with theirs, the most probable first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one step gave of one sequence.

    Attributes:
        sequence: Which, as the prompts are numbered.
        text: What is now certain; often nothing.
        tokens: What was chosen: one token, or none where the sequence only ends.
        reason: Why it has ended; None: it goes on.
    """

    sequence: int
    text: str
    tokens: tuple[Chosen, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The answer to one prompt.

    Attributes:
        text: Without special tokens and without what ended it.
        tokens: All that were chosen, those included that ended it.
        reason: Why it ended: "stop", "length", "context" or "cancelled".
        prompt_tokens: Tokens of the prompt.
        reused: How many of them were read before, with a prefix.
        seed: Where its random numbers began.
    """

    text: str
    tokens: tuple[Chosen, ...]
    reason: str
    prompt_tokens: int
    reused: int
    seed: int

    @property
    def ids(self) -> list[int]:
        """The tokens as numbers."""
        return [one.token for one in self.tokens]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Tokens that were read once, to go on from as often as wanted.

    Attributes:
        tokens: What was read.
        sequences: The states behind it, of one sequence; they are forked, never changed.
        logits: Behind the last token, [V], float32.
    """

    tokens: tuple[int, ...]
    sequences: Sequences
    logits: Array
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def fork(self) -> Sequences:
        """The sequence a second time, to go on with; several threads may ask at once."""
        with self._lock:
            return self.sequences.fork()

    def save(self, path: str | Path) -> None:
        """Write what was read to a file, as a whole or not at all; `Generator.load_prefix` reads it.

        Raises:
            OSError: The file cannot be written.
        """
        with self._lock:
            self.sequences.save(path, beside={TOKENS: np.array(self.tokens, np.int64), LOGITS: self.logits})

    def begins(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens begin with those that were read."""
        return tuple(tokens[: len(self.tokens)]) == self.tokens


@dataclass(slots=True)
class Timing:
    """What was read and written, and how long it took; the time of whoever takes the pieces is not counted.

    Attributes:
        prompt_tokens: Tokens of prompts that were read.
        prompt_s: Seconds in which they were.
        first_token_s: From the beginning to the first token.
        new_tokens: Tokens that were chosen.
        decode_tokens: Those of them that a step gave: all but the first of each sequence.
        decode_s: Seconds of these.
        session_s: The part of `decode_s` in which graphs ran.
        cache_bytes: The most bytes that states of sequences took.
    """

    prompt_tokens: int = 0
    prompt_s: float = 0.0
    first_token_s: float | None = None
    new_tokens: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0
    session_s: float = 0.0
    cache_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data, with the rates: tokens a second, None where none were read or stepped."""
        data = {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}
        data["prompt_tokens_per_s"] = round(self.prompt_tokens / self.prompt_s, 3) if self.prompt_tokens else None
        data["decode_tokens_per_s"] = round(self.decode_tokens / self.decode_s, 3) if self.decode_tokens else None
        return data

    def add(self, other: "Timing") -> None:
        """Count another's to this; the first token is that of the first."""
        for name in ("prompt_tokens", "prompt_s", "new_tokens", "decode_tokens", "decode_s", "session_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_token_s = other.first_token_s if self.first_token_s is None else self.first_token_s
        self.cache_bytes = max(self.cache_bytes, other.cache_bytes)


@dataclass(slots=True)
class Writing:
    """One sequence that is being written."""

    number: int
    prompt: list[int]
    sampling: Sampling
    most: int  # tokens
    is_short_of_room: bool  # `most` is what the context leaves
    room: int | None  # tokens that the context leaves; None: it has no end
    stop_ids: frozenset[int]
    detokenizer: Detokenizer | None
    stops: StopTexts
    prefix: Prefix | None = None
    tokens: list[Chosen] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    reason: str | None = None
    seed: int = 0

    @property
    def is_full(self) -> bool:
        """Whether not even a filling token could be read behind it."""
        return self.room is not None and len(self.ids) >= self.room

    @property
    def rest(self) -> list[int]:
        """What is to be read of the prompt."""
        return self.prompt if self.prefix is None else self.prompt[len(self.prefix.tokens) :]

    def take(self, chosen: Chosen) -> Piece:
        """Go on with a token."""
        self.tokens.append(chosen)
        self.ids.append(chosen.token)
        text, ended = "", False
        if chosen.token in self.stop_ids:
            self.reason = STOP
        elif self.detokenizer is not None:
            text, ended = self.stops.add(self.detokenizer.add(chosen.token))
        if ended:
            self.reason = STOP
        elif self.reason is None and len(self.ids) >= self.most:
            self.reason = CONTEXT if self.is_short_of_room else LENGTH
        if self.reason is not None and not ended:
            text += self._last()
        self.text.append(text)
        return Piece(sequence=self.number, text=text, tokens=(chosen,), reason=self.reason)

    def cancel(self) -> Piece:
        """End here; what was certain is the answer."""
        self.reason = CANCELLED
        text = self._last()
        self.text.append(text)
        return Piece(sequence=self.number, text=text, reason=CANCELLED)

    def _last(self) -> str:
        if self.detokenizer is None:
            return ""
        text, ended = self.stops.add(self.detokenizer.rest())
        if ended and self.reason != CANCELLED:
            self.reason = STOP
        return text if ended else text + self.stops.rest()

    def result(self) -> Generated:
        """The answer so far."""
        return Generated(
            text="".join(self.text),
            tokens=tuple(self.tokens),
            reason=self.reason or CANCELLED,
            prompt_tokens=len(self.prompt),
            reused=0 if self.prefix is None else len(self.prefix.tokens),
            seed=self.seed,
        )


class Stream:
    """Answers as they are written: an iterator of pieces. Leaving it early, or `close`, ends all of them.

    Attributes:
        timing: How long what took, so far.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Writing]],
        begin: Callable[[int], Sequences],
        *,
        hook: Hook | None = None,
        keep: bool = False,
    ) -> None:
        """What `Generator.stream` returns; use that."""
        self.timing = Timing()
        self._all = sorted((one for group in groups for one in group), key=lambda one: one.number)
        self._begin = begin
        self._hook = hook
        self._keep = keep
        self._kept: Prefix | None = None
        self._cancelled: set[int] = set()
        self._mark = 0.0
        self._pieces = self._run(groups)

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def __next__(self) -> Piece:
        return next(self._pieces)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def cancel(self, sequence: int | None = None) -> None:
        """End a sequence, or all, before the next step; from any thread. The pieces that end them still come."""
        self._cancelled.update([sequence] if sequence is not None else [one.number for one in self._all])

    def close(self) -> None:
        """End all of them now, and let go of their states."""
        self._pieces.close()

    def results(self) -> list[Generated]:
        """The answers, in the order of the prompts; of those that have not ended, what there is of them."""
        return [one.result() for one in self._all]

    @property
    def kept(self) -> Prefix | None:
        """Where the only sequence has come to, if `keep` was asked for and it has ended: to go on from there."""
        return self._kept

    def _run(self, groups: Sequence[Sequence[Writing]]) -> Generator[Piece, None, None]:
        self._mark = time.perf_counter()
        for group in groups:
            yield from self._write(list(group))

    def _write(self, group: list[Writing]) -> Iterator[Piece]:
        chooser = Chooser([one.sampling for one in group], [one.prompt for one in group])
        for one, seed in zip(group, chooser.seeds, strict=True):
            one.seed = seed
        try:
            sequences, logits = self._read(group)
        except _AllCancelled:
            yield from [one.cancel() for one in group]
            return
        places = list(range(len(group)))  # which of the group stands in each row of the states
        moment, lengths = time.perf_counter(), sequences.states.lengths
        is_first = True
        while True:
            rows = [row for row, place in enumerate(places) if group[place].reason is None]
            pieces = [group[places[row]].cancel() for row in rows if group[places[row]].number in self._cancelled]
            rows = [row for row in rows if group[places[row]].reason is None]
            if rows:
                pieces += self._choose(group, places, rows, logits, chooser)
            now = time.perf_counter()
            timing = self.timing
            if is_first:
                timing.first_token_s = timing.first_token_s or now - self._mark
            else:
                timing.decode_s += now - moment
                timing.decode_tokens += len(rows)
            timing.new_tokens += len(rows)
            is_first = False
            yield from pieces
            moment = time.perf_counter()
            going = [row for row, place in enumerate(places) if group[place].reason is None]
            if not going:
                break
            over = [place for place in places if group[place].reason is not None]
            cannot_stay = not sequences.tells_filling or any(group[place].is_full for place in over)
            if over and (cannot_stay or 2 * len(going) <= len(places)):
                sequences.keep(going)
                places = [places[row] for row in going]
            tokens = [group[place].ids[-1] if group[place].ids else 0 for place in places]
            ended = [group[place].reason is not None for place in places]
            began = time.perf_counter()
            logits = sequences.step(tokens, ended=ended if any(ended) else None)
            timing.session_s += time.perf_counter() - began
            if sequences.states.lengths != lengths:  # a state has grown; asking all of them takes a while
                lengths = sequences.states.lengths
                timing.cache_bytes = max(timing.cache_bytes, sequences.states.bytes)
        if self._keep and len(self._all) == 1:
            (one,) = group
            read = (*one.prompt, *one.ids[:-1])
            self._kept = Prefix(tokens=read, sequences=sequences, logits=np.asarray(logits[0], np.float32))

    def _read(self, group: list[Writing]) -> tuple[Sequences, Array]:
        """Read the prompts; the sequences, and the logits behind each."""
        began = time.perf_counter()
        prefix, texts = group[0].prefix, [np.asarray(one.rest, np.int64) for one in group]
        if prefix is None:
            sequences = self._begin(len(group))
        else:
            sequences = prefix.fork()
            sequences.keep([0] * len(group))
        if any(len(text) for text in texts):
            logits = sequences.read(texts, between=lambda read: self._between(group))
        else:
            logits = np.zeros((len(group), 1), np.float32)
        if prefix is not None:
            logits = np.stack([row if len(text) else prefix.logits for row, text in zip(logits, texts, strict=True)])
        self.timing.prompt_s += time.perf_counter() - began
        self.timing.prompt_tokens += sum(map(len, texts))
        self.timing.cache_bytes = max(self.timing.cache_bytes, sequences.states.bytes)
        return sequences, logits

    def _between(self, group: list[Writing]) -> None:
        if self._cancelled.issuperset(one.number for one in group):
            raise _AllCancelled

    def _choose(
        self, group: list[Writing], places: list[int], rows: list[int], logits: Array, chooser: Chooser
    ) -> list[Piece]:
        """Choose a token for each row that goes on."""
        mine = [group[places[row]] for row in rows]
        own = (logits if len(rows) == len(logits) else logits[rows]).astype(np.float32, copy=False)
        asked = [one.sampling.logprobs is not None for one in mine]
        logarithms = log_probabilities(own) if any(asked) else None
        if self._hook is not None:
            own = self._hooked(group, [places[row] for row in rows], own)
        chosen_of = [places[row] for row in rows]
        if own is logits and chooser.changes(chosen_of):
            own = own.copy()
        tokens = chooser.choose(chosen_of, own)
        pieces = []
        for at, (one, token) in enumerate(zip(mine, tokens, strict=True)):
            chosen = Chosen(token=token)
            if logarithms is not None and one.sampling.logprobs is not None:
                values = logarithms[at]
                top = tuple((number, float(values[number])) for number in most_probable(values, one.sampling.logprobs))
                chosen = Chosen(token=token, logprob=float(values[token]), top=top)
            pieces.append(one.take(chosen))
        return pieces

    def _hooked(self, group: list[Writing], rows: list[int], logits: Array) -> Array:
        """The logits of these rows as the hook wants them."""
        assert self._hook is not None
        whole = np.zeros((len(group), logits.shape[1]), np.float32)
        whole[rows] = logits
        found = np.asarray(self._hook([list(one.ids) for one in group], whole))
        if found.shape != whole.shape or found.dtype.kind != "f":
            raise ConfigError(
                f"The hook on the logits gave {found.dtype} {list(found.shape)}; give float32 {list(whole.shape)}."
            )
        return found[rows].astype(np.float32)


class _AllCancelled(Exception):
    """Nobody wants what is being read."""
