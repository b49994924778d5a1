"""The controller against simulated machines whose latencies are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trt_compress.errors import ConfigError
from trt_compress.runtime.stream.control import Controller, ControllerSettings, Estimator

MS = 1_000_000
LEVELS = ["dense", "half", "quarter"]


def simulate(
    controller: Controller,
    latency_ms: Callable[[int, int], float],
    *,
    frames: int,
    rest_ms: float = 1.0,
    waited_ms: Callable[[int], float] = lambda frame: 0.0,
) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Run frames through a machine; return the level and the end-to-end time (ms) of each."""
    chosen, end_to_end = [], []
    for frame in range(frames):
        waited = waited_ms(frame)
        level = controller.choose(frame, round(waited * MS))
        took = latency_ms(frame, level)
        controller.observe(level, round(took * MS))
        controller.observe_rest(round(rest_ms * MS))
        chosen.append(level)
        end_to_end.append(waited + took + rest_ms)
    return chosen, np.array(end_to_end)


def measured(*ms: float) -> dict[str, list[int]]:
    return {name: [round(value * MS)] * 5 for name, value in zip(LEVELS, ms, strict=True)}


@pytest.mark.parametrize(("deadline_ms", "level"), [(50, 0), (25, 1), (12, 2), (3, 2)])
def test_the_most_expensive_level_that_fits_runs_from_the_first_frame(deadline_ms: int, level: int) -> None:
    times = (30.0, 15.0, 8.0)
    controller = Controller(LEVELS, deadline_ms * MS, measured_ns=measured(*times))
    chosen, _ = simulate(controller, lambda frame, level: times[level], frames=40)
    assert set(chosen) == {level}
    assert controller.log().switches == ()


def test_without_measurements_every_level_is_tried_once() -> None:
    controller = Controller(LEVELS, 20 * MS)
    chosen, _ = simulate(controller, lambda frame, level: (30.0, 15.0, 8.0)[level], frames=10)
    assert chosen == [0, 1, 2, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_deadline_holds_at_p95_where_the_dense_model_misses_it(seed: int) -> None:
    """Noisy latencies; the dense model is over the deadline in half of all frames."""
    generator = np.random.default_rng(seed)
    noise = generator.lognormal(0.0, 0.08, (3, 3000))

    def latency(frame: int, level: int) -> float:
        return float((30.0, 20.0, 12.0)[level] * noise[level, frame])

    controller = Controller(LEVELS, 31 * MS, measured_ns=measured(30.0, 20.0, 12.0))
    _, end_to_end = simulate(controller, latency, frames=3000)
    dense = np.array([latency(frame, 0) + 1.0 for frame in range(3000)])
    assert np.percentile(dense, 95) > 31
    assert np.percentile(end_to_end, 95) <= 31


def test_a_machine_that_slows_down_and_recovers_is_followed() -> None:
    def latency(frame: int, level: int) -> float:
        return (20.0, 10.0, 5.0)[level] * (2.0 if 500 <= frame < 1000 else 1.0)

    settings = ControllerSettings(hold=20, probe_every=50)
    controller = Controller(LEVELS, 25 * MS, settings, measured(20.0, 10.0, 5.0))
    chosen, end_to_end = simulate(controller, latency, frames=3000)
    assert set(chosen[:500]) == {0}
    assert (end_to_end[500:1000] > 25).sum() <= 15  # what it takes to notice, and probes that failed
    assert chosen[750] == 1
    assert chosen[-1] == 0 and np.bincount(chosen[2000:], minlength=3)[0] > 900
    first, *_, last = controller.log().switches
    # Of the newest 64 latencies the fourth slow one is the first that more than 5 % reach.
    assert (first.frame, first.from_level, first.to_level) == (504, "dense", "half")
    assert first.reason == "p95 of 'dense' 40.00 ms, over the budget of 22.75 ms"
    assert last.to_level == "dense"


def test_hysteresis_keeps_it_from_flapping() -> None:
    """The dense level fits in nearly every frame, and not in every: it must not come and go with each."""
    generator = np.random.default_rng(0)
    waited = generator.uniform(0, 4, 4000)
    controller = Controller(LEVELS, 25 * MS, measured_ns=measured(20.0, 10.0, 5.0))
    times = (20.0, 10.0, 5.0)
    chosen, end_to_end = simulate(
        controller, lambda frame, level: times[level], frames=4000, waited_ms=lambda frame: float(waited[frame])
    )
    assert len(controller.log().switches) < 40
    assert (end_to_end <= 25).mean() > 0.99


def test_a_frame_that_waited_gets_a_cheaper_level() -> None:
    controller = Controller(LEVELS, 25 * MS, measured_ns=measured(20.0, 10.0, 5.0))
    assert controller.choose(0, 0) == 0
    assert controller.choose(1, 10 * MS) == 1
    assert controller.choose(2, 16 * MS) == 2


def test_a_level_that_stays_too_slow_is_probed_less_and_less() -> None:
    settings = ControllerSettings(probe_every=10)
    controller = Controller(LEVELS, 25 * MS, settings, measured(90.0, 10.0, 5.0))
    chosen, _ = simulate(controller, lambda frame, level: (90.0, 10.0, 5.0)[level], frames=1000)
    probes = [frame for frame, level in enumerate(chosen) if level == 0]
    gaps = np.diff(probes)
    assert 3 <= len(probes) <= 8 and (np.diff(gaps) > 0).all()


@pytest.mark.parametrize("percentile", [50.0, 90.0, 95.0, 99.0])
@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 64, 200])
def test_the_estimate_is_the_percentile_of_the_newest(count: int, percentile: float) -> None:
    values = np.random.default_rng(count).integers(1, 1000, count).tolist()
    estimator = Estimator(64, percentile)
    assert estimator.value() is None
    for value in values:
        estimator.add(value)
    assert estimator.value() == np.percentile(values[-64:], percentile, method="inverted_cdf")
    estimator.restart(7)
    assert estimator.value() == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"percentile": 100.0}, "percentile=100.0; give at least 50 and less than 100"),
        ({"hold": 0}, "hold=0, probe_every=300; give at least 1"),
        ({"margin": 1.0}, "margin=1.0, up_margin=0.05; give shares from 0 to below 1"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ControllerSettings(**fields)
