"""What makes tokens of a text and text of tokens: a `tokenizer.json`, read by the library `tokenizers`."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trt_compress.errors import BundleError, ConfigError, TrtCompressError
from trt_compress.foreign import needs_extra, reading
from trt_compress.format.text import LARGEST_VOCABULARY
from trt_compress.runtime.generate.detokenize import Detokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Library

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """A tokenizer that was read.

    Attributes:
        size: All numbers of tokens are below it.
    """

    def __init__(self, library: "Library") -> None:
        """Take one of the library's own."""
        library.no_padding()
        library.no_truncation()
        self._library = library
        vocabulary = library.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values(), default=-1) + 1
        if self.size > LARGEST_VOCABULARY:  # the library would write a line for every number in between
            raise ConfigError(
                f"A tokenizer has a token of number {self.size - 1}; numbers go to {LARGEST_VOCABULARY - 1}: give one "
                "whose tokens are numbered one by one."
            )
        self._added = {token.content: number for number, token in library.get_added_tokens_decoder().items()}
        self._silent = {number for number, token in library.get_added_tokens_decoder().items() if token.special}
        self._bytes = (
            {number for token, number in vocabulary.items() if _BYTE.fullmatch(token)}
            if _falls_back_to_bytes(json.loads(library.to_str()).get("decoder"))
            else set()
        )
        self._known = set(vocabulary.values())

    @classmethod
    def read(
        cls,
        content: bytes,
        where: str,
        *,
        advice: str = "export the bundle again from a model whose tokenizer loads",
        error: type[TrtCompressError] = BundleError,
    ) -> "Tokenizer":
        """Read a `tokenizer.json`.

        Args:
            content: Its bytes.
            where: The file, as it stands in the message.
            advice: What to do where it is none, as the end of a sentence.
            error: The class to raise then.

        Raises:
            TrtCompressError: Of class `error`: it is none.
            UnsupportedError: The library is not installed.
        """
        with needs_extra("text"):
            from tokenizers import Tokenizer as Library
        with reading(where, advice, error=error), panics_said():
            return cls(Library.from_buffer(content))

    @property
    def library(self) -> "Library":
        """The library's own, to be looked at and not changed."""
        return self._library

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text.

        Args:
            text: The text; special tokens that are written out in it become these.
            special: With what the model wants around a text: its first token.

        Raises:
            ConfigError: It holds half of a character, or the library fails on it.
        """
        with reading("The text", "give another"), panics_said():
            text.encode()
            return list(self._library.encode(text, add_special_tokens=special).ids)

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a text without anything around it, and the characters [first, end) that each comes from.

        Raises:
            ConfigError: As `encode`.
        """
        found = self.encoding(text)
        return list(found.ids), list(found.offsets)

    def encoding(self, text: str) -> "Encoding":
        """All that the library says of a text's tokens, without anything around it.

        Raises:
            ConfigError: As `encode`.
        """
        with reading("The text", "give another"), panics_said():
            text.encode()
            return self._library.encode(text, add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones.

        Raises:
            ConfigError: The library fails on them.
        """
        try:  # once or twice a token: nothing is set up for what never happens
            return str(self._library.decode(list(tokens), skip_special_tokens=True))
        except BaseException:
            with reading("The text of these tokens", "give another tokenizer"), panics_said():
                raise

    def detokenizer(self, before: Sequence[int] = ()) -> Detokenizer:
        """For tokens that come one by one, behind others."""
        return Detokenizer(self.decode, is_open=self._is_open, before=before)

    def token(self, number: int) -> str:
        """A token as the vocabulary writes it; an empty text where it has none of this number."""
        return self._library.id_to_token(number) or ""

    def special(self, text: str) -> int | None:
        """The number of the added token that is written so; None: there is none."""
        return self._added.get(text)

    def check_fits(self, vocabulary: int, where: str) -> None:
        """Refuse a tokenizer whose tokens the model does not have.

        Raises:
            BundleError: It is.
        """
        if self.size > vocabulary:
            raise BundleError(
                f"The tokenizer of '{where}' has tokens up to {self.size - 1}, and the model knows {vocabulary} (0 to "
                f"{vocabulary - 1}); export the bundle again with the tokenizer that belongs to its weights."
            )

    def _is_open(self, token: int) -> bool | None:
        if token in self._silent or token not in self._known:
            return None
        return token in self._bytes


def _falls_back_to_bytes(decoder: Any) -> bool:
    """Whether a decoder, or one of a sequence of them, makes characters of runs of bytes."""
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == "ByteFallback" or any(map(_falls_back_to_bytes, decoder.get("decoders") or ()))


@contextmanager
def panics_said() -> Iterator[None]:
    """What the library raises where it is at fault itself is no Exception; it becomes one.

    Raises:
        ValueError: The library failed, as on a regular expression that takes too many steps.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the library tokenizers failed: {str(error)[:100]}") from error
