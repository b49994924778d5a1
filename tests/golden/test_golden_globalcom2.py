"""GlobalCom² against vectors of the authors' code: budgets of crops, scores, and what is kept of padded pictures."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.golden.golden_data import OPERATOR_TOLERANCE, assert_close, cases_on_disk, read
from trt_compress.methods.crops import GlobalCom2Config
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import (
    ENCODER_OUTPUT,
    PICTURES,
    Arrival,
    HostInfo,
    Site,
    layer_sites,
    leading_spans,
)
from trt_compress.models.compressors.vision.globalcom2 import GlobalCom2, _cells, shares
from trt_compress.models.layers.attention import ATTENTION_TAPS, split_heads

CROPS = (
    "crops_1x2_wide",
    "crops_24",
    "crops_2x2_no_padding",
    "crops_2x2_tall",
    "crops_3x1_tall",
    "crops_strong_padding",
)
ALLOCATIONS = ("allocation", "allocation_clip")


def test_every_case_is_compared() -> None:
    assert cases_on_disk("globalcom2") == {*CROPS, *ALLOCATIONS, "cls_logits"}


@pytest.mark.parametrize("case", ALLOCATIONS)
def test_budgets(case: str) -> None:
    arrays, meta = read("globalcom2", case)
    side = meta["side"]
    compared = 0
    for rows, columns in meta["grids"]:
        for ratio in meta["ratios"]:
            found = shares(arrays["base_scores"][None], _cells((side, side), (rows, columns)), ratio)[0]
            wanted = arrays[f"f64.g{rows}x{columns}_r{ratio}"]
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)
            compared += 1
    assert compared == sum(name.startswith("f64.") for name in arrays)


def method(meta: dict[str, Any], **options: Any) -> tuple[GlobalCom2, HostInfo]:
    side, crops = meta["side"], (meta["rows"], meta["cols"])
    pictures = 1 + crops[0] * crops[1]
    site = Site(kind=PICTURES, tokens=pictures * side**2, taps=frozenset({"picture_size"}))
    host = HostInfo(
        name="golden",
        sites=(*layer_sites("after_attention", 1, taps=ATTENTION_TAPS), Site(kind=ENCODER_OUTPUT), site),
        depth=1,
        num_tokens=1 + side**2,
        protected=leading_spans([("class", 1)]),
        grid=(side, side),
        crops=crops,
    )
    arrival = Arrival(host=host, site=site, tokens=pictures * side**2, prefix=0, has_class_token=False, width=meta["C"])
    return GlobalCom2(GlobalCom2Config(keep_ratio=meta["ratio"], **options), arrival), host


def run(case: str, **options: Any) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Any]]:
    """What is made of the case's pictures, and which of them each is; twice in a batch, without padding."""
    arrays, meta = read("globalcom2", case)
    made, host = method(meta, **options)
    scores = torch.cat([arrays["base_scores"][None], arrays["scores"]])
    taps, batch = Taps(), 2
    keys = functional.pad(scores, (1, 0))[:, None, :, None].repeat(batch, 1, 1, 1)
    queries = torch.ones_like(keys)
    width, height = meta["size"]
    found = {tap.asked: keys if tap.kind == "keys" else queries for tap in made.wanted.values()}
    found[made.wanted["picture_size"].asked] = torch.tensor([[height, width]] * batch)
    for tap in made.wanted.values():
        taps.put(tap.layer, {tap.asked: found[tap.asked]})
    x = arrays["features"].flatten(0, 1).repeat(batch, 1, 1)
    place = torch.arange(x.shape[1]).expand(batch, -1)
    tokens = made(Tokens(x=x, position=place), taps)
    assert tokens.x.shape[1] == made.tokens_out
    assert torch.equal(tokens.x[0], tokens.x[1])
    assert tokens.valid is not None and tokens.position is not None
    there = tokens.valid[0]
    assert there.tolist() == sorted(there.tolist(), reverse=True)
    return tokens.x[0][there], tokens.position[0][there], arrays, meta


@pytest.mark.parametrize("case", CROPS)
def test_kept_as_the_code_orders_them(case: str) -> None:
    x, place, arrays, meta = run(case, order="code")
    front = len(arrays["thumbnail_index"])
    assert len(x) == front + sum(meta["kept_per_crop"])
    assert torch.equal(place[:front], arrays["thumbnail_index"])
    assert_close(x[:front], arrays["out_thumbnail"], OPERATOR_TOLERANCE)
    assert_close(x[front:], arrays["out_crops"][arrays["is_newline"] == 0], OPERATOR_TOLERANCE)


@pytest.mark.parametrize("case", CROPS)
def test_kept_as_in_the_picture(case: str) -> None:
    """The patches that the code chooses, where they are in the picture, row by row."""
    x, place, arrays, meta = run(case)
    side, columns, front = meta["side"], meta["cols"], len(arrays["thumbnail_index"])
    wanted = []
    for number in range(len(meta["kept_per_crop"])):
        for patch in arrays[f"valid{number}"][arrays[f"crop_index{number}"]].tolist():
            row = number // columns * side + patch // side
            wanted.append((row, number % columns * side + patch % side, side**2 * (1 + number) + patch))
    assert place[front:].tolist() == [token for _, _, token in sorted(wanted)]
    assert_close(x, arrays["features"].flatten(0, 1)[place], OPERATOR_TOLERANCE)


@pytest.mark.parametrize("case", CROPS)
def test_as_many_as_the_case_has(case: str) -> None:
    arrays, meta = read("globalcom2", case)
    made, _ = method(meta)
    ratio = shares(arrays["base_scores"][None], made.cells, meta["ratio"])[0]
    torch.testing.assert_close(ratio.double(), arrays["f64.scales"], rtol=0, atol=1e-6)


def test_class_logits() -> None:
    """The scores are the logits themselves, of the class token's row, averaged over the heads."""
    arrays, meta = read("globalcom2", "cls_logits")
    hidden = arrays["hidden_states"]
    query, key = (
        split_heads(functional.linear(hidden, arrays[f"w.{name}.weight"], arrays.get(f"w.{name}.bias")), meta["heads"])
        for name in ("q_proj", "k_proj")
    )
    pictures, side = hidden.shape[0], int((hidden.shape[1] - 1) ** 0.5)
    made, _ = method({"side": side, "rows": pictures - 1, "cols": 1, "C": 1, "ratio": 0.5}, unpad=False)
    taps = Taps()
    for tap in made.wanted.values():
        taps.put(tap.layer, {tap.asked: query if tap.kind == "queries" else key})
    tokens = Tokens(x=torch.zeros(1, pictures * side**2, 1))
    assert_close(made._scores(tokens, taps)[0], arrays["cls_logits"], OPERATOR_TOLERANCE)
