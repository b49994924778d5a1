"""The nodes of an ONNX file, read without the package onnx: a few fields of its protobuf encoding.

Numbers of the fields: ModelProto.graph 7; GraphProto.node 1; NodeProto.input 1, output 2, name 3, op_type 4,
attribute 5, domain 7; AttributeProto.g 6, graphs 11. Weights are skipped by their length.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from trt_compress.runtime.protobuf import fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node: name (may be empty), op type and domain, and its tensors ("" where one is left out).

    Attributes:
        inner: It stands in a graph inside a node (If, Loop), and what it reads may be a tensor of the graph around it.
    """

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    inner: bool = False


def read_nodes(model: memoryview) -> Iterator[Node]:
    """Every node of the graph and of the graphs inside its nodes (If, Loop); bodies of functions are not the graph's.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    for number, value in _fields(model):
        if number == 7 and isinstance(value, memoryview):
            yield from _nodes_of_graph(value)


def _nodes_of_graph(graph: memoryview, inner: bool = False) -> Iterator[Node]:
    for number, value in _fields(graph):
        if number != 1 or not isinstance(value, memoryview):
            continue
        texts = {3: "", 4: "", 7: ""}
        tensors: dict[int, list[str]] = {1: [], 2: []}
        graphs: list[memoryview] = []
        for key, part in _fields(value):
            if not isinstance(part, memoryview):
                continue
            if key in texts:
                texts[key] = _text(part)
            elif key in tensors:
                tensors[key].append(_text(part))
            elif key == 5:
                graphs += [graph for at, graph in _fields(part) if at in (6, 11) and isinstance(graph, memoryview)]
        yield Node(
            name=texts[3],
            op_type=texts[4],
            domain=texts[7],
            inputs=tuple(tensors[1]),
            outputs=tuple(tensors[2]),
            inner=inner,
        )
        for subgraph in graphs:
            yield from _nodes_of_graph(subgraph, inner=True)


def _text(part: memoryview) -> str:
    return bytes(part).decode("utf-8", errors="replace")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field of one message."""
    return ((field.number, field.value) for field in fields(message))
