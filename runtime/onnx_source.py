"""The ONNX file of a graph as it is handed to what reads it: checked, and with the weights that lie in other files.

ONNX Runtime gets bytes, or of a large file the descriptor that it was hashed by. Weights of other files are found here,
in files that the manifest lists, and handed over from memory: ONNX Runtime copies those. A large file it opens by
itself instead, to map it, so that no copy is made; but only through the descriptor of the folder, and where the file of
that name is the one that was hashed and the folder says that nothing was put into it or taken out of it meanwhile.
Programs that read by path get a copy in a folder of their own.
"""

import mmap
import os
import time
from collections import Counter
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

_FINE, _COARSE = 50_000_000, 3_000_000_000  # ns; a kernel's tick is 10 ms at most, FAT counts every other second
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
        folder: Where ONNX Runtime opens the files that are still named in it; None: it opens none.

    Args:
        bundle: The bundle.
        file: The ONNX file.
        by_name: Whether large files of weights may be opened by their names.
    """

    def __init__(self, bundle: Bundle, file: str, *, by_name: bool = True) -> None:
        self._bundle = bundle
        self._file = file
        self._stack = ExitStack()
        self._files: list[OpenFile] = []
        self._opened: dict[str, OpenFile] = {}
        self._contents: dict[str, memoryview] = {}
        self._mapped: list[mmap.mmap] = []
        self._stored: list[Stored] = []
        self.weights: dict[str, Weight] = {}
        try:
            self._settled = self._stack.enter_context(_Folder(bundle.folder(file))) if by_name else None
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

    @property
    def folder(self) -> str | None:
        """See above."""
        return self._settled.path if self._settled is not None and self._settled.used else None

    @property
    def is_as_it_was(self) -> bool:
        """Whether what ONNX Runtime has opened by its name must have been what was hashed."""
        return self.folder is None or self._settled is None or self._settled.is_unchanged

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
        if made is view and not self.weights and self.folder is None and path is not None:
            return path, view
        return bytes(made), memoryview(made)

    def _data(self, stored: Stored) -> memoryview | None:
        """The data of a tensor, or None if it is a weight that is handed over beside the file."""
        name = _listed(self._bundle, self._file, stored)
        self._stored.append(stored)
        is_large = stored.is_weight and stored.length > _INSIDE
        if is_large and self._settled is not None and self._is_by_name(name, stored.location):
            return None
        data = self._content(name)[stored.offset : stored.offset + stored.length]
        if not is_large or stored.bits not in _CARRIERS:
            return data
        if stored.name in self.weights:
            raise ValueError(f"two weights are named '{stored.name}'")
        values = np.frombuffer(data, _CARRIERS[stored.bits]).reshape(stored.shape)
        self.weights[stored.name] = Weight(data=values if values.flags.aligned else values.copy(), dtype=stored.dtype)
        return None

    def _is_by_name(self, name: str, location: str) -> bool:
        """Whether ONNX Runtime may open a file by its name; it is hashed here through a descriptor all the same."""
        if "/" in location or self._settled is None or self._bundle.info(name).bytes <= SMALL:
            return False
        self._content(name)
        return self._settled.holds(location, self._opened[name])

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
        self._opened[name] = file
        return file


class _Folder:
    """The folder of an ONNX file, held open, and what its times say.

    A name in it that leads to a certain file still does as long as the folder was not written to: whoever renames,
    links or removes something changes its times, and nobody can set `st_ctime`. What was written to so lately that the
    next change could have the same time is not relied on.

    Attributes:
        path: Leads to this very folder, whatever becomes of its name.
        used: Whether a file of it may be opened by its name.
    """

    def __init__(self, folder: Path) -> None:
        self.used = False
        self.path = ""
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.path = f"/proc/self/fd/{self._descriptor}"
            self._before = os.fstat(self._descriptor)
        except (OSError, AttributeError):  # not on every system; nothing is opened by its name then
            return
        self._is_settled = os.path.exists(self.path) and self._wait()

    def _wait(self) -> bool:
        """Whether the folder has not been written to for longer than its clock takes to go on."""
        for _ in range(2):
            self._before = os.fstat(self._descriptor or 0)
            changed = max(self._before.st_ctime_ns, self._before.st_mtime_ns)
            needed = _COARSE if changed % 1_000_000_000 == 0 else _FINE  # a clock of whole seconds
            age = time.time_ns() - changed
            if age > needed:
                return True
            if needed == _FINE and age > -_FINE:
                time.sleep((needed - age) / 1e9)
        return False

    def holds(self, name: str, file: OpenFile) -> bool:
        """Whether a name in the folder leads to this open file."""
        if self._descriptor is None or not self._is_settled:
            return False
        try:
            there = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return False
        is_it = file.is_at(there)
        self.used = self.used or is_it
        return is_it

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing was put into the folder or taken out of it since it was opened."""
        now = os.fstat(self._descriptor or 0)
        return (now.st_mtime_ns, now.st_ctime_ns) == (self._before.st_mtime_ns, self._before.st_ctime_ns)

    def __enter__(self) -> "_Folder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def shared_bytes(bundle: Bundle, files: Sequence[str]) -> int:
    """Bytes of weights that two or more of these ONNX files take from the same place.

    Raises:
        BundleError: One cannot be read.
    """
    counted: Counter[tuple[str, int, int]] = Counter()
    for file in files:
        data = bundle.read(file) if bundle.info(file).bytes <= SMALL else b""
        if may_store_outside(data):
            with _reading(bundle, file):
                stored = stored_outside(memoryview(data))
            counted.update({(tensor.location, tensor.offset, tensor.length) for tensor in stored})
    return sum(length for (_, _, length), count in counted.items() if count > 1)


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
