"""Towers of images from a directory against transformers' own: every output, other sizes, pictures, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from tests.golden.golden_data import read
from tests.models.tiny_towers import CONFIGS, EDGE, NORMAL, PICTURES, WHOLE, tiny_tower
from trt_compress.errors import TrtCompressError
from trt_compress.export.api import export_model, verify
from trt_compress.export.lower import add_bodies
from trt_compress.export.trace import onnx_from_graph
from trt_compress.format.manifest import TensorInfo
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.vision_tower import VisionTower
from trt_compress.models.layers.patch_resize import resized_kernel
from trt_compress.plugins.testing.forms import session
from trt_compress.runtime.session import Session
from trt_compress.runtime.stream.preprocess import converter_of


def images(height: int = 24, width: int = 24) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


def of(module: Any, *inputs: Any, **named: Any) -> Any:
    with torch.no_grad():
        return module(*inputs, **named)


def close(found: Tensor, wanted: Tensor, tolerance: float = 5e-6) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def in_rows(image: Tensor, patch: int = 4) -> dict[str, Tensor]:
    """What SigLIP 2 takes: patches as rows of pixels, channels last."""
    batch, channels, height, width = image.shape
    rows = image.reshape(batch, channels, height // patch, patch, width // patch, patch).permute(0, 2, 4, 3, 5, 1)
    shapes = torch.tensor([[height // patch, width // patch]] * batch)
    rows = rows.reshape(batch, -1, patch * patch * channels)
    return {"pixel_values": rows, "pixel_attention_mask": torch.ones(rows.shape[:2]), "spatial_shapes": shapes}


def theirs(model: Any, image: Tensor, **named: Any) -> Any:
    """Outputs of transformers' model of images."""
    cls = type(model).__name__
    inner = model.vision_model if cls in ("CLIPModel", "SiglipModel") else model
    if cls == "Siglip2VisionModel":
        return of(inner, **in_rows(image), output_hidden_states=True)
    return of(inner, pixel_values=image, output_hidden_states=True, **named)


@pytest.mark.parametrize("cls", CONFIGS)
def test_the_numbers_of_transformers(tmp_path: Path, cls: str) -> None:
    model = tiny_tower(tmp_path, cls)
    host = load_host(f"hf:{tmp_path}")
    tower = host.module
    assert isinstance(tower, VisionTower)
    wanted = theirs(model, images())
    found = of(tower, images())
    if "Classification" in cls:
        close(found, wanted.logits)
        assert host.postprocess["classes"] == 5
    else:
        features, size, pooled = found
        close(features, wanted.last_hidden_state[:, tower.num_prefix :])
        assert torch.equal(size, torch.ones(2, 36))
        if cls == "CLIPModel":
            close(pooled, of(model.visual_projection, wanted.pooler_output))
        else:
            close(pooled, wanted.image_embeds if "Projection" in cls else wanted.pooler_output)
    (graph,) = host.attach(())
    again = of(graph.module, images())
    pairs = [(found, again)] if isinstance(found, Tensor) else list(zip(found, again, strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    shapes = [tuple(a.shape[1:]) for a, _ in pairs]
    assert shapes == [tuple(output.shape[1:]) for output in graph.outputs]


@pytest.mark.parametrize("cls", ["CLIPVisionModel", "SiglipVisionModel", "Dinov2WithRegistersModel", "ViTModel"])
@pytest.mark.parametrize("layer", [-2, 0, 2])
def test_a_tower_that_ends_behind_a_layer(tmp_path: Path, cls: str, layer: int) -> None:
    """What language models take is the list of hidden states, whose first is what comes to layer 0."""
    model = tiny_tower(tmp_path, cls)
    host = load_host(f"hf:{tmp_path}?feature_layer={layer}")
    tower = host.module
    assert isinstance(tower, VisionTower)
    hidden: list[Tensor] = []
    layers = tower_layers(model)
    hooks = [each.register_forward_hook(lambda *args: hidden.append(first(args[2]))) for each in layers]
    theirs(model, images())
    for hook in hooks:
        hook.remove()
    features, _ = of(tower, images())
    close(features, hidden[layer][:, tower.num_prefix :])
    assert len(tower.all_layers) == min(3, layer % 3 + 2)  # nothing behind it, but for taps the next


SEVERAL = "tome:num_merged=[3,2]+random:layers=[2],keep_ratio=0.5"


@pytest.mark.parametrize("cls", ["CLIPVisionModel", "Dinov2WithRegistersModel"])
@pytest.mark.parametrize("spec", ["none", SEVERAL])
def test_features_of_several_layers(tmp_path: Path, cls: str, spec: str) -> None:
    """Each is what the tower gives that ends there, in torch and in ONNX Runtime, with two sizes of batch."""
    tiny_tower(tmp_path, cls)
    host = load_host(f"hf:{tmp_path}?feature_layer=0,1,-1")
    (graph,) = host.attach(parse_spec(spec))
    names = ["features", "feature_size", "features_0", "feature_size_0", "features_1", "feature_size_1"]
    assert [output.name for output in graph.outputs] == names
    model = add_bodies(onnx_from_graph(graph, graph.module, max_batch=4, opset=20))
    for batch in (1, 3):
        image = images()[:1].repeat(batch, 1, 1, 1)
        image[-1] = image[-1].flip(1)
        found = of(graph.module, image)
        assert [tuple(each.shape[1:]) for each in found] == [tuple(output.shape[1:]) for output in graph.outputs]
        for layer, at in ((2, 0), (0, 2), (1, 4)):
            (alone,) = load_host(f"hf:{tmp_path}?feature_layer={layer}").attach(parse_spec(within(spec, layer)))
            for ours, theirs in zip(found[at : at + 2], of(alone.module, image), strict=True):
                close(ours, theirs)
        exported = session(model.SerializeToString()).run(None, {"image": image.numpy()})
        for ours, theirs in zip(exported, found, strict=True):
            close(torch.from_numpy(ours), theirs, 1e-4)
    assert graph.layers is not None
    assert [output.name for output in graph.layers.first(1).outputs] == names[:4]


def within(spec: str, layer: int) -> str:
    """What is left of a spec in a tower that ends behind a layer."""
    return spec if spec == "none" else ("tome:num_merged=[3]", "tome:num_merged=[3,2]", SEVERAL)[layer]


def tower_layers(model: Any) -> Any:
    """The layers of a model of transformers."""
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == 3]
    return lists[0]


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_names_as_newer_versions_have_them(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for cls in ("CLIPVisionModel", "ViTModel", "Dinov2WithRegistersModel"):
        folder = tmp_path / cls
        folder.mkdir()
        model = tiny_tower(folder, cls)
        before = of(load_host(f"hf:{folder}").module, images())
        save_file({name: each.contiguous() for name, each in model.state_dict().items()}, folder / "model.safetensors")
        after = of(load_host(f"hf:{folder}").module, images())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("cls", ["CLIPVisionModel", "SiglipVisionModel", "Siglip2VisionModel", "ViTModel"])
def test_positions_are_resampled_when_asked(tmp_path: Path, cls: str) -> None:
    model = tiny_tower(tmp_path, cls)
    image = images(32, 16)
    wanted = theirs(model, image, **({} if "2" in cls else {"interpolate_pos_encoding": True}))
    host = load_host(f"hf:{tmp_path}?img_size=32x16&resample_pos=true")
    features = of(host.module, image)[0]
    close(features, wanted.last_hidden_state[:, -features.shape[1] :], 2e-5)
    with pytest.raises(TrtCompressError, match="is for 6 x 6 patches, and images of 32x16 pixels have 8 x 4; add"):
        load_host(f"hf:{tmp_path}?img_size=32x16")


@pytest.mark.parametrize("cls", ["CLIPVisionModel", "ViTModel"])
def test_larger_patches_of_larger_images(tmp_path: Path, cls: str) -> None:
    """A patch that is resized to twice its size is seen as it was before; smaller ones are more tokens."""
    tiny_tower(tmp_path, cls)
    larger = load_host(f"hf:{tmp_path}?img_size=48&patch_size=8").module
    assert isinstance(larger, VisionTower) and larger.grid == (6, 6)
    plain = load_host(f"hf:{tmp_path}").module
    for patch in (slice(0, 4), slice(8, 12)):  # what lies in one patch, resized by itself
        block = images()[:, :, patch, patch]
        big = torch.nn.functional.interpolate(block, scale_factor=2, mode="bilinear")
        conv, small = (each.get_submodule(str(each.patches)) for each in (larger, plain))
        close(of(conv, big), of(small, block), 1e-5)
    finer = load_host(f"hf:{tmp_path}?patch_size=3&resample_pos=true")
    assert finer.attach(())[0].outputs[0].shape == ("batch", 64, 16)


def test_kernels_of_flexivit() -> None:
    """Against vectors of big_vision, and of timm where it resizes in the same way."""
    for case in ("bv_patch", "bv_patch_32", "bv_patch_rectangular"):
        arrays, meta = read("flexivit", case)
        for size in meta["new"]:
            found = resized_kernel(arrays["kernel"].permute(3, 2, 0, 1), (size[0], size[1]))
            close(found, arrays[f"kernel_{size[0]}x{size[1]}"].permute(3, 2, 0, 1), 2e-5)
    arrays, meta = read("flexivit", "timm_patch_bilinear")
    for size in meta["new"]:
        if size[0] > meta["old"][0]:  # smaller ones are antialiased there
            close(resized_kernel(arrays["kernel"], (size[0], size[1])), arrays[f"kernel_{size[0]}x{size[1]}"], 2e-5)
    mixed = resized_kernel(torch.randn(3, 2, 8, 10, generator=torch.Generator().manual_seed(0)), (15, 9))
    assert float(mixed.abs().max()) < 100  # 3e8 in the original


@pytest.mark.parametrize("cls", ["Dinov2Model", "Dinov2WithRegistersModel"])
def test_dinov2_takes_the_size_of_its_pictures(tmp_path: Path, cls: str) -> None:
    crop = {**EDGE, "crop_size": {"height": 16, "width": 16}}
    model = tiny_tower(tmp_path, cls, crop)
    host = load_host(f"hf:{tmp_path}")
    assert host.attach(())[0].inputs[0].shape == ("batch", 3, 16, 16)
    features = of(host.module, images(16, 16))[0]
    close(features, theirs(model, images(16, 16)).last_hidden_state[:, -16:], 2e-5)
    assert load_host(f"hf:{tmp_path}?img_size=20").attach(())[0].inputs[0].shape == ("batch", 3, 20, 20)


@pytest.mark.parametrize(
    ("cls", "front", "processor"),
    [("CLIPVisionModel", EDGE, "CLIPImageProcessorPil"), ("ViTModel", WHOLE, "ViTImageProcessorPil")],
)
def test_pictures_become_what_their_processor_makes(
    tmp_path: Path, cls: str, front: dict[str, Any], processor: str
) -> None:
    tiny_tower(tmp_path, cls, front)
    host = load_host(f"hf:{tmp_path}")
    (graph,) = host.attach(())
    info = TensorInfo(name="image", dtype="float32", shape=graph.inputs[0].shape)
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    convert = converter_of({"input": "image", **host.preprocess}, info)
    assert convert is not None
    found = convert(picture)
    theirs_ = getattr(transformers, processor)(**{**PICTURES, **NORMAL, **front})
    wanted = np.asarray(theirs_(picture, return_tensors="np")["pixel_values"][0])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ({"size": {"shortest_edge": 24}}, "keeps the shape of pictures"),
        ({**WHOLE, "do_pad": True}, "pads pictures, which is not carried"),
        ({"size": {"height": 30, "width": 30}, **{k: v for k, v in EDGE.items() if k != "size"}}, "squeezes pictures"),
        ({**EDGE, "size": {"shortest_edge": 20}}, "pads pictures to a larger size"),
        ({"size": {"shortest_edge": 24}, "do_center_crop": True}, "to a size that preprocessor_config.json does not"),
    ],
)
def test_pictures_that_cannot_be_made_so_are_said(tmp_path: Path, front: dict[str, Any], said: str) -> None:
    tiny_tower(tmp_path, "CLIPVisionModel", front)
    host = load_host(f"hf:{tmp_path}")
    assert host.preprocess["kind"] == "tensors" and said in host.preprocess["reason"]
    assert host.weights.provenance == host.preprocess["reason"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny_tower(folder, "CLIPVisionModelWithProjection")
    return folder


@pytest.mark.parametrize("spec", ["tome:num_merged=5", "evit:keep_ratio=0.5,layers=[1]", "avg_pool:stride=2,layer=0"])
def test_compressors_in_its_layers(clip: Path, spec: str) -> None:
    (graph,) = load_host(f"hf:{clip}").attach(parse_spec(spec))
    features, size, pooled = of(graph.module, images())
    assert [list(each.shape[1:]) for each in (features, size, pooled)] == [list(o.shape[1:]) for o in graph.outputs]
    assert features.shape[1] < 36
    if not spec.startswith("evit"):
        assert torch.allclose(size.sum(dim=1), torch.full((2,), 36.0)) or spec.startswith("avg_pool")


def test_a_compressed_bundle(clip: Path, tmp_path: Path) -> None:
    """Exported, verified against torch, and run without it; a second time as its first layers."""
    name, spec = f"hf:{clip}", "tome:num_merged=4"
    result = export_model(name, compress=spec, output=tmp_path / "b", targets=["cpu"], batch="1:2:3")
    assert result.manifest.verification is not None and result.manifest.verification.passed
    assert verify(tmp_path / "b", model=name).passed
    wanted = of(load_host(name).attach(parse_spec(spec))[0].module, images())
    with Session.open(tmp_path / "b") as session:
        found = session.run({"image": images().numpy()})
    for output, tensor in zip(("features", "feature_size", "pooled"), wanted, strict=True):
        np.testing.assert_allclose(found[output], tensor.numpy(), rtol=0, atol=2e-5)
    assert result.manifest.postprocess["kind"] == "frames" and result.manifest.preprocess["kind"] == "image"


def _config(**entries: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return change


def _nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (_config(architectures=["CLIPForImageClassification"]), "", "architectures CLIPForImageClassification is not"),
        (_config(hidden_act="mish"), "", "clip: activation 'mish' is not known"),
        (_config(num_attention_heads=3), "", "a width of 16 cannot be split among 3 heads"),
        (_config(num_hidden_layers=4), "", "it misses encoder.layers.3"),
        (_config(hidden_size="wide"), "", "cannot be read"),
        (_config(patch_size=25), "", "an image of 24x24 pixels is smaller than a patch of 25x25"),
        (_config(patch_size=[4]), "", "is no size of one or two whole numbers"),
        (_nothing, "?img_size=3&resample_pos=true", "an image of 3x3 pixels is smaller than a patch of 4x4"),
        (
            _nothing,
            "?feature_layer=1,0",
            "feature_layer=1,0 does not ascend, or names a layer twice; write feature_layer=0,1.",
        ),
        (_nothing, "?feature_layer=2,-1", "feature_layer=2,-1 does not ascend, or names a layer twice; write"),
        (_nothing, "?feature_layer=0,3", "feature_layer=3 is out of range; this tower has layers 0..2"),
        (_nothing, "?feature_layer=3", "feature_layer=3 is out of range; this tower has layers 0..2"),
        (_nothing, "?seconds=3", "seconds is an option of audio models; leave it out"),
        (_nothing, "?tokens=3", "tokens is an option of text encoders; leave it out"),
        (_config(model_type="whisper"), "?img_size=8", "img_size is an option of towers of images; leave it out"),
        (lambda p: (p / "model.safetensors").unlink(), "", "has no model.safetensors"),
        (lambda p: (p / "preprocessor_config.json").write_text("[]"), "", "holds no JSON object"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: Callable[[Path], object], options: str, said: str) -> None:
    tiny_tower(tmp_path, "CLIPVisionModel")
    change(tmp_path)
    with pytest.raises(TrtCompressError) as raised:
        load_host(f"hf:{tmp_path}{options}")
    assert said in raised.value.message


def test_variants_that_are_refused(tmp_path: Path) -> None:
    cases: tuple[tuple[str, dict[str, Any], str, str], ...] = (
        ("ViTForImageClassification", {}, "?feature_layer=1", "this model is a classifier; leave it out"),
        ("ViTModel", {"pooler_act": "relu"}, "", "pooler_act relu is not supported"),
        ("Siglip2VisionModel", {"num_patches": 35}, "", "num_patches=35 form no square"),
    )
    for cls, more, options, said in cases:
        folder = tmp_path / cls
        folder.mkdir()
        tiny_tower(folder, cls, **more)
        with pytest.raises(TrtCompressError) as raised:
            load_host(f"hf:{folder}{options}")
        assert said in raised.value.message
