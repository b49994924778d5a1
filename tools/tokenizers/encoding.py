"""Texts as tokens, by merges and by the vocabulary alone, side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.runtime.text.merge_free import Mode
from trt_compress.tools.tokenizers.sources import TokenizerSource, vocabulary_only
from trt_compress.tools.tokenizers.texts import TextFile

TIE_RULE = "fewest pieces; of several ways the longest last piece, then the longest last but one, and so on"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedText:
    """A text as tokens.

    Attributes:
        name: Where it stands: the file, and the line.
        tokens: Without anything around it.
        num_bpe: How many the tokenizer itself makes of it.
        differs: Whether they are others than its own.
    """

    name: str
    tokens: tuple[int, ...]
    num_bpe: int
    differs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Texts as tokens.

    Attributes:
        texts: Each.
        mode: How they were encoded; None: as the tokenizer does.
        pieces: What the model was given in all; None: not known, as the tokenizer does not say where they end.
        pieces_that_differ: Those whose tokens are others than the tokenizer's.
        missing_bytes: Bytes, of the 256, that are no entry of the vocabulary; with none every text has an encoding.
    """

    texts: tuple[EncodedText, ...]
    mode: Mode | None
    pieces: int | None = None
    pieces_that_differ: int | None = None
    missing_bytes: int | None = None

    @property
    def tokens(self) -> int:
        """How many in all."""
        return sum(len(text.tokens) for text in self.texts)

    @property
    def tokens_bpe(self) -> int:
        """How many the tokenizer itself makes."""
        return sum(text.num_bpe for text in self.texts)

    @property
    def texts_that_differ(self) -> int:
        """Texts whose tokens are others than the tokenizer's."""
        return sum(text.differs for text in self.texts)

    def to_json(self, *, ids: bool = True) -> dict[str, Any]:
        """As plain values; `ids`: with the tokens themselves."""
        return {
            "mode": self.mode or "merges",
            "tie_rule": TIE_RULE if self.mode == "exact" else None,
            "tokens": self.tokens,
            "tokens_bpe": self.tokens_bpe,
            "texts_that_differ": self.texts_that_differ,
            "pieces": self.pieces,
            "pieces_that_differ": self.pieces_that_differ,
            "missing_bytes": self.missing_bytes,
            "texts": [
                {"name": text.name, **({"tokens": list(text.tokens)} if ids else {}), "tokens_bpe": text.num_bpe}
                for text in self.texts
            ],
        }


def lines_of(files: Iterable[TextFile], *, whole: bool) -> list[tuple[str, str]]:
    """The texts of files with their names: each line that is not blank, without its end; or each file."""
    if whole:
        return [(file.name, file.text) for file in files]
    return [
        (f"{file.name}:{number}", line)
        for file in files
        for number, line in enumerate(file.text.splitlines(), 1)
        if line.strip()
    ]


def encode_texts(source: TokenizerSource, texts: Sequence[tuple[str, str]], mode: Mode | None) -> Encoded:
    """Encode texts.

    Args:
        source: The tokenizer.
        texts: Name and text of each.
        mode: By its vocabulary alone, and how; None: as it does itself.

    Raises:
        ConfigError: The vocabulary does not cover a text, or for `exact` not every byte.
        UnsupportedError: Its pieces are no byte strings.
    """
    if mode is None:
        plain = [(name, source.encoder.encode(text, special=False)) for name, text in texts]
        return Encoded(
            texts=tuple(
                EncodedText(name=name, tokens=tuple(ids), num_bpe=len(ids), differs=False) for name, ids in plain
            ),
            mode=None,
        )
    alone = vocabulary_only(source)
    if mode == "exact":
        alone.check_coverage(f"'{source.name}'")
    found, pieces, differing = [], 0, 0
    for name, text in texts:
        parts = alone.by_piece(text, mode)
        ids = [number for part in parts for number in part]
        theirs = _by_piece(source, text)
        own = [number for part in theirs for number in part]
        pieces += len(parts)
        differing += sum(a != b for a, b in zip(parts, theirs, strict=True)) if len(parts) == len(theirs) else 0
        found.append(EncodedText(name=name, tokens=tuple(ids), num_bpe=len(own), differs=ids != own))
    return Encoded(
        texts=tuple(found),
        mode=mode,
        pieces=pieces,
        pieces_that_differ=differing,
        missing_bytes=len(alone.merge_free.missing),
    )


def _by_piece(source: TokenizerSource, text: str) -> list[list[int]]:
    """What the tokenizer itself makes of each piece of a text."""
    if not isinstance(source.encoder, Tokenizer):
        found = source.encoder.encode(text, special=False)
        return [found] if found else []
    encoded = source.encoder.encoding(text)
    parts: list[list[int]] = []
    last: int | None = None
    for number, word in zip(encoded.ids, encoded.word_ids, strict=True):
        if word != last or not parts:
            parts.append([])
            last = word
        parts[-1].append(number)
    return parts
