"""Cache policies that look at heads one by one, or merge entries: options and entries."""

from dataclasses import dataclass

from trt_compress.errors import ConfigError
from trt_compress.methods.cache import check_budget
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
