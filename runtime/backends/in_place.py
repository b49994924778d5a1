"""Which states of a graph may be updated in place: what leaves has the memory of what came in.

It is so where one operator of ours that writes in place takes the state and gives the new one, and every other reader
of the old value is through before it. ONNX Runtime runs nodes in any order that their tensors allow, lets some outputs
share the memory of an input, and leaves out nodes that change nothing; so a reader counts only if that operator waits
for it, and gives nothing that could be a view of what it read.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from trt_compress.runtime.onnx_nodes import Node

DOMAIN = "trt_compress"

_READERS = frozenset(  # of standard operators, those that never give a view of what they read, and are never left out
    "MatMul Gemm Shape Size ReduceMax ReduceMin ReduceSum ReduceMean ReduceL2 ArgMax TopK".split()
)

Aliases = Mapping[str, tuple[tuple[int, int], ...]]
"""By op type of ours: output → the input that it may be written into, by their numbers."""


def aliases_of(operators: Sequence[Mapping[str, Any]]) -> Aliases:
    """What a native library says of its operators in its description."""
    found: dict[str, tuple[tuple[int, int], ...]] = {}
    for operator in operators:
        inputs = [one.get("name") for one in operator.get("inputs", ())]
        of = [one.get("alias_of") for one in operator.get("outputs", ())]
        found[operator["op_type"]] = tuple((at, inputs.index(name)) for at, name in enumerate(of) if name in inputs)
    return {op_type: pairs for op_type, pairs in found.items() if pairs}


def writers(
    nodes: Sequence[Node], states: Mapping[str, str], outputs: Collection[str], aliases: Aliases
) -> dict[str, list[Node]]:
    """The operators that have to run natively for a state to be updated in place: its writer, and its readers of ours.

    Args:
        nodes: Of the graph, those inside its nodes too.
        states: Output → input.
        outputs: Of the graph.
        aliases: Of the native operators.

    Returns:
        By output; those that have to have memory of their own are left out.
    """
    made = {name: node for node in nodes if not node.inner for name in node.outputs if name}
    readers: defaultdict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        for name in node.inputs:
            readers[name].append(node)
    found: dict[str, list[Node]] = {}
    for output, node in ((name, made[name]) for name in states if name in made):
        given = states[output]
        if node.domain != DOMAIN or node.inputs.count(given) != 1 or given in outputs:
            continue
        pair = node.outputs.index(output), node.inputs.index(given)
        others = [reader for reader in readers[given] if reader is not node]
        if pair not in aliases.get(node.op_type, ()) or not all(_only_reads(other) for other in others):
            continue
        waited_for = {id(before) for before in _before(node, made)} if others else set()
        if all(id(other) in waited_for for other in others):
            found[output] = [node, *(other for other in others if other.domain == DOMAIN)]
    return found


def _only_reads(node: Node) -> bool:
    return not node.inner and (node.op_type in _READERS if node.domain in ("", "ai.onnx") else node.domain == DOMAIN)


def _before(node: Node, made: Mapping[str, Node]) -> Iterator[Node]:
    """The nodes that have run before this one."""
    waiting, seen = [node], {id(node)}
    while waiting:
        for name in waiting.pop().inputs:
            before = made.get(name)
            if before is not None and id(before) not in seen:
                seen.add(id(before))
                waiting.append(before)
                yield before
