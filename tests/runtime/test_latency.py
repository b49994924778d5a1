"""Statistics against plain references, and the order in which callables are timed."""

import json
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest

from trt_compress.errors import ConfigError
from trt_compress.runtime.measure.latency import interleave, speedup, summarize, verdict

PERCENTILES = {"p90_ns": (0.90, 64), "p95_ns": (0.95, 130), "p99_ns": (0.99, 662), "p99_9_ns": (0.999, 6636)}


def fake_run(a_ns: int, b_ns: int) -> tuple[list[str], Callable[[], object], Callable[[], object], Callable[[], int]]:
    """Two callables that take exactly so long by the returned clock, and the order in which they are called."""
    order: list[str] = []
    now = [0]

    def call(name: str, duration: int) -> Callable[[], object]:
        def run() -> None:
            order.append(name)
            now[0] += duration

        return run

    return order, call("a", a_ns), call("b", b_ns), lambda: now[0]


def test_both_sides_take_turns_and_warmup_is_left_out() -> None:
    order, a, b, clock = fake_run(5, 9)
    samples = interleave(a, b, warmup=1, pairs=3, clock=clock)
    assert "".join(order) == "abababab"
    assert (samples.a_ns, samples.b_ns, samples.warmup) == ((5, 5, 5), (9, 9, 9), 1)
    assert json.loads(json.dumps(samples.to_json())) == {"a_ns": [5, 5, 5], "b_ns": [9, 9, 9], "warmup": 1}


def test_one_side_alone_is_timed_too() -> None:
    order, a, _, clock = fake_run(5, 9)
    samples = interleave(a, None, warmup=2, pairs=3, clock=clock)
    assert (len(order), samples.a_ns, samples.b_ns) == (5, (5, 5, 5), ())


def test_the_default_clock_gives_nanoseconds() -> None:
    (ns,) = interleave(lambda: time.sleep(0.01), None, warmup=0, pairs=1).a_ns
    assert ns >= 10_000_000


@pytest.mark.parametrize(("warmup", "pairs"), [(-1, 1), (0, 0)])
def test_impossible_counts_are_refused(warmup: int, pairs: int) -> None:
    with pytest.raises(ConfigError, match=rf"warmup={warmup}, pairs={pairs}; give warmup >= 0 and pairs >= 1"):
        interleave(lambda: None, None, warmup=warmup, pairs=pairs)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 129, 130, 661, 662, 6635, 6636])
def test_a_summary_is_what_the_samples_support(n: int) -> None:
    ns = np.random.default_rng(n).integers(1_000, 9_000, n).tolist()
    result = summarize(ns).to_json()
    assert result["n"] == n
    assert (result["min_ns"], result["max_ns"]) == (min(ns), max(ns))
    assert result["median_ns"] == statistics.median(ns)
    assert math.isclose(result["mean_ns"], statistics.fmean(ns))
    std = statistics.stdev(ns) if n > 1 else 0.0
    assert math.isclose(result["std_ns"], std)
    assert math.isclose(result["cv"], std / statistics.fmean(ns))
    for name, (share, needed) in PERCENTILES.items():
        if n >= needed:
            assert result[name] == sorted(ns)[math.ceil(round(share * n, 6)) - 1]
            assert name not in result["reasons"]
        else:
            assert result[name] is None
            assert result["reasons"][name] == f"n too small: {n} of {needed}"
    assert json.loads(json.dumps(result)) == result


def test_no_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="There are no latencies to summarize"):
        summarize([])


def test_a_speedup_is_the_median_of_the_ratios_not_the_ratio_of_the_medians() -> None:
    a, b = [10, 20, 30, 40, 50, 60, 70], [90, 80, 60, 40, 50, 30, 20]
    assert statistics.median(b) / statistics.median(a) == 1.25
    assert speedup(a, b).median == 1.0
    assert speedup([1, 1, 1], [2, 3, 4]).median == 3.0


def test_the_interval_is_the_bootstraps() -> None:
    generator = np.random.default_rng(5)
    a = generator.integers(90, 110, 40)
    b = generator.integers(150, 190, 40)
    result = speedup(a.tolist(), b.tolist(), seed=11)
    assert result == speedup(a.tolist(), b.tolist(), seed=11)
    assert result.low is not None and result.high is not None
    resampled = np.random.default_rng(99).choice(b / a, size=(20_000, 40))
    low, high = np.quantile(np.median(resampled, axis=1), [0.025, 0.975])
    width = high - low
    assert abs(result.low - low) < 0.15 * width
    assert abs(result.high - high) < 0.15 * width


def test_the_interval_holds_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        b = (1_700_000 * np.exp(generator.normal(0, 0.1, 30))).astype(int).tolist()
        result = speedup([1_000_000] * 30, b, seed=seed)
        assert result.low is not None and result.high is not None
        hits += result.low <= 1.7 <= result.high
    assert 50 <= hits < 60


def test_few_pairs_have_no_interval() -> None:
    result = speedup([1] * 5, [2] * 5)
    assert (result.median, result.low, result.high, result.n) == (2.0, None, None, 5)
    assert result.to_json()["reason"] == "n too small: 5 of 6 pairs"
    assert speedup([1] * 6, [2] * 6).to_json() == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 6, "reason": None}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 2], [1], "2 and 1 latencies do not make pairs"),
        ([], [], "0 and 0 latencies do not make pairs"),
        ([0, 1], [1, 1], "A latency of 0 ns is not possible"),
    ],
)
def test_what_makes_no_pairs_is_refused(a: list[int], b: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        speedup(a, b)


def noisy(n: int, cv: float) -> list[int]:
    """Latencies around 1 ms with exactly this coefficient of variation: every other one is above the mean."""
    delta = cv * math.sqrt((n - 1) / n)
    return [round(1e6 * (1 + delta * (-1) ** index)) for index in range(n)]


@pytest.mark.parametrize(
    ("device", "cv", "status"),
    [
        ("gpu", 0.024, "stable"),
        ("gpu", 0.026, "unstable"),
        ("cpu", 0.026, "stable"),
        ("cpu", 0.098, "stable"),
        ("cpu", 0.102, "unstable"),
    ],
)
def test_the_bound_on_variation_depends_on_the_device(device: str, cv: float, status: str) -> None:
    result = verdict(noisy(60, cv), device=device)  # type: ignore[arg-type]
    assert result.status == status
    assert result.cv is not None and math.isclose(result.cv, cv, rel_tol=1e-4)
    assert result.cv_bound == {"gpu": 0.025, "cpu": 0.10}[device]
    if status == "unstable":
        assert f"coefficient of variation is {cv:.1%}, more than" in result.reason


def windows(*lengths: float) -> list[int]:
    return [round(length * 1e6) for length in lengths for _ in range(50)]


def test_windows_that_agree_are_stable_and_the_reason_says_how_well() -> None:
    result = verdict(windows(1.0, 1.05, 1.09), device="cpu")
    assert result.status == "stable"
    assert result.reason.startswith("median latency within 9.0% and throughput within 9.0% over 3 windows")
    assert json.loads(json.dumps(result.to_json()))["window_tolerance"] == 0.10


@pytest.mark.parametrize("lengths", [(1.0, 1.0, 1.11), (1.11, 1.0, 1.0), (1.0, 1.11, 1.0)])
def test_windows_that_differ_are_unstable(lengths: tuple[float, ...]) -> None:
    result = verdict(windows(*lengths), device="cpu")
    assert result.status == "unstable"
    assert "median latency differs by 11.0% between windows, more than 10%" in result.reason
    assert "throughput differs by 11.0% between windows" in result.reason


def test_a_window_may_differ_in_throughput_alone() -> None:
    slow_tail = windows(1.0, 1.0, 1.0)
    slow_tail[-10:] = [2_000_000] * 10
    result = verdict(slow_tail, device="cpu")
    assert "throughput differs by 20.0%" in result.reason
    assert "median latency differs" not in result.reason


@pytest.mark.parametrize(
    ("ns", "message"),
    [([1] * 14, "14 samples do not fill 3 windows of 5; take at least 15"), ([1] * 20 + [0], "a latency of 0 ns")],
)
def test_a_run_that_says_nothing_is_invalid(ns: list[int], message: str) -> None:
    result = verdict(ns, device="cpu")
    assert result.status == "invalid"
    assert message in result.reason
