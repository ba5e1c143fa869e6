"""Do two kinds of items vary in the same directions? Principal angles between their subspaces.

Of the hidden states of one layer, ``[item, dim]``, as in ``xb_lite.boundary``. Derived in
02_boundary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA

from xb_lite.boundary.resampling import Controlled, States, chance, check_items, columns


def principal_angles(
    states: States,
    kinds: Sequence[str],
    pairs: Sequence[int | None] | None = None,
    other: str = "boundary-safe",
    rank: int = 10,
    *,
    repeats: int = 100,
    draws: int = 1000,
    seed: int = 0,
) -> list[Controlled]:
    """Angles in degrees, smallest first, between what harmful items and ``other`` vary in.

    Of each kind the subspace of its first ``rank`` principal components, about its own mean: 0 is a
    shared direction, 90 one of its own. Noise alone opens angles, so compare with ``shuffled``: the
    angles between two mixtures of both kinds, of the same sizes. The interval is 1.96 standard
    deviations of the bootstrap to either side, since its samples open the angles further than the
    items do. Samples and shuffled labels are taken within the first ``3 * rank`` components of both
    kinds.

    Raises:
        ValueError: as ``boundary.probe``, but for items that repeat others and the number of
            items: the rank is at least 1, at most the number of dimensions, a third of the items
            of either kind and the number of directions that either varies in.

    Source: Björck and Golub (1973), Numerical methods for computing angles between linear
    subspaces.
    """
    x, kinds, groups = check_items(states, kinds, pairs, ["harmful", other])
    sides = [kinds == "harmful", kinds == other]
    fewest = min(side.sum() for side in sides)
    if not 1 <= rank <= min(fewest // 3, x.shape[1]):
        raise ValueError(
            f"rank {rank} of {x.shape[1]} dimensions and {fewest} items of a kind: it is at least "
            "1, at most the dimensions and a third of the items."
        )
    axes = []
    for kind, side in zip(("harmful", other), sides, strict=True):
        rounding = 8 * np.finfo(np.float32).eps * np.linalg.norm(x[side])
        x[side] -= x[side].mean(0, dtype=np.float64).astype(x.dtype)
        found = _components(x[side], min(3 * rank, fewest - 1, x.shape[1]), seed)
        if found.singular_values_[rank - 1] <= rounding:
            raise ValueError(f"{kind} items vary in fewer than {rank} directions: lower the rank.")
        axes.append(found.components_)
    within = x @ np.linalg.qr(np.concatenate(axes).T)[0]

    def angles(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        spans = [_span(within, weights, rank) for weights in (one, two)]
        cosines = np.linalg.svd(spans[0].T @ spans[1], compute_uv=False)
        return np.degrees(np.arccos(np.minimum(cosines, 1)))

    one, two, _ = columns(kinds, groups, other, repeats, draws, seed)
    by_column = np.array([angles(*weights) for weights in zip(one.T, two.T, strict=True)])
    values, shuffled, drawn = np.split(by_column, [1, 1 + repeats])
    half = 1.96 * drawn.std(0)
    ends = np.clip([values[0] - half, values[0] + half], 0, 90)
    return [
        Controlled(float(value), len(x), float(low), float(high), chance(value, by_chance))
        for value, low, high, by_chance in zip(values[0], *ends, shuffled.T, strict=True)
    ]


def _components(x: States, count: int, seed: int) -> PCA:
    # Exact where that is cheap: the randomised ones are near, and near is no known angle.
    solver = "full" if min(x.shape) <= 1000 else "randomized"
    return PCA(count, svd_solver=solver, random_state=seed).fit(x)


def _span(x: States, weights: Float[np.ndarray, " item"], rank: int) -> np.ndarray:
    """The first principal components of weighted items, ``[dim, rank]``."""
    at = weights > 0
    x, weights = x[at], weights[at].astype(x.dtype)[:, None]
    x = (x - (weights * x).sum(0) / weights.sum()) * np.sqrt(weights)
    return np.linalg.eigh(x.T @ x)[1][:, -rank:]
