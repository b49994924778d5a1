"""Sound files as programs write them that know the length, that do not, and as copies that broke off."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

Array = np.ndarray[Any, np.dtype[Any]]

RATE = 16000
FORMATS = {  # suffix → format and subtype of soundfile
    "wav": ("WAV", "PCM_16"),
    "wave": ("WAV", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "aifc": ("AIFF", "ULAW"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "sph": ("NIST", "PCM_16"),
}
LOSSY = ("ogg", "opus", "mp3", "aifc")


def tone(seconds: float = 2.0, rate: int = RATE, hertz: float = 440.0) -> Array:
    """A tone in noise, which no codec makes small."""
    count = round(seconds * rate)
    noise = np.random.default_rng(0).normal(0, 0.05, count)
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(count) / rate) + noise).astype(np.float32)


def write_sound(path: Path, samples: Array | None = None, rate: int = RATE, suffix: str | None = None) -> Path:
    """A file of the format that its suffix names."""
    form, subtype = FORMATS[(suffix or path.suffix[1:]).lower()]
    soundfile.write(path, tone(rate=rate) if samples is None else samples, rate, format=form, subtype=subtype)
    return path


def write_by_av(path: Path, samples: Array, rate: int, codec: str, *, cover: bool = False) -> Path:
    """A file of a format that soundfile does not write, with a picture in front if there is to be one."""
    form = {".m4a": "mp4", ".mka": "matroska"}.get(path.suffix) if cover else None
    with av.open(str(path), "w", format=form) as container:
        picture: Any = container.add_stream("mpeg4", rate=1) if cover else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        track: Any = container.add_stream(codec, rate=rate, layout="mono")
        if picture is not None:
            image = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            container.mux(picture.encode(image))
            container.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(track.encode(frame))
        container.mux(track.encode())
    return path


def streamed(name: str, samples: Array) -> bytes:
    """A file as a program writes it into a pipe, 16 bits a sample, of a way that `STREAMED` names."""
    return STREAMED[name]((np.clip(samples, -1, 1) * 32767).astype("<i2"))


def _wav(riff: int, data: int, *, before: bytes = b"", id: bytes = b"RIFF") -> Callable[[Array], bytes]:
    form = b"WAVE" + struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    head = id + struct.pack("<I", riff)
    return lambda pcm: head + form.replace(b"WAVE", b"WAVE" + (before if id != b"RIFF" else b"")) + (
        before if id == b"RIFF" else b""
    ) + struct.pack("<4sI", b"data", data) + pcm.tobytes()  # fmt: skip


def _aiff(form: int, frames: int, ssnd: int) -> Callable[[Array], bytes]:
    common = struct.pack(">4sIhIh10s", b"COMM", 18, 1, frames, 16, bytes.fromhex("400cfa00000000000000"))
    head = b"FORM" + struct.pack(">I", form) + b"AIFF" + common + struct.pack(">4sIII", b"SSND", ssnd, 0, 0)
    return lambda pcm: head + pcm.astype(">i2").tobytes()


def _au(length: int) -> Callable[[Array], bytes]:
    head = struct.pack(">4sIIIII", b".snd", 24, length, 3, RATE, 1)
    return lambda pcm: head + pcm.astype(">i2").tobytes()


def _caf(length: int) -> Callable[[Array], bytes]:
    form = struct.pack(">4sqd4sIIIII", b"desc", 32, float(RATE), b"lpcm", 0, 2, 1, 1, 16)
    head = b"caff\0\1\0\0" + form + struct.pack(">4sqI", b"data", length, 0)
    return lambda pcm: head + pcm.astype(">i2").tobytes()


def _flac(pcm: Array) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, RATE, format="FLAC", subtype="PCM_16")
    data = bytearray(file.getvalue())
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # the number of samples
    return bytes(data)


def _wave64(riff: int, data: int) -> Callable[[Array], bytes]:
    tail = bytes.fromhex("f3acd3118cd100c04f8edb8a")
    form = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    head = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000") + struct.pack("<Q", riff) + b"wave" + tail
    head += b"fmt " + tail + struct.pack("<Q", 40) + form + b"data" + tail + struct.pack("<Q", data)
    return lambda pcm: head + pcm.tobytes()


_LIST = struct.pack("<4sI4s4sI6s", b"LIST", 18, b"INFO", b"ISFT", 6, b"Lavf59")
STREAMED: dict[str, Callable[[Array], bytes]] = {
    "wav of ffmpeg": _wav(0xFFFFFFFF, 0xFFFFFFFF, before=_LIST),
    "wav of sox": _wav(0x7FFFF024, 0x7FFFF000),
    "wav of arecord": _wav(0x80000024, 0x80000000),
    "wav of lame": _wav(0x80000023, 0x7FFFFFFF),
    "wav, less a header": _wav(0xFFFFFFFF, 0xFFFFFFFF - 44),
    "wav, 36 and 0": _wav(36, 0),
    "wav, 0 and 0": _wav(0, 0, before=_LIST),
    "wav, -1 and 0": _wav(0xFFFFFFFF, 0),
    "rf64 of ffmpeg": _wav(0xFFFFFFFF, 0xFFFFFFFF, before=struct.pack("<4sI28x", b"ds64", 28), id=b"RF64"),
    "w64 of ffmpeg": _wave64((1 << 64) - 1, (1 << 63) - 1),
    "aiff of ffmpeg": _aiff(0, 0, 0),
    "aiff of sox": _aiff(0x7F00002E, 0x3F800000, 0x7F000008),
    "au of ffmpeg": _au(0xFFFFFFFF),
    "au, 0": _au(0),
    "caf of ffmpeg": _caf(-1),
    "flac": _flac,
}
