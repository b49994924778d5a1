"""`zoo:keyword_spotter` and `zoo:keyword_mome`: ten spoken words, trained here on speech of espeak-ng."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trt_compress.methods import CompressorSpec
from trt_compress.models.hosts.audio import FAMILY, audio_graph
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, ModelInfo, Steps
from trt_compress.models.hosts.hf_audio import preprocess_of
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.zoo.data.speech import CLASSES

INFO = ModelInfo(
    name="zoo:keyword_spotter",
    family=FAMILY,
    description="10 spoken words in a second of audio, 6 layers, 50 frames, trained here on speech of espeak-ng",
)


def load(weights: str | None, *, name: str = "keyword_spotter") -> LoadedHost:
    """Build the model; without `weights` it has its own.

    Raises:
        ConfigError: the weights do not fit.
    """
    from trt_compress.models.zoo.keyword_spotter import train as pretrained

    model = pretrained.build(name, weights=weights is None)
    info = zoo_weights(pretrained.read_card(name)) if weights is None else load_weights(model, Path(weights))

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
    from trt_compress.models.zoo.data import speech

    clips, _ = speech.heldout_clips(repeats=1)
    rows = np.arange(count) * 37 % len(clips)  # words of a class stand together
    return [{"audio": clips[rows]}]
