"""Stores of caches beside those of `methods.cache`: options and entries."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.config import CompressorConfig, Method


@dataclass(frozen=True, slots=True, kw_only=True)
class IntConfig(CompressorConfig):
    """Options of a cache in whole numbers, with a scale for each token and KV head.

    Attributes:
        group: Channels of one token that share a scale and a minimum; 0: all of a head.
        scales: Of scales and minima: "float16" or "float32".
    """

    method: ClassVar[str] = "int8"
    group: int = 0
    scales: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if self.group < 0:
            raise ConfigError(f"{self.method}: group={self.group} is out of range; give 0 or more channels.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Config(IntConfig):
    """Options of a cache in 4 bits, as of one in 8."""

    method: ClassVar[str] = "int4"


_INT_SOURCE = (
    "KVQuantize and KVAttention of this package; the same scheme per token as ZipCache's tokenwise quantizer, "
    "arXiv:2405.14256"
)
_INT_DIFFERS = (
    "a scale and a minimum for each KV head; there is no tail in full precision: only the tokens of one run see each "
    "other as they are. By channel in 8 bits: kivi:bits=8."
)
INT8 = Method(
    name="int8",
    summary="keeps keys and values in 8 bits with a scale a token and KV head, packed as they come",
    source=_INT_SOURCE,
    differs=_INT_DIFFERS,
    config=IntConfig,
    implementation="models.cache.int8:Int8",
    kind="store",
)
INT4 = Method(
    name="int4",
    summary="keeps keys and values in 4 bits with a scale a token and KV head, packed as they come",
    source=_INT_SOURCE,
    differs=_INT_DIFFERS,
    config=Int4Config,
    implementation="models.cache.int8:Int4",
    kind="store",
)
