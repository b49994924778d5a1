"""Operators as a target needs them: with function bodies, without them, or inlined."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import onnx
import onnx.inliner

from trt_compress.export.function_body import body_nodes
from trt_compress.export.packed_bytes import bytes_as_int8, packed_tensors, without_inner_bytes
from trt_compress.export.targets import Target
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN


def operator_nodes(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each operator the main graph has, by op type."""
    return Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators that the model imports."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def _calls(nodes: Iterable[onnx.NodeProto]) -> list[dict[str, Any]]:
    """The attributes of nodes."""
    return [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]


def strip_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the function bodies of operators: a plugin or custom op must be there to run it."""
    stripped = _copy(model)
    kept = [function for function in stripped.functions if function.domain != DOMAIN]
    del stripped.functions[:]
    stripped.functions.extend(kept)
    return stripped


def add_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with a function body for every operator it uses: a standard runtime can run it."""
    lowered = strip_bodies(model)
    used = {op_type: _calls(node for node in lowered.graph.node if node.op_type == op_type)
            for op_type in operator_nodes(lowered)}  # fmt: skip
    lowered.functions.extend(
        operators()[op_type].function_proto(opset_of(lowered), calls) for op_type, calls in sorted(used.items())
    )
    if used and not any(entry.domain == DOMAIN for entry in lowered.opset_import):
        lowered.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return lowered


def inline_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of standard operators only; what came from an operator node is called `<its name>/<name in the body>`."""
    lowered = strip_bodies(model)
    packed = packed_tensors(lowered.graph)
    nodes: list[onnx.NodeProto] = []
    inner: set[str] = set()
    for node in lowered.graph.node:
        made = [node]
        if node.domain == DOMAIN:
            made = body_nodes(node, operators()[node.op_type].function_proto(opset_of(lowered), _calls([node])))
        inner.update(one.name for one in made if node.domain == DOMAIN)
        nodes.extend(made)
    del lowered.graph.node[:]
    outputs = {value.name for value in lowered.graph.output}
    lowered.graph.node.extend(without_inner_bytes(nodes, inner, packed, outputs))
    imports = [entry for entry in lowered.opset_import if entry.domain != DOMAIN]
    del lowered.opset_import[:]
    lowered.opset_import.extend(imports)
    if lowered.functions:  # of somebody else; the inliner cannot take 2 GB, so it is left alone where it can be
        lowered = onnx.inliner.inline_local_functions(lowered)
    return lowered


def lower_for_target(model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
    """A copy of `model` in the form that `target` needs; see `Target.lowering`."""
    forms = {"function": add_bodies, "plugin": strip_bodies, "inline": inline_bodies}
    lowered = forms[target.lowering](model)
    return bytes_as_int8(lowered) if target.backend == "tensorrt" else lowered


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
