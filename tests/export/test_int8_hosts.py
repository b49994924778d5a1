"""INT8 of every kind of host: one of each kind, with its states as they were, or refused with what to do instead."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.models.decoders import saved
from tests.models.tiny_bert import tiny_bert
from tests.models.tiny_towers import tiny_tower
from trt_compress.errors import GateError, UnsupportedError
from trt_compress.export import api
from trt_compress.export.int8_data import read_samples
from trt_compress.format.manifest import Manifest
from trt_compress.models.hosts.base import LoadedHost
from trt_compress.models.hosts.registry import load_host


def heard(host: LoadedHost, path: Path, count: int = 20) -> Path:
    """Examples of the host's first graph as samples to calibrate with."""
    graph = host.attach(())[0]
    assert graph.examples is not None
    steps = graph.examples(count)
    arrays: dict[str, Any] = {
        spec.name: np.stack([run[spec.name] for run in steps], 1) if graph.states else steps[0][spec.name]
        for spec in graph.inputs
    }
    np.savez(path, **arrays)
    return path


def exported(model: str, way: str, folder: Path) -> Manifest:
    samples = heard(load_host(model, weights=None), folder / "samples.npz") if way == "static" else None
    return api.export_model(
        model, precision="int8", int8=way, calibrate=samples, batch="1", output=folder / "b"
    ).manifest


def test_a_spectrum_stays_in_floating_point(tmp_path: Path) -> None:
    manifest = exported("zoo:keyword_spotter", "static", tmp_path)
    (record,) = manifest.int8
    graph = onnx.load(tmp_path / "b" / "model.onnx", load_external_data=False).graph
    fixed = [node for node in graph.node if node.name in record.kept]
    assert {name for node in fixed for name in node.input} >= {"model.frontend.basis", "model.frontend.filters"}
    assert all("no learned ones but a transform" in why for why in record.kept.values()) and len(fixed) == 2
    assert manifest.verification is not None and manifest.verification.agreement is not None
    assert (manifest.verification.agreement.cosine or 0) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "way"), [("keyword_stream", "static"), ("video_vit", "static"), ("video_pvc", "dynamic")]
)
def test_models_of_the_zoo(model: str, way: str, tmp_path: Path) -> None:
    manifest = exported(f"zoo:{model}", way, tmp_path)
    before = load_host(f"zoo:{model}").attach(())
    states = {state.input: state.dtype for graph in before for state in graph.states}
    assert {info.input: info.dtype for info in manifest.states} == states
    assert all(record.share >= 0.9 for record in manifest.int8)


@pytest.mark.slow
def test_a_codec_whose_codes_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="differ first at output codes of graph encode in INT8") as caught:
        exported("zoo:speech_codec", "static", tmp_path)
    assert caught.value.report is not None and not (tmp_path / "b").exists()


def test_what_a_graph_is_fed_with_by_another_is_computed(tmp_path: Path) -> None:
    host = load_host("zoo:speech_codec", weights=None)
    graphs = host.attach(())
    path = heard(host, tmp_path / "samples.npz", 5)
    dry = api.export_model("zoo:speech_codec", output=tmp_path / "b", dry_run=True)
    samples = read_samples(path, host, graphs, dry.manifest)
    (audio,), (codes,) = samples.held_out["encode"][0], samples.held_out["decode"][0]
    with torch.no_grad():
        assert np.array_equal(graphs[0].module(torch.from_numpy(audio["audio"])).numpy(), codes["codes"])


def test_a_tower_of_images(tmp_path: Path) -> None:
    """Of random weights: with twice as many merged the gate refuses it where a processor rounds INT8 otherwise."""
    (tmp_path / "clip").mkdir()
    tiny_tower(tmp_path / "clip", "CLIPVisionModelWithProjection")
    result = api.export_model(f"hf:{tmp_path / 'clip'}", compress="tome:num_merged=2", precision="int8",
                              int8="dynamic", batch="1", output=tmp_path / "b")  # fmt: skip
    (record,) = result.manifest.int8
    assert record.in_int8 == record.layers - len(record.kept)


def test_an_encoder_of_text(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    tiny_bert(tmp_path / "bert", "BertModel")
    result = api.export_model(f"hf:{tmp_path / 'bert'}", precision="int8", int8="dynamic", batch="1",
                              output=tmp_path / "b")  # fmt: skip
    (record,) = result.manifest.int8
    assert record.in_int8 == record.layers - len(record.kept)


def test_a_model_that_reads_tokens_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    folder = saved("gemma2", tmp_path / "gemma2")
    with pytest.raises(UnsupportedError, match=r"reads tokens one after the other, .* give --weights-bits 8 or 4"):
        api.export_model(f"hf:{folder}", precision="int8", int8="dynamic", output=tmp_path / "b")
    assert not (tmp_path / "b").exists()
