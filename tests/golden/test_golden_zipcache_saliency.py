"""Saliency of ZipCache's own code (ThisisBillhe/ZipCache b6932b9) against attention_score.

Only the prefill: probe rows are the last ones and some at random, the sum over them and over the query heads of a KV
head is divided by the number of rows that see a key in full attention.
"""

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FORMS, OPERATOR_TOLERANCE, assert_close, cases_on_disk, read
from tests.golden.golden_scores import as_sets, best, rotated, score

CASES = ("layer_gqa", "layer_short")


def test_every_case_is_compared() -> None:
    assert cases_on_disk("zipcache_saliency") == set(CASES)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_saliency(case: str, form: str) -> None:
    arrays, meta = read("zipcache_saliency", case)
    hidden = arrays["hidden"][:, : meta["prefill"]].float()

    def heads(weight: Tensor) -> Tensor:
        projected = (hidden @ weight.float().T).unflatten(2, (-1, meta["head_dim"])).transpose(1, 2)
        return rotated(projected, meta["rope_theta"])

    q, k = heads(arrays["wq"]), heads(arrays["wk"])
    first, last = map(int, meta["recent_probes"].split(".."))
    rows = torch.cat([torch.arange(first, last + 1), arrays["random_probes"]])
    found = score(form, q[:, :, rows], k, rows, heads="group_sum", normalize="tokens")
    assert_close(found, arrays["saliency"], OPERATOR_TOLERANCE)
    ordinary = best(form, -found, arrays["unimportant_ids"].shape[2])
    assert as_sets(ordinary) == as_sets(arrays["unimportant_ids"])
