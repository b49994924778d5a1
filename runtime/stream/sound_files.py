"""Sound files as blocks of samples: by soundfile, and by PyAV what that does not read (m4a, mka, webm, wma, …).

A file is held against what it announces before anything of it is played: see sound_lengths.py.
"""

import logging
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trt_compress.errors import ConfigError, StreamError, UnsupportedError
from trt_compress.files import check_regular
from trt_compress.foreign import reason_of, shown
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.images import load_library
from trt_compress.runtime.stream.sound_lengths import PartFile, promise_of
from trt_compress.runtime.stream.sound_parts import Promise, SoundPart

READABLE = "wav, rf64, w64, aiff, aifc, au, caf, flac, ogg, opus or mp3; with PyAV also m4a, mka, webm, aac and others"
"""What sound files may be, for messages."""

BLOCK = 1 << 12
"""Samples of a block."""

_LOG = logging.getLogger("trt_compress.stream")
_UNKNOWN_LENGTH = 1 << 60
_SYSTEM_ERROR = 7  # of libsndfile
_MISSING_S = 0.1  # a duration is rounded, and a codec's last packet may be cut on purpose
_CONTAINERS = frozenset(
    "mov mp4 m4a 3gp 3g2 mj2 matroska webm aac asf avi flv mpegts mpeg amr wv ape tta ac3 eac3 dts w64 wav caf aiff"
    " ogg".split()
)
"""FFmpeg's formats that are taken; others (mp3, raw forms) it also finds in what is no sound."""


class OpenSound(Protocol):
    """An open file, or a part of one.

    Attributes:
        rate: Samples a second.
        channels: How many.
    """

    rate: int
    channels: int

    def blocks(self) -> Iterator[Array]:
        """Give the samples as float32 [S, channels], in order, all of them once.

        Raises:
            StreamError: They cannot be read further.
        """
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class SoundOpener:
    """Opens sound files; what was learned of a file's length is kept.

    Raises:
        UnsupportedError: soundfile is not installed.
    """

    def __init__(self) -> None:
        self._soundfile = load_library("soundfile", "soundfile", "audio", "Reading audio")
        # After every block soundfile seeks to where it is, and what an MP3 decoder knows of the frames before is lost:
        # the next block would begin with other samples. It does not in a file that cannot be sought in.
        self._forward = type("Forward", (self._soundfile.SoundFile,), {"seekable": lambda opened: False})
        self._promises: dict[str, Promise] = {}

    def open(self, file: str) -> Generator[OpenSound, None, None]:
        """Open a file; each of its parts is open until the next is asked for.

        Raises:
            ConfigError: There is no such file.
            StreamError: It is no sound that can be read, or truncated.
            UnsupportedError: It needs PyAV, which is not installed.
        """
        promise = self._promises.get(file)
        if promise is None:
            promise = self._promises[file] = self._look(file)
            if promise.doubt:
                _LOG.warning("'%s' %s.", shown(file), promise.doubt)
        if promise.missing:
            raise StreamError(f"'{shown(file)}' is truncated: {promise.missing} are missing; copy it again.")
        for part in promise.parts or (None,):
            sound = self._sound(file, part)
            try:
                yield sound
            finally:
                sound.close()

    def _look(self, file: str) -> Promise:
        path, name = Path(file), shown(file)
        try:
            if path.is_file() and path.stat().st_size:
                return promise_of(path)
            if path.is_file():
                raise StreamError(f"'{name}' is empty: it has no bytes; copy it again.")
            is_folder, is_there = path.is_dir(), path.exists()
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise ConfigError(
                f"'{name}' cannot be read ({reason_of(error)}); check its name and permissions."
            ) from None
        if is_folder:
            raise ConfigError(f"'{name}' is a folder; give a pattern of its files, such as '{name}/*.wav', in quotes.")
        if is_there:
            raise ConfigError(f"'{name}' is a pipe or a device; write the sound to a file first, and give that.")
        raise ConfigError(f"'{name}' does not exist; give a wav file.")

    def _sound(self, file: str, part: SoundPart | None) -> OpenSound:
        opened = PartFile(Path(file), part) if part else None
        try:
            return _SoundFile(file, self._forward(opened or file), opened)
        except Exception as error:  # LibsndfileError mostly; a foreign file can bring others
            if opened is not None:
                opened.close()
            reason = _reason(error)
            if isinstance(error, TypeError):
                reason = "samples without a header"
            elif getattr(error, "code", 0) == _SYSTEM_ERROR:  # mpg123 found nothing, and libsndfile blames the system
                reason = "Format not recognised"
        try:
            return _AvSound(file)
        except UnsupportedError as error:
            hint = error.hint  # to install PyAV
        except _NotByAv as error:
            reason, hint = str(error) or reason, None
        raise StreamError(f"'{shown(file)}' is not readable audio ({reason}); give {READABLE}.", hint=hint)


class _SoundFile:
    """By soundfile."""

    def __init__(self, name: str, opened: Any, part: PartFile | None) -> None:
        self.rate, self.channels = int(opened.samplerate), int(opened.channels)
        if self.rate < 1 or self.channels < 1:
            opened.close()
            raise ValueError(f"it has {self.rate} samples a second in {self.channels} channels")
        self._name, self._opened, self._part = shown(name), opened, part

    def blocks(self) -> Iterator[Array]:
        """Give the samples."""
        # of MP3 the decoder keeps back its delay, and sound_lengths.py has counted the frames
        wanted = 0 if str(self._opened.subtype).startswith("MPEG") else self._opened.frames
        seen = 0
        while len(block := self._read()):
            seen += len(block)
            yield block
        if seen < wanted < _UNKNOWN_LENGTH:
            raise StreamError(f"'{self._name}' ends after {seen} of {wanted} samples: it is damaged; copy it again.")

    def close(self) -> None:
        """Let go of the file."""
        self._opened.close()
        if self._part is not None:
            self._part.close()

    def _read(self) -> Array:
        try:
            block: Array = self._opened.read(BLOCK, dtype="float32", always_2d=True)
        except Exception as error:
            raise StreamError(f"'{self._name}' cannot be read further ({_reason(error)}); copy it again.") from None
        return block


def _reason(error: Exception) -> str:
    """What a library said, in a few words; of libsndfile without the file's name, which stands in the sentence."""
    said = getattr(error, "error_string", None)
    return shown(str(said)).rstrip(".") if said else reason_of(error)


class _NotByAv(Exception):
    """PyAV does not read it either; the reason is empty where soundfile's own says more."""


class _AvSound:
    """By PyAV: the first sound track of a file, whatever else is in it."""

    def __init__(self, file: str) -> None:
        self._av = load_library("av", "av", "audio", f"Reading '{shown(file)}'")
        self._av.logging.set_level(None)  # its lines on stderr; errors come as exceptions
        self.rate = 0
        self._name, self._container = shown(file), self._opened(file)
        try:
            self._check_whole()
            self._container.close()
            self._container = self._opened(file)
            self._blocks = self._decoded()
            try:
                self._first: Array | None = next(self._blocks, None)
            except StreamError:
                raise _NotByAv from None
            if self._first is None:
                raise _NotByAv(f"its track '{self._track().codec.name}' holds no sound that can be decoded")
        except BaseException:
            self._container.close()
            raise
        self.channels = self._first.shape[1]

    def blocks(self) -> Iterator[Array]:
        """Give the samples."""
        first, self._first = self._first, None
        if first is not None:
            yield first
        yield from self._blocks

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def _opened(self, file: str) -> Any:
        try:
            check_regular(Path(file))
            container = self._av.open(f"file:{file}")  # or FFmpeg would take what stands before a colon for a protocol
        except Exception:
            raise _NotByAv from None
        if not _CONTAINERS & set(container.format.name.split(",")):
            container.close()
            raise _NotByAv
        if not container.streams.audio:
            container.close()
            raise _NotByAv("it has no sound track")
        return container

    def _track(self) -> Any:
        return self._container.streams.audio[0]

    def _check_whole(self) -> None:
        """Refuse a file that has fewer packets, or ends earlier, than its header says."""
        track, count, end = self._track(), 0, None
        try:
            for packet in self._container.demux(track):
                if packet.size:
                    count += 1
                    end = packet.pts + (packet.duration or 0) if packet.pts is not None else end
        except Exception as error:
            raise StreamError(f"'{self._name}' is truncated or damaged ({reason_of(error)}); copy it again.") from None
        if track.frames and "mov" in self._container.format.name:
            if count < track.frames:
                lost = track.frames - count
                raise StreamError(
                    f"'{self._name}' is truncated: {lost} of its {track.frames} packets are missing; copy it again."
                )
            return
        duration = track.duration * track.time_base if track.duration else None
        if duration is None and len(self._container.streams) == 1 and "aac" not in self._container.format.name:
            duration = self._container.duration / 1e6 if self._container.duration else None
        start = (track.start_time or 0) * track.time_base
        if (
            duration is not None
            and end is not None
            and (lost_s := duration + start - end * track.time_base) > max(_MISSING_S, 2e-3 * float(duration))
        ):
            raise StreamError(
                f"'{self._name}' is truncated: {float(lost_s):.3g} of its {float(duration):.4g} seconds are missing; "
                "copy it again."
            )

    def _decoded(self) -> Iterator[Array]:
        # Interleaved: with more than eight channels PyAV reads planes of a planar frame that are elsewhere in memory.
        to_float = self._av.AudioResampler(format="flt")
        form: tuple[int, int] | None = None
        try:
            for frame in self._container.decode(self._track()):
                found = frame.sample_rate, len(frame.layout.channels)
                if form is not None and found != form:
                    raise StreamError(
                        f"'{self._name}' changes from {form[0]} samples a second in {form[1]} channels to {found[0]} "
                        f"in {found[1]}; cut it there."
                    )
                form = found
                self.rate = frame.sample_rate
                for converted in to_float.resample(frame):
                    yield np.asarray(converted.to_ndarray(), np.float32).reshape(-1, found[1])
        except StreamError:
            raise
        except Exception as error:
            raise StreamError(f"'{self._name}' cannot be read further ({reason_of(error)}); copy it again.") from None
