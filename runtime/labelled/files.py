"""Samples that are files: images or sounds, each with the bundle's own preprocessing."""

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trt_compress.errors import TrtCompressError, UnsupportedError
from trt_compress.format.manifest import TensorInfo
from trt_compress.runtime.labelled.data import BadSample, Runs
from trt_compress.runtime.stream.audio import AudioFiles, AudioFormat
from trt_compress.runtime.stream.images import ImageFiles
from trt_compress.runtime.stream.parts import BadFrame
from trt_compress.runtime.stream.preprocess import Preprocess, audio_format

SUFFIXES: Mapping[str, frozenset[str]] = {
    "image": frozenset(
        ".png .apng .jpg .jpeg .jpe .jfif .bmp .dib .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .jp2 .j2k .avif .tga "
        ".ico .pcx".split()
    ),
    "audio": frozenset(".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64".split()),
}


class FileReader:
    """Reads one file at a time as the inputs of a bundle; of an animation or several pages the first picture.

    Args:
        kind: "image" or "audio".
        settings: The manifest's `preprocess`.
        info: The input that files become.
        prepare: The bundle's preprocessing.
        resample: Make sound of another rate or number of channels fit; otherwise it cannot be read.
    """

    def __init__(
        self,
        kind: str,
        settings: Mapping[str, Any],
        info: TensorInfo,
        prepare: Preprocess,
        *,
        resample: bool = False,
    ) -> None:
        self.kind = kind
        self._form: AudioFormat | None = audio_format(settings, info) if kind == "audio" else None
        self._prepare = prepare
        self._resample = resample

    def takes(self, path: Path) -> bool:
        """Whether a file's name says that it is of this kind."""
        return path.suffix.lower() in SUFFIXES[self.kind]

    def read(self, path: Path) -> Runs:
        """The runs of one file: one of an image, one for each chunk of a sound.

        Raises:
            BadSample: It cannot be read, or does not fit the bundle.
            UnsupportedError: The library that reads it is not installed.
        """
        if not path.is_file():
            raise BadSample("there is no such file")
        try:
            return tuple(self._prepare(data) for data in self._items(path))
        except UnsupportedError:
            raise
        except (TrtCompressError, BadFrame) as error:
            raise BadSample(getattr(error, "message", str(error))) from None

    def _items(self, path: Path) -> Iterator[Any]:
        source: Any
        if self._form is None:
            source = ImageFiles(glob.escape(str(path)))
        else:
            name = glob.escape(str(path)) if glob.has_magic(str(path)) else str(path)
            source = AudioFiles(name, self._form, resample=self._resample)
        source.open()
        try:
            count = 0
            while (item := source.read()) is not None:
                if item.error is not None or item.data is None:
                    raise BadSample(item.error or "it holds nothing")
                yield item.data
                count += 1
                if self._form is None:
                    return
            if not count:
                raise BadSample("it holds nothing")
        finally:
            source.close()


def files_below(folder: Path) -> list[Path]:
    """All files in a directory and below it but hidden ones, sorted."""
    found: list[Path] = []
    for top, directories, names in os.walk(folder):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        found += [Path(top) / name for name in sorted(names) if not name.startswith(".")]
    return found
