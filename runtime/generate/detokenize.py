"""Tokens become text one by one: what has been given out never changes, and together it is the text of all of them.

What a tokenizer decodes is a function of the whole sequence: the bytes of a character lie in several tokens, and a
space is dropped at the beginning only. Text is given out up to a token behind which nothing that follows can change it,
and each time only the tokens since the last such place, and those that gave the text before it, are decoded.
"""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
_BEFORE = 16  # tokens in front of a text that are looked at

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """The text of a sequence of tokens as it grows."""

    def __init__(
        self, decode: Decode, *, is_open: Callable[[int], bool | None] = lambda token: False, before: Sequence[int] = ()
    ) -> None:
        """Begin a text.

        Args:
            decode: The text of a sequence of tokens.
            is_open: Whether a token is one byte of a run of them that is decoded only as a whole; None: it has no text.
            before: Tokens in front of it, whose text is not given out.
        """
        self._decode = decode
        self._is_open = is_open
        self._tokens: list[int] = []
        self._open = False
        for token in before[-_BEFORE:]:
            self._take(token)
        self._given = decode(self._tokens) if self._tokens else ""
        if self._open or self._given.endswith(_REPLACEMENT):  # it ends within a character: nothing can be told apart
            self._tokens, self._open, self._given = [], False, ""
        self._start, self._done = 0, len(self._tokens)

    def add(self, token: int) -> str:
        """The text that is now certain; often none."""
        self._take(token)
        if self._open:
            return ""
        text = self._decode(self._tokens[self._start :])
        if text.endswith(_REPLACEMENT) or len(text) <= len(self._given):
            return ""
        return self._give(text)

    def rest(self) -> str:
        """What is left when no token follows."""
        return self._give(self._decode(self._tokens[self._start :]))

    def _take(self, token: int) -> None:
        self._tokens.append(token)
        is_open = self._is_open(token)
        self._open = self._open if is_open is None else is_open

    def _give(self, text: str) -> str:
        new = text[len(self._given) :]
        own = self._decode(self._tokens[self._done :])
        if own:  # else what follows would be decoded as if it were the beginning
            self._start, text = self._done, own
        self._given, self._done = text, len(self._tokens)
        return new


class StopTexts:
    """Gives a text out up to the first text that ends it, of which nothing is given out.

    The first is the one that is complete first, of several the longest: however the text comes in pieces, it ends in
    the same place.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """What can be given out of what was held back and this, and whether the text has ended."""
        held = self._held + text
        found = [(place + len(stop), place) for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self._held = ""
            return held[: min(found)[1]], True
        kept = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - kept :]
        return held[: len(held) - kept], False

    def rest(self) -> str:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
