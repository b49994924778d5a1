"""Files of safetensors: what they hold is known from their header, and read one tensor, or some rows of it, at a time.

Nothing is mapped: a mapped file that another program cuts ends the process with a bus error. Bytes go from the open
file into the memory of the tensor that they become.

Source: https://github.com/huggingface/safetensors, section "Format": 8 bytes with the length of the header, the header
(JSON), the bytes of the tensors without a gap. What that library refuses is refused here too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from trt_compress.errors import ConfigError
from trt_compress.files import open_regular
from trt_compress.foreign import reason_of, shown, strict_json
from trt_compress.models.hosts.origin import Origin
from trt_compress.models.hosts.weights_kind import LONGEST_HEADER, kind_of, no_weights

if TYPE_CHECKING:
    from torch import Tensor

DTYPES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "F64": ("float64", 8),
        "F32": ("float32", 4),
        "F16": ("float16", 2),
        "BF16": ("bfloat16", 2),
        "F8_E4M3": ("float8_e4m3fn", 1),
        "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
        "F8_E5M2": ("float8_e5m2", 1),
        "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
        "C64": ("complex64", 8),
        "I64": ("int64", 8),
        "I32": ("int32", 4),
        "I16": ("int16", 2),
        "I8": ("int8", 1),
        "U64": ("uint64", 8),
        "U32": ("uint32", 4),
        "U16": ("uint16", 2),
        "U8": ("uint8", 1),
        "BOOL": ("bool", 1),
    }
)
"""Of each type that is read: torch's name, and bytes of an element."""

_LONGEST_TEXT = 16 << 20  # of the metadata: training programs write their whole settings there


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor is in a file.

    Attributes:
        dtype: As torch calls it: "bfloat16".
        shape: Its shape; () for a single number.
        offset: Its first byte, from the beginning of the file.
        nbytes: How many bytes it has.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """A file of safetensors, open and with its header checked: bounds, overlaps, gaps, and bytes against shapes.

    It holds a descriptor until it is garbage; no torch is loaded before a tensor is read.

    Attributes:
        tensors: What it holds, by name, in the order of the bytes.
        metadata: Texts by name that were written with them.
        origin: The file: its hash, and whether it was written into since it was opened.

    Args:
        file: Opened for reading; it may be closed afterwards.
        path: How it is called in messages.

    Raises:
        ConfigError: It is no whole safetensors file, and why; or a tensor is of a type that torch does not have.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.origin = Origin(file, path)
        self.tensors, self.metadata = self._read_header()

    @classmethod
    def open(cls, path: Path, *, inside: Path | None = None) -> "SafetensorsFile":
        """Open a file by name; `inside`: the folder that it must lie in, links followed.

        Raises:
            ConfigError: It cannot be opened; or see above.
        """
        try:
            opened = open_regular(path, inside=inside)
        except OSError as error:
            raise ConfigError(f"weights: {path} cannot be read ({error.strerror}).") from None
        with opened as file:
            return cls(file, path)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> "Tensor":
        """A tensor, or its rows from `start` up to `stop` (of the first axis), in memory of its own.

        Raises:
            ConfigError: The file has lost its end since it was opened, or there is not the memory.
            KeyError: No tensor has that name.
            ValueError: It has no such rows.
        """
        import torch

        stored = self.tensors[name]
        shape, place = stored.shape, stored.offset
        if (start, stop) != (0, None):
            count = shape[0] if shape else 0
            end = count if stop is None else stop
            if not 0 <= start <= end <= count:
                raise ValueError(f"'{shown(name)}' has {count} rows, and none from {start} up to {end}")
            place += start * (stored.nbytes // count if count else 0)
            shape = (end - start, *shape[1:])
        try:
            tensor = torch.empty(shape, dtype=getattr(torch, stored.dtype))
        except (RuntimeError, MemoryError):
            raise ConfigError(
                f"weights: {self.origin.path} holds {shown(name)} of {stored.nbytes} bytes, and there is not so much "
                "memory; give this run more of it."
            ) from None
        if tensor.numel():
            memory = tensor.reshape(-1).view(torch.uint8)
            self.origin.read_into(memory.numpy().data, place)
            if tensor.dtype == torch.bool and int(memory.max()) > 1:
                self._refuse(f"'{shown(name)}' holds truth values that are neither 0 nor 1")
        return tensor

    def _read_header(self) -> tuple[Mapping[str, StoredTensor], Mapping[str, str]]:
        size = self.origin.size
        start = bytearray(min(32, size))
        self.origin.read_into(memoryview(start), 0)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or start[8:9] != b"{" or not 2 <= length <= min(LONGEST_HEADER, size - 8):
            cut = start[8:9] == b"{" and size - 8 < length <= LONGEST_HEADER
            self._refuse("it ends within its header" if cut else kind_of(bytes(start)) or "it is cut short or damaged")
        text = bytearray(length)
        self.origin.read_into(memoryview(text), 8)
        try:
            header = strict_json(bytes(text), limit=LONGEST_HEADER, longest=_LONGEST_TEXT, once=True)
        except ValueError as error:
            self._refuse(f"its header is damaged: {reason_of(error)}")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            self._refuse("its metadata are not texts by name")
        tensors = {name: self._stored(name, entry, 8 + length) for name, entry in header.items()}
        in_order = sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes))
        self._check_places(in_order, 8 + length)
        return MappingProxyType(dict(in_order)), MappingProxyType(metadata)

    def _stored(self, name: str, entry: Any, data: int) -> StoredTensor:
        """What the header says of a tensor.

        Args:
            name: Its name.
            entry: What stands there.
            data: Where the bytes of tensors begin.
        """
        given = shown(name)
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            self._refuse(f"its header does not say of '{given}' dtype, shape and data_offsets, and nothing else")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ConfigError(
                f"weights: {self.origin.path} holds '{given}' of the type {shown(str(dtype))[:40]}, and what is read "
                f"is {', '.join(DTYPES)}; save it in one of these."
            )
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
            self._refuse(f"shape or data_offsets of '{given}' are no sizes")
        torch_dtype, width = DTYPES[dtype]
        first, end = offsets
        if end < first or end - first != math.prod(shape) * width:
            self._refuse(f"'{given}' of {dtype} {shape} has {math.prod(shape) * width} bytes, not {end - first}")
        return StoredTensor(dtype=torch_dtype, shape=tuple(shape), offset=data + first, nbytes=end - first)

    def _check_places(self, in_order: list[tuple[str, StoredTensor]], data: int) -> None:
        end, before = data, ""
        for name, tensor in in_order:
            if tensor.offset < end:
                self._refuse(f"'{shown(name)}' overlaps '{shown(before)}'")
            if tensor.offset > end:
                self._refuse(f"before '{shown(name)}' stand bytes that belong to no tensor")
            end, before = tensor.offset + tensor.nbytes, name
        if end != self.origin.size:
            longer = self.origin.size - end
            self._refuse(f"it has {longer} bytes too many" if longer > 0 else f"its last {-longer} bytes are missing")

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigError(f"weights: {self.origin.path} {no_weights('.safetensors', reason)}")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
