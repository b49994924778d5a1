"""Texts that grow, that are counted and that are cut, always as the whole text would be encoded.

What is told of a text by its beginning alone is told by `Borders`; where a tokenizer has none, the whole text is
encoded each time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_compress.errors import ConfigError
from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.runtime.text.borders import Borders
from trt_compress.runtime.text.encoder import Encoder

if TYPE_CHECKING:
    from tokenizers import Encoding

_WINDOW = 1 << 14  # characters that are counted at once


@dataclass(frozen=True, slots=True)
class Change:
    """What a text's tokens became when it grew.

    Attributes:
        kept: So many of the tokens before stay; those behind them are gone.
        added: What comes behind them now.
    """

    kept: int
    added: list[int]


class GrowingText:
    """The tokens of a text that grows: after each piece, exactly those of the whole text, without anything around it.

    Attributes:
        why_whole: Why the whole text is encoded each time; None: only its end is.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Begin an empty text."""
        self._encoder = encoder
        self._borders = Borders(encoder.library) if isinstance(encoder, Tokenizer) else None
        self.why_whole = "it is no tokenizer.json" if self._borders is None else self._borders.why_none
        self._settled: list[int] = []
        self._open: list[int] = []
        self._text = ""  # what the open tokens come from

    @property
    def tokens(self) -> list[int]:
        """All of them."""
        return [*self._settled, *self._open]

    @property
    def num_tokens(self) -> int:
        """How many there are."""
        return len(self._settled) + len(self._open)

    @property
    def num_settled(self) -> int:
        """So many at the beginning will stay whatever comes."""
        return len(self._settled)

    def append(self, text: str) -> Change:
        """Put a piece behind the text.

        Raises:
            ConfigError: It holds half of a character.
        """
        before, kept = self._open, len(self._settled)
        self._text += text
        if self._borders is None:
            found = self._encoder.encode(self._text, special=False)
            settled = 0
        else:
            encoded = _encoded(self._encoder, self._text)
            found = list(encoded.ids)
            settled, place = self._borders.last(self._text, encoded)
            self._text = self._text[place:]
        alike = next((at for at, pair in enumerate(zip(before, found, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(before), len(found)) if alike is None else alike
        self._settled += found[:settled]
        self._open = found[settled:]
        return Change(kept + same, found[same:])


def count_tokens(encoder: Encoder, text: str, *, at_most: int | None = None) -> int:
    """How many tokens a text has, without anything around it; in windows, so that memory does not grow with it.

    Args:
        encoder: The tokenizer.
        text: The text.
        at_most: Stop when there are more; what is given back is then above this.

    Raises:
        ConfigError: The text holds half of a character.
    """
    total = 0
    windows = (text[start : start + _WINDOW] for start in range(0, len(text), _WINDOW))
    for total in _counts(encoder, windows):
        if at_most is not None and total > at_most:
            break
    return total


def _counts(encoder: Encoder, parts: Iterable[str]) -> Iterator[int]:
    """How many tokens are settled after each part, and last how many there are."""
    growing = GrowingText(encoder)
    if growing.why_whole is not None:
        yield len(encoder.encode("".join(parts), special=False))
        return
    settled = 0
    for part in parts:
        growing.append(part)
        settled += len(growing._settled)
        growing._settled = []
        yield settled
    yield settled + len(growing._open)


def split_text(encoder: Encoder, text: str, tokens: int) -> list[str]:
    """Cut a text into parts that have at most `tokens` tokens each when they are encoded by themselves.

    A cut is where a token of the whole text ends, or where the character that it ends in begins; it comes earlier only
    where the part by itself would have too many. The parts together are the text; an empty one has none.

    Args:
        encoder: The tokenizer.
        text: The text.
        tokens: The most tokens of a part.

    Raises:
        ConfigError: `tokens` is below 1, or a character has more; or the text holds half of a character.
    """
    if tokens < 1:
        raise ConfigError(f"Parts of {tokens} tokens: a part has at least 1; give a larger number.")
    _, spans = encoder.spans(text)
    cuts = _cuts(spans, len(text))
    parts: list[str] = []
    start = token = 0
    while start < len(text):
        while token < len(spans) and cuts[token] <= start:  # the first token that ends behind the cut
            token += 1
        last = min(token + tokens, len(spans)) - 1
        end = len(text) if last + 1 >= len(spans) else cuts[last]
        while end > start and (more := len(encoder.encode(text[start:end], special=False)) - tokens) > 0:
            last -= more
            end = cuts[last] if last >= token else start
        if end <= start:
            end = _least(encoder, text, start, tokens)
        parts.append(text[start:end])
        start = end
    return parts


def _cuts(spans: list[tuple[int, int]], length: int) -> list[int]:
    """Of each token the last place at or before its end that no later token begins before."""
    cuts = [0] * len(spans)
    least = length
    for token in range(len(spans) - 1, -1, -1):
        cuts[token] = min(spans[token][1], least)
        least = min(least, spans[token][0])
    return cuts


def _least(encoder: Encoder, text: str, start: int, tokens: int) -> int:
    """Behind one character, where no token's end was found to cut at."""
    number = len(encoder.encode(text[start], special=False))
    if number > tokens:
        raise ConfigError(
            f"Parts of {tokens} token{'s'[: tokens > 1]} cannot hold the character {text[start]!r}, which has "
            f"{number}; give a larger number."
        )
    return start + 1


def _encoded(encoder: Encoder, text: str) -> "Encoding":
    assert isinstance(encoder, Tokenizer)
    return encoder.encoding(text)
