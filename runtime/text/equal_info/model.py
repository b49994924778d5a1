"""A model of bytes in whole numbers: how often which byte followed which bytes, longer contexts over shorter ones."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trt_compress.digest import sha256
from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import reading, shown

Array = np.ndarray[Any, np.dtype[Any]]

FILE = Path(__file__).parent / "model.npz"
BITS = 14
"""Frequencies of a table sum to 2 to this power."""

_LARGEST = 1 << 24
_DEEPEST = 8
_ONE = 1 << 32  # what the shares of a table sum to before they are rounded to BITS
_MOST_TABLES = 1 << 15
_EXACT = 32  # counts below are stored as they are


class Table(NamedTuple):
    """The next byte's frequencies, the rarest first.

    Attributes:
        order: The 256 bytes, by frequency, equals by their value.
        ends: The sum of the frequencies up to each, itself counted; the last is 2^BITS.
        place: Where each byte stands in `order`.
    """

    order: bytes
    ends: Sequence[int]
    place: bytes

    def span(self, byte: int) -> tuple[int, int]:
        """Where a byte's part begins, and how long it is."""
        at = self.place[byte]
        begin = self.ends[at - 1] if at else 0
        return begin, self.ends[at] - begin


@dataclass(frozen=True, slots=True)
class _Level:
    """All strings of one length that were counted, those with the same beginning side by side, in order.

    Attributes:
        symbols: Their last bytes.
        counts: How often each was seen.
        first: Where what continues each begins in the next level, and one more.
    """

    symbols: bytes
    counts: Array
    first: Array


class ByteModel:
    """A model that was read.

    Attributes:
        sha256: Of its file.
        deepest: Bytes of the longest context.
    """

    def __init__(self, content: bytes, where: str) -> None:
        """Read it.

        Raises:
            ConfigError: It is damaged.
        """
        self.sha256 = sha256(content)
        with reading(where, "give a file that tools/tokenizers/train_bytes.py wrote"):
            self._levels = _levels(content)
        self.deepest = len(self._levels) - 1
        self._tables: dict[bytes, Table] = {}

    def table(self, context: bytes) -> Table:
        """The frequencies of the byte that follows.

        Args:
            context: What came before, of which the end counts.

        Returns:
            Every byte has a frequency of 1 at least. The same on every machine: no number is rounded but by integer
            division.
        """
        key = context[-self.deepest :] if self.deepest else b""
        found = self._tables.get(key)
        if found is None:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            found = self._tables[key] = _table(self.frequencies(key))
        return found

    def frequencies(self, context: bytes) -> Array:
        """The frequencies by byte, [256] int64, which sum to 2^BITS.

        Each context that was seen takes its own counts, and its shorter one for as much as it had different bytes
        behind it, and was cut of rare ones (Witten-Bell).
        """
        shares = np.full(256, _ONE // 256, np.int64)
        for length in range(min(len(context), self.deepest) + 1):
            found = self._behind(context[len(context) - length :] if length else b"")
            if found is None:
                break
            symbols, counts, seen = found
            other = len(symbols) + max(0, seen - int(counts.sum()))
            shares *= other
            shares[symbols] += _ONE * counts
            shares //= int(counts.sum()) + other
        whole = 1 << BITS
        frequencies = 1 + shares * (whole - 256) // _ONE
        frequencies[int(frequencies.argmax())] += whole - int(frequencies.sum())
        return frequencies

    def _behind(self, context: bytes) -> tuple[Array, Array, int] | None:
        """The bytes that followed a context, how often each, and how often the context stood there; None: never."""
        start, end, seen = 0, len(self._levels[0].symbols), int(self._levels[0].counts.sum())
        for depth, byte in enumerate(context):
            level = self._levels[depth]
            at = level.symbols.find(byte, start, end)
            if at < 0:
                return None
            start, end, seen = int(level.first[at]), int(level.first[at + 1]), int(level.counts[at])
        if start == end:
            return None
        level = self._levels[len(context)]
        return np.frombuffer(level.symbols, np.uint8)[start:end], level.counts[start:end], seen


def read_model(path: Path | None = None) -> ByteModel:
    """Read a model.

    Args:
        path: The file; None: the one that comes with this package.

    Raises:
        ConfigError: It cannot be read.
    """
    return _own() if path is None else _read(path)


@cache
def _own() -> ByteModel:
    return _read(FILE)


def _read(path: Path) -> ByteModel:
    try:
        content = read_regular(path, limit=_LARGEST)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(f"'{path}' cannot be read ({said}); give a file of a model of bytes.") from None
    return ByteModel(content, f"'{shown(str(path))}'")


def coded(count: int) -> int:
    """A count in a byte: below 32 as it is, above rounded down to 5 bits and an exponent."""
    exponent = max(0, count.bit_length() - 5)
    return min(255, count if count < _EXACT else _EXACT + (exponent - 1) * 16 + ((count >> exponent) - 16))


def decoded(code: int) -> int:
    """The count of a code."""
    if code < _EXACT:
        return code
    exponent, rest = divmod(code - _EXACT, 16)
    return (16 + rest) << (exponent + 1)


def _levels(content: bytes) -> list[_Level]:
    values = np.array([decoded(code) for code in range(256)], np.int64)
    found: list[_Level] = []
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        for depth in range(_DEEPEST + 1):
            if f"symbols_{depth}" not in archive.files:
                break
            symbols, counts, behind = (archive[f"{name}_{depth}"] for name in ("symbols", "counts", "behind"))
            if not (symbols.dtype == counts.dtype == np.uint8 and behind.dtype == np.uint16):
                raise ValueError("an array is of another type")
            if not (symbols.ndim == 1 and symbols.shape == counts.shape == behind.shape):
                raise ValueError("arrays are of different length")
            if not counts.all():
                raise ValueError("a count is 0")
            first = np.concatenate([[0], np.cumsum(behind, dtype=np.int64)])
            if found and int(found[-1].first[-1]) != len(symbols):
                raise ValueError("a level does not continue the one before")
            found.append(_Level(symbols.tobytes(), values[counts], first))
    if not found or not found[0].symbols or int(found[-1].first[-1]):
        raise ValueError("it holds no counts, or counts without an end")
    return found


def _table(frequencies: Array) -> Table:
    order = np.argsort(frequencies, kind="stable").astype(np.uint8)
    place = np.empty(256, np.uint8)
    place[order] = np.arange(256, dtype=np.uint8)
    return Table(order.tobytes(), tuple(accumulate(frequencies[order].tolist())), place.tobytes())
