"""Small videos and sounds, made by the libraries that users make them with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

Array = np.ndarray[Any, np.dtype[Any]]


def picture(number: int, height: int = 48, width: int = 64) -> Array:
    """A grey picture whose brightness says its number (0 to 15), with some texture."""
    noise = np.random.default_rng(number).integers(0, 4, (height, width, 3))
    return (noise + 16 * (number % 16)).astype(np.uint8)


def write_video(
    path: Path,
    count: int = 20,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (48, 64),
    options: dict[str, str] | None = None,
) -> Path:
    """A video of `picture(0)`, `picture(1)`, … at 25 frames a second; options are the muxer's."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(path: Path, share: float) -> Path:
    """A copy of the first part of a file."""
    data = path.read_bytes()
    part = path.with_name(f"cut-{path.name}")
    part.write_bytes(data[: round(len(data) * share)])
    return part


def write_wav(path: Path, samples: Sequence[float] | Array, rate: int = 16000, subtype: str = "FLOAT") -> Path:
    """A wav file of samples [S] or [S, channels]."""
    soundfile.write(path, np.asarray(samples, np.float32), rate, subtype=subtype)
    return path
