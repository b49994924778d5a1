"""PyramidKV's selection (Zefan-Cai/KVCache-Factory c97f9d7) against attention_score; budgets are the compressor's."""

import pytest
import torch

from tests.golden.golden_data import FORMS, OPERATOR_TOLERANCE, assert_close, cases_on_disk, read
from tests.golden.golden_scores import best, last_rows, score

CASES = ("pyramid", "middle", "clamped")


def test_every_case_is_compared() -> None:
    beside = {"short", "budget_table"}  # by tests/models/cache
    assert cases_on_disk("pyramidkv") == set(CASES) | beside


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("heads", ["group_mean", "none"])
@pytest.mark.parametrize("case", CASES)
def test_scores_and_selection_of_every_layer(case: str, heads: str, form: str) -> None:
    arrays, meta = read("pyramidkv", case)
    q, k, window = arrays["q"], arrays["k"], meta["window_size"]
    rows = last_rows(window, q.shape[2])
    found = score(form, q[:, :, rows], k, rows, span=(0, -window), heads=heads, kernel=meta["kernel_size"])
    suffix = "_qhead" if heads == "none" else ""
    assert_close(found, arrays[f"pooled{suffix}"], OPERATOR_TOLERANCE)
    for layer in range(meta["layers"]):
        kept = arrays[f"kept{suffix}_{layer}"]
        assert torch.equal(best(form, found, kept.shape[2]), kept), layer
