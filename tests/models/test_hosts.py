"""Models by name: what is listed, what is loaded, and what an unknown name is told."""

import fnmatch
from typing import Any

import pytest
import timm
import torch

from tests.models.vits import run
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.model_name import TIMM_REFUSED, timm_refusal
from trt_compress.models.hosts.registry import list_models, load_host
from trt_compress.models.hosts.timm_families import MODULES, check_supported
from trt_compress.models.hosts.timm_vit import classifier_graph


def test_the_zoo_and_timm_are_listed() -> None:
    names = [info.name for info in list_models()]
    assert names[0] == "zoo:digits_vit"
    assert {"timm:deit_small_patch16_224", "timm:deit_tiny_distilled_patch16_224", "timm:vit_base_patch16_224"} < {
        *names
    }
    assert not [name for name in names if "swin" in name or "resnet" in name]
    assert len(set(names)) == len(names)


def refusal(name: str) -> str:
    """What building the model shows; on the meta device and with one block of its kind, so that it costs little."""
    with torch.device("meta"):
        module = _with_one_block(name)
    try:
        check_supported(module, name)
    except UnsupportedError as error:
        return str(error).partition("; this host drives")[0]
    return ""


def _with_one_block(name: str) -> Any:
    """Of images of one size, as the host builds it where timm's own takes any."""
    of_eva = timm.list_models(name, module="eva")
    keywords: dict[str, Any] = {"depth": 1} if of_eva else {"depth": 1, "weight_init": "skip"}
    if "sapiens2" in name:  # which has a number for each block
        keywords["num_kv_heads"] = 1
    module: Any = timm.create_model(name, **keywords)
    return timm.create_model(name, **keywords, dynamic_img_size=False) if module.dynamic_img_size else module


@pytest.mark.parametrize("pattern", TIMM_REFUSED)
def test_no_pattern_of_refused_names_is_left_over(pattern: str) -> None:
    assert fnmatch.filter(timm.list_models(module=list(MODULES)), pattern)


def test_every_name_of_timm_is_judged_as_building_it_would() -> None:
    names = timm.list_models(module=list(MODULES))
    wrong = {}
    for name in names:
        what, said = timm_refusal(name), refusal(name)
        if said != (f"{name}: {what} is not supported" if what else ""):
            wrong[name] = (what, said)
    assert len(names) > 200
    assert wrong == {}


def test_what_is_listed_is_what_is_not_refused() -> None:
    names = timm.list_models(module=list(MODULES))
    listed = {info.name for info in list_models() if info.family in ("timm_vit", "timm_eva")} - {"zoo:digits_vit"}
    assert listed == {f"timm:{name}" for name in names if timm_refusal(name) is None}


@pytest.mark.parametrize("name", ["vit_so400m_patch14_siglip_378", "vit_giantopt_patch16_siglip_384.v2_webli"])
def test_a_refused_name_is_refused_before_anything_is_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: object, **more: object) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr(timm, "create_model", build)
    for weights in (None, "pretrained", "no_such_file.pth"):
        with pytest.raises(UnsupportedError, match=f"timm:{name}: global_pool='map' is not supported"):
            load_host(f"timm:{name}", weights=weights)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vit_tiny_patch16_224",
            r"model 'vit_tiny_patch16_224' is not known; write timm:NAME .*, zoo:NAME .* or hf:PATH",
        ),
        ("hub:vit", r"model 'hub:vit' is not known; write timm:NAME"),
        (
            "timm:vit_tiny_patch16_225",
            r"'timm:vit_tiny_patch16_225' is not known to timm 1.* Did you mean 'vit_tiny_patch16",
        ),
        ("timm:", r"model 'timm:' is not known to timm"),
        (
            "zoo:digit_vit",
            r"model 'zoo:digit_vit' is not known; there are zoo:digits_vit, .*\. Did you mean 'zoo:digits_vit'\?",
        ),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_host(name)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("swin_tiny_patch4_window7_224", "model class SwinTransformer"),
        ("vit_pwee_patch16_reg1_gap_256", "block type Para"),
    ],
)
def test_a_model_no_host_drives_is_refused_by_name(name: str, what: str) -> None:
    with pytest.raises(UnsupportedError, match=f"timm:{name}: {what}.* is not supported"):
        load_host(f"timm:{name}")


def test_random_weights_are_the_same_each_time_and_said_to_be_random() -> None:
    first, second = (load_host("timm:vit_tiny_patch16_224") for _ in range(2))
    assert first.weights.source == "random (seed 0)"
    assert first.weights.sha256 == second.weights.sha256
    assert first.attach(())[0].inputs[0].shape == ("batch", 3, 224, 224)
    tensors = second.module.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in first.module.state_dict().items())


def test_preprocessing_is_that_of_the_model() -> None:
    host = load_host("timm:vit_tiny_patch16_224")
    assert host.preprocess["mean"] == [0.5, 0.5, 0.5]
    assert host.preprocess["layout"] == "NCHW"
    assert host.postprocess == {"kind": "classification", "classes": 1000}


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_gap_224"])
def test_a_model_without_a_classifier_gives_its_features(name: str) -> None:
    with torch.device("meta"):
        module: Any = timm.create_model(name).eval()
    size: tuple[int, int] = module.patch_embed.img_size
    graph = classifier_graph(module, (), name=name, input_shape=(3, *size))
    (features,) = graph.outputs
    assert features.name == "features"
    assert tuple(graph.module(torch.empty(2, 3, *size, device="meta")).shape) == (2, features.shape[1])


def test_the_zoo_brings_weights_and_real_inputs() -> None:
    host = load_host("zoo:digits_vit")
    (graph,) = host.attach(())
    assert graph.examples is not None
    images = graph.examples(5)[0]["image"]
    assert images.shape == (5, *graph.inputs[0].shape[1:])
    assert host.weights.license and host.weights.provenance and host.weights.sha256
    assert run(host.module, torch.from_numpy(images)).shape == (5, 10)
