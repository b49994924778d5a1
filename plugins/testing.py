"""One sample of one operator: its inputs, its call in torch, and a one-node ONNX model. For tests and benchmarks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trt_compress.plugins.operator import Operator
from trt_compress.plugins.spec import DOMAIN, FLOATS, Sample

if TYPE_CHECKING:
    import onnx


def sample_inputs(operator: Operator, sample: Sample, *, dtype: str = "float32", seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of `sample`, those that may be half precision cast to `dtype`."""
    made = operator.make_inputs(sample, torch.Generator().manual_seed(seed))
    return tuple(
        tensor.to(getattr(torch, dtype)) if spec.dtypes == FLOATS else tensor
        for spec, tensor in zip(operator.spec.inputs, made, strict=True)
    )


def call_torch(operator: Operator, sample: Sample, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The registered torch operator on `inputs`, with the sample's attributes in the order of the spec."""
    attributes = [sample.attributes[a.name] for a in operator.spec.attributes]
    result = getattr(getattr(torch.ops, DOMAIN), operator.spec.torch_name)(*inputs, *attributes)
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def onnx_model(
    operator: Operator,
    sample: Sample,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    opset: int = 20,
    dynamic_batch: bool = True,
    body: bool = True,
) -> "onnx.ModelProto":
    """A model with one node of the operator; tensors give dtypes and shapes; `body` adds the function."""
    from onnx import helper

    spec = operator.spec

    def value(name: str, tensor: Tensor) -> "onnx.ValueInfoProto":
        dtype = helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=tensor.dtype).numpy().dtype)
        shape = ["batch" if axis == 0 and dynamic_batch else size for axis, size in enumerate(tensor.shape)]
        return helper.make_tensor_value_info(name, dtype, shape)

    node = helper.make_node(
        spec.op_type,
        [t.name for t in spec.inputs],
        [t.name for t in spec.outputs],
        name=f"site/{spec.name}",
        domain=DOMAIN,
        plugin_version=str(spec.version),
        plugin_namespace=DOMAIN,
        **dict(sample.attributes),  # type: ignore[arg-type]
    )
    graph = helper.make_graph(
        [node],
        spec.name,
        [value(t.name, tensor) for t, tensor in zip(spec.inputs, inputs, strict=True)],
        [value(t.name, tensor) for t, tensor in zip(spec.outputs, outputs, strict=True)],
    )
    return helper.make_model(
        graph,
        functions=[operator.function_proto(opset)] if body else [],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, spec.version)],
        ir_version=10,
    )
