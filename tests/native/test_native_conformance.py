"""The native CPU operators in ONNX Runtime against the restatement, on every sample, and that it was they that ran."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from test_conformance import Case, all_cases, check  # pyright: ignore[reportMissingImports]

from trt_compress.plugins.library import Library, sources_folder
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import FLOATS
from trt_compress.plugins.testing import is_batched
from trt_compress.runtime.ort import operator_paths

OPSET = 20
NATIVE = {path.parent.name for path in sources_folder().glob("*/ort_op.cpp")}
CASES = [
    Case(operator=case.operator, sample=case.sample, form="native", dtype=case.dtype)
    for case in all_cases()
    if case.form == "torch" and case.operator.spec.torch_name in NATIVE
]


def session_of(model: onnx.ModelProto, library: Library | None, *, threads: int = 2) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def without_body(model: onnx.ModelProto) -> onnx.ModelProto:
    """The node alone: without the library it would not load."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.functions[:]
    return bare


def with_casts(case: Case) -> onnx.ModelProto:
    """The model with bfloat16 inside and float32 outside: numpy has no bfloat16."""
    wide = Case(operator=case.operator, sample=case.sample, form=case.form, dtype="float32")
    model, spec = wide.model(OPSET), case.operator.spec
    (node,) = model.graph.node
    narrow: set[str] = set()
    for index, described in enumerate(spec.inputs):
        is_float = model.graph.input[index].type.tensor_type.elem_type == TensorProto.FLOAT
        if is_float and set(FLOATS) <= set(described.dtypes) or described.same_dtype_as in narrow:
            narrow.add(described.name)
            node.input[index] = f"{described.name}_narrow"
            cast = helper.make_node("Cast", [described.name], [node.input[index]], to=TensorProto.BFLOAT16)
            model.graph.node.insert(0, cast)
    for index, described in enumerate(spec.outputs):
        if described.same_dtype_as in narrow:
            inner = model.graph.node[len(narrow)].output
            inner[index] = f"{described.name}_narrow"
            model.graph.node.append(helper.make_node("Cast", [inner[index]], [described.name], to=TensorProto.FLOAT))
    return model


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_native_conformance(case: Case, native_library: Library) -> None:
    is_narrow = case.dtype == "bfloat16"
    model = without_body(with_casts(case) if is_narrow else case.model(OPSET))
    session = session_of(model, native_library)
    inputs, batch = case.inputs(), case.sample.axes["B"]
    described = list(zip(case.operator.spec.inputs, inputs, strict=True))
    types = [output.dtype for output in outputs_of(case, inputs)]
    for items in (list(range(batch)), [*reversed(range(batch)), 0]):
        chosen = [tensor[items] if is_batched(spec, tensor, batch) else tensor for spec, tensor in described]
        feeds = {
            spec.name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for (spec, _), tensor in zip(described, chosen, strict=True)
        }
        found = [torch.from_numpy(np.asarray(output)) for output in session.run(None, feeds)]
        check(case, chosen, [output.to(dtype) for output, dtype in zip(found, types, strict=True)])


def outputs_of(case: Case, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    from trt_compress.plugins.testing import call_torch

    outputs: Sequence[torch.Tensor] = call_torch(case.operator, case.sample, inputs)
    return outputs


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_the_native_operator_wins_over_the_body(name: str, native_library: Library, tmp_path: Path) -> None:
    operator = next(found for found in operators().values() if found.spec.torch_name == name)
    case = Case(operator=operator, sample=operator.samples[0], form="native", dtype="float32")
    file = tmp_path / "model.onnx"
    onnx.save(case.model(OPSET), file)
    assert operator_paths(file, native_library) == {f"site/{operator.spec.name}": "native"}
    assert operator_paths(file, None) == {f"site/{operator.spec.name}": "function"}


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_the_threads_do_not_change_a_bit(name: str, native_library: Library) -> None:
    operator = next(found for found in operators().values() if found.spec.torch_name == name)
    sizes = [np.prod([float(size) for size in sample.axes.values()]) for sample in operator.samples]
    sample = operator.samples[int(np.argmax(sizes))]
    case = Case(operator=operator, sample=sample, form="native", dtype="float32")
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(operator.spec.inputs, case.inputs(), strict=True)}
    model = case.model(OPSET)
    first, *others = [session_of(model, native_library, threads=threads).run(None, feeds) for threads in (1, 2, 5)]
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert one.tobytes() == two.tobytes()
