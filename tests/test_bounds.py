"""Coverings and bounds against brute force and enumeration."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from clouds import SEEDS, normal, on_a_line, samples, two_point_law, unhurried
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import binom, multinomial

from xb_lite.convergence.bounds import (
    cluster_bound,
    coverings,
    diameter,
    normalised_margin,
    weed_bach_bound,
)
from xb_lite.convergence.transport import wasserstein1

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


def test_half_precision_states_are_covered_in_float64():
    far = on_a_line(0, 1000, 2000, 8000)
    assert coverings(far.astype(np.float16)) == coverings(far)


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


def test_the_margin_hangs_on_the_seed():
    features, labels = normal(20, 3), np.arange(20) % 2
    margins = [normalised_margin(labels + 1, features, labels, 2, seed) for seed in (0, 0, 1)]
    assert margins[0] == margins[1] != margins[2]


# What is refused


@pytest.mark.parametrize(
    "call, wanted",
    [
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
def test_what_cannot_be_bounded_is_refused(call, wanted):
    with pytest.raises(ValueError, match=wanted):
        call()
