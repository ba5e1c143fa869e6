"""Optimal transport between samples, and what theory says of it: distances, k-variance, bounds.

A sample is an array ``[item, dim]`` of independent items of one law, such as one state a dialogue
(the tokens of a dialogue are not independent). Distances are Euclidean, in the unit of the states.
All here is about how fast the law of ``k`` items nears the law of all as ``k`` grows, and nothing
about steps of an optimizer. Derived in 06_convergence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, lgamma, pi, sqrt

import numpy as np
from jaxtyping import Float, Shaped
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist
from scipy.stats import t, wasserstein_distance
from tqdm.auto import tqdm

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
class KVariance:
    """Estimated k-variance of the law of ``n`` items, 95 % interval ``low`` to ``high``."""

    value: float
    low: float
    high: float
    k: int
    n: int
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
    sample = _points("the sample", sample)
    n = len(sample)
    if not 1 <= k < n / 2:
        raise ValueError(
            f"k = {k} of {n} items: two disjoint k-samples and an interval need 1 <= k < {n} / 2; "
            "take a smaller k or more items."
        )
    if resamplings < 2:
        raise ValueError(f"{resamplings} resamplings have no spread: give at least 2.")
    with tqdm(total=resamplings, desc="matching", delay=2, leave=False) as bar:
        costs = _split_costs(sample, k, resamplings, np.random.default_rng(seed), bar)
    value = float(costs.mean())
    error = costs.std(ddof=1) * sqrt(1 / resamplings + 2 * k / (n - 2 * k))
    half = float(t.ppf(0.975, resamplings - 1) * error)
    return KVariance(value, max(0.0, value - half), value + half, k, n, resamplings)


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


@dataclass(frozen=True)
class Covering:
    """The least radius of ``clusters`` balls that cover a sample is from ``lower`` to ``upper``.

    ``centre`` is the item that became the last of the centres.
    """

    clusters: int
    lower: float
    upper: float
    centre: int


def coverings(sample: Sample, most: int | None = None) -> list[Covering]:
    """The least Delta for which ``sample`` is (n, Delta)-clusterable, within a factor of 2.

    For n = 1 to ``most`` (all items if not given), by farthest-first traversal: each new centre is
    the item farthest from those before it, the first the one nearest to the mean. ``upper`` is the
    farthest item's distance, so that balls around the n centres cover. It and the centres are
    n + 1 items at least so far apart, two of which must share a ball: ``lower`` is half of it, for
    balls around any points, and for sets of diameter 2 Delta alike.

    What is covered is the sample; the law's support may need more. With these values, a bound below
    holds for draws with replacement from the sample.

    Source: Gonzalez (1985), Clustering to minimize the maximum intercluster distance.

    Raises:
        ValueError: ``sample`` is not ``[item, dim]`` of finite numbers, or ``most`` is not 1 to the
            number of its items.
    """
    sample = _points("the sample", sample)
    most = len(sample) if most is None else most
    if not 1 <= most <= len(sample):
        raise ValueError(f"{most} balls for {len(sample)} items: give 1 to {len(sample)}.")
    centre = int(np.linalg.norm(sample - sample.mean(axis=0), axis=1).argmin())
    distance = np.full(len(sample), np.inf)
    found = []
    for clusters in range(1, most + 1):
        distance = np.minimum(distance, cdist(sample, sample[centre : centre + 1])[:, 0])
        farthest = int(distance.argmax())
        radius = float(distance[farthest])
        found.append(Covering(clusters, radius / 2, radius, centre))
        centre = farthest
    return found


def diameter(sample: Sample) -> float:
    """Largest distance of two items: of the sample, so at most that of the law's support.

    Raises:
        ValueError: ``sample`` is not ``[item, dim]`` of finite numbers.
    """
    return float(pdist(_points("the sample", sample)).max(initial=0.0))


@dataclass(frozen=True)
class Bound:
    """An upper bound on an expected Wasserstein-1 distance, in the unit of ``diameter``.

    ``valid``: those of the ``assumptions`` that the numbers can show are met.
    """

    value: float
    diameter: float
    valid: bool
    statement: str
    assumptions: str

    @property
    def vacuous(self) -> bool:
        """It exceeds the diameter, which bounds every such distance without any theory."""
        return self.value > self.diameter


def weed_bach_bound(
    clusters: int, radius: float, k: int, diameter: float = 1.0, samples: int = 2
) -> Bound:
    """``E W1 <= 12 D sqrt(n / k)`` of law and sample, ``24 D sqrt(n / k)`` of two samples.

    For samples of ``k <= n (D / (2 Delta))^2`` items of a law whose support has diameter D and is
    in n = ``clusters`` balls of radius Delta. The paper has D = 1; this is it with lengths in units
    of D. For two samples, each is compared with the law (triangle inequality). That is below D only
    for k > 576 n, and so only if Delta < D / 48; in a unit ball, D = 2, it reads 48 sqrt(n / k).

    Source: Weed and Bach (arXiv 1707.00087), Proposition 13 at p = 1, where ``9^p + 3 = 12``; as
    recalled; not verified against the paper. The step to two samples is ours.

    Args:
        clusters: n, the number of balls.
        radius: Delta.
        k: items in each sample.
        diameter: D of the support.
        samples: 2 for the k-variance, 1 for the distance of one sample from its law.

    Raises:
        ValueError: ``clusters`` or ``k`` is below 1, a length is negative or not finite, or
            ``samples`` is neither 1 nor 2.
    """
    _check_bound(clusters, radius, k, diameter, samples)
    return Bound(
        12 * samples * diameter * sqrt(clusters / k),
        diameter,
        bool(4 * k * radius**2 <= clusters * diameter**2),
        f"E W1 <= {12 * samples} D sqrt(n / k), {_BETWEEN[samples]} (Weed and Bach 2019, "
        "Proposition 13, p = 1; as recalled; not verified against the paper)",
        "support in n balls of radius Delta; independent items; k <= n (D / (2 Delta))^2",
    )


def cluster_bound(
    clusters: int, radius: float, k: int, diameter: float = 1.0, samples: int = 2
) -> Bound:
    """``E W1 <= 2 Delta + D sqrt((n - 1) / (2k))`` of two samples of any ``k`` items; with proof.

    Of law and sample, ``2 Delta + D / 2 sqrt((n - 1) / k)``. The support, of diameter D, is cut
    into n = ``clusters`` cells of diameter at most 2 Delta, such as parts of balls of radius Delta.
    Cell i has mass p_i in the law, S_i and S'_i in the samples.

    - Move the mass min(S_i, S'_i) within its cell, at most 2 Delta far, and the rest, which is
      ``sum |S_i - S'_i| / 2``, at most D far: ``W1 <= 2 Delta + D / 2 sum |S_i - S'_i|``.
    - ``E |S_i - S'_i| <= sqrt(Var(S_i - S'_i)) = sqrt(2 p_i (1 - p_i) / k)``; with the law's p_i in
      place of S'_i, without the 2.
    - Cauchy and Schwarz: ``sum sqrt(p_i (1 - p_i)) <= sqrt(n sum p_i (1 - p_i)) <= sqrt(n - 1)``,
      for ``sum p_i^2 >= 1 / n``.

    Source: ours, proved in 06_convergence.

    Args and raises: as ``weed_bach_bound``.
    """
    _check_bound(clusters, radius, k, diameter, samples)
    term = "D sqrt((n - 1) / (2k))" if samples == 2 else "D / 2 sqrt((n - 1) / k)"
    return Bound(
        2 * radius + diameter / 2 * sqrt(samples * (clusters - 1) / k),
        diameter,
        True,
        f"E W1 <= 2 Delta + {term}, {_BETWEEN[samples]} (proved in 06_convergence)",
        "support in n sets of diameter at most 2 Delta; independent items",
    )


@dataclass(frozen=True)
class NormalisedMargin:
    """``score`` is ``-margin / k_variance``: a complexity, lower is better."""

    score: float
    margin: float
    k_variance: float
    splits: int


def normalised_margin(
    margins: Float[np.ndarray, " item"],
    features: Sample,
    labels: Shaped[np.ndarray, " item"],
    splits: int = 20,
    seed: int = 0,
) -> NormalisedMargin:
    """Minus the median margin of a classifier, in units of the k-variance of what it reads.

    The k-variance is, per class, the mean ``wasserstein1`` of two random halves of floor(items / 2)
    each, and over classes the mean weighted by their items. Lower (more negative) foretells a
    smaller gap of training and test error; above 0, most items are misclassified. No interval:
    halves leave no item over, so their spread says nothing of other items; take other samples.

    Source: Chuang et al. (arXiv 2106.03314) and the official code, which has one split. Its
    kV-Margin also multiplies each class's part by a Lipschitz estimate, its kV-GN-Margin divides
    each margin by its gradient's norm; do the latter to ``margins`` beforehand if you want it.

    Args:
        margins: output for the true class less the largest other.
        features: what the classifier reads, of the same items.
        labels: true class of each item.
        splits: of each class.
        seed: of the splits.

    Raises:
        ValueError: not one finite margin and one label for each item of ``features``, a class of
            one item, no split, or features that coincide within every class.
    """
    features = _points("features", features)
    margins, labels = np.asarray(margins, dtype=np.float64), np.asarray(labels)
    n = len(features)
    if margins.shape != (n,) or labels.shape != (n,) or not np.isfinite(margins).all():
        raise ValueError(
            f"margins {margins.shape} and labels {labels.shape} of {n} items: give one finite "
            "margin and one label for each."
        )
    if splits < 1:
        raise ValueError(f"{splits} splits: give at least 1.")
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            f"class {classes[counts.argmin()]} has one item, which has no halves: add items of it "
            "or leave it out."
        )
    draw, spread = np.random.default_rng(seed), 0.0
    with tqdm(total=splits * len(classes), desc="matching", delay=2, leave=False) as bar:
        for label, count in zip(classes, counts, strict=True):
            costs = _split_costs(features[labels == label], count // 2, splits, draw, bar)
            spread += float(count / n * costs.mean())
    if spread == 0:
        raise ValueError("the features coincide within every class: nothing to measure margins by.")
    margin = float(np.median(margins))
    return NormalisedMargin(-margin / spread, margin, spread, splits)


def _points(what: str, values: Sample) -> np.ndarray:
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
    one, other = _points("the first sample", one), _points("the second sample", other)
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


def _split_costs(
    sample: np.ndarray, k: int, times: int, draw: np.random.Generator, bar: tqdm
) -> Float[np.ndarray, " times"]:
    """Distances of two random disjoint k-subsets of ``sample``."""
    costs = np.empty(times)
    for turn in range(times):
        order = draw.permutation(len(sample))
        costs[turn] = _cost(sample[order[:k]], sample[order[k : 2 * k]])
        bar.update()
    return costs


_BETWEEN = {1: "law and one sample of k items", 2: "two samples of k items"}


def _check_bound(clusters: int, radius: float, k: int, diameter: float, samples: int) -> None:
    if clusters < 1 or k < 1:
        raise ValueError(f"{clusters} clusters and k = {k}: give at least 1 of each.")
    for name, length in (("radius", radius), ("diameter", diameter)):
        if not (isfinite(length) and length >= 0):
            raise ValueError(f"the {name} is {length}; give a finite length, 0 or more.")
    if samples not in _BETWEEN:
        raise ValueError(f"samples is {samples}: 2 for the k-variance, 1 for law and sample.")
