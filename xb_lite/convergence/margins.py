"""A margin in units of the k-variance, with an interval over items, and its two controls.

The bound of Chuang et al. (arXiv 2106.03314) has separation (a margin) and concentration (the
k-variance of each class) in one ratio. Derived in 06_convergence; the ratio itself is
``bounds.normalised_margin``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import t

from xb_lite.convergence.bounds import normalised_margin
from xb_lite.convergence.transport import Sample
from xb_lite.results.stats import Estimate

GROUPS = 10
Labels = Shaped[np.ndarray, " item"]


@dataclass(frozen=True)
class MarginRatio(Estimate):
    """Margin / k-variance of ``n`` items, with both in the unit of the states.

    ``margin`` is the median; ``left_out`` has the ratio without each group of items in turn.
    """

    margin: float
    k_variance: float
    left_out: Float[np.ndarray, " group"]

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"


def margin_ratio(
    margins: Float[np.ndarray, " item"],
    features: Sample,
    labels: Labels,
    *,
    splits: int = 20,
    seed: int = 0,
) -> MarginRatio:
    """The median margin over the class-weighted k-variance: ``normalised_margin`` with the sign
    turned, so that more is better, and with an interval.

    The interval is Student's, by the jackknife over ``GROUPS`` random groups of items, a tenth of
    each class: it is of the same margins and states without one group at a time. It says what other
    items would change for a classifier that is fixed, not what other training would.

    Args:
        margins: of each item, with the classifier's Lipschitz constant divided out; for a plane the
            signed distance to it, positive on the item's own side.
        features: ``[item, dim]``, what the classifier reads.
        labels: class of each item.
        splits: of each class into halves.
        seed: of the splits and the groups; one seed makes the same of the same items, so that
            ratios of two models can be compared by ``ratio_difference``.

    Raises:
        ValueError: as ``normalised_margin``, a class has fewer than ``GROUPS`` items, or the
            features coincide within every class without one of the groups.
    """
    margins, features, labels = map(np.asarray, (margins, features, labels))
    whole = normalised_margin(margins, features, labels, splits, seed)
    dice, group = np.random.default_rng(seed), np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        (places,) = np.nonzero(labels == label)
        if len(places) < GROUPS:
            raise ValueError(f"class {label} has {len(places)} items; an interval needs {GROUPS}.")
        group[dice.permutation(places)] = np.arange(len(places)) % GROUPS
    left_out = np.empty(GROUPS)
    for g in range(GROUPS):
        kept = group != g
        try:
            rest = normalised_margin(margins[kept], features[kept], labels[kept], splits, seed)
        except ValueError as error:
            raise ValueError(
                f"all spread is due to one of {GROUPS} groups of items: add others. Without items "
                f"{np.flatnonzero(~kept).tolist()!s:.60} {error}"
            ) from error
        left_out[g] = -rest.score
    value, half = -whole.score, _half(left_out)
    return MarginRatio(
        value, len(labels), value - half, value + half, whole.margin, whole.k_variance, left_out
    )


@dataclass(frozen=True)
class RatioDifference(Estimate):
    """By how much one ratio is larger than another on the same ``n`` items."""

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}], n = {self.n}"


def ratio_difference(one: MarginRatio, other: MarginRatio) -> RatioDifference:
    """``one`` less ``other``, of the same items in two models; both leave out the same groups.

    Raises:
        ValueError: they are not of as many items.
    """
    if one.n != other.n:
        raise ValueError(f"{one.n} and {other.n} items: give two ratios of the same items.")
    value, half = one.value - other.value, _half(one.left_out - other.left_out)
    return RatioDifference(value, one.n, value - half, value + half)


def shuffled_labels(labels: Labels, seed: int = 0) -> Labels:
    """The labels in random order: the control in which there is nothing to learn.

    Raises:
        ValueError: ``labels`` is not a list.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels of shape {labels.shape}: give one label for each item.")
    return np.random.default_rng(seed).permutation(labels)


def random_halves(labels: Labels, label: object, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The places of one class, and a random half of them marked: the control in which two
    "classes" are of one law.

    Returns:
        Places ``[item]`` in ``labels``, and a bool for each.

    Raises:
        ValueError: there is no item of the class.
    """
    (places,) = np.nonzero(np.asarray(labels) == label)
    if not len(places):
        raise ValueError(f"there is no item of class {label}.")
    half = np.zeros(len(places), dtype=bool)
    half[np.random.default_rng(seed).permutation(len(places))[: len(places) // 2]] = True
    return places, half


def _half(left_out: Float[np.ndarray, " group"]) -> float:
    """Half of the jackknife's interval, from the values without each group."""
    groups = len(left_out)
    error = sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())
    return float(t.ppf(0.975, groups - 1)) * error
