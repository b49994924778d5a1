"""Attention scores of vision-language methods, by their own code, against attention_score and what follows from them.

FastV (pkunlp-icler/FastV d165972), PyramidDrop (Cooperx521/PyramidDrop 6444f30), FEATHER (markendo/FEATHER c2a09b2) and
LLaVA-PruMerge (42Shawn/LLaVA-PruMerge 097c041).
"""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.golden.golden_data import (
    FORMS,
    MODEL_TOLERANCE,
    OPERATOR_TOLERANCE,
    assert_close,
    call,
    cases_on_disk,
    read,
)
from tests.golden.golden_scores import Llama, best, last_rows, score

CASES = {
    "fastv": ("inplace", "inplace_keep_few"),
    "pyramiddrop": ("rank_single", "rank_fp16_range"),
    "feather": ("no_rope", "rope_two_cuts"),
    "prumerge": ("adaptive_small", "adaptive_576", "fixed_small"),
}
each_form = pytest.mark.parametrize("form", FORMS)


def each_case(method: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", CASES[method])


def test_every_case_is_compared() -> None:
    for method, cases in CASES.items():
        found = cases_on_disk(method)
        assert set(cases) == found or method == "prumerge" and set(cases) < found  # test_golden_towers has the others


def last_row(form: str, q: Tensor, k: Tensor, span: tuple[int, int], softmax: str = "all") -> Tensor:
    rows = last_rows(q.shape[2], q.shape[2])
    return score(form, q, k, rows, span=span, rows="last", heads="mean", softmax=softmax)[0, 0]


@each_form
@each_case("fastv")
def test_fastv(case: str, form: str) -> None:
    arrays, meta = read("fastv", case)
    llama, hidden = Llama(arrays, meta["model"]), arrays["inputs_embeds"]
    for layer in range(meta["agg_layer"] - 1):
        hidden = llama.layer(hidden, f"{layer}.")
    q, k = llama.q_and_k(hidden, f"{meta['agg_layer'] - 1}.")
    image = (meta["sys_length"], meta["sys_length"] + meta["image_token_length"])
    found = last_row(form, q, k, image)
    assert_close(found, arrays["score"], MODEL_TOLERANCE)
    kept = best(form, found[None], meta["attention_rank_kept"])[0]
    assert torch.equal(kept.sort().values, arrays["kept_image_index"])


@each_form
@each_case("pyramiddrop")
def test_pyramiddrop(case: str, form: str) -> None:
    arrays, meta = read("pyramiddrop", case)
    q, k = Llama(arrays, meta["layer"], "w.").q_and_k(arrays["features"], "")
    first, number = meta["image_token_posi"][0], meta["image_tokens_now"][0]
    row = meta["prompt_len"][0] + number - 1  # the last token of the prompt
    found = last_row(form, q[:, :, : row + 1], k, (first, first + number))
    assert_close(found, arrays["score_0"], MODEL_TOLERANCE)
    kept = best(form, found[None], meta["keep"][0])[0].sort().values
    assert torch.equal(kept + first, arrays["top_rank_index_0"])


@each_form
@each_case("feather")
def test_feather(case: str, form: str) -> None:
    """Softmax over the image alone; without rotary positions where the case says so."""
    arrays, meta = read("feather", case)
    llama, hidden = Llama(arrays, meta["model"]), arrays["inputs_embeds"]
    ranking = meta["fastv_k"][0] - 1
    for layer in range(ranking):
        hidden = llama.layer(hidden, f"{layer}.")
    q, k = llama.q_and_k(hidden, f"{ranking}.", rope=case != "no_rope")
    image = (meta["image_offset"], meta["image_offset"] + meta["grid"] ** 2)
    found = last_row(form, q, k, image, "span")
    assert_close(found, arrays["score_0"], MODEL_TOLERANCE)
    theirs = arrays[f"kept_before_layer_{ranking + 1}"]
    assert torch.equal(best(form, found[None], len(theirs))[0].sort().values, theirs)


@each_form
@each_case("prumerge")
def test_prumerge(case: str, form: str) -> None:
    arrays, meta = read("prumerge", case)
    q, k, x = arrays["q"][:, None], arrays["k"][:, None], arrays["hidden"][:, 1:].contiguous()
    attention = score(form, q[:, :, :1], k, torch.zeros(1, dtype=torch.int64), causal=False, span=(1, 0))[:, 0]
    assert_close(attention, arrays["cls_attn"], OPERATOR_TOLERANCE)
    n, number = attention.shape[1], arrays["topk_idx"].shape[1]
    if meta["mode"] == "adaptive":  # outliers: above the third quartile by more than 1.5 times the middle half
        low, high = attention.quantile(torch.tensor([0.25, 0.75]))
        attributes = {"mode": 0, "threshold": 0.0, "min_kept": 0, "max_kept": n, "forced": [-1], "trim": 1}
        above = attention - (high + 1.5 * (high - low))
        _, index, valid, count, largest = call(form, "TrtcTokenSelectDynamic", attributes, x, above)
        assert (count.tolist(), int(largest), bool(valid.all())) == ([meta["iqr_outlier_count"]], number, True)
        assert torch.equal(index, arrays["topk_idx"].sort(dim=1).values)
    kept = best(form, attention, number)
    assert torch.equal(kept, arrays["topk_idx"])

    # kept tokens with their 32 nearest by key, each by its attention, and one sum of the rest: a single matrix
    unit = normalize(arrays["k"][0, 1:], dim=1)
    likeness = unit[kept[0]] @ unit.T
    likeness[torch.arange(number), kept[0]] = -torch.inf
    near = torch.zeros(number, n).scatter_(1, likeness.topk(32, dim=1).indices, 1.0)
    rest = torch.ones(1, n).index_fill(1, kept[0], 0.0)
    itself = torch.zeros(number, n).scatter_(1, kept[0][:, None], 1.0)
    weight = torch.cat([itself + near * attention, rest * attention])
    (y,) = call(form, "TrtcTokenMix", {"normalize": 0}, x, weight[None])
    assert_close(y, arrays["out"], OPERATOR_TOLERANCE)
