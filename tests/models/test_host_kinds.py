"""What a host writes into the manifest is what the runtime reads: every kind of every host, on its outputs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from tests.models.decoders import FAMILIES, saved
from tests.models.tiny_bert import tiny_bert
from tests.models.tiny_towers import tiny_tower
from trt_compress.export.api import export_model
from trt_compress.format.kinds import input_kind, output_kind
from trt_compress.format.manifest import TensorInfo
from trt_compress.models.hosts import codec_xytokenizer
from trt_compress.models.hosts.audio import AstModel, AudioModel, WhisperModel
from trt_compress.models.hosts.audio_encoder import AstConfig, WhisperConfig
from trt_compress.models.hosts.catalog import HF, ZOO
from trt_compress.models.hosts.registry import load_host
from trt_compress.runtime.session import Session
from trt_compress.runtime.stream import preprocess
from trt_compress.runtime.stream.levels import levels_from_sessions
from trt_compress.runtime.stream.postprocess import postprocess_from_manifest
from trt_compress.runtime.stream.run import open_sources, run_stream
from trt_compress.runtime.stream.sinks import JsonLines

GOLDEN = Path(__file__).parent.parent / "golden"
WHISPER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "max_source_positions": 100,
}
AST: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_length": 64,
    "num_mel_bins": 32,
}


def _saved(folder: Path, model: AudioModel, config: Mapping[str, Any]) -> str:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return f"hf:{folder}"


def _whisper(folder: Path, labels: int = 0) -> str:
    torch.manual_seed(0)
    model = WhisperModel(WhisperConfig(**WHISPER, num_labels=labels, classifier_proj_size=8 if labels else None))
    named = {"classifier_proj_size": 8, "id2label": {str(n): f"word {n}" for n in range(labels)}} if labels else {}
    return _saved(folder, model, {"model_type": "whisper", **WHISPER, **named})


def _ast(folder: Path, labels: int = 0) -> str:
    torch.manual_seed(0)
    return _saved(folder, AstModel(AstConfig(**AST, num_labels=labels)), {"model_type": _AST_TYPE, **AST})


def _codec(folder: Path, family: str) -> str:
    with np.load(GOLDEN / f"{family}_model" / "tiny.npz") as file:
        tensors = {name[2:]: torch.from_numpy(file[name]) for name in file.files if name.startswith("w.")}
    save_file({k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}, folder / "c.safetensors")
    return f"{family}:{folder}/c.safetensors?seconds=0.1"


def _tower(folder: Path, cls: str) -> str:
    tiny_tower(folder, cls)
    return f"hf:{folder}"


_TOWERS = {
    "CLIPVisionModel": {"clip", "clip_vision_model"},
    "SiglipVisionModel": {"siglip", "siglip_vision_model"},
    "Siglip2VisionModel": {"siglip2", "siglip2_vision_model"},
    "Dinov2Model": {"dinov2"},
    "Dinov2WithRegistersModel": {"dinov2_with_registers"},
    "ViTForImageClassification": {"vit"},
}
_AST_TYPE = "audio-spectrogram-transformer"
MODELS: dict[str, Callable[[Path], str]] = {
    **{f"zoo:{name}": lambda folder, name=name: f"zoo:{name}" for name in ZOO},  # type: ignore[misc]
    "timm": lambda folder: "timm:vit_tiny_patch16_224",
    "timm without classifier": lambda folder: "timm:vit_small_patch8_224",
    "whisper": _whisper,
    "whisper with classifier": lambda folder: _whisper(folder, 3),
    "ast": _ast,
    "ast with classifier": lambda folder: _ast(folder, 3),
    **{cls: lambda folder, cls=cls: _tower(folder, cls) for cls in _TOWERS},  # type: ignore[misc]
    "wavtokenizer": lambda folder: _codec(folder, "wavtokenizer"),
    "xytokenizer": lambda folder: _codec(folder, "xytokenizer"),
}


def test_every_host_is_here() -> None:
    """A new model of the zoo comes by itself; a new model type of transformers must be added above."""
    assert {f"zoo:{name}" for name in ZOO} <= set(MODELS)
    towers = set().union(*_TOWERS.values())
    assert set(HF) == {"whisper", _AST_TYPE, "bert", *towers, *FAMILIES, "scout"}  # the last is a decoder as the others


@pytest.mark.parametrize("name", MODELS)
def test_what_a_host_writes_the_runtime_reads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_xytokenizer, "HEAD_SIZE", 8)  # the golden model's heads; a checkpoint does not tell
    host = load_host(MODELS[name](tmp_path))
    graphs = list(host.attach(()))
    prefixes = [f"{graph.name}." if len(graphs) > 1 else "" for graph in graphs]
    inputs, outputs = (
        {
            prefix + spec.name: TensorInfo(name=prefix + spec.name, dtype=spec.dtype, shape=spec.shape)
            for prefix, graph in zip(prefixes, graphs, strict=True)
            for spec in getattr(graph, side)
        }
        for side in ("inputs", "outputs")
    )
    before: dict[str, Any] = {"input": next(iter(inputs)), **host.preprocess}
    assert preprocess.converter_of(before, inputs[before["input"]]) is not None
    assert not input_kind(before).extra  # no key is written that nobody knows
    after: dict[str, Any] = {"output": prefixes[-1] + graphs[-1].outputs[0].name, **host.postprocess}
    assert after["kind"] != "raw" or name == "timm without classifier"  # numbers without a meaning are the last resort
    assert not output_kind(after).extra
    summarize = postprocess_from_manifest(after, outputs)
    found = {
        key: np.ones([2 if isinstance(side, str) else side for side in info.shape], info.dtype)
        for key, info in outputs.items()
    }
    results = summarize(found)["results"]
    assert json.loads(json.dumps(results, allow_nan=False)) == results and results[0]


def test_what_a_decoder_writes_is_known(tmp_path: Path) -> None:
    """It is run by its procedure, not by a stream of samples."""
    host = load_host(f"hf:{saved('llama', tmp_path)}")
    before, after = input_kind(host.preprocess), output_kind(host.postprocess)
    assert (before.kind, after.kind) == ("text", "tokens")
    assert not before.extra and not after.extra


def test_what_an_encoder_of_texts_writes_is_known(tmp_path: Path) -> None:
    """Who has the texts tokenizes them, as `transplant` does."""
    tiny_bert(tmp_path)
    host = load_host(f"hf:{tmp_path}")
    before, after = input_kind(host.preprocess), output_kind(host.postprocess)
    assert (before.kind, after.kind) == ("text", "raw")
    assert not before.extra and not after.extra


def test_a_whisper_encoder_runs_on_longer_sound_in_chunks(tmp_path: Path) -> None:
    folder = tmp_path / "whisper"
    folder.mkdir()
    export_model(_whisper(folder), compress="atome:merge_ratio=0.4", output=tmp_path / "bundle")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 5 * 16000), 16000)
    with Session.open(tmp_path / "bundle") as session:
        levels = levels_from_sessions([session])
        sinks = [JsonLines(tmp_path / "out.jsonl")]
        result = run_stream(levels, open_sources([str(tmp_path / "a.wav")], levels), sinks=sinks)
    assert result.counts.delivered == 3  # two seconds each, the last filled up with silence
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["capture_ns"] for line in lines] == [0, 2_000_000_000, 4_000_000_000]
    for line in lines:
        (features,) = line["results"]
        assert features["frames"] < 100 and features["width"] == 16
        assert features["ms_per_frame"] == round(2000 / features["frames"], 3)
        assert features["longest_ms"] >= 2 * 20  # two frames of the encoder were merged
        assert features["min"] < 0 < features["rms"] < features["max"]
