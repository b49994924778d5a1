"""Verification of a procedure: prompts in chunks, steps and flushes, each side with its own states, run by run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.export.conformance import CASES, COMPACTING, export, replay, write_case
from tests.export.toy_decoder import PERIOD, VOCABULARY, decoder
from trt_compress.errors import ExportError, GateError, ShapeError
from trt_compress.export import api, pipeline
from trt_compress.export.bundle import write_bundle
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest

Break = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("procedure") / "bundle")


@pytest.fixture(scope="module")
def compacting(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return made_once(COMPACTING, lambda output: export(output, compact=True))


@pytest.fixture(autouse=True)
def toy_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "check_model", lambda model, weights, reading: None)
    monkeypatch.setattr(pipeline, "load_host", lambda model, **_: decoder())


def forged(
    bundle: Path,
    folder: Path,
    apply: Break | None = None,
    manifest: Manifest | None = None,
    *,
    file: str = "flush.onnx",
) -> Path:
    """A bundle of which a graph or the manifest says something else, and whose hashes are right."""
    opened = Bundle.open(bundle)
    files: dict[str, bytes | Path] = {name: opened.file(name) for name in opened.manifest.files}
    if apply is not None:
        model = onnx.load(opened.file(file))
        apply(model)
        files[file] = model.SerializeToString()
    write_bundle(folder, manifest or opened.manifest, files)
    return folder


def number(old: float, new: float) -> Break:
    """Change a constant."""

    def apply(model: onnx.ModelProto) -> None:
        constants = [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
        for tensor in (*model.graph.initializer, *constants):
            value = numpy_helper.to_array(tensor)
            if value.dtype.kind in "fi" and value.size == 1 and value == old:
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(value, new), tensor.name))
                return
        raise AssertionError(f"there is no constant {old}")

    return apply


def truncated(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Round").op_type = "Floor"


def test_prompts_are_read_in_chunks_then_steps_and_every_flush_is_compared(bundle: Path) -> None:
    report = json.loads((bundle / "verify.json").read_text())
    runs = {(c["batch"], c["step"], c["graph"], c["moment"]) for c in report["outputs"]}
    one = [(graph, moment) for batch, _, graph, moment in sorted(runs) if batch == 1]
    assert report["passed"] and report["inputs"] == "seeded tokens"
    assert one[:3] == [("step", "prompt run 1"), ("step", "prompt run 2"), ("step", "step 1")]
    assert one[3:6] == [("step", "step 2"), ("flush", "flush after step 2"), ("step", "step 3")]
    assert [graph for graph, _ in one].count("flush") == 2 and one[-1][0] == "step"
    assert {batch for batch, *_ in runs} == {1, 2}
    compared = {c["name"] for c in report["outputs"] if c["graph"] == "flush"}
    assert compared == {"codes_out", "scale_out", "packed_out", "tail_out", "held_out"}


def test_states_keep_their_dtypes_in_half_precision(tmp_path: Path) -> None:
    opened = Bundle.open(export(tmp_path / "half", precision="fp16"))
    wanted = {"codes": "uint8", "scale": "float16", "packed": "int64", "tail": "float16", "held": "int64"}
    assert {state.name: state.dtype for state in opened.manifest.states} == wanted
    for file in ("step.onnx", "flush.onnx"):
        ends = onnx.load(opened.file(file)).graph
        found = {
            value.name: str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            for value in (*ends.input, *ends.output)
        }
        assert {name: found[name] for name in found if name.partition("_")[0] in wanted} == {
            name: wanted[name.partition("_")[0]] for name in found if name.partition("_")[0] in wanted
        }
        assert found.get("logits", "float32") == "float32" and found.get("ids", "int64") == "int64"


@pytest.mark.parametrize(
    ("apply", "first"),
    [
        (truncated, "graph flush, output codes_out (batch 1, step 5: flush after step 2)"),
        (number(7.0, 6.0), "graph flush, output codes_out (batch 1, step 5: flush after step 2)"),
    ],
    ids=["codes are cut off", "another range"],
)
def test_an_error_in_a_flush_is_named(apply: Break, first: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError) as caught:
        api.verify(forged(bundle, tmp_path / "forged", apply))
    assert f"differ first at {first}; " in caught.value.message


def scales_stay(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if "scale_out" in node.output)
    node.CopyFrom(onnx.helper.make_node("Identity", ["scale_in"], ["scale_out"]))


@pytest.mark.parametrize(
    ("apply", "tensor"),
    [(number(2, 1), "codes_out"), (scales_stay, "scale_out")],
    ids=["another stride", "scales stay where they were"],
)
def test_an_error_in_a_compact_graph_is_named(
    apply: Break, tensor: str, compacting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "load_host", lambda model, **_: decoder(compact=True))
    report = json.loads((compacting / "verify.json").read_text())
    moments = list(dict.fromkeys(c["moment"] for c in report["outputs"] if c["batch"] == 1))
    assert moments[:5] == [
        *("prompt run 1", "prompt run 2", "flush after prompt run 2", "prompt run 3", "compact after prompt run 3")
    ]
    with pytest.raises(GateError) as caught:
        api.verify(forged(compacting, tmp_path / "forged", apply, file="compact.onnx"))
    assert f"differ first at graph compact, output {tensor} (batch 1, step 5: compact after " in caught.value.message


@pytest.mark.parametrize(
    ("period", "said"),
    [
        (PERIOD - 1, "'step' (step 2) and the bundle's 'flush' (flush after step 1)"),
        (PERIOD + 1, "'flush' (flush after step 2) and the bundle's 'step' (step 3)"),
    ],
)
def test_a_wrong_period_of_the_bundle_is_caught(period: int, said: str, bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.procedure is not None
    upkeep = tuple(replace(entry, at_least=period) for entry in manifest.procedure.upkeep)
    wrong = replace(manifest, procedure=replace(manifest.procedure, upkeep=upkeep))
    with pytest.raises(GateError) as caught:
        api.verify(forged(bundle, tmp_path / "forged", manifest=wrong))
    assert f"(batch 1), where the model's procedure runs {said}; " in caught.value.message


def test_a_period_for_which_there_is_no_room_stops_the_export(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"needs 33 slots of 'fill', and there are 32 at most; the procedure has"):
        export(tmp_path / "late", period=40)
    assert not (tmp_path / "late").exists()


def test_tokens_come_from_the_host_or_from_a_file(bundle: Path, tmp_path: Path) -> None:
    real = json.loads((export(tmp_path / "real", real=True) / "verify.json").read_text())
    assert real["inputs"] == "held-out examples of the model"
    text = np.arange(36).reshape(2, 18) % VOCABULARY
    np.savez(tmp_path / "text.npz", prompt=text[:, :9], steps=text[:, 9:])
    report = api.verify(bundle, inputs=tmp_path / "text.npz")
    assert report.passed and {check.batch for check in report.outputs} == {2}
    np.savez(tmp_path / "text.npz", prompt=text + VOCABULARY)
    with pytest.raises(ShapeError, match=r"holds tokens that are not from 0 to 49, which the model has\.$"):
        api.verify(bundle, inputs=tmp_path / "text.npz")


def test_tokens_of_no_known_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the input 'ids' takes tokens, and its host says neither which values"):
        export(tmp_path / "unknown", values=None)


@pytest.mark.parametrize("name", CASES)
def test_cases_for_other_runtimes_pass_here(name: str, compacting: Path, tmp_path: Path) -> None:
    write_case(name, tmp_path / name, compacting)
    assert replay(tmp_path / name) == []
    arrays = dict(np.load(tmp_path / name / "expected.npz"))
    arrays[min(arrays, key=lambda key: (not key.endswith("logits"), key))] += 1  # the replay does compare
    np.savez(tmp_path / name / "expected.npz", **arrays)
    assert any("logits" in found for found in replay(tmp_path / name))
