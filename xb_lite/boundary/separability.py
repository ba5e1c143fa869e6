"""How far apart harmful items and other kinds lie, by their centroids and their scatter.

Of the hidden states of one layer, ``[item, dim]``, as in ``xb_lite.boundary``; only
``published_scores`` depends on their origin. Derived in 02_boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from xb_lite.boundary.resampling import (
    FOLDS,
    Columns,
    Controlled,
    PerColumn,
    States,
    chance,
    check_items,
    check_scatter,
    columns,
    deal,
    estimate,
    random_directions,
    recentred,
)

ByColumn = Float[np.ndarray, " column"]
BLOCK = 512  # states whose distances to all others are held at once


@dataclass(frozen=True)
class Separation:
    """How far apart harmful items and another kind lie; about 0 where there is no difference.

    With the means m and covariances S of the two kinds:

    - ``fisher_trace``: |m1 - m2|^2 / (tr S1 + tr S2), over all dimensions.
    - ``fisher_direction``: the same along one direction, (mean1 - mean2)^2 / (var1 + var2) of the
      held-out items' projections on the difference of the other items' means; negative where it
      points the wrong way.
    - ``distance``: |m1 - m2| / sqrt((tr S1 + tr S2) / 2), the root of twice ``fisher_trace``.
    - ``silhouette``: the mean over items of (b - a) / max(a, b), with their mean Euclidean distance
      a to their own kind and b to the other, without their pair (Rousseeuw, 1987); at most 1.

    The first and third may come out below 0, where the means lie closer than noise alone puts them.
    """

    fisher_trace: Controlled
    fisher_direction: Controlled
    distance: Controlled
    silhouette: Controlled


@dataclass(frozen=True)
class PublishedScores:
    """The two numbers of the DeepScan diagnostic, from the centroids C of the three kinds.

    ``separation_score`` is |C_benign - C_harmful| and ``boundary_ratio`` is
    |C_boundary-safe - C_benign| / |C_boundary-safe - C_harmful|: below 1 where boundary-safe items
    lie nearer to benign ones. ``as_printed`` are the same two without the correction for noise, as
    the original script has them (it does not normalise).
    """

    separation_score: Controlled
    boundary_ratio: Controlled
    as_printed: tuple[float, float]


def separation(
    states: States,
    kinds: Sequence[str],
    pairs: Sequence[int | None] | None = None,
    other: str = "boundary-safe",
    *,
    repeats: int = 100,
    draws: int = 1000,
    seed: int = 0,
) -> Separation:
    """How far apart harmful items and ``other`` lie, in units of how far each kind scatters.

    The squared distance of two sample means is too large by the noise of both, in 4,096 dimensions
    by much; what the bootstrap adds to it is therefore taken off. All shuffled labels and all
    samples of the bootstrap are columns of one product of matrices, and distances between items are
    computed in blocks, exactly. Beside the shuffled labels, ``fisher_direction`` is also taken
    along ``repeats`` random directions, without regard to sign.

    Args:
        pairs: as in ``boundary.probe``.
        repeats, draws: repeats of each control, and samples of the bootstrap.

    Raises:
        ValueError: as ``boundary.probe``.

    Source: Fisher (1936); Fukunaga, Introduction to Statistical Pattern Recognition (1990), ch. 10.
    """
    x, kinds, groups = check_items(states, kinds, pairs, ["harmful", other])
    fold = deal(kinds, groups, ["harmful", other], seed)
    sides = columns(kinds, groups, other, repeats, draws, seed)
    one, two = sides.one, sides.two

    means, traces = zip(*(_mean_and_trace(x, side) for side in (one, two)), strict=True)
    gaps = _squares(means[0] - means[1])
    noise = _noise(gaps, repeats)
    gaps = _without(gaps, noise, noise, repeats)
    direction = recentred(_fisher(_held_out_projections(x, sides, fold), one, two, x), repeats)
    trace = recentred(gaps / sum(traces), repeats)
    anywhere = x @ random_directions(repeats, x.shape[1], seed).astype(x.dtype).T
    random = np.abs(_fisher(anywhere, one[:, :1], two[:, :1], x))
    return Separation(
        estimate(trace, len(x), repeats),
        estimate(direction, len(x), repeats, random=chance(direction[0], random)),
        estimate(_root(2 * trace), len(x), repeats),
        estimate(recentred(_silhouettes(x, groups, sides), repeats), len(x), repeats),
    )


def published_scores(
    states: States,
    kinds: Sequence[str],
    pairs: Sequence[int | None] | None = None,
    *,
    normalised: bool = True,
    repeats: int = 100,
    draws: int = 1000,
    seed: int = 0,
) -> PublishedScores:
    """The separation score and the boundary ratio of DeepScan, corrected for noise.

    The control shuffles harmful and benign labels: about 0 for the score and 1 for the ratio, which
    is infinite where boundary-safe items are no further from harmful ones than noise alone puts
    them.

    Args:
        pairs: as in ``boundary.probe``.
        normalised: every state is divided by its norm first, as norms differ between layers and
            models; the score is then between 0 and 2. Without, it is in the states' own unit, as in
            the original script.
        repeats, draws: as in ``separation``.

    Raises:
        ValueError: as ``boundary.probe``, but two items of each of the three kinds are enough and
            may be the same; or a state of norm 0 to normalise.

    Source: ``deepscan/evaluators/xboundary.py`` of AI45Lab/DeepScan, which pools states by their
    mean over all tokens of prompt and answer, at layers L // 3 and 2 * L // 3.
    """
    needed = ["harmful", "boundary-safe", "benign"]
    x, kinds, groups = check_items(states, kinds, pairs, needed, normalised=normalised)
    one, two, weights = columns(kinds, groups, "benign", repeats, draws, seed)
    between = weights * (kinds == "boundary-safe")[:, None]
    harmful, benign, boundary = (_mean_and_trace(x, side)[0] for side in (one, two, between))

    plain = [_squares(a - b) for a, b in ((benign, harmful), (boundary, benign))]
    plain.append(_squares(boundary - harmful))
    noise = [_noise(gaps, repeats) for gaps in plain]
    # Of shuffled items as many are twins of boundary-safe ones, whose noise they share, in one
    # class as in the other.
    mixed = [noise[0], (noise[1] + noise[2]) / 2, (noise[1] + noise[2]) / 2]
    score, to_benign, to_harmful = map(_without, plain, noise, mixed, [repeats] * 3)
    return PublishedScores(
        estimate(np.sqrt(score.clip(0)), len(x), repeats),
        estimate(_ratio(to_benign, to_harmful), len(x), repeats),
        (float(np.sqrt(plain[0][0])), float(_ratio(*plain[1:])[0])),
    )


def _root(squared: np.ndarray) -> np.ndarray:
    """Keeps the sign: an estimate of a squared distance may fall below 0."""
    return np.sign(squared) * np.sqrt(np.abs(squared))


def _ratio(upper: ByColumn, lower: ByColumn) -> ByColumn:
    """Of two squared distances, the roots."""
    upper, lower = upper.clip(0), lower.clip(0)
    return np.sqrt(np.divide(upper, lower, out=np.full_like(upper, np.inf), where=lower > 0))


def _squares(rows: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, " row"]:
    return np.square(rows).sum(1, dtype=np.float64)


def _noise(gaps: ByColumn, repeats: int) -> float:
    """What noise adds to a squared distance of means: as much as the bootstrap adds once more."""
    return gaps[1 + repeats :].mean() - gaps[0]


def _without(gaps: ByColumn, noise: float, of_shuffled: float, repeats: int) -> ByColumn:
    """It is in the truth and in shuffled labels once, in the bootstrap's samples twice."""
    less = np.full_like(gaps, 2 * noise)
    less[0], less[1 : 1 + repeats] = noise, of_shuffled
    return gaps - less


def _mean_and_trace(x: States, side: PerColumn) -> tuple[Float[np.ndarray, "column dim"], ByColumn]:
    """Of the weighted items by column: their mean, and their variances summed over dimensions."""
    n = side.sum(0, dtype=np.float64)
    mean = side.T.astype(x.dtype) @ x / n[:, None].astype(x.dtype)
    return mean, (_squares(x) @ side / n - _squares(mean)) * n / (n - 1)


def _held_out_projections(x: States, sides: Columns, fold: Int[np.ndarray, " item"]) -> PerColumn:
    """On the unit difference of the means of the other folds."""
    found = np.empty(sides.one.shape, dtype=x.dtype)
    both = [side.astype(x.dtype) for side in (sides.one, sides.two)]
    sums = [side.T @ x for side in both]
    for here in (fold == f for f in range(FOLDS)):
        # At least 1: a sample of few items may have none of a class in the other folds.
        to, origin = (
            (whole - side[here].T @ x[here]) / np.maximum(side[~here].sum(0), 1)[:, None]
            for whole, side in zip(sums, both, strict=True)
        )
        unit = to - origin
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(x.dtype).tiny)
        found[here] = x[here] @ unit.T
    return found


def _fisher(
    along: Float[np.ndarray, "item column"],
    one: Float[np.ndarray, "item _"],
    two: Float[np.ndarray, "item _"],
    states: States,
) -> ByColumn:
    """Signed squared gap over the sum of variances, of each column of projections of ``states``."""
    along = along.astype(np.float64)
    means, variance = [], 0.0
    for weights in (one, two):
        n = weights.sum(0)
        means.append((weights * along).sum(0) / n)
        variance = variance + (weights * (along - means[-1]) ** 2).sum(0) / (n - 1)
    check_scatter(variance, states)
    gap = means[0] - means[1]
    return np.sign(gap) * gap**2 / variance


def _silhouettes(x: States, groups: Int[np.ndarray, " item"], sides: Columns) -> ByColumn:
    both = [side.astype(x.dtype) for side in (sides.one, sides.two)]
    of_group = np.zeros((2, groups.max() + 1, both[0].shape[1]), dtype=x.dtype)
    for sums, side in zip(of_group, both, strict=True):
        np.add.at(sums, groups, side)
    squares, found = _squares(x).astype(x.dtype), 0.0
    for start in range(0, len(x), BLOCK):
        here = slice(start, start + BLOCK)
        distances = squares[here, None] + squares - 2 * x[here] @ x.T
        np.sqrt(np.maximum(distances, 0, out=distances), out=distances)
        # An item itself and its twin count as no neighbours: they are near for another reason.
        distances[groups[here, None] == groups] = 0
        to_one, to_two = (
            distances @ side / np.maximum(side.sum(0) - sums[groups[here]], np.finfo(x.dtype).tiny)
            for side, sums in zip(both, of_group, strict=True)
        )
        larger = np.maximum(np.maximum(to_one, to_two), np.finfo(x.dtype).tiny)
        nearer_one = (to_two - to_one) / larger
        found = found + (nearer_one * (both[0][here] - both[1][here])).sum(0, dtype=np.float64)
    return found / sides.any_kind.sum(0)
