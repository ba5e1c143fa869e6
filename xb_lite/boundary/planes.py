"""One plane between harmful items and others: fitted once, and judged on items of another split.

``probes.probe`` fits in folds, for a corpus that has no splits; this is its plane for one that has.
Derived in 02_boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from xb_lite.boundary.resampling import States
from xb_lite.results.stats import Estimate


@dataclass(frozen=True)
class Plane:
    """A plane through states ``[dim]``: its unit ``normal`` points to the harmful side, and it lies
    ``midway`` along that from the origin."""

    normal: Float[np.ndarray, " dim"]
    midway: float

    def scores(self, states: States) -> Float[np.ndarray, " item"]:
        """The signed distance of each state to the plane, positive on the harmful side."""
        return np.asarray(states, dtype=np.float64) @ self.normal - self.midway


def fit_plane(states: States, harmful: Bool[np.ndarray, " item"]) -> Plane:
    """The plane of ``probes.probe``, fitted to all of these items.

    The direction is the difference of the two means, divided by the covariance of all items to
    which trace / n is added on the diagonal (ridge regression with penalty 1 on states of mean
    squared norm 1). The plane lies midway between the means.

    Args:
        states: ``[item, dim]``.
        harmful: of each item whether it is; the others are the other kind.

    Raises:
        ValueError: unequal lengths, one of the two kinds is missing, states that are not finite or
            in which the two kinds have the same mean.
    """
    x, harmful = np.asarray(states, dtype=np.float64), np.asarray(harmful, dtype=bool)
    if x.ndim != 2 or harmful.shape != x.shape[:1]:
        raise ValueError(
            f"states of shape {x.shape} and labels of shape {harmful.shape}: every row of "
            "[item, dim] has one label."
        )
    if harmful.all() or not harmful.any():
        raise ValueError("a plane needs harmful items and others; there is one kind only.")
    if not np.isfinite(x).all():
        raise ValueError("some states are not finite: leave such items out.")
    means = [x[side].mean(axis=0) for side in (harmful, ~harmful)]
    rounding = 8 * np.finfo(np.float64).eps * np.linalg.norm(x) / len(x) ** 0.5
    if np.linalg.norm(means[0] - means[1]) <= rounding:
        raise ValueError("the two kinds have the same mean: no plane lies between them.")
    centred = x - x.mean(axis=0)
    covariance = centred.T @ centred / len(x)
    covariance += np.trace(covariance) / len(x) * np.eye(x.shape[1])
    normal = np.linalg.solve(covariance, means[0] - means[1])
    normal /= np.linalg.norm(normal)
    return Plane(normal, float((means[0] + means[1]) @ normal / 2))


def area(
    scores: Float[np.ndarray, " item"],
    harmful: Bool[np.ndarray, " item"],
    pairs: Sequence[int | None] | None = None,
    minus: Float[np.ndarray, " item"] | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The area under the ROC curve of these scores, with a 95 % interval over items.

    It is the share of all pairs of a harmful and another item in which the harmful one scores
    higher, ties counting half. The interval is of scores that are fixed: it says what other *test*
    items would change, not what other training items would. A kind that is there with a single
    item, or in a single pair, says nothing of others: the interval is then all of 0 to 1, or of -1
    to 1 for a difference.

    Args:
        pairs: as in ``corpora.Prompt.pair``: items of one pair are drawn together by the bootstrap.
        minus: scores of another probe for the same items; then the result is by how much the area
            is larger than theirs, item by item.

    Raises:
        ValueError: unequal lengths, one of the two kinds is missing, or a score is not finite.
    """
    harmful = np.asarray(harmful, dtype=bool)
    lists = [scores, harmful, pairs, minus]
    if len({len(values) for values in lists if values is not None}) != 1:
        raise ValueError("scores, labels, pairs and the other scores are of the same items.")
    if harmful.all() or not harmful.any():
        raise ValueError("an area needs harmful items and others; there is one kind only.")
    if not all(np.isfinite(values).all() for values in (scores, minus) if values is not None):
        raise ValueError("some scores are not finite: leave such items out.")
    wins = _wins(scores, harmful) - (0 if minus is None else _wins(minus, harmful))
    keys = [
        ("item", i) if pairs is None or pairs[i] is None else ("pair", pairs[i])
        for i in range(len(harmful))
    ]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    group = np.array([number[key] for key in keys])
    value = float(wins.mean())
    if min(len(set(group[side])) for side in (harmful, ~harmful)) == 1:
        return Estimate(value, len(harmful), 0.0 if minus is None else -1.0, 1.0)
    dice = np.random.default_rng(seed)
    found = []
    while len(found) < draws:
        drawn = np.bincount(dice.integers(len(number), size=len(number)), minlength=len(number))
        one, other = (drawn[group[side]] for side in (harmful, ~harmful))
        if one.any() and other.any():
            found.append(one @ wins @ other / (one.sum() * other.sum()))
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(value, len(harmful), float(low), float(high))


def _wins(scores: np.ndarray, harmful: np.ndarray) -> Float[np.ndarray, "harmful other"]:
    scores = np.asarray(scores, dtype=np.float64)
    gap = scores[harmful][:, None] - scores[~harmful]
    return (gap > 0) + 0.5 * (gap == 0)
