"""CompressKV's own code (TUDa-HWAI/CompressKV e8af510) against attention_score.

`gqa_maxpool` has equal scores at the cut: the scores of the kept positions are compared instead of the positions.
"""

import pytest
import torch

from tests.golden.golden_data import FORMS, OPERATOR_TOLERANCE, assert_close, cases_on_disk, read
from tests.golden.golden_scores import best, last_rows, score

LAYERS = {"batch_avgpool": (0, 1), "edge_avgpool": (1, 2), "gqa_avgpool": (0, 1), "gqa_maxpool": (0, 1)}


def test_every_case_is_compared() -> None:
    assert cases_on_disk("compresskv") == set(LAYERS)
    for case, layers in LAYERS.items():
        assert {name for name in read("compresskv", case)[0] if name.startswith("score")} == {
            f"score_{layer}" for layer in layers
        }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("case", "layer"), [(case, layer) for case, layers in LAYERS.items() for layer in layers])
def test_heads_are_pooled_each_before_their_mean(case: str, layer: int, form: str) -> None:
    arrays, meta = read("compresskv", case)
    q, k, window, chosen = arrays["q"], arrays["k"], meta["window_size"], meta["heads"][layer]
    rows, per_group = last_rows(window, q.shape[2]), q.shape[1] // k.shape[1]
    found = score(
        form,
        q[:, chosen][:, :, rows],
        k[:, [head // per_group for head in chosen]],
        rows,
        span=(0, -window),
        heads="mean",
        pool="max" if case == "gqa_maxpool" else "avg",
        head_kernel=meta["kernel_size"],
    )[:, 0]
    wanted, theirs = arrays[f"score_{layer}"], arrays[f"kept_{layer}"]
    assert_close(found, wanted, OPERATOR_TOLERANCE)
    kept = best(form, found, theirs.shape[1])
    if case == "gqa_maxpool":
        assert_close(found.gather(1, kept), wanted.gather(1, theirs), OPERATOR_TOLERANCE)
    else:
        assert torch.equal(kept, theirs)
