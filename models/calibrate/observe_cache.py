"""A plain cache that shows what is kept and attended to, for the calibration of cache policies."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from trt_compress.methods import CompressorConfig, CompressorSpec, Method
from trt_compress.models.cache.contract import CacheLayer, Memory, NewEntries
from trt_compress.models.cache.plain import Plain
from trt_compress.models.compressors.sites import Arrival

Look = Callable[[CacheLayer, NewEntries, Memory], None]
"""Sees a layer, the entries of a run that reads a sequence, and the layer's memory with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedCacheConfig(CompressorConfig):
    """What a watched cache tells.

    Attributes:
        look: Whom it tells.
    """

    look: Look


WATCHED_CACHE = Method(
    name="watched cache",
    summary="keeps keys and values as they are and shows them",
    source="none: part of calibration",
    differs="nothing: there is no original.",
    config=WatchedCacheConfig,
    implementation="models.calibrate.observe_cache:WatchedCache",
    kind="store",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedCacheSpec(CompressorSpec):
    """The place of a watched cache among the methods of a spec."""

    @property
    def method(self) -> Method:
        """The watched cache, which no spec string names."""
        return WATCHED_CACHE


class WatchedCache(Plain):
    """A plain cache that shows each run of each layer."""

    method = WATCHED_CACHE

    def __init__(self, config: WatchedCacheConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self._look = config.look

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Append and attend, and show both, if a sequence is read to go on with it."""
        y = super().forward(reading, memory)
        if reading.part != "score":
            self._look(self.layer, reading, memory)
        return y


def watched_cache(look: Look) -> CompressorSpec:
    """Every layer's cache as one that shows what it keeps."""
    return WatchedCacheSpec(name="watched cache", config=WatchedCacheConfig(look=look))
