"""What a tokenizer makes of texts: tokens, bytes a token, use of the vocabulary, times, and words that cost most."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.tools.tokenizers.power_law import PowerLaw, fit_power_law
from trt_compress.tools.tokenizers.sources import TokenizerSource
from trt_compress.tools.tokenizers.texts import TextFile

_REPEATS = 3
_WORST = 10
_MOST_WORDS = 20_000  # different words that are looked at, the most frequent ones
_RESAMPLES = 1000
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Premium:
    """Tokens of a text over those of the same text in the language of reference.

    Attributes:
        ratio: Of the whole texts.
        low, high: 95 % interval, a bootstrap over pairs of lines; None: there are fewer than 20.
        lines: Pairs of lines.
    """

    ratio: float
    low: float | None
    high: float | None
    lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFigures:
    """One text by one tokenizer.

    Attributes:
        name: Of the text.
        tokens, num_bytes, characters: How many it has.
        used: Different tokens among them.
        entropy_bits: Of the distribution of its tokens, a token.
        encode_s, decode_s: Seconds, the median of three.
        worst_words: Word, how often it occurs, and its tokens; those first that cost most beyond one token.
        premium: Over the text of reference; None: the texts are not parallel.
        comes_back: Whether decoding gives the text.
    """

    name: str
    tokens: int
    num_bytes: int
    characters: int
    used: int
    entropy_bits: float
    encode_s: float
    decode_s: float
    worst_words: tuple[tuple[str, int, int], ...]
    premium: Premium | None
    comes_back: bool

    @property
    def bytes_a_token(self) -> float | None:
        """None where there is no token."""
        return self.num_bytes / self.tokens if self.tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFigures:
    """All texts by one tokenizer.

    Attributes:
        name, kind, size: Of the tokenizer.
        texts: Each text.
        used: Different tokens in all of them.
        entropy_bits: Of the distribution over all of them.
    """

    name: str
    kind: str
    size: int
    texts: tuple[TextFigures, ...]
    used: int
    entropy_bits: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "tokenizer": self.name,
            "kind": self.kind,
            "vocabulary": self.size,
            "used": self.used,
            "entropy_bits": self.entropy_bits,
            "texts": [_text_json(text) for text in self.texts],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeAdvice:
    """The size of a vocabulary that a text wants.

    Attributes:
        text: Its name.
        law: The fit over the tokenizers that were given.
        target: Tokens that are wanted.
        size: The smallest vocabulary that reaches them; None: none does.
    """

    text: str
    law: PowerLaw
    target: float
    size: int | None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"text": self.text, "fit": self.law.to_json(), "target_tokens": self.target, "recommended": self.size}


def check_parallel(texts: Sequence[TextFile], reference: TextFile) -> None:
    """Refuse texts whose lines are not those of the reference, one by one.

    Raises:
        ConfigError: One has another number of lines; the message says which, and how many.
    """
    wanted = len(reference.text.splitlines())
    for item in texts:
        if (found := len(item.text.splitlines())) != wanted:
            raise ConfigError(
                f"'{item.name}' has {found} lines and '{reference.name}' {wanted}; parallel texts have one line for "
                "each of the other's: align them, or leave out --parallel."
            )


def measure(
    source: TokenizerSource, texts: Sequence[TextFile], reference: TextFile | None, step: Callable[[str], None]
) -> TokenizerFigures:
    """Measure a tokenizer on texts.

    Args:
        source: The tokenizer.
        texts: The texts.
        reference: What premiums are over; its lines are those of all texts. None: no premiums.
        step: Takes the name of what is being done.
    """
    counted: Counter[int] = Counter()
    lines: dict[str, np.ndarray[Any, Any]] = {}
    if reference is not None:
        for item in {reference.name: reference, **{item.name: item for item in texts}}.values():
            parts = [source.encoder.encode(line, special=False) for line in item.text.splitlines()]
            lines[item.name] = np.array([len(part) for part in parts], np.float64)
    found = []
    for item in texts:
        step(f"{source.name}: {item.name}")
        encode_s, ids = _timed(partial(source.encoder.encode, item.text, special=False))
        decode_s, back = _timed(partial(source.encoder.decode, ids))
        own = Counter(ids)
        counted += own
        found.append(
            TextFigures(
                name=item.name,
                tokens=len(ids),
                num_bytes=item.num_bytes,
                characters=len(item.text),
                used=len(own),
                entropy_bits=entropy_bits(own),
                encode_s=encode_s,
                decode_s=decode_s,
                worst_words=worst_words(source, item.text),
                premium=None if reference is None else premium(lines[item.name], lines[reference.name]),
                comes_back=back == item.text,
            )
        )
    return TokenizerFigures(
        name=source.name,
        kind=source.kind,
        size=source.encoder.size,
        texts=tuple(found),
        used=len(counted),
        entropy_bits=entropy_bits(counted),
    )


def entropy_bits(counts: Counter[int]) -> float:
    """Bits a token of a distribution; 0 without tokens."""
    if not counts:
        return 0.0
    shares = np.array(list(counts.values()), np.float64)
    shares /= shares.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def premium(tokens: "np.ndarray[Any, Any]", reference: "np.ndarray[Any, Any]") -> Premium:
    """Tokens over those of the reference, line by line.

    Raises:
        ConfigError: The reference has no token.
    """
    if not reference.sum():
        raise ConfigError("The text of reference has no tokens, so that nothing can be more; give another --reference.")
    ratio = float(tokens.sum() / reference.sum())
    low, high = ratio_interval(tokens, reference)
    return Premium(ratio=ratio, low=low, high=high, lines=len(tokens))


def ratio_interval(over: "np.ndarray[Any, Any]", under: "np.ndarray[Any, Any]") -> tuple[float | None, float | None]:
    """95 % interval of the ratio of two sums, by drawing pairs of lines again; nothing for fewer than 20 pairs."""
    if len(over) < 20:
        return None, None
    chance = np.random.default_rng(_SEED)
    ratios = []
    for _ in range(_RESAMPLES):
        drawn = chance.integers(0, len(over), len(over))
        below = under[drawn].sum()
        if below:
            ratios.append(over[drawn].sum() / below)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def worst_words(source: TokenizerSource, text: str) -> tuple[tuple[str, int, int], ...]:
    """The words, as white space parts them, that cost most beyond one token each: word, occurrences, tokens.

    Each is encoded with a space in front, as it stands in a text. Equal ones are in the order of the alphabet.
    """
    words = Counter(text.split()).most_common(_MOST_WORDS)
    costs: list[tuple[str, int, int]] = []
    for word, times in words:
        tokens = len(source.encoder.encode(" " + word, special=False))
        if tokens > 1:
            costs.append((word, times, tokens))
    costs.sort(key=lambda cost: (-cost[1] * (cost[2] - 1), cost[0]))
    return tuple(costs[:_WORST])


def advise(figures: Sequence[TokenizerFigures], target: float | None, reference: str | None) -> list[SizeAdvice]:
    """Fit each text's tokens over the sizes of the tokenizers, and say which size reaches a target.

    Args:
        figures: The tokenizers, of three sizes or more, and alike but for these.
        target: Tokens that are wanted; None: those that the text of reference has by the largest vocabulary.
        reference: Its name; None: each text is its own.

    Raises:
        ConfigError: There are fewer sizes.
    """
    sizes = [one.size for one in figures]
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    found = []
    for place, text in enumerate(figures[0].texts):
        law = fit_power_law(sizes, [one.texts[place].tokens for one in figures])
        wanted = target
        if wanted is None:
            name = text.name if reference is None else reference
            wanted = float(next(one.tokens for one in figures[largest].texts if one.name == name))
        found.append(SizeAdvice(text=text.name, law=law, target=wanted, size=law.size_for(wanted)))
    return found


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """The median time of a few calls, and what the last one gave."""
    times = []
    result: Any = None
    for _ in range(_REPEATS):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def _text_json(text: TextFigures) -> dict[str, Any]:
    over = text.premium
    return {
        "text": text.name,
        "tokens": text.tokens,
        "bytes": text.num_bytes,
        "characters": text.characters,
        "bytes_a_token": text.bytes_a_token,
        "used": text.used,
        "entropy_bits": text.entropy_bits,
        "encode_s": text.encode_s,
        "decode_s": text.decode_s,
        "comes_back": text.comes_back,
        "premium": None
        if over is None
        else {"ratio": over.ratio, "low": over.low, "high": over.high, "lines": over.lines},
        "worst_words": [
            {"word": word, "occurrences": times, "tokens": tokens} for word, times, tokens in text.worst_words
        ],
    }
