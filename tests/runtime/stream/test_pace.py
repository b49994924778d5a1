"""When frames are due, and how exactly the clock wakes."""

import threading
import time

import pytest

from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.pace import MonotonicClock, Pace


def test_a_fixed_rate_is_a_schedule_that_does_not_drift() -> None:
    pace = Pace(kind="fixed rate", fps=30)
    assert [pace.due_ns(index) for index in (0, 1, 2, 3)] == [0, 33_333_333, 66_666_667, 100_000_000]
    assert pace.due_ns(30 * 3600 * 24) == 24 * 3600 * 10**9
    assert not pace.waits_for_delivery


def test_a_closed_loop_has_no_schedule() -> None:
    pace = Pace()
    assert pace.due_ns(7) is None and pace.waits_for_delivery and pace.pause_ns(7) == 0


def test_bursts_with_a_rate_are_a_schedule_with_gaps() -> None:
    pace = Pace(kind="bursts", fps=100, burst=2, gap_ns=500_000_000)
    assert [pace.due_ns(index) for index in range(5)] == [0, 10_000_000, 520_000_000, 530_000_000, 1_040_000_000]
    assert [pace.is_first_after_idle(index) for index in range(5)] == [False, False, True, False, True]
    assert pace.pause_ns(2) == 0


def test_bursts_without_a_rate_pause_between_closed_loops() -> None:
    pace = Pace(kind="bursts", burst=3, gap_ns=7)
    assert pace.waits_for_delivery
    assert [pace.pause_ns(index) for index in range(7)] == [0, 0, 0, 7, 0, 0, 7]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "fixed rate"}, "A fixed rate needs its fps"),
        ({"kind": "fixed rate", "fps": 0}, "fps=0; give frames a second above 0"),
        ({"kind": "fixed rate", "fps": float("nan")}, "fps=nan; give frames a second above 0"),
        ({"fps": 30}, "fps=30 with the protocol 'closed loop'"),
        ({"kind": "live", "fps": 30}, "fps=30 with the protocol 'live'"),
        ({"kind": "bursts", "burst": 4}, "bursts need both"),
        ({"kind": "fixed rate", "fps": 3, "gap_ns": 4}, "nothing else takes them"),
        ({"kind": "bursts", "burst": 0, "gap_ns": 4}, "give at least 1 frame"),
        ({"kind": "bursts", "burst": 1, "gap_ns": -4}, "a gap of at least 0"),
    ],
)
def test_wrong_paces_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pace(**fields)  # type: ignore[arg-type]


def test_the_clock_never_wakes_early_and_can_be_interrupted() -> None:
    clock, stop = MonotonicClock(), threading.Event()
    for ahead in (0, 50_000, 3_000_000):
        due = clock.now_ns() + ahead
        clock.sleep_until(due, stop)
        assert clock.now_ns() >= due
    timer = threading.Timer(0.05, stop.set)
    timer.start()
    begin = time.monotonic()
    clock.sleep_until(clock.now_ns() + 60 * 10**9, stop)
    assert time.monotonic() - begin < 30
