"""DiffRate against vectors of the authors' code: one block, and models from image to logits."""

from typing import Any

import pytest
import torch

from tests.golden.golden_data import (
    MODEL_TOLERANCE,
    OPERATOR_TOLERANCE,
    assert_close,
    cases_on_disk,
    compress,
    load_vit,
    read,
    run_exported,
)
from tests.models.arrivals import a_host, arrival_at
from trt_compress.errors import TrtCompressError
from trt_compress.methods import parse_spec
from trt_compress.methods.vision import DiffRateConfig
from trt_compress.models.compressors.diffrate import DiffRate
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import place_one

BLOCKS = ("block_fp16_range", "block_ones", "block_sizes", "block_ties")


def test_every_case_is_compared() -> None:
    assert cases_on_disk("diffrate") == {*BLOCKS, "vit_tiny", "merge_func"}  # the last is a part of the block's


@pytest.mark.parametrize("case", BLOCKS)
def test_a_block(case: str) -> None:
    arrays, meta = read("diffrate", case)
    x, sizes = arrays["x"], arrays["size"]
    taps = Taps(class_attention=arrays["attn"][:, :, 0].mean(dim=1))
    for pruned, merged in zip(meta["prune_kept"], meta["merge_kept"], strict=True):
        host = a_host(1, x.shape[1], 1)
        step = DiffRate(DiffRateConfig(prune_kept=(pruned,), merge_kept=(merged,)), arrival_at(host))
        found = step(Tokens(x=x, size=sizes), taps)
        assert_close(found.x, arrays[f"x_p{pruned}_m{merged}"], OPERATOR_TOLERANCE)
        wanted = arrays[f"size_p{pruned}_m{merged}"]
        assert_close(found.sizes, wanted.clamp_min(2.0**-20), OPERATOR_TOLERANCE)


def test_a_model() -> None:
    arrays, meta = read("diffrate", "vit_tiny")
    vit = load_vit(arrays, meta["model"])
    for run in meta["runs"]:
        lists = {name: "[" + ",".join(map(str, run[name])) + "]" for name in ("prune_kept", "merge_kept")}
        module = compress(vit, f"diffrate:prune_kept={lists['prune_kept']},merge_kept={lists['merge_kept']}")
        with torch.no_grad():
            assert_close(module(arrays["image"]), arrays[f"logits_{run['name']}"], MODEL_TOLERANCE)
        if run["name"] == "a":
            assert_close(run_exported(module, arrays["image"]), arrays["logits_a"], MODEL_TOLERANCE)


@pytest.mark.parametrize(
    ("spec", "host", "said"),
    [
        ("diffrate", {}, "give table=deit_s or deit_b, or else both lists"),
        ("diffrate:table=deit_s,prune_kept=[3],merge_kept=[2]", {}, "give table=deit_s or deit_b, or else both"),
        ("diffrate:prune_kept=[9]", {}, "give table=deit_s or deit_b, or else both"),
        ("diffrate:prune_kept=[9,8],merge_kept=[9]", {}, "prune_kept lists 2 layers and merge_kept 1"),
        ("diffrate:prune_kept=[9,8],merge_kept=[7,6]", {}, "at layer 1 prune_kept=8 and merge_kept=6 behind 7; the"),
        ("diffrate:prune_kept=[9],merge_kept=[10]", {}, "at layer 0 prune_kept=9 and merge_kept=10; the numbers never"),
        ("diffrate:prune_kept=[9],merge_kept=[8]", {}, "the lists are for 1 layers, and .* has 12"),
        ("diffrate:table=deit_s", {"tokens": 17}, "table=deit_s is for 197 tokens, and .* has 17"),
        ("diffrate:table=deit_b", {"depth": 6}, "table=deit_b is for 12 layers, and .* has 6"),
        ("diffrate:table=deit_b", {"prefix": 0, "tokens": 196}, "has no class token, whose attention ranks"),
    ],
)
def test_what_is_refused(spec: str, host: dict[str, Any], said: str) -> None:
    sizes = {"depth": 12, "tokens": 197, "prefix": 1, **host}
    with pytest.raises(TrtCompressError, match=said):
        place_one(parse_spec(spec), a_host(sizes["depth"], sizes["tokens"], sizes["prefix"]))


def test_the_published_tables() -> None:
    """The counts of the paper's DeiT-S at 2.9 GFLOPs: what every layer hands on."""
    placed = place_one(parse_spec("diffrate:table=deit_s"), a_host(12, 197, 1))
    assert [site.tokens_out for site in placed.sites] == [194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3]
