"""Sources that are files of arrays or images: `frames/*.png` and `scene.npz`."""

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from trt_compress.errors import ConfigError, ShapeError, StreamError, UnsupportedError
from trt_compress.files import open_regular
from trt_compress.foreign import reading, shown
from trt_compress.format.manifest import TensorInfo
from trt_compress.runtime.arrays import arrays_of
from trt_compress.runtime.camera_frames import CAMERA_NAMES, TRUTH
from trt_compress.runtime.stream.files import matching_files, nothing_matches
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.pictures import PictureReader
from trt_compress.suggest import did_you_mean

TIMESTAMPS = "timestamp_ns"

_LOGGER = logging.getLogger("trt_compress")

_MOST_NAMED = 5  # files that failed
_SINGLE = (".jpg", ".jpeg", ".bmp", ".ppm", ".pgm")  # formats that hold one picture a file


def load_library(module: str, package: str, extra: str, what: str) -> ModuleType:
    """Import a library that is an extra.

    Raises:
        UnsupportedError: It is not installed, or does not load here.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: its shared library is missing
        raise UnsupportedError(
            f"{what} needs '{package}', and it cannot be imported ({error}).",
            hint=f'pip install "trt-compress[{extra}]"',
        ) from None


class ImageFiles:
    """Images by a pattern, in natural order (`2.png` before `10.png`), and all pictures of each (animations, pages).

    An image in colour comes as RGB, [H, W, 3] uint8; a grey one as [H, W] uint8; both upright. A file that is no
    readable image is a frame that failed; among several files the first such ones are named in the log.
    """

    live = False

    def __init__(self, pattern: str) -> None:
        self.name = pattern
        self._files = matching_files(pattern)
        single = all(Path(file).suffix.lower() in _SINGLE for file in self._files)
        self.length: int | None = len(self._files) if single else None
        self._items: Iterator[Item] | None = None
        self._bad: set[str] = set()

    def open(self) -> None:
        """Start at the first image.

        Raises:
            ConfigError: Nothing matches.
            UnsupportedError: Pillow is not installed.
        """
        reader = PictureReader(load_library("PIL.Image", "pillow", "video", "Reading images"))
        if not self._files:
            raise ConfigError(nothing_matches(self.name, "frames/*.png"))
        if len(self._files) == 1:
            self.length = reader.count(self._files[0])
        self._items = self._pictures(reader)

    def read(self) -> Item | None:
        """Give the next image, or None."""
        assert self._items is not None
        return next(self._items, None)

    def close(self) -> None:
        """Let go of the file."""
        self._items = None

    def _pictures(self, reader: PictureReader) -> Iterator[Item]:
        for file in self._files:
            for item in reader.read(file):
                if item.error is not None and len(self._files) > 1 and file not in self._bad:
                    self._bad.add(file)
                    if len(self._bad) <= _MOST_NAMED:
                        rest = "; further ones are only counted" if len(self._bad) == _MOST_NAMED else ""
                        _LOGGER.warning("'%s': %s%s.", shown(file), item.error, rest)
                yield item


class SceneFile:
    """Arrays by input name, each with a leading time axis, and optionally `timestamp_ns` [T].

    Args:
        path: An .npz file.
        inputs: What the session takes; names and shapes are compared when the source is opened.
    """

    live = False

    def __init__(self, path: str, inputs: Mapping[str, TensorInfo]) -> None:
        self.name = path
        self.length: int | None = None
        self._inputs = inputs
        self._arrays: dict[str, Array] = {}
        self._times: list[int] | None = None
        self._next = 0

    def open(self) -> None:
        """Read the file.

        Raises:
            ConfigError: It cannot be read, lacks an input, or its arrays differ in length.
            ShapeError: An array does not fit the input of its name.
        """
        arrays = load_npz(self.name)
        times = arrays.pop(TIMESTAMPS, None)
        for name in (*TRUTH, CAMERA_NAMES):  # are for --labels and --overlay
            arrays.pop(name, None)
        for name in arrays:
            if name not in self._inputs:
                known, suggestion = ", ".join(self._inputs), did_you_mean(name, self._inputs)
                raise ConfigError(f"'{self.name}' has the array '{name}', and the bundle takes {known}.{suggestion}")
        for name, info in self._inputs.items():
            if name not in arrays:
                raise ConfigError(
                    f"'{self.name}' lacks the array '{name}' that the bundle takes: {info.dtype} of shape "
                    f"[T, {', '.join(map(str, info.shape))}]."
                )
        self._arrays = {name: self._fitted(name, array, self._inputs[name]) for name, array in arrays.items()}
        lengths = {name: len(array) for name, array in arrays.items()} | (
            {} if times is None else {TIMESTAMPS: len(times)}
        )
        if len(set(lengths.values())) != 1:
            counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ConfigError(
                f"The arrays of '{self.name}' differ in their number of frames ({counts}); make them equal."
            )
        self._times = None if times is None else [int(value) for value in times]
        self.length = next(iter(lengths.values()))
        self._next = 0

    def read(self) -> Item | None:
        """Give the arrays of the next moment, or None."""
        index = self._next
        if index == self.length:
            return None
        self._next += 1
        return Item(
            data={name: array[index] for name, array in self._arrays.items()},
            capture_ns=None if self._times is None else self._times[index],
        )

    def close(self) -> None:
        """Let go of the arrays."""
        self._arrays = {}

    def _fitted(self, name: str, array: Array, info: TensorInfo) -> Array:
        """Check an array [T, …] against an input, and give it the batch axis of 1 that a scene may leave out."""
        shape = list(info.shape)
        if array.ndim == len(shape) and shape and (isinstance(shape[0], str) or shape[0] == 1):
            array = array[:, np.newaxis]
        wrong = [
            f"{array.shape[axis]} on axis {axis} of a frame, where the bundle takes {dim}"
            for axis, dim in enumerate(shape, start=1)
            if array.ndim == len(shape) + 1 and isinstance(dim, int) and array.shape[axis] != dim
        ]
        if array.ndim != len(shape) + 1:
            wrong = [f"{array.ndim} axes, and time and the input's axes make {len(shape) + 1}"]
        if array.dtype != np.dtype(info.dtype):
            raise ShapeError(
                f"'{name}' of '{self.name}' is {array.dtype} and the bundle takes {info.dtype}; save it with "
                f".astype('{info.dtype}')."
            )
        if wrong:
            wanted = ", ".join(map(str, shape))
            raise ShapeError(f"'{name}' of '{self.name}' has {wrong[0]}; give [T, {wanted}].")
        return array


def load_npz(path: str, only: Sequence[str] | None = None) -> dict[str, Array]:
    """Read the arrays of a file.

    Args:
        path: The file.
        only: Names of those that are wanted, where they are there; None: all.

    Raises:
        ConfigError: There is no such file.
        StreamError: It is something else.
    """
    if not Path(path).exists():
        raise ConfigError(f"'{path}' does not exist; give a file that numpy.savez wrote.")
    with reading(f"'{path}'", "write it with numpy.savez", error=StreamError), open_regular(Path(path)) as file:
        return arrays_of(file, only)
