"""Texts that a user gives as files: UTF-8, and nothing else is taken for it."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import reading, shown

LARGEST = 1 << 30
"""Bytes of a file that are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """A text out of a file.

    Attributes:
        name: As it is shown.
        path: Where it lies.
        text: What it says, line ends as they are.
        num_bytes: Of its UTF-8.
    """

    name: str
    path: Path
    text: str
    num_bytes: int


def read_text(path: Path) -> TextFile:
    """Read a file of text; a byte-order mark in front is passed over.

    Raises:
        ConfigError: It cannot be read, is larger than 1 GiB, is binary (it holds a byte 0), or is no UTF-8; the message
            says where.
    """
    with reading(f"'{shown(str(path))}'", "give a file of UTF-8 text"):
        data = read_regular(path, limit=LARGEST)
    zero = data.find(b"\0")
    if zero >= 0:
        raise ConfigError(f"'{path}' is no text: byte {zero} is 0, as in binary files; give a file of UTF-8 text.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"'{path}' is no UTF-8: byte {error.start} (0x{data[error.start]:02x}, line {line}) begins no character; "
            "convert it, as with `iconv -t UTF-8`."
        ) from None
    return TextFile(name=shown(path.name), path=path, text=text, num_bytes=len(text.encode()))


def read_texts(paths: Sequence[Path]) -> list[TextFile]:
    """Read several; of two with one name the folder is shown, too.

    Raises:
        ConfigError: As `read_text`.
    """
    found = [read_text(path) for path in paths]
    names = [item.name for item in found]
    return [
        item
        if names.count(item.name) == 1
        else TextFile(name=shown(str(item.path)), path=item.path, text=item.text, num_bytes=item.num_bytes)
        for item in found
    ]


def unpacked(content: bytes, limit: int) -> bytes:
    """What a file of gzip holds.

    Raises:
        ValueError: It is damaged, or holds more than `limit` bytes.
    """
    try:
        packed = zlib.decompressobj(wbits=31)
        found = packed.decompress(content, limit + 1)
    except zlib.error as error:
        raise ValueError(f"it is damaged: {error}") from None
    if len(found) > limit:
        raise ValueError(f"it unpacks to more than {limit} bytes")
    if not packed.eof:
        raise ValueError("it is damaged: it ends early")
    return found
