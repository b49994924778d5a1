"""TokenSelectDynamic, TokenMix and AttentionScore in ONNX Runtime: sizes around tiles, ties, and what is refused."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from trt_compress.plugins.library import Library
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch

Value = int | float | Sequence[int]
Shapes = Mapping[str, Sequence[int]]
KEPT: dict[str, Value] = {"mode": 0, "threshold": 0.5, "min_kept": 1, "max_kept": 6, "forced": [0], "trim": 0}
SCORED: dict[str, Value] = {
    **{"scale": 0.5, "causal": 1, "softmax": 1, "start": 0, "stop": 0, "rows": 1, "heads": 0, "normalize": 1},
    **{"pool": 0, "head_kernel": [1], "kernel": [3], "counted": 0},
}
NO_LENGTH = torch.zeros(1, dtype=torch.int64)
DYNAMIC, MIX, SCORE = "TrtcTokenSelectDynamic", "TrtcTokenMix", "TrtcAttentionScore"
GOOD: dict[str, tuple[dict[str, Value], Shapes]] = {
    DYNAMIC: (KEPT, {"x": [2, 9, 4], "score": [2, 9]}),
    MIX: ({"normalize": 0}, {"x": [2, 9, 4], "weight": [2, 3, 9]}),
    SCORE: (SCORED, {"q": [2, 4, 3, 8], "k": [2, 2, 9, 8], "position": [3], "bias": [1, 1, 1, 1], "length": [1]}),
}


def session_of(op_type: str, attributes: Mapping[str, Value], library: Library) -> Any:
    """One node whose inputs have any shape; without a body."""
    spec = operators()[op_type].spec

    def value(name: str) -> onnx.ValueInfoProto:
        is_index = name in ("position", "length", "index", "count", "rest", "dest")
        number = TensorProto.INT32 if name == "largest" else TensorProto.INT64 if is_index else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, number, None)

    inputs, outputs = [tensor.name for tensor in spec.inputs], [tensor.name for tensor in spec.outputs]
    node = helper.make_node(op_type, inputs, outputs, domain="trt_compress", **dict(attributes))  # type: ignore[arg-type]
    graph = helper.make_graph([node], "one", [value(n) for n in inputs], [value(n) for n in outputs])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt_compress", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def zeros(shapes: Shapes) -> dict[str, Any]:
    return {n: np.zeros(shape, np.int64 if n in ("position", "length") else np.float32) for n, shape in shapes.items()}


def check(session: Any, op_type: str, attributes: Mapping[str, Value], *inputs: Tensor) -> list[Any]:
    """The session's outputs, after comparing them with torch: whole numbers exactly."""
    spec = operators()[op_type].spec
    found = session.run(None, {t.name: tensor.numpy() for t, tensor in zip(spec.inputs, inputs, strict=True)})
    wanted = call_torch(operators()[op_type], Sample(axes={}, attributes=attributes, reason="here"), inputs)
    for one, two in zip(found, wanted, strict=True):
        assert one.shape == tuple(two.shape) and one.dtype == two.numpy().dtype
        largest = float(two.abs().max()) if two.is_floating_point() and two.numel() else 0
        error = spec.tolerance["float32"] * largest
        np.testing.assert_allclose(one, two.numpy(), rtol=0, atol=error)
    return list(found)


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trim", [0, 1])
def test_the_data_decide_the_length_of_each_run(trim: int, native_library: Library) -> None:
    attributes = {**KEPT, "min_kept": 0, "forced": [-1], "trim": trim}
    session = session_of(DYNAMIC, attributes, native_library)
    for number in (3, 0, 6, 9, 1):
        score = (torch.arange(9) < torch.tensor([[number], [number // 2]])).float()
        found = check(session, DYNAMIC, attributes, torch.randn(2, 9, 4), score)
        largest = min(number, 6)
        assert found[0].shape[1] == (largest if trim else 6) and int(found[4]) == largest


@pytest.mark.parametrize("mode", [0, 1])
def test_ties_and_bounds(mode: int, native_library: Library) -> None:
    """Few different scores, whose sums are exact: the numbers must be torch's."""
    generator = torch.Generator().manual_seed(mode)
    for tokens, levels, (least, most), forced in itertools.product(
        (1, 5, 64), (1, 2, 5), ((0, 1), (1, 1), (0, 5), (4, 5), (0, 64), (30, 40)), ([-1], [0])
    ):
        if most > tokens:
            continue
        for threshold in (0.0, 0.25, 0.5, 0.75):
            limits: dict[str, Value] = {"threshold": threshold, "min_kept": least, "max_kept": most, "forced": forced}
            attributes: dict[str, Value] = {**KEPT, "mode": mode, **limits}
            score = torch.randint(0, levels, (3, tokens), generator=generator) / 4
            x = torch.randn(3, tokens, 2, generator=generator)
            check(session_of(DYNAMIC, attributes, native_library), DYNAMIC, attributes, x, score)


@pytest.mark.parametrize("normalize", [0, 1])
def test_mixing_around_tiles(normalize: int, native_library: Library) -> None:
    session = session_of(MIX, {"normalize": normalize}, native_library)
    for rows, channels, tokens in itertools.product(
        (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 25), (1, 15, 16, 31, 32, 33, 64), (1, 17, 40)
    ):
        x, weight = torch.randn(2, tokens, channels), torch.randn(1, rows, tokens)
        check(session, MIX, {"normalize": normalize}, x, weight)


@pytest.mark.parametrize("softmax", [0, 1, 2])
def test_scoring_around_tiles(softmax: int, native_library: Library) -> None:
    attributes = {**SCORED, "softmax": softmax, "causal": int(softmax > 0), "normalize": 0}
    session = session_of(SCORE, attributes, native_library)
    counted = session_of(SCORE, {**attributes, "counted": 1}, native_library)
    for rows, keys, width in itertools.product((1, 2, 3, 4, 5, 8, 9, 13), (1, 4, 5, 31, 32, 33, 70), (1, 16, 70)):
        q, k = torch.randn(1, 2, rows, width), torch.randn(1, 1, keys, width)
        position = torch.linspace(-1, keys, rows).long()
        bias = torch.randn(1, 2, rows, keys)
        check(session, SCORE, attributes, q, k, position, bias, NO_LENGTH)
        length = torch.tensor([keys // 2 + 1])
        behind = torch.full_like(k[:, :, : keys - int(length)], torch.nan)
        used = torch.cat([k[:, :, : int(length)], behind], dim=2)
        check(counted, SCORE, {**attributes, "counted": 1}, q, used, position[None], bias, length)


@pytest.mark.parametrize("position", [-(2**63), -1, 0, 8, 9, 2**63 - 1])
def test_positions_outside_of_the_keys(position: int, native_library: Library) -> None:
    session = session_of(SCORE, SCORED, native_library)
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 9, 8)
    check(session, SCORE, SCORED, q, k, torch.tensor([position, 3, position]), torch.zeros(1, 1, 1, 1), NO_LENGTH)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op_type", GOOD)
def test_the_calls_below_are_wrong_in_one_thing_only(op_type: str, native_library: Library) -> None:
    attributes, shapes = GOOD[op_type]
    session_of(op_type, attributes, native_library).run(None, zeros(shapes))


@pytest.mark.parametrize(
    ("op_type", "attributes", "others"),
    [
        (DYNAMIC, KEPT, {"score": [0, 2**24]}),
        ("TrtcTokenSelect", {"num_kept": 3, "forced": [-1], "order": 0, "remainder": 0}, {"score": [0, 2**24]}),
        (
            "TrtcTokenMerge",
            {"num_merged": 3, "num_protected": 1, "order": 0},
            {"metric": [0, 2**24, 2], "size": [0, 2**24, 1]},
        ),
    ],
)
def test_more_tokens_than_float32_can_count(
    op_type: str, attributes: dict[str, Value], others: Shapes, native_library: Library
) -> None:
    message = "N=16777216 tokens are too many; at most 16777215 are allowed."
    shapes = {"x": [0, 2**24, 2], **others}
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011  ONNX Runtime's exceptions have no common base
        session_of(op_type, attributes, native_library).run(None, zeros(shapes))
    assert f"{op_type}: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("op_type", "changed", "message"),
    [
        (DYNAMIC, {"score": [2, 8]}, "score has shape [2, 8]; it must be [2, 9] with axes BN."),
        (DYNAMIC, {"max_kept": 10}, "max_kept=10 is out of range; N=9 tokens allow 1..9."),
        (DYNAMIC, {"min_kept": 7}, "min_kept=7 is out of range; max_kept=6 allows 0..6."),
        (DYNAMIC, {"forced": [2, 9]}, "the forced position 9 is out of range; positions are 0..8."),
        (DYNAMIC, {"max_kept": 1, "forced": [3, 4]}, "max_kept=1 is less than the 2 forced tokens."),
        (DYNAMIC, {"threshold": float("inf")}, "threshold=inf is not a finite number; give one."),
        (DYNAMIC, {"threshold": float("nan")}, "threshold is nan; allowed is a finite number."),
        (DYNAMIC, {"mode": 1, "threshold": 1.0}, "is no share of the mass; give one in 0 <= threshold < 1."),
        (DYNAMIC, {"mode": 1, "threshold": -0.5}, "is no share of the mass; give one in 0 <= threshold < 1."),
        (DYNAMIC, {"mode": 2}, "mode is 2; allowed is 0 to 1."),
        (DYNAMIC, {"max_kept": 0}, "max_kept is 0; allowed is at least 1."),
        (DYNAMIC, {"trim": 2}, "trim is 2; allowed is 0 to 1."),
        (MIX, {"x": [9, 4]}, "x has shape [9, 4]; it must have 3 axes."),
        (MIX, {"weight": [2, 3, 8]}, "weight has shape [2, 3, 8]; it must be [B, M, 9] with axes BMN."),
        (MIX, {"weight": [3, 3, 9]}, "weight has shape [3, 3, 9]; its first axis must be 1, or B=2 as that of x."),
        (MIX, {"normalize": 2}, "normalize is 2; allowed is 0 to 1."),
        (SCORE, {"k": [2, 2, 9, 7]}, "k has shape [2, 2, 9, 7]; it must be [2, G, N, 8] with axes BGND."),
        (SCORE, {"k": [2, 3, 9, 8]}, "q has H=4 heads and k has G=3; H must be a multiple of G."),
        (SCORE, {"k": [2, 0, 9, 8]}, "q has H=4 heads and k has G=0; H must be a multiple of G."),
        (
            SCORE,
            {"q": [2, 0, 3, 8]},
            "q has shape [2, 0, 3, 8]; it must have at least one head, one row and one channel.",
        ),
        (
            SCORE,
            {"q": [2, 4, 0, 8]},
            "q has shape [2, 4, 0, 8]; it must have at least one head, one row and one channel.",
        ),
        (
            SCORE,
            {"q": [2, 4, 3, 0]},
            "q has shape [2, 4, 3, 0]; it must have at least one head, one row and one channel.",
        ),
        (SCORE, {"position": [4]}, "position has shape [4]; it must be [3] with axes R."),
        (SCORE, {"position": [2, 4]}, "position has shape [2, 4]; it must be [B, 3] with axes BR."),
        (SCORE, {"length": [3]}, "length has shape [3]; it must be [2] with axes B."),
        (SCORE, {"bias": [1, 2, 1, 9]}, "bias has shape [1, 2, 1, 9]; axis H must be 1 or 4 to broadcast to BHRN."),
        (SCORE, {"start": 9}, "start=9 and stop=0 hold no span of N=9 keys; give 0 <= start < stop <= N, or a stop"),
        (SCORE, {"stop": 10}, "start=0 and stop=10 hold no span of N=9 keys"),
        (SCORE, {"start": 3, "stop": -6}, "start=3 and stop=-6 hold no span of N=9 keys"),
        (SCORE, {"softmax": 0}, "causal=1 needs a softmax, since an unseen key has no logit; give causal=0."),
        (SCORE, {"rows": 0}, "normalize=1 divides a sum, and rows=0; give rows=1."),
        (SCORE, {"kernel": [4]}, "kernel=[4] is not one odd number; give one, 1 for no pooling."),
        (SCORE, {"head_kernel": [3, 3]}, "head_kernel=[3, 3] is not one odd number; give one, 1 for no pooling."),
        (SCORE, {"kernel": [0]}, "kernel is 0; allowed is at least 1."),
        (SCORE, {"scale": float("nan")}, "scale is nan; allowed is a finite number."),
        (SCORE, {"scale": float("-inf")}, "scale=-inf is not a finite number; give one."),
        (SCORE, {"heads": 7}, "heads is 7; allowed is 0 to 6."),
    ],
)
def test_refusals(op_type: str, changed: dict[str, Any], message: str, native_library: Library) -> None:
    attributes, shapes = GOOD[op_type]
    given = {**attributes, **{name: value for name, value in changed.items() if name in attributes}}
    sizes = {**shapes, **{name: value for name, value in changed.items() if name in shapes}}
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011  ONNX Runtime's exceptions have no common base
        session_of(op_type, given, native_library).run(None, zeros(sizes))
    said = str(caught.value)
    assert f"{op_type}: " in said and message in said
