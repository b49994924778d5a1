"""Texts as roots and suffixes: how many tokens of which kind, and how often a text does not come back."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import reading, shown, strict_json
from trt_compress.runtime.proportion import Share, share
from trt_compress.runtime.text.turkish.decode import decode
from trt_compress.runtime.text.turkish.encode import Token, encode
from trt_compress.runtime.text.turkish.tables import UNKNOWN, Tables
from trt_compress.tools.tokenizers.texts import read_text

_LARGEST = 1 << 28
_MOST_NUMBER = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A word that does not come back.

    Attributes:
        word: As it was given.
        decoded: What came back.
        count: How often it stands in the texts.
    """

    word: str
    decoded: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Morphology:
    """What was found in a file.

    Attributes:
        name: Of the file.
        texts: How many there are in it.
        num_bytes: Of their UTF-8.
        tokens: How many they became.
        kinds: Tokens by kind: root, suffix, piece, mark (of a capital or a space) and unknown.
        texts_lost: Texts that do not come back, of those that are not empty; None: there is none.
        words_lost: Words, between white space, that do not come back by themselves.
        lost: These words, the most frequent first.
    """

    name: str
    texts: int
    num_bytes: int
    tokens: int
    kinds: dict[str, int]
    texts_lost: Share | None
    words_lost: Share | None
    lost: tuple[Lost, ...]

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


def texts_of(path: Path) -> tuple[str, list[str]]:
    """The name of a file and its texts: the lines of a text, or the list in a `.json`.

    Raises:
        ConfigError: It cannot be read, or is something else.
    """
    if path.suffix != ".json":
        file = read_text(path)
        return file.name, file.text.splitlines()
    found = _json_list(path, "texts")
    if not all(isinstance(text, str) for text in found):
        raise ConfigError(f"'{path}' holds something that is no text; a .json holds a list of texts.")
    return shown(path.name), found


def numbers_of(path: Path) -> list[list[int]]:
    """The lists of tokens in a `.json`.

    Raises:
        ConfigError: It cannot be read, or is something else.
    """
    found = _json_list(path, "lists of tokens")
    for item in found:
        if not isinstance(item, list) or not all(type(number) is int and 0 <= number < _MOST_NUMBER for number in item):
            raise ConfigError(
                f"'{path}' holds {shown(str(item))[:60]!r}; --decode takes a list of lists of tokens, which are whole "
                "numbers from 0."
            )
    return found


def measure(name: str, texts: Sequence[str], tables: Tables, *, mended: bool = False) -> Morphology:
    """Encode texts, decode them, and see what comes back.

    Args:
        name: Of the file, for the result.
        texts: The texts.
        tables: What is known.
        mended: As `decode`.
    """
    kinds: dict[str, int] = dict.fromkeys(("root", "suffix", "piece", "mark", "unknown"), 0)
    lost_texts = num_texts = 0
    words: Counter[str] = Counter()
    for text in texts:
        tokens = encode(text, tables, mended=mended)
        for token in tokens:
            kinds[_kind(token)] += 1
        num_texts += bool(text)
        lost_texts += _decoded(tokens, tables, mended) != text
        words.update(text.split())
    lost = tuple(sorted(_lost(words, tables, mended), key=lambda word: (-word.count, word.word)))
    total = words.total()
    return Morphology(
        name=name,
        texts=len(texts),
        num_bytes=sum(len(text.encode()) for text in texts),
        tokens=sum(kinds.values()),
        kinds=kinds,
        texts_lost=share(lost_texts, num_texts) if num_texts else None,
        words_lost=share(sum(word.count for word in lost), total) if total else None,
        lost=lost,
    )


def details(texts: Sequence[str], tables: Tables, *, mended: bool = False) -> Iterator[dict[str, Any]]:
    """Of each text its tokens and what comes back, as plain JSON data."""
    for text in texts:
        tokens = encode(text, tables, mended=mended)
        decoded = _decoded(tokens, tables, mended)
        yield {
            "text": text,
            "ids": [token.number for token in tokens],
            "tokens": [token.form for token in tokens],
            "kinds": [token.kind for token in tokens],
            "decoded": decoded,
            "comes_back": decoded == text,
        }


def _lost(words: Counter[str], tables: Tables, mended: bool) -> Iterator[Lost]:
    for word, count in words.items():
        decoded = _decoded(encode(word, tables, mended=mended), tables, mended)
        if decoded != word:
            yield Lost(word=word, decoded=decoded, count=count)


def _decoded(tokens: Sequence[Token], tables: Tables, mended: bool) -> str:
    return decode([token.number for token in tokens], tables, mended=mended)


def _kind(token: Token) -> str:
    if token.number == UNKNOWN:
        return "unknown"
    return "mark" if token.kind == "root" and token.form in ("<uppercase>", " ") else token.kind


def _json_list(path: Path, what: str) -> list[Any]:
    with reading(f"'{shown(str(path))}'", f"give a .json that holds a list of {what}"):
        found = strict_json(read_regular(path, limit=_LARGEST), longest=_LARGEST)
        if not isinstance(found, list):
            raise ValueError("it is no list")
    return found
