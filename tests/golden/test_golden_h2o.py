"""Prefill of H2O as KVCache-Factory (Zefan-Cai/KVCache-Factory c97f9d7) does it, against attention_score."""

import pytest
import torch

from tests.golden.golden_data import FORMS, OPERATOR_TOLERANCE, assert_close, cases_on_disk, read
from tests.golden.golden_scores import best, last_rows, score

HEADS = {"mean": "group_mean", "max": "group_max", "qhead": "none"}


def test_every_case_is_compared() -> None:
    beside = {"decode_cache", "decode_cache_growing"}  # by tests/models/cache
    assert cases_on_disk("h2o") == {"prefill"} | beside


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HEADS)
def test_every_row_is_a_probe(name: str, form: str) -> None:
    arrays, meta = read("h2o", "prefill")
    q, k = arrays["q"], arrays["k"]
    rows = last_rows(q.shape[2], q.shape[2])
    found = score(form, q, k, rows, span=(0, -meta["window_size"]), heads=HEADS[name])
    assert_close(found, arrays[f"{name}_score"], OPERATOR_TOLERANCE)
    assert torch.equal(best(form, found, arrays[f"{name}_kept"].shape[2]), arrays[f"{name}_kept"])
