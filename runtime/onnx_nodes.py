"""The nodes of an ONNX file, read without the package onnx: a few fields of its protobuf encoding.

Numbers of the fields: ModelProto.graph 7; GraphProto.node 1; NodeProto.name 3, op_type 4, attribute 5, domain 7;
AttributeProto.g 6, graphs 11. Weights are skipped by their length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node: name (may be empty), op type and domain."""

    name: str
    op_type: str
    domain: str


def read_nodes(model: memoryview) -> Iterator[Node]:
    """Every node of the graph and of the graphs inside its nodes (If, Loop); bodies of functions are not the graph's.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    for number, value in _fields(model):
        if number == 7 and isinstance(value, memoryview):
            yield from _nodes_of_graph(value)


def _nodes_of_graph(graph: memoryview) -> Iterator[Node]:
    for number, value in _fields(graph):
        if number != 1 or not isinstance(value, memoryview):
            continue
        texts = {3: "", 4: "", 7: ""}
        inner: list[memoryview] = []
        for key, part in _fields(value):
            if not isinstance(part, memoryview):
                continue
            if key in texts:
                texts[key] = bytes(part).decode("utf-8", errors="replace")
            elif key == 5:
                inner += [graph for at, graph in _fields(part) if at in (6, 11) and isinstance(graph, memoryview)]
        yield Node(name=texts[3], op_type=texts[4], domain=texts[7])
        for subgraph in inner:
            yield from _nodes_of_graph(subgraph)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field of one message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + length > len(message):
            raise ValueError("it ends inside a field")
        yield key >> 3, message[at : at + length]
        at += length


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
