"""FLOPs: against counts made by hand, with the operators' own work in them."""

import pytest
from timm.models.vision_transformer import VisionTransformer

from trt_compress.export.flops import count_flops
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_vit import attach
from trt_compress.plugins.registry import operators

WIDTH, MLP, PATCHES, CLASSES = 32, 128, 16, 5


def vit(spec: str) -> dict[str, int]:
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=WIDTH, depth=2, num_heads=2, num_classes=CLASSES, mlp_ratio=MLP / WIDTH
    )
    return count_flops(attach(model.eval(), parse_spec(spec)), (3, 16, 16))


def by_hand(tokens_in_attention: list[int], tokens_in_mlp: list[int]) -> int:
    """Two for each multiply-add: patches, blocks, head."""
    attention = sum(n * WIDTH * 3 * WIDTH + 2 * n * n * WIDTH + n * WIDTH * WIDTH for n in tokens_in_attention)
    mlp = sum(2 * n * WIDTH * MLP for n in tokens_in_mlp)
    return 2 * (PATCHES * WIDTH * 3 * 4 * 4 + attention + mlp + WIDTH * CLASSES)


def test_a_plain_model() -> None:
    assert vit("none") == {"total": by_hand([17, 17], [17, 17]), "operators": 0}


def test_merging_saves_tokens_and_costs_similarities() -> None:
    found = vit("tome:num_merged=[3]")
    head = WIDTH // 2
    assert found["operators"] == 2 * 8 * 8 * head + 2 * 3 * WIDTH  # 8 even by 8 odd patches, then 3 weighted tokens
    assert found["total"] == by_hand([17, 14], [14, 14]) + found["operators"]


def test_fusing_costs_a_weighted_sum() -> None:
    found = vit("evit:layers=[0],keep_ratio=0.5")
    assert found["operators"] == 2 * 8 * WIDTH
    assert found["total"] == by_hand([17, 10], [10, 10]) + found["operators"]


def test_dropping_costs_nothing() -> None:
    assert vit("random:layers=[0],keep_ratio=0.5") == {"total": by_hand([17, 9], [9, 9]), "operators": 0}


def test_every_operator_is_counted_by_its_spec() -> None:
    sizes = {"B": 1, "N": 17, "C": WIDTH, "D": 16, "num_merged": 3, "num_protected": 1}
    assert vit("tome:num_merged=[3]")["operators"] == operators()["TrtcTokenMerge"].spec.flops(sizes)


def test_deit_small_with_thirteen_merges_a_layer_does_a_bit_less_than_six_tenths_of_the_work() -> None:
    module = load_host("timm:deit_small_patch16_224").module
    dense, compressed = (
        count_flops(attach(module, parse_spec(spec)), (3, 224, 224))["total"] for spec in ("none", "tome:num_merged=13")
    )
    assert dense == pytest.approx(9.2e9, rel=0.01)  # 4.6 billion multiply-adds, as published
    assert dense / compressed == pytest.approx(1.70, abs=0.01)
