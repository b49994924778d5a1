"""EViT's own code (youweiliang/evit 5ca95a7) against token_select and the host.

The original leaves ties open, so `ties_inside` is compared as a set and `ties_at_cut` by its scores alone.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import (
    FORMS,
    MODEL_TOLERANCE,
    OPERATOR_TOLERANCE,
    assert_close,
    call,
    cases_on_disk,
    compress,
    load_vit,
    read,
    run_exported,
)
from trt_compress.models.compressors.base import num_patches_kept
from trt_compress.models.hosts.timm_vit import CompressedViT
from trt_compress.plugins.operator import recording
from trt_compress.plugins.registry import operators

RATES = {
    "ceil_float": (0.55, 0.35, 0.97),
    "select_even": (0.7, 0.5, 0.9),
    "select_odd": (0.7, 0.33, 1.0),
    "select_fp16_range": (0.6,),
}
TIES = ("ties_inside", "ties_at_cut")
MODELS = ("vit_tiny_fuse", "vit_tiny_nofuse")
CASES = [(case, rate) for case, rates in RATES.items() for rate in rates]


def test_every_case_is_compared() -> None:
    assert cases_on_disk("evit") == {*RATES, *TIES, *MODELS}
    for case, rates in RATES.items():
        assert read("evit", case)[1]["keep_rates"] == list(rates)


def class_attention(arrays: dict[str, Tensor]) -> Tensor:
    return arrays["attn"][:, :, 0].mean(dim=1)


def select(form: str, x: Tensor, score: Tensor, kept: int, fuse: bool) -> tuple[Tensor, ...]:
    attributes = {"num_kept": 1 + kept, "forced": [0], "order": 1, "remainder": int(fuse)}
    return call(form, "TrtcTokenSelect", attributes, x, score)


@pytest.mark.parametrize(("case", "rate"), CASES)
def test_count(case: str, rate: float) -> None:
    arrays, meta = read("evit", case)
    assert num_patches_kept(arrays["x"].shape[1] - 1, rate) == meta["left_tokens"][str(rate)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fuse", [True, False], ids=["fuse", "nofuse"])
@pytest.mark.parametrize(("case", "rate"), CASES)
def test_select(case: str, rate: float, fuse: bool, form: str) -> None:
    arrays, meta = read("evit", case)
    x, kept, key = arrays["x"], meta["left_tokens"][str(rate)], f"r{round(rate * 100):03d}"
    wanted = arrays[f"x_{key}_{'fuse' if fuse else 'nofuse'}"]
    if kept == x.shape[1] - 1:  # nothing happens, and no fused token; a compressor puts no operator there
        assert torch.equal(wanted, x)
        return
    y, index, rest = select(form, x, class_attention(arrays), kept, fuse)
    assert_close(y, wanted, OPERATOR_TOLERANCE)
    assert torch.equal(index[:, 1:] - 1, arrays[f"idx_{key}"])
    assert torch.equal(rest - 1, arrays[f"compl_{key}"])
    assert (index[:, 0] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_select_in_half_precision(form: str) -> None:
    arrays, meta = read("evit", "select_fp16_range")
    score = class_attention(arrays)
    y, index, _ = select(form, arrays["x"].half(), score, meta["left_tokens"]["0.6"], True)
    assert y.dtype == torch.float16
    assert_close(y, arrays["x_r060_fuse"], operators()["TrtcTokenSelect"].spec.tolerance["float16"])
    assert torch.equal(index[:, 1:] - 1, arrays["idx_r060"])


@pytest.mark.parametrize("form", FORMS)
def test_ties_inside_keep_the_same_set(form: str) -> None:
    arrays, meta = read("evit", "ties_inside")
    y, index, rest = select(form, arrays["x"], class_attention(arrays), meta["left_tokens"]["0.5"], True)
    theirs = arrays["idx_r050"].argsort(dim=1)
    assert torch.equal(index[:, 1:] - 1, arrays["idx_r050"].sort(dim=1).values)  # equal scores: the smaller index first
    assert torch.equal(rest - 1, arrays["compl_r050"])
    wanted = arrays["x_r050_fuse"]
    kept = wanted[:, 1:-1].gather(1, theirs[..., None].expand(-1, -1, wanted.shape[2]))
    assert_close(y, torch.cat([wanted[:, :1], kept, wanted[:, -1:]], dim=1), OPERATOR_TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
def test_ties_at_the_cut_keep_the_same_scores_and_the_smaller_indices(form: str) -> None:
    arrays, meta = read("evit", "ties_at_cut")
    score = class_attention(arrays)
    _, index, rest = select(form, arrays["x"], score, meta["left_tokens"]["0.5"], True)
    kept, dropped = score.gather(1, index[:, 1:]), score.gather(1, rest)
    assert torch.equal(kept, score.gather(1, arrays["idx_r050"] + 1).sort(dim=1, descending=True).values)
    for row in range(len(score)):
        cut = kept[row, -1]
        tied = [int(i) for i in index[row, 1:] if score[row, i] == cut]
        assert (dropped[row] == cut).any()
        assert max(tied) < min(int(i) for i in rest[row] if score[row, i] == cut)


# ---- whole models ---------------------------------------------------------------------------------------------------


def vit(case: str) -> tuple[CompressedViT, dict[str, Tensor]]:
    arrays, meta = read("evit", case)
    parameters: dict[str, Any] = dict(meta["model"])
    fuse, rates = parameters.pop("fuse_token"), parameters.pop("keep_rate")
    layers = [layer for layer, rate in enumerate(rates) if rate < 1]
    spec = f"evit:layers={layers},keep_ratio={[rates[layer] for layer in layers]},fuse={str(fuse).lower()}"
    return compress(load_vit(arrays, parameters), spec.replace(" ", "")), arrays


@pytest.mark.parametrize("case", MODELS)
def test_model(case: str) -> None:
    module, arrays = vit(case)
    with torch.no_grad(), recording() as record:
        logits = module(arrays["image"])
    assert_close(logits, arrays["logits"], MODEL_TOLERANCE)
    indices = [tensor for key, tensor in record.items() if key.endswith("/TokenSelect/index")]
    assert len(indices) == 3
    for stage, index in enumerate(indices):
        assert torch.equal(index[:, 1:] - 1, arrays[f"idx_stage{stage}"]), stage


@pytest.mark.parametrize("case", MODELS)
def test_exported_model(case: str) -> None:
    module, arrays = vit(case)
    assert_close(run_exported(module, arrays["image"]), arrays["logits"], MODEL_TOLERANCE)
