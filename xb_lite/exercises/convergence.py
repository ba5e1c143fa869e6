"""Checks of the exercises of 06_convergence.

Each takes an answer, or the reader's function, and gives a ``Verdict``. Right answers are computed
by the package, on points in which no two mistakes give the same value.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from math import ceil, sqrt

import numpy as np
import torch
from scipy.spatial.distance import cdist

from xb_lite.boundary.planes import fit_plane
from xb_lite.convergence.bounds import cluster_bound, normalised_margin
from xb_lite.convergence.transport import wasserstein1
from xb_lite.exercises.verdicts import NOT_YET, Verdict, attempted, called, judged

CROSSES, DOTS = np.array([[0.0], [4.0], [5.0]]), np.array([[1.0], [2.0], [9.0]])
SIX = np.array([[0.0], [0.0], [0.0], [6.0], [6.0], [6.0]])


def matched(answer: object) -> Verdict:
    """The Wasserstein-1 distance of crosses at 0, 4, 5 and dots at 1, 2, 9."""
    lengths = cdist(CROSSES, DOTS)
    totals = [lengths[range(3), list(order)].sum() for order in permutations(range(3))]
    right = wasserstein1(CROSSES, DOTS)
    return judged(
        answer,
        right,
        [
            (min(totals), "This is the sum of the three lengths; the mean is wanted."),
            (max(totals) / 3, "This is the worst matching; the best is wanted."),
            (
                lengths.min(axis=1).mean(),
                "Two crosses share a dot here; every cross needs a dot of its own.",
            ),
            (lengths.mean(), "This is the mean of all nine lengths; match first."),
            (
                abs(CROSSES.mean() - DOTS.mean()),
                "This is the distance of the two means, which a matching can only exceed.",
            ),
            (
                sqrt((lengths[range(3), range(3)] ** 2).mean()),
                "You squared the lengths: that is Wasserstein-2.",
            ),
            (lengths[range(3), range(3)].max(), "This is the longest of the three arrows."),
        ],
        praise="On a line the best matching goes by rank: 0 to 1, 4 to 2, 5 to 9.",
    )


def halves(sample: np.ndarray, k: int) -> list[float]:
    """The cost of every pair of disjoint k-subsets."""
    places = range(len(sample))
    return [
        wasserstein1(sample[list(one)], sample[list(other)])
        for one in combinations(places, k)
        for other in combinations([i for i in places if i not in one], k)
    ]


def six_points(answer: object) -> Verdict:
    """The k-variance of three points at 0 and three at 6, at k = 1 and at k = 3."""
    ones, threes = halves(SIX, 1), halves(SIX, 3)
    right = [float(np.mean(ones)), float(np.mean(threes))]
    found = answer
    if isinstance(answer, list | tuple) and not all(map(attempted, answer)):
        found = ...
    return judged(
        found,
        right,
        [
            (right[::-1], "The two are swapped: first k = 1."),
            (
                [cdist(SIX, SIX).mean(), right[1]],
                "At k = 1 you let a point meet itself: the two groups are disjoint.",
            ),
            (
                [right[0], min(threes)],
                "At k = 3 this is the split that costs least; the mean over all splits is wanted.",
            ),
            (
                [right[0], max(threes)],
                "At k = 3 this is the split that costs most, 0 0 0 against 6 6 6.",
            ),
            (
                [right[0], np.mean([min(threes), max(threes)])],
                "At k = 3 the splits are not equally many: only 2 of 20 cost 6.",
            ),
            ([right[0], 3 * right[1]], "At k = 3 you added the three lengths; take their mean."),
            ([right[0], right[0]], "The k-variance falls with k: match the halves anew."),
            ([3.0, 3.0], "These are distances to the mean; take distances of two samples."),
            ([9.0, 9.0], "This is the variance, in squares; the k-variance is a length."),
            (right[0], "Two numbers are wanted: k = 1 and k = 3."),
        ],
        praise="Three fifths of the pairs are mixed; of 20 splits two cost 6 and the others 2.",
    )


def scaled(answer: object) -> Verdict:
    """By what margin, k-variance, their ratio, and radius over diameter are multiplied if all
    states are multiplied by 10."""
    found = answer
    if isinstance(answer, list | tuple) and not all(map(attempted, answer)):
        found = ...
    return judged(
        found,
        [10, 10, 1, 1],
        [
            ([10, 100, 0.1, 1], "The k-variance is a mean length, whatever its name says."),
            ([1, 10, 0.1, 1], "The plane is fitted to the states, so it moves with them."),
            ([10, 1, 10, 1], "The k-variance is a length as well: all arrows grow."),
            ([10, 10, 10, 1], "The ratio is one length over another."),
            ([10, 10, 100, 1], "The ratio is a quotient, not a product."),
            ([10, 10, 1, 10], "Radius and diameter are both lengths: their quotient stays."),
            ([10, 10, 1, 0.1], "The radius grows as the diameter does."),
            ([1, 1, 1, 1], "Only the two quotients stay; lengths grow tenfold."),
            ([10, 10, 10, 10], "Lengths grow tenfold; quotients of lengths stay."),
        ],
        praise="So a defense cannot win or lose the ratio by making states longer.",
    )


def ratio(answer: Callable | object) -> Verdict:
    """The reader's ``ratio(margins, features, labels)``, arrays ``[item]``, ``[item, dim]`` and
    ``[item]``: each class is split into its first floor(n / 2) items and the next as many."""
    dice = np.random.default_rng(7)
    labels = np.array([0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0])
    features = dice.normal(size=(11, 3)) * np.where(labels, 3.0, 1.0)[:, None] + labels[:, None]
    margins = dice.normal(size=11) + 1
    costs, shares, dealt = [], [], []
    for label in (0, 1):
        own = features[labels == label]
        k = len(own) // 2
        costs.append(wasserstein1(own[:k], own[k : 2 * k]))
        dealt.append(np.linalg.norm(own[:k] - own[k : 2 * k], axis=1).mean())
        shares.append(len(own) / len(features))
    costs, shares, dealt = np.array(costs), np.array(shares), np.array(dealt)
    spread, margin = costs @ shares, np.median(margins)
    right = margin / spread
    wrong = [
        (-right, "The sign is turned: the package's score is negative, the ratio is not."),
        (spread / margin, "This is k-variance over margin, as in the bound; turn it over."),
        (margins.mean() / spread, "This takes the mean margin; the median is wanted."),
        (margin / costs.mean(), "Weigh the classes by their items: one is larger."),
        (margin / costs.sum(), "You added the classes' k-variances; take their weighted mean."),
        (
            margin / wasserstein1(features[:5], features[5:10]),
            "You split all items at once; the k-variance is within a class.",
        ),
        (
            margin / wasserstein1(features[labels == 0], features[labels == 1]),
            "This is the distance between the classes; take halves within each.",
        ),
        (margin / (dealt @ shares), "You matched item by item, in order; find the best matching."),
        (margin * spread, "This is a product; divide."),
        (margin, "This is the margin alone; divide by the k-variance."),
        (margins / spread, "One value for each item; take the median."),
    ]
    before = [features.copy(), margins.copy(), labels.copy()]
    found = called(answer, margins, features, labels)
    if attempted(found) and not all(
        np.array_equal(now, was)
        for now, was in zip((features, margins, labels), before, strict=True)
    ):
        return Verdict(False, "Your function changed the arrays that it was given (in place).")
    return judged(found, right, wrong, praise=f"Here the margin is {right:.2f} k-variances.")


def tight_and_near(answer: object) -> Verdict:
    """Two sets of points ``[12, 2]``, the first six of each harmful: both as concentrated, with a
    mean k-variance of at most 0.1, the first without a margin, the second with one of more than
    five k-variances."""
    if not attempted(answer) or (
        isinstance(answer, list | tuple) and not all(map(attempted, answer))
    ):
        return Verdict(None, NOT_YET)
    try:
        near, far = (np.asarray(_array(one), dtype=float) for one in answer)
    except (TypeError, ValueError):
        return Verdict(False, "Two arrays of points are wanted: first without a margin, then with.")
    labels = np.repeat([True, False], 6)
    found = []
    for points in (near, far):
        if points.shape != (12, 2):
            return Verdict(False, f"The shape is {list(points.shape)}; it should be [12, 2].")
        if not np.isfinite(points).all():
            return Verdict(False, "Some coordinates are not finite.")
        try:
            scores = fit_plane(points, labels).scores(points)
            found.append(normalised_margin(np.where(labels, scores, -scores), points, labels))
        except ValueError as error:
            if "coincide" in str(error):
                words = (
                    "All points of a class coincide: its k-variance is 0, and nothing can be "
                    "divided by it. Spread them a little."
                )
            else:
                words = (
                    "Both classes have exactly the same mean, so that no plane lies midway. Move "
                    "one point a little."
                )
            return Verdict(False, words)
    (low, high), (tight, other) = (
        [-one.score for one in found],
        [one.k_variance for one in found],
    )
    if low > 5 and high < 1:
        return Verdict(False, "The two are swapped: first the set without a margin.")
    if max(tight, other) > 0.1:
        return Verdict(
            False,
            f"Not concentrated: the k-variances are {tight:.2g} and {other:.2g}; 0.1 at most. "
            "Each class in one tight heap.",
        )
    if abs(low) > 0.5:
        return Verdict(
            False,
            f"The first set has a margin of {low:.1f} k-variances: put both heaps in one place.",
        )
    if high < 5:
        return Verdict(
            False,
            f"The second set's margin is {high:.1f} k-variances: move its two heaps apart.",
        )
    return Verdict(
        True,
        f"Margins of {low:.1f} and {high:.0f} k-variances, at k-variances of {tight:.2g} and "
        f"{other:.2g}: to be concentrated is not to be separated.",
    )


def least_k(answer: Callable | object) -> Verdict:
    """The reader's ``least_k(cells, delta, diameter)``: the least k at which the bound of the page
    is at most half of the diameter."""
    cells, delta, wide = 7, 0.3, 4.0
    room = wide / 2 - 2 * delta
    exact = (cells - 1) / 2 * (wide / room) ** 2
    right = ceil(exact)
    bound = cluster_bound(cells, delta, right, wide).value
    assert bound <= wide / 2 < cluster_bound(cells, delta, right - 1, wide).value
    return judged(
        called(answer, cells, delta, wide),
        right,
        [
            (exact, "Prompts come whole: round up."),
            (right - 1, "Rounded down, the bound is still above half of the diameter."),
            (
                ceil(cells / 2 * (wide / room) ** 2),
                "There are n - 1 under the root: the last cell's count follows from the others.",
            ),
            (
                ceil((cells - 1) * (wide / room) ** 2),
                "The 2 under the root is lost: two samples, and 2k below.",
            ),
            (
                ceil((cells - 1) / 2 * (wide / (wide / 2 - delta)) ** 2),
                "Inside a cell a point moves by up to its diameter, which is 2 delta.",
            ),
            (
                ceil((cells - 1) / 2 * (wide / (wide - 2 * delta)) ** 2),
                "This is where the bound reaches the diameter; half of it is wanted.",
            ),
            (
                ceil((cells - 1) / 2 * (1 / room) ** 2),
                "The factor D before the root is lost.",
            ),
            (
                ceil((cells - 1) / 2 * wide / room),
                "A square is lost: solve for the root, then square both sides.",
            ),
        ],
        praise="It counts prompts. No training step is in it.",
        tolerance=1e-9,
    )


def _array(value: object) -> object:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
