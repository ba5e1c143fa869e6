"""Rates against closed forms, known values and simulated coverage."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from xb_lite.results.stats import difference, mean, rate


def test_wilson_interval_is_the_closed_form():
    found = rate([True] * 7 + [False] * 13)
    n, p, z = 20, 7 / 20, 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    assert str(found) == "35% [18%, 57%], 7 of 20"


@pytest.mark.parametrize("n", [1, 3, 40, 1319])
def test_an_interval_is_that_of_scipy_to_the_last_digit(n):
    for k in {0, 1, n // 3, n - 1, n}:
        wanted = binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert (rate(k, n).low, rate(k, n).high) == (wanted.low, wanted.high)


def test_a_bootstrap_is_that_of_one_draw_at_a_time():
    values, draw = np.random.default_rng(1).normal(size=700), np.random.default_rng(0)
    means = [values[draw.integers(700, size=700)].mean() for _ in range(1000)]
    found = mean(values, draws=1000)
    assert (found.low, found.high) == tuple(np.quantile(means, [0.025, 0.975]))


def test_a_rate_of_counts_is_that_of_the_items():
    assert rate(7, 20) == rate([True] * 7 + [False] * 13) == rate(np.int64(7), np.int64(20))
    for k, n, says in ((0, 0, "no items"), (4, 3, "4 of 3 is no rate"), (-1, 3, "-1 of 3")):
        with pytest.raises(ValueError, match=says):
            rate(k, n)


def test_none_of_three_still_allows_more_than_half():
    assert rate([False] * 3).high > 0.5


def test_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    rates = [rate(draw.random(40) < 0.1) for _ in range(1000)]
    covered = np.mean([r.low <= 0.1 <= r.high for r in rates])
    assert 0.92 < covered < 0.98


def test_paired_difference_knows_its_pairs():
    one, other = [True] * 30 + [False] * 70, [False] * 100
    found = difference(one, other)
    assert found.value == pytest.approx(0.3) and found.low > 0.2 and found.p < 1e-8
    # Equal rates, equal items: no difference at all; equal rates, other items: uncertain.
    assert difference(one, one) == difference(other, other)
    crossed = difference([True] * 50 + [False] * 50, [False] * 50 + [True] * 50)
    assert crossed.value == 0 and crossed.low < -0.1 and crossed.p == 1


def test_mcnemar_is_the_exact_sign_test():
    found = difference([True] * 6 + [False] * 4, [False] * 5 + [True] * 1 + [False] * 4)
    assert found.p == pytest.approx(2 * 0.5**5)


@pytest.mark.parametrize(("wins", "losses", "n"), [(0, 0, 60), (60, 0, 60), (0, 1, 1)])
def test_a_paired_interval_has_a_width(wins, losses, n):
    one, other = [k < wins for k in range(n)], [k < losses for k in range(n)]
    found = difference(one, other)
    assert -1 <= found.low < found.high <= 1 and found.low <= found.value <= found.high


def test_paired_interval_covers_the_truth_about_as_often_as_it_says():
    draw, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        won, lost = draw.random(30) < 0.2, draw.random(30) < 0.2
        found = difference(won & ~lost, lost & ~won)
        covered += found.low <= 0 <= found.high
    assert 0.92 < covered / 1000 < 0.99


def test_nothing_measured_is_refused():
    with pytest.raises(ValueError, match="no items"):
        rate([])
    with pytest.raises(ValueError, match="same items"):
        difference([True], [True, False])


def test_mean_and_its_interval_are_those_of_the_normal_law():
    values = np.random.default_rng(1).normal(10, 2, 400)
    found = mean(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean()) and found.n == 400
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_mean_of_what_never_varies_has_no_width():
    for n in (2, 3, 1000):
        found = mean([0.1] * n)
        assert found.low == found.high == pytest.approx(0.1) and found.n == n
    assert str(mean([2.0, 2.0])) == "2 [2, 2], n = 2"


@pytest.mark.parametrize("value", [0.3, -2.0])
def test_mean_of_a_single_item_knows_nothing_of_others(value):
    found = mean([value])
    assert (found.value, found.n) == (value, 1)
    assert (found.low, found.high) == (min(0, 2 * value), max(0, 2 * value))


def test_mean_is_repeatable_by_its_seed():
    values = [1.0, 5.0, 2.0, 8.0]
    assert mean(values, draws=50) == mean(values, draws=50) != mean(values, draws=50, seed=1)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_mean_lies_within_its_values_and_its_interval_too(values):
    found = mean(values, draws=200)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack


def test_a_mean_of_many_takes_little_memory():
    tracemalloc.start()
    mean(range(20_000), draws=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6  # all draws at once would be 32 MB


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [-math.inf, 1.0]])
def test_mean_of_nothing_or_of_no_number_is_refused(values):
    with pytest.raises(ValueError, match=f"a mean of {len(values)} values"):
        mean(values)
