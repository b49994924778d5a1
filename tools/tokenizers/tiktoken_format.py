"""Vocabularies in the form of tiktoken: a line `base64 rank` for each token, and a rule by which text is split before.

True BPE by ranks is given to the library `tokenizers` as merges: every pair of tokens that together are a token, in the
order of the rank of what they become.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trt_compress.errors import ConfigError
from trt_compress.foreign import needs_extra
from trt_compress.runtime.text.pieces import byte_characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"

PATTERNS: Mapping[str, str] = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}",
    "qwen": rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}",
    "o200k": (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDS}?|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDS}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
    ),
}
"""The rules of vocabularies that are published in this form, by name."""

_ALIASES = {"r50k": "gpt2", "p50k": "gpt2", "multilingual": "gpt2"}
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d{1,9}")


def looks_like_ranks(content: bytes) -> bool:
    """Whether a file begins as one of this form does."""
    return _LINE.fullmatch(content.partition(b"\n")[0].strip()) is not None


def pattern_for(file_name: str, given: str | None, where: str) -> str:
    """The rule of a vocabulary: the one that is given, by name or as it stands; else the one its file name says.

    Raises:
        ConfigError: None is given, and the name says none.
    """
    if given is not None:
        return PATTERNS.get(given, given)
    names = {**{name: name for name in PATTERNS}, **_ALIASES}
    for start, name in names.items():
        if start in file_name.lower():
            return PATTERNS[name]
    raise ConfigError(
        f"{where} does not say how text is split before its ranks are used; give --pattern, one of "
        f"{', '.join(PATTERNS)} or a regular expression."
    )


def read_ranks(content: bytes) -> dict[bytes, int]:
    """The ranks of all tokens.

    Raises:
        ValueError: A line is not of this form, or a token or a rank stands there twice; the message says where.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        if _LINE.fullmatch(line.strip()) is None:
            raise ValueError(f"line {number} is not 'base64 rank'")
        written, rank = line.split()
        try:
            token = base64.b64decode(written, validate=True)
        except binascii.Error:
            raise ValueError(f"line {number} is not base64") from None
        if token in ranks:
            raise ValueError(f"the token of line {number} stands there twice")
        ranks[token] = int(rank)
    if len(set(ranks.values())) < len(ranks):
        raise ValueError("two tokens have one rank")
    return ranks


def library_from_ranks(ranks: Mapping[bytes, int], pattern: str, where: str) -> "Library":
    """True BPE by ranks, as the library `tokenizers` runs it.

    Args:
        ranks: Of all tokens; the rank is the token's number, too.
        pattern: The regular expression that splits a text into pieces.
        where: The file, as it stands in messages.

    Raises:
        ConfigError: The pattern is no regular expression.
        UnsupportedError: The library is not installed.
    """
    with needs_extra("text"):
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    alphabet = byte_characters()
    written = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    pairs = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            first, second = token[:cut], token[cut:]
            if first in ranks and second in ranks:
                pairs.append((rank, ranks[first], ranks[second], written[first], written[second]))
    pairs.sort()
    vocabulary = {text: ranks[token] for token, text in written.items()}
    merges = [(first, second) for *_, first, second in pairs]
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:
        raise ConfigError(f"--pattern {pattern[:80]!r} of {where} is no regular expression ({error}).") from None
    back = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, back])
    library.decoder = decoders.ByteLevel()
    return library
