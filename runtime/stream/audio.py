"""Audio in chunks: sound files, and a microphone by sounddevice."""

import shlex
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, StreamError
from trt_compress.foreign import shown
from trt_compress.runtime.stream.files import is_pattern, matching_files, nothing_matches
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.images import load_library
from trt_compress.runtime.stream.pace import Clock
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.resample import Fitter
from trt_compress.runtime.stream.sound_files import OpenSound, SoundOpener

_OVERFLOW = "the microphone lost samples"


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFormat:
    """How a bundle takes audio.

    Attributes:
        sample_rate: Samples a second; audio with another rate is refused, or resampled if that is asked for.
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
        resample: Make audio of another rate or number of channels fit, file by file; otherwise it is refused.
    """

    live = False

    def __init__(self, pattern: str, form: AudioFormat, *, resample: bool = False) -> None:
        self.name = pattern
        self.length: int | None = None
        self._form = form
        self._resample = resample
        self._opener: SoundOpener | None = None
        self._items: Iterator[Item] | None = None

    def open(self) -> None:
        """Start at the first sample.

        Raises:
            ConfigError: There is no such file, or it does not fit the bundle.
            StreamError: It is no audio, or truncated.
            UnsupportedError: A library is not installed.
        """
        self._opener = self._opener or SoundOpener()
        files = _files(self.name)
        with closing(self._opener.open(files[0])) as sounds:
            self._fitter(next(sounds), files[0])
        self._items = self._chunks(files, self._opener)

    def read(self) -> Item | None:
        """Give the next chunk, or None."""
        assert self._items is not None
        return next(self._items, None)

    def close(self) -> None:
        """Let go of the file."""
        self._items = None

    def _chunks(self, files: list[str], opener: SoundOpener) -> Iterator[Item]:
        chunker = _Chunker(self._form)
        begun = False
        for file in files:
            for sound in opener.open(file):
                fitter = self._fitter(sound, file, mid_stream=begun)
                begun = True
                for block in sound.blocks():
                    yield from chunker.add(fitter.add(block))
                yield from chunker.add(fitter.finish())
        yield from chunker.finish()

    def _fitter(self, sound: OpenSound, file: str, *, mid_stream: bool = False) -> Fitter:
        form, found = self._form, (sound.rate, sound.channels)
        name = shown(file)
        change = f"'{shown(self.name)}' changes mid-stream: " if mid_stream else ""
        error_type = StreamError if mid_stream else ConfigError
        if found != (form.sample_rate, form.channels) and not self._resample:
            raise error_type(
                f"{change}'{name}' has {found[0]} samples a second in {found[1]} channels, and the bundle takes "
                f"{form.sample_rate} in {form.channels}; convert it first, by --resample or by ffmpeg -i "
                f"{shlex.quote(name)} -ar {form.sample_rate} -ac {form.channels} converted.wav."
            )
        try:
            return Fitter(rate=found[0], channels=found[1], to_rate=form.sample_rate, to_channels=form.channels)
        except ConfigError as error:
            raise error_type(f"{change}'{name}' cannot be resampled: {error.message}") from None


def _files(pattern: str) -> list[str]:
    files = matching_files(pattern) if is_pattern(pattern) else [pattern]
    if not files:
        raise ConfigError(nothing_matches(pattern, "calls/*.wav"))
    return files


class Microphone:
    """The default microphone by sounddevice, in chunks of float32. It ends only when the stream is stopped.

    Args:
        form: What the bundle takes.
        clock: Stamps the chunks.
        resample: Take the microphone's own rate and channels where it does not have the bundle's, and make them fit;
            chunks come later by the length of the filter, about 20 ms at 16 kHz.
    """

    live = True
    name = "mic"
    length: int | None = None

    def __init__(self, form: AudioFormat, clock: Clock, *, resample: bool = False) -> None:
        self._form = form
        self._resample = resample
        self._fitter: Fitter | None = None
        self._block = form.hop_samples
        self._clock = clock
        self._stream: Any = None
        self._items: Iterator[Item] | None = None

    def open(self) -> None:
        """Start to listen.

        Raises:
            ConfigError: The microphone's channels cannot become the bundle's.
            StreamError: There is no microphone, or it does not have the bundle's sample rate.
            UnsupportedError: sounddevice or PortAudio is not installed.
        """
        library = load_library("sounddevice", "sounddevice", "mic", "The microphone")
        form = self._form
        try:
            self._start(library, form.sample_rate, form.channels)
        except library.PortAudioError as error:
            if not self._resample:
                raise StreamError(
                    f"The microphone cannot give {form.sample_rate} samples a second in {form.channels} channel(s) "
                    f"({error}); give --resample, or choose another input in the system's settings."
                ) from None
            self._start_own(library)
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

    def _start_own(self, library: Any) -> None:
        """Listen at the microphone's own rate: in the bundle's channels if it has them, else in its own."""
        try:
            device = library.query_devices(kind="input")
            rate, channels = round(device["default_samplerate"]), int(device["max_input_channels"])
            try:
                self._start(library, rate, self._form.channels)
            except library.PortAudioError:
                self._start(library, rate, channels)
        except (library.PortAudioError, ValueError) as error:
            raise StreamError(
                f"The microphone cannot be opened ({error}); choose another input in the system's settings."
            ) from None

    def _start(self, library: Any, rate: int, channels: int) -> None:
        form = self._form
        self._block = max(1, round(form.hop_samples * rate / form.sample_rate))
        self._fitter = Fitter(rate=rate, channels=channels, to_rate=form.sample_rate, to_channels=form.channels)
        self._stream = library.InputStream(samplerate=rate, channels=channels, dtype="float32", blocksize=self._block)
        self._stream.start()

    def _chunks(self) -> Iterator[Item]:
        chunker, fitter = _Chunker(self._form), self._fitter
        assert fitter is not None
        while True:
            block, overflowed = self._stream.read(self._block)
            now = self._clock.now_ns()
            for item in chunker.add(fitter.add(np.asarray(block, np.float32))):
                yield Item(
                    data=None if overflowed else item.data,
                    capture_ns=item.capture_ns,
                    arrived_ns=now,
                    error=_OVERFLOW if overflowed else None,
                )
