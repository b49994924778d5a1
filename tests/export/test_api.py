"""The steps as plain functions: what they return, what they tell on the way, and what a failed gate leaves."""

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import trt_compress
from trt_compress.errors import BundleError, ConfigError, GateError, UnsupportedError
from trt_compress.export import api, check, engines, pipeline
from trt_compress.export.preflight import Finding
from trt_compress.export.verify_report import VerifyReport
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_vit import attach
from trt_compress.runtime import Bundle

Exported = Callable[..., Path]
TOME = "tome:num_merged=4"


def test_the_manifest_says_what_was_made(exported: Exported) -> None:
    manifest = Bundle.open(exported(TOME)).manifest
    (graph,) = manifest.graphs
    assert (manifest.model.source, manifest.model.family, manifest.name) == (
        "zoo:digits_vit",
        "timm_vit",
        f"zoo:digits_vit {TOME}",
    )
    assert [(info.name, info.dtype, info.shape) for info in graph.inputs] == [("image", "float32", ("batch", 1, 8, 8))]
    assert [(info.name, info.dtype, info.shape) for info in graph.outputs] == [("logits", "float32", ("batch", 10))]
    assert [(site.site, site.tokens_in, site.tokens_out) for site in manifest.compression] == [
        (f"blocks.{layer}", 65 - 4 * layer, 61 - 4 * layer) for layer in range(8)
    ]
    (operator,) = manifest.operators
    assert (operator.name, operator.op_type, operator.domain, operator.nodes) == (
        "TokenMerge",
        "TrtcTokenMerge",
        "trt_compress",
        8,
    )
    assert manifest.created_with["trt-compress"] == trt_compress.__version__
    assert manifest.created_with["torch"] == metadata.version("torch")
    assert manifest.model.weights.license and manifest.model.weights.provenance
    assert manifest.flops is not None and manifest.baseline_flops is not None
    assert manifest.baseline_flops > manifest.flops["total"] > 0
    assert manifest.verification is not None and manifest.verification.file in manifest.files


def test_no_file_of_a_bundle_names_a_folder_of_this_machine(exported: Exported) -> None:
    here = str(Path(trt_compress.__file__).resolve().parents[2]).encode()
    for path in exported(TOME).rglob("*"):
        assert not path.is_file() or (here not in path.read_bytes() and b"site-packages" not in path.read_bytes())


def test_a_dry_run_knows_everything_but_the_graph(exported: Exported, tmp_path: Path) -> None:
    steps: list[str] = []
    result = api.export_model(
        "zoo:digits_vit", output=tmp_path / "out", compress=TOME, dry_run=True, progress=steps.append
    )
    written = Bundle.open(exported(TOME)).manifest
    assert result.path is None and not (tmp_path / "out").exists()
    assert steps == ["loading the model", "counting operations"]
    graphs = tuple(replace(graph, external_data=()) for graph in written.graphs)
    known = replace(written, graphs=graphs, operators=(), weights=(), verification=None, files={}, digest="")
    assert result.manifest == known


@pytest.mark.slow
def test_a_failed_gate_writes_nothing_and_has_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding(severity="error", rule="topk-k", node="blocks.0/TokenMerge", message="K is too large", fix="less")
    steps: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "preflight_graph", lambda model, target: (finding, finding))
        with pytest.raises(GateError) as caught:
            api.export_model("zoo:digits_vit", output=tmp_path / "out", targets=["rtx"], progress=steps.append)
    assert str(caught.value) == (
        "preflight for 'rtx' failed at node 'blocks.0/TokenMerge' by rule topk-k: K is too large (and 1 more)\n"
        "Hint: less"
    )
    assert caught.value.report == (finding, finding)
    assert steps[-1] == "checking the targets" and list(tmp_path.iterdir()) == []


def test_a_warning_of_preflight_stops_nothing(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding(severity="warning", rule="float64", node="x", message="m", fix="f")
    monkeypatch.setattr(check, "_rules", lambda: (lambda model, target: (finding,), ""))
    monkeypatch.setattr(engines, "check_request", lambda target, precision: None)
    plan = api.build(exported(TOME), target="rtx", dry_run=True)
    assert isinstance(plan, api.BuildPlan)
    assert plan.to_json() == {
        "target": "rtx",
        "library": "tensorrt_rtx",
        "file": "engines/rtx/model.engine",
        "batch": "1:4:8",
        "precision_asked": "fp32",
        "plugins": None,
        "replaces": False,
    }


def test_the_output_is_looked_at_before_the_model(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(BundleError, match="^The output directory .* exists; use --force"):
        api.export_model("zoo:no_such_model", output=tmp_path / "out")
    with pytest.raises(ConfigError, match="^model 'zoo:no_such_model' is not known"):
        api.export_model("zoo:no_such_model", output=tmp_path / "new")


def test_preflight_takes_a_bundle_or_a_file(exported: Exported, tmp_path: Path) -> None:
    bundle = exported(TOME)
    assert api.preflight(bundle, target="rtx") == api.preflight(bundle / "model.onnx", target="rtx") == ()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="is not a bundle: it has no manifest.json"):
        api.preflight(tmp_path / "empty", target="rtx")


def test_verify_builds_the_very_model_of_the_bundle(exported: Exported) -> None:
    steps: list[str] = []
    report = api.verify(exported("evit:keep_ratio=0.7"), progress=steps.append)
    assert isinstance(report, VerifyReport) and report.passed
    assert steps == ["loading the model", "comparing"]
    plan = attach(load_host("zoo:digits_vit").module, parse_spec("evit:keep_ratio=0.7")).plan
    assert [(site.site, site.tokens_out_onnx) for site in report.sites[:3]] == [(p.name, p.tokens_out) for p in plan]
    assert report.paths == {"TokenSelect": {"native": 0, "function": 3}}


def test_more_examples_than_there_are_begin_again() -> None:
    (graph,) = load_host("zoo:digits_vit").attach(())
    assert graph.examples is not None
    (many,), (few,) = graph.examples(5000), graph.examples(100)
    assert many["image"].shape == (5000, 1, 8, 8) and many["image"].dtype == np.float32
    np.testing.assert_array_equal(many["image"][:100], few["image"])


def test_loading_a_model_leaves_the_callers_random_numbers_alone() -> None:
    import torch

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_host("timm:vit_tiny_patch16_224")
    assert torch.equal(torch.rand(3), expected)


def test_a_compressor_used_twice_keeps_both_settings(tmp_path: Path) -> None:
    spec = "evit:keep_ratio=0.9,layers=[2]+evit:keep_ratio=0.5,layers=[5]"
    result = api.export_model("zoo:digits_vit", compress=spec, output=tmp_path / "twice", dry_run=True)
    assert [(site.site, site.config["keep_ratio"]) for site in result.manifest.compression] == [
        ("blocks.2", 0.9),
        ("blocks.5", 0.5),
    ]
    assert result.warnings == ()


@pytest.mark.parametrize("spec", ["evit:keep_ratio=1.0", "avg_pool:stride=1", "tome:num_merged=0"])
def test_a_compressor_that_removes_nothing_is_said(tmp_path: Path, spec: str) -> None:
    result = api.export_model("zoo:digits_vit", compress=spec, output=tmp_path / "idle", dry_run=True)
    assert result.warnings == (f"{spec} removes no token of zoo:digits_vit; the graph is without it",)


def test_verification_without_onnxruntime_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnsupportedError, match=r"runs ONNX Runtime, needs 'onnxruntime'.*\n.*trt-compress\[cpu\]"):
        api.export_model("zoo:digits_vit", output=tmp_path / "never")
    assert not (tmp_path / "never").exists()
