"""Messages in the encoding of protobuf, read field by field without the package: what ONNX files are written in.

It reads as strictly as no writer minds: where the libraries differ in what they pass over, nothing is passed over here,
so that a file cannot say one thing to this reader and another to them.
"""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_WIDTHS = {FIXED64: 8, FIXED32: 4}


class Field(NamedTuple):
    """One field of a message: its number, how it is encoded, its value, and its bytes with the key before them."""

    number: int
    kind: int
    value: int | memoryview
    whole: memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """Every field of one message, in order.

    Raises:
        ValueError: The bytes are no message.
    """
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        kind = key & 7
        if not 8 <= key < 1 << 32 or at - start > 1 and not message[at - 1]:
            raise ValueError("a field has no proper number")
        if kind == VARINT:
            value, at = _varint(message, at)
            yield Field(key >> 3, kind, value, message[start:at])
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in _WIDTHS:
            length = _WIDTHS[kind]
        else:
            raise ValueError(f"a field of kind {kind}")
        end = at + length
        if end > len(message):
            raise ValueError("it ends inside a field")
        yield Field(key >> 3, kind, message[at:end], message[start:end])
        at = end


def varint(number: int) -> bytes:
    """A number that is not negative, encoded."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field_of_bytes(number: int, *parts: bytes | memoryview) -> bytes:
    """A field that holds bytes, or a message, given in parts."""
    return b"".join((varint(number << 3 | BYTES), varint(sum(map(len, parts))), *parts))


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("it ends inside a number")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
