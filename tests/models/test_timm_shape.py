"""Own checkpoints of timm's ViTs: their shape is read off them, and what contradicts it is refused in a sentence."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from tests.models.vits import run
from trt_compress.errors import ConfigError
from trt_compress.models.hosts.base import LoadedHost
from trt_compress.models.hosts.registry import load_host

TINY = "vit_tiny_patch16_224"


def made(name: str = TINY, **shape: Any) -> nn.Module:
    """A fine-tuned model: every tensor away from where it began."""
    torch.manual_seed(3)
    module = timm.create_model(name, **shape).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return module


def saved(module: nn.Module, folder: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, folder / "mine.safetensors")
    return str(folder / "mine.safetensors")


def assert_is(host: LoadedHost, module: Any) -> None:
    """The host computes what the module that was saved does, and its graph and manifest entries say its shape."""
    (graph,) = host.attach(())
    shape = (module.patch_embed.proj.in_channels, *module.patch_embed.img_size)
    assert graph.inputs[0].shape == ("batch", *shape)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    wanted, found = run(module, x), run(graph.module, x)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert graph.outputs[0].shape == ("batch", wanted.shape[1])
    assert graph.outputs[0].name == ("logits" if module.num_classes else "features")
    kind = {"kind": "classification", "classes": module.num_classes} if module.num_classes else {"kind": "raw"}
    assert dict(host.postprocess) == kind


READ: dict[str, tuple[str, dict[str, Any], str, str]] = {  # the model, how it was made, options, what is read off
    "another head": (TINY, {"num_classes": 10}, "", "num_classes=10"),
    "no head": (TINY, {"num_classes": 0}, "", "num_classes=0"),
    "grey": (TINY, {"in_chans": 1}, "", "in_chans=1"),
    "five channels": (TINY, {"in_chans": 5}, "", "in_chans=5"),
    "larger images": (TINY, {"img_size": 256}, "", "img_size=256x256"),
    "all of it": (
        TINY,
        {"num_classes": 3, "in_chans": 1, "img_size": 96},
        "",
        "in_chans=1, num_classes=3, img_size=96x96",
    ),
    "wide images": (TINY, {"img_size": (96, 160)}, "?img_size=96x160", ""),
    "as many patches, but wide": (TINY, {"img_size": (112, 448)}, "?img_size=112x448", ""),
    "pooled": (TINY, {"global_pool": "avg"}, "", "global_pool=avg, fc_norm=true"),
    "pooled, norm before": (TINY, {"global_pool": "avg", "fc_norm": False}, "?global_pool=avg", ""),
    "pooled in two ways": (TINY, {"global_pool": "avgmax"}, "?global_pool=avgmax", "fc_norm=true"),
    "no class token": (
        TINY,
        {"class_token": False, "global_pool": "avg"},
        "",
        "class_token=false, global_pool=avg, fc_norm=true",
    ),
    "registers": (TINY, {"reg_tokens": 3, "img_size": 160}, "", "reg_tokens=3, img_size=160x160"),
    "positions of patches only": (TINY, {"no_embed_class": True}, "?no_embed_class=true", ""),
    "smaller patches": (TINY, {"patch_size": 32}, "?patch_size=32", ""),
    "distilled": (
        "deit_tiny_distilled_patch16_224",
        {"num_classes": 7, "img_size": 160},
        "",
        "num_classes=7, img_size=160x160",
    ),
    "distilled, no head": ("deit_tiny_distilled_patch16_224", {"num_classes": 0}, "", "num_classes=0"),
    "DeiT III": ("deit3_small_patch16_224", {"num_classes": 2, "img_size": 96}, "", "num_classes=2, img_size=96x96"),
    "pooled by its name": ("vit_little_patch16_reg4_gap_256", {"num_classes": 4}, "", "num_classes=4"),
    "pooled by its name, not here": (
        "vit_little_patch16_reg4_gap_256",
        {"class_token": True, "global_pool": "token"},
        "?global_pool=token",
        "class_token=true, fc_norm=false",
    ),
}


@pytest.mark.parametrize("case", READ)
def test_the_shape_is_read_off_the_weights(case: str, tmp_path: Path) -> None:
    name, shape, options, read = READ[case]
    module = made(name, **shape)
    host = load_host(f"timm:{name}{options}", weights=saved(module, tmp_path))
    assert_is(host, module)
    if "img_size=" in read:
        read = f"{read} (taken to be square)"
    said = next((part for part in (host.weights.provenance or "").split("; ") if part.startswith("read off")), "")
    assert said == (f"read off the file: {read}" if read else "")


def test_an_option_that_says_the_same_passes(tmp_path: Path) -> None:
    module = made(num_classes=10, img_size=96, in_chans=1)
    host = load_host(
        f"timm:{TINY}?num_classes=10&img_size=96&in_chans=1&class_token=true&reg_tokens=0&patch_size=16",
        weights=saved(module, tmp_path),
    )
    assert_is(host, module)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "classes": (
        {"num_classes": 10},
        "num_classes=5",
        r"num_classes=5 contradicts mine\.safetensors, where head\.weight is \[10, 192\]; leave num_classes out, or "
        r"write num_classes=10",
    ),
    "a head": ({"num_classes": 0}, "num_classes=5", "num_classes=5 contradicts .*, where there is no head"),
    "channels": ({}, "in_chans=1", r"in_chans=1 contradicts .*, where patch_embed\.proj\.weight is \[192, 3, 16, 16\]"),
    "patches": ({}, "patch_size=8", r"patch_size=8x8 contradicts .* or write patch_size=16x16"),
    "class token": ({}, "class_token=false", "class_token=false contradicts .*, where there is a cls_token"),
    "registers": ({}, "reg_tokens=4", "reg_tokens=4 contradicts .*, where there is no reg_token"),
    "a pool without token": (
        {"class_token": False, "global_pool": "avg"},
        "global_pool=token",
        "global_pool=token contradicts .*, where there is no cls_token; write global_pool=avg",
    ),
    "size": (
        {"img_size": 96},
        "img_size=224",
        r"the position table of mine\.safetensors is for 6 x 6 patches, and img_size=224x224 needs 14 x 14; add "
        r"resample_pos=true to have it resampled, or leave img_size out for 96x96",
    ),
    "the own size": (
        {},
        "img_size=384",
        "is for 14 x 14 patches, and img_size=384x384 needs 24 x 24; add resample_pos",
    ),
    "no square": (
        {"img_size": (96, 160)},
        "",
        r"the position table of mine\.safetensors has 60 places for patches, which form no square; say",
    ),
    "another shape of no square": (
        {"img_size": (96, 160)},
        "img_size=96x96&resample_pos=true",
        "is for 60 patches, and img_size=96x96 needs 6 x 6; it forms no square, so it cannot be resampled",
    ),
    "patches of another model": (
        {"patch_size": 32},
        "",
        r"the patches of mine\.safetensors have 32x32 pixels, and those of the model 16x16; name the model",
    ),
    "smaller than a patch": ({}, "img_size=8", "img_size=8x8 is smaller than a patch of 16x16 pixels"),
    "resample to what": ({}, "resample_pos=true", "resample_pos=true needs the size to resample to; add img_size"),
    "no square, though one with the class token": (
        {"img_size": (64, 96)},
        "",
        "has 24 places for patches, which form no square",
    ),
    "positions of patches only": ({"no_embed_class": True}, "", "has 195 places for patches, which form no square"),
    "another depth": ({"depth": 2}, "", r"mine\.safetensors does not fit the model: it misses blocks\.10\."),
    "another width": (
        {"embed_dim": 96},
        "",
        r"it has other shapes: cls_token is \[1, 1, 96\] instead of \[1, 1, 192\]",
    ),
    "mean of two": (
        {},
        "mean=0.5,0.5",
        "mean has 2 values and the input 3 channels; give one for each, or one for all",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_contradicts_the_weights_is_refused(case: str, tmp_path: Path) -> None:
    shape, options, message = CONTRADICTIONS[case]
    path = saved(made(**shape), tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        load_host(f"timm:{TINY}" + (f"?{options}" if options else ""), weights=path)
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("saved_as", "read_as", "message"),
    [
        (
            "deit_tiny_distilled_patch16_224",
            "deit_tiny_patch16_224",
            "has a dist_token, .* such as timm:deit_small_dis",
        ),
        ("deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "has no dist_token, .* timm:deit_small_patch16_"),
    ],
)
def test_weights_of_the_other_kind_of_deit_are_told_by_the_token(
    saved_as: str, read_as: str, message: str, tmp_path: Path
) -> None:
    path = saved(timm.create_model(saved_as, depth=1), tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_host(f"timm:{read_as}", weights=path)


def test_a_norm_that_leaves_the_pooling_open_is_asked_for(tmp_path: Path) -> None:
    name = "vit_little_patch16_reg4_gap_256"
    path = saved(made(name, class_token=True, global_pool="token"), tmp_path)
    with pytest.raises(
        ConfigError, match=r"the norm before the pooling, .* write global_pool=token or global_pool=avg"
    ):
        load_host(f"timm:{name}", weights=path)


def test_positions_are_resampled_as_timm_does_and_only_when_asked(tmp_path: Path) -> None:
    module: Any = made(num_classes=4)
    host = load_host(f"timm:{TINY}?img_size=96x160&resample_pos=true", weights=saved(module, tmp_path))
    with torch.no_grad():
        wanted = resample_abs_pos_embed(module.pos_embed, new_size=[6, 10], old_size=[14, 14], num_prefix_tokens=1)
    assert torch.equal(host.module.state_dict()["pos_embed"], wanted)
    assert host.weights.provenance == "read off the file: num_classes=4; its position table was resampled"
    module.set_input_size((96, 160))
    assert_is(host, module)


def test_a_table_that_fits_is_left_alone_by_resampling(tmp_path: Path) -> None:
    module = made(img_size=96)
    host = load_host(f"timm:{TINY}?img_size=96&resample_pos=true", weights=saved(module, tmp_path))
    assert_is(host, module)
    assert host.weights.provenance is None


@pytest.mark.parametrize("options", ["num_classes=10&img_size=96&in_chans=1", "global_pool=avg&class_token=false"])
def test_random_weights_take_the_options(options: str) -> None:
    host = load_host(f"timm:{TINY}?{options}")
    shape: dict[str, Any] = (
        {"num_classes": 10, "img_size": 96, "in_chans": 1}
        if "img_size" in options
        else {"global_pool": "avg", "class_token": False}
    )
    assert {n: t.shape for n, t in host.module.state_dict().items()} == {
        n: t.shape for n, t in made(**shape).state_dict().items()
    }
    assert host.source == f"timm:{TINY}?{options}"
    assert host.weights.source == "random (seed 0)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("class_token=false", "class_token=false leaves nothing for global_pool=token; add global_pool=avg"),
        ("weights_key=ema", "weights_key is for a file of weights; give one as --weights FILE"),
        ("img_size=8", "img_size=8x8 is smaller than a patch"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_host(f"timm:{TINY}?{options}")


def test_a_distilled_model_keeps_its_tokens() -> None:
    with pytest.raises(ConfigError, match="a distilled model has no option global_pool; leave it out"):
        load_host("timm:deit_tiny_distilled_patch16_224?global_pool=avg")


def test_of_two_sets_of_weights_the_shape_is_that_of_the_one_taken(tmp_path: Path) -> None:
    few, many = made(num_classes=3), made(num_classes=6)
    torch.save({"state_dict": many.state_dict(), "state_dict_ema": few.state_dict()}, tmp_path / "mine.pth.tar")
    host = load_host(f"timm:{TINY}", weights=str(tmp_path / "mine.pth.tar"))
    assert_is(host, few)
    assert host.weights.provenance == (
        "taken from 'state_dict_ema' of the file, which also holds 'state_dict'; read off the file: num_classes=3"
    )
    assert_is(load_host(f"timm:{TINY}?weights_key=state_dict", weights=str(tmp_path / "mine.pth.tar")), many)


# ---- pictures --------------------------------------------------------------------------------------------------

DEIT = "deit_tiny_patch16_224"  # whose mean differs from channel to channel


@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [
        ("", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("?mean=0.5&std=0.25", [0.5] * 3, [0.25] * 3),
        ("?mean=0.1,0.2,0.3", [0.1, 0.2, 0.3], [0.229, 0.224, 0.225]),
        ("?in_chans=1", [0.449], [0.226]),
        ("?in_chans=1&mean=0.5&std=0.25", [0.5], [0.25]),
    ],
)
def test_mean_and_std_are_those_of_the_channels(options: str, mean: list[float], std: list[float]) -> None:
    host = load_host(f"timm:{DEIT}{options}")
    assert host.preprocess["kind"] == "image"
    assert host.preprocess["mean"] == pytest.approx(mean)
    assert host.preprocess["std"] == pytest.approx(std)
    assert ("are the averages" in (host.weights.provenance or "")) == (options == "?in_chans=1")


def test_what_no_picture_has_is_no_picture() -> None:
    preprocess = load_host(f"timm:{DEIT}?in_chans=5&mean=0.5&std=0.25").preprocess
    assert preprocess["kind"] == "tensors"
    assert preprocess["reason"] == "pictures have 1 or 3 channels, and the input has 5"
