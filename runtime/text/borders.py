"""Places in a text that what follows cannot move: from there on it may be encoded by itself.

A tokenizer's front finds pieces from left to right, and how it does says what they depend on. For the rules that are
known here, a piece that begins right behind a letter, with a space or a punctuation mark, begins there whatever comes
later, and what comes from there on is split as if it were a text of its own. Other rules have no such places.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trt_compress.foreign import needs_extra, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

_SPACES = frozenset(" \n\t\r")
_MARKS = frozenset('!"#$%&()*+,-./:;<=>?@[]^_`{|}~\\' + "。，、！？；：）（」「")  # no apostrophes: of contractions
_NORMALIZERS = frozenset(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "ByteLevel"))
_SPLITTERS = frozenset(("ByteLevel", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Punctuation", "Digits"))
_RULES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"'(?i:[sdmt]|ll|ve|re)",
    r"'(?:[sdmt]|ll|ve|re)",
    r"'s|'t|'re|'ve|'m|'ll|'d",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?+\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
    r" ?\p{L}+",
    r"\p{N}",
    r"\p{N}+",
    r"\p{N}{1,3}",
    r" ?\p{N}+",
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r" ?[\p{P}\p{S}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s*[\r\n]",
    r"\s+(?!\S)",
    r"\s+$",
    r"\s+",
    r"\s",
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    r"[一-龥]+",
    r"[一-龥ࠀ-一가-퟿]+",
    r"[一-龥぀-ゟ゠-ヿ]+",
)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_LOCAL = frozenset(
    (
        *_RULES,
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDS}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDS}",
    )
)
"""Alternatives of splitting rules, each of which takes a run of one class of characters, with at most one character of
another in front and ends of lines or a contraction behind."""


class Borders:
    """Where a tokenizer's texts may be cut so that both parts have the tokens of the whole.

    Attributes:
        why_none: Why there are no such places; None: there are.
    """

    def __init__(self, library: "Library") -> None:
        """Look at a tokenizer; it is not changed."""
        with needs_extra("text"):
            from tokenizers import Tokenizer as Library
            from tokenizers.models import BPE
        self._library = library
        front = Library(BPE())
        if library.normalizer is not None:
            front.normalizer = library.normalizer
        if library.pre_tokenizer is not None:
            front.pre_tokenizer = library.pre_tokenizer
        said: dict[str, Any] = json.loads(front.to_str())
        added = [token.content for token in library.get_added_tokens_decoder().values()]
        self._reach = max(map(len, added), default=0) + 1
        self._only_spaces = False
        self.why_none = self._refusal(said)

    def last(self, text: str, encoded: Any) -> tuple[int, int]:
        """The last place that nothing behind `text` moves.

        Args:
            text: A text, from a border or its beginning on.
            encoded: What the library made of it.

        Returns:
            Tokens in front of the place, and characters; (0, 0) if there is none.
        """
        if self.why_none is not None:
            return 0, 0
        words, spans = encoded.word_ids, encoded.offsets
        newest = len(text) - self._reach
        seen_letter_from = next((at for at in range(newest - 1, -1, -1) if text[at].isalnum()), -1)
        for token in range(len(spans) - 1, 0, -1):
            place = spans[token][0]
            if place >= seen_letter_from or words[token] == words[token - 1] or spans[token - 1][1] != place:
                continue
            if self._holds(text, place):
                return token, place
        return 0, 0

    def _holds(self, text: str, place: int) -> bool:
        if place < 1 or not text[place - 1].isalpha():
            return False
        return text[place] == " " if self._only_spaces else text[place] in _SPACES or text[place] in _MARKS

    def _refusal(self, said: Mapping[str, Any]) -> str | None:
        for part in _parts(said.get("normalizer"), "normalizers"):
            if part["type"] not in _NORMALIZERS:
                return f"its normalizer {shown(str(part['type']))} looks further than one place"
        splitters = list(_parts(said.get("pre_tokenizer"), "pretokenizers"))
        if not splitters:
            return "it does not split texts before they are encoded"
        finds_pieces = False
        for part in splitters:
            kind = part["type"]
            if kind == "Split":
                pattern = part.get("pattern", {}).get("Regex")
                if pattern is None or not _is_local(pattern) or part.get("invert"):
                    return "its splitting rule is not known here"
                finds_pieces = True
            elif kind == "Metaspace":
                if not part.get("split", True) or part.get("replacement") == " ":
                    return "it does not split texts before they are encoded"
                self._only_spaces = finds_pieces = True
            elif kind not in _SPLITTERS:
                return f"its pre-tokenizer {shown(str(kind))} is not known here"
            else:
                finds_pieces |= kind != "ByteLevel" or bool(part.get("use_regex", True))
                self._only_spaces |= bool(part.get("add_prefix_space", False))
        if getattr(self._library.model, "dropout", None):
            return "it leaves out merges by chance"
        return None if finds_pieces else "it does not split texts before they are encoded"


def _parts(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    if not isinstance(part, dict):
        return
    if part.get("type") == "Sequence":
        for one in part.get(inner) or ():
            yield from _parts(one, inner)
    else:
        yield part


def _is_local(pattern: str) -> bool:
    written = pattern.replace("\r", r"\r").replace("\n", r"\n")  # some files hold the characters themselves
    return all(part in _LOCAL for part in _alternatives(written)) or written in _LOCAL


def _alternatives(pattern: str) -> Sequence[str]:
    """The alternatives of a rule at its outermost level."""
    parts, depth, in_class, start, at = [], 0, False, 0, 0
    while at < len(pattern):
        character = pattern[at]
        if character == "\\":
            at += 1
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and depth == 0:
            parts.append(pattern[start:at])
            start = at + 1
        at += 1
    return [*parts, pattern[start:]]
