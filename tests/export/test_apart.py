"""Errors are counted a piece at a time, and are those of the whole."""

import math

import pytest
import torch
from torch import Tensor, nn

from trt_compress.export.apart import _PIECE, apart


def whole(expected: Tensor, got: Tensor) -> tuple[float, float, float]:
    """The same at once, in float64."""
    one, other = expected.double().flatten(), got.double().flatten()
    error = (one - other).abs().max()
    cosine = nn.functional.cosine_similarity(one, other, dim=0)
    return float(error), float(error / one.abs().max().clamp_min(1e-6)), float(cosine)


@pytest.mark.parametrize("count", [1, _PIECE - 1, _PIECE, _PIECE + 1, 3 * _PIECE + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_errors_are_those_of_the_whole(count: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(count)
    expected = (torch.randn(count, generator=random) * 40).abs().to(dtype)
    got = (expected.float() + torch.randn(count, generator=random).abs()).to(dtype)
    found = apart(expected, got)
    assert (found.absolute, found.relative, found.cosine) == pytest.approx(whole(expected, got), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("place", [0, _PIECE - 1, _PIECE, 2 * _PIECE + 4])
@pytest.mark.parametrize("value", [50.0, -50.0, math.nan, math.inf, -math.inf])
def test_one_wrong_number_is_found_wherever_it_is(place: int, value: float) -> None:
    expected = torch.ones(2 * _PIECE + 5)
    got = expected.clone()
    got[place] = value
    found = apart(expected, got)
    if math.isfinite(value):
        assert found.absolute == found.relative == abs(value - 1)
    else:
        assert found.absolute == found.relative == math.inf


def test_tensors_may_be_views() -> None:
    expected = torch.randn(300, 400, generator=torch.Generator().manual_seed(0))
    got = expected.clone()
    got[7, 11] += 3
    assert apart(expected.T[5:, 2:], got.T[5:, 2:]).absolute == pytest.approx(3)


def test_nothing_and_zeros_are_equal() -> None:
    for shape in ((0,), (3, 0), (4,)):
        found = apart(torch.zeros(shape), torch.zeros(shape))
        assert (found.absolute, found.relative) == (0, 0)
    assert apart(torch.zeros(4), torch.full((4,), 1e-9)).relative == pytest.approx(1e-3)
