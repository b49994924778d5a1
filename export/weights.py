"""The weights file of a bundle: every tensor once, for all of its graphs and all of its lowered files.

Format of `weights.bin`, which a program may map and read without any library:

- It has no header and no table. Each tensor is the bytes of its elements, little-endian, in C order, as ONNX stores raw
  data (elements of four bits two a byte, the first in the low half).
- Where a tensor lies is said by the ONNX files beside it: an initializer has `data_location` EXTERNAL and in
  `external_data` its `location` ("weights.bin"), `offset` and `length` in bytes; name, type and shape are the
  initializer's own. All ONNX files of a bundle lie in one folder with it, as ONNX lets a model take data from its own
  folder only.
- A tensor of `ALIGNMENT` bytes (64 KiB) or more begins at a multiple of that, the coarsest unit in which systems map
  files (Windows, ARM with large pages), so that it can be mapped alone. A smaller one begins at a multiple of
  `SMALL_ALIGNMENT` (256, what a CUDA allocation has). What lies between is zeros.
- Equal bytes are stored once, whatever their names and types: two tensors share all of their bytes or none.
- Tensors of up to `INLINE` bytes stay in the ONNX file: shapes, axes and scales, which readers need to understand the
  graph. A bundle with no larger one has no weights file.

Its size and hash stand in the manifest like those of any file.
"""

import contextlib
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx
from onnx import TensorProto
from onnxscript import ir

from trt_compress.digest import Sha256, sha256
from trt_compress.errors import GateError
from trt_compress.files import mapped
from trt_compress.format.bundle import Bundle

WEIGHTS_FILE = "weights.bin"
ALIGNMENT = 1 << 16
SMALL_ALIGNMENT = 1 << 8
INLINE = 1 << 10
"""Bytes of the largest tensor that stays in the ONNX file, as in ONNX's own writer."""

Array = np.ndarray[Any, np.dtype[Any]]


class Place(NamedTuple):
    """Where in the weights file the bytes of a tensor are."""

    offset: int
    length: int


_PIECE = 8 << 20
NOWHERE = Place(0, 0)


class TakesTensors(Protocol):
    """Where the tensors of a model go while it is traced."""

    def add(self, data: Array) -> Place:
        """Take a tensor, and say where its bytes are then."""
        ...


class WeightsFile:
    """A weights file that is being written: a tensor at a time, so that no second copy of the weights is in memory.

    Attributes:
        path: The file; it is made when the first tensor comes.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb")
        self._end = 0
        self._places: dict[tuple[str, int], Place] = {}

    def __enter__(self) -> "WeightsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def is_empty(self) -> bool:
        """Whether no tensor is in it."""
        return not self._end

    def add(self, data: Array) -> Place:
        """Write a tensor behind the others, unless its bytes are there already."""
        length = data.nbytes
        unit = ALIGNMENT if length >= ALIGNMENT else SMALL_ALIGNMENT
        start = -(-self._end // unit) * unit
        digest = Sha256()
        self._file.seek(start)
        for piece in _pieces(data):
            digest.add(piece)
            self._file.write(piece)
        self._file.flush()
        key = digest.hex(), length
        if key in self._places:
            self._file.truncate(self._end)
        else:
            self._places[key] = Place(start, length)
            self._end = start + length
        return self._places[key]

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """What is added meanwhile is gone afterwards."""
        end, places = self._end, dict(self._places)
        try:
            yield
        finally:
            self._end, self._places = end, places
            self._file.truncate(end)


class StoredWeights:
    """The weights file of a bundle: what is added is found in it, and nothing is written.

    Args:
        path: The file, compared with its hash.
        model: A graph of the bundle, which says where the tensors are.
    """

    def __init__(self, path: Path, model: onnx.ModelProto) -> None:
        self._places: dict[tuple[str, int], Place] = {}
        places = set(places_of(model).values())
        if places:
            with path.open("rb") as file:
                content = mapped(file)
            for place in places:
                data = content[place.offset : place.offset + place.length]
                self._places[sha256(data), place.length] = place

    def add(self, data: Array) -> Place:
        """Where a tensor is; one that is not there is somewhere outside (and `require_same` says so)."""
        digest = Sha256()
        for piece in _pieces(data):
            digest.add(piece)
        return self._places.get((digest.hex(), data.nbytes), NOWHERE)


def without_tensors(model: ir.Model, weights: TakesTensors) -> onnx.ModelProto:
    """The structure of a traced model; its tensors go to `weights`, and the structure says where they are."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= INLINE:
            continue
        data = tensor.numpy()
        place = weights.add(data)
        shape = ir.Shape(data.shape)
        value.const_value = ir.ExternalTensor(
            WEIGHTS_FILE, place.offset, place.length, tensor.dtype, shape=shape, name=name
        )
    return ir.serde.serialize_model(model)


def require_same(stored: onnx.ModelProto, traced: onnx.ModelProto, bundle: Bundle) -> None:
    """Show that the graph of a bundle is the traced one, with its weights, without running it.

    Raises:
        GateError: A weight or a node is another.
    """
    own = {tensor.name: tensor for tensor in stored.graph.initializer}
    for tensor in traced.graph.initializer:
        if tensor.name not in own or tensor != own[tensor.name]:
            raise GateError(f"verification failed: the weight '{tensor.name}' of '{bundle.path}' is not the model's.")
    for node, other in zip_longest(stored.graph.node, traced.graph.node):
        if node != other:
            name = (node or other).name
            made = ", ".join(f"{tool} {bundle.manifest.created_with.get(tool)}" for tool in ("torch", "onnxscript"))
            raise GateError(
                f"verification failed: the graph of '{bundle.path}' is not what the model is traced to here, from the "
                f"node '{name}' on.",
                hint=f"it was exported with {made}; where that is not what is installed here, verify all of it.",
            )


def uses_weights(model: onnx.ModelProto) -> bool:
    """Whether tensors of a structure are in the weights file."""
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)


def places_of(model: onnx.ModelProto) -> Mapping[str, Place]:
    """Where the initializers are that are in the weights file, by name."""
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            found[tensor.name] = Place(int(entries["offset"]), int(entries["length"]))
    return found


def _pieces(data: Array) -> Iterator[memoryview]:
    """The bytes of an array in C order, a few rows at a time: a transposed one is not copied whole."""
    if data.flags.c_contiguous:
        yield data.reshape(-1).view(np.uint8).data
        return
    rows = max(1, _PIECE // max(1, data[:1].nbytes))
    for start in range(0, len(data), rows):
        yield np.ascontiguousarray(data[start : start + rows]).reshape(-1).view(np.uint8).data
