"""Transport against closed forms, other solvers, brute force and enumeration."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import binom, multinomial

from xb_lite import transport
from xb_lite.transport import (
    KVariance,
    cluster_bound,
    coverings,
    diameter,
    k_variance,
    normalised_margin,
    power_law,
    sliced_estimate,
    wasserstein1,
    weed_bach_bound,
)

SEEDS = st.integers(0, 10**6)
unhurried = settings(max_examples=50, deadline=None)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def on_a_line(*places):
    return np.array(places, dtype=float)[:, None]


@st.composite
def samples(draw, count=2, size=None):
    """Samples of one space, of 1 to 8 items each or all of ``size``; items may repeat."""
    noise = np.random.default_rng(draw(SEEDS))
    dim = draw(st.integers(1, 4))
    sizes = [size or draw(st.integers(1, 8)) for _ in range(count)]
    return [noise.normal(size=(s, dim)).round(draw(st.integers(0, 6))) for s in sizes]


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
    far = on_a_line(0, 1000, 2000, 8000)
    assert coverings(far.astype(np.float16)) == coverings(far)


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


# K-variance


def two_point_law(k, p, length=1.0):
    """Two k-samples of a law on two points: the difference of two binomials, in units of 1 / k."""
    mass = binom.pmf(np.arange(k + 1), k, p)
    return length * sum(
        mass[i] * mass[j] * abs(i - j) / k for i, j in product(range(k + 1), repeat=2)
    )


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


# Rates


def estimate(k, value, off=0.0):
    return KVariance(value, value * (1 - off), value * (1 + off), k, 1000, 200)


def test_a_power_law_is_found_exactly():
    found = power_law([estimate(k, 3 * k**-0.4) for k in (16, 2, 4, 64)])
    assert (found.slope, found.slope_low, found.slope_high) == pytest.approx((-0.4,) * 3)
    assert (found.constant, found.constant_low, found.constant_high) == pytest.approx((3,) * 3)
    assert found.sizes == (2, 4, 16, 64)
    assert str(found) == "slope -0.4 [-0.4, -0.4], k = 2 to 64"


def test_a_line_through_two_intervals_has_known_ends():
    found = power_law([KVariance(4, 2, 8, 1, 99, 9), KVariance(1, 0.5, 2, 16, 99, 9)])
    assert found.slope == pytest.approx(-0.5)
    assert (found.slope_low, found.slope_high) == pytest.approx((-1, 0))
    assert (found.constant_low, found.constant, found.constant_high) == pytest.approx((2, 4, 8))


@pytest.mark.parametrize("dim, rate", [(1, -1 / 2), (3, -1 / 3), (5, -1 / 5), (8, -1 / 8)])
def test_gaussians_have_the_known_rates(dim, rate):
    sample = normal(4000, dim, seed=dim)
    found = power_law([k_variance(sample, k, 60) for k in (32, 64, 128, 256)])
    assert found.slope == pytest.approx(rate, abs=0.04)
    assert found.slope_low < found.slope < found.slope_high


# Coverings


def partitions(items, most):
    """Every way to part ``items`` into at most ``most`` sets."""
    if not items:
        yield []
        return
    for parts in partitions(items[1:], most):
        for i, part in enumerate(parts):
            yield [*parts[:i], [items[0], *part], *parts[i + 1 :]]
        if len(parts) < most:
            yield [[items[0]], *parts]


@unhurried
@given(samples(count=1), st.integers(1, 3))
def test_coverings_bracket_what_brute_force_finds(drawn, clusters):
    (sample,) = drawn
    clusters = min(clusters, len(sample))
    lengths, items = cdist(sample, sample), list(range(len(sample)))
    with_centres = min(
        lengths[list(centres)].min(axis=0).max() for centres in combinations(items, clusters)
    )
    by_diameter = min(
        max(lengths[np.ix_(part, part)].max() / 2 for part in parts)
        for parts in partitions(items, clusters)
    )
    found = coverings(sample)[clusters - 1]
    assert found.clusters == clusters
    # The free centre's radius, between the two, is bracketed with them.
    assert found.lower <= by_diameter + 1e-12 and by_diameter <= with_centres + 1e-12
    assert with_centres <= found.upper + 1e-12 and found.upper == 2 * found.lower


@unhurried
@given(samples(count=1, size=6))
def test_on_a_line_the_least_radius_of_free_balls_is_bracketed(drawn):
    sample = drawn[0][:, :1]
    for found in coverings(sample, 3):
        exact = min(
            max(np.ptp(sample[part]) / 2 for part in parts)
            for parts in partitions(list(range(6)), found.clusters)
        )
        assert found.lower - 1e-12 <= exact <= found.upper + 1e-12


def test_a_covering_by_hand():
    # The mean is 4: centres 3, then 10, then 0; the item left over, 2, is 1 from the first.
    found = coverings(on_a_line(0, 2, 3, 10, 5))
    assert [(c.lower, c.upper, c.centre) for c in found] == [
        (3.5, 7, 2),
        (1.5, 3, 3),
        (1, 2, 0),
        (0.5, 1, 4),
        (0, 0, 1),
    ]


@unhurried
@given(samples(count=1))
def test_balls_around_the_centres_cover_ever_closer(drawn):
    (sample,) = drawn
    found = coverings(sample)
    uppers = [c.upper for c in found]
    assert uppers == sorted(uppers, reverse=True) and uppers[-1] == 0
    for n, covering in enumerate(found, start=1):
        centres = sample[[c.centre for c in found[:n]]]
        assert cdist(sample, centres).min(axis=1).max() == pytest.approx(covering.upper)


def test_diameter_is_the_largest_distance():
    assert diameter(np.array([[0, 0], [3, 4], [1, 1]])) == 5
    assert diameter(np.ones((1, 3))) == 0


# Bounds


def exact_expectations(points, masses, k):
    """E W1 of two k-samples, and of law and k-sample, over all samples of a law on few points.

    The law's masses are whole numbers, so that it is a sample in which points repeat.
    """
    masses = np.array(masses)
    counts = [c for c in product(range(k + 1), repeat=len(points)) if sum(c) == k]
    odds = multinomial.pmf(counts, k, masses / masses.sum())
    drawn = [np.repeat(points, c, axis=0) for c in counts]
    law = np.repeat(points, masses, axis=0)
    two = sum(
        p * q * wasserstein1(a, b)
        for (p, a), (q, b) in product(zip(odds, drawn, strict=True), repeat=2)
    )
    return two, sum(p * wasserstein1(law, a) for p, a in zip(odds, drawn, strict=True))


def test_the_expectations_of_two_points_are_the_closed_form():
    two, one = exact_expectations(on_a_line(0, 1), [1, 3], 3)
    assert two == pytest.approx(two_point_law(3, 0.75))
    assert one == pytest.approx(sum(binom.pmf(i, 3, 0.75) * abs(i / 3 - 0.75) for i in range(4)))


@settings(max_examples=30, deadline=None)
@given(
    SEEDS,
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.05, 0.5, 3.0]),
    st.integers(1, 4),
)
def test_cluster_bound_holds_for_exact_expectations(seed, masses, dim, spread, k):
    """Of points of any masses, in clusters or none, cut into cells in every way there is."""
    noise = np.random.default_rng(seed)
    centres = noise.normal(size=(2, dim))
    points = centres[np.arange(len(masses)) % 2] + spread * noise.normal(size=(len(masses), dim))
    two, one = exact_expectations(points, masses, k)
    cells = [(c.clusters, c.upper) for c in coverings(points)] + [
        (len(parts), max(diameter(points[part]) for part in parts) / 2)
        for parts in partitions(list(range(len(points))), len(points))
    ]
    for clusters, radius in cells:
        size = clusters, radius, k, diameter(points)
        assert two <= cluster_bound(*size).value + 1e-9
        assert one <= cluster_bound(*size, samples=1).value + 1e-9


def test_cluster_bound_is_nearly_reached_on_many_equal_points():
    """n corners of a simplex, all 1 apart: no slack but the mean of |x| for its square's root."""
    n, k = 12, 400
    noise = np.random.default_rng(0)
    found = [
        np.abs(noise.multinomial(k, [1 / n] * n) - noise.multinomial(k, [1 / n] * n)).sum() / 2 / k
        for _ in range(2000)
    ]
    ratio = np.mean(found) / cluster_bound(n, 0, k).value
    assert ratio == pytest.approx(math.sqrt(2 / math.pi), abs=0.02)


def test_cluster_bound_by_hand():
    two, one = cluster_bound(9, 0.1, 64, 2.0), cluster_bound(9, 0.1, 64, 2.0, samples=1)
    assert two.value == pytest.approx(0.2 + 2 * 0.25)
    assert one.value == pytest.approx(0.2 + 1 * math.sqrt(8 / 64))
    assert two.valid and not two.vacuous and two.diameter == 2
    assert "two samples" in two.statement and "law and one" in one.statement
    assert "diameter at most 2 Delta" in two.assumptions
    assert cluster_bound(1, 0.1, 1).value == pytest.approx(0.2)
    assert cluster_bound(100, 0.0, 10).vacuous
    above_1 = cluster_bound(9, 0.1, 16, 2.0)
    assert above_1.value == pytest.approx(1.2) and not above_1.vacuous


def test_weed_bach_by_hand():
    one, two = weed_bach_bound(4, 0.01, 9216, samples=1), weed_bach_bound(4, 0.01, 9216)
    assert one.value == pytest.approx(0.25) and two.value == pytest.approx(0.5)
    assert one.valid and two.valid and not one.vacuous and not two.vacuous
    for found in (one, two):
        assert "not verified against the paper" in found.statement
        assert "k <= n (D / (2 Delta))^2" in found.assumptions
    assert "12 D" in one.statement and "24 D" in two.statement
    assert weed_bach_bound(1, 0.01, 1, 2.0).value == 48


def test_weed_bach_is_valid_up_to_its_range():
    # n (D / 2 Delta)^2 = 3 * 4^2
    for scale in (1.0, 8.0):
        assert weed_bach_bound(3, 0.125 * scale, 48, scale).valid
        assert not weed_bach_bound(3, 0.125 * scale, 49, scale).valid
    assert weed_bach_bound(3, 0.0, 10**9, 0.0).valid  # a point


def test_weed_bach_for_two_samples_says_something_above_576_items_a_ball():
    assert weed_bach_bound(2, 0.0, 2 * 576 - 1).vacuous
    assert not weed_bach_bound(2, 0.0, 2 * 576 + 1).vacuous
    # And so with balls of less than a 48th of the diameter alone.
    for radius, says in ((1 / 47, False), (1 / 49, True)):
        most = int(1 / (2 * radius) ** 2)
        found = weed_bach_bound(1, radius, most)
        assert found.valid and found.vacuous != says


@given(
    st.integers(1, 50),
    st.floats(0, 1),
    st.integers(1, 10**6),
    st.floats(0.01, 100),
    st.sampled_from([1, 2]),
)
def test_bounds_have_the_unit_of_the_states(clusters, radius, k, scale, samples):
    for bound in (weed_bach_bound, cluster_bound):
        unit = bound(clusters, radius, k, 1.0, samples)
        found = bound(clusters, radius * scale, k, scale, samples)
        assert found.value == pytest.approx(scale * unit.value)
        assert unit.vacuous == (unit.value > 1)


# The margin


def test_margin_by_hand():
    # Class a: halves of two, {0, 1} and {10, 11} and their like. Class b: one and one, 2 apart.
    features = on_a_line(0, 5, 1, 10, 7, 11)
    labels = np.array(["a", "b", "a", "a", "b", "a"])
    pairs = [wasserstein1(on_a_line(0, x), on_a_line(*{1, 10, 11} - {x})) for x in (1, 10, 11)]
    spread = 4 / 6 * np.mean(pairs) + 2 / 6 * 2
    found = normalised_margin([3, -1, 2, 2, 8, 7], features, labels, splits=4000)
    assert found.margin == 2.5
    assert found.k_variance == pytest.approx(spread, rel=0.05)
    assert found.score == -2.5 / found.k_variance and found.splits == 4000


def test_an_odd_class_leaves_one_item_out():
    found = normalised_margin([1, 1, 1], on_a_line(0, 1, 3), [0, 0, 0], splits=6000)
    assert found.k_variance == pytest.approx((1 + 2 + 3) / 3, rel=0.03)


def test_tight_classes_and_wide_margins_score_lower():
    labels, margins = np.arange(40) % 2, np.abs(normal(40)) + 1
    wide = normalised_margin(margins, normal(40, 3), labels)
    tight = normalised_margin(margins, 0.5 * normal(40, 3), labels)
    assert tight.score == pytest.approx(2 * wide.score) and wide.score < 0
    assert normalised_margin(3 * margins, normal(40, 3), labels).score < wide.score
    assert normalised_margin(-margins, normal(40, 3), labels).score > 0


def test_margin_and_sliced_hang_on_the_seed():
    one, other, labels = normal(20, 3), normal(20, 3, seed=1), np.arange(20) % 2
    margins = [normalised_margin(labels + 1, one, labels, 2, seed) for seed in (0, 0, 1)]
    assert margins[0] == margins[1] != margins[2]
    slices = [sliced_estimate(one, other, 5, seed) for seed in (0, 0, 1)]
    assert slices[0] == slices[1] != slices[2]


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
        (lambda: power_law([estimate(4, 1), estimate(4, 2)]), "1 size"),
        (lambda: power_law([estimate(4, 1), estimate(8, 1, 1.0)]), "k = 8 reaches 0"),
        (lambda: coverings(normal(3, 2), 4), "4 balls for 3"),
        (lambda: coverings(normal(3, 2), 0), "0 balls for 3"),
        (lambda: coverings(normal(0, 2)), "the sample: shape"),
        (lambda: diameter(on_a_line(0, math.nan)), "not finite"),
        (lambda: cluster_bound(0, 0.1, 4), "0 clusters"),
        (lambda: weed_bach_bound(2, 0.1, 0), "k = 0"),
        (lambda: weed_bach_bound(2, -0.1, 4), "radius is -0.1"),
        (lambda: cluster_bound(2, 0.1, 4, math.nan), "diameter is nan"),
        (lambda: cluster_bound(2, math.inf, 4), "radius is inf"),
        (lambda: cluster_bound(2, 0.1, 4, 1.0, 3), "samples is 3"),
        (lambda: normalised_margin([1], normal(2, 2), [0, 0]), "2 items: give one finite"),
        (lambda: normalised_margin([1, 1], normal(2, 2), [0]), "2 items: give one finite"),
        (lambda: normalised_margin([1, math.nan], normal(2, 2), [0, 0]), "one finite"),
        (lambda: normalised_margin([1, 1, 1], normal(3, 2), [0, 7, 0]), "class 7 has one"),
        (lambda: normalised_margin([1, 1], normal(2, 2), [0, 0], 0), "0 splits"),
        (lambda: normalised_margin([1, 1], np.ones((2, 2)), [0, 0]), "coincide"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, wanted):
    with pytest.raises(ValueError, match=wanted):
        call()
