"""SPEC is the one source: torch, the ONNX function and the texts agree with it, and bodies run everywhere."""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.checker
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols

import trt_compress.plugins
from trt_compress.export.lower import inline_bodies
from trt_compress.export.preflight import preflight
from trt_compress.export.targets import TARGETS
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators, specs
from trt_compress.plugins.spec import AXES, DOMAIN, OP_TYPE_PREFIX, Sample
from trt_compress.plugins.testing import call_torch, onnx_model, sample_inputs
from trt_compress.plugins.testing.reference import COUNTED

OPERATORS = list(operators().values())
SAMPLES = [
    pytest.param(operator, sample, id=f"{operator.spec.torch_name}[{sample.label}]")
    for operator in OPERATORS
    for sample in operator.samples
]
each_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.spec.torch_name)

# Taken by every parser that a target stands for, within the limits that the tests below hold.
PORTABLE = frozenset(
    {
        *("Abs", "Add", "And", "ArgMax", "ArgMin", "Atanh", "AveragePool", "Cast", "CastLike", "Clip", "Concat"),
        *("Constant", "CumSum", "Div", "Equal", "Exp", "Expand", "Floor", "Gather", "GatherElements", "GatherND"),
        *("Greater", "GreaterOrEqual", "Identity", "If", "Less", "LessOrEqual", "Log", "Loop", "MatMul", "Max"),
        *("MaxPool", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceL2", "ReduceMax", "ReduceMean"),
        *("ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "ScatterElements", "ScatterND", "Shape"),
        *("Sigmoid", "Sign", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "TopK", "Transpose"),
        *("Unsqueeze", "Where"),
    }
)
TORCH_TYPES = {"int": "int", "ints": "List[int]", "float": "float"}


def packet(operator: Operator) -> Any:
    return getattr(getattr(torch.ops, DOMAIN), operator.spec.torch_name)


def body_nodes(proto: onnx.FunctionProto) -> list[onnx.NodeProto]:
    """Nodes of the body and of the subgraphs in it."""
    nodes = list(proto.node)
    for node in nodes:  # grows while it is walked
        nodes += [inner for attribute in node.attribute for inner in attribute.g.node]
    return nodes


def body_of(operator: Operator, opset: int) -> onnx.FunctionProto:
    """The function that is right for all samples."""
    return operator.function_proto(opset, [sample.attributes for sample in operator.samples])


def one_node_model(operator: Operator, sample: Sample, opset: int = 20) -> onnx.ModelProto:
    inputs = sample_inputs(operator, sample)
    return onnx_model(operator, sample, inputs, call_torch(operator, sample, inputs), opset=opset)


def test_the_operators_are_these() -> None:
    folders = {file.parent.name for file in Path(str(trt_compress.plugins.__file__)).parent.glob("*/op.py")}
    assert {operator.spec.torch_name for operator in OPERATORS} == folders
    assert specs() == {op_type: operator.spec for op_type, operator in operators().items()}


@each_operator
def test_names_follow_from_one_another(operator: Operator) -> None:
    spec = operator.spec
    assert spec.op_type == OP_TYPE_PREFIX + spec.name
    assert spec.domain == "trt_compress"
    assert inspect.getmodule(operator.function).__name__.split(".")[-2] == spec.torch_name  # type: ignore[union-attr]
    assert operator.function.__name__ == spec.torch_name


@each_operator
def test_torch_schema_is_the_spec(operator: Operator) -> None:
    spec, schema = operator.spec, packet(operator).default._schema
    given = [(argument.name, str(argument.type)) for argument in schema.arguments]
    wanted = [(tensor.name, "Tensor") for tensor in spec.inputs]
    wanted += [(attribute.name, TORCH_TYPES[attribute.kind]) for attribute in spec.attributes]
    assert given == wanted
    assert [str(value.type) for value in schema.returns] == ["Tensor"] * len(spec.outputs)
    assert not schema.is_mutable


@each_operator
def test_public_function_takes_tensors_first_and_attributes_by_keyword(operator: Operator) -> None:
    parameters = inspect.signature(operator.function).parameters.values()
    tensors = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert tensors == [tensor.name for tensor in operator.spec.inputs]
    attributes = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert attributes == [attribute.name for attribute in operator.spec.attributes if attribute.of_input is None]
    assert {attribute.of_input for attribute in operator.spec.attributes} - {None} <= set(tensors)


@each_operator
def test_function_proto_is_the_spec(operator: Operator) -> None:
    spec, proto = operator.spec, body_of(operator, 20)
    assert (proto.domain, proto.name) == (spec.domain, spec.op_type)
    assert list(proto.input) == [tensor.name for tensor in spec.inputs]
    assert list(proto.output) == [tensor.name for tensor in spec.outputs]
    used = {attribute.ref_attr_name for node in body_nodes(proto) for attribute in node.attribute} - {""}
    assert list(proto.attribute) == [attribute.name for attribute in spec.attributes if attribute.name in used]
    assert used == {attribute.name for attribute in spec.attributes} or not isinstance(operator.body, str)


@each_operator
@pytest.mark.parametrize("opset", [18, 20, 21, 24])
def test_function_is_valid(operator: Operator, opset: int) -> None:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {"": opset}
    onnx.checker.check_function(body_of(operator, opset), context)
    onnx.checker.check_model(one_node_model(operator, operator.samples[-2], opset), full_check=True)


@each_operator
def test_body_uses_only_what_every_target_takes(operator: Operator) -> None:
    nodes = body_nodes(body_of(operator, 20))
    assert {node.op_type for node in nodes} <= PORTABLE
    assert {node.domain for node in nodes} == {""}
    assert not [node.op_type for node in nodes for attribute in node.attribute if attribute.name == "reduction"]
    made = [name for node in nodes for name in node.output]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(("operator", "sample"), SAMPLES)
def test_no_target_refuses_a_sample_but_for_a_stated_limit(operator: Operator, sample: Sample) -> None:
    model = inline_bodies(one_node_model(operator, sample))
    assert sample.refused in {"", "topk-k"}
    assert not sample.refused or any("3840 (TopK)" in limit for limit in operator.spec.limits)
    for target in TARGETS.values():
        found = {finding.rule for finding in preflight(model, target, lowered=True)}
        assert found == ({sample.refused} if sample.refused and target.is_tensorrt else set()), target.name


@each_operator
def test_contract_is_written_down(operator: Operator) -> None:
    spec, doc = operator.spec, inspect.getdoc(operator.function) or ""
    for name in ("summary", "determinism", "source", "differs"):
        assert getattr(spec, name), name
    assert bool(spec.tie_break) == (operator.regret is not None), "an operator that decides says how ties are broken"
    assert spec.count and spec.order or operator.regret is None
    assert "same input, same bits" in spec.determinism
    for heading in ("Args:", "Returns:", "Raises:", "Source:", "Differs:"):
        assert f"\n{heading}" in doc, heading
    words = {
        word for tensor in (*spec.inputs, *spec.outputs) for axis in tensor.axes for word in re.findall(r"\w+", axis)
    }
    assert {word for word in words if not word.isdigit()} <= {*AXES, *(a.name for a in spec.attributes), "or"}
    assert all(tensor.doc for tensor in (*spec.inputs, *spec.outputs)) and all(a.doc for a in spec.attributes)
    names = {tensor.name for tensor in spec.inputs}
    assert all({tensor.same_dtype_as, tensor.aliases} <= {*names, None} for tensor in spec.outputs)
    assert not any(tensor.aliases for tensor in spec.inputs)
    before: set[str] = set()
    for tensor in spec.inputs:
        assert tensor.same_dtype_as in {*before, None}
        before.add(tensor.name)
    assert set(spec.tolerance) == {"float32", "float16", "bfloat16"}


@each_operator
def test_every_sample_has_a_reason_and_its_own_label(operator: Operator) -> None:
    assert all(sample.reason for sample in operator.samples)
    assert len({sample.label for sample in operator.samples}) == len(operator.samples)


@pytest.mark.parametrize(("operator", "sample"), SAMPLES)
def test_fake_kernel_knows_the_real_shapes(operator: Operator, sample: Sample) -> None:
    inputs = sample_inputs(operator, sample, dtype="float16")
    real = call_torch(operator, sample, inputs)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fake = call_torch(operator, sample, [mode.from_tensor(tensor, static_shapes=True) for tensor in inputs])
    for unreal, tensor in zip(fake, real, strict=True):
        assert (unreal.dtype, unreal.ndim) == (tensor.dtype, tensor.ndim)
        for axis, (size, actual) in enumerate(zip(unreal.shape, tensor.shape, strict=True)):
            depends_on_data = isinstance(size, torch.SymInt) and bool(free_unbacked_symbols(size))
            assert depends_on_data == (sample.attributes.get("trim") == 1 and axis == 1)
            assert depends_on_data or size == actual
    sizes = {**sample.axes, **sample.attributes}
    outputs: Sequence[torch.Tensor] = real
    for described, tensor in zip(operator.spec.outputs, outputs, strict=True):
        known = [sizes.get(axis) for axis in described.axes]
        assert all(size in (None, actual) for size, actual in zip(known, tensor.shape, strict=True)), described.name


@pytest.mark.parametrize(("operator", "sample"), SAMPLES)
def test_same_input_gives_the_same_bits(operator: Operator, sample: Sample) -> None:
    inputs = sample_inputs(operator, sample)
    before = [tensor.clone() for tensor in inputs]
    pairs = zip(call_torch(operator, sample, inputs), call_torch(operator, sample, inputs), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, before, strict=True))


@each_operator
@pytest.mark.parametrize("which", [3, 4, 6])
def test_opcheck(operator: Operator, which: int) -> None:
    sample = operator.samples[which]
    attributes = [sample.attributes[attribute.name] for attribute in operator.spec.attributes]
    torch.library.opcheck(packet(operator).default, (*sample_inputs(operator, sample), *attributes))


@each_operator
def test_bytes_and_flops_are_those_counted_by_hand(operator: Operator) -> None:
    counted = COUNTED[operator.spec.op_type]
    assert operator.spec.bytes_moved(counted.sizes, 2) == counted.bytes_moved
    assert operator.spec.flops(counted.sizes) == counted.flops


@each_operator
def test_bytes_and_flops_follow_from_the_shapes_of_a_call(operator: Operator) -> None:
    spec = operator.spec
    for sample in operator.samples:
        found = spec.sizes([tensor.shape for tensor in sample_inputs(operator, sample)], sample.attributes)
        stated = {**sample.axes, **sample.attributes}
        assert spec.flops(found) == spec.flops(stated), sample.label
        assert spec.bytes_moved(found, 2) == spec.bytes_moved(stated, 2), sample.label


def test_dropping_the_rest_reads_only_what_is_kept_and_computes_nothing() -> None:
    spec = operators()["TrtcTokenSelect"].spec
    sizes = {"B": 1, "N": 10, "C": 3, "num_kept": 6, "remainder": 0}
    assert spec.bytes_moved(sizes, 4) == 6 * 3 * 4 * 2 + 10 * 4 + 10 * 8
    assert spec.flops(sizes) == 0
