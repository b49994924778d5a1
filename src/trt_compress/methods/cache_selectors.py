"""Selectors of cache entries: options and entries."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.cache import WindowConfig, check_budget, check_kernel
from trt_compress.methods.config import CompressorConfig, Method


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorConfig(CompressorConfig):
    """What most selectors have in common.

    Attributes:
        budget: Entries kept of each KV head.
        in_chunks: Entries are chosen behind every chunk of a prompt, so that there are never more than the budget and
            a chunk; if not, behind the whole prompt.
        every: Entries are chosen while tokens are generated too, as soon as there are so many more than the budget;
            None: generated tokens are kept.
    """

    method: ClassVar[str]
    budget: int
    in_chunks: bool = False
    every: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ConfigError(f"{self.method}: budget={self.budget} is out of range; give 1 or more entries.")
        if self.every is not None and self.every < 1:
            raise ConfigError(f"{self.method}: every={self.every} is out of range; give 1 or more tokens.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentConfig(SelectorConfig):
    """What selectors that need not keep the newest entries have in common.

    Attributes:
        recent: Of the budget, so many are the newest entries.
    """

    recent: int = 0

    def __post_init__(self) -> None:
        super(RecentConfig, self).__post_init__()
        check_budget(self.method, self.budget, self.recent, "recent")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomKvConfig(RecentConfig):
    """Options of random eviction.

    Attributes:
        seed: Another one keeps other entries.
    """

    method = "random_kv"
    seed: int = 0

    def __post_init__(self) -> None:
        super(RandomKvConfig, self).__post_init__()
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"random_kv: seed={self.seed} is out of range; give 0 to {2**31 - 1}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDiffConfig(RecentConfig):
    """Options of KeyDiff."""

    method = "keydiff"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnormConfig(RecentConfig):
    """Options of eviction by the norm of keys."""

    method = "knorm"


@dataclass(frozen=True, slots=True, kw_only=True)
class TovaConfig(SelectorConfig):
    """Options of TOVA."""

    method = "tova"

    def __post_init__(self) -> None:
        super(TovaConfig, self).__post_init__()
        check_budget(self.method, self.budget, 1, "the last token")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingLlmConfig(SelectorConfig):
    """Options of StreamingLLM.

    Attributes:
        sinks: Of the budget, so many are the first entries; the others are the newest.
        positions: "kept": of the tokens in their text; "cache": of the entries in the cache, so that a text may be
            longer than the model was made for.
    """

    method = "streamingllm"
    sinks: int = 4
    positions: Literal["kept", "cache"] = "kept"

    def __post_init__(self) -> None:
        super(StreamingLlmConfig, self).__post_init__()
        check_budget(self.method, self.budget, self.sinks, "sinks")


@dataclass(frozen=True, slots=True, kw_only=True)
class H2oConfig(SelectorConfig):
    """Options of H2O.

    Attributes:
        recent: Of the budget, so many are the newest entries; None: half of it.
        score: "sum": attention is added up over the tokens that were read; "mean": and divided by how many of them
            could see the entry, so that old ones have no advantage.
        heads: Over the query heads of a KV head: "mean" or "max".
    """

    method = "h2o"
    recent: int | None = None
    score: Literal["sum", "mean"] = "sum"
    heads: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        super(H2oConfig, self).__post_init__()
        check_budget(self.method, self.budget, self.newest, "recent")

    @property
    def newest(self) -> int:
        """Entries that are kept as they are the newest."""
        return self.budget // 2 if self.recent is None else self.recent


@dataclass(frozen=True, slots=True, kw_only=True)
class EmsConfig(SelectorConfig):
    """Options of EMS.

    Attributes:
        window: Of the budget, so many are the newest entries; their queries are what looks locally.
        kernel: Width of the pooling of scores, odd; 1: none.
        merged: So many entries behind those that stay may be merged into them; None: as many as the budget.
        threshold: An entry is merged where it is so similar, -1 to 1: the cosine of the keys times that of the values.
    """

    method = "ems"
    score: ClassVar[Literal["sum"]] = "sum"
    heads: ClassVar[Literal["mean"]] = "mean"
    window: int = 32
    kernel: int = 5
    merged: int | None = None
    threshold: float = 0.6

    def __post_init__(self) -> None:
        super(EmsConfig, self).__post_init__()
        if self.window < 1:
            raise ConfigError(f"ems: window={self.window} is out of range; give 1 or more tokens.")
        check_budget(self.method, self.budget, self.window, "window")
        check_kernel(self.method, self.kernel)
        if self.merged is not None and self.merged < 0:
            raise ConfigError(f"ems: merged={self.merged} is out of range; give 0 or more entries.")
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"ems: threshold={self.threshold} is out of range; give -1 to 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidKvConfig(WindowConfig):
    """Options of PyramidKV; the budget is that of a layer on the average.

    Attributes:
        beta: The larger, the less the last layers keep.
        allocation: Of the budget to layers: "kvcache_factory", the authors', where the window is added to what falls
            from layer to layer, or "kvpress", where it is part of that.
    """

    method = "pyramidkv"
    beta: int = 20
    allocation: Literal["kvcache_factory", "kvpress"] = "kvcache_factory"

    def __post_init__(self) -> None:
        super(PyramidKvConfig, self).__post_init__()
        if self.beta < 1:
            raise ConfigError(f"pyramidkv: beta={self.beta} is out of range; give 1 or more.")


RANDOM_KV = Method(
    name="random_kv",
    summary="keeps random entries of a prompt: the floor that a selector must beat",
    source="none",
    differs="a number of each token, KV head and layer, made of these and the seed, decides: in chunks of any size the "
    "same entries are kept.",
    config=RandomKvConfig,
    implementation="models.cache.random_kv:RandomKv",
    kind="selector",
)
KEYDIFF = Method(
    name="keydiff",
    summary="keeps the entries whose keys differ most from the mean of all keys (KeyDiff)",
    source="KeyDiff, arXiv:2504.15364; code NVIDIA/kvpress, presses/keydiff_press.py and block_press.py",
    differs="entries stay in their order; the paper's choice block by block is in_chunks=true, a block being a chunk.",
    config=KeyDiffConfig,
    implementation="models.cache.keydiff:KeyDiff",
    kind="selector",
)
KNORM = Method(
    name="knorm",
    summary="keeps the entries whose keys are shortest",
    source="A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression, arXiv:2406.11430; code "
    "NVIDIA/kvpress, presses/knorm_press.py",
    differs="entries stay in their order; acts at every layer (there the first two are left out).",
    config=KnormConfig,
    implementation="models.cache.knorm:Knorm",
    kind="selector",
)
TOVA = Method(
    name="tova",
    summary="keeps the entries that the last token attends to (TOVA)",
    source="Transformers are Multi-State RNNs, arXiv:2401.06104; code NVIDIA/kvpress, presses/tova_press.py",
    differs="entries stay in their order; all KV heads of a layer keep the same ones; the paper's choice at every "
    "token is every=1.",
    config=TovaConfig,
    implementation="models.cache.tova:Tova",
    kind="selector",
)
STREAMINGLLM = Method(
    name="streamingllm",
    summary="keeps the first entries, the sinks of attention, and the newest (StreamingLLM)",
    source="StreamingLLM, arXiv:2309.17453; code mit-han-lab/streaming-llm 2e50426, streaming_llm/kv_cache.py and "
    "pos_shift; NVIDIA/kvpress, presses/streaming_llm_press.py and key_rerotation_press.py",
    differs="positions=kept is not the paper's; with positions=cache keys that move are turned by as much (there they "
    "are kept unturned, and all are turned at every step).",
    config=StreamingLlmConfig,
    implementation="models.cache.streamingllm:StreamingLlm",
    kind="selector",
)
H2O = Method(
    name="h2o",
    summary="keeps the entries that were attended to most, and the newest (H2O)",
    source="H2O, arXiv:2306.14048; code FMInference/H2O ac75c2a, h2o_hf/utils_real_drop/modify_llama.py; "
    "Zefan-Cai/KVCache-Factory c97f9d7, pyramidkv_utils.py; NVIDIA/kvpress, presses/observed_attention_press.py",
    differs="one choice for each KV head; with every the newest entries are kept whatever their score while tokens are "
    "generated (every=1 is the authors' cache), without it generated tokens are not counted.",
    config=H2oConfig,
    implementation="models.cache.h2o:H2o",
    kind="selector",
)
PYRAMIDKV = Method(
    name="pyramidkv",
    summary="keeps the entries that the last tokens of a prompt attend to, more of them in the first layers "
    "(PyramidKV)",
    source="PyramidKV, arXiv:2406.02069; code Zefan-Cai/KVCache-Factory c97f9d7, pyramidkv_utils.py; NVIDIA/kvpress, "
    "presses/pyramidkv_press.py",
    differs="one choice for each KV head; entries stay in their order; how much a layer keeps depends on all tokens "
    "that were read until then, and a later prompt is chosen from together with what was kept.",
    config=PyramidKvConfig,
    implementation="models.cache.pyramidkv:PyramidKv",
    kind="selector",
)
EMS = Method(
    name="ems",
    summary="keeps entries by attention of all and of the newest tokens, and merges the next into the most similar of "
    "them (EMS)",
    source="EMS, known from summaries: evict, then merge, by global and local scores, with a zero class",
    differs="a reconstruction, there is no public code: the score is the larger of both, the local one brought to the "
    "global mean, and pooled; as many entries as the budget may be merged; a key's direction and length are averaged "
    "apart, with scores as weights; the number of centres does not depend on the head; entries stay in their order.",
    config=EmsConfig,
    implementation="models.cache.ems:Ems",
    kind="selector",
    provenance="reconstruction",
)
