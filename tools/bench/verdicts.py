"""A bundle beside its baseline, in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trt_compress.runtime.measure.latency import Speedup
    from trt_compress.tools.bench.result import BenchResult


def slower_words(result: "BenchResult") -> list[str]:
    """A sentence for what is slower than the baseline, so that nobody deploys it for its speed."""
    gains = [(f"{point.workload} at {point.fill}", point.speedup) for point in result.points]
    found = [(where, gain) for where, gain in gains or [("", result.speedup)] if gain is not None and gain.is_slower]
    return [
        f"WARNING: the bundle is slower than its baseline on this machine{f', {where}' if where else ''}: "
        f"{speedup_words(gain, short=True)}. Another setting, batch or number of threads may pay; `trt-compress sweep` "
        "measures several."
        for where, gain in found
    ]


def speedup_words(gain: "Speedup", *, short: bool = False) -> str:
    """A speed-up with its interval, or why there is none."""
    if gain.low is None or gain.high is None:
        return f"{gain.median:.2f}× ({gain.reason})"
    if short:
        return f"{gain.median:.2f}× ({gain.low:.2f} to {gain.high:.2f})"
    return f"{gain.median:.2f}× (95 % interval {gain.low:.2f} to {gain.high:.2f}, {gain.n} pairs)"
