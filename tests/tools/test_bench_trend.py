"""The trend of memory: noise is no growth, a leak is growth, and a wide interval hides none."""

import numpy as np
import pytest

from trt_compress.tools.bench.trend import BLOCKS, trend

FRAMES = 100_000
PAGE, MOST = 4096.0, float(1 << 20)
AT = np.linspace(10_000, FRAMES, 450)


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("leak", [1.0, 5.0, 50.0])
def test_a_leak_is_found_in_noise_and_measured(leak: float) -> None:
    noise = random(0).integers(-2, 3, len(AT)) * PAGE
    found = trend(AT, leak * AT + noise, FRAMES)
    assert found.low < leak * FRAMES < found.high and found.growth == pytest.approx(leak * FRAMES, rel=0.05)
    assert not found.flat(unit=PAGE, most=MOST)


def test_noise_is_flat_nineteen_times_of_twenty_also_when_neighbours_are_tied() -> None:
    independent = [trend(AT, random(seed).normal(0, 10 * PAGE, len(AT)), FRAMES) for seed in range(200)]
    assert sum(found.low <= 0 <= found.high for found in independent) >= 180
    tied = []
    for seed in range(200):
        steps = random(seed).normal(0, PAGE, len(AT))
        walk = np.zeros(len(AT))
        for index in range(1, len(AT)):
            walk[index] = 0.95 * walk[index - 1] + steps[index]
        tied.append(trend(AT, walk, FRAMES))
    assert sum(found.low <= 0 <= found.high for found in tied) >= 170


def test_one_page_more_in_the_middle_is_flat_and_hundreds_are_not() -> None:
    later = (AT > 55_000).astype(np.float64)
    assert trend(AT, later * PAGE, FRAMES).flat(unit=PAGE, most=MOST)
    assert not trend(AT, later * 500 * PAGE, FRAMES).flat(unit=PAGE, most=MOST)


def test_an_interval_too_wide_to_tell_is_not_flat() -> None:
    found = trend(AT, random(1).normal(0, 20e6, len(AT)), FRAMES)
    assert found.low < 0 and not found.flat(unit=PAGE, most=MOST)


def test_constant_memory_grows_by_nothing_and_few_samples_give_no_trend() -> None:
    found = trend(AT, np.full(len(AT), 5e7), FRAMES)
    assert found.growth == pytest.approx(0, abs=1) and found.flat(unit=PAGE, most=MOST)
    with pytest.raises(ValueError, match=f"39 samples give no trend; take at least {2 * BLOCKS}"):
        trend(AT[:39], AT[:39], FRAMES)
