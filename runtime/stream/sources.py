"""Which source an argument of `--source` means, and several sources as one."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.format.manifest import TensorInfo
from trt_compress.paths import check_readable
from trt_compress.runtime.stream.audio import AudioFiles, AudioFormat, Microphone
from trt_compress.runtime.stream.files import is_pattern, matching_files, nothing_matches
from trt_compress.runtime.stream.gstreamer import PipelineSource, is_pipeline
from trt_compress.runtime.stream.images import ImageFiles, SceneFile
from trt_compress.runtime.stream.pace import Clock
from trt_compress.runtime.stream.parts import Item, Source
from trt_compress.runtime.stream.video import VideoSource

AUDIO_SUFFIXES = tuple(
    ".wav .wave .rf64 .bwf .w64 .aiff .aif .aifc .au .snd .caf .flac .ogg .oga .opus .mp3 .m4a .aac .mka .wma".split()
)
IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".mpo", ".jp2", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
_SUFFIXES = (*AUDIO_SUFFIXES, *IMAGE_SUFFIXES)
_HEIF = (".heic", ".heif", ".hif")
FORMS = "video.mp4, camera:0, rtsp://…, 'frames/*.png', audio.wav, mic, scene.npz or a GStreamer pipeline"


def source_from_text(
    text: str,
    *,
    inputs: Mapping[str, TensorInfo],
    audio: AudioFormat | None,
    clock: Clock,
    stall_s: float,
    resample: bool = False,
) -> Source:
    """Make the source that a text means; nothing is opened yet.

    Args:
        text: A file, a pattern, `camera:0`, `mic`, a URL, or a GStreamer pipeline.
        inputs: What the session takes.
        audio: How the bundle takes audio; None: it takes none.
        clock: Stamps live frames.
        stall_s: How long a network stream may be silent.
        resample: Sound of another rate or number of channels is made to fit.

    Raises:
        ConfigError: It means nothing, or audio that the bundle does not take.
    """
    if is_pipeline(text) and audio is None:
        return PipelineSource(text, clock, stall_s)
    suffix = _suffix(text)
    if suffix == ".npz":
        return SceneFile(text, inputs)
    if audio is not None:
        if text != "mic" and (is_live(text) or suffix in IMAGE_SUFFIXES):
            raise ConfigError(f"The bundle takes audio, and '{text}' is none; give a sound file, mic or scene.npz.")
        # a file is sound if it holds some, whatever its name
        return (
            Microphone(audio, clock, resample=resample) if text == "mic" else AudioFiles(text, audio, resample=resample)
        )
    if text == "mic" or suffix in AUDIO_SUFFIXES:
        raise ConfigError(f"'{text}' is audio, and the bundle takes none; its inputs are {', '.join(inputs)}.")
    if os.path.isdir(text):
        raise ConfigError(
            f"'{text}' is a folder; give a pattern of its files, such as '{_pattern_of(text)}', in quotes."
        )
    if suffix in IMAGE_SUFFIXES:
        return ImageFiles(text)
    if suffix in _HEIF:
        raise ConfigError(f"'{text}' is a HEIF picture, which is not read here; convert it to JPEG or PNG.")
    for file in file_of_url(text):
        check_readable(Path(file), "give a video that is there")
    if is_live(text):
        return VideoSource(text, clock, stall_s)
    if is_pattern(text):
        if matching_files(text):
            raise ConfigError(
                f"'{text}' is a pattern, and a pattern stands for pictures of the kinds {', '.join(IMAGE_SUFFIXES)}; "
                "give one video."
            )
        raise ConfigError(nothing_matches(text, "frames/*.png"))
    if not os.path.exists(text):
        raise ConfigError(f"The source '{text}' does not exist; give {FORMS}.")
    if not os.path.isfile(text):  # warming up takes the first frame, and a pipe gives it once
        raise ConfigError(
            f"'{text}' is a pipe or a device; write the video to a file first and give that, or send it to udp://…; a "
            "camera is given as camera:/dev/video0."
        )
    return VideoSource(text, clock, stall_s)


def _suffix(text: str) -> str:
    """The suffix that says what a text means; of a pattern without one, such as `frames/*`, that of what matches."""
    suffix = Path(text).suffix.lower()
    if suffix in (*AUDIO_SUFFIXES, *IMAGE_SUFFIXES, ".npz") or is_live(text) or not is_pattern(text):
        return suffix
    found = {Path(file).suffix.lower() for file in matching_files(text)}
    kinds = [kind for kind in (AUDIO_SUFFIXES, IMAGE_SUFFIXES) if found and found <= set(kind)]
    return kinds[0][0] if kinds else suffix


def _pattern_of(folder: str) -> str:
    """A pattern of the pictures or sounds in a folder: of the kind that there are most of."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # its owner lets nobody look
        names = []
    counts = Counter(Path(name).suffix for name in names if Path(name).suffix.lower() in _SUFFIXES)
    suffix = counts.most_common(1)[0][0] if counts else IMAGE_SUFFIXES[0]
    return str(Path(folder) / f"*{suffix}")


def check_source(text: str) -> list[str]:
    """The files that a text means, none of a live source or a folder; they are not opened.

    Raises:
        ConfigError: There is no such file; of sound that is said when it is known that the bundle takes some.
    """
    if is_live(text) or os.path.isdir(text):
        return []
    suffix = Path(text).suffix.lower()
    if (files := matching_files(text)) or suffix in AUDIO_SUFFIXES:
        return files
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        os.stat(text)  # what the system refuses to say anything of is not missing
    if suffix in IMAGE_SUFFIXES or is_pattern(text):
        raise ConfigError(nothing_matches(text, "frames/*.png"))
    if suffix == ".npz":
        raise ConfigError(f"'{text}' does not exist; give a file that numpy.savez wrote.")
    raise ConfigError(f"The source '{text}' does not exist; give {FORMS}.")


def file_of_url(text: str) -> list[str]:
    """The file that a URL such as `file:///a/video.mp4` names, as FFmpeg reads it; none of any other text."""
    _, mark, file = text.rpartition("file:") if "://" in text and not is_pipeline(text) else ("", "", "")
    return [f"/{file.lstrip('/')}" if file.startswith("//") else file] if mark and file else []


def is_live(text: str) -> bool:
    """Whether a text means a device or a network stream, which gives frames at its own pace."""
    return text == "mic" or text.startswith("camera:") or "://" in text or is_pipeline(text)


class SourceGroup:
    """Several sources as one: an item holds a tuple, one part of each; the shortest source ends all.

    A frame that failed in one of them failed as a whole.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        kinds = {source.live for source in sources}
        if len(kinds) > 1:
            raise ConfigError("Files and live sources cannot be streams of one query; give one kind.")
        self.name = ", ".join(source.name for source in sources)
        self.live = kinds == {True}
        self.length: int | None = None
        self._sources = sources

    def open(self) -> None:
        """Open them all."""
        for source in self._sources:
            source.open()
        known = [source.length for source in self._sources if source.length is not None]
        self.length = min(known, default=None)

    def read(self) -> Item | None:
        """Read one frame of each, in order."""
        parts: list[Item] = []
        for source in self._sources:
            item = source.read()
            if item is None:
                return None
            parts.append(item)
        errors = [
            f"'{source.name}': {part.error}" for source, part in zip(self._sources, parts, strict=True) if part.error
        ]
        arrivals = [part.arrived_ns for part in parts if part.arrived_ns is not None]
        data: tuple[Any, ...] = tuple(part.data for part in parts)
        return Item(
            data=None if errors else data,
            capture_ns=parts[0].capture_ns,
            arrived_ns=max(arrivals, default=None),
            error=errors[0] if errors else None,
        )

    def close(self) -> None:
        """Close them all."""
        for source in self._sources:
            source.close()
