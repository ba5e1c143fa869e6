"""The plane of the guard's probe: fitted to replies, its threshold set by false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import Ridge


@dataclass(frozen=True)
class Plane:
    """``normal`` ``[dim]`` and ``threshold`` at the states after decoder ``layer`` (from 0)."""

    layer: int
    normal: Float[np.ndarray, " dim"]
    threshold: float

    def scores(self, states: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, " n"]:
        """Signed distances from the origin along the normal."""
        return states @ self.normal


def fitted_plane(
    layer: int,
    bad: Float[np.ndarray, "n dim"],
    good: Float[np.ndarray, "m dim"],
    held_out: Sequence[Float[np.ndarray, "look dim"]],
    alarms: float = 0.02,
) -> Plane:
    """Fisher's linear discriminant, shrunk as in ``boundary.probe``, which weighs both sides alike
    whatever their numbers.

    Args:
        bad, good: states of training replies, also of their beginnings.
        held_out: of harmless replies that it is not fitted to, the states of every look that a
            guard takes at each.
        alarms: at most so large a share of ``held_out`` may have a look above the threshold: a
            guard looks several times, and one look is enough to end a reply.

    Raises:
        ValueError: a side has fewer than two states, nothing is held out, or ``alarms`` is not
            from 0 to 1.
    """
    if min(len(bad), len(good)) < 2 or not len(held_out) or not 0 <= alarms <= 1:
        raise ValueError(
            f"{len(bad)} and {len(good)} states, {len(held_out)} replies held out, alarms {alarms}:"
            " a plane needs two of each side, and replies to set its threshold by."
        )
    x = np.concatenate([bad, good]).astype(np.float64)
    x -= x.mean(0)
    toward = np.concatenate([np.full(len(bad), 1 / len(bad)), np.full(len(good), -1 / len(good))])
    penalty = max(float((x**2).sum()) / len(x), 1e-12)
    normal = Ridge(penalty, fit_intercept=False, solver="cholesky").fit(x, toward).coef_
    normal = (normal / max(np.linalg.norm(normal), 1e-12)).astype(np.float32)
    highest = [float((looks @ normal).max()) for looks in held_out]
    return Plane(layer, normal, float(np.quantile(highest, 1 - alarms, method="higher")))
