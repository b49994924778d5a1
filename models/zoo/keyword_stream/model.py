"""`zoo:keyword_stream`: the keyword spotter on a stream, a fifth of a second at a time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trt_compress.methods import CompressorSpec
from trt_compress.models.hosts.audio import FAMILY, SAMPLE_RATE
from trt_compress.models.hosts.audio_stream import SAMPLES_OF_FRAME, StreamingWhisper, stream_graph
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, ModelInfo, Steps
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.zoo.data.speech import CLASSES, heldout_clips
from trt_compress.models.zoo.keyword_spotter import model as keyword_spotter

CHUNK_FRAMES = 10
WINDOW_CHUNKS = 5
CHUNK_SAMPLES = CHUNK_FRAMES * SAMPLES_OF_FRAME

INFO = ModelInfo(
    name="zoo:keyword_stream",
    family=FAMILY,
    description="the keyword spotter on a stream: 200 ms a run, 800 ms of context as state, logits of the last second",
)


def load(weights: str | None) -> LoadedHost:
    """Build the stream; without `weights` it has its own.

    Raises:
        ConfigError: the weights do not fit.
    """
    model = keyword_spotter.build("keyword_stream", weights=weights is None)
    info = (
        zoo_weights(keyword_spotter.read_card("keyword_stream"))
        if weights is None
        else load_weights(model, Path(weights))
    )

    def attach(specs: Sequence[CompressorSpec]) -> tuple[GraphSpec, ...]:
        stream = StreamingWhisper(
            model,
            specs,
            chunk_frames=CHUNK_FRAMES,
            left_chunks=WINDOW_CHUNKS - 1,
            window_chunks=WINDOW_CHUNKS,
            name=INFO.name,
        )
        return (stream_graph(stream, examples=examples),)

    return LoadedHost(
        source=INFO.name,
        family=FAMILY,
        module=model,
        weights=info,
        attach=attach,
        preprocess={
            "kind": "audio",
            "sample_rate": SAMPLE_RATE,
            "channels": 1,
            "samples": CHUNK_SAMPLES,
            "range": [-1, 1],
        },
        postprocess={"kind": "classification", "classes": model.num_labels, "labels": list(CLASSES)},
    )


def examples(count: int) -> Steps:
    """Held-out clips, cut into chunks that follow each other."""
    clips, _ = heldout_clips(repeats=1)
    rows = clips[np.arange(count) * 37 % len(clips)]
    return [{"audio": part} for part in np.split(rows, rows.shape[1] // CHUNK_SAMPLES, axis=1)]
