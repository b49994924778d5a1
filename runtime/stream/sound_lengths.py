"""What a sound file says about its own length, held against what the file has.

libsndfile plays what there is: of a copy that broke off it says nothing, and of a file whose writer did not know the
length (a pipe cannot be rewound to put it in) it plays nothing at all, or refuses it. Here is what every container
promises, where the file breaks it, and how a length that is a placeholder is put right.

Source: RIFF/WAVE: "Multimedia Programming Interface and Data Specifications 1.0"; RF64: EBU Tech 3306; Wave64: Sony
Pictures Digital; AIFF and AIFC: Apple, "Audio Interchange File Format 1.3"; AU: Sun, audio(4); CAF: Apple Core Audio
Format 1.0; NIST SPHERE 2.6; MP4: ISO/IEC 14496-12; Matroska: RFC 9559. Placeholders: what ffmpeg, sox, arecord, lame,
mplayer and GStreamer write into a pipe.
"""

import io
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trt_compress.files import open_regular
from trt_compress.runtime.stream.sound_packets import flac_promise, mp3_promise, ogg_promise
from trt_compress.runtime.stream.sound_parts import Promise, SoundPart

_UNKNOWN_NEAR = ((0x7EFF_0000, 0x8001_0000), (0xFFFF_0000, 0xFFFF_FFFF))
"""Lengths that mean "not known": sox writes 0x7F000000 or 0x7FFFF000, lame 0x7FFFFFFF, arecord 0x80000000, ffmpeg and
others 0xFFFFFFFF; rounded down to whole samples, with or without the header."""
_UNKNOWN_ABOVE = 1 << 62
"""The same of 64-bit lengths."""
_MOST_CHUNKS = 4096
_SEGMENT = bytes.fromhex("18538067")
_WAVE64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")


def promise_of(path: Path) -> Promise:
    """Say what a sound file lacks, and how it is to be read.

    A file of another kind, or one too broken to be understood, promises nothing: the library says what is wrong.

    Raises:
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    with open_regular(path) as file:
        start = file.read(16)
        if start[4:8] == b"ftyp":
            return _mp4(file, size)
        for magic, look in _CONTAINERS.items():
            if start.startswith(magic):
                return look(file, size)
        return mp3_promise(file, size, search=path.suffix.lower() == ".mp3")


class PartFile(io.RawIOBase):
    """A part of a file as a file of its own, for a library that takes file objects."""

    def __init__(self, path: Path, part: SoundPart) -> None:
        super().__init__()
        self._file = open_regular(path)
        self._part = part
        self._length = len(part.head) + max(0, part.end - part.start)
        self._at = 0

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        """Fill a buffer as far as there are bytes."""
        part, head = self._part, len(self._part.head)
        count = max(0, min(len(buffer), self._length - self._at))
        if self._at < head:
            data = part.head[self._at : self._at + count]
        else:
            self._file.seek(part.start + self._at - head)
            data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """Say where it is."""
        return self._at

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk of a container: where its length stands, and where its content begins."""

    name: bytes
    length: int
    field: int
    begin: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How a container writes its chunks: the first one's place, name, length, and to what a chunk is filled up."""

    first: int
    name_bytes: int
    length: struct.Struct
    align: int
    counts_header: bool = False

    def chunks(self, file: BinaryIO, at: int, end: int) -> Iterator[_Chunk]:
        """Walk the chunks from a place on, as long as they begin before the end."""
        head = self.name_bytes + self.length.size
        for _ in range(_MOST_CHUNKS):
            file.seek(at)
            data = file.read(head)
            if at >= end or len(data) < head:
                return
            (length,) = self.length.unpack_from(data, self.name_bytes)
            length -= head if self.counts_header else 0
            if length < 0:
                return
            yield _Chunk(data[: self.name_bytes], length, at + self.name_bytes, at + head)
            at += head + length
            at += -at % self.align

    def fills(self, file: BinaryIO, at: int, end: int) -> bool:
        """Whether what stands there is chunks, up to the end."""
        reached = at
        for chunk in self.chunks(file, at, end):
            if not _is_name(chunk.name):
                return False
            reached = chunk.begin + chunk.length
        return at < end and end - self.align < reached <= end  # the last one's filling may be there or not


def _is_name(name: bytes) -> bool:
    return all(32 <= byte < 127 for byte in name[:4]) and name[4:] in (b"", _WAVE64_TAIL)


def _is_unknown(length: int) -> bool:
    return length >= _UNKNOWN_ABOVE or any(low <= length <= high for low, high in _UNKNOWN_NEAR)


def _streamed(layout: _Layout, file: BinaryIO, chunk: _Chunk, length: int, size: int) -> bool:
    """Whether the length of the samples is a placeholder: unknown, or 0 and there is something that is no chunk."""
    rest = size - chunk.begin
    if length == 0:
        return rest > 0 and not layout.fills(file, chunk.begin, size)
    # more than a placeholder's two gigabytes may have come, and then what lies behind those is no chunk
    return _is_unknown(length) and (length > rest or not layout.fills(file, chunk.begin + length, size))


def _samples(missing: int) -> Promise:
    return Promise(missing=f"{missing} bytes of its samples" if missing > 0 else None)


def _patched(file: BinaryIO, begin: int, size: int, patches: Mapping[int, bytes]) -> Promise:
    """The file with some bytes of its header put right."""
    file.seek(0)
    head = bytearray(file.read(begin))
    for at, data in patches.items():
        head[at : at + len(data)] = data
    return Promise(parts=(SoundPart(start=begin, end=size, head=bytes(head)),))


def _wav(file: BinaryIO, size: int) -> Promise:
    file.seek(0)
    start = file.read(12)
    if start[8:] != b"WAVE":
        return Promise()
    order = ">" if start.startswith(b"RIFX") else "<"
    layout = _Layout(first=12, name_bytes=4, length=struct.Struct(f"{order}I"), align=2)
    long_sizes: int | None = None  # where the 64-bit lengths stand
    form = b""
    for chunk in layout.chunks(file, layout.first, size):
        file.seek(chunk.begin)
        if chunk.name == b"ds64":
            long_sizes = chunk.begin
        elif chunk.name == b"fmt ":
            form = file.read(chunk.length)
        elif chunk.name == b"data":
            length, rest = chunk.length, size - chunk.begin
            if long_sizes is not None and length == 0xFFFFFFFF:
                file.seek(long_sizes + 8)
                (length,) = struct.unpack("<Q", file.read(8))
            short = long_sizes is None and rest > 0xFFFFFFFF and not layout.fills(file, chunk.begin + length, size)
            if not short and not _streamed(layout, file, chunk, length, size):
                return _samples(length - rest)
            if long_sizes is not None:
                lengths = struct.pack("<QQ", size - 8, rest)
                return _patched(file, chunk.begin, size, {long_sizes: lengths})
            if rest <= 0xFFFFFFFF:
                number = layout.length.pack
                return _patched(file, chunk.begin, size, {4: number(size - 8), chunk.field: number(rest)})
            return Promise(parts=(SoundPart(start=chunk.begin, end=size, head=_rf64_head(form, rest)),))
    return Promise()


def _rf64_head(form: bytes, samples: int) -> bytes:
    """The header of a file of more than 4 GiB: everything before its samples."""
    chunk = struct.pack("<4sI", b"fmt ", len(form)) + form + b"\0" * (len(form) % 2)
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, 12 + 36 + len(chunk) + samples, samples, 0, 0)
    return b"RF64\xff\xff\xff\xffWAVE" + sizes + chunk + b"data\xff\xff\xff\xff"


def _wave64(file: BinaryIO, size: int) -> Promise:
    layout = _Layout(first=40, name_bytes=16, length=struct.Struct("<Q"), align=8, counts_header=True)
    for chunk in layout.chunks(file, layout.first, size):
        if chunk.name.startswith(b"data"):
            rest = size - chunk.begin
            if not _streamed(layout, file, chunk, chunk.length, size):
                return _samples(chunk.length - rest)
            number = layout.length.pack
            return _patched(file, chunk.begin, size, {16: number(size), chunk.field: number(rest + 24)})
    return Promise()


def _iff(file: BinaryIO, size: int) -> Promise:
    """AIFF and AIFC, and Amiga's 8SVX; libsndfile finds its own way with placeholders."""
    layout = _Layout(first=12, name_bytes=4, length=struct.Struct(">I"), align=2)
    for chunk in layout.chunks(file, layout.first, size):
        if chunk.name in (b"SSND", b"BODY"):
            if chunk.length == 0 or _streamed(layout, file, chunk, chunk.length, size):
                return Promise()
            return _samples(chunk.begin + chunk.length - size)
    return Promise()


def _au(file: BinaryIO, size: int) -> Promise:
    file.seek(0)
    start = file.read(12)
    order = ">" if start.startswith(b".snd") else "<"
    if len(start) < 12:
        return Promise()
    begin, length = struct.unpack(f"{order}II", start[4:])
    if length == 0 and size > begin:
        return _patched(file, begin, size, {8: b"\xff\xff\xff\xff"})
    return Promise() if _is_unknown(length) else _samples(begin + length - size)


def _caf(file: BinaryIO, size: int) -> Promise:
    layout = _Layout(first=8, name_bytes=4, length=struct.Struct(">Q"), align=1)
    for chunk in layout.chunks(file, layout.first, size):
        if chunk.name == b"data":
            rest = size - chunk.begin
            if not _streamed(layout, file, chunk, chunk.length, size):
                return _samples(chunk.length - rest)
            return _patched(file, chunk.begin, size, {chunk.field: layout.length.pack(rest)})
    return Promise()


def _sphere(file: BinaryIO, size: int) -> Promise:
    """NIST SPHERE: a header of text, in which the samples are counted."""
    file.seek(0)
    lines = file.read(1024).decode("ascii", "replace").splitlines()
    fields = {words[0]: words[2] for line in lines if len(words := line.split()) == 3}
    numbers = [fields.get(name, "") for name in ("sample_count", "channel_count", "sample_n_bytes")]
    header = lines[1].strip() if len(lines) > 1 else ""
    if not all(number.isascii() and number.isdigit() for number in (*numbers, header)):
        return Promise()
    count, channels, width = map(int, numbers)
    return _samples(int(header) + count * channels * width - size)


def _mp4(file: BinaryIO, size: int) -> Promise:
    """MP4, M4A, MOV: boxes that follow one another; what is not a box ends the walk."""
    at = 0
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8 or not _is_name(head[4:8]):
            break
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: up to the end
            break
        at += length
    return Promise(missing=f"{at - size} bytes" if at > size else None)


def _matroska(file: BinaryIO, size: int) -> Promise:
    """Matroska and WebM: the segment, which holds all but a header, says how long it is, unless it was streamed."""
    file.seek(0)
    data = file.read(4096)
    at = data.find(_SEGMENT) + len(_SEGMENT)
    if at < len(_SEGMENT) or at + 8 > len(data) or not data[at]:
        return Promise()
    width = 9 - data[at].bit_length()
    length = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    unknown = length == (1 << 7 * width) - 1
    missing = 0 if unknown else at + width + length - size
    return Promise(missing=f"{missing} bytes" if missing > 0 else None)


_CONTAINERS: Mapping[bytes, Callable[[BinaryIO, int], Promise]] = {
    b"RIFF": _wav,
    b"RIFX": _wav,
    b"RF64": _wav,
    b"BW64": _wav,
    b"riff\x2e\x91\xcf\x11": _wave64,
    b"FORM": _iff,
    b".snd": _au,
    b"dns.": _au,
    b"caff": _caf,
    b"NIST_1A": _sphere,
    b"\x1aE\xdf\xa3": _matroska,
    b"fLaC": flac_promise,
    b"OggS": ogg_promise,
}
