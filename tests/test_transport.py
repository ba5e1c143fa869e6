"""Transport against closed forms, other solvers and brute force."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from clouds import SEEDS, normal, on_a_line, samples, two_point_law, unhurried
from hypothesis import given
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import binom

from xb_lite.convergence import transport
from xb_lite.convergence.transport import (
    KVariance,
    k_variance,
    matching_costs,
    paired_difference,
    power_law,
    sliced_estimate,
    wasserstein1,
)

# Wasserstein-1


@pytest.mark.parametrize("sizes", [(1, 1), (4, 4), (3, 7)])
def test_of_two_points_it_is_their_distance(sizes):
    one, other = np.full((sizes[0], 2), 1.0), np.tile([4.0, 5.0], (sizes[1], 1))
    assert wasserstein1(one, other) == pytest.approx(5)
    assert wasserstein1(one, one[:1]) == 0


def test_two_clouds_matched_by_hand():
    # 0 and 4 to 1 and 6: 1 + 2, crossed 6 + 3. Three halves of mass to two: 0.5 of 4 goes to 1.
    assert wasserstein1(on_a_line(0, 4), on_a_line(1, 6)) == 1.5
    assert wasserstein1(on_a_line(0, 4, 6), on_a_line(1, 6)) == pytest.approx(
        (1 + 1.5 + 0.5 * 2) / 3
    )


@unhurried
@given(samples(count=2, size=7))
def test_on_a_line_it_is_that_of_the_sorted(drawn):
    one, other = (sample[:, :1] for sample in drawn)
    wanted = np.abs(np.sort(one, axis=0) - np.sort(other, axis=0)).mean()
    assert wasserstein1(one, other) == pytest.approx(wanted)


@unhurried
@given(samples(count=2))
def test_unequal_sizes_are_equal_ones_with_items_repeated(drawn):
    one, other = drawn
    lengths = cdist(np.repeat(one, len(other), 0), np.repeat(other, len(one), 0))
    wanted = lengths[linear_sum_assignment(lengths)].mean()
    assert wasserstein1(one, other) == pytest.approx(wanted)
    assert wasserstein1(other, one) == pytest.approx(wanted)


@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_both_solvers_agree(spread):
    import ot

    one, other = (
        normal(128, 5, seed=s) * spread + normal(4, 5)[np.arange(128) % 4] for s in (1, 2)
    )
    assert wasserstein1(one, other) == pytest.approx(ot.emd2([], [], cdist(one, other)), rel=1e-9)


def test_a_shift_costs_its_length_even_far_from_the_origin():
    one = np.round(normal(64, 16) * 8) + 1e6
    shift = np.zeros(16)
    shift[[2, 5]] = 3 / 2**20, 4 / 2**20
    assert wasserstein1(one, one + shift) == pytest.approx(5 / 2**20, rel=1e-12)
    assert wasserstein1(one[::-1], one + shift) == pytest.approx(5 / 2**20, rel=1e-12)
    assert wasserstein1(np.repeat(one, 2, 0), one + shift) == pytest.approx(5 / 2**20, rel=1e-9)


def test_half_precision_states_are_measured_in_float64():
    one, other = np.full((1, 4), 250, dtype=np.float16), np.full((1, 4), -250, dtype=np.float16)
    assert wasserstein1(one, other) == 1000  # the sum of squares overflows float16


@unhurried
@given(samples(count=3), SEEDS)
def test_it_is_a_distance_that_knows_no_axes(drawn, seed):
    one, two, three = drawn
    here = wasserstein1(one, two)
    assert here == pytest.approx(wasserstein1(two, one))
    assert here <= wasserstein1(one, three) + wasserstein1(three, two) + 1e-12
    assert wasserstein1(one, one[::-1]) == 0
    dim = one.shape[1]
    turn = np.linalg.qr(normal(dim, dim, seed=seed)).Q
    shift = normal(dim, seed=seed)
    assert wasserstein1(3 * one @ turn + shift, 3 * two @ turn + shift) == pytest.approx(3 * here)


def test_a_solver_that_stops_early_is_an_error(monkeypatch):
    monkeypatch.setattr(transport, "PIVOTS", 1)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="before the optimum"):
        wasserstein1(normal(30, 2), normal(20, 2, seed=1))


# The sliced estimate


@pytest.mark.parametrize("dim", [1, 2, 50])
def test_sliced_is_right_on_average_for_a_shift(dim):
    one = normal(40, dim)
    shift = 7 * np.eye(dim)[0]
    assert sliced_estimate(one, one + shift, 4000) == pytest.approx(7, rel=0.05)


def test_sliced_takes_unequal_sizes_and_is_exact_on_a_line():
    one, other = normal(30, 1), normal(20, 1, seed=1) + 0.3
    assert sliced_estimate(one, other, 3) == pytest.approx(wasserstein1(one, other))


@unhurried
@given(samples(count=2))
def test_sliced_is_an_estimate_from_below(drawn):
    # 5 standard errors: of 400 directions, a shadow's length varies by at most about its mean.
    assert sliced_estimate(*drawn, 400) <= wasserstein1(*drawn) * 1.25 + 1e-12


def test_sliced_is_far_too_low_in_many_dimensions():
    one, other = normal(64, 200), normal(64, 200, seed=1)
    assert sliced_estimate(one, other) < 0.5 * wasserstein1(one, other)


def test_sliced_hangs_on_the_seed():
    one, other = normal(20, 3), normal(20, 3, seed=1)
    slices = [sliced_estimate(one, other, 5, seed) for seed in (0, 0, 1)]
    assert slices[0] == slices[1] != slices[2]


# K-variance


def test_two_points_at_even_odds_have_a_closed_form():
    for k in (1, 2, 7):
        assert two_point_law(k, 0.5) == pytest.approx(math.comb(2 * k, k) / 4**k)


def test_a_point_mass_has_none():
    found = k_variance(np.full((9, 3), 2.5), 4, resamplings=5)
    assert (found.value, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize("p, k", [(0.5, 1), (0.5, 8), (0.1, 8), (0.9, 32)])
def test_two_point_law_in_the_plane(p, k):
    ends = np.array([[0.0, 0.0], [3.0, 4.0]])
    sample = ends[(np.arange(4000) < 4000 * p).astype(int)]
    found = k_variance(sample, k, resamplings=3000)
    assert found.value == pytest.approx(two_point_law(k, p, 5), rel=0.06)
    assert found.low < two_point_law(k, p, 5) < found.high


def test_it_is_the_mean_over_all_disjoint_pairs_of_subsets():
    sample, k = normal(6, 2), 2
    every = [
        wasserstein1(sample[list(s)], sample[list(r)])
        for s in combinations(range(6), k)
        for r in combinations(sorted(set(range(6)) - set(s)), k)
    ]
    found = k_variance(sample, k, resamplings=4000)
    assert abs(found.value - np.mean(every)) < 4 * np.std(every) / math.sqrt(4000)
    # Independent draws from the sample itself repeat items; that is another number.
    picks = [sample[list(i)] for i in product(range(6), repeat=k)]
    repeated = np.mean([wasserstein1(a, b) for a, b in product(picks, picks)])
    assert found.value - repeated > 10 * np.std(every) / math.sqrt(4000)


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_over_all_samples_of_a_law_it_is_the_law_s(p):
    """Unbiased for the law at any n: weighed by how likely each sample of five items is."""
    n, k = 5, 2
    found = sum(
        binom.pmf(ones, n, p) * k_variance(on_a_line(*[1] * ones, *[0] * (n - ones)), k, 3000).value
        for ones in range(n + 1)
    )
    assert found == pytest.approx(two_point_law(k, p), abs=0.012)


def coverage(law, truth, n, k, resamplings=50):
    """How often the interval holds the truth over new samples, and how often a naive one would."""
    draw = np.random.default_rng(3)
    found = [k_variance(law(draw, n), k, resamplings, seed) for seed in range(300)]
    errors = np.abs([f.value - truth for f in found])
    halves = np.array([f.high - f.value for f in found])
    # As if resamplings of one sample were new samples.
    naive = halves / math.sqrt(1 + resamplings * 2 * k / (n - 2 * k))
    return np.mean(errors <= halves), np.mean(errors <= naive)


@pytest.mark.parametrize("n, k", [(60, 4), (40, 10), (40, 18)])
def test_interval_covers_the_law_over_new_samples(n, k):
    """Of near and far items in ten dimensions the estimate errs with the items it was given."""

    def law(draw, count):
        return draw.normal(size=(count, 10)) * draw.uniform(0.2, 1.8, size=(count, 1))

    draw = np.random.default_rng(2)
    truth = np.mean([wasserstein1(law(draw, k), law(draw, k)) for _ in range(8000)])
    honest, naive = coverage(law, truth, n, k)
    assert honest > 0.92 and naive < 0.6


@pytest.mark.parametrize("n, k", [(60, 4), (40, 10), (40, 18)])
def test_interval_is_too_wide_rather_than_too_narrow(n, k):
    """Between two points no item moves the estimate by much: Hoeffding's bound has slack."""
    honest, _ = coverage(
        lambda draw, count: draw.random((count, 1)) < 0.3, two_point_law(k, 0.3), n, k
    )
    assert honest > 0.98


def test_interval_is_student_s_with_hoeffding_s_factor():
    sample, k, times = normal(30, 3), 5, 12
    found = k_variance(sample, k, times, seed=4)
    draw = np.random.default_rng(4)
    orders = [draw.permutation(30) for _ in range(times)]
    costs = [wasserstein1(sample[o[:k]], sample[o[k : 2 * k]]) for o in orders]
    assert found.value == pytest.approx(np.mean(costs))
    half = 2.200985 * np.std(costs, ddof=1) * math.sqrt(1 / 12 + 10 / 20)  # t of 11 degrees
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    assert (found.k, found.n, found.resamplings) == (k, 30, times)
    assert f"k = {k}, n = 30 items" in str(found)


def test_interval_ends_at_zero_and_hangs_on_the_seed():
    rare = on_a_line(*[0] * 19, 1)
    assert k_variance(rare, 8, 20).low == 0
    sample = normal(20, 2)
    assert k_variance(sample, 3, 9) == k_variance(sample, 3, 9) != k_variance(sample, 3, 9, seed=1)


def test_a_paired_difference_is_sharper_than_two_estimates():
    """A state and the same state, its items a tenth nearer to their mean: exactly 0.9 of each."""
    sample, k = normal(64, 8), 4
    one, other = (matching_costs(x, k, 100, seed=5) for x in (sample, 0.9 * sample))
    found = paired_difference(one, other, k, 64)
    assert one == pytest.approx(other / 0.9)
    whole = k_variance(sample, k, 100, seed=5)
    assert found.value == pytest.approx(0.1 * whole.value)
    assert found.high - found.low == pytest.approx(0.1 * (whole.high - whole.low))
    assert found.low > 0 and "n = 64 items" in str(found)


def test_a_paired_difference_covers_that_of_the_law_over_new_samples():
    """Two noisy states of the same items, in one of which every third item lies far off."""
    draw, n, k, hits = np.random.default_rng(8), 48, 3, 0

    def states(count):
        at = draw.normal(size=(count, 6))
        near = at + 0.3 * draw.normal(size=at.shape)
        return at, near * (1 + (draw.random((count, 1)) < 1 / 3))

    truths = [
        [wasserstein1(a, b) for a, b in zip(states(k), states(k), strict=True)] for _ in range(6000)
    ]
    truth = np.subtract(*np.mean(truths, axis=0))
    for seed in range(200):
        one, other = (matching_costs(x, k, 40, seed) for x in states(n))
        found = paired_difference(one, other, k, n)
        hits += found.low <= truth <= found.high
    assert hits / 200 > 0.92


# Rates


def estimate(k, value, off=0.0):
    return KVariance(value, 1000, value * (1 - off), value * (1 + off), k, 200)


def test_a_power_law_is_found_exactly():
    found = power_law([estimate(k, 3 * k**-0.4) for k in (16, 2, 4, 64)])
    assert (found.slope, found.slope_low, found.slope_high) == pytest.approx((-0.4,) * 3)
    assert (found.constant, found.constant_low, found.constant_high) == pytest.approx((3,) * 3)
    assert found.sizes == (2, 4, 16, 64)
    assert str(found) == "slope -0.4 [-0.4, -0.4], k = 2 to 64"


def test_a_line_through_two_intervals_has_known_ends():
    found = power_law([KVariance(4, 99, 2, 8, 1, 9), KVariance(1, 99, 0.5, 2, 16, 9)])
    assert found.slope == pytest.approx(-0.5)
    assert (found.slope_low, found.slope_high) == pytest.approx((-1, 0))
    assert (found.constant_low, found.constant, found.constant_high) == pytest.approx((2, 4, 8))


@pytest.mark.parametrize("dim, rate", [(1, -1 / 2), (3, -1 / 3), (5, -1 / 5), (8, -1 / 8)])
def test_gaussians_have_the_known_rates(dim, rate):
    sample = normal(4000, dim, seed=dim)
    found = power_law([k_variance(sample, k, 60) for k in (32, 64, 128, 256)])
    assert found.slope == pytest.approx(rate, abs=0.04)
    assert found.slope_low < found.slope < found.slope_high


# What is refused


@pytest.mark.parametrize(
    "call, wanted",
    [
        (lambda: wasserstein1(np.ones(3), np.ones((3, 1))), "first sample: shape"),
        (lambda: wasserstein1(np.ones((3, 1)), np.ones((0, 1))), "second sample: shape"),
        (lambda: wasserstein1(np.ones((3, 1)), np.ones((3, 2))), "1 and 2 dimensions"),
        (lambda: wasserstein1(on_a_line(0, math.nan), on_a_line(0)), "first is item 1"),
        (lambda: sliced_estimate(on_a_line(0), on_a_line(math.inf)), "not finite"),
        (lambda: sliced_estimate(on_a_line(0), on_a_line(1), 0), "0 directions"),
        (lambda: k_variance(normal(8, 2), 4), "smaller k or more items"),
        (lambda: k_variance(normal(8, 2), 0), "k = 0 of 8"),
        (lambda: k_variance(normal(8, 2), 3, 1), "1 resamplings"),
        (lambda: k_variance(normal(8), 3), "the sample: shape"),
        (lambda: matching_costs(normal(8, 2), 5), "k = 5 of 8"),
        (lambda: paired_difference([1, 2], [1, 2, 3], 1, 9), "the same splits"),
        (lambda: paired_difference([1, 2], [1, 3], 5, 9), "k < n / 2"),
        (lambda: power_law([estimate(4, 1), estimate(4, 2)]), "1 size"),
        (lambda: power_law([estimate(4, 1), estimate(8, 1, 1.0)]), "k = 8 reaches 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, wanted):
    with pytest.raises(ValueError, match=wanted):
        call()
