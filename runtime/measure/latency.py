"""Time callables honestly: interleaved, with percentiles only from enough samples and a verdict on stability."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from trt_compress.errors import ConfigError

SAMPLES_NEEDED = {90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}
"""Fewest samples that state a percentile at 99 % confidence, with one sample over it allowed."""

CV_BOUNDS = {"gpu": 0.025, "cpu": 0.10}
"""Largest coefficient of variation of a stable run. A CPU shares its cores, caches and clock, hence its wider bound."""

WINDOWS = 3
WINDOW_TOLERANCE = 0.10
WINDOW_SAMPLES = 5

_RESAMPLES = 2000
_FEWEST_RATIOS = 6  # with 5, even the range from the least to the largest holds the median in only 94 % of all runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Latencies of one run in nanoseconds, in order of time; pair i is `a_ns[i]` and `b_ns[i]`."""

    a_ns: tuple[int, ...]
    b_ns: tuple[int, ...]
    warmup: int

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """What a set of latencies supports saying; a percentile that it does not is None, and `reasons` says why."""

    n: int
    min_ns: float
    mean_ns: float
    median_ns: float
    p90_ns: float | None
    p95_ns: float | None
    p99_ns: float | None
    p99_9_ns: float | None
    max_ns: float
    std_ns: float
    cv: float
    reasons: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """How many times faster a is than b: the median of b/a over the pairs, with its 95 % interval."""

    median: float
    low: float | None
    high: float | None
    n: int
    reason: str | None = None

    @property
    def is_slower(self) -> bool:
        """Whether a is slower than b: all of the interval is below 1, or the median where there is none."""
        return (self.median if self.high is None else self.high) < 1

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a run may be quoted, and why (not). The bounds are those that were applied."""

    status: Literal["stable", "unstable", "invalid"]
    reason: str
    cv: float | None
    cv_bound: float
    window_tolerance: float = WINDOW_TOLERANCE

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


def interleave(
    a: Callable[[], object],
    b: Callable[[], object] | None,
    *,
    warmup: int,
    pairs: int,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Samples:
    """Time a, and b beside it: in turns (a, b, a, b, …), in this process.

    Args:
        a: What is measured.
        b: Its baseline, or None.
        warmup: Pairs that are run first and not counted.
        pairs: Pairs that are counted.
        clock: Gives nanoseconds.

    Raises:
        ConfigError: `warmup` is negative or `pairs` is below 1.
    """
    if warmup < 0 or pairs < 1:
        raise ConfigError(f"warmup={warmup}, pairs={pairs}; give warmup >= 0 and pairs >= 1.")
    sides = interleave_many([a] if b is None else [a, b], warmup=warmup, rounds=pairs, turn=False, clock=clock)
    return Samples(a_ns=sides[0], b_ns=sides[1] if b is not None else (), warmup=warmup)


def interleave_many(
    calls: Sequence[Callable[[], object]],
    *,
    warmup: int,
    rounds: int,
    turn: bool = True,
    clock: Callable[[], int] = time.perf_counter_ns,
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[int, ...]]:
    """Time any number of things in turns, in this process: each once a round.

    Args:
        calls: What is measured.
        warmup: Rounds that are run first and not counted.
        rounds: Rounds that are counted.
        turn: Every other round goes backwards, so that nothing always runs behind the same neighbour.
        clock: Gives nanoseconds.
        progress: Is told how many rounds are done.

    Returns:
        Latencies of each in nanoseconds; number i of all of them are of one round.

    Raises:
        ConfigError: `warmup` is negative or `rounds` is below 1.
    """
    if warmup < 0 or rounds < 1:
        raise ConfigError(f"warmup={warmup}, rounds={rounds}; give warmup >= 0 and rounds >= 1.")
    latencies: list[list[int]] = [[] for _ in calls]
    sides = list(zip(calls, latencies, strict=True))
    for number in range(warmup + rounds):
        progress(number)
        for call, own in reversed(sides) if turn and number % 2 else sides:
            start = clock()
            call()
            own.append(clock() - start)
    return [tuple(own[warmup:]) for own in latencies]


def summarize(ns: Sequence[int]) -> LatencySummary:
    """Summarize latencies.

    A percentile is the smallest sample that at least that share of all samples does not exceed. `std_ns` has n - 1 in
    its denominator and is 0 for a single sample.

    Raises:
        ConfigError: There are no samples.
    """
    if len(ns) == 0:
        raise ConfigError("There are no latencies to summarize; time at least one run.")
    values = np.asarray(ns, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    std = float(values.std(ddof=1)) if n > 1 else 0.0
    percentiles: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for percent, needed in SAMPLES_NEEDED.items():
        name = f"p{percent:g}_ns".replace(".", "_")
        enough = n >= needed
        percentiles[name] = float(np.percentile(values, percent, method="inverted_cdf")) if enough else None
        if not enough:
            reasons[name] = f"n too small: {n} of {needed}"
    return LatencySummary(
        n=n,
        min_ns=float(values.min()),
        mean_ns=mean,
        median_ns=float(np.median(values)),
        max_ns=float(values.max()),
        std_ns=std,
        cv=std / mean if mean else math.inf,
        reasons=reasons,
        **percentiles,
    )


def speedup(a: Sequence[int], b: Sequence[int], *, seed: int = 0) -> Speedup:
    """Compare pairs of latencies: how many times faster a is than its baseline b.

    Args:
        a: Latencies of what is measured.
        b: Latencies of its baseline, in the same pairs.
        seed: Of the bootstrap.

    Returns:
        The median of the ratios b/a, and the 95 % percentile interval of the median in 2000 bootstrap resamples; no
        interval from fewer than 6 pairs.

    Raises:
        ConfigError: The two differ in length, are empty, or hold a latency that is not positive.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ConfigError(f"{len(a)} and {len(b)} latencies do not make pairs; give both sides of one interleaved run.")
    if (least := min(min(a), min(b))) <= 0:
        raise ConfigError(f"A latency of {least} ns is not possible; check the clock.")
    ratios = np.asarray(b, dtype=np.float64) / np.asarray(a, dtype=np.float64)
    n, median = len(ratios), float(np.median(ratios))
    if n < _FEWEST_RATIOS:
        return Speedup(median=median, low=None, high=None, n=n, reason=f"n too small: {n} of {_FEWEST_RATIOS} pairs")
    generator = np.random.default_rng(seed)
    medians = [float(np.median(generator.choice(ratios, size=n))) for _ in range(_RESAMPLES)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return Speedup(median=median, low=float(low), high=float(high), n=n)


def verdict(ns: Sequence[int], *, device: Literal["cpu", "gpu"]) -> Verdict:
    """Say whether latencies are stable enough to quote.

    The run is cut into three windows of equal length, so every sample that a summary speaks for is looked at. Stable
    means that the windows' medians and throughputs agree within 10 % (largest over smallest), and that the coefficient
    of variation keeps its bound: 2.5 % on a GPU, 10 % on a CPU.

    Args:
        ns: Latencies in order of time.
        device: Where the runs happened.
    """
    bound = CV_BOUNDS[device]
    needed = WINDOWS * WINDOW_SAMPLES
    if len(ns) < needed:
        reason = f"{len(ns)} samples do not fill {WINDOWS} windows of {WINDOW_SAMPLES}; take at least {needed}"
        return Verdict(status="invalid", reason=reason, cv=None, cv_bound=bound)
    if min(ns) <= 0:
        reason = f"a latency of {min(ns)} ns is not possible; check the clock"
        return Verdict(status="invalid", reason=reason, cv=None, cv_bound=bound)
    cv = summarize(ns).cv
    windows = np.array_split(np.asarray(ns, dtype=np.float64), WINDOWS)
    spreads = {
        "median latency": _spread([float(np.median(window)) for window in windows]),
        "throughput": _spread([len(window) / float(window.sum()) for window in windows]),
    }
    faults = [
        f"{name} differs by {spread:.1%} between windows, more than {WINDOW_TOLERANCE:.0%}"
        for name, spread in spreads.items()
        if spread > WINDOW_TOLERANCE
    ]
    if cv > bound:
        faults.append(f"the coefficient of variation is {cv:.1%}, more than {bound:.1%} ({device})")
    if faults:
        return Verdict(status="unstable", reason="; ".join(faults), cv=cv, cv_bound=bound)
    agreement = " and ".join(f"{name} within {spread:.1%}" for name, spread in spreads.items())
    reason = f"{agreement} over {WINDOWS} windows; coefficient of variation {cv:.1%}, at most {bound:.1%} ({device})"
    return Verdict(status="stable", reason=reason, cv=cv, cv_bound=bound)


def window_spread(values: Sequence[float]) -> float | None:
    """By how much the medians of the windows differ, largest over smallest less 1; None if too few to fill them."""
    if len(values) < WINDOWS * WINDOW_SAMPLES:
        return None
    medians = [float(np.median(window)) for window in np.array_split(np.asarray(values, dtype=np.float64), WINDOWS)]
    return _spread(medians) if min(medians) > 0 else math.inf


def _spread(values: list[float]) -> float:
    return max(values) / min(values) - 1
