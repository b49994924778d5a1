"""Stores of caches beside those of `methods.cache`: options and entries."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.artifact import ArtifactFile, ArtifactForm
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipCacheConfig(CompressorConfig):
    """Options of ZipCache.

    Attributes:
        bits: Of the codes of salient tokens: 8, 4 or 2.
        fewer_bits: Of the codes of the others.
        ordinary: Share of the tokens that get fewer bits, those that are attended to least.
        every: Generated tokens are kept in full precision until there are so many; then all are packed anew.
        probes: Share of a prompt's tokens whose queries say what is salient: so many at random, and so many of the
            last, these up to `window`.
        window: Queries of the last tokens that are kept to ask.
        order: Of ordinary tokens in the cache: "position", or "score" as in the authors' code; heads share the scale of
            a row of values, so that it decides which tokens share one.
        seed: Another one probes other tokens.
        scales: Of scales and minima: "float16" or "float32".
    """

    bits: int = 4
    fewer_bits: int = 2
    ordinary: float = 0.4
    every: int = 100
    probes: float = 0.05
    window: int = 32
    order: Literal["position", "score"] = "position"
    seed: int = 0
    scales: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        check_bits("zipcache", self.bits)
        if self.fewer_bits not in (8, 4, 2) or self.fewer_bits > self.bits:
            raise ConfigError(
                f"zipcache: fewer_bits={self.fewer_bits} is not allowed; give 8, 4 or 2, at most bits={self.bits}."
            )
        if not 0 < self.ordinary < 1:
            raise ConfigError(f"zipcache: ordinary={self.ordinary} is out of range; it is a share, between 0 and 1.")
        if not 1 <= self.every <= 1024:
            raise ConfigError(f"zipcache: every={self.every} is out of range; give 1 to 1024 tokens.")
        if not 0 <= self.probes <= 0.5:
            raise ConfigError(f"zipcache: probes={self.probes} is out of range; it is a share, from 0 to 0.5.")
        if not 1 <= self.window <= 4096:
            raise ConfigError(f"zipcache: window={self.window} is out of range; give 1 to 4096 tokens.")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"zipcache: seed={self.seed} is out of range; give 0 to {2**31 - 1}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvQuantConfig(CompressorConfig):
    """Options of KVQuant.

    Attributes:
        tables: An artifact: ranges of channels of keys, and levels of keys and values, of each layer.
        bits: Of a code: 4, 3 or 2.
        outliers: Share of the entries that are kept apart as they are, half of them above and half below; 0: none.
        apart: Where a token has more outliers of keys than are kept, those are kept that lie farthest outside of the
            range of their channel ("distance"), or that are the largest and smallest ("value"), as the authors do.
        first: So many first tokens are kept as they are.
        normalize: What codes stand for is given mean and deviation of the entries (Q-Norm); None: with 2 bits only.
        scales: Of the ranges of values: "float16" or "float32".
    """

    tables: ArtifactFile | None = None
    bits: int = 4
    outliers: float = 0.01
    apart: Literal["distance", "value"] = "distance"
    first: int = 5
    normalize: bool | None = None
    scales: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if self.bits not in (4, 3, 2):
            raise ConfigError(f"kvquant: bits={self.bits} is not allowed; codes have 4, 3 or 2.")
        if not 0 <= self.outliers <= 0.2:
            raise ConfigError(f"kvquant: outliers={self.outliers} is out of range; it is a share, from 0 to 0.2.")
        if not 0 <= self.first <= 256:
            raise ConfigError(f"kvquant: first={self.first} is out of range; give 0 to 256 tokens.")


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
    "bits^2 - 1); without groups a token's scale is that of a KV head (there of all); with outliers a step "
    "makes numbers of all parts and attends to these.",
    config=GearConfig,
    implementation="models.cache.gear:Gear",
    kind="store",
)
ZIPCACHE = Method(
    name="zipcache",
    summary="keeps tokens that are attended to in 4 bits and the others in 2, and packs all anew from time to time "
    "(ZipCache)",
    source="ZipCache, arXiv:2405.14256; code ThisisBillhe/ZipCache b6932b9, zipcache/models/modeling_llama.py and "
    "CompressUtils",
    differs="of a prompt the last 5 % of the tokens ask, `window` at most, and of every 20 tokens one at random (there "
    "5 % drawn freely among the earlier ones); more than 1024 tokens are divided and packed 1024 at a time, so that "
    "each 1024 have their share of ordinary ones; minima, steps and channel scales are each sequence's own (there of "
    "the whole batch); a channel of zeros stays zeros (there NaN); ordinary tokens lie in order of position (there of "
    "score: order=score); in a batch all sequences are packed anew when one has to be.",
    config=ZipCacheConfig,
    implementation="models.cache.zipcache:ZipCache",
    kind="store",
)
KVQUANT = Method(
    name="kvquant",
    summary="keeps keys before they are turned, with ranges of channels and uneven levels, found by calibration, and "
    "outliers apart (KVQuant)",
    source="KVQuant, arXiv:2401.18079; code SqueezeAILab/KVQuant 57a2383, quant/kvquant/simquant_module_quantizer.py",
    differs="without data tables are of random tokens of the model; levels have the least squared error (there "
    "weighted by squared gradients), and ranges are wider than the percentiles by a thousandth on each "
    "side; a token has as many outliers of keys at most, on each side, as the share of its channels, "
    "rounded up (there 21), the farthest outside (there by value: apart=value), and as many of values "
    "always; the tokens of one run see each other as they are; Q-Norm's moments are those of the "
    "calibration's entries, as the authors' code for it fails; a step makes numbers of all rows and turns "
    "the keys.",
    config=KvQuantConfig,
    implementation="models.cache.kvquant:KvQuant",
    kind="store",
    artifacts={
        "tables": ArtifactForm(
            summary="upper and lower [layers, channels], ends of the keys' channels; k_signposts and v_signposts "
            "[layers, levels]; k_moments and v_moments [layers, 2], factor and offset that give levels the entries' "
            "moments",
            settings=("bits", "outliers"),
            needs_data=False,
        )
    },
)
