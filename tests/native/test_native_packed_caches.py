"""KVQuantize, KVDequantize and KVAttention in ONNX Runtime: hard calls, against the reference."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from tests.native.kv_cases import (
    Call,
    attention,
    attention_calls,
    attention_problem,
    dequantize_call,
    exact_problem,
    index_of,
    plain_calls,
    poison_others,
    quantize_calls,
    shared_dequantize_calls,
)
from trt_compress.plugins.library import Library
from trt_compress.plugins.registry import operators
from trt_compress.plugins.testing.forms import session
from trt_compress.plugins.testing.reference import reference

NUMBERS = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.uint8: TensorProto.UINT8,
}


def session_for(call: Call, library: Library, *, threads: int = 2) -> Any:
    """One node whose inputs have any sizes; bfloat16 goes through float32, as numpy has none."""
    spec = operators()[call.op_type].spec
    nodes, inputs, outputs = [], [], []
    names: dict[str, str] = {}
    for described, tensor in zip(spec.inputs, call.inputs, strict=True):
        is_narrow = tensor.dtype == torch.bfloat16
        names[described.name] = f"{described.name}_narrow" if is_narrow else described.name
        if is_narrow:
            nodes.append(helper.make_node("Cast", [described.name], [names[described.name]], to=TensorProto.BFLOAT16))
        number = TensorProto.FLOAT if is_narrow else NUMBERS[tensor.dtype]
        inputs.append(helper.make_tensor_value_info(described.name, number, [None] * tensor.ndim))
    found = [output.name for output in spec.outputs]
    nodes.append(
        helper.make_node(
            spec.op_type,
            [*names.values()],
            [f"{name}_found" for name in found],
            domain="trt_compress",
            **call.attributes,  # type: ignore[arg-type]
        )
    )
    for name in found:
        is_code = name == "code"
        nodes.append(
            helper.make_node("Cast", [f"{name}_found"], [name], to=TensorProto.UINT8 if is_code else TensorProto.FLOAT)
        )
        outputs.append(helper.make_tensor_value_info(name, TensorProto.UINT8 if is_code else TensorProto.FLOAT, None))
    graph = helper.make_graph(nodes, "one", inputs, outputs)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt_compress", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return session(model.SerializeToString(), library, threads=threads)


def run(call: Call, library: Library, types: Sequence[torch.dtype], *, threads: int = 2) -> list[Tensor]:
    spec = operators()[call.op_type].spec
    feeds = {
        described.name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for described, tensor in zip(spec.inputs, call.inputs, strict=True)
    }
    found = session_for(call, library, threads=threads).run(None, feeds)
    return [torch.from_numpy(np.asarray(one)).to(dtype) for one, dtype in zip(found, types, strict=True)]


@pytest.mark.parametrize("calls", [attention_calls, plain_calls], ids=["codes", "plain"])
def test_attention(calls: Callable[[], list[Call]], native_library: Library) -> None:
    wrong = {}
    for call in calls():
        y, lse = run(call, native_library, (call.inputs[0].dtype, torch.float32))
        problem = attention_problem(call, y, lse)
        if problem:
            wrong[call.name] = problem
    assert wrong == {}


def test_a_wrong_result_is_seen() -> None:
    call = attention("one", length=300, d=64, h=4)
    y, lse = (torch.from_numpy(array) for array in _right(call))
    assert attention_problem(call, y.float(), lse.float()) == ""
    assert "y is wrong" in attention_problem(call, y.float() * 1.001, lse.float())
    assert "lse is wrong" in attention_problem(call, y.float(), lse.float() + 1e-4)
    assert "NaN" in attention_problem(call, y.float(), lse.float() - torch.inf)


def _right(call: Call) -> Sequence[Any]:
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in call.inputs]
    found: Sequence[Any] = reference(call.op_type, tuple(tensor.numpy() for tensor in wide), call.attributes).outputs
    return found


def test_quantization_there_and_back(native_library: Library) -> None:
    wrong = {}
    for index, call in enumerate(quantize_calls()):
        scales = torch.float16 if call.attributes["scale_type"] == 10 else torch.float32
        packed = run(call, native_library, (torch.uint8, scales, scales))
        wrong[call.name] = exact_problem(call, packed)
        to, dtype = ((1, torch.float32), (10, torch.float16), (16, torch.bfloat16))[index % 3]
        back = dequantize_call(call, packed, to)
        wrong[back.name] = exact_problem(back, run(back, native_library, (dtype,)))
    assert {name: problem for name, problem in wrong.items() if problem} == {}


def test_scales_that_heads_or_items_share(native_library: Library) -> None:
    found = {call.name: exact_problem(call, run(call, native_library, (torch.float32,)))
             for call in shared_dequantize_calls()}  # fmt: skip
    assert {name: problem for name, problem in found.items() if problem} == {}


@pytest.mark.parametrize("sides", [{}, {"ranks": (2, 1), "block": 8}, {"ranks": (1, 1), "turned": 12}])
def test_what_lies_behind_the_length_is_not_read(sides: dict[str, Any], native_library: Library) -> None:
    """Scales of slots that were never written may be anything, NaN included."""
    used = (40, 23, 0)
    call = attention(
        "unused slots", b=3, h=6, g=2, t=2, k=(4, 1, 4), v=(4, 1, 0), used=used, causal=1,
        **sides,
    )  # fmt: skip
    wanted = run(call, native_library, (torch.float32, torch.float32))
    for at in (2, 3, 5, 6, *([10, 12] if sides else [])):
        for item, first in enumerate(used):
            call.inputs[at][item, :, first:] = torch.nan
    found = run(call, native_library, (torch.float32, torch.float32))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("plain", "sides"),
    [
        ("", {}),
        ("float16", {}),
        ("", {"ranks": (2, 1), "block": 8}),
        ("", {"ranks": (1, 1), "turned": 12, "table": (2, 2)}),
    ],
)
@pytest.mark.parametrize("t", [2, 40])
def test_slots_that_are_not_chosen_are_not_read(
    plain: str, sides: dict[str, Any], t: int, native_library: Library
) -> None:
    call = attention(
        "chosen",
        b=2,
        h=6,
        g=2,
        t=t,
        k=(4, 1, 4),
        v=(4, 1, 0),
        used=(40, 23),
        chosen=(2, 2, 9),
        causal=1,
        plain=plain,
        **sides,
    )
    wanted = run(call, native_library, (torch.float32, torch.float32))
    poison_others(call)
    assert attention_problem(call, *wanted) == ""
    found = run(call, native_library, (torch.float32, torch.float32))
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))
    # an index in another order gives the very same
    index_of(call)[:] = index_of(call).flip(2)
    found = run(call, native_library, (torch.float32, torch.float32))
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same_bits(threads: int, native_library: Library) -> None:
    call = attention("threads", b=2, h=10, g=2, t=3, length=2100, d=20, k=(4, 0, 21), causal=1, used=(2100, 1501))
    one = run(call, native_library, (torch.float32, torch.float32), threads=2)
    two = run(call, native_library, (torch.float32, torch.float32), threads=threads)
    assert attention_problem(call, *one) == ""
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("sizes", "attributes", "message"),
    [
        ({"d": 0}, {}, "q has D=0 channels; give at least one."),
        ({}, {"window": 2**31}, "window is 2147483648; allowed is 0 to 2147483647."),
        ({"h": 3, "g": 2}, {}, "q has H=3 heads and the cache G=2 KV heads; H must be a multiple of G."),
        ({"bias": (1, 1, 1, 3)}, {}, "bias has shape [1, 1, 1, 3]; it must be [1, 1 | 2, 1, 1 | 40]"),
        ({}, {"k_bits": 3}, "k_bits=3 is not known; give one of 8, 4, 2."),
        ({"plain": "float16", "h": 3, "g": 2}, {}, "q has H=3 heads and the cache G=2 KV heads; H must be a multiple"),
        ({}, {"layout": 1, "sinks": 40}, "sinks=40 is out of range; a ring of L=40 slots allows 0..39."),
        ({}, {"softcap": float("inf")}, "softcap=inf is not allowed; give a positive number, or 0 for no cap."),
        ({"g": 2, "b": 2, "used": ((1, 2, 3), (4, 5, 6))}, {}, "length has shape [2, 3]; it must be [2] with axes B."),
        ({"b": 2, "chosen": (3, 1, 4)}, {}, "index has shape [3, 1, 4]; it must be [1 | 2, 1, 4] with axes B, G, K."),
        ({}, {"k_group": 7}, "k_group=7 does not divide L=40; give 0 (all of it) or a divisor."),
        ({}, {"block": 7}, "block=7 does not divide L=40; give 0 (all of it) or a divisor."),
        ({}, {"k_rank": 2}, "k_factor has shape [1, 1, 1, 1]; it must be [1, 1, 40, 2] with axes BGLR."),
        ({"ranks": (0, 2)}, {"v_rank": 0}, "v_factor has shape [1, 1, 40, 2]; it must be [1, 1, 1, 1] with axes BGLR."),
        ({"ranks": (0, 2)}, {"block": 8}, "v_basis has shape [1, 1, 1, 32]; it must be [1, 1, 5, 32] with axes BGPW."),
        ({"turned": 8}, {"turned": 7}, "rope turns 7 channels; it must be an even number of them, at most D=16."),
        ({"turned": 8}, {"turned": 18}, "rope turns 18 channels; it must be an even number of them, at most D=16."),
        ({"turned": 8}, {"turned": 6}, "rope has shape [1, 1, 40, 8]; it must be [1, 1, 40, 6] with axes BGLD."),
    ],
)
def test_refusals(sizes: dict[str, Any], attributes: dict[str, int], message: str, native_library: Library) -> None:
    call = attention("wrong", **sizes)
    call.attributes.update(attributes)
    with pytest.raises(Exception) as caught:
        run(call, native_library, (torch.float32, torch.float32))
    assert message in str(caught.value)
