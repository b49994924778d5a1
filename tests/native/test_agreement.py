"""SPEC and the contract in C++ say the same, and every native form is of an operator that there is."""

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from trt_compress.plugins.cuda_library import Described, OutputShapes, output_shapes
from trt_compress.plugins.library import Library, sources_folder
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import FLOATS, AttributeSpec, OperandSpec, OpSpec, Sample, Shapes
from trt_compress.plugins.testing import onnx_model, sample_inputs
from trt_compress.plugins.testing.comparing import dtype_name
from trt_compress.plugins.testing.forms import session

SPECS = {operator.spec.torch_name: operator.spec for operator in operators().values()}
FORMS = ("ort_op.cpp", "cuda_op.cpp", "kernel.cu", "kernel.cuh", "kernel_cpu.h", "contract.cpp")
each_operator = pytest.mark.parametrize("operator", operators().values(), ids=lambda operator: operator.spec.torch_name)


@pytest.fixture(scope="module")
def held(native_library: Library) -> dict[str, dict[str, Any]]:
    return {operator["op_type"]: operator for operator in native_library.info["operators"]}


def test_native_forms_are_of_operators_that_there_are() -> None:
    folders = {path.parent.name for form in FORMS for path in sources_folder().glob(f"*/{form}")} - {"common"}
    assert folders - set(SPECS) == set()


def test_a_form_has_its_contract_and_a_kernel() -> None:
    """The kernel may be that of another operator, as KVAttentionPlain's is KVAttention's."""
    for form, header, source in (
        ("ort_op.cpp", "kernel_cpu.h", "kernel_cpu.h"),
        ("cuda_op.cpp", "kernel.cuh", "kernel.cu"),
    ):
        for path in sources_folder().glob(f"*/{form}"):
            if path.parent.name == "common":
                continue
            taken = re.findall(rf'#include "(\w+)/{re.escape(header)}"', path.read_text())
            assert len(taken) == 1, path
            assert (sources_folder() / taken[0] / source).is_file() and (path.parent / "contract.cpp").is_file(), path


def test_the_library_holds_every_native_operator(held: dict[str, dict[str, Any]]) -> None:
    native = {SPECS[path.parent.name].op_type for path in sources_folder().glob("*/ort_op.cpp")}
    assert set(held) == native and native


@pytest.mark.parametrize("name", sorted(path.parent.name for path in sources_folder().glob("*/ort_op.cpp")))
def test_spec_and_contract_agree(name: str, held: dict[str, dict[str, Any]]) -> None:
    spec = SPECS[name]
    contract = held[spec.op_type]
    assert (contract["name"], contract["version"]) == (spec.name, spec.version)
    assert [tensor_facts(tensor) for tensor in spec.inputs] == contract["inputs"]
    assert [tensor_facts(tensor) for tensor in spec.outputs] == contract["outputs"]
    assert [attribute_facts(attribute) for attribute in spec.attributes] == contract["attributes"]
    named = {tensor.dtype_attribute for tensor in spec.outputs} - {None}
    assert named <= {attribute.name for attribute in spec.attributes}


def tensor_facts(tensor: OperandSpec) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "rank": len(tensor.axes),
        "least_rank": tensor.least_rank,
        "dtypes": [] if tensor.same_dtype_as else list(tensor.dtypes),
        "same_dtype_as": tensor.same_dtype_as,
        "dtype_attribute": tensor.dtype_attribute,
        "alias_of": tensor.aliases,
    }


def attribute_facts(attribute: AttributeSpec) -> dict[str, Any]:
    return {
        "name": attribute.name,
        "kind": attribute.kind,
        "minimum": attribute.minimum,
        "maximum": attribute.maximum,
    }


def test_the_facts_compared_are_the_facts_there_are() -> None:
    assert set(OpSpec.__dataclass_fields__) >= {"name", "version", "inputs", "outputs", "attributes"}
    assert set(AttributeSpec.__dataclass_fields__) == {"name", "kind", "minimum", "maximum", "of_input", "doc"}
    compared = {"name", "axes", "least_rank", "dtypes", "same_dtype_as", "dtype_attribute", "aliases"}
    assert set(OperandSpec.__dataclass_fields__) == {*compared, "doc"}


# ---- shapes of the outputs: once in C++, once in Python --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One sample with inputs of one dtype, and what the library says of its outputs."""

    sample: Sample
    inputs: Sequence[Described]
    said: OutputShapes


@pytest.fixture(scope="module")
def asked(native_library: Library) -> Callable[[Operator], list[Asked]]:
    library = ctypes.CDLL(str(native_library.path))

    @cache
    def of_operator(op_type: str) -> list[Asked]:
        operator, found = operators()[op_type], []
        for sample, dtype in product(operator.samples, FLOATS):
            inputs = [Described(dtype_name(t), tuple(t.shape)) for t in sample_inputs(operator, sample, dtype=dtype)]
            values = [(sample.attributes[attribute.name], attribute.kind) for attribute in operator.spec.attributes]
            given = [tuple(v) if isinstance(v, Sequence) else float(v) if kind == "float" else v for v, kind in values]
            said = output_shapes(library, op_type, given, inputs)
            found.append(Asked(sample=sample, inputs=inputs, said=said))
        return found

    return lambda operator: of_operator(operator.spec.op_type)


Ask = Callable[[Operator], list[Asked]]


def disagreements(spec: OpSpec, asked: Asked) -> list[str]:
    """What the library says of a sample's outputs and SPEC does not."""
    attributes, said = asked.sample.attributes, asked.said
    shapes = [list(shape) for shape in spec.output_shapes([described.shape for described in asked.inputs], attributes)]
    decided = spec.decided_by_data(attributes)
    numbers = [[-1 if i in decided and axis == 1 else n for axis, n in enumerate(s)] for i, s in enumerate(shapes)]
    names: dict[str, Any] = {
        described.name: given.shape for described, given in zip(spec.inputs, asked.inputs, strict=True)
    }
    names["data"] = lambda output, usual, largest: largest if 1 <= usual <= largest else None
    computed = [[eval(formula, {}, names) for formula in formulas] for formulas in said.formulas]
    dtypes = list(spec.output_dtypes([described.dtype for described in asked.inputs], attributes))
    pairs = {"shapes": (said.shapes, numbers), "formulas": (computed, shapes), "dtypes": (said.dtypes, dtypes)}
    found = {what: (list(map(list, one)), list(map(list, other))) for what, (one, other) in pairs.items()}
    return [
        f"{asked.sample.label}: {what} {one}, SPEC has {other}" for what, (one, other) in found.items() if one != other
    ]


@each_operator
def test_output_shapes_and_types_agree(operator: Operator, asked: Ask) -> None:
    assert [said for one in asked(operator) for said in disagreements(operator.spec, one)] == []


@each_operator
def test_a_mistake_in_one_size_is_seen(operator: Operator, asked: Ask) -> None:
    spec = operator.spec
    for output, described in enumerate(spec.outputs):
        for wrong_axis in range(len(described.axes)):

            def mistaken(
                inputs: Shapes, attributes: Mapping[str, Any], output: int = output, wrong_axis: int = wrong_axis
            ) -> Shapes:
                shapes = [list(shape) for shape in spec.output_shapes(inputs, attributes)]
                shapes[output][wrong_axis] += 1
                return shapes

            planted = replace(spec, output_shapes=mistaken)
            assert all(disagreements(planted, one) for one in asked(operator)), f"{described.name}[{wrong_axis}]"


@each_operator
def test_data_that_decide_a_size_are_an_output(operator: Operator, asked: Ask) -> None:
    for one in asked(operator):
        calls = {formula for formulas in one.said.formulas for formula in formulas if "data(" in formula}
        assert bool(calls) == bool(operator.spec.decided_by_data(one.sample.attributes))
        for call in calls:
            output = operator.spec.outputs[int(call.removeprefix("data(").split(",")[0])]
            assert (output.axes, output.dtypes) == ((), ("int32",)), "TensorRT takes a size from an INT32 without axes"


@each_operator
@pytest.mark.parametrize("form", ["function", "native"])
def test_onnx_runtime_infers_the_shapes_of_spec(operator: Operator, form: str, native_library: Library) -> None:
    """From a model that states no shape of an output."""
    spec, known, stated = operator.spec, 0, 0
    for sample in operator.samples:
        inputs = sample_inputs(operator, sample)
        shapes = spec.output_shapes([tensor.shape for tensor in inputs], sample.attributes)
        dtypes = spec.output_dtypes([dtype_name(tensor) for tensor in inputs], sample.attributes)
        outputs = [
            torch.empty(list(s), dtype=getattr(torch, d), device="meta") for s, d in zip(shapes, dtypes, strict=True)
        ]
        model = onnx_model(operator, sample, inputs, outputs, dynamic_batch=False, body=form == "function")
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        ready = session(model.SerializeToString(), native_library if form == "native" else None)
        decided = spec.decided_by_data(sample.attributes)
        for index, (found, shape) in enumerate(zip(ready.get_outputs(), shapes, strict=True)):
            wanted = [size for axis, size in enumerate(shape) if not (index in decided and axis == 1)]
            given = [size for axis, size in enumerate(found.shape or []) if not (index in decided and axis == 1)]
            assert len(given) in (len(wanted), 0), sample.label
            assert all(one == other for one, other in zip(given, wanted, strict=False) if isinstance(one, int))
            known += sum(isinstance(size, int) for size in given)
            stated += len(wanted)
    assert known >= stated * (1.0 if form == "native" else 0.5)  # an If in a body hides what it decides
