"""ToMe's own code (facebookresearch/ToMe af95e4b) against token_merge, token_restore, merge_schedule and the host.

Not compared: `maxpool_x_r…` (a merge by maximum), which is no operator here.
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
from trt_compress.models.compressors.tome import merge_schedule
from trt_compress.models.hosts.timm_vit import CompressedViT
from trt_compress.plugins.operator import recording
from trt_compress.plugins.registry import operators
from trt_compress.plugins.token_merge.op import max_merged

COUNTS = {
    "cls_even": (0, 1, 3, 7, 20),
    "cls_odd_sizes": (1, 4, 8),
    "cls_distill": (1, 5, 8, 30),
    "nocls_even_sizes": (1, 4, 6),
    "nocls_odd": (1, 6),
    "fp16_range": (4, 9),
    "ties_onehot": (2, 5),
    "ties_onehot_nocls": (3,),
}
RUNS = {
    "vit_tiny": (
        *("const8_prop", "const8_noprop", "dec6_prop", "dec6_noprop", "list_prop", "list_noprop", "clamp_prop"),
        "zero",
    ),
    "vit_distilled": ("const3_prop", "const3_noprop", "list_prop"),
}
EXPORTED = (("vit_tiny", "const8_prop"), ("vit_tiny", "clamp_prop"), ("vit_distilled", "list_prop"))
PREFIX = {"vit_tiny": 1, "vit_distilled": 2}


def test_every_case_is_compared() -> None:
    assert cases_on_disk("tome") == {*COUNTS, *RUNS, "chain", "parse_r"}
    for case, counts in COUNTS.items():
        assert read("tome", case)[1]["r_list"] == list(counts)
    for case, names in RUNS.items():
        assert [run["name"] for run in read("tome", case)[1]["runs"]] == list(names)


def num_protected(meta: dict[str, Any]) -> int:
    return int(meta["class_token"]) + int(meta["distill_token"])


def one_hot(dest: Tensor, num_rows: int) -> Tensor:
    """Which tokens each row of the output stands for, [B, M, N]."""
    return (dest[:, None] == torch.arange(num_rows)[:, None]).to(torch.uint8)


def merge(
    form: str, arrays: dict[str, Tensor], meta: dict[str, Any], count: int, dtype: torch.dtype
) -> tuple[Any, ...]:
    x, head = arrays["x"], num_protected(meta)
    size = arrays.get("size", torch.ones_like(x[..., :1]))
    attributes = {"num_merged": min(count, max_merged(x.shape[1], head)), "num_protected": head}
    attributes["order"] = 0 if meta["class_token"] else 1
    return call(form, "TrtcTokenMerge", attributes, x.to(dtype), arrays["metric"].to(dtype), size)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("case", "count"), [(case, count) for case, counts in COUNTS.items() for count in counts if count]
)
def test_merge(case: str, count: int, form: str) -> None:
    arrays, meta = read("tome", case)
    y, size, dest = merge(form, arrays, meta, count, torch.float32)
    assert y.shape[1] == meta["n_out"][str(count)]
    assert_close(y, arrays[f"x_r{count}"], OPERATOR_TOLERANCE)
    assert_close(size, arrays[f"size_r{count}"], OPERATOR_TOLERANCE)
    assert torch.equal(one_hot(dest, y.shape[1]), arrays[f"source_r{count}"])
    check_indices(dest, [arrays[f"{name}_idx_r{count}"] for name in ("unm", "src", "dst")], meta["distill_token"])


def check_indices(dest: Tensor, indices: list[Tensor], distilled: bool) -> None:
    """Indices of the original count within even (A) or odd (B) positions."""
    a, b = dest[:, ::2], dest[:, 1::2]
    left, merged, partner = indices
    num_left, num_b = left.shape[1], b.shape[1]
    rows = torch.arange(num_left + num_b)
    if distilled:  # [left 0, B 0, other left, other B]
        rows = torch.cat([rows[:1], rows[2 : num_left + 1], rows[1:2], rows[num_left + 1 :]])
    assert torch.equal(a.gather(1, left), rows[:num_left].expand_as(left))
    assert torch.equal(b, rows[num_left:].expand_as(b))
    assert torch.equal(a.gather(1, merged), b.gather(1, partner))


@pytest.mark.parametrize("form", FORMS)
def test_merge_in_half_precision(form: str) -> None:
    arrays, meta = read("tome", "fp16_range")
    for count in COUNTS["fp16_range"]:
        y, size, dest = merge(form, arrays, meta, count, torch.float16)
        assert y.dtype == torch.float16
        assert_close(y, arrays[f"x_r{count}"], operators()["TrtcTokenMerge"].spec.tolerance["float16"])
        assert torch.equal(size, arrays[f"size_r{count}"])
        assert torch.equal(one_hot(dest, y.shape[1]), arrays[f"source_r{count}"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [case for case in COUNTS if case != "cls_distill"])
def test_unmerge(case: str, form: str) -> None:
    arrays, meta = read("tome", case)
    for count in filter(None, COUNTS[case]):
        y, _, dest = merge(form, arrays, meta, count, torch.float32)
        (restored,) = call(form, "TrtcTokenRestore", {"mode": 0}, y, dest)
        assert_close(restored, arrays[f"unmerge_x_r{count}"], OPERATOR_TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
def test_merging_nothing_loses_nothing(form: str) -> None:
    """The original returns its input; the operator splits even from odd positions, and dest leads back."""
    arrays, meta = read("tome", "cls_even")
    y, size, dest = merge(form, arrays, meta, 0, torch.float32)
    assert torch.equal(call(form, "TrtcTokenRestore", {"mode": 0}, y, dest)[0], arrays["x_r0"])
    assert torch.equal(size, arrays["size_r0"])


@pytest.mark.parametrize("form", FORMS)
def test_chain_of_merges(form: str) -> None:
    arrays, meta = read("tome", "chain")
    x = arrays["x"]
    size, source = torch.ones_like(x[..., :1]), torch.eye(x.shape[1], dtype=torch.uint8).expand(2, -1, -1)
    for step, count in enumerate(meta["r_per_step"]):
        attributes = {"num_merged": count, "num_protected": 1, "order": 0}
        metric = x[..., : meta["metric_channels"]]
        x, size, dest = call(form, "TrtcTokenMerge", attributes, x, metric.contiguous(), size)
        source = one_hot(dest, x.shape[1]) @ source
        assert_close(x, arrays[f"x_step{step}"], OPERATOR_TOLERANCE)
        assert torch.equal(size, arrays[f"size_step{step}"])
        assert torch.equal(source, arrays[f"source_step{step}"])


def test_schedules() -> None:
    arrays, meta = read("tome", "parse_r")
    for number, query in enumerate(meta["queries"]):
        count, depth = query["r"], query["num_layers"]
        calls = {
            "int": lambda r=count, n=depth: merge_schedule(r, n),
            "list": lambda r=count, n=depth: merge_schedule(tuple(r), n),
            "tuple": lambda r=count, n=depth: merge_schedule(r[0], n, r[1]),
        }
        assert list(calls[query["kind"]]()) == arrays[f"out{number}"].tolist(), query


# ---- whole models ---------------------------------------------------------------------------------------------------


def spec_of(run: dict[str, Any]) -> str:
    count = run["r"]
    options = {
        "int": lambda: f"num_merged={count}",
        "list": lambda: f"num_merged={count}".replace(" ", ""),
        "tuple": lambda: f"num_merged={count[0]},schedule={'decreasing' if count[1] == -1 else 'increasing'}",
    }[run["kind"]]()
    return f"tome:{options},proportional_attention={str(run['prop_attn']).lower()},over_limit=clamp"


def vit_run(case: str, name: str) -> tuple[CompressedViT, dict[str, Tensor]]:
    arrays, meta = read("tome", case)
    (run,) = (run for run in meta["runs"] if run["name"] == name)
    assert run["kind"] != "tuple" or abs(run["r"][1]) == 1
    return compress(load_vit(arrays, meta["model"]), spec_of(run)), arrays


@pytest.mark.parametrize("case", RUNS)
def test_the_model_itself(case: str) -> None:
    arrays, meta = read("tome", case)
    with torch.no_grad():
        plain = load_vit(arrays, meta["model"])(arrays["image"])
    assert_close(plain, arrays["logits_unpatched"], MODEL_TOLERANCE)


@pytest.mark.parametrize(("case", "name"), [(case, name) for case, names in RUNS.items() for name in names])
def test_model(case: str, name: str) -> None:
    module, arrays = vit_run(case, name)
    with torch.no_grad(), recording() as record:
        logits = module(arrays["image"])
    assert_close(logits, arrays[f"logits_{name}"], MODEL_TOLERANCE)
    sizes = [tensor for key, tensor in record.items() if key.endswith("/TokenMerge/y_size")]
    assert bool(sizes) == (f"size_{name}" in arrays)
    if sizes:
        assert torch.equal(sizes[-1], arrays[f"size_{name}"])
        source = torch.eye(arrays[f"source_{name}"].shape[2], dtype=torch.uint8)
        for dest in (tensor for key, tensor in record.items() if key.endswith("/TokenMerge/dest")):
            source = one_hot(dest, int(dest.max()) + 1) @ source
        assert torch.equal(source, arrays[f"source_{name}"])


@pytest.mark.parametrize(("case", "name"), EXPORTED)
def test_exported_model(case: str, name: str) -> None:
    module, arrays = vit_run(case, name)
    assert_close(run_exported(module, arrays["image"]), arrays[f"logits_{name}"], MODEL_TOLERANCE)
