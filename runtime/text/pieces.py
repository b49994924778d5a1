"""The byte strings that a tokenizer's model is given: its own normalizer, added tokens and pre-tokenizer, then bytes.

They come from a tokenizer beside it that has the same front and, as its model, one token a byte and no merges.
"""

import json
from typing import TYPE_CHECKING, Any, Protocol

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import needs_extra, reading
from trt_compress.runtime.generate.tokenizer import panics_said
from trt_compress.runtime.text.merge_free import MergeFree, Mode

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

Part = int | bytes
"""An added token, or a piece of text that the model encodes by itself."""


class Front(Protocol):
    """What makes pieces of a text, and the vocabulary that they are encoded with."""

    vocabulary: dict[bytes, int]

    def of(self, text: str) -> list[Part]:
        """What the model is given of a text, in order."""
        ...


class TextPieces:
    """The front of a tokenizer, and the vocabulary behind it as byte strings.

    Attributes:
        vocabulary: Number of each byte string that the model knows; special tokens are not among them.
        is_byte_level: Whether a byte is written as one character (GPT-2's way), else text is UTF-8.
    """

    def __init__(self, library: "Library", kind: str) -> None:
        """Look at a tokenizer; it is not changed.

        Args:
            library: It.
            kind: What its model is.

        Raises:
            UnsupportedError: It marks pieces at the ends of words or within them, so that they are no byte strings.
        """
        with needs_extra("text"):
            from tokenizers import Tokenizer as Library
            from tokenizers.models import BPE
        if kind not in ("BPE", "Unigram"):
            raise UnsupportedError(
                f"The tokenizer is of the kind {kind}, whose pieces are no byte strings; give one of BPE or Unigram."
            )
        marks = [getattr(library.model, name, None) for name in ("continuing_subword_prefix", "end_of_word_suffix")]
        if any(marks):
            raise UnsupportedError(
                f"The tokenizer marks pieces by {next(filter(None, marks))!r}, so that they are no byte strings; give "
                "one without continuing_subword_prefix and end_of_word_suffix."
            )
        front = Library(BPE())
        if library.normalizer is not None:
            front.normalizer = library.normalizer
        if library.pre_tokenizer is not None:
            front.pre_tokenizer = library.pre_tokenizer
        said = json.loads(front.to_str())
        self.is_byte_level = _uses_byte_level(said.get("pre_tokenizer")) or _uses_byte_level(said.get("normalizer"))
        alphabet = byte_characters()
        written = alphabet if self.is_byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
        front.model = BPE(
            vocab={text: byte for byte, text in enumerate(written)}, merges=[], byte_fallback=not self.is_byte_level
        )
        self._added: list[int] = []
        added = sorted(library.get_added_tokens_decoder().items())
        for number, token in added:
            (front.add_special_tokens if token.special else front.add_tokens)([token])
            self._added.append(number)
        self._front = front
        self._numbers = {front.token_to_id(token.content): number for number, token in added}
        special = {number for number, token in added if token.special}
        self.vocabulary = _byte_strings(
            {text: number for text, number in library.get_vocab(with_added_tokens=False).items()},
            special,
            {text: byte for byte, text in enumerate(alphabet)} if self.is_byte_level else None,
            bool(getattr(library.model, "byte_fallback", False)),
        )

    def of(self, text: str) -> list[Part]:
        """What the model is given of a text, in order.

        Raises:
            ConfigError: The text holds half of a character, or the library fails on it.
        """
        import numpy as np

        with reading("The text", "give another"), panics_said():
            text.encode()
            found = self._front.encode(text, add_special_tokens=False)
        numbers = np.array(found.ids, dtype=np.int64)
        if not len(numbers):
            return []
        words = np.array(found.word_ids, dtype=np.int64)
        borders = [0, *(np.flatnonzero(np.diff(words)) + 1).tolist(), len(numbers)]
        content = numbers.astype(np.uint8).tobytes()
        parts: list[Part] = []
        for start, end in zip(borders, borders[1:], strict=False):
            number = int(numbers[start])
            parts.append(content[start:end] if number < 256 else self._numbers[number])
        return parts


class VocabularyOnly:
    """Encodes texts by a tokenizer's vocabulary, without its merges; its front and its added tokens stay."""

    def __init__(self, pieces: Front) -> None:
        """Build the trie of the vocabulary.

        Raises:
            ConfigError: It has no vocabulary.
        """
        self.pieces = pieces
        self.merge_free = MergeFree(pieces.vocabulary)

    def check_coverage(self, where: str) -> None:
        """Refuse a vocabulary in which some byte is no piece, so that a text may have no encoding.

        Raises:
            ConfigError: It is one.
        """
        missing = self.merge_free.missing
        if missing:
            some = ", ".join(f"0x{byte:02x}" for byte in missing[:4]) + (", …" if len(missing) > 4 else "")
            raise ConfigError(
                f"The vocabulary of {where} has no piece for {len(missing)} of the 256 bytes ({some}), so that a text "
                "may have no exact encoding; give one with all bytes, or take --vocabulary-only greedy, which says "
                "where it is stuck."
            )

    def encode(self, text: str, mode: Mode) -> list[int]:
        """The tokens of a text, without anything around it.

        Raises:
            ConfigError: The vocabulary does not make up the text; the message says where.
        """
        tokens: list[int] = []
        for numbers in self.by_piece(text, mode):
            tokens += numbers
        return tokens

    def by_piece(self, text: str, mode: Mode) -> list[list[int]]:
        """The tokens of each part that the model is given, added tokens too.

        Raises:
            ConfigError: As `encode`.
        """
        found = []
        for part in self.pieces.of(text):
            numbers = [part] if isinstance(part, int) else self.merge_free.encode(part, mode)
            if numbers is None:
                assert isinstance(part, bytes)
                stop = self.merge_free.greedy(part)[1]
                raise ConfigError(
                    f"The vocabulary has no {mode} encoding of {part[:40]!r}: no piece fits at byte {stop} of it; give "
                    "a tokenizer whose vocabulary has all bytes."
                )
            found.append(numbers)
        return found


def byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies.

    Visible ones of Latin-1 stand for themselves; the others are numbered from U+0100 on, in order.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


def _uses_byte_level(part: Any) -> bool:
    """Whether a part of a front, or one of a sequence of them, writes bytes as characters."""
    if not isinstance(part, dict):
        return False
    inner = [*(part.get("pretokenizers") or ()), *(part.get("normalizers") or ())]
    return part.get("type") == "ByteLevel" or any(map(_uses_byte_level, inner))


def _byte_strings(
    vocabulary: dict[str, int], special: set[int], byte_of: dict[str, int] | None, falls_back: bool
) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    if byte_of is not None:
        for text, number in vocabulary.items():
            if number not in special and all(character in byte_of for character in text):
                found[bytes(byte_of[character] for character in text)] = number
        return found
    if falls_back:
        for byte in range(256):
            if (written := f"<0x{byte:02X}>") in vocabulary:
                found[bytes([byte])] = vocabulary[written]
    for text, number in vocabulary.items():
        if number not in special and not (falls_back and len(text) == 6 and text.startswith("<0x")):
            found[text.encode()] = number
    return found
