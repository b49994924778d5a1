"""Regret: 0 for the operator's own decision, tiny on the other side of a near tie, large for a wrong one."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch, sample_inputs

MERGE, SELECT = operators()["TrtcTokenMerge"], operators()["TrtcTokenSelect"]
DECIDING = [
    pytest.param(operator, sample, id=f"{operator.spec.torch_name}[{sample.label}]")
    for operator in operators().values()
    if operator.regret
    for sample in operator.samples
]
INF = torch.inf


def regret(operator: Operator, attributes: Mapping[str, Any], inputs: Any, outputs: Any) -> list[float]:
    assert operator.regret is not None
    named = [
        {spec.name: tensor for spec, tensor in zip(specs, tensors, strict=True)}
        for specs, tensors in ((operator.spec.inputs, inputs), (operator.spec.outputs, outputs))
    ]
    found: list[float] = operator.regret(named[0], attributes, named[1]).tolist()
    return found


@pytest.mark.parametrize(("operator", "sample"), DECIDING)
def test_own_decision_is_free_of_regret(operator: Operator, sample: Sample) -> None:
    inputs = sample_inputs(operator, sample)
    assert regret(operator, sample.attributes, inputs, call_torch(operator, sample, inputs)) == [0.0] * len(inputs[0])


# ---- merging: A = tokens 0, 2, 4 along angles of 0, 50 and 90 degrees, B = tokens 1, 3, 5 at 10, 52 and 85


def tokens_at(*degrees: float) -> tuple[Tensor, Tensor, Tensor]:
    angle = torch.tensor(degrees).deg2rad()
    metric = torch.stack([angle.cos(), angle.sin()], dim=1)[None]
    return metric, metric, torch.ones(1, len(degrees), 1)


ANGLES = (0.0, 10.0, 50.0, 52.0, 90.0, 85.0)


def merge_regret(dest: list[int], *, num_merged: int = 1, order: int = 0, angles: tuple[float, ...] = ANGLES) -> float:
    inputs = tokens_at(*angles)
    attributes = {"num_merged": num_merged, "num_protected": 0, "order": order}
    (found,) = regret(MERGE, attributes, inputs, (inputs[0], inputs[2], torch.tensor([dest])))
    return found


def cos(degrees: float) -> float:
    return float(torch.tensor(degrees).deg2rad().cos())


def test_merge_right_decision() -> None:
    assert merge_regret([0, 2, 3, 3, 1, 4]) == 0  # token 2 joins token 3; left are 0 and 4


def test_merge_wrong_partner_costs_the_lost_similarity() -> None:
    assert merge_regret([0, 2, 4, 3, 1, 4]) == pytest.approx(cos(2) - cos(35), abs=1e-6)


def test_merge_of_a_less_similar_token_costs_the_difference() -> None:
    assert merge_regret([0, 2, 1, 3, 4, 4]) == pytest.approx(cos(2) - cos(5), abs=1e-6)


def test_merge_near_tie_costs_next_to_nothing() -> None:
    near = (0.0, 10.0, 50.0, 55.0, 90.0, 85.0001)  # 2 to 3 is 5 degrees, 4 to 5 is a hair less
    assert merge_regret([0, 2, 1, 3, 4, 4], angles=near) == 0
    assert 0 <= merge_regret([0, 2, 3, 3, 1, 4], angles=near) < 1e-6


@pytest.mark.parametrize(
    ("dest", "why"),
    [
        ([0, 2, 3, 3, 4, 4], "two merges instead of one"),
        ([0, 2, 1, 3, 5, 4], "a row that does not exist"),
        ([0, 3, 3, 2, 1, 4], "tokens of odd position out of order"),
        ([0, 2, 3, 3, 0, 4], "two unmerged tokens in one row"),
    ],
)
def test_merge_against_the_contract_is_no_tie(dest: list[int], why: str) -> None:
    assert merge_regret(dest) == INF, why


def test_merge_left_tokens_in_the_wrong_order_are_no_tie() -> None:
    assert merge_regret([1, 2, 3, 3, 0, 4]) >= 1
    assert merge_regret([1, 2, 3, 3, 0, 4], order=1) == 0  # 4 has the better partner, so by similarity it comes first
    assert merge_regret([0, 2, 3, 3, 1, 4], order=1) == pytest.approx(cos(5) - cos(10), abs=1e-6)


def test_merge_regret_is_told_for_each_item() -> None:
    inputs = [torch.cat([tensor, tensor]) for tensor in tokens_at(*ANGLES)]
    dest = torch.tensor([[0, 2, 3, 3, 1, 4], [0, 2, 4, 3, 1, 4]])
    attributes = {"num_merged": 1, "num_protected": 0, "order": 0}
    first, second = regret(MERGE, attributes, inputs, (inputs[0], inputs[2], dest))
    assert first == 0 and second > 0.1


# ---- selecting two of four, relative to the largest score

SCORE = torch.tensor([[0.5, 4.0, 1.0, 0.99]])


def select_regret(index: list[int], rest: list[int], *, order: int = 0, forced: tuple[int, ...] = (-1,)) -> float:
    attributes = {"num_kept": len(index), "forced": list(forced), "order": order, "remainder": 0}
    x = torch.zeros(1, 4, 1)
    decided = (x, torch.tensor([index]), torch.tensor([rest]))
    (found,) = regret(SELECT, attributes, (x, SCORE), decided)
    return found


def test_select_wrong_token_costs_its_share_of_the_largest_score() -> None:
    assert select_regret([1, 2], [0, 3]) == 0
    assert select_regret([1, 3], [0, 2]) == pytest.approx(0.01 / 4)
    assert select_regret([0, 2], [1, 3]) == pytest.approx((4.0 - 0.5) / 4)


def test_select_wrong_order_costs_too() -> None:
    assert select_regret([1, 2, 3], [0], order=1) == 0
    assert select_regret([1, 3, 2], [0], order=1) == pytest.approx(0.01 / 4)
    assert select_regret([1, 3, 2], [0], order=0) == INF


@pytest.mark.parametrize(
    ("index", "rest", "why"),
    [
        ([1, 1], [0, 2], "one token twice"),
        ([1, 9], [0, 3], "a position that does not exist"),
        ([1, 2], [3, 0], "the rest out of order"),
        ([1, 2], [0, 2], "a token both kept and dropped"),
    ],
)
def test_select_against_the_contract_is_no_tie(index: list[int], rest: list[int], why: str) -> None:
    assert select_regret(index, rest) == INF, why


def test_select_must_keep_forced_tokens_and_put_them_first() -> None:
    assert select_regret([0, 1], [2, 3], forced=(0,), order=1) == 0
    assert select_regret([1, 2], [0, 3], forced=(0,)) == INF
    assert select_regret([1, 0], [2, 3], forced=(0,), order=1) == INF
