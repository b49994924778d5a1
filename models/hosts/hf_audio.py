"""Audio checkpoints of transformers from a directory: `hf:PATH`, model_type whisper or audio-spectrogram-transformer.

Of a Whisper checkpoint the encoder is taken, and the classifier of WhisperForAudioClassification; the text decoder is
left out. `hf:PATH?seconds=5` builds a Whisper encoder for five seconds instead of thirty.

Source: the layout of transformers' save_pretrained: config.json, preprocessor_config.json, model.safetensors.
Differs: see models/hosts/audio.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import reading
from trt_compress.methods import CompressorSpec
from trt_compress.models.hosts.audio import FAMILY, SAMPLE_RATE, AstModel, AudioModel, WhisperModel, audio_graph
from trt_compress.models.hosts.audio_encoder import AstConfig, WhisperConfig, known_fields
from trt_compress.models.hosts.base import GraphSpec, LoadedHost
from trt_compress.models.hosts.hf_directory import read_json, weight_files
from trt_compress.models.hosts.weights import load_tensors, read_files

MODEL_TYPES = ("whisper", "audio-spectrogram-transformer")
_AST_PREFIX = "audio_spectrogram_transformer."
_NOT_THE_ENCODER = ("decoder.", "proj_out.")


def load(path: Path, *, weights: str | None = None, seconds: float | None = None) -> LoadedHost:
    """Load an audio model from a directory.

    Args:
        path: The directory.
        weights: Another file with its tensors; default: those in the directory.
        seconds: Audio of one input of a Whisper encoder; default: as much as it has positions for.

    Raises:
        ConfigError: a file is missing or cannot be read, or tensors do not fit; they are named.
        UnsupportedError: another model type, or a variant that is not driven.
    """
    with reading(f"hf:{path}", "save the model again with save_pretrained"):
        return _load(path, weights, seconds)


def _load(path: Path, weights: str | None, seconds: float | None) -> LoadedHost:
    config = read_json(path / "config.json")
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UnsupportedError(
            f"hf:{path}: model_type '{model_type}' is not supported here; audio models are {', '.join(MODEL_TYPES)}."
        )
    tensors, info = read_files(weight_files(path, weights))
    model: AudioModel
    if model_type == "whisper":
        model, tensors = _whisper(config, tensors, seconds)
    else:
        if seconds is not None:
            raise ConfigError(f"hf:{path}: seconds={seconds:g} is for Whisper; AST's length is in its config.json.")
        model, tensors = _ast(config, tensors, path)
    load_tensors(model, tensors, info.source)
    model.eval()
    source = f"hf:{path}" + ("" if seconds is None else f"?seconds={seconds:g}")

    def attach(specs: Sequence[CompressorSpec]) -> tuple[GraphSpec, ...]:
        return (audio_graph(model, specs, name=source),)

    return LoadedHost(
        source=source,
        family=FAMILY,
        module=model,
        weights=info,
        attach=attach,
        preprocess=preprocess_of(model),
        postprocess=postprocess_of(model, config.get("id2label")),
    )


def preprocess_of(model: AudioModel) -> dict[str, Any]:
    """How sound becomes the input of `model`; for the manifest."""
    return {"kind": "audio", "sample_rate": SAMPLE_RATE, "channels": 1, "samples": model.num_samples, "range": [-1, 1]}


def postprocess_of(model: AudioModel, labels: Mapping[str, str] | None) -> dict[str, Any]:
    """What the output of `model` means; for the manifest."""
    if not model.num_labels:
        # of AST, tokens are patches of time and frequency: none has a time of its own
        times = {"seconds": model.num_samples / SAMPLE_RATE} if isinstance(model, WhisperModel) else {}
        return {"kind": "frames", "output": "frames", "sizes": "frame_size", **times}
    found = {"kind": "classification", "classes": model.num_labels}
    return {**found, "labels": [labels[key] for key in sorted(labels, key=int)]} if labels else found


def _whisper(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], seconds: float | None
) -> tuple[WhisperModel, dict[str, Tensor]]:
    if config.get("use_weighted_layer_sum"):
        raise UnsupportedError(
            "whisper: use_weighted_layer_sum is not supported: layers that merge frames cannot be summed. Take a model "
            "without it."
        )
    named = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    named = {name: tensor for name, tensor in named.items() if not name.startswith(_NOT_THE_ENCODER)}
    sizes = known_fields(WhisperConfig, config)
    labels = named.get("classifier.weight")
    if labels is None:
        sizes.pop("classifier_proj_size", None)
    else:
        sizes["num_labels"] = labels.shape[0]
    samples = None if seconds is None else round(seconds * SAMPLE_RATE)
    return WhisperModel(WhisperConfig(**sizes), num_samples=samples), named


def _ast(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> tuple[AstModel, dict[str, Tensor]]:
    named = dict(tensors)
    if not any(name.startswith(_AST_PREFIX) for name in named):
        named = {f"{_AST_PREFIX}{name}": tensor for name, tensor in named.items()}
    sizes = known_fields(AstConfig, config)
    sizes.pop("num_labels", None)
    labels = named.get("classifier.dense.weight")
    if labels is not None:
        sizes["num_labels"] = labels.shape[0]
    options = {}
    if (path / "preprocessor_config.json").is_file():
        front = read_json(path / "preprocessor_config.json")
        options = {name: float(front[name]) for name in ("mean", "std") if name in front}
        if front.get("do_normalize") is False:
            options = {"mean": 0.0, "std": 0.5}
    return AstModel(AstConfig(**sizes), **options), named
