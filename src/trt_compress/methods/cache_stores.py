"""Stores of caches beside those of `methods.cache`: options and entries."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.cache import check_bits, check_packing
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GearConfig(CompressorConfig):
    """Options of GEAR.

    Attributes:
        bits: Of a code: 8, 4 or 2.
        group: Tokens of one channel (keys), and channels of one token (values), that share a scale; 0: all tokens of a
            block, and all channels of a head.
        residual: Tokens of a block: the newest are kept in full precision until so many are packed together.
        rank: Of the low-rank part of each block and KV head.
        loops: Of the power iteration.
        outliers: Share of the entries that are kept apart, half of them the largest and half the smallest: of each
            channel of a block (keys), and of each token (values), one on each side at least; 0: none (GEAR-L).
        prefill: "exact": a prompt is read in full precision and packed behind it; "packed": it is packed on the way.
        scales: Of scales and minima: "float16" or "float32".
    """

    bits: int = 2
    group: int = 64
    residual: int = 64
    rank: int = 4
    loops: int = 3
    outliers: float = 0.02
    prefill: Literal["exact", "packed"] = "exact"
    scales: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        check_bits("gear", self.bits)
        check_packing("gear", self.group or self.residual, self.residual)
        if self.residual > 2048:
            raise ConfigError(f"gear: residual={self.residual} is out of range; a block has 2048 tokens at most.")
        if not 1 <= self.rank <= 16:
            raise ConfigError(f"gear: rank={self.rank} is out of range; give 1 to 16.")
        if not 1 <= self.loops <= 16:
            raise ConfigError(f"gear: loops={self.loops} is out of range; give 1 to 16.")
        if not 0 <= self.outliers < 0.5:
            raise ConfigError(f"gear: outliers={self.outliers} is out of range; it is a share, from 0 to below 0.5.")


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
GEAR = Method(
    name="gear",
    summary="keeps what KIVI's codes lose: a low-rank part of each block, and outliers apart (GEAR)",
    source="GEAR, arXiv:2403.05527; code HaoKang-Timmy/GEAR efe0bfe, GEARLM/Simulated/compress_function.py",
    differs="values are packed with the keys, a block at once; the rank of a prompt's blocks is that of all; the power "
    "iteration begins with the same matrix always and each item has its own factors (there those of the first); the "
    "outliers of a channel of keys are a share of its own entries (there of a token's); levels are 2^bits - 1 (there "
    "bits^2 - 1); without groups a token's scale is that of a KV head (there of all); a step makes numbers of all "
    "parts and attends to these.",
    config=GearConfig,
    implementation="models.cache.gear:Gear",
    kind="store",
)
