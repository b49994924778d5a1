"""Judge a bundle that reads text: perplexity with its interval, questions to long texts, against a baseline.

A text is scored as a whole, or behind prompts: then each window is a prompt, which is read as prompts are, so that
caches are compressed behind it, and a continuation, of which each token is read alone, as if it were written.
"""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.digest import as_digests
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.files import read_regular
from trt_compress.foreign import refusals_said
from trt_compress.format.procedure import range_of
from trt_compress.runtime.generate.generator import Generator
from trt_compress.runtime.generate.perplexity import Perplexity, PerplexityChange, change_of, perplexity_of, windows_of
from trt_compress.runtime.generate.prefixes import alike
from trt_compress.runtime.generate.questions import MAX_NEW, MOST_PAIRS, NEEDLE, RECALL, TextQuestion, needles, recalls
from trt_compress.runtime.generate.stream import Prefix
from trt_compress.runtime.generate.text import BundleText, open_bundle
from trt_compress.runtime.proportion import Difference, Share, difference, effect_of_groups, share
from trt_compress.runtime.sequences import graphs_for
from trt_compress.runtime.session import Session
from trt_compress.tools.evaluate import DOCUMENT, RESULT_VERSION, TEXT_METRICS, Progress, check_numbers, described
from trt_compress.tools.machine import describe_device, package_versions
from trt_compress.tools.report.metrics import Metric

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST_TEXT = 1 << 28
USUAL_WINDOW = 1024
USUAL_CONTINUATION = 129  # two blocks of scored tokens behind the first
TRIALS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Which questions were answered rightly."""

    all: Share
    by_depth: dict[float, Share]

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            **self.all.to_json(),
            "by_depth": [{"depth": depth, **one.to_json()} for depth, one in self.by_depth.items()],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEvaluation:
    """One judgement of a text bundle, with all that is needed to repeat or to doubt it.

    Attributes:
        bundle, baseline: What was judged, and what it was compared with; None without one.
        data: What was read.
        perplexity, baseline_perplexity, change: None: not asked for, or no baseline.
        needle, baseline_needle, needle_change: The same, of sentences in long texts.
        recall, baseline_recall, recall_change: The same, of values of many keys.
        protocol: How it was read.
    """

    started_at: str
    bundle: dict[str, Any]
    baseline: dict[str, Any] | None
    data: dict[str, Any]
    perplexity: Perplexity | None
    baseline_perplexity: Perplexity | None
    change: PerplexityChange | None
    needle: Found | None
    baseline_needle: Found | None
    needle_change: Difference | None
    recall: Found | None
    baseline_recall: Found | None
    recall_change: Difference | None
    protocol: dict[str, Any]
    device: dict[str, Any]
    versions: dict[str, str]
    seconds: float

    def metrics(self) -> dict[str, Metric]:
        """The figures by the names that a budget calls them; one that is not there says why."""
        ours, change = self.perplexity, self.change
        no_text = "no --perplexity was asked for"
        no_baseline = no_text if ours is None else "no baseline was given"
        short = "the text is too short for an interval"
        no_interval = no_baseline if change is None else short
        values: dict[str, tuple[float | None, str]] = {
            "perplexity": (None if ours is None else ours.value, no_text),
            "perplexity_high": (None if ours is None else ours.high, no_text if ours is None else short),
            "perplexity_ratio": (None if change is None else change.ratio, no_baseline),
            "perplexity_ratio_high": (None if change is None else change.high, no_interval),
            "bits_per_byte": (None if ours is None else ours.bits_per_byte, no_text),
        }
        asked = {NEEDLE: (self.needle, self.needle_change), RECALL: (self.recall, self.recall_change)}
        numbers = dict.fromkeys(values, 0 if ours is None else ours.tokens)
        for kind, (found, lost) in asked.items():
            not_asked = f"no --{kind} was asked for"
            values[kind] = (None if found is None else found.all.value, not_asked)
            values[f"{kind}_low"] = (None if found is None else found.all.low, not_asked)
            values[f"{kind}_drop_points"] = (
                None if lost is None else -100 * lost.value,
                not_asked if found is None else "no baseline was given",
            )
            numbers |= {name: 0 if found is None else found.all.n for name in values if name.startswith(kind)}
        return {
            name: Metric(
                name=name,
                value=value,
                reason=reason if value is None else None,
                unit=TEXT_METRICS[name][0],
                better=TEXT_METRICS[name][1],
                n=numbers[name],
            )
            for name, (value, reason) in values.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        names = ["perplexity", "baseline_perplexity", "change"]
        names += [name for kind in (NEEDLE, RECALL) for name in (kind, f"baseline_{kind}", f"{kind}_change")]
        found = {name: getattr(self, name) for name in names}
        return {
            "document": DOCUMENT,
            "result_version": RESULT_VERSION,
            "started_at": self.started_at,
            "bundle": self.bundle,
            "baseline": self.baseline,
            "data": self.data,
            "scores": {name: None if value is None else value.to_json() for name, value in found.items()},
            "protocol": self.protocol,
            "device": self.device,
            "versions": self.versions,
            "seconds": round(self.seconds, 3),
        }


@refusals_said()
def evaluate_text(
    bundle: str | Path,
    *,
    perplexity: str | Path | None = None,
    needle: bool = False,
    recall: bool = False,
    baseline: str | Path | None = None,
    window: int | None = None,
    context_tokens: int | None = None,
    trials: int = TRIALS,
    pairs: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    limit: int | None = None,
    backend: str = "ort-cpu",
    threads: int | None = None,
    native: bool | None = None,
    require_digest: str | Collection[str] | None = None,
    progress: Progress | None = None,
) -> TextEvaluation:
    """Judge a bundle that reads text, and against its baseline.

    Args:
        bundle: The bundle's directory.
        perplexity: A UTF-8 text that is scored; None: none is.
        needle: Ask for numbers that stand somewhere in a long text, at five depths.
        recall: Ask for one of many numbers that make a long text, at five depths.
        baseline: A bundle of the same model and tokenizer.
        window: Tokens that are read at a time; None: 1024, or 129 more than `context_tokens`; or the context if it is
            shorter.
        context_tokens: So many tokens of a window are read as a prompt, and what follows is scored token by token;
            None: windows are scored as a whole.
        trials: Questions at each depth.
        pairs: Keys with numbers in each text of `recall`; None: as many as fit, up to 80.
        seed: Of the intervals and of the numbers.
        batch: Windows side by side; None: the largest batch of the bundle.
        limit: At most so many windows of the text, from its beginning.
        backend, threads, native: As `Session.open`.
        require_digest: As `evaluate` takes it.
        progress: Called with the name of each step.

    Raises:
        ConfigError: The text cannot be read or is too short, a number is out of range, or the tokenizers differ.
        BundleError, UnsupportedError: As `Generator.open`, or a bundle gives what is no number.
    """
    say = progress or (lambda text: None)
    check_numbers(
        **{"window": window, "context-tokens": context_tokens, "trials": trials, "pairs": pairs},
        **{"batch": batch, "limit": limit, "threads": threads},
    )
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed}; give a whole number from 0.")
    required = as_digests(require_digest)
    content = None if perplexity is None else _read(Path(perplexity))
    start, started_at = time.monotonic(), datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    with ExitStack() as stack:
        paths = [bundle, *([] if baseline is None else [baseline])]
        texts = [BundleText(open_bundle(path, require_digest=required)) for path in paths]
        for text in texts:
            stack.callback(text.close)
        size = _window(texts, window, context_tokens)
        windows: list[list[int]] = []
        scored_bytes = 0
        if content is not None:
            windows, scored_bytes = windows_to_score(texts, content, str(perplexity), size, limit, context_tokens)
        questions = questions_to_ask(texts[0], size, trials, seed, needle=needle, recall=recall, pairs=pairs)
        say("loading")
        generators = []
        for text in texts:
            reads, scores_whole = bool(questions) or context_tokens is not None, content is not None
            graphs = graphs_for(text.bundle.manifest, read=reads, score=scores_whole and context_tokens is None)
            session = Session.open(text.bundle, backend=backend, threads=threads, native=native, graphs=graphs)
            generators.append(Generator(stack.enter_context(session), text=text))
        scores = [
            scores_behind(generator, windows, context_tokens, batch, say)
            for generator in generators
            if content is not None
        ]
        found = [perplexity_of(values, scored_bytes, seed=seed) for values in scores]
        asked: dict[str, Any] = {}
        for kind in (NEEDLE, RECALL):
            mine = questions.get(kind, [])
            right = [answers_to(generator, mine, batch, say) for generator in generators if mine]
            shares = [found_of(mine, each) for each in right]
            asked[kind], asked[f"baseline_{kind}"] = (*shares, None, None)[:2]
            asked[f"{kind}_change"] = change_of_answers(mine, *right) if len(right) > 1 else None
        return TextEvaluation(
            started_at=started_at,
            bundle=described(generators[0].session),
            baseline=described(generators[1].session) if len(generators) > 1 else None,
            data={
                "text": None if perplexity is None else str(perplexity),
                "bytes": scored_bytes,
                "windows": len(windows),
                "needles": len(questions.get(NEEDLE, [])),
                "recalls": len(questions.get(RECALL, [])),
            },
            perplexity=found[0] if found else None,
            baseline_perplexity=found[1] if len(found) > 1 else None,
            change=change_of(*scores, seed=seed) if len(scores) > 1 else None,
            **asked,
            protocol={
                "backend": backend,
                "threads": threads,
                "batch": batch or texts[0].bundle.manifest.batch.max,
                "window": size,
                "context_tokens": context_tokens,
                "caches_compressed": [_compresses(text) for text in texts],
                "seed": seed,
                "trials": trials if questions else None,
                "pairs": pairs,
                "interval": "95 %: bootstrap over blocks of 64 tokens; Wilson's of shares",
            },
            device=describe_device(),
            versions=package_versions(),
            seconds=time.monotonic() - start,
        )


def _read(path: Path) -> str:
    try:
        content = read_regular(path, limit=LARGEST_TEXT)
    except OSError as error:
        raise ConfigError(f"--perplexity: '{path}' cannot be read ({error.strerror}); give a text file.") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--perplexity: '{path}' is no UTF-8 (the byte {content[error.start]:#04x} at {error.start}); convert it."
        ) from None


def _window(texts: Sequence[BundleText], window: int | None, context_tokens: int | None) -> int:
    """Tokens of a window, which every bundle can read."""
    most = min((text.context for text in texts if text.context is not None), default=None)
    least = 2 if context_tokens is None else context_tokens + 2
    if window is None:
        window = USUAL_WINDOW if context_tokens is None else context_tokens + USUAL_CONTINUATION
        window = min(window, most or window)
        if window < least:
            raise ConfigError(
                f"--context-tokens {context_tokens} leaves nothing to score; the bundles read {most} tokens at a time: "
                f"give {max(most or 0, 3) - 2} at most."
            )
    if window < least or most is not None and window > most:
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        behind = "" if context_tokens is None else f" behind --context-tokens {context_tokens}"
        raise ConfigError(f"--window {window}; the bundles read {allowed} tokens at a time{behind}.")
    return window


def windows_to_score(
    texts: Sequence[BundleText], content: str, name: str, size: int, limit: int | None, context_tokens: int | None
) -> tuple[list[list[int]], int]:
    """The windows of a text, and the bytes that are scored."""
    tokens = texts[0].encode(content, special=False)
    for text in texts[1:]:
        if text.encode(content, special=False) != tokens:
            raise ConfigError(
                f"'{text.bundle.path}' makes other tokens of the text than '{texts[0].bundle.path}', so that their "
                "perplexities cannot be compared; give a baseline with the same tokenizer."
            )
    begin = texts[0].encode("")
    windows = windows_of(tokens, size, begin if len(begin) < size else [])
    least = 2 if context_tokens is None else context_tokens + 2
    if context_tokens is not None:
        windows = [window for window in windows if len(window) >= least]
    if not windows:
        many = "two" if context_tokens is None else str(least)
        raise ConfigError(f"--perplexity: '{name}' has {len(tokens)} tokens; give a text of {many} at least.")
    if context_tokens is None:
        for text in texts:
            _check_scores(text)
    windows = windows[:limit]
    if context_tokens is not None:
        return windows, sum(len(texts[0].decode(window[context_tokens + 1 :]).encode()) for window in windows)
    read = sum(len(window) - len(begin) for window in windows)
    return windows, len((content if read >= len(tokens) else texts[0].decode(tokens[:read])).encode())


def _compresses(text: BundleText) -> bool:
    """Whether caches are compressed behind a prompt, or tokens that are written are read otherwise than its own."""
    procedure = text.bundle.manifest.procedure
    assert procedure is not None
    return bool(procedure.upkeep) or procedure.prompt.graphs != procedure.step.graphs


def _check_scores(text: BundleText) -> None:
    """Refuse a bundle that scores no tokens."""
    procedure = text.bundle.manifest.procedure
    assert procedure is not None
    if (procedure.score or procedure.prompt).rows == "last":
        raise ConfigError(
            f"'{text.bundle.path}' gives the logits of the last token only, and scores no text; export it with a score "
            "graph."
        )


def questions_to_ask(
    text: BundleText,
    size: int,
    trials: int,
    seed: int,
    *,
    needle: bool,
    recall: bool,
    pairs: int | None,
    together: int = 0,
) -> dict[str, list[TextQuestion]]:
    """The questions of each kind that is asked for; `together` as `needles` takes it."""
    room = size - MAX_NEW

    def count(question: TextQuestion) -> int:
        return len(_prompt(text, question))

    if pairs is not None and not recall:
        raise ConfigError("--pairs is of --recall; give that too, or leave it out.")
    if pairs is not None and not 2 <= pairs <= MOST_PAIRS:
        raise ConfigError(f"--pairs {pairs} is out of range; give 2 to {MOST_PAIRS}.")
    found: dict[str, list[TextQuestion]] = {}
    makers: dict[str, Callable[..., list[TextQuestion]]] = {
        NEEDLE: partial(needles, together=together),
        RECALL: partial(recalls, pairs=pairs, together=together),
    }
    for kind in [name for name, is_asked in ((NEEDLE, needle), (RECALL, recall)) if is_asked]:
        try:
            found[kind] = makers[kind](count, room, trials, seed)
        except ValueError as error:
            raise ConfigError(f"--{kind}: {error}, and there is room for {room}; give a larger --window.") from None
    return found


def _prompt(text: BundleText, question: TextQuestion) -> list[int]:
    """A question as the model is asked, by its chat template if it has one, with the beginning of the answer."""
    if text.template is None:
        return text.encode(f"{question.text}\n{question.opening}")
    asked = text.chat([{"role": "user", "content": question.text}])
    return [*asked, *text.encode(question.opening, special=False)]


def scores_behind(
    generator: Generator, windows: list[list[int]], prompt: int | None, batch: int | None, say: Progress
) -> list[Array]:
    size = batch or generator.session.bundle.manifest.batch.max
    found: list[Array] = []
    for start in range(0, len(windows), size):
        say(f"window {start + 1} of {len(windows)}")
        found += generator.score(windows[start : start + size], prompt=prompt, batch=size)
    if any(not np.isfinite(values).all() for values in found):
        raise UnsupportedError(
            f"'{generator.session.bundle.path}' gives probabilities that are 0 or no numbers, so that the text has no "
            "perplexity; verify it, or export it in a precision of more range."
        )
    return found


def answers_to(generator: Generator, asked: Sequence[TextQuestion], batch: int | None, say: Progress) -> list[bool]:
    """Which questions are answered rightly. What questions to one text have in common is read once, as far as it fills
    runs of the prompt, so that it is read as it would be for each of them."""
    size = batch or generator.session.bundle.manifest.batch.max
    prompts = [_prompt(generator.text, one) for one in asked]
    right: list[bool] = []
    shares = _can_share(generator) and len({one.document for one in asked}) < len(asked)
    for _, group in groupby(range(len(asked)), lambda at: asked[at].document if shares else 0):
        places = list(group)
        prefix = _shared(generator, [prompts[at] for at in places]) if shares else None
        for start in range(0, len(places), size):
            some = places[start : start + size]
            say(f"{asked[some[0]].kind} {some[0] + 1} of {len(asked)}")
            right += _answered(generator, [asked[at] for at in some], [prompts[at] for at in some], prefix, size)
    return right


def _can_share(generator: Generator) -> bool:
    """Whether the beginning of prompts can be read apart from them, of one sequence for many."""
    manifest = generator.session.bundle.manifest
    procedure = manifest.procedure
    return procedure is not None and not procedure.prompt.whole and manifest.fixed_batch is None


def _shared(generator: Generator, prompts: Sequence[list[int]]) -> Prefix | None:
    """What prompts begin with, as far as it fills whole runs; None: that is nothing."""
    manifest = generator.session.bundle.manifest
    procedure = manifest.procedure
    assert procedure is not None
    run = range_of(procedure.prompt, manifest.lengths)[1]
    common = min(alike(min(prompts), max(prompts)), min(map(len, prompts)) - 1)
    whole = common // run * run
    return generator.prefix(prompts[0][:whole], goes_on=True) if whole else None


def _answered(
    generator: Generator,
    asked: Sequence[TextQuestion],
    prompts: Sequence[list[int]],
    prefix: Prefix | None,
    batch: int,
) -> list[bool]:
    """Which questions are answered rightly; an answer is written as far as that depends on it."""
    texts = [""] * len(asked)
    how: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 1.0}
    with generator.stream(prompts, max_new=MAX_NEW, prefix=prefix, batch=batch, **how) as stream:
        for piece in stream:
            texts[piece.sequence] += piece.text
            if piece.reason is None and asked[piece.sequence].settled(texts[piece.sequence]) is not None:
                stream.cancel(piece.sequence)
        answers = stream.results()
    return [one.is_right(answer.text) for one, answer in zip(asked, answers, strict=True)]


def found_of(asked: Sequence[TextQuestion], right: Sequence[bool]) -> Found:
    """The shares of right answers, with intervals that know which questions are of one text."""

    def of(depth: float | None) -> Share:
        mine = [at for at, one in enumerate(asked) if depth in (None, one.depth)]
        effect = effect_of_groups(_by_document([asked[at] for at in mine], [right[at] for at in mine]))
        return share(sum(right[at] for at in mine), len(mine), effect=effect)

    return Found(all=of(None), by_depth={depth: of(depth) for depth in dict.fromkeys(one.depth for one in asked)})


def change_of_answers(asked: Sequence[TextQuestion], ours: Sequence[bool], theirs: Sequence[bool]) -> Difference:
    """The difference of two lists of answers to the same questions."""
    pairs = list(zip(ours, theirs, strict=True))
    effect = effect_of_groups(_by_document(asked, [int(a) - int(b) for a, b in pairs]))
    won, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    return difference(won, lost, len(pairs), effect=effect)


def _by_document(asked: Sequence[TextQuestion], values: Sequence[float]) -> list[list[float]]:
    groups: dict[int, list[float]] = {}
    for one, value in zip(asked, values, strict=True):
        groups.setdefault(one.document, []).append(value)
    return list(groups.values())
