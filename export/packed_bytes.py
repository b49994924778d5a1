"""Packed codes are bytes: uint8 in the contract and in ONNX Runtime.

A TensorRT plugin has no uint8, so for those targets the same bytes are called int8: bodies read both, and write what
the file says. TensorRT-RTX, which takes no plugins, has uint8 at the borders of the graph only.
"""

from collections.abc import Iterator, Set

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_compress.errors import ExportError
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN

# Operators that move elements and do not look at them, by the inputs they move.
_MOVE_FIRST = frozenset(
    (
        *("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Flatten"),
        *("Gather", "GatherElements"),
    )
)
_LOOK_AT_SHAPE = frozenset(("Shape", "Size"))


def _carried(node: onnx.NodeProto, packed: Set[str]) -> tuple[list[str], list[str]]:
    """Inputs and outputs of `node` that are packed bytes if any of them is: what it moves, or what SPEC says."""
    if node.domain == DOMAIN:
        spec = operators()[node.op_type].spec
        pairs = [*zip(spec.inputs, node.input, strict=False), *zip(spec.outputs, node.output, strict=False)]
        kinds = {t.same_dtype_as or t.name for t, name in pairs if t.dtypes == ("uint8",) or name in packed}
        carried = [name for t, name in pairs if (t.same_dtype_as or t.name) in kinds]
        return [name for name in carried if name in node.input], [name for name in carried if name in node.output]
    if node.op_type == "Concat":
        return list(node.input), list(node.output)
    if node.op_type in _MOVE_FIRST:
        return list(node.input[:1]), list(node.output)
    return [], []


def packed_tensors(graph: onnx.GraphProto) -> set[str]:
    """Tensors of bytes that an operator of ours reads or makes, and what standard operators make of them by moving."""
    typed = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    typed |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    declared = {name for name, dtype in typed.items() if dtype == TensorProto.UINT8}
    packed: set[str] = set()
    for node in graph.node:  # an operator that takes any type has bytes only where the file declares them
        if node.domain == DOMAIN:
            packed.update(declared & {*node.input, *node.output})
    before = -1
    while before != len(packed):
        before = len(packed)
        for node in graph.node:
            inputs, outputs = _carried(node, packed)
            if node.domain == DOMAIN:
                packed.update(inputs, outputs)
            elif packed & {*inputs, *outputs}:
                packed.update(inputs, outputs)
    return packed - {""}


def without_inner_bytes(
    nodes: list[onnx.NodeProto], inner: set[str], packed: set[str], kept: set[str]
) -> list[onnx.NodeProto]:
    """Let bodies read each other's bytes before they are cast to uint8, which TensorRT has at the borders only.

    Those at a border that are moved, in a body to choose rows or between bodies to be seen as blocks, are cast to int32
    first, once for all who do so; what is moved between bodies is cast to uint8 only behind that.
    `inner` names the nodes that came from bodies. The numbers are whole and within 0..255 before that cast, too.
    """
    source: dict[str, str] = {}
    for node in nodes:
        if node.name in inner and node.op_type == "CastLike" and node.input[1] in packed:
            del node.input[1:]
            node.op_type = "Cast"
            node.attribute.append(helper.make_attribute("to", TensorProto.UINT8))
        if node.name in inner and node.op_type == "Cast" and node.output[0] in packed:
            source[node.output[0]] = node.input[0]
    whole: set[str] = set()  # those that are int32 in `source`; a body's own numbers are of any type
    found: list[onnx.NodeProto] = []
    for node in nodes:
        moved = node.name not in inner and any(name in packed for name in _carried(node, packed)[1])
        if node.name in inner and node.op_type in {"Cast", *_LOOK_AT_SHAPE, *_MOVE_FIRST} or moved:
            for place in range(len(node.input) if node.op_type == "Concat" else 1):
                name = node.input[place]
                if (moved or node.op_type in _MOVE_FIRST and name not in source) and name in packed - whole:
                    number, source[name] = source.get(name, name), f"{name}/whole"
                    found.append(
                        helper.make_node("Cast", [number], [source[name]], name=source[name], to=TensorProto.INT32)
                    )
                    whole.add(name)
                node.input[place] = source.get(name, name)
        found.append(node)
        for place, name in enumerate(node.output if moved else ()):
            source[name] = node.output[place] = f"{name}/whole"
            whole.add(name)
            found.append(helper.make_node("Cast", [source[name]], [name], name=f"{name}/bytes", to=TensorProto.UINT8))
    read = {name for node in found for name in node.input} | kept
    return [node for node in found if node.output[0] not in source or node.output[0] in read]


def bytes_as_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, changed in place: packed bytes are called int8, and bodies write them so.

    Raises:
        ExportError: Something else than an operator of ours computes with them.
    """
    graph = model.graph
    packed = packed_tensors(graph)
    for node in graph.node:
        inputs, outputs = _carried(node, packed)
        touched = packed & ({*node.input, *node.output} - {*inputs, *outputs})
        if touched and node.op_type not in {*_LOOK_AT_SHAPE, "Constant", "ConstantOfShape"}:
            name = sorted(touched)[0]
            raise ExportError(
                f"tensor '{name}' holds packed codes, and node '{node.name}' ({node.op_type}) computes with them; "
                f"TensorRT gets them as int8, so only operators of {DOMAIN} and those that move data may touch them."
            )
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name in packed:
            value.type.tensor_type.elem_type = TensorProto.INT8
    for tensor in graph.initializer:
        if tensor.name in packed:
            _as_int8(tensor)
    for node in graph.node:
        if packed & {*node.output} and node.op_type in ("Constant", "ConstantOfShape"):
            for attribute in node.attribute:
                if attribute.name == "value":
                    _as_int8(attribute.t)
    for function in model.functions:
        if function.domain == DOMAIN:
            nodes = [made for node in function.node for made in _writing_int8(node)]
            del function.node[:]
            function.node.extend(nodes)
    return model


def _as_int8(tensor: TensorProto) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        tensor.data_type = TensorProto.INT8
        return
    data = numpy_helper.to_array(tensor).view(np.int8)
    tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))


def _writing_int8(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A cast of whole numbers 0..255 to uint8 as one to the int8 of the same bits."""
    target = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
    if node.op_type != "Cast" or target != TensorProto.UINT8:
        yield node
        return
    name = node.output[0]
    steps = [f"{name}_{step}" for step in ("whole", "half", "moved", "all", "wrapped", "signed")]
    whole, half, moved, everything, wrapped, signed = steps
    yield helper.make_node("Cast", [node.input[0]], [whole], to=TensorProto.INT32)
    yield helper.make_node("Constant", [], [half], value=numpy_helper.from_array(np.array(128, dtype=np.int32)))
    yield helper.make_node("Constant", [], [everything], value=numpy_helper.from_array(np.array(256, dtype=np.int32)))
    yield helper.make_node("Add", [whole, half], [moved])
    yield helper.make_node("Mod", [moved, everything], [wrapped])
    yield helper.make_node("Sub", [wrapped, half], [signed])
    yield helper.make_node("Cast", [signed], [name], to=TensorProto.INT8)
