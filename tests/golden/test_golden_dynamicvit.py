"""DynamicViT against vectors of the authors' code: its heads, and a model from image to logits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

from tests.golden.golden_data import (
    MODEL_TOLERANCE,
    OPERATOR_TOLERANCE,
    assert_close,
    cases_on_disk,
    load_vit,
    read,
    run_exported,
)
from tests.models.arrivals import a_host
from trt_compress.errors import TrtCompressError
from trt_compress.methods import ArtifactFile, CompressorSpec, parse_spec
from trt_compress.methods.vision import DynamicVitConfig
from trt_compress.models.compressors.dynamicvit import DynamicVit, Predictor, predictors_of
from trt_compress.models.compressors.place import place_one
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_vit import attach
from trt_compress.tools.cli.main import app

HEADS = ("predictor_odd_c", "predictor_ones", "predictor_policy")


def test_every_case_is_compared() -> None:
    assert cases_on_disk("dynamicvit") == {*HEADS, "vit_tiny"}


@pytest.mark.parametrize("case", HEADS)
def test_a_head(case: str) -> None:
    """With a policy of ones, as at inference; one that leaves some out is of training."""
    arrays, meta = read("dynamicvit", case)
    head = Predictor(arrays["x"].shape[2])
    head.load_state_dict({name[2:]: tensor for name, tensor in arrays.items() if name.startswith("w.")})
    with torch.no_grad():
        found = head(arrays["x"])
    assert_close(found, arrays["logprob_ones"], OPERATOR_TOLERANCE)
    for count in meta["keeps"]:
        order = found[..., 0].argsort(dim=1, descending=True, stable=True)[:, :count]
        assert torch.equal(order, arrays[f"keep_idx_{count}"])


def with_heads(arrays: dict[str, Any], options: str) -> CompressorSpec:
    (spec,) = parse_spec(f"dynamicvit:{options}")
    heads = dict(DynamicVit.adopt({name[2:]: each for name, each in arrays.items() if name.startswith("w.")}, None))
    assert isinstance(spec.config, DynamicVitConfig)
    file = ArtifactFile("heads", save({name: tensor.contiguous() for name, tensor in heads.items()}))
    return replace(spec, config=replace(spec.config, predictor=file))


def test_a_model() -> None:
    arrays, meta = read("dynamicvit", "vit_tiny")
    sizes = dict(meta["model"])
    layers, ratios = sizes.pop("pruning_loc"), sizes.pop("token_ratio")
    vit = load_vit({name: each for name, each in arrays.items() if "score_predictor" not in name}, sizes)
    lists = ",".join(map(str, layers)), ",".join(map(str, ratios))
    module = attach(vit, [with_heads(arrays, f"layers=[{lists[0]}],keep_ratio=[{lists[1]}]")])
    counts = [int(site.tokens_out) - 1 for site in module.plan]
    assert counts == [arrays[f"keep_idx_stage{stage}"].shape[1] for stage in range(3)]
    assert [site.name for site in module.plan] == [f"before.{layer}" for layer in layers]
    with torch.no_grad():
        assert_close(module(arrays["image"]), arrays["logits"], MODEL_TOLERANCE)
    assert_close(run_exported(module, arrays["image"]), arrays["logits"], MODEL_TOLERANCE)


SOURCE = """
from timm.models.vision_transformer import VisionTransformer
def make():
    return VisionTransformer(**SIZES)
"""


def test_one_file_of_the_authors_has_the_model_and_the_heads(tmp_path: Path) -> None:
    """With the official names in it, as `--weights` and as `--tensors`: the logits are the authors'."""
    arrays, meta = read("dynamicvit", "vit_tiny")
    sizes = dict(meta["model"])
    layers, ratios = sizes.pop("pruning_loc"), sizes.pop("token_ratio")
    (tmp_path / "net.py").write_text(SOURCE.replace("SIZES", repr(sizes)))
    file, heads, name = tmp_path / "dynamic-vit.pth", tmp_path / "heads.safetensors", f"{tmp_path}/net.py:make"
    names = {name[2:]: each for name, each in arrays.items() if name.startswith("w.")}
    assert any(each.startswith("score_predictor.2.out_conv") for each in names)
    torch.save({"model": names}, file)
    spec = f"dynamicvit:layers={layers},keep_ratio={ratios}".replace(" ", "")
    command = ["calibrate", name, "--weights", file, "--compress", spec, "--tensors", file, "-o", heads]
    done = CliRunner().invoke(app, [str(part) for part in command])
    assert done.exit_code == 0, done.stderr
    host = load_host(name, weights=str(file))
    said = "its tensors of dynamicvit are for an artifact (calibrate --tensors)"
    assert said in (host.weights.provenance or "").split("; ")
    (graph,) = host.attach(parse_spec(f"{spec},predictor={heads}"))
    with torch.no_grad():
        assert_close(graph.module(arrays["image"]), arrays["logits"], MODEL_TOLERANCE)


def test_other_tensors_beside_the_model_are_refused_as_before(tmp_path: Path) -> None:
    arrays, meta = read("dynamicvit", "vit_tiny")
    sizes = {name: each for name, each in meta["model"].items() if name not in ("pruning_loc", "token_ratio")}
    (tmp_path / "net.py").write_text(SOURCE.replace("SIZES", repr(sizes)))
    names = {name[2:]: each for name, each in arrays.items() if name.startswith("w.")}
    torch.save({"model": names | {"score_head.weight": torch.ones(2)}}, tmp_path / "more.pth")
    with pytest.raises(TrtCompressError, match="it has more than the model: score_head.weight"):
        load_host(f"{tmp_path}/net.py:make", weights=str(tmp_path / "more.pth"))


def test_what_is_refused() -> None:
    arrays, _ = read("dynamicvit", "vit_tiny")
    host = a_host(4, 197, 1, kinds=("after_attention",), width=32)
    with pytest.raises(TrtCompressError, match="acts at before_layer, but tiny offers only after_attention"):
        place_one([with_heads(arrays, "layers=[1,2,3]")], host)
    sizes = {"depth": 4, "embed_dim": 16, "img_size": 56, "num_heads": 2, "patch_size": 4, "num_classes": 3}
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(**sizes).eval()  # type: ignore[arg-type]
    for options, said in (
        ("layers=[1,2]", r"has 3 heads, and layers=\[1, 2\] of .* need 2; give layers= with as many"),
        ("layers=[1,2,3]", r"does not fit the 16 channels of .* \(in_conv.0.weight\)"),
        ("layers=[1,2,4]", r"names layer 4, but .* has layers 0\.\.3"),
    ):
        with pytest.raises(TrtCompressError, match=said):
            attach(vit, [with_heads(arrays, options)])
    with pytest.raises(TrtCompressError, match="predictor=FILE is missing; make it with `trt-compress calibrate"):
        attach(vit, parse_spec("dynamicvit"))
    with pytest.raises(TrtCompressError, match="the file has no score_predictor"):
        predictors_of({"blocks.0.norm1.weight": torch.ones(3)}, "the file")
