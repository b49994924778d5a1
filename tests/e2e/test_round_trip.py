"""The main job as a user does it: export, repeat, verify, build, run, elsewhere; and both interfaces agree."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import trt_compress
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.export import api
from trt_compress.export.precision import with_precision
from trt_compress.export.targets import get_target
from trt_compress.methods import METHODS, parse_spec
from trt_compress.models.compressors.place import place_one
from trt_compress.models.compressors.sites import HostInfo, layer_sites, leading_spans
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_vit import attach
from trt_compress.models.zoo.data.digits import digits_split
from trt_compress.runtime import Bundle, Session

Typed = Callable[..., Any]
Exported = Callable[..., Path]
TOME = "tome:num_merged=4"
OPTIONS = {"tome": TOME, "frame_pool": "frame_pool:layer=3"}  # where the default does not act in this model
FP16: dict[str, Any] = {"precision": "fp16", "targets": ("rtx", "jetson-orin-jp6")}
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def torch_logits(spec: str, images: np.ndarray[Any, Any], precision: str = "fp32") -> np.ndarray[Any, Any]:
    host = load_host("zoo:digits_vit")
    module = with_precision(attach(host.module, parse_spec(spec)).eval(), precision)
    with torch.no_grad():
        return np.asarray(module(torch.from_numpy(images)))


def session_logits(bundle: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with Session.open(bundle) as session:
        return session.run({"image": images})["logits"]


# ---- every compressor -----------------------------------------------------------------------------------------------


TAPPED_LAYERS = layer_sites("after_attention", 8, taps=("keys", "class_attention"))
A_TOWER = HostInfo(name="a tower", sites=TAPPED_LAYERS, depth=8, num_tokens=65, protected=leading_spans([("class", 1)]))
"""What a classifier of images offers."""


def acts_on_images(name: str) -> bool:
    try:
        place_one(parse_spec(OPTIONS.get(name, name)), A_TOWER)
    except (ConfigError, UnsupportedError):  # UnsupportedError: it wants what no classifier has, as texts
        return False
    return True


IMAGE_COMPRESSORS = [name for name in METHODS if acts_on_images(name)]


@pytest.mark.parametrize("name", IMAGE_COMPRESSORS)
def test_every_compressor_exports_runs_and_fits_rtx(name: str, exported: Exported) -> None:
    spec = OPTIONS.get(name, name)
    bundle = exported(spec)
    manifest = Bundle.open(bundle).manifest
    assert manifest.verification is not None and manifest.verification.passed
    assert {site.compressor for site in manifest.compression} == {name}
    assert all(site.tokens_out < site.tokens_in for site in manifest.compression)  # type: ignore[operator]
    assert api.preflight(bundle, target="rtx") == ()
    images = digits_split().test_images[:16]
    np.testing.assert_allclose(session_logits(bundle, images), torch_logits(spec, images), rtol=1e-4, atol=1e-4)


def test_without_a_compressor_the_bundle_is_the_model(exported: Exported) -> None:
    bundle = exported("none")
    manifest = Bundle.open(bundle).manifest
    assert (manifest.compression, manifest.operators) == ((), ())
    images = digits_split().test_images[:16]
    host = load_host("zoo:digits_vit")
    with torch.no_grad():
        expected = host.module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session_logits(bundle, images), expected, rtol=1e-4, atol=1e-4)


# ---- repeating an export --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_recipe_of_a_bundle_makes_the_same_file_again(
    exported: Exported, typed_alone: Typed, place: Path, tmp_path: Path
) -> None:
    first = exported(TOME)
    finished = typed_alone("export", first / "recipe.toml", "-o", "again", "--json")
    assert finished.code == 0, finished.err
    for name in ("model.onnx", "recipe.toml", "verify.json"):
        assert (place / "again" / name).read_bytes() == (first / name).read_bytes(), name
    assert Bundle.open(place / "again").manifest == Bundle.open(first).manifest
    summary = json.loads(finished.out)
    assert "trained here on" in summary.pop("provenance")
    assert summary == {
        "bundle": "again",
        "model": "zoo:digits_vit",
        "weights": "digits_vit.safetensors",
        "compressors": TOME,
        "precision": "fp32",
        "opset": 20,
        "targets": ["cpu"],
        "batch": "1:4:8",
        "tokens": [65, 61, 57, 53, 49, 45, 41, 37, 33],
        "gflops": pytest.approx(0.094, abs=0.002),
        "flops_reduction": pytest.approx(1.36, abs=0.02),
        "operators": {"TokenMerge": 8},
        "verified": summary["verified"],
        "method": "",
        "weight_forms": [summary["weight_forms"][0] | {"dtype": "float32", "group": None}],
        "int8": [],
        "quantization_error": None,
        "deployment_error": None,
        "warnings": [],
    }
    assert summary["verified"].startswith("largest error ")


def test_options_win_over_a_recipe(exported: Exported, typed: Typed, place: Path) -> None:
    recipe = exported(TOME) / "recipe.toml"
    planned = json.loads(typed("export", recipe, "-o", "out", "--dry-run", "--json").out)
    assert (planned["compressors"], planned["batch"], planned["targets"]) == (TOME, "1:4:8", ["cpu"])
    options = ("--compress", "evit", "--batch", "1:2:3", "--target", "rtx", "--precision", "fp16", "--opset", "18")
    planned = json.loads(typed("export", recipe, "-o", "out", "--dry-run", "--json", *options).out)
    assert (planned["compressors"], planned["batch"], planned["targets"]) == ("evit", "1:2:3", ["rtx"])
    assert (planned["precision"], planned["opset"]) == ("fp16", 18)


def test_a_dry_run_writes_nothing(typed: Typed, place: Path) -> None:
    finished = typed("export", "zoo:digits_vit", "--compress", TOME, "-o", "out", "--dry-run")
    assert finished.code == 0 and finished.out.startswith("Would export\n")
    assert list(place.iterdir()) == []


@pytest.mark.slow
def test_force_replaces_the_bundle(typed: Typed, copied: Typed, place: Path) -> None:
    bundle = copied("out", compress=TOME)
    finished = typed("export", "zoo:digits_vit", "-o", "out", "--compress", "evit", "--batch", "1:1:1", "--force")
    assert finished.code == 0, finished.err
    manifest = Bundle.open(bundle).manifest
    assert {site.compressor for site in manifest.compression} == {"evit"}
    assert (manifest.batch.min, manifest.batch.opt, manifest.batch.max) == (1, 1, 1)
    assert [path.name for path in place.iterdir()] == ["out"]
    assert session_logits(bundle, digits_split().test_images[:1]).shape == (1, 10)
    assert typed("verify", "out").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 19])
def test_every_opset_verifies(opset: int, exported: Exported) -> None:
    bundle = exported(TOME, opset=opset)
    model = onnx.load(bundle / "model.onnx")
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    assert all(entry.version == opset for entry in model.functions[0].opset_import)
    assert api.verify(bundle).passed


# ---- the two interfaces ---------------------------------------------------------------------------------------------


def test_python_and_command_line_agree(exported: Exported, typed: Typed) -> None:
    bundle = exported(TOME)
    assert json.loads(typed("verify", bundle, "--json").out) == trt_compress.verify(bundle).to_json()
    planned = trt_compress.export_model("zoo:digits_vit", output="out", compress=TOME, dry_run=True)
    command = ("export", "zoo:digits_vit", "-o", "out", "--compress", TOME, "--dry-run", "--json")
    assert json.loads(typed(*command).out) == planned.summary()
    preflight = json.loads(typed("preflight", bundle, "--target", "rtx", "--json").out)
    assert preflight.pop("checked")
    assert preflight == {"target": "rtx", "findings": []}
    assert trt_compress.preflight(bundle, target="rtx") == trt_compress.preflight(bundle / "model.onnx", target="rtx")


@needs_rtx
def test_a_planned_build_is_what_is_built(copied: Typed, typed: Typed, place: Path) -> None:
    bundle = copied(compress=TOME)
    before = (bundle / "manifest.json").read_bytes()
    plan = json.loads(typed("build", "bundle", "--target", "rtx", "--dry-run", "--json").out)
    assert (bundle / "manifest.json").read_bytes() == before and not (bundle / "engines").exists()

    built = json.loads(typed("build", "bundle", "--target", "rtx", "--json").out)
    assert {key: built[key] for key in ("target", "library", "file", "precision_asked")} == {
        key: plan[key] for key in ("target", "library", "file", "precision_asked")
    }
    manifest = Bundle.open(bundle).manifest
    assert [engine.to_json() for engine in manifest.engines] == [built]
    assert hashlib.sha256((bundle / built["file"]).read_bytes()).hexdigest() == built["sha256"]
    assert built["onnx_sha256"] == manifest.files["model.onnx"].sha256
    assert built["paths"] == {"TrtcTokenMerge": {"plugin": 0, "function": 8}}
    assert built["profile"]["image"] == {"min": [1, 1, 8, 8], "opt": [4, 1, 8, 8], "max": [8, 1, 8, 8]}

    again = typed("build", "bundle", "--target", "rtx")
    assert again.code == 2
    assert again.err == "error: bundle already has an engine for 'rtx'.\nHint: --force replaces it.\n"
    assert typed("build", "bundle", "--target", "rtx", "--force").code == 0
    assert len(Bundle.open(bundle).manifest.engines) == 1
    assert typed("verify", "bundle").code == 0


# ---- half precision, other forms ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_half_precision_is_in_the_graph(exported: Exported) -> None:
    bundle = exported(TOME, **FP16)
    model = onnx.load(bundle / "model.onnx")
    assert [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)] == [1, 1]
    matrices = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2]
    assert len(matrices) > 30 and all(tensor.data_type == TensorProto.FLOAT16 for tensor in matrices)
    images = digits_split().test_images[:8]
    half, full = session_logits(bundle, images), torch_logits(TOME, images)
    assert (half.argmax(axis=1) == full.argmax(axis=1)).all() and not np.array_equal(half, full)
    assert api.verify(bundle).passed


@pytest.mark.slow
@needs_rtx
def test_half_precision_is_achieved_in_the_engine(copied: Typed, typed: Typed) -> None:
    copied(compress=TOME, **FP16)
    built = json.loads(typed("build", "bundle", "--target", "rtx", "--json").out)
    assert built["precision_asked"] == "fp16"
    assert built["precision_achieved"]["model"].keys() == {"fp16"}


@pytest.mark.slow
def test_a_target_of_plugins_gets_its_own_file(exported: Exported) -> None:
    bundle = exported(TOME, **FP16)
    manifest = Bundle.open(bundle).manifest
    (lowered,) = manifest.lowered
    assert (lowered.target, lowered.lowering) == ("jetson-orin-jp6", "plugin")
    content = (bundle / lowered.file).read_bytes()
    assert hashlib.sha256(content).hexdigest() == lowered.sha256 == manifest.files[lowered.file].sha256
    whole = onnx.load(bundle / "model.onnx", load_external_data=False)
    stripped = onnx.load_from_string(content)
    assert len(whole.functions) == 1 and len(stripped.functions) == 0
    assert stripped.graph == whole.graph
    (finding,) = api.preflight(bundle, target="jetson-orin-jp6")
    assert (finding.severity, finding.rule, finding.node) == ("warning", "needs-plugin", "blocks.0/TokenMerge")
    assert get_target("jetson-orin-jp6").lowering == "plugin"


# ---- where neither torch nor onnx is --------------------------------------------------------------------------------


def test_a_bundle_runs_where_only_the_runtime_is_installed(exported: Exported, place: Path) -> None:
    images = digits_split().test_images[:4]
    np.save("images.npy", images)
    program = f"""
import sys
for name in ("torch", "onnx", "onnxscript", "timm", "transformers", "safetensors", "polygraphy"):
    sys.modules[name] = None
import numpy as np
import trt_compress
with trt_compress.runtime.Session.open({str(exported(TOME))!r}) as session:
    np.save("logits.npy", session.run({{"image": np.load("images.npy")}})["logits"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_allclose(np.load("logits.npy"), torch_logits(TOME, images), rtol=1e-4, atol=1e-4)
