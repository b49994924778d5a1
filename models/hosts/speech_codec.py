"""`zoo:speech_codec`: a small WavTokenizer for a second of speech, trained here on speech of espeak-ng."""

from pathlib import Path

import numpy as np

from trt_compress.models.hosts.base import LoadedHost, ModelInfo, WeightsInfo
from trt_compress.models.hosts.codec import codec_host
from trt_compress.models.hosts.codec_wavtokenizer import FAMILY
from trt_compress.models.hosts.weights import load_weights

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
    from trt_compress.models.pretrained import speech_codec as pretrained

    codec = pretrained.build(weights=weights is None)
    if weights is None:
        card = pretrained.read_card()
        info = WeightsInfo(
            source=card["weights"]["file"],
            sha256=card["weights"]["sha256"],
            license=card["weights"]["license"],
            provenance=f"trained here on {card['data']['name']}: {card['command']}",
        )
    else:
        info = load_weights(codec, Path(weights))
    return codec_host(
        codec,
        source=INFO.name,
        family=FAMILY,
        weights=info,
        examples=lambda count: np.resize(pretrained.heldout_clips(), (count, codec.num_samples)),
    )
