"""What is peculiar to threshold selection, mixing, attention scores and codebooks."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.export.lower import add_bodies, inline_bodies
from trt_compress.export.trace import TraceOptions, onnx_from_module
from trt_compress.plugins.attention_score.op import attention_score
from trt_compress.plugins.codebook_decode.op import codebook_decode
from trt_compress.plugins.codebook_encode.op import (
    codebook_encode,
    fsq_codebook,
    sign_codebook,
    table_codebook,
)
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN, Sample
from trt_compress.plugins.testing import call_torch, onnx_model, sample_inputs
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_select_dynamic.op import token_select_dynamic

MIX = ("TrtcTokenSelectDynamic", "TrtcTokenMix", "TrtcAttentionScore", "TrtcCodebookEncode", "TrtcCodebookDecode")
BRANCHING = [
    pytest.param(operators()[op_type], sample, id=f"{op_type}[{sample.label}]")
    for op_type in MIX
    for sample in operators()[op_type].samples[:20]
]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def one_node(op_type: str, attributes: dict[str, Any], *inputs: Tensor) -> onnx.ModelProto:
    operator = operators()[op_type]
    sample = Sample(axes={}, attributes=attributes, reason="peculiar")
    return onnx_model(operator, sample, inputs, call_torch(operator, sample, inputs))


# ---- bodies with branches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operator", "sample"), BRANCHING)
def test_inlining_chooses_the_branches_that_attributes_decide(operator: Operator, sample: Sample) -> None:
    inputs = sample_inputs(operator, sample)
    model = onnx_model(operator, sample, inputs, call_torch(operator, sample, inputs))
    inlined = inline_bodies(model)
    onnx.checker.check_model(inlined, full_check=True)
    kinds = [node.op_type for node in inlined.graph.node]
    assert "If" not in kinds
    assert ("Loop" in kinds) == (operator.spec.name == "CodebookEncode" and sample.attributes["kind"] == 0)
    inner = [node for node in inlined.graph.node for a in node.attribute for node in a.g.node]
    assert all(node.name.startswith(f"site/{operator.spec.name}/") for node in (*inlined.graph.node, *inner))
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(operator.spec.inputs, inputs, strict=True)}
    for first, second in zip(session(model).run(None, feeds), session(inlined).run(None, feeds), strict=True):
        np.testing.assert_array_equal(first, second)


# ---- TokenSelectDynamic ---------------------------------------------------------------------------------------------

X = torch.arange(1.0, 7.0)[None, :, None]
SCORE = torch.tensor([[0.1, 0.5, 0.2, 0.0, 0.15, 0.05]])


def kept(score: Tensor = SCORE, **attributes: Any) -> list[int]:
    _, index, valid, count, largest = token_select_dynamic(X, score, **{"max_kept": 6, **attributes})
    positions: list[int] = index[0, : int(count[0])].tolist()
    assert (index[0, int(count[0]) :] == -1).all()
    assert valid[0].tolist() == [1.0] * len(positions) + [0.0] * (index.shape[1] - len(positions))
    assert int(largest) == len(positions)
    return positions


def test_a_score_equal_to_the_threshold_is_kept() -> None:
    assert kept(threshold=0.2) == [1, 2]
    assert kept(threshold=0.20001) == [1]


def test_a_threshold_that_float32_does_not_hold_is_the_float32_beside_it() -> None:
    assert 0.1 != float(np.float32(0.1))
    assert kept(threshold=0.1) == [0, 1, 2, 4]


def test_mass_keeps_the_smallest_number_that_holds_it() -> None:
    assert kept(mode="mass", threshold=0.5) == [1]
    assert kept(mode="mass", threshold=0.51) == [1, 2]
    assert kept(mode="mass", threshold=0.0) == []
    assert kept(mode="mass", threshold=0.99) == [0, 1, 2, 4, 5]


def test_forced_tokens_do_not_count_toward_the_mass() -> None:
    assert kept(mode="mass", threshold=0.5, forced=[1]) == [1, 2, 4]  # 0.2 and 0.15 of 0.5 beside it


def test_counts_stay_within_their_bounds() -> None:
    assert kept(threshold=9.0, min_kept=2) == [1, 2]
    assert kept(threshold=0.0, max_kept=2) == [1, 2]
    assert kept(threshold=0.0, max_kept=2, forced=[3]) == [1, 3]


@pytest.mark.parametrize("trim", [False, True])
def test_padding_is_zero_and_trimming_takes_it_away(trim: bool) -> None:
    score = torch.cat([SCORE, torch.zeros_like(SCORE)])
    y, index, valid, count, largest = token_select_dynamic(
        X.repeat(2, 1, 1), score, threshold=0.2, max_kept=4, trim=trim
    )
    width = 2 if trim else 4
    assert y.shape == (2, width, 1) and index.shape == valid.shape == (2, width)
    assert y[..., 0].tolist() == [[2.0, 3.0] + [0.0] * (width - 2), [0.0] * width]
    assert (count.tolist(), int(largest)) == ([2, 0], 2)


def test_opcheck_takes_a_size_that_depends_on_the_data() -> None:
    operator = operators()["TrtcTokenSelectDynamic"]
    sample = next(sample for sample in operator.samples if sample.attributes["trim"] == 1)
    attributes = [sample.attributes[attribute.name] for attribute in operator.spec.attributes]
    torch.library.opcheck(
        torch.ops.trt_compress.token_select_dynamic.default, (*sample_inputs(operator, sample), *attributes)
    )


def dynamic_regret(index: list[int], score: Tensor = SCORE, width: int = 6, **attributes: Any) -> float:
    operator = operators()["TrtcTokenSelectDynamic"]
    assert operator.regret
    count = len(index)
    outputs = {
        "y": torch.zeros(1, width, 1),
        "index": torch.tensor([index + [-1] * (width - count)]),
        "valid": (torch.arange(width) < count).float()[None],
        "count": torch.tensor([count]),
        "largest": torch.tensor(count, dtype=torch.int32),
    }
    given = {"mode": 0, "threshold": 0.15, "min_kept": 0, "max_kept": 6, "forced": [-1], "trim": 0, **attributes}
    (regret,) = operator.regret({"x": X, "score": score}, given, outputs).tolist()
    return float(regret)


def test_regret_of_a_threshold_is_what_the_score_lacks_or_exceeds() -> None:
    assert dynamic_regret([1, 2, 4]) == 0
    assert dynamic_regret([1, 2]) == pytest.approx(0.0, abs=1e-6)  # 0.15 equals the threshold: a near tie
    assert dynamic_regret([1]) == pytest.approx((0.2 - 0.15) / 0.5, abs=1e-6)
    assert dynamic_regret([0, 1, 2, 4]) == pytest.approx((0.15 - 0.1) / 0.5, abs=1e-6)
    assert dynamic_regret([0, 1, 2]) == pytest.approx((0.15 - 0.1) / 0.5, abs=1e-6)


def test_regret_of_a_mass_is_the_share_that_lacks_or_was_not_needed() -> None:
    assert dynamic_regret([1, 2], mode=1, threshold=0.6) == 0
    assert dynamic_regret([1], mode=1, threshold=0.6) == pytest.approx(0.1, abs=1e-6)
    assert dynamic_regret([1, 2, 4], mode=1, threshold=0.6) == pytest.approx(0.1, abs=1e-6)
    assert dynamic_regret([1, 2], mode=1, threshold=0.5) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("index", "attributes"),
    [
        ([2, 1, 4], {}),
        ([1, 1, 2], {}),
        ([1, 9], {}),
        ([1, 2, 4], {"forced": [0]}),
        ([1, 2, 4], {"min_kept": 4}),
        ([1, 2, 4], {"max_kept": 2}),
        ([1, 2, 4], {"trim": 1}),
    ],
)
def test_regret_of_what_the_contract_forbids_is_infinite(index: list[int], attributes: dict[str, Any]) -> None:
    assert dynamic_regret(index, **attributes) == math.inf


# ---- TokenMix -------------------------------------------------------------------------------------------------------


def test_one_matrix_may_come_without_a_batch_axis() -> None:
    x, weight = torch.randn(3, 5, 2), torch.randn(4, 5)
    assert torch.equal(token_mix(x, weight), token_mix(x, weight[None]))
    assert torch.equal(token_mix(x, weight), token_mix(x, weight.expand(3, 4, 5)))


def test_half_precision_is_summed_in_float32() -> None:
    x = torch.full((1, 4096, 1), 1.0).half()
    assert token_mix(x, torch.full((1, 4096), 1.0).half()).item() == 4096


# ---- AttentionScore -------------------------------------------------------------------------------------------------


def test_scores_over_all_heads_come_without_a_head_axis() -> None:
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 9, 8)
    assert attention_score(q, k).shape == (2, 9)
    assert attention_score(q, k, heads="group_max").shape == (2, 2, 9)
    assert attention_score(q, k, heads="none", start=1, stop=-2).shape == (2, 4, 6)


def test_the_scale_is_that_of_the_head_size_unless_given() -> None:
    q, k = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 9, 16)
    assert torch.equal(attention_score(q, k), attention_score(q, k, scale=0.25))


def test_scores_of_half_precision_are_float32() -> None:
    assert attention_score(torch.randn(1, 2, 3, 16).half(), torch.randn(1, 2, 9, 16).half()).dtype == torch.float32


def test_weights_sum_to_one_and_a_blind_row_gives_nothing() -> None:
    q, k = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 9, 16)
    score = attention_score(q, k, torch.tensor([-1, 4, 8]), causal=True, rows="sum")
    assert score.sum().item() == pytest.approx(2, abs=1e-5)
    assert torch.isfinite(score).all()


def test_a_bias_of_fewer_axes_is_broadcast() -> None:
    q, k, bias = torch.randn(2, 2, 3, 16), torch.randn(2, 2, 9, 16), torch.randn(9)
    assert torch.equal(attention_score(q, k, bias=bias), attention_score(q, k, bias=bias.expand(2, 2, 3, 9)))


# ---- CodebookEncode, CodebookDecode ---------------------------------------------------------------------------------

BOOKS: dict[str, tuple[Tensor, int, int]] = {  # codebook, channels of a sign code, number of codes
    "vector": (torch.randn(2, 5, 3), 1, 5),
    "table": (torch.randn(1, 5, 3), 1, 5),
    "fsq": (fsq_codebook([4, 3, 5]), 1, 60),
    "sign": (sign_codebook(6), 3, 8),
}
CODES = {"vector": 2, "table": 3, "fsq": 1, "sign": 2}


@pytest.mark.parametrize("kind", BOOKS)
@pytest.mark.parametrize("form", ["torch", "onnx", "inlined"])
@pytest.mark.parametrize("wrong", ["negative", "beyond"])
def test_a_number_that_is_no_code_is_an_error(kind: str, form: str, wrong: str) -> None:
    codebook, group, number = BOOKS[kind]
    code = torch.zeros(1, 4, CODES[kind], dtype=torch.int64)
    attributes: dict[str, Any] = {"kind": list(BOOKS).index(kind), "group": group}
    model = one_node("TrtcCodebookDecode", attributes, code, codebook)
    code[0, 2, -1] = -1 if wrong == "negative" else number
    if form == "torch":
        with pytest.raises(ConfigError, match=rf"code holds {int(code[0, 2, -1])}, .* the codes 0\.\.{number - 1};"):
            codebook_decode(code, codebook, kind=kind, group=group)
    else:
        run = session(inline_bodies(model) if form == "inlined" else model).run
        with pytest.raises(Exception, match="out of data bounds|out of bounds"):
            run(None, {"code": code.numpy(), "codebook": codebook.numpy()})
        run(None, {"code": code.clamp(0, number - 1).numpy(), "codebook": codebook.numpy()})


@pytest.mark.parametrize("kind", ["fsq", "sign"])
def test_every_code_comes_back_from_what_it_stands_for(kind: str) -> None:
    codebook, group, number = BOOKS[kind]
    code = torch.arange(number)[:, None, None].repeat(1, 1, CODES[kind])
    values = codebook_decode(code, codebook, kind=kind, group=group)
    if kind == "fsq":  # values are scaled to -1..1, and the encoder bounds with tanh before it rounds
        levels = codebook[0, 0]
        down = torch.where(levels % 2 == 0, 0.5, 0.0)
        reach = (levels - 1) * 1.001 / 2
        values = torch.atanh((values * (levels // 2) + down) / reach) - torch.atanh(down / reach)
    assert torch.equal(codebook_encode(values, codebook, kind=kind, group=group), code)


def test_a_table_may_be_the_same_for_all_channels() -> None:
    table = table_codebook(torch.tensor([-1.0, 0.0, 2.0]), 4)
    code = codebook_encode(torch.tensor([[[-3.0, -0.4, 1.5, 1.0]]]), table, kind="table")
    assert code.tolist() == [[[0, 1, 2, 1]]]  # 1.0 is halfway
    assert codebook_decode(code, table, kind="table").tolist() == [[[-1.0, 0.0, 2.0, 0.0]]]


def test_residual_stages_code_what_is_left_over() -> None:
    book = torch.tensor([[[4.0], [-4.0]], [[1.0], [-1.0]], [[0.25], [-0.25]]])
    code = codebook_encode(torch.tensor([[[3.2], [-4.9]]]), book)
    assert code.tolist() == [[[0, 1, 0], [1, 1, 0]]]
    assert codebook_decode(code, book).flatten().tolist() == [3.25, -4.75]


def encode_regret(kind: str, x: Tensor, codebook: Tensor, code: Tensor, group: int = 1) -> float:
    operator = operators()["TrtcCodebookEncode"]
    assert operator.regret
    attributes = {"kind": list(BOOKS).index(kind), "group": group}
    return float(operator.regret({"x": x, "codebook": codebook}, attributes, {"code": code}))


def test_regret_of_a_code_is_how_much_farther_it_is() -> None:
    book, x = torch.tensor([[[0.0], [1.0], [4.0]]]), torch.tensor([[[1.5], [2.0]]])
    assert encode_regret("vector", x, book, torch.tensor([[[1], [1]]])) == 0
    worse = (2.0**2 - 1.0**2) / 2  # half the squared distances of 2.0 to codes 0 and 1, over the largest square
    assert encode_regret("vector", x, book, torch.tensor([[[1], [0]]])) == pytest.approx(worse / 4)
    assert encode_regret("table", x, book, torch.tensor([[[1], [0]]])) == pytest.approx((2.0 - 1.0) / 2)
    assert encode_regret("vector", x, book, torch.tensor([[[1], [3]]])) == math.inf
    signs = torch.tensor([[[0.5, -2.0]]])
    assert encode_regret("sign", signs, sign_codebook(2), torch.tensor([[[1]]]), 2) == 0
    assert encode_regret("sign", signs, sign_codebook(2), torch.tensor([[[0]]]), 2) == pytest.approx(0.25)
    assert encode_regret("sign", signs, sign_codebook(2), torch.tensor([[[4]]]), 2) == math.inf
    zero = torch.zeros(1, 1, 2)
    assert encode_regret("fsq", zero, fsq_codebook([5, 5]), torch.tensor([[[12]]])) == 0
    assert encode_regret("fsq", zero, fsq_codebook([5, 5]), torch.tensor([[[13]]])) == pytest.approx(1.0)
    assert encode_regret("fsq", zero, fsq_codebook([5, 5]), torch.tensor([[[25]]])) == math.inf


# ---- in an exported graph -------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """One of each operator, each fed by the one before."""

    weight: Tensor
    book: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(4, 6, generator=generator))
        self.register_buffer("book", torch.randn(2, 16, 8, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, (2, 4)).transpose(1, 2)
        rows = torch.arange(10, 13)
        score = attention_score(heads[:, :, 10:], heads, rows, causal=True, stop=-3, rows="sum", kernel=3)
        y, *_ = token_select_dynamic(x[:, :10], score, mode="mass", threshold=0.5, min_kept=1, max_kept=6, forced=[0])
        mixed = token_mix(y, self.weight, normalize="softmax")
        code = codebook_encode(mixed, self.book)
        return codebook_decode(code, self.book) + x[:, :4]


@pytest.mark.parametrize("form", [add_bodies, inline_bodies])
def test_all_of_them_in_one_exported_graph(form: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    module = Chain().eval()
    options = TraceOptions(input_name="x", output_name="y", max_batch=4, opset=20)
    model = onnx_from_module(module, (13, 8), options)
    assert sorted(node.op_type for node in model.graph.node if node.domain == DOMAIN) == sorted(MIX)
    x = torch.randn(3, 13, 8, generator=torch.Generator().manual_seed(1))
    (found,) = session(form(model)).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), module(x), rtol=1e-5, atol=1e-5)


class Scores(nn.Module):
    def forward(self, q: Tensor, k: Tensor, position: Tensor) -> Tensor:
        return attention_score(q, k, position, causal=True, stop=-4, rows="sum", heads="group_mean", kernel=5)


def test_scores_of_prompts_of_any_length() -> None:
    n = torch.export.Dim("n", min=16, max=4096)
    example = (torch.randn(1, 4, 4, 8), torch.randn(1, 2, 24, 8), torch.arange(20, 24))
    program = torch.onnx.export(
        Scores().eval(), example, dynamo=True, dynamic_shapes=(None, {2: n}, None), opset_version=20, verbose=False
    )
    assert program is not None
    run = session(add_bodies(program.model_proto))
    for length in (16, 31):
        inputs = (torch.randn(1, 4, 4, 8), torch.randn(1, 2, length, 8), torch.arange(length - 4, length))
        feeds = {value.name: tensor.numpy() for value, tensor in zip(run.get_inputs(), inputs, strict=True)}
        found = torch.from_numpy(run.run(None, feeds)[0])
        assert found.shape == (1, 2, length - 4)
        torch.testing.assert_close(found, Scores()(*inputs), rtol=1e-5, atol=1e-6)
