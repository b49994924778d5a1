"""The forms of an operator that run on the CPU, as columns: each is made ready for a sample, and then run on inputs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trt_compress.plugins.library import Library
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.spec import FLOATS, Sample
from trt_compress.plugins.testing.samples import call_torch, onnx_model

if TYPE_CHECKING:
    import onnx

OPSET = 20

Run = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
Form = Callable[[Operator, Sample, Sequence[Tensor]], Run]  # inputs give dtypes and shapes; the batch may be another


def forms(native: Library | None = None, *, opset: int = OPSET) -> Mapping[str, Form]:
    """Every form by its name.

    Args:
        native: The library of custom operators; None leaves the form "native" out.
        opset: Of the models that "onnx" and "native" run.
    """
    columns: dict[str, Form] = {"torch": torch_form, "onnx": partial(onnx_form, opset=opset)}
    return columns if native is None else {**columns, "native": partial(onnx_form, library=native, opset=opset)}


def torch_form(operator: Operator, sample: Sample, inputs: Sequence[Tensor]) -> Run:
    """The registered torch operator."""
    return partial(call_torch, operator, sample)


def onnx_form(
    operator: Operator, sample: Sample, inputs: Sequence[Tensor], *, library: Library | None = None, opset: int = OPSET
) -> Run:
    """One node in ONNX Runtime: by its body, or with a library by the custom operator alone.

    ONNX Runtime is fed from numpy, which has no bfloat16: there the model casts inside.
    """
    spec = operator.spec
    types = [output.dtype for output in call_torch(operator, sample, inputs)]
    narrow = [tensor.dtype == torch.bfloat16 for tensor in inputs]
    wide = [tensor.float() if is_narrow else tensor for tensor, is_narrow in zip(inputs, narrow, strict=True)]
    model = onnx_model(operator, sample, wide, call_torch(operator, sample, wide), opset=opset, body=library is None)
    if any(narrow):
        _cast_inside(operator, model)
    ready = session(model.SerializeToString(), library)

    def run(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        feeds = {
            described.name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for described, tensor in zip(spec.inputs, given, strict=True)
        }
        found = ready.run(None, feeds)
        return tuple(torch.from_numpy(np.asarray(one)).to(dtype) for one, dtype in zip(found, types, strict=True))

    return run


def session(model: bytes, library: Library | None = None, *, threads: int = 2) -> Any:
    """A session of ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library.path))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _cast_inside(operator: Operator, model: "onnx.ModelProto") -> None:
    """bfloat16 inside and float32 outside, for inputs of any precision and outputs that follow them."""
    from onnx import TensorProto, helper

    spec = operator.spec
    (node,) = model.graph.node
    narrow: set[str] = set()
    before, behind = [], []
    for index, described in enumerate(spec.inputs):
        is_float = model.graph.input[index].type.tensor_type.elem_type == TensorProto.FLOAT
        if is_float and set(FLOATS) <= set(described.dtypes) or described.same_dtype_as in narrow:
            narrow.add(described.name)
            node.input[index] = f"{described.name}_narrow"
            before.append(helper.make_node("Cast", [described.name], [node.input[index]], to=TensorProto.BFLOAT16))
    for index, described in enumerate(spec.outputs):
        if described.same_dtype_as in narrow:
            node.output[index] = f"{described.name}_narrow"
            behind.append(helper.make_node("Cast", [node.output[index]], [described.name], to=TensorProto.FLOAT))
    nodes = [*before, node, *behind]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
