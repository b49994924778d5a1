"""Prompts become answers, with any bundle that reads tokens by a procedure."""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from trt_compress.errors import BundleError, ConfigError
from trt_compress.format.bundle import Bundle
from trt_compress.runtime.generate.detokenize import StopTexts
from trt_compress.runtime.generate.memory import check_memory
from trt_compress.runtime.generate.sampling import Sampling, log_probabilities
from trt_compress.runtime.generate.stream import LOGITS, TOKENS, Generated, Hook, Prefix, Stream, Writing
from trt_compress.runtime.generate.text import BundleText, open_bundle
from trt_compress.runtime.sequences import Sequences, graphs_for
from trt_compress.runtime.session import Session
from trt_compress.runtime.state_memory import check_count

Array = np.ndarray[Any, np.dtype[Any]]
Prompt = str | Sequence[int]

MAX_NEW = 256
"""The most tokens of an answer where neither the caller nor the bundle says how many."""


class Generator:
    """Writes text with a bundle: many sequences at once, each with settings of its own.

    What a sequence gets does not depend on those beside it, as far as the backend rounds alike in both cases.

    Attributes:
        session: What runs the bundle.
        text: Its tokenizer, chat template and defaults.
    """

    def __init__(
        self,
        session: Session,
        *,
        text: BundleText | None = None,
        capacity: int | Mapping[str, int] | None = None,
    ) -> None:
        """Take a session of a bundle with a procedure.

        Args:
            session: With the graphs that `graphs_for` names for what is to be done: reading, scoring or both.
            text: What was read of the same bundle's text already; it is closed with this.
            capacity: The most slots that the states of a sequence may get, as `States` takes it.

        Raises:
            BundleError, ConfigError, UnsupportedError: As `BundleText`.
        """
        self.session = session
        self.text = text if text is not None else BundleText(session.bundle, capacity=capacity)
        self._capacity = capacity
        self._owns_session = False
        self._scorer: Session | None = None
        self._scorer_lock = threading.Lock()
        self._how: dict[str, Any] | None = None

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        *,
        text: BundleText | None = None,
        capacity: int | Mapping[str, int] | None = None,
        backend: str = "ort-cpu",
        threads: int | None = None,
        native: bool | str | Path | None = None,
        require_digest: str | Collection[str] | None = None,
    ) -> "Generator":
        """Load a bundle; `close` it, or use it in a `with`.

        Only what reads tokens is loaded. What scores texts and is no part of that follows with the first `score`.

        Args:
            bundle: The directory, or a bundle that is open already.
            text: What was read of the same bundle's text already; it is closed with this.
            capacity: The most slots that the states of a sequence may get, as `States` takes it.
            backend, threads, native, require_digest: As `Session.open`.

        Raises:
            BundleError, ConfigError, PluginError, UnsupportedError: As `Session.open`, and as `BundleText`, before the
                weights are loaded.
        """
        if not isinstance(bundle, Bundle):
            bundle = open_bundle(bundle, require_digest=require_digest)
        text = BundleText(bundle, capacity=capacity) if text is None else text
        how: dict[str, Any] = {
            "backend": backend,
            "threads": threads,
            "native": native,
            "require_digest": require_digest,
        }
        session = Session.open(bundle, graphs=graphs_for(bundle.manifest), **how)
        made = cls(session, text=text, capacity=capacity)
        made._owns_session, made._how = True, how
        return made

    def close(self) -> None:
        """Let go of what renders templates, and of the session, if it was opened here."""
        self.text.close()
        if self._owns_session:
            self.session.close()
        if self._scorer is not None:
            self._scorer.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Generator of {self.session.bundle.manifest.name}, {self.text.vocabulary} tokens>"

    @property
    def context(self) -> int | None:
        """The most tokens of a sequence, prompt and answer; None: nothing bounds them but memory."""
        return self.text.context

    @property
    def vocabulary(self) -> int:
        """How many tokens the model scores."""
        return self.text.vocabulary

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text; see `BundleText.encode`."""
        return self.text.encode(text, special=special)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; see `BundleText.decode`."""
        return self.text.decode(tokens)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """The tokens of a conversation; see `BundleText.chat`."""
        return self.text.chat(messages, add_generation_prompt=add_generation_prompt, **variables)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new: int | Sequence[int] | None = None,
        sampling: Sampling | Sequence[Sampling] | None = None,
        prefix: Prefix | None = None,
        hook: Hook | None = None,
        batch: int | None = None,
        **settings: Any,
    ) -> list[Generated]:
        """Write the answers to prompts.

        Args:
            prompts: One or several, each a text or the numbers of its tokens, as `encode` and `chat` give them.
            max_new: The most new tokens, of all or of each; None: what the bundle says, else 256.
            sampling: How tokens are chosen, of all or of each; None: as the bundle says.
            prefix: What all prompts begin with, which is then not read again.
            hook: Changes the logits [B, V] before each choice; see `Hook`. B is what runs side by side.
            batch: How many sequences run side by side; None: the largest batch of the bundle.
            settings: What of `Sampling` is to be otherwise, by name: `temperature=0.7, seed=1`.

        Returns:
            One answer for each prompt.

        Raises:
            ConfigError: A prompt is empty, too long, or not of this vocabulary; a setting is not allowed.
            UnsupportedError: There is no memory for so many tokens, or no token can follow.
            BundleError, ShapeError: As `Sequences.read`.
        """
        with self.stream(
            prompts,
            max_new=max_new,
            sampling=sampling,
            prefix=prefix,
            hook=hook,
            batch=batch,
            **settings,
        ) as stream:
            for _ in stream:
                pass
            return stream.results()

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new: int | Sequence[int] | None = None,
        sampling: Sampling | Sequence[Sampling] | None = None,
        prefix: Prefix | None = None,
        hook: Hook | None = None,
        batch: int | None = None,
        keep: bool = False,
        detached: bool = False,
        **settings: Any,
    ) -> Stream:
        """As `generate`, giving out each piece of text as soon as it is certain.

        Args:
            prompts, max_new, sampling, prefix, hook, batch, settings: As for `generate`.
            keep: Keep what was read of the only sequence: `Stream.kept` is then a prefix for what follows.
            detached: The answer is a text of its own, as in a conversation: a space at its beginning that only divides
                it from the prompt is left out where the tokenizer does so at the beginning of a text.

        Raises:
            ConfigError, UnsupportedError: As `generate`; nothing has run yet.
        """
        texts = _listed(prompts)
        tokens = [self.text.tokens(text, what=_name("prompt", at, len(texts))) for at, text in enumerate(texts)]
        most = _each("max_new", max_new if max_new is not None else self.text.max_new or MAX_NEW, len(texts))
        chosen = _each("sampling", sampling or self.text.sampling, len(texts))
        writings = [
            self._writing(number, tokens[number], most[number], Sampling.of(settings, chosen[number]), prefix, detached)
            for number in range(len(texts))
        ]
        size = self._batch(batch)
        groups = self._groups(writings, size)
        for group in groups:
            slots = max(len(one.prompt) + one.most for one in group)
            check_memory(self.session.bundle.manifest, batch=len(group), slots=slots)
        return Stream(groups, self._begin, hook=hook, keep=keep)

    def prefix(
        self,
        prompt: Prompt,
        *,
        behind: Prefix | None = None,
        between: Callable[[int], None] | None = None,
        goes_on: bool = False,
    ) -> Prefix:
        """Read the beginning of prompts once, for `prefix` of `generate`.

        Args:
            prompt: All of it.
            behind: What was read of it already; it stays as it is.
            between: As for `Sequences.read`.
            goes_on: More of the prompt follows in any case. What is due behind a prompt then waits for that, so that
                caches are compressed as if all of it had been read at once; runs are divided alike if this is a
                multiple of the tokens of a run.

        Raises:
            ConfigError: It does not begin with what was read, or says nothing more.
            UnsupportedError, BundleError, ShapeError: As `generate`.
        """
        tokens = self.text.tokens(prompt)
        known = 0 if behind is None else len(behind.tokens)
        if behind is not None and not (known < len(tokens) and behind.begins(tokens)):
            raise ConfigError(f"The prefix does not go on behind the {known} tokens that were read; give all of it.")
        check_memory(self.session.bundle.manifest, batch=1, slots=len(tokens))
        sequences = self._begin(1) if behind is None else behind.fork()
        logits = sequences.read([np.asarray(tokens[known:], np.int64)], between=between, goes_on=goes_on)
        return Prefix(tokens=tuple(tokens), sequences=sequences, logits=np.asarray(logits[0], np.float32))

    def load_prefix(self, path: str | Path) -> Prefix:
        """Read what `Prefix.save` wrote, of this bundle.

        Raises:
            BundleError: The file cannot be read, is of another bundle, or holds no prefix.
            ConfigError: It holds more slots than the generator may use.
        """
        beside: dict[str, Array] = {TOKENS: np.zeros(0), LOGITS: np.zeros(0)}
        sequences = Sequences.load(path, self.session, capacity=self._capacity, beside=beside)
        tokens, logits = beside[TOKENS], beside[LOGITS]
        vocabulary = self.text.vocabulary
        if (
            tokens.dtype != np.int64
            or logits.dtype != np.float32
            or logits.shape != (vocabulary,)
            or sequences.seen != tokens.shape
            or not ((tokens >= 0) & (tokens < vocabulary)).all()
        ):
            raise BundleError(f"'{path}' holds sequences, and no prefix of this bundle; save a prefix.")
        return Prefix(tokens=tuple(tokens.tolist()), sequences=sequences, logits=np.array(logits))

    def score(
        self, texts: Prompt | Sequence[Prompt], *, prompt: int | None = None, batch: int | None = None
    ) -> list[Array]:
        """How probable texts are.

        Args:
            texts: As for `generate`; each has two tokens or more.
            prompt: So many tokens of each text are read as a prompt is, and those that follow one by one, as if they
                were written, so that caches are compressed as they are then; None: the text is scored as a whole.
            batch: As for `generate`.

        Returns:
            For each the natural logarithms of the probabilities of its tokens, from the second on, [N - 1], float64;
            with a prompt those of the tokens behind one that was read alone, [N - prompt - 1].

        Raises:
            ConfigError: The bundle scores no tokens, or a text is too short or too long.
            UnsupportedError, BundleError, ShapeError: As `generate`.
        """
        listed = _listed(texts)
        tokens = [self.text.tokens(text, what=_name("text", at, len(listed))) for at, text in enumerate(listed)]
        if prompt is not None:
            return self._continuations(tokens, prompt, batch)
        found: list[Array] = [np.zeros(0)] * len(tokens)
        size, session = self._batch(batch), self._scoring()
        for group in _by_length(range(len(tokens)), [len(one) for one in tokens], size, self._tells_filling):
            scored = Sequences(session, batch=len(group), capacity=self._capacity).score(
                [np.asarray(tokens[at], np.int64) for at in group]
            )
            for at, values in zip(group, scored, strict=True):
                found[at] = values.astype(np.float64)
        return found

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _continuations(self, tokens: Sequence[list[int]], prompt: int, batch: int | None) -> list[Array]:
        """What follows prompts, scored in steps."""
        check_count("prompt", prompt)
        lengths = [len(one) for one in tokens]
        if min(lengths) < prompt + 2:
            raise ConfigError(
                f"A text has {min(lengths)} tokens, and {prompt} are its prompt; at least two have to follow."
            )
        found: list[Array] = [np.zeros(0)] * len(tokens)
        for group in _by_length(range(len(tokens)), lengths, self._batch(batch), self._tells_filling):
            sequences = self._begin(len(group))
            sequences.read([np.asarray(tokens[at][:prompt], np.int64) for at in group])
            scored: dict[int, list[float]] = {at: [] for at in group}
            for place in range(prompt, max(lengths[at] for at in group) - 1):
                ended = [place + 1 >= lengths[at] for at in group]
                read = [0 if over else tokens[at][place] for at, over in zip(group, ended, strict=True)]
                logits = sequences.step(read, ended=ended if any(ended) else None)
                values = log_probabilities(np.asarray(logits, np.float64))
                for row, (at, over) in enumerate(zip(group, ended, strict=True)):
                    if not over:
                        scored[at].append(float(values[row, tokens[at][place + 1]]))
            for at in group:
                found[at] = np.array(scored[at])
        return found

    @property
    def _tells_filling(self) -> bool:
        procedure = self.session.bundle.manifest.procedure
        return procedure is not None and "count" in procedure.feeds.values()

    def _scoring(self) -> Session:
        """The session with the graphs that score."""
        needed = graphs_for(self.session.bundle.manifest, read=False, score=True)
        if self._how is None or not self.session.loaded.graphs or set(needed) <= set(self.session.graphs):
            return self.session
        with self._scorer_lock:
            if self._scorer is None:
                self._scorer = Session.open(self.session.bundle, graphs=needed, **self._how)
            return self._scorer

    def _begin(self, batch: int) -> Sequences:
        return Sequences(self.session, batch=batch, capacity=self._capacity)

    def _batch(self, batch: int | None) -> int:
        if batch is None:
            return self.session.bundle.manifest.batch.max
        check_count("batch", batch)
        return batch

    def _writing(
        self, number: int, prompt: list[int], most: int, sampling: Sampling, prefix: Prefix | None, detached: bool
    ) -> Writing:
        check_count("max_new", most)
        if prefix is not None and not prefix.begins(prompt):
            raise ConfigError(
                f"Prompt {number + 1} does not begin with the {len(prefix.tokens)} tokens of the prefix; give whole "
                "prompts, or leave the prefix out (where texts meet, a tokenizer may make other tokens)."
            )
        if sampling.stop and self.text.tokenizer is None:
            raise ConfigError(
                f"'{self.session.bundle.path}' has no tokenizer, so that no text stops it; give stop_ids."
            )
        room = None if self.context is None else self.context + 1 - len(prompt)
        stop_ids = frozenset(() if sampling.ignore_stop_ids else (*self.text.stop_ids, *sampling.stop_ids))
        tokenizer = self.text.tokenizer
        if tokenizer is not None:
            named = {tokenizer.special(text) for text in sampling.stop}
            stop_ids |= {token for token in named if token is not None}
        return Writing(
            number=number,
            prompt=prompt,
            sampling=sampling,
            most=most if room is None else min(most, room),
            is_short_of_room=room is not None and room < most,
            room=room,
            stop_ids=stop_ids,
            detokenizer=None if tokenizer is None else tokenizer.detokenizer([] if detached else prompt),
            stops=StopTexts(sampling.stop),
            prefix=prefix,
        )

    def _groups(self, writings: Sequence[Writing], size: int) -> list[list[Writing]]:
        lengths = [len(one.rest) for one in writings]
        groups = _by_length(range(len(writings)), lengths, size, self._tells_filling)
        return [[writings[at] for at in group] for group in groups]


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several as several."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise ConfigError(f"A prompt is a text or the numbers of tokens, and {type(prompts).__name__} was given.")
    found: list[Any] = list(prompts)
    if not found:
        raise ConfigError("No prompt was given; give at least one.")
    if all(_is_number(one) for one in found):
        return [found]
    for one in found:
        if not isinstance(one, str) and not (isinstance(one, Iterable) and all(map(_is_number, one))):
            raise ConfigError(f"A prompt is a text or the numbers of tokens, and {one!r:.60} was given.")
    return [one if isinstance(one, str) else list(one) for one in found]


def _name(what: str, at: int, count: int) -> str:
    return f"The {what}" if count == 1 else f"The {what} {at + 1} of {count}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _each(name: str, value: Any, count: int) -> list[Any]:
    """One value for each prompt."""
    if isinstance(value, Sampling | int):
        return [value] * count
    if not isinstance(value, Sequence) or len(value) != count:
        raise ConfigError(f"{name}={value!r:.60}; give one, or one for each of the {count} prompts.")
    return list(value)


def _by_length(numbers: Iterable[int], lengths: Sequence[int], size: int, tells_filling: bool) -> list[list[int]]:
    """What runs side by side: in the order given, of equal length where a bundle cannot tell filling from tokens."""
    pools: dict[int, list[int]] = {}
    for number in numbers:
        pools.setdefault(0 if tells_filling else lengths[number], []).append(number)
    return [pool[start : start + size] for pool in pools.values() for start in range(0, len(pool), size)]
