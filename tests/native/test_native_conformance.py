"""The native CPU operators in ONNX Runtime against the reference, on every sample, and that it was they that ran."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.plugins.test_conformance import Case, all_cases, check_form
from trt_compress.plugins.library import Library, sources_folder
from trt_compress.plugins.registry import operators
from trt_compress.plugins.testing.forms import OPSET, forms, session
from trt_compress.runtime.backends.ort import operator_paths

NATIVE = {path.parent.name for path in sources_folder().glob("*/ort_op.cpp")}
CASES = [
    Case(operator=case.operator, sample=case.sample, form="native", dtype=case.dtype)
    for case in all_cases()
    if case.form == "torch" and case.operator.spec.torch_name in NATIVE
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_native_conformance(case: Case, native_library: Library) -> None:
    check_form(case, forms(native_library)["native"])


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
    model = case.model(OPSET).SerializeToString()
    first, *others = [session(model, native_library, threads=threads).run(None, feeds) for threads in (1, 2, 5)]
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert one.tobytes() == two.tobytes()
