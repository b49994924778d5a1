"""Quantized weights in an ONNX graph: how they get there, and what is found in a file that was written."""

from collections.abc import Sequence

import onnx
import onnx.helper
from onnx import TensorProto

from trt_compress.models.layers.blocks import BLOCKS
from trt_compress.plugins.spec import DOMAIN

_WHOLE = {TensorProto.INT4: "int4", TensorProto.INT8: "int8"}
_FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def dequantize_blocks(model: onnx.ModelProto) -> None:
    """Turn the nodes of quantized layers into blocked DequantizeLinear; codes of 4 bits become INT4.

    The bytes of the codes stay as they are: a layer packs them as ONNX does.
    """
    packed: dict[str, Sequence[int]] = {}
    for node in model.graph.node:
        if (node.domain, node.op_type) != (DOMAIN, BLOCKS):
            continue
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if given["bits"] == 4:
            packed[node.input[0]] = given["shape"]
        node.domain, node.op_type = "", "DequantizeLinear"
        del node.attribute[:]
        node.attribute.extend(
            onnx.helper.make_attribute(name, value)
            for name, value in (("axis", 0), ("block_size", given["block_size"]))
        )
    for tensor in model.graph.initializer:
        if tensor.name in packed:
            tensor.data_type = TensorProto.INT4
            del tensor.dims[:]
            tensor.dims.extend(packed[tensor.name])
    known = [info for info in model.graph.value_info if info.name not in packed]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
