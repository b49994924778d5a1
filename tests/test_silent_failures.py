"""Failures that other toolchains pass over in silence. Here each of them is an error, or stands in the result."""

import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from trt_compress import children
from trt_compress.errors import (
    BuildError,
    BundleError,
    ConfigError,
    GateError,
    PluginError,
    ShapeError,
    UnsupportedError,
)
from trt_compress.export import api
from trt_compress.export import compare as compare_module
from trt_compress.export.build import BatchRange, build_engine
from trt_compress.export.bundle import write_bundle
from trt_compress.export.targets import get_target
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_vit import attach
from trt_compress.models.zoo.digits_vit.model import WEIGHTS_FILE
from trt_compress.plugins.library import Library
from trt_compress.runtime import Bundle, Manifest, Session
from trt_compress.runtime.measure.latency import summarize
from trt_compress.tools.cli.main import app

Exported = Callable[..., Path]
TOME = "tome:num_merged=4"
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def planned_tokens(model: str, compress: str) -> list[int | str]:
    """Tokens before the first site and after every site."""
    plan = attach(load_host(model).module, parse_spec(compress), name=model).plan
    return [plan[0].tokens_in, *(site.tokens_out for site in plan)]


def rewritten(bundle: Path, output: Path, change: Callable[[Manifest], Manifest], **files: bytes) -> Path:
    """A bundle with another manifest or other files, and hashes that are right."""
    opened = Bundle.open(bundle)
    content: dict[str, bytes | Path] = {name: opened.file(name) for name in opened.manifest.files}
    write_bundle(output, change(opened.manifest), {**content, **files})
    return output


@pytest.fixture(scope="module")
def built(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine for rtx."""
    bundle = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(exported(TOME), bundle)
    api.build(bundle, target="rtx")
    return bundle


def test_a_tolerance_that_is_exceeded_exits_3(exported: Exported, tmp_path: Path) -> None:
    """A tolerance is exceeded, a warning is printed, and the exit code is 0.

    Covered: `verify` of a graph with one changed bias exits 3 and prints which check failed.
    """
    model = onnx.load(exported(TOME) / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "vit.head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.05), bias.name))
    bundle = rewritten(exported(TOME), tmp_path / "b", lambda m: m, **{"model.onnx": model.SerializeToString()})
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 3
    assert "Failed; the first divergence is at output logits (batch 1)." in result.stdout
    assert result.stderr.startswith("error: verification failed: ONNX Runtime and torch differ first at output logits")


@pytest.mark.slow
def test_an_export_that_cannot_be_proven_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose check failed is written all the same.

    Covered: an export whose verification fails raises and leaves no bundle.
    """
    monkeypatch.setitem(compare_module.TOLERANCE, "fp32", 1e-12)
    with pytest.raises(GateError, match="^verification failed: ONNX Runtime and torch differ first at "):
        api.export_model("zoo:digits_vit", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_half_precision_that_was_not_achieved_fails_the_build(exported: Exported, tmp_path: Path) -> None:
    """fp16 is asked for, fp32 is built.

    Covered: a bundle that says fp16 and whose graph is fp32 gets no engine; the gate names the first layer.
    """
    bundle = rewritten(exported(TOME), tmp_path / "b", lambda manifest: replace(manifest, precision="fp16"))
    with pytest.raises(GateError, match="^precision=fp16 was asked for, and the network has compute layers 50 in fp32"):
        api.build(bundle, target="rtx")
    assert Bundle.open(bundle).manifest.engines == () and not (bundle / "engines").exists()


def test_int8_that_the_graph_has_not_is_a_failed_gate(exported: Exported) -> None:
    """int8 is asked for and not one layer is int8.

    Covered: export wants samples or `dynamic`, and a build reads back what the network has instead of taking int8 for a
    hint.
    """
    with pytest.raises(ConfigError, match="^precision int8 finds ranges from samples, and none are given; "):
        api.export_model("zoo:digits_vit", output="never-written", precision="int8", dry_run=True)
    model = onnx.load(exported(TOME) / "model.onnx")
    said = r"^precision=int8 was asked for, and of [1-9]\d* layers with weights 0 are in INT8 in the network "
    with pytest.raises(GateError, match=said):
        build_engine(model, get_target("rtx"), batch=BatchRange(min=1, opt=1, max=1), precision="int8")


def test_a_scatter_reduction_is_refused_before_it_could_be_dropped(tmp_path: Path) -> None:
    """The reduction of a scatter is dropped and the last value wins.

    Covered: preflight finds it for every TensorRT target and names the node; the command exits 3.
    """
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[4,8] x, int64[4,8] i, float[4,8] u) => (float[4,8] y) {
      y = ScatterElements<axis=1, reduction="add">(x, i, u)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.node[0].name = "merge"
    onnx.save(model, tmp_path / "scatter.onnx")
    for target in ("rtx", "jetson-orin-jp6", "x86-trt11"):
        findings = api.preflight(tmp_path / "scatter.onnx", target=target)
        assert [(finding.rule, finding.node) for finding in findings] == [("scatter-elements-reduction", "merge")]
    result = CliRunner().invoke(app, ["preflight", str(tmp_path / "scatter.onnx"), "--target", "rtx"])
    assert result.exit_code == 3 and "at node 'merge'" in result.stderr


def test_a_combination_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A combination of prunings that is not supported runs unpruned.

    Covered: two methods that need the same attention are refused by name, and so is one that the model cannot feed;
    a combination that fits prunes at both.
    """
    with pytest.raises(ConfigError, match="^evit: at blocks.2 tome has already changed the tokens that its class_att"):
        planned_tokens("zoo:digits_vit", f"{TOME}+evit")
    with pytest.raises(UnsupportedError, match="^evit: timm:vit_base_patch16_siglip_gap_224 has no class token"):
        planned_tokens("timm:vit_base_patch16_siglip_gap_224", "evit")
    assert planned_tokens("zoo:digits_vit", "tome:num_merged=[0,4]+evit:layers=[4],keep_ratio=0.5") == [65, 61, 32]


@pytest.mark.parametrize("ratio", ["0", "-0.3", "1.01", "30", "nan", "inf"])
def test_a_ratio_out_of_range_is_refused(ratio: str) -> None:
    """A ratio out of range becomes 0, and nothing is pruned.

    Covered: every ratio outside (0, 1] is refused with the range.
    """
    for name in ("evit", "random"):
        with pytest.raises(
            ConfigError, match=f"^{name}: keep_ratio=.* is out of range; it is the share of tokens kept"
        ):
            planned_tokens("zoo:digits_vit", f"{name}:keep_ratio={ratio}")


@needs_rtx
def test_the_path_of_every_operator_is_on_record(built: Path) -> None:
    """The plugin is missing and the function is used.

    Covered: the engine's record counts plugins and functions for each operator, so that a missing plugin shows, and a
    plugin library is refused by the target that cannot load it.
    """
    (engine,) = Bundle.open(built).manifest.engines
    assert engine.paths == {"TrtcTokenMerge": {"plugin": 0, "function": 8}}
    library = Library(kind="tensorrt", path=Path("plugins.so"), info={"source_hash": "0"})
    with pytest.raises(PluginError, match="^TensorRT-RTX takes no plugins, .*; build for the target 'rtx' without"):
        build_engine(
            onnx.load(built / "model.onnx"),
            get_target("rtx"),
            batch=BatchRange(min=1, opt=1, max=1),
            precision="fp32",
            plugins=library,
        )


def test_a_missing_tensor_is_never_a_default(tmp_path: Path) -> None:
    """Scales that a checkpoint lacks become 1.0.

    Covered: a checkpoint without one tensor is refused by the tensor's name. Scales of a quantized cache come with it.
    """
    tensors = load_file(WEIGHTS_FILE)
    del tensors["norm.weight"]
    save_file(tensors, tmp_path / "lacking.safetensors")
    with pytest.raises(
        ConfigError, match="^weights: lacking.safetensors does not fit the model: it misses norm.weight"
    ):
        api.export_model(
            "zoo:digits_vit", output="never-written", weights=tmp_path / "lacking.safetensors", dry_run=True
        )


def test_merges_are_cut_only_when_asked_and_on_record() -> None:
    """More merges than half the tokens are cut.

    Covered: they are refused; `over_limit=clamp` cuts them, and the manifest says so and lists the true counts.
    """
    with pytest.raises(
        ConfigError, match="^tome: num_merged=20 is too large at layer 2 of zoo:digits_vit: of 25 tokens"
    ):
        planned_tokens("zoo:digits_vit", "tome:num_merged=20")
    clamped = "tome:num_merged=20,over_limit=clamp"
    assert planned_tokens("zoo:digits_vit", clamped) == [65, 45, 25, 13, 7, 4, 3, 2]
    manifest = api.export_model("zoo:digits_vit", output="never-written", compress=clamped, dry_run=True).manifest
    assert all(site.config["over_limit"] == "clamp" for site in manifest.compression)


def test_counts_belong_to_the_input_size(exported: Exported) -> None:
    """The number of merges is fixed for one input size and used for another.

    Covered: the same spec gives each input size its own counts, and a bundle refuses inputs of another size.
    """
    assert planned_tokens("timm:vit_tiny_patch16_224", "evit")[:2] == [197, 140]
    assert planned_tokens("timm:vit_tiny_patch16_384", "evit")[:2] == [577, 406]
    assert planned_tokens("timm:vit_tiny_patch16_384", "tome:num_merged=[150]") == [577, 427]
    with pytest.raises(ConfigError, match="^tome: num_merged=150 is too large at layer 0 .* of 197 tokens there"):
        planned_tokens("timm:vit_tiny_patch16_224", "tome:num_merged=[150]")
    with Session.open(exported(TOME)) as session, pytest.raises(ShapeError, match="'image' has 16 on axis 2"):
        session.run({"image": np.zeros((1, 1, 16, 16), np.float32)})


@needs_rtx
@pytest.mark.slow
def test_an_engine_never_outlives_what_it_was_built_from(built: Path, exported: Exported, tmp_path: Path) -> None:
    """An engine is used again though the model, the plugin, the driver or the GPU changed.

    Covered: an engine's record holds the hash of its ONNX file and the version of its library, an engine or ONNX file
    of other bytes is refused, and a new export drops the engine. Driver and GPU come with the engine's runtime.
    """
    manifest = Bundle.open(built).manifest
    (engine,) = manifest.engines
    assert engine.onnx_sha256 == manifest.files["model.onnx"].sha256
    assert get_target("rtx").takes_version(engine.library_version)

    for name in (engine.file, "model.onnx"):
        bundle = tmp_path / name.replace("/", "-")
        shutil.copytree(built, bundle)
        content = (built / (engine.file if name == "model.onnx" else "model.onnx")).read_bytes()
        (bundle / name).write_bytes(content)
        with pytest.raises(BundleError, match=f"^'{name}' in the bundle .* was changed"):
            Bundle.open(bundle)

    again = tmp_path / "again"
    shutil.copytree(built, again)
    api.export_model("zoo:digits_vit", output=again, batch="1", force=True)
    assert Bundle.open(again).manifest.engines == () and not (again / "engines").exists()


@needs_rtx
def test_a_build_that_was_killed_says_so_and_adds_nothing(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build is killed for memory, and the tool says "completed" without a file.

    Covered: a killed builder is one sentence with the usual cause, exit code 1, and the bundle is as it was.
    """
    bundle = tmp_path / "bundle"
    shutil.copytree(exported(TOME), bundle)
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    suicide = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"]
    monkeypatch.setattr(children, "python_command", lambda *_: suicide)
    with pytest.raises(BuildError, match=r"^the TensorRT-RTX builder was killed \(signal 9, Killed\), usually memory"):
        api.build(bundle, target="rtx")
    result = CliRunner().invoke(app, ["build", str(bundle), "--target", "rtx"])
    assert result.exit_code == 1 and result.stdout == ""
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_a_percentile_needs_enough_samples() -> None:
    """p99 is printed from 100 runs.

    Covered: it is None with the reason until there are 662.
    """
    few = summarize(range(1, 101))
    assert few.p99_ns is None and few.reasons["p99_ns"] == "n too small: 100 of 662"
    assert few.p90_ns == 90
    assert summarize(range(1, 663)).p99_ns == 656
