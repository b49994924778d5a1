"""Windows of W bits: bytes until one more would not fit, coded from nothing, and the word that says so."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trt_compress.errors import ConfigError
from trt_compress.runtime.text.equal_info.model import BITS, ByteModel

FEWEST_BITS, MOST_BITS = 10, 256
CHUNKS = (8, 16)
"""Bits of a token: a window is cut into as many."""

_BELOW = 32  # bits of an interval that are finer than a word
_LITERALS = 256  # words, the last ones, that stand for a single byte


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedWindows:
    """A text in words.

    Attributes:
        words: Each of `bits` bits.
        bits: Of a window.
        num_bytes: Of the text.
        literals: How many of the words stand for a single byte.
    """

    words: tuple[int, ...]
    bits: int
    num_bytes: int
    literals: int


def check_bits(bits: int) -> None:
    """Refuse a window that is too small or too large.

    Raises:
        ConfigError: It is.
    """
    if not FEWEST_BITS <= bits <= MOST_BITS:
        raise ConfigError(f"a window of {bits} bits; give {FEWEST_BITS} to {MOST_BITS}, such as 16.")


def encode(data: bytes, model: ByteModel, bits: int = 16) -> EncodedWindows:
    """Bytes as words of equally many bits.

    A window takes bytes as long as their interval holds a whole word. Its word is the first in it. Where the decoder
    would read more bytes out of that word than went into it, the window gives its last byte back; where nothing is
    left, the word is one of the last 256, which stand for a byte each. So do the last bytes of a text, which do not
    fill a window.

    Args:
        data: Any bytes.
        model: Both ends have to have the same.
        bits: Of a word.

    Raises:
        ConfigError: The number of bits is out of range.

    Source: Training LLMs over Neurally Compressed Text, arXiv:2404.03626, section 3.3.
    Differs: the end of a window is a reconstruction; the model counts contexts and is no transformer; words for single
    bytes are our own, without which some text has no word.
    """
    check_bits(bits)
    words: list[int] = []
    literals = start = 0
    while start < len(data):
        word, taken = _window(data, start, model, bits)
        if word is None:
            word, taken = (1 << bits) - _LITERALS + data[start], 1
            literals += 1
        words.append(word)
        start += taken
    return EncodedWindows(words=tuple(words), bits=bits, num_bytes=len(data), literals=literals)


def decode(words: Sequence[int], model: ByteModel, bits: int = 16) -> bytes:
    """The bytes of words.

    Raises:
        ConfigError: The number of bits is out of range, or a word has more.
    """
    check_bits(bits)
    for place, word in enumerate(words):
        if not 0 <= word < 1 << bits:
            raise ConfigError(
                f"word {place} is {word}, which {bits} bits do not hold; give what was encoded with them."
            )
    return b"".join(decode_word(word, model, bits) for word in words)


def decode_word(word: int, model: ByteModel, bits: int) -> bytes:
    """The bytes of one word, as long as their interval holds a whole one."""
    if word >= (1 << bits) - _LITERALS:
        return bytes([word - (1 << bits) + _LITERALS])
    point = word << _BELOW
    low, size = 0, _whole(bits)
    found = bytearray()
    while True:
        table = model.table(bytes(found))
        step = size >> BITS
        at = bisect_right(table.ends, (point - low) // step)
        if at == len(table.order):  # the rest that a division leaves
            return bytes(found)
        begin, length = table.span(table.order[at])
        if step * length < 1 << _BELOW:
            return bytes(found)
        low, size = low + step * begin, step * length
        found.append(table.order[at])


def tokens_of(words: Sequence[int], bits: int, chunk: int) -> list[int]:
    """Words in tokens of `chunk` bits, the high ones first.

    Raises:
        ConfigError: A window is no multiple of a token.
    """
    _check_chunk(bits, chunk)
    shifts = range(bits - chunk, -1, -chunk)
    return [(word >> shift) & ((1 << chunk) - 1) for word in words for shift in shifts]


def words_of(tokens: Sequence[int], bits: int, chunk: int) -> list[int]:
    """The words of tokens.

    Raises:
        ConfigError: As `tokens_of`, or the tokens end within a window, or one has more bits.
    """
    _check_chunk(bits, chunk)
    each = bits // chunk
    if len(tokens) % each:
        raise ConfigError(f"{len(tokens)} tokens end within a window, which has {each}; give all of them.")
    for token in tokens:
        if not 0 <= token < 1 << chunk:
            raise ConfigError(f"a token is {token}, which {chunk} bits do not hold; give what was encoded with them.")
    words = []
    for start in range(0, len(tokens), each):
        word = 0
        for token in tokens[start : start + each]:
            word = word << chunk | token
        words.append(word)
    return words


def _check_chunk(bits: int, chunk: int) -> None:
    if chunk not in CHUNKS or bits % chunk:
        raise ConfigError(f"tokens of {chunk} bits do not fill a window of {bits}; give 8 or 16, and a multiple of it.")


def _window(data: bytes, start: int, model: ByteModel, bits: int) -> tuple[int | None, int]:
    """The word of the bytes from `start` on, and how many they are; None: no word stands for these alone."""
    lows = [low for low, _ in _intervals(data, start, model, bits)]
    for taken in range(len(lows), 0, -1):
        word = -(-lows[taken - 1] >> _BELOW)
        if decode_word(word, model, bits) == data[start : start + taken]:
            return word, taken
    return None, 0


def _intervals(data: bytes, start: int, model: ByteModel, bits: int) -> Iterator[tuple[int, int]]:
    """Begin and size of the interval of each beginning that holds a whole word."""
    low, size = 0, _whole(bits)
    for place in range(start, len(data)):
        begin, length = model.table(data[start:place]).span(data[place])
        step = size >> BITS
        low, size = low + step * begin, step * length
        if size < 1 << _BELOW:
            return
        yield low, size


def _whole(bits: int) -> int:
    return ((1 << bits) - _LITERALS) << _BELOW
