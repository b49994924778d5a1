"""The CPU kernels in ONNX Runtime on calls that a kernel may get wrong; torch and the bodies are held to the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from tests.native.adversarial import DYNAMIC, MERGE, SELECT, Array, Call, decided_calls, many_tokens, scores
from trt_compress.plugins.library import Library
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch
from trt_compress.plugins.testing.reference import reference

Run = Callable[[Call], list[Array]]


def session_of(call: Call, library: Library | None) -> Any:
    operator = operators()[call.op_type]
    spec = operator.spec

    def value(name: str, array: Array) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)

    inputs, outputs = [tensor.name for tensor in spec.inputs], [tensor.name for tensor in spec.outputs]
    node = helper.make_node(call.op_type, inputs, outputs, domain="trt_compress", **dict(call.attributes))  # type: ignore[arg-type]
    types = {t.name: array.dtype for t, array in zip(spec.inputs, call.inputs, strict=True)}
    out = [value(t.name, np.empty(0, types[t.same_dtype_as] if t.same_dtype_as else t.dtypes[0])) for t in spec.outputs]
    graph = helper.make_graph([node], "one", [value(*pair) for pair in zip(inputs, call.inputs, strict=True)], out)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt_compress", 1)]
    functions = [] if library else [operator.function_proto(20, [call.attributes])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(library.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_of(call: Call, library: Library | None) -> list[Array]:
    names = [tensor.name for tensor in operators()[call.op_type].spec.inputs]
    results: list[Array] = session_of(call, library).run(None, dict(zip(names, call.inputs, strict=True)))
    return results


def torch_of(call: Call, *, strided: bool = False) -> list[Array]:
    tensors = [torch.from_numpy(array) for array in call.inputs]
    if strided:  # every second value of a larger tensor, and the axes the other way round in memory
        tensors = [tensor.repeat_interleave(2, dim=-1)[..., ::2] for tensor in tensors]
        tensors = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in tensors]
    sample = Sample(axes={}, attributes=call.attributes, reason="here")
    return [tensor.numpy() for tensor in call_torch(operators()[call.op_type], sample, tensors)]


def check(call: Call, found: list[Array]) -> None:
    wanted = reference(call.op_type, call.inputs, call.attributes).outputs
    for one, two in zip(found, wanted, strict=True):
        assert one.shape == two.shape, call.name
        if one.dtype.kind == "f":
            largest = np.abs(two[np.isfinite(two)]).max(initial=1e-30)
            tolerance = operators()[call.op_type].spec.tolerance[one.dtype.name]
            np.testing.assert_allclose(one, two, rtol=0, atol=tolerance * largest, err_msg=call.name)
        else:
            np.testing.assert_array_equal(one, two, err_msg=call.name)


@pytest.mark.parametrize("op_type", sorted({call.op_type for call in decided_calls()}))
@pytest.mark.parametrize("form", ["native", "torch", "strided", "body"])
def test_what_the_contract_decides(form: str, op_type: str, native_library: Library) -> None:
    calls = [call for call in decided_calls() if call.op_type == op_type]
    for call in calls[:: 3 if form == "body" else 1]:
        if form == "body" and 0 in [size for array in call.inputs for size in array.shape]:
            continue
        if form in ("native", "body"):
            check(call, run_of(call, native_library if form == "native" else None))
        else:
            check(call, torch_of(call, strided=form == "strided"))


@pytest.mark.parametrize("call", many_tokens(), ids=lambda call: call.name)
def test_4097_tokens(call: Call, native_library: Library) -> None:
    check(call, run_of(call, native_library))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["some", "all"])
def test_features_that_are_no_numbers_still_merge_lawfully(bad: float, where: str, native_library: Library) -> None:
    generator = np.random.default_rng(0)
    for tokens, merged, protected in ((2, 1, 0), (33, 16, 1), (64, 10, 5)):
        metric = generator.standard_normal((2, tokens, 4)).astype(np.float32)
        metric[generator.random(metric.shape) < (0.2 if where == "some" else 2)] = bad
        x = generator.standard_normal((2, tokens, 3)).astype(np.float32)
        attributes = {"num_merged": merged, "num_protected": protected, "order": 0}
        inputs = (x, metric, np.ones((2, tokens, 1), np.float32))
        call = Call(name="", op_type=MERGE, attributes=attributes, inputs=inputs)
        y, size, dest = run_of(call, native_library)
        for item in range(2):
            counts = np.bincount(dest[item], minlength=tokens - merged)
            assert counts.shape == (tokens - merged,) and counts.min() >= 1
            np.testing.assert_array_equal(size[item, :, 0], counts)
            means = np.stack([x[item, dest[item] == row].mean(axis=0) for row in range(tokens - merged)])
            error = operators()[MERGE].spec.tolerance["float32"] * np.abs(means[np.isfinite(means)]).max(initial=0)
            np.testing.assert_allclose(y[item], means, rtol=0, atol=error)


@pytest.mark.parametrize("kind", ["nan", "infinite"])
def test_masses_that_are_no_numbers_keep_a_lawful_number(kind: str, native_library: Library) -> None:
    x = np.arange(66.0, dtype=np.float32).reshape(2, 33, 1)
    for least, most, forced in ((0, 33, [-1]), (3, 5, [31, 32]), (0, 2, [32])):
        attributes = {
            **{"mode": 1, "threshold": 0.5, "min_kept": least, "max_kept": most, "forced": forced},
            "trim": 0,
        }
        call = Call(name="", op_type=DYNAMIC, attributes=attributes, inputs=(x, scores(kind, 33)))
        for y, index, valid, count, largest in (run_of(call, native_library), torch_of(call)):
            assert largest == count.max() and (count <= most).all() and (count >= least).all()
            for item in range(2):
                kept = index[item, : count[item]]
                assert (np.diff(kept) > 0).all() and {p for p in forced if p >= 0} <= set(kept.tolist())
                assert valid[item].sum() == count[item] and (index[item, count[item] :] == -1).all()
                np.testing.assert_array_equal(y[item, : count[item], 0], x[item, kept, 0])


@pytest.mark.parametrize(("kind", "book"), [(0, (2, 7, 4)), (1, (1, 7, 4)), (2, (1, 1, 4)), (3, (1, 1, 4))])
def test_tokens_that_are_no_numbers_still_get_codes(kind: int, book: tuple[int, ...], native_library: Library) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 40, 4)).astype(np.float32)
    x[0, ::3, 1], x[0, 1::3, 2], x[1] = np.nan, -np.inf, np.inf
    codebook = np.full(book, 5, np.float32) if kind == 2 else generator.standard_normal(book).astype(np.float32)
    attributes = {"kind": kind, "group": 4 if kind == 3 else 1}
    call = Call(name="", op_type="TrtcCodebookEncode", attributes=attributes, inputs=(x, codebook))
    (code,) = run_of(call, native_library)
    assert code.min() >= 0 and code.max() < {0: 7, 1: 7, 2: 5**4, 3: 16}[kind]
    back = Call(name="", op_type="TrtcCodebookDecode", attributes=attributes, inputs=(code, codebook))
    assert np.isfinite(run_of(back, native_library)[0]).all()


@pytest.mark.parametrize(
    ("op_type", "attributes", "shapes"),
    [
        (SELECT, {"num_kept": 3, "forced": [1], "order": 0, "remainder": 1}, [(0, 5, 4), (0, 5)]),
        (SELECT, {"num_kept": 3, "forced": [1], "order": 0, "remainder": 1}, [(2, 5, 0), (2, 5)]),
        (SELECT, {"num_kept": 0, "forced": [-1], "order": 0, "remainder": 0}, [(2, 0, 4), (2, 0)]),
        (MERGE, {"num_merged": 2, "num_protected": 1, "order": 0}, [(0, 5, 4), (0, 5, 3), (0, 5, 1)]),
        (MERGE, {"num_merged": 2, "num_protected": 1, "order": 0}, [(2, 5, 0), (2, 5, 3), (2, 5, 1)]),
        (MERGE, {"num_merged": 2, "num_protected": 1, "order": 0}, [(2, 5, 4), (2, 5, 0), (2, 5, 1)]),
        ("TrtcCodebookEncode", {"kind": 0, "group": 1}, [(0, 5, 4), (2, 3, 4)]),
        ("TrtcCodebookEncode", {"kind": 1, "group": 1}, [(2, 0, 4), (1, 3, 4)]),
        ("TrtcCodebookEncode", {"kind": 3, "group": 2}, [(2, 5, 0), (1, 1, 0)]),
    ],
)
def test_sizes_of_zero(
    op_type: str, attributes: dict[str, Any], shapes: list[tuple[int, ...]], native_library: Library
) -> None:
    inputs = tuple(np.ones(shape, np.float32) for shape in shapes)
    call = Call(name="", op_type=op_type, attributes=attributes, inputs=inputs)
    for one, two in zip(run_of(call, native_library), torch_of(call), strict=True):
        assert one.shape == two.shape and one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
