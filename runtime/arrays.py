"""Arrays in files of others: .npz archives, and the .npy files of a bundle.

What an archive says of its members is held against bounds before any is unpacked: a few bytes can stand for terabytes.
What is unpacked is no longer than was said, as the zip format has it.
"""

import contextlib
import io
import math
import zipfile
from collections.abc import Container, Iterator
from typing import IO, Any, BinaryIO

import numpy as np

MOST_MEMBERS = 10_000
FREELY_UNPACKED, LARGEST_RATIO = 64 << 20, 200  # deflate reaches 1032 on zeros
LARGEST_ARCHIVE = 32 << 30

Array = np.ndarray[Any, np.dtype[Any]]


def array_of(content: bytes) -> Array:
    """The one array of a .npy file.

    Raises:
        ValueError: It is no .npy file; numpy raises more than that on a damaged one.
    """
    if content.startswith(b"PK"):
        raise ValueError("it is an archive, not one array")
    _check_header(io.BytesIO(content), len(content))
    return _read(io.BytesIO(content))


def arrays_of(file: BinaryIO, only: Container[str] | None = None, *, stored: bool = False) -> dict[str, Array]:
    """The arrays of an .npz file.

    Args:
        file: The open file.
        only: Names of those that are wanted, where they are there; None: all.
        stored: They are not compressed, so that they take no more memory than the file has bytes.

    Raises:
        ValueError: It is none, an array is not as long as it says, or it is larger than an archive may be; zipfile and
            numpy raise more than that on a damaged one.
    """
    if file.read(6) == b"\x93NUMPY":
        raise ValueError("it holds one array without a name")
    with zipfile.ZipFile(file) as archive:
        return {name: _unpacked(archive, member) for name, member in _members(archive, only, stored).items()}


class ArchivedRows:
    """The arrays of an .npz file, read a few rows at a time, as often as needed.

    Args:
        file: The open file, which stays open as long as rows are read.
        only: As `arrays_of`.

    Attributes:
        arrays: Shape and dtype of each.

    Raises:
        ValueError: As `arrays_of`.
    """

    def __init__(self, file: BinaryIO, only: Container[str] | None = None) -> None:
        if file.read(6) == b"\x93NUMPY":
            raise ValueError("it holds one array without a name")
        self._archive = zipfile.ZipFile(file)
        self._members = _members(self._archive, only)
        self.arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        for name, member in self._members.items():
            with self._archive.open(member) as stream:
                shape, by_columns, dtype = _header(stream)
            if by_columns and len(shape) > 1:
                raise ValueError(f"'{name}' is stored by columns; save numpy.ascontiguousarray of it")
            self.arrays[name] = (shape, dtype)

    def blocks(self, rows: int) -> Iterator[dict[str, Array]]:
        """Blocks of at most so many rows, of all arrays alike; as many as the shortest has.

        Raises:
            ValueError: An array is shorter than it says.
        """
        total = min((shape[0] if shape else 0 for shape, _ in self.arrays.values()), default=0)
        with contextlib.ExitStack() as stack:
            streams = {name: stack.enter_context(self._archive.open(part)) for name, part in self._members.items()}
            for stream in streams.values():
                _header(stream)
            for first in range(0, total, rows):
                yield {name: self._rows(name, stream, min(rows, total - first)) for name, stream in streams.items()}

    def _rows(self, name: str, stream: IO[bytes], count: int) -> Array:
        shape, dtype = self.arrays[name]
        wanted = count * math.prod(shape[1:]) * dtype.itemsize
        data = stream.read(wanted)
        if len(data) != wanted:
            raise ValueError(f"'{name}' says that it has the shape {list(shape)[:9]}, and is shorter")
        return np.frombuffer(bytearray(data), dtype).reshape(count, *shape[1:])


def _members(archive: zipfile.ZipFile, only: Container[str] | None, stored: bool = False) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by the names of their arrays, held against all bounds."""
    members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        raise ValueError(f"it has {len(members)} members, and may have {MOST_MEMBERS}")
    named = {member.filename.removesuffix(".npy"): member for member in members}
    if len(named) < len(members):
        raise ValueError("two of its members have one name")
    wanted = {name: member for name, member in named.items() if only is None or name in only}
    for name, member in wanted.items():
        if stored and (member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size):
            raise ValueError(f"'{name}' is compressed, as it never is")
        if member.file_size > FREELY_UNPACKED and member.file_size > LARGEST_RATIO * max(1, member.compress_size):
            raise ValueError(
                f"'{name}' would be unpacked from {member.compress_size} to {member.file_size} bytes, as no measured "
                "data are"
            )
    if (total := sum(member.file_size for member in wanted.values())) > LARGEST_ARCHIVE:
        raise ValueError(f"its arrays have {total} bytes, and may have {LARGEST_ARCHIVE}")
    for name, member in wanted.items():
        with archive.open(member) as stream:
            _check_header(stream, member.file_size, f"'{name}'")
    return wanted


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as stream:
        return _read(stream)


def _read(stream: IO[bytes]) -> Array:
    array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _check_header(stream: IO[bytes], size: int, what: str = "it") -> None:
    """Refuse an array that says it is longer than the bytes that are there, or that holds Python's objects."""
    shape, _, dtype = _header(stream, what)
    if dtype.hasobject:
        raise ValueError(f"{what} holds objects of Python, which are not read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{what} says that it has the shape {list(shape)[:9]}, and is shorter")


def _header(stream: IO[bytes], what: str = "it") -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is stored by columns, and dtype of the array that begins here."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{what} is an array of the form {version[0]}.{version[1]}, which is for names of fields")
    first = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    return read(stream)
