"""Whether a file is whole, by what its own structure says: sizes of boxes, chunks, pages and packets."""

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from trt_compress.files import open_regular

_RIFF_SLACK = 9  # some writers count the eight bytes of the header in, and a byte of padding may be left out
_UNKNOWN_RIFF = (0, 0xFFFFFFFF)  # what a writer leaves that never came back to fill the size in
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA_HEADER = 50
_ISO_FIRST = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot")
_FLV_TAG, _FLV_LENGTH = 11, 4
_TS_SYNC, _TS_LOOK = 0x47, 5
_LINE = 256  # longest line of a YUV4MPEG2 file that is looked at
_OGG_LAST = 4  # flag of a stream's last page


def is_cut_off(path: str | Path) -> bool | None:
    """Whether the end of a video or picture file is missing.

    Returns:
        True if bytes are missing that its structure announces, False if all are there, None if that is not the whole
        story: the format is another one, the writer never filled the sizes in, or there is more to compare.

    Raises:
        OSError: The file cannot be read.
    """
    with open_regular(Path(path)) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(16)
        file.seek(0)
        for fits, check in _FORMATS:
            if fits(head):
                try:
                    return check(file, size)
                except struct.error:  # a header of the structure is itself cut off
                    return True
        return _transport_stream(file, size)


def gif_is_whole(path: str | Path) -> bool:
    """Whether a GIF goes on to its trailer; Pillow takes the end of the file for the end of the animation."""
    with open_regular(Path(path)) as file:
        file.seek(10)
        flags = file.read(3)
        if len(flags) == 3 and flags[0] & 0x80:
            file.seek(3 << (flags[0] & 7) + 1, 1)
        while kind := file.read(1):
            if kind == b";":
                return True
            if kind == b",":
                if len(place := file.read(9)) == 9 and place[8] & 0x80:
                    file.seek(3 << (place[8] & 7) + 1, 1)
                file.seek(1, 1)  # size of LZW codes
            elif kind == b"!":
                file.seek(1, 1)
            else:
                return False
            while (length := file.read(1)) and length[0]:
                file.seek(length[0], 1)
    return False


def _avi(file: BinaryIO, size: int) -> bool | None:
    at = 0
    while at + 12 <= size:
        file.seek(at)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF":
            break
        if length in _UNKNOWN_RIFF:
            return None
        at += 8 + length + length % 2
    return True if at > size + _RIFF_SLACK else None  # its header also counts frames, which is for the reader to do


def _iso_media(file: BinaryIO, size: int) -> bool | None:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        if not all(32 <= byte < 127 or byte == 0xA9 for byte in name):  # what is appended is no box
            return False
        if length == 0:  # up to the end, wherever that is
            return None
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if length < 8:
            return None
        at += length
    return at > size


def _matroska(file: BinaryIO, size: int) -> bool | None:
    sized = True
    while file.tell() < size:
        name, length = _vint(file, keep_marker=True), _vint(file)
        if name == 0:
            return None
        if length is None:
            if name not in (_SEGMENT, _CLUSTER):
                return None
            sized = False  # its parts follow, and end where another begins
        else:
            if file.tell() + length > size:
                return True
            if name == _SEGMENT:
                return False
            file.seek(length, 1)
    return False if sized else None


def _vint(file: BinaryIO, *, keep_marker: bool = False) -> int | None:
    """A number of EBML: its first byte says how long it is. None: all ones, which is no number; 0 if it is none."""
    (first,) = struct.unpack("B", file.read(1))
    length = 9 - first.bit_length()
    if length > 8:
        return 0
    rest = file.read(length - 1)
    if len(rest) != length - 1:
        raise struct.error("cut off")
    number = int.from_bytes(bytes([first]) + rest, "big")
    if keep_marker:
        return number
    number &= (1 << 7 * length) - 1
    return None if number == (1 << 7 * length) - 1 else number


def _asf(file: BinaryIO, size: int) -> bool | None:
    at = 0
    while at + 24 <= size:
        file.seek(at)
        name, length = struct.unpack("<16sQ", file.read(24))
        if length < 24 or (name == _ASF_DATA and length <= _ASF_DATA_HEADER):
            return None
        at += length
    return at > size


def _flv(file: BinaryIO, size: int) -> bool | None:
    """Tags follow one another, each with its length behind it."""
    file.seek(5)
    (at,) = struct.unpack(">I", file.read(4))
    at += _FLV_LENGTH
    while at < size:
        file.seek(at)
        at += _FLV_TAG + int.from_bytes(file.read(_FLV_TAG)[1:4], "big") + _FLV_LENGTH
    return True if at > size else None


def _ogg(file: BinaryIO, size: int) -> bool | None:
    """Pages follow one another; the last page of every stream says so."""
    ended: dict[int, bool] = {}
    while file.tell() < size:
        mark, _, flags, _, serial, _, _, segments = struct.unpack("<4sBBqIIIB", file.read(27))
        if mark != b"OggS":
            return None
        lengths = file.read(segments)
        if len(lengths) < segments or file.tell() + sum(lengths) > size:
            return True
        ended[serial] = bool(flags & _OGG_LAST)
        file.seek(sum(lengths), 1)
    return not all(ended.values())


def _yuv4mpeg(file: BinaryIO, size: int) -> bool | None:
    """Frames of one length, each behind a line of its own."""
    words = {word[:1]: word[1:].decode("ascii", "replace") for word in file.readline(_LINE).split()[1:]}
    chroma = re.match(r"(420|422|444|411|mono)(?:jpeg|mpeg2|paldv)?(?:p?(\d+))?$", words.get(b"C", "420"))
    try:
        width, height = int(words[b"W"]), int(words[b"H"])
    except (KeyError, ValueError):
        return None
    if chroma is None:
        return None
    across, down = {"420": (2, 2), "422": (2, 1), "444": (1, 1), "411": (4, 1), "mono": (0, 0)}[chroma[1]]
    samples = width * height + (2 * (-(-width // across) * -(-height // down)) if across else 0)
    length = samples * (2 if int(chroma[2] or 8) > 8 else 1)
    while line := file.readline(_LINE):
        if not line.startswith(b"FRAME"):
            return None
        file.seek(length, 1)
    return file.tell() > size


def _transport_stream(file: BinaryIO, size: int) -> bool | None:
    """Packets of one length; how many there should be is said nowhere."""
    for length, offset in ((188, 0), (192, 4), (204, 0)):
        file.seek(0)
        start = file.read(length * _TS_LOOK)
        if len(start) == length * _TS_LOOK and all(byte == _TS_SYNC for byte in start[offset::length]):
            return True if size % length else None
    return None


_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], bool | None]], ...] = (
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI ", _avi),
    (lambda head: head[4:8] in _ISO_FIRST, _iso_media),
    (lambda head: head[:4] == _EBML.to_bytes(4, "big"), _matroska),
    (lambda head: head == _ASF, _asf),
    (lambda head: head[:4] == b"FLV\1", _flv),
    (lambda head: head[:4] == b"OggS", _ogg),
    (lambda head: head[:10] == b"YUV4MPEG2 ", _yuv4mpeg),
)
