"""Rates and differences of rates, each with its n and its 95 % interval.

A number without both says nothing; 03_evaluation shows how an interval shrinks with n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm, t

Z = float(norm.ppf(0.975))  # of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A number from ``n`` items or runs, with its 95 % interval from ``low`` to ``high``.

    Every number of the book with an interval is one; what else is known of it is in a subclass.
    """

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}], n = {self.n}"


@dataclass(frozen=True)
class Rate(Estimate):
    """``k`` of ``n``, with the Wilson score interval."""

    k: int

    def __str__(self) -> str:
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}], {self.k} of {self.n}"


@dataclass(frozen=True)
class Difference(Estimate):
    """How much higher a rate is on one side, ``value`` in -1 to 1, on the same ``n`` items.

    The interval is over items, of Bonett and Price (2012); ``p`` is McNemar's exact test.
    """

    p: float

    def __str__(self) -> str:
        points = [f"{100 * x:+.0f}" for x in (self.value, self.low, self.high)]
        return f"{points[0]} points [{points[1]}, {points[2]}], n = {self.n}, p = {self.p:.2g}"


def rate(outcomes: Sequence[bool] | int, n: int | None = None) -> Rate:
    """The share of True among ``outcomes``, an item each, or of so many among ``n`` (Wilson, 1927).

    Items are taken to be independent. Requests that share a wrapper are not: for other wrappers the
    interval is too narrow.

    Raises:
        ValueError: there are no outcomes, or more of them than ``n``.

    Example:
        >>> print(rate([True, False, False]))
        33% [6%, 79%], 1 of 3
        >>> rate(1, 3) == rate([True, False, False])
        True
    """
    if n is None:
        outcomes, n = np.sum(np.asarray(outcomes, dtype=bool)), len(outcomes)
    outcomes, n = int(outcomes), int(n)
    if not n:
        raise ValueError("a rate of no items: nothing was measured.")
    if not 0 <= outcomes <= n:
        raise ValueError(f"{outcomes} of {n} is no rate.")
    return Rate(outcomes / n, n, *wilson(outcomes, n), outcomes)


def wilson(k: int, n: int) -> tuple[float, float]:
    """The interval of ``rate``, of counts alone."""
    # To the last digit that of scipy's binomtest, which computes a p-value first: 2 ms each time.
    scale = 2 * (n + Z**2)
    middle = (2 * n * (k / n) + Z**2) / scale
    half = Z / scale * math.sqrt(4 * n * (k / n) * (1 - k / n) + Z**2)
    return (middle - half if k else 0.0), (middle + half if k < n else 1.0)


def mean(values: Sequence[float], draws: int = 10_000, seed: int = 0) -> Estimate:
    """The mean of values of one item each, and by bootstrap how far other items would move it.

    A single item says nothing of others, and a bootstrap of it would claim to know them all; its
    interval is that of a single run (``mean_of_runs``).

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    found = _finite(values)
    if found.size == 1:
        return mean_of_runs(values)
    draw = np.random.default_rng(seed)
    means, at_once = [], max(1, 2**16 // found.size)  # many draws at a time, in little memory
    for done in range(0, draws, at_once):
        size = (min(at_once, draws - done), found.size)
        means.append(found[draw.integers(found.size, size=size)].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Estimate(float(found.mean()), found.size, float(low), float(high))


def mean_of_runs(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean of one value a run, with Student's interval: a few are too few for a bootstrap.

    Of one run, which says nothing of others, the interval is as wide as twice the value; of a
    single 0 it has no width, and says nothing either.

    Raises:
        ValueError: as in ``mean``.
    """
    found = _finite(values)
    middle, half = float(found.mean()), abs(float(found.mean()))
    if found.size > 1:
        half = float(t.ppf((1 + level) / 2, found.size - 1) * found.std(ddof=1) / found.size**0.5)
    return Estimate(middle, found.size, middle - half, middle + half)


def difference(one: Sequence[bool], other: Sequence[bool]) -> Difference:
    """Rate of ``one`` minus rate of ``other``, where both are outcomes of the same items in order.

    Raises:
        ValueError: there are no outcomes, or the two are not of the same items.
    """
    if len(one) != len(other) or not len(one):
        raise ValueError(
            f"{len(one)} and {len(other)} outcomes: a paired difference is of the same items."
        )
    gain = np.asarray(one, dtype=int) - np.asarray(other, dtype=int)
    wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
    p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    found = mean_gain(gain)
    return Difference(found.value, found.n, found.low, found.high, float(p))


def mean_gain(gains: Sequence[float]) -> Estimate:
    """The mean of gains from -1 to 1, one an item, with the interval of Bonett and Price (2012).

    It counts an item more that wins and one that loses, so that it has a width even where no item
    differs. Theirs is for gains of -1, 0 and 1; this is the same for those between, as of an item
    that several seeds were asked.

    Raises:
        ValueError: as in ``mean``.
    """
    gain = _finite(gains)
    more = np.append(gain, [1, -1])
    half = Z * more.std() / more.size**0.5
    low, high = np.clip([more.mean() - half, more.mean() + half], -1, 1)
    return Estimate(float(gain.mean()), gain.size, float(low), float(high))


def _finite(values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=float)
    if not found.size or not np.isfinite(found).all():
        raise ValueError(f"a mean of {found.size} values, not all of which are finite numbers.")
    return found
