"""Where compressed sound ends: Ogg by its pages, FLAC by its last frame, MP3 by all of its frames.

None of them says in its header how many bytes there are. But an Ogg page, a FLAC frame and an MP3 frame say how long
they are, so a file that ends inside one is cut; and FLAC and most MP3 files count their samples or frames.

Source: Ogg: RFC 3533; FLAC: RFC 9639; MP3: ISO/IEC 11172-3 and 13818-3; Xing, LAME and VBRI headers as their encoders
write them; ID3v2: id3.org; APEv2: hydrogenaud.io.
"""

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from trt_compress.runtime.stream.sound_parts import Promise, SoundPart

_OGG_HEADER = 27
_OGG_FIRST, _OGG_LAST = 2, 4
_NO_END = (
    "has no end mark: it was recorded from a stream, or is cut between two pages; if it is whole, ffmpeg -i IN -c copy "
    "OUT.ogg gives it one"
)


def ogg_promise(file: BinaryIO, size: int) -> Promise:
    """Ogg: a page that is cut; recordings one after another in one file (a chain) are parts.

    Without the mark of a last page, which whole files have, there is a doubt: a file cut exactly between two pages,
    or a recorded stream.
    """
    at, links = 0, [0]
    opening, open_streams, page = True, set[int](), b""
    while at < size:
        file.seek(at)
        page = file.read(_OGG_HEADER)
        if not b"OggS".startswith(page[:4]):
            return Promise(parts=_links(links, size))  # something else follows; libsndfile knows
        lacing = file.read(page[26]) if len(page) == _OGG_HEADER else b""
        end = at + _OGG_HEADER + len(lacing) + sum(lacing)
        if len(page) < _OGG_HEADER or len(lacing) < page[26] or end > size:
            missing = f"{end - size} bytes of its last page" if end > size else "the rest of its last page"
            return Promise(missing=missing)
        flags, (serial,) = page[5], struct.unpack_from("<I", page, 14)
        if flags & _OGG_FIRST:
            if not opening:
                links.append(at)
                open_streams.clear()
            opening = True
            open_streams.add(serial)
        else:
            opening = False
        if flags & _OGG_LAST:
            open_streams.discard(serial)
        at = end
    return Promise(parts=_links(links, size), doubt=_NO_END if open_streams else None)


def _links(starts: list[int], size: int) -> tuple[SoundPart, ...]:
    if len(starts) == 1:
        return ()
    return tuple(SoundPart(start=start, end=end) for start, end in zip(starts, [*starts[1:], size], strict=True))


# FLAC

_FLAC_TAIL = 1 << 18  # bytes in which the last frame begins
_BLOCK_SIZES = {1: 192, **{n: 576 << (n - 2) for n in range(2, 6)}, **{n: 256 << (n - 8) for n in range(8, 16)}}


def flac_promise(file: BinaryIO, size: int) -> Promise:
    """FLAC: samples that the header counts and that the last frame does not reach; a last frame that is cut.

    Where the header has no count (a pipe), it gets the one of the last frame: libsndfile would not find the end.
    """
    file.seek(0)
    start = file.read(42)
    if len(start) < 42 or start[4] & 0x7F:
        return Promise()
    fixed = start[8:10] == start[10:12]
    block = int.from_bytes(start[8:10], "big")
    total = int.from_bytes(start[21:26], "big") & 0xF_FFFF_FFFF
    file.seek(max(len(start), size - _FLAC_TAIL))
    tail = _without_tags(file.read())
    frames = _flac_frames(tail, block if fixed else None)
    last = next((end for at, end in frames if _flac_whole(tail, at, len(tail))), None)
    if last is None:  # the last frame is cut, or something follows it
        last = max((end for (at, end), (after, _) in zip(frames[1:], frames, strict=False)
                    if _flac_whole(tail, at, after)), default=None)  # fmt: skip
        ends = [at for at, end in frames if total and end >= total]
        if last is None or (ends and _flac_ends(tail, ends[0])):
            return Promise()
        return Promise(missing=f"{total - last} of its {total} samples" if total else "the rest of its last frame")
    if total:
        return Promise(missing=f"{total - last} of its {total} samples" if last < total else None)
    head = start[:21] + bytes([start[21] & 0xF0 | last >> 32]) + (last & 0xFFFFFFFF).to_bytes(4, "big")
    return Promise(parts=(SoundPart(start=len(start), end=size, head=head + start[26:]),))


def _flac_frames(tail: bytes, block: int | None) -> list[tuple[int, int]]:
    """Where frames seem to begin, the last first, each with the number of samples up to its end."""
    found, at = [], len(tail)
    while (at := max(tail.rfind(b"\xff\xf8", 0, at), tail.rfind(b"\xff\xf9", 0, at))) >= 0:
        if (header := _flac_header(tail[at : at + 16], block)) is not None:
            found.append((at, sum(header)))
    return found


def _flac_whole(tail: bytes, at: int, end: int) -> bool:
    """Whether a frame ends there: its checksum says so."""
    return end - at > 2 and _crc(tail[at : end - 2], 0x8005, 16) == int.from_bytes(tail[end - 2 : end], "big")


def _flac_ends(tail: bytes, at: int) -> bool:
    """Whether a frame may end before the file does: its checksum is one of some first part of what is there."""
    return any(value == 0 for value in _crcs(tail[at:], 0x8005, 16))


def _flac_header(data: bytes, block: int | None) -> tuple[int, int] | None:
    """Number of the first sample and number of samples of a frame, or None where this is no header."""
    if len(data) < 6:
        return None
    size_code, rate_code = data[2] >> 4, data[2] & 15
    channels, width, reserved = data[3] >> 4, data[3] >> 1 & 7, data[3] & 1
    if size_code == 0 or rate_code == 15 or channels > 10 or width == 3 or reserved:
        return None
    more = next((n for n in range(8) if not data[4] & 0x80 >> n), 8)
    if more in (1, 8):
        return None
    number, at = data[4] & (0x7F >> more), 5
    for byte in data[5 : 5 + max(0, more - 1)]:
        if byte & 0xC0 != 0x80:
            return None
        number, at = number << 6 | byte & 0x3F, at + 1
    extra = {6: 1, 7: 2}.get(size_code, 0)
    samples = int.from_bytes(data[at : at + extra], "big") + 1 if extra else _BLOCK_SIZES[size_code]
    at += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(data) or _crc(data[:at], 0x07, 8) != data[at]:
        return None
    variable = data[1] & 1
    if not variable and block is None:
        return None
    return (number if variable else number * (block or 0)), samples


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    """A checksum, most significant bit first, beginning with 0."""
    return deque(_crcs(data, polynomial, bits), maxlen=1)[0] if data else 0


def _crcs(data: bytes, polynomial: int, bits: int) -> Iterator[int]:
    """The checksums of all first parts."""
    top, mask, value = 1 << (bits - 1), (1 << bits) - 1, 0
    table = _TABLES.get(polynomial)
    if table is None:
        table = []
        for byte in range(256):
            entry = byte << (bits - 8)
            for _ in range(8):
                entry = (entry << 1 ^ polynomial if entry & top else entry << 1) & mask
            table.append(entry)
        _TABLES[polynomial] = table
    for byte in data:
        value = (value << 8 & mask) ^ table[value >> (bits - 8) ^ byte]
        yield value


_TABLES: dict[int, list[int]] = {}


def _without_tags(tail: bytes) -> bytes:
    """The end of a file without an ID3v1 tag."""
    return tail[:-128] if tail[-128:-125] == b"TAG" else tail


# MP3

_RATES = (44100, 48000, 32000)
_KBPS = {
    (3, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),  # MPEG-1, layer I
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),  # MPEG-2 and 2.5
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_BUFFER = 1 << 20
_SEARCH = 1 << 16


@dataclass(frozen=True, slots=True)
class _Mp3Frame:
    """A frame: its bytes, its samples, the side information before its data, and what must be equal in all frames."""

    size: int
    samples: int
    side: int
    kind: tuple[int, int, int]


def mp3_promise(file: BinaryIO, size: int, *, search: bool = False) -> Promise:
    """MP3: a last frame that is cut, or fewer frames than a Xing or VBRI header counts.

    libsndfile guesses the length of a file without such a header from its first frame, and stops there: such a file
    gets a header with the count, and so does one whose header counts too few (files joined by `cat`).

    Args:
        file: The file.
        size: Its bytes.
        search: It is one by its name, so the first frame may stand behind something else, as in a recorded stream.
    """
    start = _tag_end(file, 0, size)
    file.seek(start)
    data = file.read(_BUFFER)
    skipped = _next_frame(data) if search else 0
    if skipped is None:
        return Promise()
    start, data = start + skipped, data[skipped:]
    first = _mp3_header(data)
    if first is None or start + first.size >= size:
        return Promise()
    counted, field = _counted_frames(data[: first.size], first)
    walked, missing = _walk(file, start, size, first.kind)
    frames = walked - (0 if counted is None else 1)
    if counted is not None and frames < counted - 1:
        return Promise(missing=f"{counted - frames} of its {counted} frames")
    if missing:
        return Promise(missing=f"{missing} bytes of its last frame")
    if counted is None and first.size >= 16 + first.side:
        info = bytearray(data[:4]) + bytes(first.size - 4)
        info[1] |= 1  # without a checksum
        info[4 + first.side : 16 + first.side] = b"Info" + struct.pack(">II", 1, frames)
        return Promise(parts=(SoundPart(start=start, end=size, head=bytes(info)),))
    if field is not None and counted is not None and frames > counted + 1:
        file.seek(0)
        head = bytearray(file.read(start + first.size))
        at = start + field
        head[at : at + 4] = struct.pack(">I", frames)
        if head[at - 1] & 2:
            head[at + 4 : at + 8] = struct.pack(">I", min(size - start, 0xFFFFFFFF))
        return Promise(parts=(SoundPart(start=len(head), end=size, head=bytes(head)),))
    return Promise()


def _tag_end(file: BinaryIO, at: int, size: int) -> int:
    """Where the tags end that begin at a place; that place, if none does."""
    while at < size:
        file.seek(at)
        head = file.read(32)
        if head.startswith(b"ID3") and len(head) >= 10:
            length = 0
            for byte in head[6:10]:
                length = length << 7 | byte & 0x7F
            at += 10 + length + (10 if head[5] & 0x10 else 0)
        elif head.startswith(b"TAG"):
            at += 128
        elif head.startswith(b"APETAGEX") and len(head) == 32:
            at += 32 + int.from_bytes(head[12:16], "little") * (head[23] >> 5 & 1)  # the header, not the foot
        else:
            break
    return at


def _mp3_header(data: bytes) -> _Mp3Frame | None:
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    version, layer = data[1] >> 3 & 3, data[1] >> 1 & 3
    rate_code, bits, padded = data[2] >> 2 & 3, data[2] >> 4, data[2] >> 1 & 1
    if version == 1 or layer == 0 or rate_code == 3 or bits in (0, 15):
        return None
    mpeg1 = version == 3
    kbps = _KBPS[(3 if mpeg1 else 2, layer if mpeg1 or layer == 3 else 2)][bits - 1]
    rate = _RATES[rate_code] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 3 else 576 if layer == 1 and not mpeg1 else 1152
    size = (12_000 * kbps // rate + padded) * 4 if layer == 3 else samples * 125 * kbps // rate + padded
    mono = data[3] >> 6 == 3
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return _Mp3Frame(size, samples, side, (version, layer, rate_code))


def _counted_frames(frame: bytes, header: _Mp3Frame) -> tuple[int | None, int | None]:
    """What a Xing, Info or VBRI header in the first frame counts, and where the count of the first two stands.

    A header without a count counts 0: the frame is no sound either way.
    """
    for at in {4 + header.side, 6 + header.side}:
        if frame[at : at + 4] in (b"Xing", b"Info"):
            has_count = frame[at + 7] & 1
            return (int.from_bytes(frame[at + 8 : at + 12], "big"), at + 8) if has_count else (0, None)
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54], "big"), None
    return None, None


def _walk(file: BinaryIO, start: int, size: int, kind: tuple[int, int, int]) -> tuple[int, int]:
    """Go from frame to frame; tags and other things between them are passed over.

    Returns:
        How many frames are whole, and how many bytes the last one lacks.
    """
    frames, at, begin, data = 0, start, 0, b""
    while at < size:
        if not begin <= at <= begin + len(data) - 4:
            file.seek(at)
            begin, data = at, file.read(_BUFFER)
        header = _mp3_header(data[at - begin : at - begin + 4])
        if header is not None and header.kind == kind:
            at += header.size
            if at > size:
                return frames, at - size
            frames += 1
        elif (end := _tag_end(file, at, size)) > at:
            at = end
        else:
            file.seek(at)
            found = _next_frame(file.read(_SEARCH), kind)
            if found is None:
                break
            at += found
    return frames, 0


def _next_frame(data: bytes, kind: tuple[int, int, int] | None = None) -> int | None:
    """Where the next frame begins that two others follow."""
    at = -1
    while (at := data.find(b"\xff", at + 1)) >= 0:
        header, then = _mp3_header(data[at : at + 4]), at
        wanted = kind or (header.kind if header else None)
        for _ in range(3):
            if header is None or header.kind != wanted:
                break
            then += header.size
            header = _mp3_header(data[then : then + 4])
        else:
            return at
    return None
