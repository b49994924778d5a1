"""The weights that an ONNX file takes from other files, wherever in it they are named; read without the package onnx.

A tensor may stand among a graph's initializers or be the attribute of a node: in the graph, in the graphs inside If,
Loop and Scan, in the bodies of functions, in training graphs, and as the parts of a sparse tensor.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from trt_compress.runtime.protobuf import BYTES, VARINT, Field, field_of_bytes, fields

_DEEPEST = 100  # as protobuf itself reads
_MOST_DIMS = 64
_NUMBER = re.compile(r"[0-9]{1,18}")
_EXTERNAL = 1

# Kind of message → number of a field → kind of the message in it, and whether it stands there once at most.
_PARTS: Mapping[str, Mapping[int, tuple[str, bool]]] = {
    "model": {7: ("graph", True), 20: ("training", False), 25: ("function", False)},
    "training": {1: ("graph", True), 2: ("graph", True)},
    "graph": {1: ("node", False), 5: ("tensor", False), 15: ("sparse tensor", False)},
    "sparse tensor": {1: ("tensor", True), 2: ("tensor", True)},
    "node": {5: ("attribute", False)},
    "attribute": {
        **{5: ("tensor", True), 6: ("graph", True), 22: ("sparse tensor", True)},
        **{10: ("tensor", False), 11: ("graph", False), 23: ("sparse tensor", False)},
    },
    "function": {7: ("node", False), 11: ("attribute", False)},
}

# TensorProto: number of a field, and bits of an element by the number of its type. Texts are never stored outside.
_DIMS, _DTYPE, _NAME, _RAW, _EXTERNAL_DATA, _LOCATION = 1, 2, 8, 9, 13, 14
_BITS = {
    **dict.fromkeys((25, 26), 2),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor whose data are in another file.

    Attributes:
        name: Its name; may be empty where it is an attribute.
        dtype: ONNX's number of its type.
        shape: Its shape.
        location: The file, as the ONNX file names it: relative to the folder that the ONNX file is in.
        offset: Where in it the data begin.
        length: Their bytes.
        is_weight: Whether it is an initializer of the main graph.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int
    is_weight: bool

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return _BITS[self.dtype]


Replace = Callable[[Stored], bytes | memoryview | None]
"""Gives the data of a tensor, which are then written into the ONNX file; None leaves it as it is."""


def stored_outside(model: memoryview) -> tuple[Stored, ...]:
    """Every tensor of an ONNX file whose data are in another file, in order.

    Raises:
        ValueError: It is no ONNX file, or says something of such a tensor that no reader should have to guess at.
    """
    found: list[Stored] = []
    replaced_inside(model, found.append)
    return tuple(found)


def replaced_inside(model: memoryview, replace: Replace) -> bytes | memoryview:
    """An ONNX file with data that were in other files; the same bytes if `replace` gives none.

    Raises:
        ValueError: As `stored_outside`.
    """
    return _message("model", model, replace, depth=0, main=True)


def overlapping(stored: Iterable[Stored]) -> tuple[Stored, Stored] | None:
    """Two tensors that share a part of one file, and not all of what each of them is."""
    last: dict[str, Stored] = {}
    for tensor in sorted(stored, key=lambda tensor: (tensor.offset, -tensor.length)):
        before = last.get(tensor.location)
        if before is not None and tensor.offset < before.offset + before.length and tensor.length:
            if (tensor.offset, tensor.length) != (before.offset, before.length):
                return before, tensor
        else:
            last[tensor.location] = tensor
    return None


def may_store_outside(model: bytes) -> bool:
    """Whether an ONNX file could name another file; if not, it need not be looked through."""
    return b"location" in model


def _message(kind: str, message: memoryview, replace: Replace, *, depth: int, main: bool) -> bytes | memoryview:
    """A message with its tensors replaced; the same object if nothing was."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    parts, seen = _PARTS[kind], set()
    out: list[bytes | memoryview] = []
    changed = False
    for field in fields(message):
        inner, once = parts.get(field.number, ("", False))
        if not inner:
            out.append(field.whole)
            continue
        value = field.value
        if field.kind != BYTES or not isinstance(value, memoryview) or once and field.number in seen:
            raise ValueError(f"a {kind} has two forms of its {inner}")
        seen.add(field.number)
        if inner == "tensor":
            new = _tensor(value, replace, is_weight=main and kind == "graph")
        else:
            new = _message(inner, value, replace, depth=depth + 1, main=main and kind == "model" and inner == "graph")
        if new is value:
            out.append(field.whole)
        else:
            out.append(field_of_bytes(field.number, new))
            changed = True
    return b"".join(out) if changed else message


def _tensor(tensor: memoryview, replace: Replace, *, is_weight: bool) -> bytes | memoryview:
    found = list(fields(tensor))
    if not any(field.number in (_EXTERNAL_DATA, _LOCATION) for field in found):
        return tensor
    places = [field.value for field in found if field.number == _LOCATION and field.kind == VARINT]
    if not places or _integer(places[-1]) & 0xFFFFFFFF != _EXTERNAL:
        return tensor
    stored = _stored(found, is_weight)
    data = replace(stored)
    if data is None:
        return tensor
    kept = [field.whole for field in found if field.number not in (_EXTERNAL_DATA, _LOCATION, _RAW)]
    return b"".join((*kept, field_of_bytes(_RAW, data)))


def _stored(found: list[Field], is_weight: bool) -> Stored:
    texts = [bytes(field.value) for field in found if field.number == _NAME and isinstance(field.value, memoryview)]
    name = texts[-1].decode("utf-8", errors="replace") if texts else ""
    entries: dict[str, str] = {}
    for field in found:
        if field.number == _EXTERNAL_DATA:
            key, value = _entry(field)
            if key in entries:
                raise ValueError(f"the tensor '{name}' says twice what its {key} is")
            entries[key] = value
    location = entries.get("location", "")
    if not location:
        raise ValueError(f"the tensor '{name}' does not name the file that it is in")
    dtypes = [_integer(field.value) for field in found if field.number == _DTYPE and field.kind == VARINT]
    dtype = dtypes[-1] if dtypes else 0
    shape = tuple(islice(_dims(found), _MOST_DIMS + 1))
    if len(shape) > _MOST_DIMS:
        raise ValueError(f"the tensor '{name}' has more than {_MOST_DIMS} axes")
    if dtype not in _BITS:
        raise ValueError(f"the tensor '{name}' in '{location}' has the type {dtype}, which is not stored in a file")
    needed = (math.prod(shape) * _BITS[dtype] + 7) // 8
    length = _number(entries.get("length", str(needed)), f"the length of the tensor '{name}'")
    if length != needed:
        raise ValueError(f"the tensor '{name}' has {length} bytes in '{location}', and its shape needs {needed}")
    return Stored(
        name=name,
        dtype=dtype,
        shape=shape,
        location=location,
        offset=_number(entries.get("offset", "0"), f"the offset of the tensor '{name}'"),
        length=length,
        is_weight=is_weight,
    )


def _entry(field: Field) -> tuple[str, str]:
    if not isinstance(field.value, memoryview):
        raise ValueError("a tensor does not name the file that it is in")
    parts = {1: "", 2: ""}
    for part in fields(field.value):
        if part.number in parts and isinstance(part.value, memoryview):
            parts[part.number] = bytes(part.value).decode("utf-8")
    return parts[1], parts[2]


def _dims(found: list[Field]) -> Iterator[int]:
    """The shape, of whose two encodings (each number a field, or all in one) a writer takes either."""
    for field in found:
        if field.number != _DIMS:
            continue
        if field.kind == BYTES and isinstance(field.value, memoryview):
            packed = b"".join(bytes((_DIMS << 3, *part)) for part in _split(field.value))
            numbers = [_integer(inner.value) for inner in fields(memoryview(packed))]
        else:
            numbers = [_integer(field.value)]
        for number in numbers:
            if number >= 1 << 40:  # negative ones are huge here
                raise ValueError("a tensor has an axis of no proper length")
            yield number


def _split(packed: memoryview) -> Iterator[bytes]:
    part = bytearray()
    for byte in packed:
        part.append(byte)
        if not byte & 0x80:
            yield bytes(part)
            part.clear()
    if part:
        raise ValueError("it ends inside a number")


def _integer(value: int | memoryview) -> int:
    if isinstance(value, int):
        return value
    raise ValueError("a number is no number")


def _number(text: str, what: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{what} is '{text[:40]}'")
    return int(text)
