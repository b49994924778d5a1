"""SPEC and the contract in C++ say the same, and every native form is of an operator that there is."""

from typing import Any

import pytest

from trt_compress.plugins.library import Library, sources_folder
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import AttributeSpec, OpSpec, TensorSpec

SPECS = {operator.spec.torch_name: operator.spec for operator in operators().values()}
FORMS = ("ort_op.cpp", "cuda_op.cpp", "tensorrt_plugin.cpp", "kernel.cu", "kernel.cuh", "kernel_cpu.h", "contract.cpp")


@pytest.fixture(scope="module")
def held(native_library: Library) -> dict[str, dict[str, Any]]:
    return {operator["op_type"]: operator for operator in native_library.info["operators"]}


def test_native_forms_are_of_operators_that_there_are() -> None:
    folders = {path.parent.name for form in FORMS for path in sources_folder().glob(f"*/{form}")} - {"common"}
    assert folders - set(SPECS) == set()


def test_a_folder_has_all_files_of_a_form() -> None:
    for needs in (("ort_op.cpp", "kernel_cpu.h"), ("cuda_op.cpp", "kernel.cu"), ("tensorrt_plugin.cpp", "cuda_op.cpp")):
        for path in sources_folder().glob(f"*/{needs[0]}"):
            if path.parent.name == "common":
                continue
            assert [name for name in (*needs, "contract.cpp") if not (path.parent / name).is_file()] == []


def test_the_library_holds_every_native_operator(held: dict[str, dict[str, Any]]) -> None:
    native = {SPECS[path.parent.name].op_type for path in sources_folder().glob("*/ort_op.cpp")}
    assert set(held) == native and native


@pytest.mark.parametrize("name", sorted(path.parent.name for path in sources_folder().glob("*/ort_op.cpp")))
def test_spec_and_contract_agree(name: str, held: dict[str, dict[str, Any]]) -> None:
    spec = SPECS[name]
    contract = held[spec.op_type]
    assert (contract["name"], contract["version"]) == (spec.name, spec.version)
    assert [tensor_facts(tensor) for tensor in spec.inputs] == [stated(tensor) for tensor in contract["inputs"]]
    assert [tensor_facts(tensor) for tensor in spec.outputs] == [stated(tensor) for tensor in contract["outputs"]]
    assert [attribute_facts(attribute) for attribute in spec.attributes] == contract["attributes"]
    assert named_types(contract) <= {attribute.name for attribute in spec.attributes}


def tensor_facts(tensor: TensorSpec) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "rank": len(tensor.axes),
        "dtypes": [] if tensor.same_dtype_as else list(tensor.dtypes),
        "same_dtype_as": tensor.same_dtype_as,
        "alias_of": tensor.aliases,
    }


def stated(tensor: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tensor.items() if name != "dtype_attribute"}


def attribute_facts(attribute: AttributeSpec) -> dict[str, Any]:
    return {
        "name": attribute.name,
        "kind": attribute.kind,
        "minimum": attribute.minimum,
        "maximum": attribute.maximum,
    }


def named_types(contract: dict[str, Any]) -> set[str]:
    return {tensor["dtype_attribute"] for tensor in contract["outputs"]} - {None}


def test_the_facts_compared_are_the_facts_there_are() -> None:
    assert set(OpSpec.__dataclass_fields__) >= {"name", "version", "inputs", "outputs", "attributes"}
    assert set(AttributeSpec.__dataclass_fields__) == {"name", "kind", "minimum", "maximum", "doc"}
    assert set(TensorSpec.__dataclass_fields__) == {"name", "axes", "dtypes", "same_dtype_as", "aliases", "doc"}
