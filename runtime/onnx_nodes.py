"""The nodes of an ONNX file, read without the package onnx: a few fields of its protobuf encoding.

Numbers of the fields: ModelProto.graph 7; GraphProto.node 1; NodeProto.name 3, op_type 4, attribute 5, domain 7;
AttributeProto.g 6, graphs 11. Weights are skipped by their length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from trt_compress.runtime.protobuf import fields


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
    return ((field.number, field.value) for field in fields(message))
