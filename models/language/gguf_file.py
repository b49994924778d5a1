"""A GGUF file: its metadata, and where its tensors are. Read by positions; every count is held against the file.

The package `gguf` reads such files too; it maps them (a file that is cut meanwhile ends the process), follows any count
that stands there, and makes an array of each of a vocabulary's hundred thousand words. What it is used for here is what
blocks of numbers mean (`gguf_blocks.py`).

Source: the format's description (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import shown
from trt_compress.models.hosts.origin import Origin

_TYPES: Mapping[int, tuple[str, int, int]] = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34)},
    **{10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176)},
    **{14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98)},
    **{19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82)},
    **{23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 39: ("MXFP4", 32, 17)},
}
"""Number in the file → name, numbers in a block, bytes of a block."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

_VERSIONS = (2, 3)
_MOST_ENTRIES = 1 << 16  # of metadata, and of tensors
_MOST_ITEMS = 1 << 24  # of an array: the largest vocabularies have a quarter of a million
_LONGEST_NAME = 1 << 16
_LONGEST_TEXT = 1 << 26
_LARGEST_HEADER = 1 << 29
_MOST_AXES = 4
_PIECE = 4 << 20


class GgufTensor(NamedTuple):
    """Where a tensor lies, and what it is.

    Attributes:
        type: `Q4_1`, `F16`, …
        shape: Its axes as torch has them: the file has them the other way round.
        begin: Of its bytes in the file.
        bytes: How many there are.
    """

    type: str
    shape: tuple[int, ...]
    begin: int
    bytes: int


class GgufFile:
    """A GGUF file that is open; it stays so as long as this object is there.

    Args:
        file: Opened by `files.open_regular`; it may be closed afterwards.
        path: Its name, for messages.

    Raises:
        ConfigError: It is no whole GGUF file.
        UnsupportedError: A version or a type of numbers that is not read.

    Attributes:
        origin: The file: its hash, and whether it was written into since it was opened.
        metadata: Values by key: numbers, texts, truth values and lists of these.
        tensors: By the names that they have in the file.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.origin = Origin(file, path)
        self._path, self._size = path, self.origin.size
        cursor = _Cursor(self.origin)
        try:
            self.metadata: Mapping[str, Any]
            self.tensors: Mapping[str, GgufTensor]
            self.metadata, self.tensors = self._header(cursor)
        except (ValueError, struct.error) as error:
            raise ConfigError(f"gguf:{path} is not a whole GGUF file ({error}); copy or download it again.") from None

    def read(self, name: str, first: int, last: int) -> bytearray:
        """The bytes of a tensor from `first` up to `last`.

        Raises:
            ConfigError: The file has become shorter, or cannot be read.
        """
        data = bytearray(last - first)
        self.origin.read_into(memoryview(data), self.tensors[name].begin + first)
        return data

    def _header(self, cursor: "_Cursor") -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if cursor.take(4) != b"GGUF":
            raise ValueError("it does not begin as one")
        version = cursor.scalar("<I")
        if version not in _VERSIONS:
            turned = version & 0xFFFF == 0
            raise UnsupportedError(
                f"gguf:{self._path} is of {'big-endian numbers' if turned else f'version {version}'}; there are "
                f"versions {' and '.join(map(str, _VERSIONS))} with little-endian numbers: convert the model again."
            )
        tensors, entries = cursor.scalar("<Q"), cursor.scalar("<Q")
        if max(tensors, entries) > _MOST_ENTRIES:
            raise ValueError(f"it speaks of {tensors} tensors and {entries} values of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = cursor.text(_LONGEST_NAME)
            if key in metadata:
                raise ValueError(f"'{shown(key)[:60]}' stands there twice")
            metadata[key] = cursor.value(cursor.scalar("<I"), key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise ValueError("its alignment is no power of two")
        infos = [self._info(cursor) for _ in range(tensors)]
        base = -(-cursor.position // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, tensor in infos:
            if name in found:
                raise ValueError(f"tensor '{shown(name)[:60]}' stands there twice")
            placed = tensor._replace(begin=base + tensor.begin)
            if placed.begin + placed.bytes > self._size:
                raise ValueError(f"it is cut: tensor '{shown(name)[:60]}' lies behind its end")
            found[name] = placed
        end = base
        for name, tensor in sorted(found.items(), key=lambda item: item[1].begin):
            if tensor.begin < end:
                raise ValueError(f"tensor '{shown(name)[:60]}' lies over another one")
            end = tensor.begin + tensor.bytes
        return metadata, found

    def _info(self, cursor: "_Cursor") -> tuple[str, GgufTensor]:
        name = cursor.text(_LONGEST_NAME)
        what = f"tensor '{shown(name)[:60]}'"
        axes = cursor.scalar("<I")
        if not axes <= _MOST_AXES:
            raise ValueError(f"{what} has {axes} axes")
        shape = tuple(cursor.scalar("<Q") for _ in range(axes))[::-1]
        number, offset = cursor.scalar("<I"), cursor.scalar("<Q")
        if number not in _TYPES:
            known = ", ".join(type_ for type_, _, _ in _TYPES.values())
            raise UnsupportedError(
                f"gguf:{self._path}: {what} is of type {number}, which is not read here; there are {known}."
            )
        type_, block, bytes_ = _TYPES[number]
        count = math.prod(shape)
        if count > self._size * 256 or (shape[-1] if shape else 1) % block:
            raise ValueError(f"{what} of {type_} cannot have the shape {list(shape)}")
        return name, GgufTensor(type_, shape, offset, count // block * bytes_)


class _Cursor:
    """Reads a file from its beginning, piece by piece, and never behind its end."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._size = min(origin.size, _LARGEST_HEADER)
        self._data = b""
        self._start = 0  # in the file, of `_data`
        self._at = 0  # in `_data`

    @property
    def position(self) -> int:
        return self._start + self._at

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            self._fill(count)
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, longest: int) -> str:
        length = int.from_bytes(self.take(8), "little")
        if length > longest:
            raise ValueError(f"a text of {length} bytes stands there")
        return self.take(length).decode("utf-8", "replace" if longest == _LONGEST_TEXT else "strict")

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text(_LONGEST_TEXT)
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"'{shown(key)[:60]}' is of an unknown type {kind}")
        kind, count = self.scalar("<I"), self.scalar("<Q")
        if count > _MOST_ITEMS:
            raise ValueError(f"'{shown(key)[:60]}' has {count} items")
        if kind == _STRING:
            return [self.text(_LONGEST_TEXT) for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"'{shown(key)[:60]}' is a list of an unknown type {kind}")
        form = f"<{count}{_SCALARS[kind][1:]}"
        return list(struct.unpack(form, self.take(struct.calcsize(form))))

    def _fill(self, count: int) -> None:
        start = self._start + self._at
        if start + count > self._size:
            raise ValueError("it is cut" if self._size < _LARGEST_HEADER else "its header never ends")
        data = bytearray(min(max(count, _PIECE), self._size - start))
        self._origin.read_into(memoryview(data), start)
        self._data, self._start, self._at = bytes(data), start, 0
