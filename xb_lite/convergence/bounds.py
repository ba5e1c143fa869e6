"""What theory makes of transport between samples: coverings, bounds from them, and a margin.

A covering says how many balls of which radius hold a sample. Bounds take it, with the sample's
diameter, to an upper limit of an expected Wasserstein-1 distance; one that exceeds the diameter
says nothing, and is called vacuous. Lengths are in the unit of the states. Derived in
06_convergence; the distances themselves are in ``transport``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np
from jaxtyping import Float, Shaped
from scipy.spatial.distance import cdist, pdist

from xb_lite.convergence.transport import Sample, as_sample, matching_costs


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
    sample = as_sample("the sample", sample)
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
    return float(pdist(as_sample("the sample", sample)).max(initial=0.0))


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
    features = as_sample("features", features)
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
    spread = sum(
        float(
            count / n * matching_costs(features[labels == label], count // 2, splits, seed).mean()
        )
        for label, count in zip(classes, counts, strict=True)
    )
    if spread == 0:
        raise ValueError("the features coincide within every class: nothing to measure margins by.")
    margin = float(np.median(margins))
    return NormalisedMargin(-margin / spread, margin, spread, splits)


_BETWEEN = {1: "law and one sample of k items", 2: "two samples of k items"}


def _check_bound(clusters: int, radius: float, k: int, diameter: float, samples: int) -> None:
    if not (clusters >= 1 and k >= 1):  # neither is NaN
        raise ValueError(f"{clusters} clusters and k = {k}: give at least 1 of each.")
    for name, length in (("radius", radius), ("diameter", diameter)):
        if not (isfinite(length) and length >= 0):
            raise ValueError(f"the {name} is {length}; give a finite length, 0 or more.")
    if samples not in _BETWEEN:
        raise ValueError(f"samples is {samples}: 2 for the k-variance, 1 for law and sample.")
