"""Intervals of shares against published figures and against what they must hold."""

import numpy as np
import pytest

from trt_compress.runtime.proportion import difference, effect_of_groups, share


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),  # mirror of 0 of 29: 0.1170
    ],
)
def test_the_interval_of_a_share_is_wilson_s(count: int, n: int, low: float, high: float) -> None:
    found = share(count, n)
    assert (found.value, found.count, found.n) == (count / n, count, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_a_change_counts_what_only_one_of_both_has() -> None:
    found = difference(won=3, lost=10, n=100)
    assert found.value == pytest.approx(-0.07)
    assert found.low < -0.07 < found.high < 0.01


def test_no_change_is_not_known_exactly() -> None:
    found = difference(won=0, lost=0, n=50)
    assert found.value == 0 and found.low < 0 < found.high and found.high < 0.05
    assert difference(won=0, lost=0, n=5000).high < 0.001


def test_the_interval_of_a_change_holds_it_in_about_95_of_100_samples() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for won, lost, _ in generator.multinomial(200, [0.02, 0.06, 0.92], size=2000):
        found = difference(won=int(won), lost=int(lost), n=200)
        held += found.low <= -0.04 <= found.high
    assert 0.93 <= held / 2000 <= 0.98


def test_things_that_were_drawn_alone_are_one_each() -> None:
    assert effect_of_groups([[1], [0], [0], [1], [1]]) == pytest.approx(1)
    assert effect_of_groups([[1, 1], [1, 1]]) == effect_of_groups([[1, 0, 1]]) == 1
    assert effect_of_groups([[1, 0]] * 9) == 1, "never less"
    copies = effect_of_groups([[value] * 4 for value in (1, 0, 0, 1, 1, 0, 0, 0)])
    assert copies == pytest.approx(4 * (31 / 32) / (7 / 8))


def test_the_interval_of_groups_holds_the_truth_where_that_of_single_ones_does_not() -> None:
    generator, held = np.random.default_rng(1), np.zeros(2)
    for _ in range(500):
        levels = generator.beta(2, 2, size=40)  # of each group its own, half on average
        groups = [(generator.random(10) < level).tolist() for level in levels]
        count, effect = sum(map(sum, groups)), effect_of_groups(groups)
        intervals = [share(count, 400), share(count, 400, effect=effect)]
        held += [each.low <= 0.5 <= each.high for each in intervals]
    assert held[0] / 500 < 0.85 and 0.92 <= held[1] / 500 <= 0.98


def test_a_change_of_groups_is_known_less_well() -> None:
    alone, grouped = (difference(won=3, lost=20, n=200, effect=effect) for effect in (1.0, 4.0))
    assert grouped.value == alone.value
    assert grouped.high - grouped.low == pytest.approx(2 * (alone.high - alone.low))
