"""Cache policies: options and entries."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.config import CompressorConfig, Method


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainConfig(CompressorConfig):
    """Options of a cache in full precision: none; `--cache-dtype` says in which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KiviConfig(CompressorConfig):
    """Options of KIVI.

    Attributes:
        bits: Of a code: 8, 4 or 2.
        group: Tokens of one channel (keys), and channels of one token (values), that share a scale; 0: for values all
            channels of a head.
        residual: The newest tokens are kept in full precision; so many are packed together when they are there.
        prefill: "exact": a prompt is read in full precision and packed behind it; "packed": it is packed on the way,
            which takes less memory.
        scales: Of scales and minima: "float16" or "float32".
    """

    bits: int = 2
    group: int = 32
    residual: int = 128
    prefill: Literal["exact", "packed"] = "exact"
    scales: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        check_bits("kivi", self.bits)
        check_packing("kivi", self.group, self.residual)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowConfig(CompressorConfig):
    """What selectors have in common whose choice the last tokens of a prompt make.

    Attributes:
        budget: Entries kept of each KV head, those of the window with them.
        window: Tokens at the end of the prompt whose queries choose; they are kept.
        kernel: Width of the pooling of their attention, odd; 1: none.
        pool: "avg" or "max".
        heads: Over the query heads of a KV head: "mean" or "max".
    """

    method: ClassVar[str]
    budget: int
    window: int = 32
    kernel: int = 5
    pool: Literal["avg", "max"] = "avg"
    heads: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"{self.method}: window={self.window} is out of range; give 1 or more tokens.")
        check_budget(self.method, self.budget, self.window, "window")
        check_kernel(self.method, self.kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapKvConfig(WindowConfig):
    """Options of SnapKV.

    Attributes:
        in_chunks: Entries are chosen behind every chunk of a prompt, so that there are never more than the budget and
            a chunk; if not, behind the whole prompt.
    """

    method = "snapkv"
    in_chunks: bool = False


def check_bits(method: str, bits: int) -> None:
    """Raise ConfigError if there are no codes of so many bits."""
    if bits not in (8, 4, 2):
        raise ConfigError(f"{method}: bits={bits} is not allowed; codes have 8, 4 or 2.")


def check_packing(method: str, group: int, residual: int) -> None:
    """Raise ConfigError if tokens cannot be packed so."""
    if group < 1:
        raise ConfigError(f"{method}: group={group} is out of range; give 1 or more tokens.")
    if residual < group or residual % group:
        raise ConfigError(
            f"{method}: residual={residual} is not a multiple of group={group}; whole groups are packed, so give one."
        )


def check_budget(method: str, budget: int, kept: int, what: str) -> None:
    """Raise ConfigError if a budget has no room for what is kept in any case."""
    if kept < 0:
        raise ConfigError(f"{method}: {what}={kept} is out of range; give 0 or more tokens.")
    if budget <= kept:
        raise ConfigError(
            f"{method}: budget={budget} has no room beside {what}={kept}, which are kept in any case; give more than "
            f"{kept}."
        )


def check_kernel(method: str, kernel: int) -> None:
    """Raise ConfigError if a width cannot be centred."""
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"{method}: kernel={kernel} is not allowed; give an odd width, 1 for none.")


PLAIN = Method(
    name="plain",
    summary="keeps keys and values as they are, what a decoder does if no other store is named",
    source="DynamicCache and StaticCache of transformers",
    differs="updated in place; filling is written, and never read.",
    config=PlainConfig,
    implementation="models.cache.plain:Plain",
    kind="store",
)
KIVI = Method(
    name="kivi",
    summary="keeps keys in 2, 4 or 8 bits with a scale a channel, values with a scale a token, and the newest as they "
    "are (KIVI)",
    source="KIVI, arXiv:2402.02750; code jy-yuan/KIVI 876b4d2, models/llama_kivi.py and quant/new_pack.py",
    differs="values are packed together with the keys, `residual` tokens at once (there one token a step, so that the "
    "newest `residual` are in full precision); codes are packed in planar bytes.",
    config=KiviConfig,
    implementation="models.cache.kivi:Kivi",
    kind="store",
)
SNAPKV = Method(
    name="snapkv",
    summary="keeps the entries of a prompt that its last tokens attend to (SnapKV)",
    source="SnapKV, arXiv:2404.14469; code FasterDecoding/SnapKV, snapkv/monkeypatch/snapkv_utils.py",
    differs="one choice for each KV head; entries stay in their order; a prompt of exactly the budget stays as it is; "
    "a later prompt is chosen from together with what was kept.",
    config=SnapKvConfig,
    implementation="models.cache.snapkv:SnapKv",
    kind="selector",
)
