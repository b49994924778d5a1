"""The body of an operator in place of its node: arguments and attributes put in, decided branches chosen."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto
from onnx.reference import ReferenceEvaluator

_DECIDABLE = frozenset({"Constant", "Equal", "Greater", "Less", "Not", "And", "Or"})


def body_nodes(call: NodeProto, body: FunctionProto) -> list[NodeProto]:
    """The body's nodes in place of `call`: its values for the arguments, its attributes for the references.

    An If that hangs on attributes alone is replaced by the branch that they choose: no target has to know both.
    """
    values = dict(zip([*body.input, *body.output], [*call.input, *call.output], strict=False))
    given = {attribute.name: attribute for attribute in call.attribute}

    def renamed(name: str) -> str:
        return (values.get(name) or f"{call.name}/{name}") if name else ""

    nodes = _without_decided_branches([_with_attributes(node, given) for node in body.node])
    for node in nodes:
        node.name = f"{call.name}/{node.output[0]}"
        _rename(node, renamed)
    return nodes


def _with_attributes(node: NodeProto, given: Mapping[str, AttributeProto]) -> NodeProto:
    filled = NodeProto()
    filled.CopyFrom(node)
    for inner in _and_nested(filled):
        for attribute in inner.attribute:
            if attribute.ref_attr_name:
                name = attribute.name
                attribute.CopyFrom(given[attribute.ref_attr_name])
                attribute.name = name
    return filled


def _and_nested(node: NodeProto) -> Iterator[NodeProto]:
    yield node
    for graph in _graphs(node):
        for inner in graph.node:
            yield from _and_nested(inner)


def _graphs(node: NodeProto) -> list[GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]


def _rename(node: NodeProto, renamed: Callable[[str], str]) -> None:
    node.input[:] = [renamed(name) for name in node.input]
    node.output[:] = [renamed(name) for name in node.output]
    for graph in _graphs(node):
        for value in (*graph.input, *graph.output):
            value.name = renamed(value.name)
        for inner in graph.node:
            inner.name = renamed(inner.output[0])
            _rename(inner, renamed)


def _without_decided_branches(
    nodes: Sequence[NodeProto], outer: Mapping[str, NodeProto] | None = None
) -> list[NodeProto]:
    found: list[NodeProto] = []
    producer = dict(outer or {})
    for node in nodes:
        producer.update({name: node for name in node.output})
        decision = _value(node.input[0], producer) if node.op_type == "If" else None
        if decision is None:
            found.append(node)
            continue
        wanted = "then_branch" if bool(decision) else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
        outputs = dict(zip([value.name for value in branch.output], node.output, strict=True))
        inner = _without_decided_branches(branch.node, producer)
        for chosen in inner:
            _rename(chosen, lambda name, outputs=outputs: outputs.get(name, name))  # type: ignore[misc]
            producer.update({name: chosen for name in chosen.output})
        found += inner
    return found


def _value(name: str, producer: Mapping[str, NodeProto]) -> np.bool_ | None:
    """Value of a condition made from attributes and constants only, else None."""
    value = _folded(name, producer)
    return None if value is None else np.bool_(value.flat[0])


def _folded(name: str, producer: Mapping[str, NodeProto]) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None":
    node = producer.get(name)
    if node is None or node.op_type not in _DECIDABLE:
        return None
    feeds = {source: _folded(source, producer) for source in node.input}
    if any(value is None for value in feeds.values()):
        return None
    (value,) = ReferenceEvaluator(node).run(None, feeds)
    return np.asarray(value)
