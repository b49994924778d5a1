"""Audio in chunks: wav (and what else soundfile reads), and a microphone by sounddevice."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, StreamError
from trt_compress.runtime.stream.files import is_pattern, matching_files
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.images import load_library
from trt_compress.runtime.stream.pace import Clock
from trt_compress.runtime.stream.parts import Item

_OVERFLOW = "the microphone lost samples"
_STREAMED = (0, 0xFFFFFFFF)  # lengths that programs write which do not know the length


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFormat:
    """How a bundle takes audio.

    Attributes:
        sample_rate: Samples a second; audio with another rate is refused.
        channels: 1 gives chunks [S], more give [channels, S].
        chunk_samples: Length of a chunk, S.
        hop_samples: From the start of a chunk to that of the next; the rest is overlap.
    """

    sample_rate: int
    chunk_samples: int
    hop_samples: int
    channels: int = 1

    def __post_init__(self) -> None:
        if min(self.sample_rate, self.channels, self.chunk_samples, self.hop_samples) < 1:
            raise ConfigError(f"{self}: every number must be at least 1.")
        if self.hop_samples > self.chunk_samples:
            raise ConfigError(
                f"hop_samples={self.hop_samples} with chunk_samples={self.chunk_samples} would leave samples out; "
                "a hop is at most a chunk."
            )

    def num_chunks(self, samples: int) -> int:
        """Chunks of so many samples: every sample is in one, and the last chunk is filled up with zeros."""
        return 0 if samples == 0 else 1 + max(0, -(-(samples - self.chunk_samples) // self.hop_samples))


class _Chunker:
    """Cuts blocks of any length into overlapping chunks."""

    def __init__(self, form: AudioFormat) -> None:
        self._form = form
        self._held: Array = np.zeros((0, form.channels), np.float32)
        self._start = 0  # number of the first sample held
        self._given = 0  # chunks

    def add(self, block: Array) -> Iterator[Item]:
        """Take samples [S, channels] and give the chunks that are complete."""
        self._held = np.concatenate([self._held, block])
        while len(self._held) >= self._form.chunk_samples:
            yield self._chunk()

    def finish(self) -> Iterator[Item]:
        """Give the last chunk, filled up with zeros, if samples are left that no chunk had."""
        total = self._start + len(self._held)
        if self._given < self._form.num_chunks(total):
            missing = self._form.chunk_samples - len(self._held)
            self._held = np.concatenate([self._held, np.zeros((missing, self._form.channels), np.float32)])
            yield self._chunk()

    def _chunk(self) -> Item:
        form = self._form
        samples = self._held[: form.chunk_samples].T.copy()
        item = Item(
            data=samples[0] if form.channels == 1 else samples,
            capture_ns=round(self._start * 1e9 / form.sample_rate),
        )
        self._held = self._held[form.hop_samples :]
        self._start += form.hop_samples
        self._given += 1
        return item


class AudioFiles:
    """One audio file, or several by a pattern, one after another as one stream; chunks of float32.

    Args:
        pattern: A file or a pattern such as `calls/*.wav`, in natural order.
        form: What the bundle takes.
    """

    live = False

    def __init__(self, pattern: str, form: AudioFormat) -> None:
        self.name = pattern
        self.length: int | None = None
        self._form = form
        self._soundfile: Any = None
        self._items: Iterator[Item] | None = None

    def open(self) -> None:
        """Start at the first sample.

        Raises:
            ConfigError: There is no such file, or it does not fit the bundle.
            StreamError: It is no audio, or truncated.
            UnsupportedError: soundfile is not installed.
        """
        self._soundfile = load_library("soundfile", "soundfile", "audio", "Reading audio")
        files = matching_files(self.name) if is_pattern(self.name) else [self.name]
        if not files:
            raise ConfigError(f"Nothing matches '{self.name}'; give a wav file or a pattern, in quotes.")
        self._open(files[0]).close()
        self._items = self._chunks(files)

    def read(self) -> Item | None:
        """Give the next chunk, or None."""
        assert self._items is not None
        return next(self._items, None)

    def close(self) -> None:
        """Let go of the file."""
        self._items = None

    def _chunks(self, files: list[str]) -> Iterator[Item]:
        chunker = _Chunker(self._form)
        for number, file in enumerate(files):
            with self._open(file, "mid-stream" if number else "") as opened:
                wanted, seen = opened.frames, 0
                while len(block := self._samples(opened, file)):
                    seen += len(block)
                    yield from chunker.add(block)
                if seen < wanted:
                    raise StreamError(f"'{file}' ends after {seen} of {wanted} samples: it is damaged; copy it again.")
        yield from chunker.finish()

    def _samples(self, opened: Any, file: str) -> Array:
        try:
            block: Array = opened.read(self._form.hop_samples, dtype="float32", always_2d=True)
        except self._soundfile.LibsndfileError as error:
            raise StreamError(f"'{file}' cannot be read further ({error}); copy it again.") from None
        return block

    def _open(self, file: str, where: str = "") -> Any:
        form, path = self._form, Path(file)
        if not path.is_file():
            raise ConfigError(f"'{file}' does not exist; give a wav file.")
        try:
            opened = self._soundfile.SoundFile(file)
        except self._soundfile.LibsndfileError as error:
            raise StreamError(f"'{file}' is not readable audio ({error}); give a wav, flac or ogg file.") from None
        found = opened.samplerate, opened.channels
        if found != (form.sample_rate, form.channels):
            opened.close()
            error_type = StreamError if where else ConfigError
            change = f"'{self.name}' changes mid-stream: " if where else ""
            raise error_type(
                f"{change}'{file}' has {found[0]} samples a second in {found[1]} channels, and the bundle takes "
                f"{form.sample_rate} in {form.channels}; convert it first."
            )
        if (missing := _missing_bytes(path)) > 0:
            opened.close()
            raise StreamError(f"'{file}' is truncated: {missing} bytes of its samples are missing; copy it again.")
        return opened


class Microphone:
    """The default microphone by sounddevice, in chunks of float32. It ends only when the stream is stopped."""

    live = True
    name = "mic"
    length: int | None = None

    def __init__(self, form: AudioFormat, clock: Clock) -> None:
        self._form = form
        self._clock = clock
        self._stream: Any = None
        self._items: Iterator[Item] | None = None

    def open(self) -> None:
        """Start to listen.

        Raises:
            StreamError: There is no microphone, or it does not have the bundle's sample rate.
            UnsupportedError: sounddevice or PortAudio is not installed.
        """
        library = load_library("sounddevice", "sounddevice", "mic", "The microphone")
        form = self._form
        try:
            self._stream = library.InputStream(
                samplerate=form.sample_rate, channels=form.channels, dtype="float32", blocksize=form.hop_samples
            )
            self._stream.start()
        except library.PortAudioError as error:
            raise StreamError(
                f"The microphone cannot give {form.sample_rate} samples a second in {form.channels} channel(s) "
                f"({error}); choose another input in the system's settings."
            ) from None
        self._items = self._chunks()

    def read(self) -> Item | None:
        """Give the next chunk."""
        assert self._items is not None
        return next(self._items, None)

    def close(self) -> None:
        """Stop to listen."""
        self._items = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _chunks(self) -> Iterator[Item]:
        chunker = _Chunker(self._form)
        while True:
            block, overflowed = self._stream.read(self._form.hop_samples)
            now = self._clock.now_ns()
            for item in chunker.add(np.asarray(block, np.float32)):
                yield Item(
                    data=None if overflowed else item.data,
                    capture_ns=item.capture_ns,
                    arrived_ns=now,
                    error=_OVERFLOW if overflowed else None,
                )


def _missing_bytes(path: Path) -> int:
    """How many bytes of its samples a RIFF wav file announces and does not have; libsndfile would not say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"RIFF" or file.seek(8) and file.read(4) != b"WAVE":
            return 0
        while len(header := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                return 0 if length in _STREAMED else max(0, file.tell() + int(length) - size)
            file.seek(length + length % 2, 1)
    return 0
