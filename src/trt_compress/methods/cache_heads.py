"""Cache policies that look at heads one by one, or merge entries: options and entries."""

from dataclasses import dataclass
from typing import Literal

from trt_compress.errors import ConfigError
from trt_compress.methods.artifact import ArtifactFile, ArtifactForm
from trt_compress.methods.cache import check_budget, check_kernel
from trt_compress.methods.config import CompressorConfig, Method


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedConfig(CompressorConfig):
    """Options of expected attention.

    Attributes:
        budget: Entries kept of each KV head, the sinks with them.
        sinks: First tokens; they are kept, and their queries do not count.
        future: Positions behind the prompt over which queries are turned in the mean.
        covariance: Queries spread around their mean; false: only the mean counts.
        value_norm: Scores are weighed by the norms of the values.
        epsilon: Added to the expected attention before it is weighed.
    """

    budget: int
    sinks: int = 4
    future: int = 512
    covariance: bool = True
    value_norm: bool = True
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        check_budget("expected", self.budget, self.sinks, "sinks")
        if self.future < 1:
            raise ConfigError(f"expected: future={self.future} is out of range; give 1 or more positions.")
        if not 0 <= self.epsilon < float("inf"):
            raise ConfigError(f"expected: epsilon={self.epsilon} is out of range; give 0 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressKvConfig(CompressorConfig):
    """Options of CompressKV.

    Attributes:
        budget: Entries kept of each KV head, those of the window with them; the mean of all layers.
        calibration: An artifact: how strong each head is, and how much each layer loses.
        heads: How many heads of each layer choose, the strongest.
        budgets: "errors": layers that lose more keep more; "same": all keep as many.
        smallest: Entries of a layer at least; where the budget is less, it.
        window: Tokens at the end of the prompt whose queries choose; they are kept.
        kernel: Width of the pooling of their attention, odd; 1: none.
        pool: "avg" or "max".
    """

    budget: int
    calibration: ArtifactFile | None = None
    heads: int = 4
    budgets: Literal["errors", "same"] = "errors"
    smallest: int = 32
    window: int = 8
    kernel: int = 5
    pool: Literal["avg", "max"] = "avg"

    def __post_init__(self) -> None:
        check_budget("compresskv", self.budget, self.window, "window")
        check_kernel("compresskv", self.kernel)
        if self.window < 1:
            raise ConfigError(f"compresskv: window={self.window} is out of range; give 1 or more tokens.")
        if self.heads < 1:
            raise ConfigError(f"compresskv: heads={self.heads} is out of range; give 1 or more.")
        if self.smallest <= self.window:
            raise ConfigError(
                f"compresskv: smallest={self.smallest} has no room beside window={self.window}; give more than "
                f"{self.window}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RazorConfig(CompressorConfig):
    """Options of RazorAttention.

    Attributes:
        search: An artifact: how much each KV head looks at copies of a token, and behind them.
        window: The newest entries that heads keep which do not retrieve.
        sinks: The first, which they keep too.
        echo: Share of all KV heads that keep everything because they look at copies most.
        induction: The same, because they look behind copies most.
    """

    search: ArtifactFile | None = None
    window: int = 4000
    sinks: int = 4
    echo: float = 0.01
    induction: float = 0.14

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"razorattention: window={self.window} is out of range; give 1 or more tokens.")
        if self.sinks < 0:
            raise ConfigError(f"razorattention: sinks={self.sinks} is out of range; give 0 or more tokens.")
        for name in ("echo", "induction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"razorattention: {name}={getattr(self, name)} is out of range; it is a share of the heads, 0 to 1."
                )


EXPECTED = Method(
    name="expected",
    summary="keeps the entries of a prompt that tokens to come are expected to attend to (expected attention)",
    source="Expected Attention, arXiv:2510.00636; code NVIDIA/kvpress 8bb29b9, presses/expected_attention_press.py",
    differs="mean and covariance are carried over chunks; entries stay in their order; a later prompt is chosen from "
    "together with what was kept, and its queries count with the earlier ones.",
    config=ExpectedConfig,
    implementation="models.cache.expected:ExpectedAttention",
    kind="selector",
)
COMPRESSKV = Method(
    name="compresskv",
    summary="keeps the entries of a prompt that a few heads, found by calibration, attend to; layers differ in their "
    "budgets (CompressKV)",
    source="CompressKV, arXiv:2508.02401; code TUDa-HWAI/CompressKV e8af510, methods/compresskv/snapkv_utils.py and "
    "Retrieval_Head_Identification",
    differs="calibrated on needles of random tokens of the model (or on texts that are given), which are asked for by "
    "the tokens in front of them and read one by one; where the model answers none of them, all of them count. "
    "Errors are those of the tokens of the answer, at a quarter of the prompt at most. Entries stay in their order.",
    config=CompressKvConfig,
    implementation="models.cache.compresskv:CompressKv",
    kind="selector",
    artifacts={
        "calibration": ArtifactForm(
            summary="scores [layers, heads], how much each head attends to what is asked for, and errors [layers], how "
            "much each layer loses by eviction",
            needs_data=False,
        )
    },
)
RAZORATTENTION = Method(
    name="razorattention",
    summary="keeps everything for heads that retrieve, found by calibration, and for the others first and newest "
    "entries and the mean of the rest (RazorAttention)",
    source="RazorAttention, arXiv:2407.15891",
    differs="`window` is a fixed number (there the larger of 4000 and a fifth of the prompt); prompts are read with "
    "what is kept, each token as if it had been generated (there in full, and compressed behind). The search is the "
    "paper's definition on the model's own tokens; third-party code (MindSpore Golden Stick) differs in its mask.",
    config=RazorConfig,
    implementation="models.cache.razor:Razor",
    kind="store",
    provenance="paper",
    artifacts={
        "search": ArtifactForm(
            summary="echo and induction, [layers, KV heads]: how much each looks at copies of a token, and behind them",
            needs_data=False,
        )
    },
)
