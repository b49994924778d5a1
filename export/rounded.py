"""bfloat16 where ONNX Runtime has no kernels for it: float32, rounded to bfloat16 after every operator.

On the CPU it casts bfloat16, and computes next to nothing in it. In the form made here every operator gets the values
it would get, and every result is rounded as it would be; only inside an operator the sums are in float32, as those of
GPUs and of torch are, too.
"""

import onnx
from onnx import TensorProto, helper

from trt_compress.errors import UnsupportedError
from trt_compress.export.graph_view import GraphView, without_weights
from trt_compress.export.lower import inline_bodies

ROUNDED = "bfloat16 as float32 rounded after every operator, as ONNX Runtime has no kernels for it on the CPU"
"""How such a graph was run, for the manifest."""


def has_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether some tensor of the model's own graph is bfloat16."""
    return TensorProto.BFLOAT16 in GraphView(without_weights(model)).dtypes().values()


def rounded_to_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that ONNX Runtime runs on the CPU; names of values stay, those of bfloat16 are float32.

    Raises:
        UnsupportedError: A subgraph computes in bfloat16.
    """
    inlined = inline_bodies(model)
    view = GraphView(without_weights(inlined))
    narrow = {name for name, dtype in view.dtypes().items() if dtype == TensorProto.BFLOAT16}
    if inside := [node for graph in view.graphs[1:] for node in graph.node if narrow.intersection(node.output)]:
        raise UnsupportedError(f"node '{inside[0].name}' computes in bfloat16 inside a branch or loop; export in fp16.")
    weights = {tensor.name for tensor in inlined.graph.initializer} & narrow
    nodes = [_cast(f"{name}/bfloat16", name, TensorProto.FLOAT) for name in sorted(weights)]
    for tensor in inlined.graph.initializer:
        if tensor.name in weights:
            tensor.name = f"{tensor.name}/bfloat16"
    for node in inlined.graph.node:
        made = [name for name in node.output if name in narrow]
        renames = {name: f"{name}/unrounded" for name in made}
        node.output[:] = [renames.get(name, name) for name in node.output]
        _compute_in_float32(node)
        nodes.append(node)
        for name in made:
            nodes.append(_cast(renames[name], f"{name}/bfloat16", TensorProto.BFLOAT16))
            nodes.append(_cast(f"{name}/bfloat16", name, TensorProto.FLOAT))
    del inlined.graph.node[:], inlined.graph.value_info[:]
    inlined.graph.node.extend(nodes)
    for value in inlined.graph.output:
        if value.name in narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return inlined


def _compute_in_float32(node: onnx.NodeProto) -> None:
    """Where an attribute names bfloat16, name float32; the result is rounded behind the node."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.BFLOAT16:
            attribute.i = TensorProto.FLOAT
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.BFLOAT16:
            wide = onnx.numpy_helper.to_array(attribute.t).astype("float32")
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(wide, attribute.t.name))


def _cast(source: str, result: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}/cast", to=dtype)
