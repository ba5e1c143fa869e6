"""Optimal transport between samples: distances, k-variance, and the rate at which it falls.

A sample is an array ``[item, dim]`` of independent items of one law, such as one state a dialogue
(the tokens of a dialogue are not independent). Distances are Euclidean, in the unit of the states.
All here is about how fast the law of ``k`` items nears the law of all as ``k`` grows, and nothing
about steps of an optimizer. What theory says of it is in ``bounds``. Derived in 06_convergence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, pi, sqrt

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import t, wasserstein_distance
from tqdm.auto import tqdm

from xb_lite.results.stats import Estimate

Sample = Float[np.ndarray, "item dim"]
PIVOTS = 10_000_000  # at its default, a hundredth of this, POT can stop short of the optimum


def wasserstein1(one: Float[np.ndarray, "m dim"], other: Float[np.ndarray, "n dim"]) -> float:
    """Exact Wasserstein-1 distance of two samples: the least mean length of moving one to other.

    Samples of one size are matched item to item (an optimal plan is then a permutation) by scipy,
    in about half the time that POT's network simplex takes; POT solves the others.

    Raises:
        ValueError: not two arrays ``[item, dim]`` of finite numbers with one ``dim``.
        RuntimeError: POT stopped before the optimum.
    """
    return _cost(*_pair(one, other))


def sliced_estimate(
    one: Float[np.ndarray, "m dim"],
    other: Float[np.ndarray, "n dim"],
    directions: int = 100,
    seed: int = 0,
) -> float:
    """An estimate of ``wasserstein1``, from below: mean 1-D distance along random directions.

    Divided by the mean length of a unit vector's shadow, it estimates the exact distance where one
    sample is a shift of the other. Otherwise it is too low, in high dimension by far: on an axis
    each item finds a partner close by that is far from it elsewhere.

    Source: sliced Wasserstein distance (Bonneel et al., 2015); the division is ours.

    Raises:
        ValueError: as ``wasserstein1``, or there is no direction.
    """
    one, other = _pair(one, other)
    if directions < 1:
        raise ValueError(f"{directions} directions: give at least 1.")
    dim = one.shape[1]
    axes = np.random.default_rng(seed).normal(size=(dim, directions))
    axes /= np.linalg.norm(axes, axis=0)
    shadow = exp(lgamma(dim / 2) - lgamma((dim + 1) / 2)) / sqrt(pi)
    pairs = zip((one @ axes).T, (other @ axes).T, strict=True)
    return float(np.mean([wasserstein_distance(a, b) for a, b in pairs]) / shadow)


@dataclass(frozen=True)
class KVariance(Estimate):
    """Estimated k-variance of the law of ``n`` items."""

    k: int
    resamplings: int

    def __str__(self) -> str:
        interval = f"[{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g} {interval}, k = {self.k}, n = {self.n} items"


def k_variance(sample: Sample, k: int, resamplings: int = 200, seed: int = 0) -> KVariance:
    """Expected ``wasserstein1`` of two independent samples of ``k`` items of the law of ``sample``.

    The mean over random pairs of disjoint k-subsets. Drawn without replacement they are two
    independent k-samples of the law, so the mean is unbiased for the law's k-variance. (For draws
    with replacement from the sample itself, which repeat items, it is too high.)

    The interval is over new samples of ``n`` independent items and new resamplings. Resamplings of
    one sample share its items, so their spread ``s`` alone would promise too much. By Hoeffding's
    (1948) bound for a U-statistic of degree 2k, ``Var(U) <= 2k / n Var(W1)``, and by ``E s^2 =
    Var(W1) - Var(U)``, the estimate's variance is at most ``(1 / resamplings + 2k / (n - 2k))
    E s^2``, the form in which Nadeau and Bengio (2003) correct repeated splits. The interval is
    Student's t times its root: at least as wide as need be if the estimate is about normal, far
    wider if no item alone moves W1 (masses of a few clusters), and useless as 2k nears n. (A
    bootstrap over items would repeat items, which match at no cost.)

    Source: Solomon, Greenewald and Nagaraja (arXiv 2012.06958), who take squared W2 and a factor;
    with W1 Chuang et al. (arXiv 2106.03314); both as recalled; not verified against the papers.

    Raises:
        ValueError: ``sample`` is not ``[item, dim]`` of finite numbers, ``k`` is below 1 or not
            below half its items, or there are fewer than 2 resamplings.
    """
    sample = as_sample("the sample", sample)
    n = len(sample)
    if not 1 <= k < n / 2:
        raise ValueError(
            f"k = {k} of {n} items: two disjoint k-samples and an interval need 1 <= k < {n} / 2; "
            "take a smaller k or more items."
        )
    if resamplings < 2:
        raise ValueError(f"{resamplings} resamplings have no spread: give at least 2.")
    costs = matching_costs(sample, k, resamplings, seed)
    value, half = _mean_and_half(costs, k, n)
    return KVariance(value, n, max(0.0, value - half), value + half, k, resamplings)


def matching_costs(
    sample: Sample, k: int, resamplings: int = 200, seed: int = 0
) -> Float[np.ndarray, " resampling"]:
    """``wasserstein1`` of random pairs of disjoint k-subsets; ``k_variance`` is their mean.

    One seed splits all samples of one size alike, so that costs of the same items in two states
    belong together pair by pair (see ``paired_difference``).

    Raises:
        ValueError: ``sample`` is not ``[item, dim]`` of finite numbers, or ``k`` is below 1 or
            above half its items.
    """
    sample = as_sample("the sample", sample)
    if not 1 <= k <= len(sample) / 2:
        raise ValueError(f"k = {k} of {len(sample)} items has no two disjoint k-samples.")
    draw, costs = np.random.default_rng(seed), np.empty(resamplings)
    for turn in tqdm(range(resamplings), desc="matching", delay=2, leave=False):
        order = draw.permutation(len(sample))
        costs[turn] = _cost(sample[order[:k]], sample[order[k : 2 * k]])
    return costs


@dataclass(frozen=True)
class PairedDifference(Estimate):
    """How much larger the k-variance is in one state of ``n`` items than in another."""

    k: int

    def __str__(self) -> str:
        interval = f"[{self.low:+.3g}, {self.high:+.3g}]"
        return f"{self.value:+.3g} {interval}, k = {self.k}, n = {self.n} items"


def paired_difference(
    one: Float[np.ndarray, " resampling"], other: Float[np.ndarray, " resampling"], k: int, n: int
) -> PairedDifference:
    """k-variance of the same items in state ``one`` less that in state ``other``.

    From the ``matching_costs`` of both, made with one ``k`` and seed: what a split does to both
    alike cancels. A difference of two U-statistics on the same items is one too, so the interval is
    that of ``k_variance``.

    Raises:
        ValueError: not as many costs, fewer than two, one that is not finite, or ``k`` is not
            from 1 to below half of ``n``.
    """
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.shape != other.shape or one.size < 2 or not 1 <= k < n / 2:
        raise ValueError(
            f"{one.shape} and {other.shape} costs, k = {k}, n = {n}: give two or more of the same "
            "splits, and 1 <= k < n / 2."
        )
    if not np.isfinite(one - other).all():
        raise ValueError("some costs are not finite: leave such items out.")
    value, half = _mean_and_half(one - other, k, n)
    return PairedDifference(value, n, value - half, value + half, k)


@dataclass(frozen=True)
class PowerLaw:
    """``constant * k ** slope`` with 95 % intervals; ``constant`` is in the unit of the states."""

    slope: float
    slope_low: float
    slope_high: float
    constant: float
    constant_low: float
    constant_high: float
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        interval = f"[{self.slope_low:.3g}, {self.slope_high:.3g}]"
        return f"slope {self.slope:.3g} {interval}, k = {self.sizes[0]} to {self.sizes[-1]}"


def power_law(estimates: Sequence[KVariance]) -> PowerLaw:
    """Least squares of log k-variance on log k; the slope is the rate at these sizes, no others.

    The interval moves every estimate to that end of its own which moves the result most. So it is
    of 95 % or more even if the estimates err together, as those of one sample do: a sum's standard
    deviation is at most the sum of theirs.

    Known rates, for a density on a bounded set: -1/2 in one dimension, -1/d from three on (Dudley,
    1969; Fournier and Guillin, 2015; as recalled; not verified against the papers).

    Raises:
        ValueError: fewer than two sizes, or an interval that reaches 0.
    """
    sizes = tuple(sorted({estimate.k for estimate in estimates}))
    if len(sizes) < 2:
        raise ValueError(f"k-variance at {len(sizes)} size(s) has no slope: give two or more.")
    for estimate in estimates:
        if estimate.low <= 0:
            raise ValueError(
                f"the interval of the k-variance at k = {estimate.k} reaches 0, which has no "
                "logarithm: take a smaller k or more items."
            )
    x = np.log([estimate.k for estimate in estimates])
    low, value, high = np.log([(e.low, e.value, e.high) for e in estimates]).T
    tilt = (x - x.mean()) / ((x - x.mean()) ** 2).sum()

    def ends(weights: np.ndarray) -> tuple[float, float, float]:
        least, most = np.where(weights > 0, low, high), np.where(weights > 0, high, low)
        return float(weights @ value), float(weights @ least), float(weights @ most)

    constant = np.exp(ends(1 / len(x) - x.mean() * tilt))
    return PowerLaw(*ends(tilt), *map(float, constant), sizes)


def as_sample(what: str, values: Sample) -> np.ndarray:
    """``values`` in fp64, or a ValueError that begins with ``what`` it is of."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"{what}: shape {found.shape}; give [item, dim], at least one of each.")
    if not (finite := np.isfinite(found).all(axis=1)).all():
        raise ValueError(
            f"{what}: {(~finite).sum()} of {len(found)} items have numbers that are not finite "
            f"(the first is item {finite.argmin()}); leave them out."
        )
    return found


def _pair(one: Sample, other: Sample) -> tuple[np.ndarray, np.ndarray]:
    one, other = as_sample("the first sample", one), as_sample("the second sample", other)
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"samples of {one.shape[1]} and {other.shape[1]} dimensions have no distance: give "
            "two of one space."
        )
    return one, other


def _cost(one: np.ndarray, other: np.ndarray) -> float:
    # Of differences: by squared norms and products, near points far from 0 would lose all digits.
    lengths = cdist(one, other)
    if len(one) == len(other):
        return float(lengths[linear_sum_assignment(lengths)].mean())
    # Here, not above: POT imports JAX and TensorFlow wherever they are installed, as on Colab.
    from ot import emd2

    cost, report = emd2([], [], lengths, numItermax=PIVOTS, log=True)
    if report["warning"]:
        raise RuntimeError(f"POT stopped before the optimum: {report['warning']}")
    return float(cost)


def _mean_and_half(costs: np.ndarray, k: int, n: int) -> tuple[float, float]:
    """Mean of costs of splits of ``n`` items, and half its interval; see ``k_variance``."""
    error = costs.std(ddof=1) * sqrt(1 / len(costs) + 2 * k / (n - 2 * k))
    return float(costs.mean()), float(t.ppf(0.975, len(costs) - 1) * error)
