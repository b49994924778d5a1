"""SnapKV's own code (FasterDecoding/SnapKV e216ddc) and that of KVCache-Factory (c97f9d7) against attention_score.

Max pooling makes plateaus of equal scores; where the cut falls inside one, the scores of the kept positions are
compared instead of the positions.
"""

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FORMS, OPERATOR_TOLERANCE, assert_close, cases_on_disk, read
from tests.golden.golden_scores import best, last_rows, score
from trt_compress.models.compressors.sites import Probe, Tap
from trt_compress.models.layers.attention import attention_taps

HOW = {
    "official_avgpool": ("none", "avg"),
    "official_maxpool": ("none", "max"),
    "gqa_mean": ("group_mean", "avg"),
    "gqa_max": ("group_max", "max"),
    "ties": ("none", "avg"),
}
TIED = ("official_maxpool", "gqa_max", "ties")
EDGES = {"equal": (4, 12), "one_more": (4, 12), "minimal": (7, 1)}  # window, tokens selected


def test_every_case_is_compared() -> None:
    assert cases_on_disk("snapkv") == {*HOW, "edges"}


def pooled(form: str, q: Tensor, k: Tensor, window: int, kernel: int, heads: str, pool: str) -> Tensor:
    rows = last_rows(window, q.shape[2])
    return score(form, q[:, :, rows], k, rows, span=(0, -window), heads=heads, pool=pool, kernel=kernel)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", HOW)
def test_scores_and_selection(case: str, form: str) -> None:
    arrays, meta = read("snapkv", case)
    heads, pool = HOW[case]
    found = pooled(form, arrays["q"], arrays["k"], meta["window_size"], meta["kernel_size"], heads, pool)
    assert_close(found, arrays["pooled"], OPERATOR_TOLERANCE)
    kept, theirs = best(form, found, arrays["kept"].shape[-1]), arrays["kept"]
    if case in TIED:
        assert_close(found.gather(2, kept), arrays["pooled"].gather(2, theirs), OPERATOR_TOLERANCE)
    else:
        assert torch.equal(kept, theirs)


@pytest.mark.parametrize("case", HOW)
def test_a_tap_of_the_window_is_the_score(case: str) -> None:
    arrays, meta = read("snapkv", case)
    heads, pool = HOW[case]
    window = meta["window_size"]
    probe = Probe(start=-window, stop_key=-window, rows="sum", heads=heads, pool=pool, kernel=meta["kernel_size"])  # type: ignore[arg-type]
    tap = Tap(kind="probe_scores", layer=0, probe=probe)
    found = attention_taps([tap.asked], arrays["q"], arrays["k"], arrays["k"], causal=True)
    assert_close(found[tap.asked], arrays["pooled"], OPERATOR_TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", EDGES)
def test_prompts_about_as_long_as_the_budget(case: str, form: str) -> None:
    arrays, meta = read("snapkv", "edges")
    window, selected = EDGES[case]
    found = pooled(form, arrays[f"{case}_q"], arrays[f"{case}_k"], window, meta["kernel_size"], "none", "avg")
    assert found.shape[2] >= selected
    assert torch.equal(best(form, found, selected), arrays[f"{case}_kept"])
