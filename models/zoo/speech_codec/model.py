"""`zoo:speech_codec`: a small WavTokenizer for a second of speech, trained here on speech of espeak-ng."""

from pathlib import Path

import numpy as np

from trt_compress.models.hosts.base import LoadedHost, ModelInfo
from trt_compress.models.hosts.codec import codec_host
from trt_compress.models.hosts.codec_wavtokenizer import FAMILY
from trt_compress.models.hosts.weights import load_weights, zoo_weights

INFO = ModelInfo(
    name="zoo:speech_codec",
    family=FAMILY,
    description="a second of speech to 50 code numbers of 10 bits and back, trained here on speech of espeak-ng",
)


def load(weights: str | None) -> LoadedHost:
    """Build the codec; without `weights` it has its own.

    Raises:
        ConfigError: the weights do not fit.
    """
    from trt_compress.models.zoo.speech_codec import train as pretrained

    codec = pretrained.build(weights=weights is None)
    return codec_host(
        codec,
        source=INFO.name,
        family=FAMILY,
        weights=zoo_weights(pretrained.read_card()) if weights is None else load_weights(codec, Path(weights)),
        examples=lambda count: np.resize(pretrained.heldout_clips(), (count, codec.num_samples)),
    )
