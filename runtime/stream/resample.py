"""Sound of another sample rate or number of channels, made to fit: soxr resamples, channels are mixed or repeated."""

from typing import Any

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.images import load_library

QUALITY = "HQ"
"""Of soxr: 20 bits."""

_MOST_RATIO = 512


class Fitter:
    """Makes blocks of samples fit a sample rate and a number of channels.

    What comes out does not depend on how the samples are cut into blocks. A block comes out later than it went in, by
    the length of the filter; `finish` gives the rest, so that nothing is lost and nothing shifted.

    Args:
        rate: Samples a second that go in.
        channels: Channels that go in.
        to_rate: Samples a second that come out.
        to_channels: Channels that come out: one is the mean of all, several are copies of one.

    Raises:
        ConfigError: One number of channels cannot become the other, or the rates are too far apart.
        UnsupportedError: soxr is needed and not installed.
    """

    def __init__(self, *, rate: int, channels: int, to_rate: int, to_channels: int) -> None:
        if channels != to_channels and 1 not in (channels, to_channels):
            raise ConfigError(
                f"{channels} channels cannot be made {to_channels}: which are meant is not known; choose them first, "
                f"as in ffmpeg -i IN -ac {to_channels} OUT.wav."
            )
        if rate < 1 or max(rate, to_rate) > _MOST_RATIO * min(rate, to_rate):
            raise ConfigError(f"{rate} samples a second cannot be made {to_rate}; the header of the file is wrong.")
        self.rate, self.channels = rate, channels
        self._to_channels = to_channels
        self._soxr: Any = None
        if rate != to_rate:
            library = load_library("soxr", "soxr", "audio", "Resampling sound")
            few = min(channels, to_channels)
            self._soxr = library.ResampleStream(rate, to_rate, few, dtype="float32", quality=QUALITY)

    def add(self, block: Array) -> Array:
        """Convert samples [S, channels] to [S', channels that come out], float32."""
        mixed = block
        if self.channels > self._to_channels:
            mixed = block.mean(axis=1, keepdims=True, dtype=np.float32)
        return self._repeated(self._resampled(mixed, last=False))

    def finish(self) -> Array:
        """Give what is still in the filter, [S', channels that come out]."""
        few = min(self.channels, self._to_channels)
        return self._repeated(self._resampled(np.zeros((0, few), np.float32), last=True))

    def _resampled(self, block: Array, *, last: bool) -> Array:
        if self._soxr is None:
            return block
        found: Array = self._soxr.resample_chunk(np.ascontiguousarray(block, np.float32), last=last)
        return found.reshape(-1, block.shape[1])

    def _repeated(self, block: Array) -> Array:
        return np.repeat(block, self._to_channels, axis=1) if block.shape[1] < self._to_channels else block
