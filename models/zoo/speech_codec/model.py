"""`zoo:speech_codec`: a small WavTokenizer for a second of speech, trained here on speech of espeak-ng."""

from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.models.hosts.base import LoadedHost, ModelInfo
from trt_compress.models.hosts.codec import codec_host
from trt_compress.models.hosts.codec_wavtokenizer import FAMILY, WavTokenizer, WavTokenizerConfig
from trt_compress.models.hosts.vocos import VocosConfig
from trt_compress.models.hosts.weights import load_weights, zoo_weights
from trt_compress.models.zoo import release
from trt_compress.models.zoo.data import speech

NAME = "speech_codec"
CARD_FILE = Path(__file__).with_name("card.json")
WEIGHTS_FILE = Path(__file__).with_name(f"{NAME}.safetensors")
CONFIG = WavTokenizerConfig(
    strides=(2, 4, 5, 8),
    filters=12,
    dimension=64,
    codebook_size=1024,
    sample_rate=speech.SAMPLE_RATE,
    backbone=VocosConfig(
        input_channels=64,
        dim=128,
        intermediate_dim=384,
        num_layers=6,
        n_fft=1280,
        hop=320,
        adanorm_num_embeddings=4,
        position_net=True,
    ),
)
INFO = ModelInfo(
    name="zoo:speech_codec",
    family=FAMILY,
    description="a second of speech to 50 code numbers of 10 bits and back, trained here on speech of espeak-ng",
)


def read_card() -> dict[str, Any]:
    """The card: sizes, data, training, reconstruction error, versions."""
    return release.read_card(CARD_FILE)


def build(*, num_samples: int = speech.CLIP_SAMPLES, weights: bool = True) -> WavTokenizer:
    """Build the codec in evaluation mode; without weights it is freshly initialised.

    Raises:
        ConfigError: the weights file does not fit the model.
    """
    codec = WavTokenizer(CONFIG, num_samples=num_samples)
    if weights:
        load_weights(codec, WEIGHTS_FILE)
    return codec.eval()


def heldout_clips() -> speech.Array:
    """The held-out words one after another, without noise, cut into seconds: [N, 16000]."""
    audio = np.concatenate(speech.heldout_words().audio)
    return audio[: len(audio) // speech.CLIP_SAMPLES * speech.CLIP_SAMPLES].reshape(-1, speech.CLIP_SAMPLES)


def load(weights: str | None) -> LoadedHost:
    """Build the codec; without `weights` it has its own.

    Raises:
        ConfigError: the weights do not fit.
    """
    codec = build(weights=weights is None)
    return codec_host(
        codec,
        source=INFO.name,
        family=FAMILY,
        weights=zoo_weights(read_card()) if weights is None else load_weights(codec, Path(weights)),
        examples=lambda count: np.resize(heldout_clips(), (count, codec.num_samples)),
    )
