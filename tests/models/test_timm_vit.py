"""The host for timm's Vision Transformers: with no compressor it is the model itself, in every supported form."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tests.models.vits import VARIANTS, compress, images, make_vit, run
from trt_compress.errors import UnsupportedError
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_vit import CompressedViT, attend, host_info
from trt_compress.plugins.operator import recording

SPECS = ("tome:num_merged=3", "evit:keep_ratio=0.5", "random:keep_ratio=0.5", "avg_pool:stride=3")
DETACHED = ("plain", "avg_without_class", "dropout_in_training")
NAMED = (
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_little_patch16_reg4_gap_256",
    "vit_xsmall_patch16_clip_224",
    "vit_small_patch16_224.augreg_in21k",
)


NOTHING = ("tome:num_merged=0", "evit:keep_ratio=1", "random:keep_ratio=1.0", "avg_pool:stride=1")


def pairs(specs: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every form with every spec; evit needs a class token."""
    return [(form, spec) for form in VARIANTS for spec in specs if not ("evit" in spec and "without_class" in form)]


def assert_same(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


# ---- no compressor: the model itself --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_compressors_it_is_the_model(variant: str) -> None:
    vit, x = make_vit(variant).double(), images().double()
    assert_same(run(compress(vit, "none"), x), run(vit, x), 1e-12)


@pytest.mark.parametrize(("variant", "spec"), pairs(NOTHING))
def test_compressors_that_remove_nothing_leave_no_trace(variant: str, spec: str) -> None:
    vit, x = make_vit(variant), images()
    module = compress(vit, spec)
    with recording() as record:
        found = run(module, x)
    assert (module.plan, dict(record), list(module.placed.steps("blocks.0"))) == ((), {}, [])
    assert torch.equal(found, run(compress(vit, "none"), x))


@pytest.mark.parametrize("name", NAMED)
def test_models_by_name_run_and_agree(name: str) -> None:
    host = load_host(f"timm:{name}")
    (graph,) = host.attach(())
    x = torch.randn(1, *(int(dim) for dim in graph.inputs[0].shape[1:]), generator=torch.Generator().manual_seed(2))
    assert host.family == "timm_vit"
    assert not host.module.training
    assert_same(run(compress(host.module, "none"), x), run(host.module, x), 1e-5)
    assert run(compress(host.module, "tome:num_merged=8"), x).isfinite().all()


@pytest.mark.parametrize(("variant", "spec"), pairs(SPECS))
def test_every_supported_form_carries_every_compressor(variant: str, spec: str) -> None:
    vit, x = make_vit(variant), images()
    module = compress(vit, spec)
    with recording() as record:
        out = run(module, x)
    assert out.shape == (3, 5) and out.isfinite().all()
    assert (out - run(vit, x)).abs().max() > 1e-4  # something was compressed
    tokens = {key: tensor.shape[1] for key, tensor in record.items() if key.endswith("/tokens")}
    assert tokens == {f"{site.name}/tokens": site.tokens_out for site in module.plan}


def test_prefix_tokens_are_counted() -> None:
    prefix = {name: host_info(make_vit(name), name).num_prefix for name in VARIANTS}
    assert {name: count for name, count in prefix.items() if count != 1} == {
        "distilled": 2,
        "registers": 4,
        "registers_after_positions": 4,
        "avg_without_class": 0,
        "avg_registers_without_class": 2,
    }
    assert not host_info(make_vit("avg_without_class"), "x").has_class_token


# ---- refused, by name -----------------------------------------------------------------------------------------------


def without_weights(**keywords: Any) -> Callable[[], nn.Module]:
    base = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return lambda: VisionTransformer(**{**base, **keywords})


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: timm.create_model("swin_tiny_patch4_window7_224"), "model class SwinTransformer"),
    (lambda: timm.create_model("beit_base_patch16_224", depth=1), "model class Beit"),
    (lambda: timm.create_model("resnet18"), "model class ResNet"),
    (without_weights(block_fn=ParallelScalingBlock), "block type ParallelScalingBlock"),
    (without_weights(block_fn=ParallelThingsBlock), "block type ParallelThingsBlock"),
    (without_weights(block_fn=ResPostBlock), "block type ResPostBlock"),
    (without_weights(attn_layer="diff"), "attention type DiffAttention"),
    (without_weights(dynamic_img_size=True), "dynamic_img_size"),
    (without_weights(global_pool="map"), "global_pool='map'"),
    (without_weights(global_pool="prr"), "global_pool='prr'"),
    (without_weights(global_pool="max"), "global_pool='max'"),
    (without_weights(global_pool=""), "global_pool=''"),
]


@pytest.mark.parametrize(("make", "what"), REFUSED, ids=[what for _, what in REFUSED])
def test_what_cannot_be_driven_is_refused_by_name(make: Callable[[], nn.Module], what: str) -> None:
    with pytest.raises(
        UnsupportedError, match=f"tiny: {what} is not supported; this host drives timm's Vision"
    ) as error:
        compress(make(), "none")
    assert "token, avg, avgmax pooling" in str(error.value)


# ---- attach and detach ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "spec"), [pair for pair in pairs(SPECS) if pair[0] in DETACHED])
def test_after_detach_nothing_has_changed(variant: str, spec: str) -> None:
    vit, x = make_vit(variant), images()
    before, out = {name: tensor.clone() for name, tensor in vit.state_dict().items()}, run(vit, x)
    module = compress(vit, spec)
    run(module, x)
    assert module.detach() is vit
    assert type(vit) is VisionTransformer
    assert torch.equal(run(vit, x), out)
    assert list(vit.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
    assert not [part for part in vit.modules() if part._forward_hooks or part._forward_pre_hooks]
    assert not [part for part in vit.modules() if "forward" in vars(part)]


def test_training_mode_is_that_of_the_model_part_by_part() -> None:
    vit = make_vit()
    vit.blocks[1].train()
    modes = [part.training for part in vit.modules()]
    module = compress(vit, "tome:num_merged=2")
    assert [part.training for part in vit.modules()] == modes
    assert not module.training
    assert compress(vit.train(), "none").training


def test_dropout_acts_in_training_only() -> None:
    vit, x = make_vit("dropout_in_training"), images()
    module = compress(vit, "tome:num_merged=2")
    assert torch.equal(run(module, x), run(module, x))
    module.train()
    assert not torch.equal(run(module, x), run(module, x))


def test_gradients_reach_the_weights() -> None:
    vit = make_vit()
    compress(vit, "tome:num_merged=0").train()(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in vit.parameters())


def test_half_precision_stays_half_precision() -> None:
    module = compress(make_vit("avg"), "tome:num_merged=[3,2]+evit:layers=[2],keep_ratio=0.5").half()
    out = run(module, images().half())
    assert out.dtype == torch.float16 and out.isfinite().all()


# ---- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "qk_norm", "norm_inside_attention_and_mlp"])
def test_a_token_of_size_s_counts_as_s_copies(variant: str) -> None:
    attention = make_vit(variant).blocks[0].attn
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    copies = torch.tensor([1, 3, 1, 2, 4])
    wanted, _ = attend(attention, x.repeat_interleave(copies, dim=1), None, frozenset())
    found, _ = attend(attention, x, copies.float().reshape(1, 5, 1).expand(2, -1, -1), frozenset())
    last_of_each = copies.cumsum(0) - 1
    assert_same(found, wanted[:, last_of_each], 1e-5)


def test_taps_are_keys_and_the_class_row_averaged_over_heads() -> None:
    attention: Any = make_vit().blocks[0].attn
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    size = torch.tensor([1.0, 2.0, 1.0, 4.0, 1.0]).reshape(1, 5, 1).expand(2, -1, -1)
    with torch.no_grad():
        _, taps = attend(attention, x, size, frozenset({"keys", "class_attention"}))
    weight, bias = attention.qkv.weight.detach().numpy(), attention.qkv.bias.detach().numpy()
    q, k, _ = np.split(x.numpy() @ weight.T + bias, 3, axis=2)
    np.testing.assert_allclose(taps["keys"], (k[..., :16] + k[..., 16:]) / 2, rtol=1e-4, atol=1e-5)
    rows = []
    for head in (slice(0, 16), slice(16, 32)):
        logits = np.einsum("bc,bnc->bn", q[:, 0, head], k[..., head]) / 4  # a head is 16 wide
        row = np.exp(logits) * size[..., 0].numpy()
        rows.append(row / row.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(taps["class_attention"], (rows[0] + rows[1]) / 2, rtol=1e-4, atol=1e-5)


def test_no_other_taps_are_computed() -> None:
    _, taps = attend(make_vit().blocks[0].attn, torch.zeros(1, 5, 32), None, frozenset())
    assert not taps


# ---- sizes: merging equal tokens changes nothing ---------------------------------------------------------------------


def twins(vit: CompressedViT) -> Tensor:
    """Images whose patches are equal in pairs, and a model that does not tell positions apart."""
    with torch.no_grad():
        vit.vit.pos_embed.zero_()  # type: ignore[union-attr]
    patches = torch.randn(2, 3, 4, 4, 2, 4, generator=torch.Generator().manual_seed(4))  # [B, C, row, y, pair, x]
    return patches.repeat_interleave(2, dim=4).reshape(2, 3, 16, 16)


@pytest.mark.parametrize("variant", ["plain", "avg", "avg_with_prefix", "avg_without_class", "avgmax", "registers"])
def test_merging_twins_leaves_the_output(variant: str) -> None:
    """Five of eight pairs are merged: keys and the pooled mean must weigh those twice."""
    if variant == "registers":
        variant, more = "plain", {"reg_tokens": 2}  # an odd prefix, so that twins face each other
    else:
        more = {}
    vit = make_vit(variant, **more)
    module = compress(vit, "tome:num_merged=[5]")
    x = twins(module)
    assert_same(run(module, x), run(vit, x), 1e-5)
    unweighted = compress(vit, "tome:num_merged=[5],proportional_attention=false")
    assert (run(unweighted, x) - run(vit, x)).abs().max() > 1e-3


def test_a_mean_pooled_head_weighs_by_size() -> None:
    """Against the mean over all positions, each holding the row it was merged into."""
    vit, x = make_vit("avg_without_class"), images()
    module = compress(vit, "tome:num_merged=[6,3]")
    final: dict[str, Tensor] = {}
    hook = vit.norm.register_forward_hook(lambda *call: final.update(x=call[2]))
    with recording() as record:
        out = run(module, x)
    hook.remove()
    where = record["blocks.1/TokenMerge/dest"].gather(1, record["blocks.0/TokenMerge/dest"])
    everywhere = final["x"].gather(1, where[..., None].expand(-1, -1, 32))
    with torch.no_grad():
        wanted = vit.head(vit.fc_norm(everywhere.mean(dim=1)))
    assert_same(out, wanted, 1e-5)
    assert (run(vit.head, vit.fc_norm(final["x"].mean(dim=1))) - wanted).abs().max() > 1e-3
