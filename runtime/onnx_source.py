"""The ONNX file of a graph as it is handed to what reads it: checked, and with the weights that lie in other files.

ONNX Runtime gets bytes, or of a large file the descriptor that it was hashed by. It opens nothing by itself: weights
of other files are found here, in files that the manifest lists, and handed over from memory or as the mapped file.
Programs that read by path get a copy in a folder of their own.
"""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np

from trt_compress.errors import BundleError
from trt_compress.files import mapped
from trt_compress.foreign import reading, shown
from trt_compress.format.bundle import SMALL, Bundle, OpenFile
from trt_compress.format.manifest import path_problem
from trt_compress.runtime.onnx_data import Stored, may_store_outside, overlapping, replaced_inside, stored_outside

Array = np.ndarray[Any, np.dtype[Any]]

_INSIDE = 1 << 16  # bytes of a weight that is written into the ONNX file rather than handed over beside it
_CARRIERS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A weight that is handed over beside the ONNX file: its data in integers of the same width, and ONNX's type."""

    data: Array
    dtype: int


class OnnxSource:
    """An ONNX file of a bundle, held open while it is loaded.

    Attributes:
        model: What ONNX Runtime loads: the bytes, or a path to the descriptor.
        view: The same bytes, to be looked through.
        weights: By name, those that are not in it. Their memory has to live as long as what was loaded.
    """

    def __init__(self, bundle: Bundle, file: str) -> None:
        self._bundle = bundle
        self._file = file
        self._stack = ExitStack()
        self._files: list[OpenFile] = []
        self._contents: dict[str, memoryview] = {}
        self._mapped: list[mmap.mmap] = []
        self._stored: list[Stored] = []
        self.weights: dict[str, Weight] = {}
        try:
            self.model, self.view = self._read()
        except BaseException:
            self._stack.close()
            raise

    def __str__(self) -> str:
        return f"'{self._file}' of '{self._bundle.path}'"

    @property
    def files(self) -> frozenset[str]:
        """What was read of the bundle."""
        return frozenset((self._file, *self._contents))

    def confirm(self) -> None:
        """Make sure, once everything was loaded, that no large file was written into since it was hashed.

        Raises:
            BundleError: One was.
        """
        for file in self._files:
            file.confirm()

    def rest(self) -> None:
        """Let the pages of mapped files go once everything was loaded; what is still needed comes back by itself."""
        for each in self._mapped:
            if hasattr(mmap, "MADV_DONTNEED"):  # not on every system
                each.madvise(mmap.MADV_DONTNEED)

    def __enter__(self) -> "OnnxSource":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _read(self) -> tuple[bytes | str, memoryview]:
        if self._bundle.info(self._file).bytes <= SMALL:
            data = self._bundle.read(self._file)
            view, path = memoryview(data), None
            if not may_store_outside(data):
                return data, view
        else:
            opened = self._open(self._file)
            view, path = self._map(opened), opened.path
        with _reading(self._bundle, self._file):
            made = replaced_inside(view, self._data)
            _refuse_overlaps(self._stored)
        if made is view and not self.weights and path is not None:
            return path, view
        return bytes(made), memoryview(made)

    def _data(self, stored: Stored) -> memoryview | None:
        """The data of a tensor, or None if it is a weight that is handed over beside the file."""
        name = _listed(self._bundle, self._file, stored)
        self._stored.append(stored)
        data = self._content(name)[stored.offset : stored.offset + stored.length]
        if not stored.is_weight or stored.length <= _INSIDE or stored.bits not in _CARRIERS:
            return data
        if stored.name in self.weights:
            raise ValueError(f"two weights are named '{stored.name}'")
        values = np.frombuffer(data, _CARRIERS[stored.bits]).reshape(stored.shape)
        self.weights[stored.name] = Weight(data=values if values.flags.aligned else values.copy(), dtype=stored.dtype)
        return None

    def _content(self, name: str) -> memoryview:
        if name not in self._contents:
            small = self._bundle.info(name).bytes <= SMALL
            self._contents[name] = memoryview(self._bundle.read(name)) if small else self._map(self._open(name))
        return self._contents[name]

    def _map(self, file: OpenFile) -> memoryview:
        mapped = file.map()
        self._mapped.append(mapped)
        return memoryview(mapped)

    def _open(self, name: str) -> OpenFile:
        file = self._stack.enter_context(self._bundle.open_file(name))
        self._files.append(file)
        return file


def copy_graph(bundle: Bundle, file: str, folder: Path) -> Path:
    """Copy an ONNX file, and the files that its weights are in, for a program that reads by path.

    Args:
        bundle: The bundle.
        file: The ONNX file, as the manifest names it.
        folder: A folder of the caller's alone; the copies have the same places in it as in the bundle.

    Returns:
        The copy of the ONNX file. All copies were compared with their hashes.

    Raises:
        BundleError: A file is missing or was changed, or the ONNX file names one that the manifest does not list.
    """
    copy = bundle.copy(file, folder)
    with copy.open("rb") as stream, _reading(bundle, file):
        stored = stored_outside(mapped(stream))
        names = dict.fromkeys(_listed(bundle, file, tensor) for tensor in stored)
        _refuse_overlaps(stored)
    for name in names:
        if name != file:
            bundle.copy(name, folder)
    return copy


def _listed(bundle: Bundle, file: str, stored: Stored) -> str:
    """The file of the bundle that a tensor is in, which has to be long enough for it.

    Raises:
        BundleError: The manifest lists no such file.
        ValueError: The tensor would end behind the file's end.
    """
    what = f"'{shown(file)}' of the bundle '{bundle.path}' takes '{shown(stored.name)}' from '{shown(stored.location)}'"
    if problem := path_problem(stored.location):
        raise BundleError(f"{what}, which {problem}; export the bundle again, its weights beside the ONNX file.")
    name = str(PurePosixPath(file).parent / stored.location)
    if name not in bundle.manifest.files:
        raise BundleError(f"{what}, which the manifest does not list, so nothing says what it is; export it again.")
    size, end = bundle.manifest.files[name].bytes, stored.offset + stored.length
    if end > size:
        raise ValueError(f"the tensor '{stored.name}' ends at byte {end} of '{stored.location}', which has {size}")
    return name


def _refuse_overlaps(stored: Sequence[Stored]) -> None:
    if pair := overlapping(stored):
        first, second = pair
        raise ValueError(f"the tensors '{first.name}' and '{second.name}' overlap in '{first.location}'")


@contextmanager
def _reading(bundle: Bundle, file: str) -> Iterator[None]:
    with reading(f"'{file}' of the bundle '{bundle.path}'", "export the bundle again", error=BundleError):
        yield
