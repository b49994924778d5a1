"""Keeps what a stream hears, small enough for a report: the shape of the sound, the classes, and the sound itself."""

import io
import queue
import threading
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.files import write_whole
from trt_compress.format.kinds import SoundOutput, input_kind, output_kind
from trt_compress.runtime.stream.calls import THREADS
from trt_compress.runtime.stream.frame import Array, Frame
from trt_compress.runtime.stream.preprocess import audio_format, input_name
from trt_compress.runtime.stream.sound_result import Sound, Track, Word

MOST_BYTES = 4_000_000
"""Of the file of a track: a page that holds it stays one that can be mailed."""

MOST_SAMPLES = 32_000_000
"""Kept in memory at most, 64 MB: over half an hour at 16 kHz."""

MOST_PARTS = 2048
"""Parts of the shape of a sound."""

MOST_WORDS = 2000

_NAMES, _SUFFIXES = ("heard", "made"), ("flac", "mp3", "wav")

_MOST_WAITING = 256  # chunks; the stream waits where listening cannot follow
_POLL_S = 0.1

_Taken = tuple[int, Array, Mapping[str, Any], Array | None]  # first sample, sound, result, what a codec made

_MP3_BYTES_PER_S = 3500  # of speech, about
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def files_of_sound(stem: str) -> tuple[str, ...]:
    """Every name that a file of sound beside the result `stem` may have."""
    return tuple(f"{stem}.{name}.{suffix}" for name in _NAMES for suffix in _SUFFIXES)


class Listener:
    """A sink that writes nothing before `sound` is asked for.

    Delivering a frame only hands it over; a thread of its own does the work, so that listening delays no frame.

    Args:
        preprocess: The manifest's, of kind "audio".
        postprocess: The manifest's.
        inputs: What the session takes.
    """

    def __init__(
        self, preprocess: Mapping[str, Any], postprocess: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> None:
        form = audio_format(preprocess, inputs[input_name(input_kind(preprocess), inputs)])
        self._rate, self._chunk = form.sample_rate, form.chunk_samples
        self._heard = _Recorder(form.sample_rate)
        self._words = Words()
        self.name = "the sound for the report"
        self._taken: queue.Queue[_Taken | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._made: _Recorder | None = None
        self._bits: float | None = None
        meaning = output_kind(postprocess)
        if isinstance(meaning, SoundOutput):
            self._output, self._length = meaning.output, meaning.samples
            self._made = _Recorder(meaning.sample_rate)
            self._bits = meaning.bits_per_second

    def open(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._listen, name=f"{THREADS}listener", daemon=True)
        self._thread.start()

    def start(self, origin_ns: int) -> None:
        """Times are those of the source."""

    def deliver(self, frame: Frame, now_ns: int) -> None:
        """Take the sound and the result of a frame."""
        start = self._start(frame)
        if start is None:
            return
        results = frame.summary.get("results", [])
        made = None
        if self._made is not None:
            made = frame.outputs[self._output or next(iter(frame.outputs))][0, : self._length].copy()
        self._put((start, frame.data, results[0] if results else {}, made))

    def skip(self, frame: Frame) -> None:
        """A frame without a result is silence, where the next one says how long."""

    def close(self) -> None:
        """Wait until all is heard."""
        if self._thread is not None:
            self._put(None)
            while self._thread.is_alive():  # the stream leaves behind whoever waits here for too long
                self._thread.join(_POLL_S)
            self._thread = None

    def sound(self, folder: Path, stem: str) -> Sound | None:
        """Say what was heard, and write it into a folder as `STEM.heard.flac` or `.mp3`, and `STEM.made.…`.

        Returns:
            None if nothing came.

        Raises:
            ConfigError: A file cannot be written.
        """
        named = [("heard", self._heard), *([("made", self._made)] if self._made is not None else [])]
        if self._failure is not None:
            raise self._failure
        if not self._heard.samples:
            return None
        tracks = tuple(recorder.track(name, folder, stem) for name, recorder in named)
        return Sound(
            tracks=tracks,
            words=tuple(self._words.words()),
            words_left_out=self._words.left_out,
            bits_per_second=None if self._bits is None else float(self._bits),
        )

    def _put(self, taken: _Taken | None) -> None:
        while self._thread is not None and self._thread.is_alive():
            try:
                return self._taken.put(taken, timeout=_POLL_S)
            except queue.Full:
                pass

    def _listen(self) -> None:
        try:
            while (taken := self._taken.get()) is not None:
                start, heard, result, made = taken
                self._heard.add(start, heard)
                if "class" in result:
                    self._words.add(start / self._rate, (start + self._chunk) / self._rate, result)
                if self._made is not None and made is not None:
                    self._made.add(round(start * self._made.rate / self._rate), made)
        except Exception as error:  # it is told where the sound is asked for
            self._failure = error

    def _start(self, frame: Frame) -> int | None:
        """First sample of the frame's chunk; None for what is no single chunk: several streams, or a scene."""
        data = frame.data
        if frame.capture_ns is None or not isinstance(data, np.ndarray) or data.shape[-1] != self._chunk:
            return None
        return round(frame.capture_ns * self._rate / 1e9)


class _Recorder:
    """Sound that comes in chunks which may overlap or leave gaps."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.samples = 0
        self._kept: list[Array] | None = []
        self._width = 64  # samples of a part
        self._low: list[float] = []
        self._high: list[float] = []
        self._rest: Array = np.zeros(0, np.float32)

    def add(self, start: int, sound: Array) -> None:
        """Take a chunk that begins at a sample, [S] or [channels, S]; what came before is left out."""
        mono = sound.mean(axis=0) if sound.ndim == 2 else sound
        new = mono[max(0, self.samples - start) :].astype(np.float32, copy=False)
        if start > self.samples:
            new = np.concatenate([np.zeros(min(start - self.samples, MOST_SAMPLES), np.float32), new])
        new = np.nan_to_num(new, nan=0.0, posinf=1.0, neginf=-1.0)
        self.samples += len(new)
        if self._kept is not None:
            self._kept.append(np.round(np.clip(new, -1, 1) * 32767).astype(np.int16))
            if self.samples > MOST_SAMPLES:
                self._kept = None
        self._shape(new)

    def track(self, name: str, folder: Path, stem: str) -> Track:
        """Describe it, and write it if it is short enough."""
        seconds = self.samples / self.rate
        file, data, reason = None, None, None
        if self._kept is None:
            reason = f"{seconds / 60:.0f} minutes of sound are too many for a page; play the source itself"
        else:
            samples = np.concatenate(self._kept) if self._kept else np.zeros(0, np.int16)
            suffix, data = _encoded(samples, self.rate)
            if len(data) > MOST_BYTES:
                size = f"{len(data) / 1e6:.1f} MB, and a page takes {MOST_BYTES / 1e6:.0f} MB"
                reason, data = f"{seconds:.0f} seconds of sound are {size}; play the source itself", None
            else:
                file = f"{stem}.{name}.{suffix}"
        if file is not None and data is not None:
            path = folder / file
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(path, data)
            except OSError as error:
                raise ConfigError(
                    f"'{path}' cannot be written ({error.strerror}); give another folder to --report."
                ) from None
        low, high = list(self._low), list(self._high)
        if len(self._rest):
            low.append(float(self._rest.min()))
            high.append(float(self._rest.max()))
        return Track(
            name=name,
            sample_rate=self.rate,
            seconds=seconds,
            low=tuple(round(value, 4) for value in low),
            high=tuple(round(value, 4) for value in high),
            file=file,
            reason=reason,
        )

    def _shape(self, new: Array) -> None:
        sound = np.concatenate([self._rest, new])
        whole = len(sound) // self._width
        parts, self._rest = sound[: whole * self._width].reshape(whole, self._width), sound[whole * self._width :]
        self._low += parts.min(axis=1).tolist() if whole else []
        self._high += parts.max(axis=1).tolist() if whole else []
        while len(self._low) > MOST_PARTS:
            if len(self._low) % 2:  # the last part waits for its other half
                return
            self._low = [min(pair) for pair in zip(self._low[::2], self._low[1::2], strict=True)]
            self._high = [max(pair) for pair in zip(self._high[::2], self._high[1::2], strict=True)]
            self._width *= 2


@dataclass(slots=True)
class _Span:
    start_s: float
    end_s: float
    text: str
    score: float


class Words:
    """Classes in order of time; those that follow one another are one."""

    def __init__(self) -> None:
        self._spans: list[_Span] = []
        self.left_out = 0
        self._last: str | None = None

    def add(self, start_s: float, end_s: float, result: Mapping[str, Any]) -> None:
        """Take the class of a chunk."""
        text = str(result.get("label", f"class {result['class']}"))
        score = float(result.get("score", 0.0))
        last = self._spans[-1] if self._spans else None
        if text == self._last:
            if last is not None and not self.left_out:
                last.end_s, last.score = end_s, max(last.score, score)
            return
        self._last = text
        if len(self._spans) >= MOST_WORDS:
            self.left_out += 1
            return
        if last is not None:
            last.end_s = min(last.end_s, start_s) if start_s > last.start_s else last.end_s
        self._spans.append(_Span(start_s, end_s, text, score))

    def words(self) -> list[Word]:
        """Give them."""
        return [
            Word(start_s=round(span.start_s, 6), end_s=round(span.end_s, 6), text=span.text, score=round(span.score, 6))
            for span in self._spans
        ]


def _encoded(samples: Array, rate: int) -> tuple[str, bytes]:
    """A file that browsers play: FLAC if it is small enough, else MP3; WAV where soundfile is not installed."""
    try:
        soundfile: Any = import_module("soundfile")
    except (ImportError, OSError):
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setparams((1, 2, rate, 0, "NONE", "not compressed"))
            writer.writeframes(samples.astype("<i2").tobytes())
        return "wav", file.getvalue()
    forms = [("flac", "FLAC", "PCM_16")]
    hopeless = len(samples) / rate * _MP3_BYTES_PER_S > MOST_BYTES  # it would take minutes to find that out
    if rate in _MP3_RATES and not hopeless and "MP3" in soundfile.available_formats():
        forms.append(("mp3", "MP3", "MPEG_LAYER_III"))
    found = ("flac", b"")
    for suffix, form, subtype in forms:
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format=form, subtype=subtype)
        found = (suffix, file.getvalue())
        if len(found[1]) <= MOST_BYTES:
            break
    return found
