"""Where results go: one JSON line a frame, or the sound that was made. A video of them is in `overlay`."""

import errno
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, StreamError
from trt_compress.files import GrowingFile
from trt_compress.foreign import shown
from trt_compress.format.manifest import Compression
from trt_compress.runtime.stream.frame import Frame


class JsonLines:
    """One JSON object a line for every frame, those too that were dropped or failed; each is written at once.

    A line holds id, source, capture_ns, arrival_ns, start_ns, finished_ns (when the line was written, on the stream's
    clock), stages_ns, waits_ns, outcome, reason, level, tokens, and for a delivered frame its results.

    Args:
        path: The file; it is replaced.
        tokens: Level → tokens in and out of every site.
    """

    def __init__(self, path: str | Path, tokens: dict[str, tuple[Compression, ...]] | None = None) -> None:
        self._path = path
        self.name = str(path)
        self._file: GrowingFile | None = None
        self._origin_ns = 0
        self._sites = {
            level: {part.site: [part.tokens_in, part.tokens_out] for part in parts}
            for level, parts in (tokens or {}).items()
        }

    def open(self) -> None:
        """Make the file.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self._file = GrowingFile(self._path)
        except OSError as error:
            raise ConfigError(
                f"'{self._path}' cannot be written ({error.strerror}); give another file to --out."
            ) from None

    def start(self, origin_ns: int) -> None:
        """Count times from here."""
        self._origin_ns = origin_ns
        if self._file is not None:
            self._file.begin()

    def deliver(self, frame: Frame, now_ns: int) -> None:
        """Write the line of a delivered frame."""
        self._write(frame, now_ns, {"outcome": "delivered", "reason": None}, frame.summary)

    def skip(self, frame: Frame) -> None:
        """Write the line of a frame that was dropped or failed."""
        now_ns = (frame.end_ns or self._origin_ns) - self._origin_ns
        self._write(frame, now_ns, {"outcome": frame.outcome, "reason": frame.reason}, {})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, frame: Frame, now_ns: int, outcome: dict[str, Any], summary: dict[str, Any]) -> None:
        line = {
            "id": frame.id,
            "source": shown(frame.source),
            "capture_ns": frame.capture_ns,
            "arrival_ns": frame.arrival_ns - self._origin_ns,
            "start_ns": frame.start_ns - self._origin_ns,
            "finished_ns": now_ns,
            "stages_ns": frame.stage_ns,
            "waits_ns": frame.wait_ns,
            **outcome,
            "level": frame.level,
            "tokens": self._sites.get(frame.level or ""),
            **summary,
        }
        if self._file is None:  # it was closed
            return
        data = json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            self._file.append(data)
        except OSError as error:
            raise disk_full(self._path, error) from None


class SoundSink:
    """The sound of the delivered frames, one behind the other: a WAV file of 16 bits, one channel.

    Args:
        path: The file; it is replaced.
        output: Name of the output [1, samples], from -1 to 1; what is beyond is clipped.
        sample_rate: In Hz.
        samples: Of a frame; what is behind them is padding. None: all.
    """

    def __init__(self, path: str | Path, *, output: str, sample_rate: int, samples: int | None = None) -> None:
        self._path, self._output = path, output
        self.name = str(path)
        self._rate, self._samples = sample_rate, samples
        self._file: GrowingFile | None = None
        self._wave: wave.Wave_write | None = None

    def open(self) -> None:
        """Make the file.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self._file = GrowingFile(self._path)
        except OSError as error:
            raise ConfigError(
                f"'{self._path}' cannot be written ({error.strerror}); give another name, such as out.wav."
            ) from None

    def start(self, origin_ns: int) -> None:
        """The stream starts: what was in the file goes."""
        self._begun()

    def deliver(self, frame: Frame, now_ns: int) -> None:
        """Write the sound of a frame.

        Raises:
            ConfigError: The query has several streams.
            StreamError: The disk is full.
        """
        sound = frame.outputs[self._output]
        if len(sound) != 1:
            raise ConfigError(f"The query has {len(sound)} streams, and '{self._path}' holds the sound of one.")
        numbers = np.round(np.clip(sound[0, : self._samples], -1, 1) * 32767).astype("<i2")
        try:
            self._begun().writeframes(numbers.tobytes())
        except OSError as error:
            raise disk_full(self._path, error) from None

    def skip(self, frame: Frame) -> None:
        """A frame without results is not in the file."""

    def _begun(self) -> wave.Wave_write:
        if self._wave is None:
            if self._file is None:
                raise StreamError(f"'{self._path}' was closed, and a frame came after it.")
            self._file.begin()
            self._wave = wave.open(self._file, "wb")
            self._wave.setparams((1, 2, self._rate, 0, "NONE", "not compressed"))
        return self._wave

    def close(self) -> None:
        """Finish the file."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            try:
                if self._wave is not None:
                    self._wave.close()
            finally:
                file.close()
        except OSError as error:
            raise disk_full(self._path, error) from None


def disk_full(path: str | Path, error: Any) -> StreamError:
    """The error of a file that takes no more, or of a pipe that nobody reads any more."""
    if getattr(error, "errno", None) == errno.EPIPE:
        return StreamError(f"'{path}' is read no more (Broken pipe); let its reader run until the stream has ended.")
    reason = getattr(error, "strerror", None) or error
    return StreamError(f"'{path}' cannot be written any more ({reason}); free some space, or give another file.")
