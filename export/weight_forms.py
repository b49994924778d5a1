"""Quantized weights in an ONNX graph: how they get there, and what is found in a file that was written."""

import math
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from trt_compress.format.manifest import WeightForm
from trt_compress.models.layers.blocks import BLOCKS
from trt_compress.plugins.spec import DOMAIN

_BITS: dict[int, tuple[str, int]] = {
    **{TensorProto.INT4: ("int4", 4), TensorProto.INT8: ("int8", 8), TensorProto.FLOAT: ("float32", 32)},
    **{TensorProto.FLOAT16: ("float16", 16), TensorProto.BFLOAT16: ("bfloat16", 16)},
}


def dequantize_blocks(model: onnx.ModelProto) -> None:
    """Turn the nodes of quantized layers into blocked DequantizeLinear; codes of 4 bits become INT4.

    The bytes of the codes stay as they are: a layer packs them as ONNX does.
    """
    packed: dict[str, Sequence[int]] = {}
    for node in model.graph.node:
        if (node.domain, node.op_type) != (DOMAIN, BLOCKS):
            continue
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if given["bits"] == 4:
            packed[node.input[0]] = rows, columns = given["shape"]
            packed |= {name: (rows // given["block_size"], columns) for name in node.input[2:]}
        node.domain, node.op_type = "", "DequantizeLinear"
        del node.attribute[:]
        node.attribute.extend(
            helper.make_attribute(name, value) for name, value in (("axis", 0), ("block_size", given["block_size"]))
        )
    for tensor in model.graph.initializer:
        if tensor.name in packed:
            tensor.data_type = TensorProto.INT4
            del tensor.dims[:]
            tensor.dims.extend(packed[tensor.name])
    known = [info for info in model.graph.value_info if info.name not in packed]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)


def weight_forms(file: Path) -> tuple[WeightForm, ...]:
    """The weights in an ONNX file by dtype and group, read from it as it was written.

    Scales, zero points and least numbers of blocks count to their codes.
    """
    graph = onnx.load(file, load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in _BITS}
    found: dict[tuple[str, int | None], WeightForm] = {}
    scales: set[str] = set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            group = next((attribute.i for attribute in node.attribute if attribute.name == "block_size"), None)
            names = [*node.input[1:], f"{node.input[0].removesuffix('.codes')}.least"]
            beside = {name: tensors[name] for name in names if name in tensors}
            _count(found, file.stem, tensors[node.input[0]], group, *beside.values())
            scales.update((node.input[0], *beside))
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] in tensors and node.input[1] not in scales:
            name = node.input[1].removesuffix("_quantized")
            beside = {own: tensors[own] for own in (f"{name}_scale", f"{name}_zero_point") if own in tensors}
            _count(found, file.stem, tensors[node.input[1]], None, *beside.values())
            scales.update((node.input[1], *beside))
    for name, tensor in tensors.items():
        if name not in scales and tensor.data_type not in (TensorProto.INT4, TensorProto.INT8):
            _count(found, file.stem, tensor, None)
    return tuple(found.values())


def _count(
    found: dict[tuple[str, int | None], WeightForm],
    graph: str,
    tensor: onnx.TensorProto,
    group: int | None,
    *beside: onnx.TensorProto,
) -> None:
    dtype, _ = _BITS[tensor.data_type]
    before = found.get((dtype, group)) or WeightForm(graph=graph, dtype=dtype, group=group)
    found[dtype, group] = WeightForm(
        graph=graph,
        dtype=dtype,
        group=group,
        tensors=before.tensors + 1,
        parameters=before.parameters + math.prod(tensor.dims),
        bytes=before.bytes + sum(_bytes(part) for part in (tensor, *beside)),
    )


def _bytes(tensor: onnx.TensorProto) -> int:
    return (int(math.prod(tensor.dims)) * _BITS[tensor.data_type][1] + 7) // 8
