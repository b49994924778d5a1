"""LLaVolta's own code (Beckschen/LLaVolta 31ec151) against pool_spans and pool_positions."""

import pytest
import torch

from tests.golden.golden_data import OPERATOR_TOLERANCE, assert_close, cases_on_disk, read
from trt_compress.models.compressors.avg_pool import pool_positions, pool_spans

CASES = ("stride2", "stride2_late_positions", "stride4_two_images", "stride8")


def test_every_case_is_compared() -> None:
    assert cases_on_disk("llavolta") == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_hidden_states(case: str) -> None:
    arrays, meta = read("llavolta", case)
    found = pool_spans(arrays["hidden"], meta["image_start"], length=meta["visual_length"], stride=meta["stride"])
    assert_close(found, arrays["hidden_out"], OPERATOR_TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_positions_in_the_original_half_precision(case: str) -> None:
    arrays, meta = read("llavolta", case)
    starts, sizes = meta["image_start"], {"length": meta["visual_length"], "stride": meta["stride"]}
    assert torch.equal(
        pool_positions(arrays["position_ids"], starts, **sizes, half_precision=True), arrays["position_out"]
    )


@pytest.mark.parametrize("case", CASES)
def test_exact_positions_differ_only_where_half_precision_cannot_hold_them(case: str) -> None:
    """float16 has every whole number up to 2048, and halves only below 1024."""
    arrays, meta = read("llavolta", case)
    starts, sizes = meta["image_start"], {"length": meta["visual_length"], "stride": meta["stride"]}
    exact, theirs = pool_positions(arrays["position_ids"], starts, **sizes), arrays["position_out"]
    differs = exact != theirs
    assert (exact[differs] >= 1024).all()
    assert bool(differs.any()) == (case == "stride2_late_positions")
    assert (exact.diff(dim=1) > 0).all()
