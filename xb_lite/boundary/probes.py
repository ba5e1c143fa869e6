"""Can a plane part harmful items from boundary-safe or benign ones, and on which side do these lie?

Everything is about the hidden states of one layer, ``[item, dim]``, with a kind for each item
(``"harmful"``, ``"boundary-safe"`` or ``"benign"``) and, where there are twins, the number of its
pair; loop over layers, and over defended and reference model. Every number comes with its interval
over items and with what shuffled labels give (see ``resampling``). None depends on the axes,
the origin or the unit of the states, so layers and models can be compared, unless it says so.

``separability`` has distances between the kinds, ``angles`` angles,
``displacements`` what a defense does to them, and ``matching`` subsets of items that
neither length nor words tell apart. Ten thousand states of 4,096 dimensions take
all of these under a minute on two cores, with nothing quadratic in the number of states in memory
(``benchmarks/boundary.py``). Derived in 02_boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import Ridge

from xb_lite.boundary.resampling import (
    FOLDS,
    Columns,
    Controlled,
    PerColumn,
    States,
    check_items,
    check_scatter,
    columns,
    deal,
    estimate,
    interval,
    recentred,
)


@dataclass(frozen=True)
class Probe:
    """How well a plane parts harmful items from another kind, on items it was not fitted to.

    ``accuracy`` is the mean of the two kinds' shares on their own side: 0.5 is chance, whatever
    their numbers. ``margins`` are the signed distances of all items to the plane, in the order
    given, positive on the harmful side, in units of the two kinds' standard deviation across the
    plane. ``boundary_margin`` is their mean over the boundary-safe items and ``boundary_crossed``
    the share of these on the harmful side; None where there are none.
    """

    accuracy: Controlled
    auc: Controlled
    margins: Float[np.ndarray, " item"]
    boundary_margin: Controlled | None
    boundary_crossed: Controlled | None


def probe(
    states: States,
    kinds: Sequence[str],
    pairs: Sequence[int | None] | None = None,
    other: str = "boundary-safe",
    *,
    repeats: int = 100,
    draws: int = 1000,
    seed: int = 0,
) -> Probe:
    """A linear probe of harmful items against ``other``, held out in five folds.

    States are centred and scaled to a mean squared norm of 1 by their training folds; standardising
    every dimension by itself would make the answer depend on the axes. The probe is scikit-learn's
    ridge regression of the labels with penalty 1, which is Fisher's linear discriminant with a
    covariance that is shrunk the less the more items there are; the plane lies midway between the
    training means. One factorisation of the covariance, or of the items' products where they are
    fewer than dimensions, serves all labels at once: the true, the shuffled, and those weighted by
    each sample of the bootstrap, which so fits a probe of its own. (Intervals of one fitted probe
    are too narrow, as they leave out what other training items would change.) A logistic regression
    would have to be fitted a thousand times; on the book's prompts it is no more accurate.

    Args:
        pairs: as in ``corpora.Prompt.pair``; items of one pair are never on both sides of a split
            and are drawn together by the bootstrap. None: every item by itself.
        other: the kind to part from harmful items. Those of the third kind, if any, only get a
            margin, by the probe that their pair is held out from.
        repeats, draws: repeats of the control, and samples of the bootstrap.

    Raises:
        ValueError: unequal lengths, an unknown kind, fewer than ten items or pairs of either
            kind, or states that are not finite or all the same, or do not vary within the kinds, as
            where items repeat others.

    Source: Alain and Bengio (arXiv 1610.01644) for probes of layers; Hewitt and Liang
    (arXiv 1909.03368) for controls of them.
    """
    x, kinds, groups = check_items(states, kinds, pairs, ["harmful", other], others=True)
    fold = deal(kinds, groups, ["harmful", other], seed)
    sides = columns(kinds, groups, other, repeats, draws, seed)
    scores = np.empty(sides.one.shape, dtype=x.dtype)
    two_kinds = np.isin(kinds, ["harmful", other])
    for held_out in (fold == f for f in range(FOLDS)):
        scores[held_out] = _distances_to_planes(x, sides, two_kinds & ~held_out, held_out)

    one, two, weights = sides
    right = _means(scores > 0, one) + _means(scores <= 0, two)
    accuracy, auc = (recentred(values, repeats) for values in (right / 2, _auc(scores, one, two)))
    variance = sum(scores[kinds == kind, 0].var(ddof=1) for kind in ("harmful", other)) / 2
    check_scatter(variance, x)
    scores /= np.sqrt(variance)

    at = kinds == "boundary-safe"
    margin = crossed = None
    if at.any():
        margin, crossed = (
            recentred(_means(values, weights[at]), repeats)
            for values in (scores[at], scores[at] > 0)
        )
        margin = interval(margin[0], int(at.sum()), margin[1 + repeats :])
        crossed = interval(crossed[0], int(at.sum()), crossed[1 + repeats :].clip(0, 1))
    n = int(two_kinds.sum())
    return Probe(
        estimate(accuracy.clip(0, 1), n, repeats),
        estimate(auc.clip(0, 1), n, repeats),
        scores[:, 0].astype(np.float64),
        margin,
        crossed,
    )


def _distances_to_planes(
    x: States, sides: Columns, train: Bool[np.ndarray, " item"], held_out: Bool[np.ndarray, " item"]
) -> Float[np.ndarray, "held_out column"]:
    """Signed distances of the held-out items to the planes fitted to the training items."""
    fitted_to = x[train]
    centre = fitted_to.mean(0, dtype=np.float64).astype(x.dtype)
    fitted_to -= centre
    mean_square = max(float(np.vdot(fitted_to, fitted_to)) / len(fitted_to), np.finfo(x.dtype).tiny)
    # At least 1: a sample of few items may have none of a class to train on.
    means = [side[train] / np.maximum(side[train].sum(0), 1) for side in sides[:2]]
    # The right-hand sides are differences of class means, so classes count alike however large.
    model = Ridge(mean_square, fit_intercept=False, solver="cholesky")
    normals = model.fit(fitted_to, (means[0] - means[1]).astype(x.dtype)).coef_.T
    normals /= np.maximum(np.linalg.norm(normals, axis=0), np.finfo(x.dtype).tiny)
    midway = ((fitted_to @ normals) * (means[0] + means[1])).sum(0) / 2
    return (x[held_out] - centre) @ normals - midway


def _means(values: np.ndarray, weights: PerColumn) -> Float[np.ndarray, " column"]:
    return (values * weights).sum(0, dtype=np.float64) / weights.sum(0, dtype=np.float64)


def _auc(scores: PerColumn, one: PerColumn, two: PerColumn) -> Float[np.ndarray, " column"]:
    """By column: how often an item of ``one`` scores higher than one of ``two``, ties by half."""
    found = np.empty(scores.shape[1])
    for column, (score, up, down) in enumerate(zip(scores.T, one.T, two.T, strict=True)):
        order = np.argsort(score)
        score, up, down = score[order], up[order], down[order]
        below = np.concatenate([[0], np.cumsum(down, dtype=np.float64)])
        passed = below[np.searchsorted(score, score)]
        tied = below[np.searchsorted(score, score, side="right")] - passed
        found[column] = (up * (passed + tied / 2)).sum() / (up.sum() * below[-1])
    return found
