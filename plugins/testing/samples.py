"""One sample of one operator: its inputs, its call in torch, and a one-node ONNX model. For tests and benchmarks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trt_compress.plugins.operator import Operator, as_float32
from trt_compress.plugins.spec import DOMAIN, FLOATS, OperandSpec, Sample

if TYPE_CHECKING:
    import onnx


def sample_inputs(operator: Operator, sample: Sample, *, dtype: str = "float32", seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of `sample`, float tensors that may have any precision cast to `dtype`."""
    made = operator.make_inputs(sample, torch.Generator().manual_seed(seed))
    return tuple(
        tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() and set(FLOATS) <= set(spec.dtypes) else tensor
        for spec, tensor in zip(operator.spec.inputs, made, strict=True)
    )


def is_batched(described: OperandSpec, tensor: Tensor, batch: int) -> bool:
    """Whether the first axis of `tensor` is the batch; one that is broadcast, or has fewer axes, is not."""
    axes = described.axes_of(tensor.ndim)
    first = axes[0].split(" or ") if axes else []
    return "B" in first and tensor.ndim == len(axes) and tensor.shape[0] == batch


def call_torch(operator: Operator, sample: Sample, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The registered torch operator on `inputs`, with the sample's attributes in the order of the spec."""
    given = [sample.attributes[a.name] for a in operator.spec.attributes]
    attributes = [as_float32(value) if isinstance(value, float) else value for value in given]
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
    """A model with one node of the operator; tensors give dtypes and shapes; `body` adds the function.

    The first axis of the first input is the batch.
    """
    from onnx import helper

    spec, batch = operator.spec, inputs[0].shape[0]

    def value(described: OperandSpec, tensor: Tensor) -> "onnx.ValueInfoProto":
        dtype = helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=tensor.dtype).numpy().dtype)
        shape: list[int | str] = list(tensor.shape)
        if dynamic_batch and is_batched(described, tensor, batch):
            shape[0] = "batch"
        return helper.make_tensor_value_info(described.name, dtype, shape)

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
        [value(t, tensor) for t, tensor in zip(spec.inputs, inputs, strict=True)],
        [value(t, tensor) for t, tensor in zip(spec.outputs, outputs, strict=True)],
    )
    return helper.make_model(
        graph,
        functions=[operator.function_proto(opset, [sample.attributes])] if body else [],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, spec.version)],
        ir_version=10,
    )
