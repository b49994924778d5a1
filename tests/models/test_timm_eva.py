"""timm's Eva family: without compressors the model itself; with them, rotary positions go with their tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.eva import Eva, EvaAttention, EvaBlockPostNorm
from torch import Tensor, nn
from typer.testing import CliRunner

from tests.models.vits import images, run
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_eva import CompressedEva, attach, host_info
from trt_compress.plugins.operator import recording
from trt_compress.tools.cli.main import app

ROPE: dict[str, Any] = {"use_rot_pos_emb": True}
DINOV3 = ROPE | {
    "rope_type": "dinov3",
    "rope_rotate_half": True,
    "use_abs_pos_emb": False,
    "num_reg_tokens": 4,
    "use_fc_norm": False,
    "init_values": 0.5,
    "no_embed_class": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "eva": {},
    "eva02": ROPE | {"swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False, "ref_feat_shape": (8, 8)},
    "eva02_clip": ROPE | {"swiglu_mlp": True, "scale_attn_inner": True, "global_pool": "token"},
    "eva02_clip_enormous": {"use_post_norm": True, "global_pool": "token"},
    "turned_behind_sums": ROPE | {"use_post_norm": True},
    "dinov3": DINOV3,
    "dinov3_with_biases_apart": DINOV3 | {"swiglu_mlp": True, "swiglu_align_to": 8, "global_pool": "token"},
    "rope": ROPE | {"attn_type": "rope", "global_pool": "token", "use_abs_pos_emb": False, "rope_grid_indexing": "xy"},
    "rope_mixed": ROPE | {"attn_type": "rope", "global_pool": "token", "use_abs_pos_emb": False, "rope_type": "mixed"},
    "rope_mixed_and_table": ROPE | {"attn_type": "rope", "rope_type": "mixed", "no_embed_class": True},
    "registers_without_class": ROPE | {"class_token": False, "num_reg_tokens": 3, "no_embed_class": True},
    "perception_encoder": ROPE | {"attn_type": "rope", "use_pre_transformer_norm": True, "rope_grid_offset": 1.0},
    "sapiens2": DINOV3 | {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1, "qk_norm": True},
    "pooled_in_two_ways": ROPE | {"global_pool": "avgmax"},
    "wide": ROPE | {"img_size": (12, 20)},
}
TURNED = [name for name, keywords in VARIANTS.items() if "use_rot_pos_emb" in keywords]
SPECS = ("tome:num_merged=[3,2,2]", "evit:keep_ratio=0.5", "random:keep_ratio=0.5", "avg_pool:stride=3")


def make_eva(variant: str, **more: Any) -> Eva:
    keywords = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
    torch.manual_seed(0)
    model = Eva(**{**keywords, **VARIANTS[variant], **more}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


def compress(model: nn.Module, spec: str) -> CompressedEva:
    return attach(model, parse_spec(spec), name="tiny")


def pictures(model: Any) -> Tensor:
    height, width = model.patch_embed.img_size
    return images(size=max(height, width))[:, :, :height, :width]


def assert_same(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.fixture
def quickly_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's models with random weights that are drawn in one step instead of several."""
    monkeypatch.setattr("timm.models.eva.trunc_normal_", lambda tensor, std: nn.init.normal_(tensor, std=std))


# ---- no compressor: the model itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_compressors_it_is_the_model(variant: str) -> None:
    model = make_eva(variant).double()
    x = pictures(model).double()
    assert_same(run(compress(model, "none"), x), run(model, x), 1e-12)


@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_224", "vit_tiny_patch16_dinov3_qkvb", "vit_small_patch16_rope_mixed_224", "test_vit"]
)
@pytest.mark.usefixtures("quickly_made")
def test_models_by_name_run_and_agree(name: str) -> None:
    """timm's own take images of any size where they do; here they have one, with the same weights."""
    host = load_host(f"timm:{name}?img_size=112&num_classes=0&in_chans=1")
    (graph,) = host.attach(parse_spec("none"))
    torch.manual_seed(0)
    own = timm.create_model(name, img_size=112, num_classes=0, in_chans=1).eval()
    own.load_state_dict(host.module.state_dict())
    x = torch.randn(1, 1, 112, 112, generator=torch.Generator().manual_seed(2))
    assert graph.inputs[0].shape == ("batch", 1, 112, 112)
    assert_same(run(graph.module, x), run(own, x), 1e-5)
    assert (graph.outputs[0].name, dict(host.postprocess)) == ("features", {"kind": "raw"})


def test_what_turns_is_known() -> None:
    for name in VARIANTS:
        attention = host_info(make_eva(name), name).attention
        assert attention is not None and attention.rotary == (name in TURNED)
    assert [host_info(make_eva(name), name).num_prefix for name in ("eva", "dinov3", "registers_without_class")] == [
        1,
        5,
        3,
    ]
    assert not host_info(make_eva("registers_without_class"), "x").has_class_token


# ---- with compressors: places go with their tokens -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "spec"),
    [(name, spec) for name in VARIANTS for spec in SPECS if not ("evit" in spec and "without_class" in name)],
)
def test_every_form_carries_every_compressor(variant: str, spec: str) -> None:
    model = make_eva(variant)
    module, x = compress(model, spec), pictures(model)
    with recording() as record:
        out = run(module, x)
    assert out.shape == (3, 5) and out.isfinite().all()
    assert (out - run(model, x)).abs().max() > 1e-4
    tokens = {key: tensor.shape[1] for key, tensor in record.items() if key.endswith("/tokens")}
    assert tokens == {f"{site.name}/tokens": site.tokens_out for site in module.plan}


def followed(
    model: Any, x: Tensor, merged: dict[int, Tensor], kept: dict[int, Tensor], *, renumbered: bool = False
) -> Tensor:
    """timm's own modules on tokens that are merged and chosen after the attention of blocks, one image at a time.

    Args:
        merged: Where each token of a block goes, by the block, [B, N].
        kept: Which tokens of a block are left, by the block, [B, K].
        renumbered: Those that are left stand at the first places.
    """
    rows = []
    prefix, columns = model.num_prefix_tokens, model.patch_embed.grid_size[1]
    for item in range(x.shape[0]):
        tokens, table = model._pos_embed(model.patch_embed(x[item : item + 1]))
        tokens = model.norm_pre(tokens)
        places = [(0, 0)] * prefix + [divmod(place, columns) for place in range(tokens.shape[1] - prefix)]
        size = torch.ones(tokens.shape[1], dtype=x.dtype)
        for layer, block in enumerate(model.blocks):
            at = [row * columns + column for row, column in places[prefix:]]
            turns = (table[layer] if model.rope_mixed else table)[..., at, :]
            mask = size.log()[None, None, None]
            if isinstance(block, EvaBlockPostNorm):
                tokens = tokens + block.norm1(block.attn(tokens, rope=turns, attn_mask=mask))
            else:
                gain = 1.0 if block.gamma_1 is None else block.gamma_1
                tokens = tokens + gain * block.attn(block.norm1(tokens), rope=turns, attn_mask=mask)
            if layer in merged:
                goes = merged[layer][item].tolist()
                groups = [[n for n, to in enumerate(goes) if to == row] for row in range(max(goes) + 1)]
                weights = [size[group] for group in groups]
                tokens = torch.stack(
                    [(w[:, None] * tokens[0, group]).sum(0) / w.sum() for w, group in zip(weights, groups, strict=True)]
                )[None]
                places = [
                    tuple(
                        int(sum(int(size[n]) * places[n][axis] for n in group) // sum(int(size[n]) for n in group))
                        for axis in (0, 1)
                    )
                    for group in groups
                ]
                size = torch.stack([w.sum() for w in weights])
            if layer in kept:
                index = kept[layer][item].tolist()
                places = [places[place if renumbered else n] for place, n in enumerate(index)]
                tokens, size = tokens[:, index], size[index]
            if isinstance(block, EvaBlockPostNorm):
                tokens = tokens + block.norm2(block.mlp(tokens))
            else:
                gain = 1.0 if getattr(block, "gamma_2", None) is None else block.gamma_2
                tokens = tokens + gain * block.mlp(block.norm2(tokens))
        tokens = model.norm(tokens)
        if model.global_pool == "token":
            rows.append(model.head(model.fc_norm(tokens[:, 0])))
        else:
            weight = size[prefix:, None]
            mean = (tokens[0, prefix:] * weight).sum(0, keepdim=True) / weight.sum()
            if model.global_pool == "avgmax":
                mean = (mean + tokens[:, prefix:].amax(1)) / 2
            rows.append(model.head(model.fc_norm(mean)))
    return torch.cat(rows)


@pytest.mark.parametrize("variant", TURNED)
def test_merged_and_chosen_tokens_are_turned_by_their_own_places(variant: str) -> None:
    model = make_eva(variant)
    x = pictures(model)
    module = compress(model, "tome:num_merged=[3,0,2]+random:keep_ratio=0.5,layers=[1]")
    with torch.no_grad(), recording() as record:
        found = module(x)
        merged = {layer: record[f"blocks.{layer}/TokenMerge/dest"] for layer in (0, 2)}
        kept = {1: record["blocks.1/TokenSelect/index"]}
        wanted = followed(model, x, merged, kept)
    assert_same(found, wanted, 1e-4)


def test_without_their_places_they_come_out_otherwise() -> None:
    """What the test above shows is seen: kept tokens that are turned as if they stood in front."""
    model = make_eva("dinov3")
    x = pictures(model)
    module = compress(model, "random:keep_ratio=0.5,layers=[1]")
    with torch.no_grad(), recording() as record:
        found = module(x)
        kept = {1: record["blocks.1/TokenSelect/index"]}
        assert_same(followed(model, x, {}, kept), found, 1e-5)
        assert (followed(model, x, {}, kept, renumbered=True) - found).abs().max() > 1e-3


SOURCE = """
from timm.models.eva import Eva
def small(**more):
    size = dict(img_size=16, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5, use_rot_pos_emb=True)
    return Eva(**size, **more)
def dinov3():
    return small(rope_type="dinov3", rope_rotate_half=True, use_abs_pos_emb=False, num_reg_tokens=4, use_fc_norm=False)
def mixed():
    return small(rope_type="mixed", attn_type="rope", global_pool="token")
"""


@pytest.mark.parametrize("factory", ["dinov3", "mixed"])
def test_it_exports_and_is_verified(factory: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SOURCE)
    spec = "tome:num_merged=[2,2]+evit:layers=[2],keep_ratio=0.6"
    command = ["export", f"{tmp_path}/net.py:{factory}", "--compress", spec, "-o", f"{tmp_path}/out"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "verified" in done.stdout
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    operators = [node.op_type for node in model.graph.node if node.op_type.startswith("Trtc")]
    assert operators == ["TrtcTokenMerge", "TrtcTokenMerge", "TrtcTokenSelect"]
    assert not {"Sin", "Cos"} & {node.op_type for node in model.graph.node}  # the table is a constant


# ---- weights of a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "options", "read"),
    [
        ("eva02_tiny_patch14_224", {"num_classes": 7}, "", "num_classes=7"),
        ("eva02_tiny_patch14_224", {"img_size": 112, "in_chans": 1}, "", "in_chans=1, img_size=112x112"),
        ("vit_tiny_patch16_dinov3_qkvb", {"num_classes": 3, "img_size": 96}, "?img_size=96", "num_classes=3"),
        ("vit_small_patch16_rope_224", {"global_pool": "avg"}, "", "global_pool=avg, fc_norm=true"),
        ("vit_small_patch16_rope_224", {"num_reg_tokens": 2, "num_classes": 0}, "", "num_classes=0, reg_tokens=2"),
    ],
)
@pytest.mark.usefixtures("quickly_made")
def test_the_shape_is_read_off_the_weights(
    name: str, shape: dict[str, Any], options: str, read: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    module: Any = timm.create_model(name, **shape).eval()
    file = tmp_path / "mine.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in module.state_dict().items()}, file)
    host = load_host(f"timm:{name}{options}", weights=str(file))
    (graph,) = host.attach(())
    x = torch.randn(2, *graph.inputs[0].shape[1:], generator=torch.Generator().manual_seed(2))  # type: ignore[call-overload]
    assert_same(run(graph.module, x), run(module, x), 1e-4)
    said = (host.weights.provenance or "").split("; ")[0].replace(" (taken to be square)", "")
    assert said == f"read off the file: {read}"


@pytest.mark.usefixtures("quickly_made")
def test_a_table_of_another_size_is_resampled_only_when_asked(tmp_path: Path) -> None:
    name, file = "eva02_tiny_patch14_224", tmp_path / "mine.safetensors"
    save_file({key: each.contiguous() for key, each in timm.create_model(name).state_dict().items()}, file)
    with pytest.raises(ConfigError, match="16 x 16 patches, and img_size=112x112 needs 8 x 8"):
        load_host(f"timm:{name}?img_size=112", weights=str(file))
    host = load_host(f"timm:{name}?img_size=112&resample_pos=true", weights=str(file))
    assert host.attach(())[0].inputs[0].shape == ("batch", 3, 112, 112)


# ---- refused, by name ------------------------------------------------------------------------------------------------


class OtherAttention(EvaAttention):
    def forward(self, *args: Any, **more: Any) -> Tensor:
        return super().forward(*args, **more)


def with_other_attention() -> Eva:
    model = make_eva("eva02")
    block: Any = model.blocks[2]
    block.attn.__class__ = OtherAttention
    return model


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: make_eva("eva02", dynamic_img_size=True), "dynamic_img_size"),
    (lambda: make_eva("eva", global_pool="map"), "global_pool='map'"),
    (lambda: make_eva("eva", global_pool=""), "global_pool=''"),
    (lambda: make_eva("eva02", patch_drop_rate=0.5), "patch_drop_rate"),
    (with_other_attention, "the method forward that OtherAttention overrides"),
    (lambda: timm.create_model("resnet18"), "model class ResNet"),
]


@pytest.mark.parametrize(("make", "what"), REFUSED, ids=[what for _, what in REFUSED])
def test_what_cannot_be_driven_is_refused_by_name(make: Callable[[], nn.Module], what: str) -> None:
    with pytest.raises(UnsupportedError, match="is not supported; this host drives timm's Vision") as error:
        compress(make(), "none")
    assert str(error.value).startswith(f"tiny: {what} is not")


def test_evit_is_refused_without_a_class_token() -> None:
    with pytest.raises(UnsupportedError, match="tiny has no class token"):
        compress(make_eva("registers_without_class"), "evit:keep_ratio=0.5")
