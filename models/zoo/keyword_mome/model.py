"""`zoo:keyword_mome`: the keyword spotter as a matryoshka, one model for frames pooled by 1, 2 or 4 (MoME).

A rate is chosen by the compressor that pools where the model was trained for it: `frame_pool:stride=4,layer=0`.
"""

from trt_compress.models.hosts.base import LoadedHost, ModelInfo
from trt_compress.models.zoo.keyword_spotter import model as keyword_spotter

INFO = ModelInfo(
    name="zoo:keyword_mome",
    family=keyword_spotter.INFO.family,
    description="the keyword spotter with small experts, for several rates: none, or frame_pool:stride=2|4,layer=0",
)


def load(weights: str | None) -> LoadedHost:
    """Build the model; without `weights` it has its own.

    Raises:
        ConfigError: the weights do not fit.
    """
    return keyword_spotter.load(weights, name="keyword_mome")
