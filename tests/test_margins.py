"""The margin in units of the k-variance: known answers, and the public code's definition."""

import math

import numpy as np
import ot
import pytest
from clouds import normal, on_a_line
from scipy.stats import norm

from xb_lite.boundary.planes import fit_plane
from xb_lite.convergence.bounds import diameter, normalised_margin
from xb_lite.convergence.margins import (
    GROUPS,
    margin_ratio,
    random_halves,
    ratio_difference,
    shuffled_labels,
)
from xb_lite.convergence.transport import k_variance, matching_costs, wasserstein1


def two_gaussians(distance=2.0, sd=1.0, each=200, dim=1, seed=0):
    """So far apart along the first axis, and the signed distances to the plane midway."""
    x = sd * normal(2 * each, dim, seed=seed)
    labels = np.repeat([True, False], each)
    x[:, 0] += np.where(labels, distance / 2, -distance / 2)
    return x, labels, np.where(labels, x[:, 0], -x[:, 0])


# Known answers


def test_two_gaussians_have_the_analytic_distance_margin_and_k_variance():
    x, labels, margins = two_gaussians(each=600)
    # W1 of two laws that differ by a shift is the shift.
    assert wasserstein1(x[labels], x[~labels]) == pytest.approx(2, rel=0.05)
    assert np.median(margins) == pytest.approx(1, rel=0.08)
    # E|x - x'| of two points of N(0, s^2) is 2 s / sqrt(pi), in dim d sqrt(2) E|N(0, I)|.
    assert k_variance(x[labels], 1, 2000).value == pytest.approx(2 / math.sqrt(math.pi), rel=0.05)
    mean_length = math.sqrt(2) * math.exp(math.lgamma(8.5) - math.lgamma(8))
    assert k_variance(normal(2000, 16), 1, 2000).value == pytest.approx(
        math.sqrt(2) * mean_length, rel=0.02
    )
    # On a line W1 is the area between the two distribution functions. At large k their difference
    # at each place is normal, so E W1 = sqrt(2 / k) sqrt(2 / pi) times the area of sqrt(F (1 - F)).
    places = np.linspace(-8, 8, 4001)
    area = np.trapezoid(np.sqrt(norm.cdf(places) * norm.sf(places)), places)
    k = 150
    expected = math.sqrt(2 / k) * math.sqrt(2 / math.pi) * area
    for label in (True, False):
        cost = matching_costs(x[labels == label], k, 100).mean()
        assert cost == pytest.approx(expected, rel=0.15)


def test_scaling_by_ten_changes_nothing():
    x, labels, margins = two_gaussians(dim=5, each=40)
    one, ten = margin_ratio(margins, x, labels), margin_ratio(10 * margins, 10 * x, labels)
    assert ten.value == pytest.approx(one.value) and ten.low == pytest.approx(one.low)
    assert ten.margin == pytest.approx(10 * one.margin)
    assert ten.k_variance == pytest.approx(10 * one.k_variance)
    for scale in (1, 10):
        plane = fit_plane(scale * x, labels)
        scores = plane.scores(scale * x)
        found = margin_ratio(np.where(labels, scores, -scores), scale * x, labels)
        if scale == 1:
            first = found
    assert found.value == pytest.approx(first.value)


def test_duplicated_points_match_themselves():
    """0, 0, 1, 1: two of them drawn are equal once in three times."""
    twice = on_a_line(0, 0, 1, 1)
    assert k_variance(twice, 1, 6000).value == pytest.approx(2 / 3, rel=0.03)
    # With halves of two there are {0, 0} and {1, 1}, and twice as often {0, 1} and {0, 1}.
    assert matching_costs(twice, 2, 6000).mean() == pytest.approx(1 / 3, rel=0.06)
    with pytest.raises(ValueError, match="coincide"):
        margin_ratio(np.ones(20), np.repeat([[0.0], [1.0]], 10, axis=0), np.repeat([0, 1], 10))


def test_one_point_has_neither_halves_nor_a_diameter():
    assert diameter(on_a_line(3)) == 0
    assert wasserstein1(on_a_line(3), on_a_line(5)) == 2
    with pytest.raises(ValueError, match="k = 1 of 1"):
        k_variance(on_a_line(3), 1)
    with pytest.raises(ValueError, match="class 1 has one item"):
        normalised_margin([1, 1, 1], on_a_line(0, 1, 2), [0, 0, 1])
    with pytest.raises(ValueError, match="class 1 has one item"):
        margin_ratio(np.ones(12), normal(12, 2), [0] * 11 + [1])


# The public code (github.com/chingyaoc/kV-Margin, kV-Margin/complexity.py), by its definition


def public_score(logits, features, labels, gradients, order, weights):
    """One split a class into floor(n / 2) and as many; W1 by an exact plan of uniform weights;
    the sum over classes, each with its share and its largest gradient difference; minus the median
    of the logits' margins by it."""
    places = np.arange(len(labels))
    others = logits.copy()
    others[places, labels] = -np.inf
    gamma = 0.0
    for label in np.unique(labels):
        idx = order[label]
        k = len(idx) // 2
        one, other = features[idx[:k]], features[idx[k : 2 * k]]
        mass = np.full(k, 1 / k)
        cost = ot.emd2(mass, mass, np.linalg.norm(one[:, None] - other[None], axis=-1))
        gamma += weights[label] * cost * np.linalg.norm(gradients[idx], axis=1).max()
    return -np.median(logits[places, labels] - others.max(axis=1)) / gamma


@pytest.fixture
def random_net():
    """A linear classifier of three classes on random features; its margins' gradients by the
    features are the differences of its rows."""
    dice = np.random.default_rng(3)
    features, labels = dice.normal(size=(61, 7)), dice.permutation(np.arange(61) % 3)
    rows = dice.normal(size=(3, 7))
    logits = features @ rows.T
    others = np.where(np.eye(3, dtype=bool)[labels], -np.inf, logits).argmax(axis=1)
    margins = logits[np.arange(61), labels] - logits[np.arange(61), others]
    weights = np.bincount(labels) / 61
    return features, labels, logits, margins, rows[labels] - rows[others], weights


def test_one_split_without_a_lipschitz_constant_is_the_public_score(random_net):
    features, labels, logits, margins, gradients, weights = random_net
    ones = np.eye(1, 7).repeat(61, axis=0)  # gradients of length 1
    for seed in range(5):
        order = {  # the splits of normalised_margin, which begins anew for every class
            label: np.flatnonzero(labels == label)[
                np.random.default_rng(seed).permutation((labels == label).sum())
            ]
            for label in range(3)
        }
        wanted = public_score(logits, features, labels, ones, order, weights)
        found = normalised_margin(margins, features, labels, splits=1, seed=seed)
        assert found.score == pytest.approx(wanted, rel=1e-9)


def test_each_difference_from_the_public_score_has_its_name(random_net):
    features, labels, logits, margins, gradients, weights = random_net
    dice = np.random.default_rng(0)

    def score(by):
        order = {label: dice.permutation(np.flatnonzero(labels == label)) for label in range(3)}
        return public_score(logits, features, labels, by, order, weights)

    ones = np.eye(1, 7).repeat(61, axis=0)
    ours = normalised_margin(margins, features, labels, splits=200)
    # Many splits for one: ours is that of the mean k-variance over splits.
    one_each = np.array([ours.margin / -score(ones) for _ in range(200)])
    assert one_each.mean() == pytest.approx(ours.k_variance, rel=0.02)
    assert one_each.std() > 0.01 * ours.k_variance  # so that one split alone is noisy
    # The Lipschitz estimate is theirs alone: a constant c divides their score by c.
    assert score(3 * ones) == pytest.approx(ours.score / 3, rel=0.1)
    # With a plane's signed distances it is 1 and nothing is left out.
    lengths = np.linalg.norm(gradients, axis=1)
    assert not np.allclose(lengths, lengths[0])
    # The median, in theirs and in ours; the mean is another number.
    assert ours.margin == np.median(margins) != pytest.approx(margins.mean(), rel=0.05)


# The interval, and the controls


def test_the_interval_holds_what_new_samples_give():
    wide = [margin_ratio(*_drawn(seed), splits=5) for seed in range(40)]
    truth = np.mean([found.value for found in wide])
    held = [found.low <= truth <= found.high for found in wide]
    assert 34 <= sum(held) <= 40


def _drawn(seed):
    x, labels, margins = two_gaussians(each=50, dim=4, seed=seed)
    return margins, x, labels


def test_a_difference_of_the_same_items_is_paired():
    x, labels, margins = two_gaussians(dim=3, each=60)
    one, other = margin_ratio(margins, x, labels), margin_ratio(margins + 0.1, x, labels)
    found = ratio_difference(other, one)
    assert found.value == pytest.approx(0.1 / one.k_variance)
    assert found.high - found.low < 0.3 * (one.high - one.low)
    same = ratio_difference(one, one)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert "n = 120" in str(found) and "n = 120" in str(one)


def test_without_anything_to_learn_there_is_no_margin():
    x, labels, _ = two_gaussians(dim=8)
    new, same, _ = two_gaussians(dim=8, seed=1)
    shuffled = shuffled_labels(labels)
    assert sorted(shuffled) == sorted(labels) and (shuffled != labels).any()
    scores = fit_plane(x, shuffled).scores(new)
    again = shuffled_labels(same, seed=1)
    none = margin_ratio(np.where(again, scores, -scores), new, same)
    scores = fit_plane(x, labels).scores(new)
    real = margin_ratio(np.where(same, scores, -scores), new, same)
    assert real.value > 5 * abs(none.value) and none.low < 0 < none.high


def test_a_random_split_halves_one_class():
    places, half = random_halves(np.array(["a", "b", "a", "a", "b"]), "a")
    assert places.tolist() == [0, 2, 3] and half.sum() == 1
    assert np.array_equal(half, random_halves(np.array(["a", "b", "a", "a", "b"]), "a")[1])


@pytest.mark.parametrize(
    "call, wanted",
    [
        (lambda: margin_ratio(np.ones(12), normal(12, 2), [0] * 9 + [1] * 3), "an interval needs"),
        (lambda: margin_ratio(np.ones(3), normal(4, 2), [0, 0, 1, 1]), "one finite"),
        (lambda: random_halves([1, 1], 0), "no item of class 0"),
        (lambda: shuffled_labels([[1, 0]]), "one label for each"),
    ],
)
def test_what_has_no_ratio_is_refused(call, wanted):
    with pytest.raises(ValueError, match=wanted):
        call()


def test_the_group_without_which_nothing_spreads_is_named():
    x = np.repeat([[0.0], [1.0]], 10, axis=0)
    x[3] = 5
    with pytest.raises(ValueError, match=r"Without items \[3, 1\d\] the features coincide"):
        margin_ratio(np.ones(20), x, np.repeat([0, 1], 10))


def test_ratios_of_other_items_are_not_compared():
    x, labels, margins = two_gaussians(each=GROUPS)
    more = margin_ratio(*_drawn(0))
    with pytest.raises(ValueError, match="same items"):
        ratio_difference(more, margin_ratio(margins, x, labels))
