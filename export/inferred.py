"""ONNX's own type and shape inference over a foreign graph: what it finds out, and what it objects to.

Declared types and shapes are left out of it: a file may say what it likes of its inner tensors, and no parser asks.
"""

import re
from collections.abc import Iterator

import onnx
from onnx import ModelProto, TensorProto, TypeProto

from trt_compress.export.soundness import STANDARD_DOMAINS, Flaw, all_graphs, in_order, label

# Not an objection: a tensor of an operator that ONNX does not know has no type to go on from.
_FOLLOWS_FROM_UNKNOWN = re.compile(
    r"Element type of (tensor|input \d+|input .*) (is )?unknown|expected to have type but instead is null"
    r"|Invalid tensor data type 0\b|sparse_tensor|No [Ss]chema registered|No opset import for domain"
)
_WHOLE = frozenset((TensorProto.INT64, TensorProto.INT32))
_SAID_OF_A_NODE = re.compile(r"\(op_type:(?P<op>[^,)]*)(?:, node name: (?P<name>[^)]*))?\): ")


def infer(model: ModelProto) -> tuple[ModelProto, tuple[Flaw, ...]]:
    """A copy of a small, sound model with the types and shapes that can be inferred, and ONNX's objections.

    Where inference gives up, what it knew until then is kept.
    """
    bare = _undeclared(model)
    try:
        return onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True), ()
    except Exception as error:  # pybind raises what it likes about a foreign file
        objections = tuple(_objections(str(error)))
    try:
        return onnx.shape_inference.infer_shapes(bare), objections
    except Exception:
        return bare, objections


def _undeclared(model: ModelProto) -> ModelProto:
    bare = ModelProto()
    bare.CopyFrom(model)
    for entry in bare.opset_import:
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    imported = {entry.domain for entry in bare.opset_import}
    for graph in all_graphs(bare.graph):
        del graph.value_info[:]
        for sparse in graph.sparse_initializer:  # inference does not know what it stands for
            shape = onnx.helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, list(sparse.dims))
            graph.input.append(shape)
        del graph.sparse_initializer[:]
        nodes = in_order(graph)
        del graph.node[:]
        graph.node.extend(nodes)
    for graph in all_graphs(bare.graph):
        for node in graph.node:
            node.domain = "" if node.domain in STANDARD_DOMAINS else node.domain
            if node.domain not in imported:
                imported.add(node.domain)
                bare.opset_import.append(onnx.helper.make_opsetid(node.domain, 1))
    _without_outside_numbers(bare)
    given = {value.name for value in bare.graph.input} | {tensor.name for tensor in bare.graph.initializer}
    for value in bare.graph.output:
        if value.name not in given:
            value.ClearField("type")
            value.type.tensor_type.elem_type = TensorProto.UNDEFINED
    for value in bare.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.Clear()
    return bare


def _without_outside_numbers(bare: ModelProto) -> None:
    """Whole numbers in another file become inputs: inference wants to read them, as they could be a shape."""
    inputs = {value.name for value in bare.graph.input}
    kept = []
    for tensor in bare.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL or tensor.data_type not in _WHOLE:
            kept.append(tensor)
        elif tensor.name not in inputs:
            made = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            bare.graph.input.append(made)
    if len(kept) < len(bare.graph.initializer):
        copied = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del bare.graph.initializer[:]
        bare.graph.initializer.extend(copied)


def _objections(text: str) -> Iterator[Flaw]:
    """One flaw for each node that inference complains about."""
    parts = list(_SAID_OF_A_NODE.finditer(text))
    fix = "export the model again, or correct the operands of the node"
    if not parts:
        if not _FOLLOWS_FROM_UNKNOWN.search(text):
            yield Flaw(kind="shape-inference", node="", message=f"shape inference stops: {_plain(text)}", fix=fix)
        return
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        said = text[part.end() : following.start() if following else len(text)]
        if not said.strip() or _FOLLOWS_FROM_UNKNOWN.search(said) or _SAID_OF_A_NODE.search(said):
            continue
        if _plain(said):
            message = f"{part['op']} cannot be as it stands: {_plain(said)}"
            newer = "export with opset 22, the first that has all operators in bfloat16, or in fp16"
            better = newer if "unsupported type: tensor(bfloat16)" in said else fix
            yield Flaw(kind="shape-inference", node=part["name"] or part["op"], message=message, fix=better)


def _plain(text: str) -> str:
    text = re.sub(r"\[\w*InferenceError\]|Inference error\(s\):|\(op_type:[^)]*\):?", " ", text)
    return " ".join(text.split()).strip(" .:")


def disagreements(declared: ModelProto, inferred: ModelProto) -> Iterator[Flaw]:
    """Tensors that the file calls another type than they have."""
    found = {
        value.name: value.type for value in (*inferred.graph.value_info, *inferred.graph.output) if _dtype(value.type)
    }
    maker = {name: node for node in declared.graph.node for name in node.output}
    for value in (*declared.graph.value_info, *declared.graph.output):
        said, made = _dtype(value.type), _dtype(found.get(value.name, TypeProto()))
        if said and made and said != made and value.name in maker:
            message = f"tensor '{value.name}' is declared {_name(said)} and is {_name(made)}"
            yield Flaw(kind="declared-type", node=label(maker[value.name]), message=message, fix="declare it as it is")


def _dtype(kind: TypeProto) -> int:
    return int(kind.tensor_type.elem_type) if kind.WhichOneof("value") == "tensor_type" else 0


def _name(dtype: int) -> str:
    return str(TensorProto.DataType.Name(dtype)).lower() if dtype in TensorProto.DataType.values() else str(dtype)
