"""What every tokenizer can do here, whatever library reads it."""

from collections.abc import Sequence
from typing import Protocol

Spans = list[tuple[int, int]]
"""Of each token the characters [first, end) of the text that it comes from; several may share one character."""


class Encoder(Protocol):
    """A tokenizer that was read."""

    @property
    def size(self) -> int:
        """All numbers of tokens are below it."""
        ...

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text.

        Args:
            text: The text.
            special: With what the model wants around a text.

        Raises:
            ConfigError: It holds half of a character, or the library fails on it.
        """
        ...

    def spans(self, text: str) -> tuple[list[int], Spans]:
        """The tokens of a text without anything around it, and where each comes from.

        Raises:
            ConfigError: As `encode`.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        ...

    def token(self, number: int) -> str:
        """A token as the vocabulary writes it; an empty text where it has none of this number."""
        ...
