"""SPEC is the one source: torch, the ONNX function and the texts agree with it, and bodies run everywhere."""

import inspect
from collections.abc import Sequence
from typing import Any

import onnx
import onnx.checker
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trt_compress.export.lower import inline_bodies
from trt_compress.export.preflight import preflight
from trt_compress.export.targets import TARGETS
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators, specs
from trt_compress.plugins.spec import AXES, DOMAIN, OP_TYPE_PREFIX, Sample
from trt_compress.plugins.testing import call_torch, onnx_model, sample_inputs

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
        *("Add", "And", "Cast", "CastLike", "Concat", "Constant", "CumSum", "Div", "Equal", "Gather"),
        *("GatherElements", "GatherND", "Greater", "Less", "MatMul", "Max", "Mod", "Mul", "Or", "Range", "ReduceL2"),
        *("ReduceMax", "ReduceMin", "ReduceSum", "Reshape", "ScatterElements", "Shape", "Slice", "Squeeze", "Sub"),
        *("TopK", "Transpose", "Unsqueeze", "Where"),
    }
)
TORCH_TYPES = {"int": "int", "ints": "List[int]", "float": "float"}


def packet(operator: Operator) -> Any:
    return getattr(getattr(torch.ops, DOMAIN), operator.spec.torch_name)


def one_node_model(operator: Operator, sample: Sample, opset: int = 20) -> onnx.ModelProto:
    inputs = sample_inputs(operator, sample)
    return onnx_model(operator, sample, inputs, call_torch(operator, sample, inputs), opset=opset)


def test_the_operators_are_these() -> None:
    assert list(operators()) == ["TrtcTokenMerge", "TrtcTokenSelect", "TrtcTokenRestore"]
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
    assert attributes == [attribute.name for attribute in operator.spec.attributes]


@each_operator
def test_function_proto_is_the_spec(operator: Operator) -> None:
    spec, proto = operator.spec, operator.function_proto(20)
    assert (proto.domain, proto.name) == (spec.domain, spec.op_type)
    assert list(proto.input) == [tensor.name for tensor in spec.inputs]
    assert list(proto.output) == [tensor.name for tensor in spec.outputs]
    assert list(proto.attribute) == [attribute.name for attribute in spec.attributes]
    used = {attribute.ref_attr_name for node in proto.node for attribute in node.attribute} - {""}
    assert used == set(proto.attribute)


@each_operator
@pytest.mark.parametrize("opset", [18, 20, 21, 24])
def test_function_is_valid(operator: Operator, opset: int) -> None:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {"": opset}
    onnx.checker.check_function(operator.function_proto(opset), context)
    onnx.checker.check_model(one_node_model(operator, operator.samples[-2], opset), full_check=True)


@each_operator
def test_body_uses_only_what_every_target_takes(operator: Operator) -> None:
    nodes = operator.function_proto(20).node
    assert {node.op_type for node in nodes} <= PORTABLE
    assert {node.domain for node in nodes} == {""}
    assert not [node.op_type for node in nodes for attribute in node.attribute if attribute.name == "reduction"]
    made = [name for node in nodes for name in node.output]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(("operator", "sample"), SAMPLES)
def test_no_target_refuses_a_sample_but_for_a_stated_limit(operator: Operator, sample: Sample) -> None:
    model = inline_bodies(one_node_model(operator, sample))
    kept = sample.attributes.get("num_kept", 0)
    too_many = isinstance(kept, int) and kept > 3840
    assert not too_many or "num_kept <= 3840" in operator.spec.limits[0]
    for target in TARGETS.values():
        found = {finding.rule for finding in preflight(model, target, lowered=True)}
        assert found == ({"topk-k"} if too_many and target.is_tensorrt else set()), target.name


@each_operator
def test_contract_is_written_down(operator: Operator) -> None:
    spec, doc = operator.spec, inspect.getdoc(operator.function) or ""
    for name in ("summary", "count", "tie_break", "order", "determinism", "source", "differs"):
        assert getattr(spec, name), name
    assert "same input, same bits" in spec.determinism
    for heading in ("Args:", "Returns:", "Raises:", "Source:", "Differs:"):
        assert f"\n{heading}" in doc, heading
    letters = {axis for tensor in (*spec.inputs, *spec.outputs) for axis in tensor.axes}
    assert letters <= {*AXES, "1", "N-K"}
    assert all(tensor.doc for tensor in (*spec.inputs, *spec.outputs)) and all(a.doc for a in spec.attributes)
    names = {tensor.name for tensor in spec.inputs}
    assert all(tensor.same_dtype_as in {*names, None} for tensor in spec.outputs)
    assert set(spec.tolerance) == {"float32", "float16", "bfloat16"}


@each_operator
def test_every_sample_has_a_reason_and_its_own_label(operator: Operator) -> None:
    assert all(sample.reason for sample in operator.samples)
    assert len({sample.label for sample in operator.samples}) == len(operator.samples)


@pytest.mark.parametrize(("operator", "sample"), SAMPLES)
def test_fake_kernel_knows_the_real_shapes(operator: Operator, sample: Sample) -> None:
    inputs = sample_inputs(operator, sample, dtype="float16")
    real = call_torch(operator, sample, inputs)
    with FakeTensorMode() as mode:
        fake = call_torch(operator, sample, [mode.from_tensor(tensor) for tensor in inputs])
    assert [(f.shape, f.dtype) for f in fake] == [(r.shape, r.dtype) for r in real]
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


# B=2 sequences of N=10 tokens with C=3 values, in half precision (2 bytes a value).
BYTES = {
    # x and metric (D=4) in, M=7 tokens out, a 4-byte size for every token in and out, 8 bytes of dest for every one in
    "TrtcTokenMerge": (
        {"B": 2, "N": 10, "C": 3, "D": 4, "num_merged": 3, "num_protected": 1},
        2 * (10 * 3 * 2 + 7 * 3 * 2 + 10 * 4 * 2 + 10 * 4 + 7 * 4 + 10 * 8),
        2 * (2 * 4 * 4 * 4 + 2 * 3 * 3),  # 4 even tokens by 4 odd ones by D, then 3 weighted sums of C
    ),
    # all tokens in since the rest is summed, 6 kept and the sum out, a score and an 8-byte position for every token
    "TrtcTokenSelect": (
        {"B": 2, "N": 10, "C": 3, "num_kept": 6, "remainder": 1},
        2 * (10 * 3 * 2 + 7 * 3 * 2 + 10 * 2 + 10 * 8),
        2 * (2 * 4 * 3),
    ),
    # M=4 tokens in, 10 out, an 8-byte index for each
    "TrtcTokenRestore": ({"B": 2, "N": 10, "M": 4, "C": 3, "mode": 0}, 2 * (4 * 3 * 2 + 10 * 3 * 2 + 10 * 8), 0),
}


@each_operator
def test_bytes_and_flops_are_those_counted_by_hand(operator: Operator) -> None:
    sizes, moved, flops = BYTES[operator.spec.op_type]
    assert operator.spec.bytes_moved(sizes, 2) == moved
    assert operator.spec.flops(sizes) == flops


def test_dropping_the_rest_reads_only_what_is_kept_and_computes_nothing() -> None:
    spec = operators()["TrtcTokenSelect"].spec
    sizes = {"B": 1, "N": 10, "C": 3, "num_kept": 6, "remainder": 0}
    assert spec.bytes_moved(sizes, 4) == 6 * 3 * 4 * 2 + 10 * 4 + 10 * 8
    assert spec.flops(sizes) == 0
