"""`zoo:keyword_spotter` and `zoo:keyword_mome`: ten spoken words, trained here on speech of espeak-ng."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.methods import CompressorSpec
from trt_compress.models.hosts.audio import FAMILY, WhisperModel, audio_graph
from trt_compress.models.hosts.audio_encoder import WhisperConfig
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, ModelInfo, Steps
from trt_compress.models.hosts.hf_audio import preprocess_of
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data.speech import CLASSES, CLIP_SAMPLES, heldout_clips

FOLDER = Path(__file__).parent.parent
POOL_LAYER = 0
"""The layer of `keyword_mome` after whose attention frames are pooled."""
PLAIN = WhisperConfig(
    num_mel_bins=40,
    d_model=128,
    encoder_layers=6,
    encoder_attention_heads=4,
    encoder_ffn_dim=512,
    max_source_positions=50,
    classifier_proj_size=128,
    num_labels=len(CLASSES),
)
CONFIGS = {
    "keyword_spotter": PLAIN,
    "keyword_mome": WhisperConfig(**{**asdict(PLAIN), "experts": 23, "expert_layer": POOL_LAYER + 1}),
    "keyword_stream": PLAIN,
}
"""Sizes of all that are built here, by their names in the zoo."""
INFO = ModelInfo(
    name="zoo:keyword_spotter",
    family=FAMILY,
    description="10 spoken words in a second of audio, 6 layers, 50 frames, trained here on speech of espeak-ng",
)


def weights_file(name: str) -> Path:
    """The released weights."""
    return FOLDER / name / f"{name}.safetensors"


def card_file(name: str) -> Path:
    """The card of the released weights."""
    return FOLDER / name / "card.json"


def read_card(name: str) -> dict[str, Any]:
    """The card of a model: sizes, data, training, accuracy, versions."""
    return release.read_card(card_file(name))


def build(name: str, *, weights: bool = True) -> WhisperModel:
    """Build a keyword spotter in evaluation mode; without weights it is freshly initialised.

    Raises:
        ConfigError: the weights file does not fit the model.
    """
    model = WhisperModel(CONFIGS[name], num_samples=CLIP_SAMPLES, clip_range=False)
    if weights:
        load_weights(model, weights_file(name))
    return model.eval()


def load(weights: str | None, *, name: str = "keyword_spotter") -> LoadedHost:
    """Build the model; without `weights` it has its own.

    Raises:
        ConfigError: the weights do not fit.
    """
    model = build(name, weights=weights is None)
    info = zoo_weights(read_card(name)) if weights is None else load_weights(model, Path(weights))

    def attach(specs: Sequence[CompressorSpec]) -> tuple[GraphSpec, ...]:
        return (audio_graph(model, specs, name=f"zoo:{name}", examples=examples),)

    return LoadedHost(
        source=f"zoo:{name}",
        family=FAMILY,
        module=model,
        weights=info,
        attach=attach,
        preprocess=preprocess_of(model),
        postprocess={"kind": "classification", "classes": model.num_labels, "labels": list(CLASSES)},
    )


def examples(count: int) -> Steps:
    """Held-out clips."""
    clips, _ = heldout_clips(repeats=1)
    rows = np.arange(count) * 37 % len(clips)  # words of a class stand together
    return [{"audio": clips[rows]}]
