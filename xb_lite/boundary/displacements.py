"""How far a defense moves each kind of item: in all, and along and across the harmful direction.

Of the hidden states of one layer, ``[item, dim]``, of the same items in the same order before and
after: the reference model's and the defended model's. Derived in 02_boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from xb_lite.boundary.resampling import (
    Controlled,
    States,
    as_fp32,
    bootstrap,
    chance,
    check_finite,
    check_items,
    interval,
    norms_of,
    random_directions,
)

PerItem = Float[np.ndarray, " item"]


@dataclass(frozen=True)
class Moves:
    """The means of ``Displacement`` over the items of one kind.

    ``along.random`` is the absolute mean along random directions, against that of ``along``.
    """

    relative: Controlled
    cosine: Controlled
    along: Controlled
    across: Controlled


@dataclass(frozen=True)
class Displacement:
    """How far each item moved, in units of the norm of its own state before.

    ``relative`` is the length of the move (relative L2), ``along`` its signed part along the
    harmful direction, ``across`` the length of the rest, so that
    ``relative**2 == along**2 + across**2``; ``cosine`` is that of the states before and after.
    Items are in the order given. ``of`` has the means by kind.
    """

    relative: PerItem
    cosine: PerItem
    along: PerItem
    across: PerItem
    of: dict[str, Moves]
    kinds: np.ndarray
    groups: Int[np.ndarray, " item"]


def difference_in_means(
    states: States, kinds: Sequence[str], other: str = "boundary-safe"
) -> Float[np.ndarray, " dim"]:
    """Mean of the harmful states minus mean of the ``other``, not normalised, in their units.

    Raises:
        ValueError: as ``boundary.probe``, but two items of a kind are enough and may be the same.

    Source: Refusal is mediated by a single direction (arXiv 2406.11717), where it is taken from
    harmful and benign prompts; ``steering.refusal_direction`` runs the model for it.
    """
    x, kinds, _ = check_items(states, kinds, None, ["harmful", other])
    return _difference(x, kinds, other)


def displacement(
    before: States,
    after: States,
    kinds: Sequence[str],
    pairs: Sequence[int | None] | None = None,
    other: str = "boundary-safe",
    *,
    repeats: int = 100,
    draws: int = 1000,
    seed: int = 0,
) -> Displacement:
    """How far a defense moves each item, and each kind in the mean.

    Norms and cosines depend on the origin of the states, though not on their axes or unit.

    Args:
        before, after: states of the reference model and of the defended model.
        pairs: as in ``boundary.probe``.
        other: the harmful direction is from this kind's mean to that of the harmful items, before.
        repeats, draws: random directions of the control, and samples of the bootstrap.

    Raises:
        ValueError: as ``difference_in_means``; states after that are not of the same shape or not
            finite; a state of norm 0; or harmful and other means that are the same.
    """
    before, after = np.asarray(before), np.asarray(after)
    x, kinds, groups = check_items(before, kinds, pairs, ["harmful", other], others=True)
    if after.shape != before.shape:
        raise ValueError(
            f"states of shape {np.shape(before)} before and {np.shape(after)} after, which need "
            "the same items and dimensions."
        )
    check_finite(after)
    before, after = (as_fp32(states) for states in (before, after))
    norms, lengths = (norms_of(states) for states in (before, after))
    direction = _difference(x, kinds, other)
    if not direction.any():
        raise ValueError(f"harmful and {other} items have the same mean: there is no direction.")
    direction = (direction / np.linalg.norm(direction)).astype(before.dtype)

    moved = (after - before) / norms[:, None]
    along = moved @ direction
    per_item = {
        "relative": np.linalg.norm(moved, axis=1),
        "cosine": np.einsum("id,id->i", before, after) / (norms * lengths),
        "along": along,
        "across": np.linalg.norm(moved - along[:, None] * direction, axis=1),
    }
    anywhere = random_directions(repeats, len(direction), seed)
    of = {}
    for kind in dict.fromkeys(kinds):
        at = kinds == kind
        weights = bootstrap(kinds[at], groups[at], draws, seed)
        by_chance = np.abs(anywhere @ moved[at].mean(0, dtype=np.float64))
        controls = {"along": {"random": chance(abs(along[at].mean()), by_chance)}}
        of[kind] = Moves(
            **{
                name: interval(
                    values[at].mean(),
                    int(at.sum()),
                    weights @ values[at] / weights.sum(1),
                    **controls.get(name, {}),
                )
                for name, values in per_item.items()
            }
        )
    return Displacement(**per_item, of=of, kinds=kinds, groups=groups)


def times_as_far(
    one: Displacement,
    other: Displacement,
    kind: str = "boundary-safe",
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Controlled:
    """How many times as far ``one`` moves the items of ``kind`` as ``other`` does.

    The ratio of the means of ``relative``. Both are of the same items, which the bootstrap draws
    for both at once.

    Raises:
        ValueError: they are not of the same items, have none of this kind, or ``other`` moves none.
    """
    same = np.array_equal(one.kinds, other.kinds) and np.array_equal(one.groups, other.groups)
    at = one.kinds == kind
    if not same or not at.any():
        raise ValueError(f"a ratio needs two displacements of the same items, {kind} among them.")
    upper, lower = one.relative[at], other.relative[at]
    if not lower.any():
        raise ValueError(f"the second defense moves no {kind} item: there is no ratio to it.")
    weights = bootstrap(one.kinds[at], one.groups[at], draws, seed)
    with np.errstate(divide="ignore"):  # a draw of items that did not move: infinitely far
        drawn = (weights @ upper) / (weights @ lower)
    return interval(upper.mean() / lower.mean(), int(at.sum()), drawn)


def _difference(x: States, kinds: np.ndarray, other: str) -> Float[np.ndarray, " dim"]:
    to, origin = (x[kinds == kind].mean(0, dtype=np.float64) for kind in ("harmful", other))
    return to - origin
