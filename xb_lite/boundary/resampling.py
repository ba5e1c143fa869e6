"""What keeps a number about hidden states honest: its interval over items, and what chance gives.

A harmful prompt and its boundary-safe twin share their words, so they are one *group*: drawn
together by the bootstrap, on the same side of every split, swapped by the shuffled labels.
Used by ``probes``, ``separability``, ``angles`` and ``displacements``. Derived in
02_boundary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from xb_lite.corpora import KINDS
from xb_lite.results.stats import Estimate

States = Float[np.ndarray, "item dim"]
PerColumn = Float[np.ndarray, "item column"]
FOLDS = 5


@dataclass(frozen=True)
class Chance(Estimate):
    """What a number comes to under a control: the median of ``n`` repeats, their central 95 %.

    ``p`` is the share of repeats at least as large as the number itself, which counts as one.
    """

    p: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}], p = {self.p:.2g}"


@dataclass(frozen=True)
class Controlled(Estimate):
    """A number from ``n`` items, its 95 % bootstrap interval over items, and its controls.

    ``shuffled`` is the same number with the kinds shuffled, ``random`` along random directions;
    None where a control says nothing.
    """

    shuffled: Chance | None = None
    random: Chance | None = None


class Items(NamedTuple):
    """Checked input: ``states`` centred, in fp32 or fp64; ``groups`` counted from 0."""

    states: States
    kinds: np.ndarray
    groups: Int[np.ndarray, " item"]


def check_items(
    states: States,
    kinds: Sequence[str],
    pairs: Sequence[int | None] | None,
    needed: Sequence[str],
    others: bool = False,
    normalised: bool = False,
) -> Items:
    """The items of the kinds in ``needed``, and with ``others`` the rest too, checked and centred.

    With ``normalised`` every state is divided by its norm before that.

    Raises:
        ValueError: unequal lengths, an unknown kind, fewer than two items of a needed kind, a state
            that is not finite, one of norm 0 to normalise, or states that are all the same.
    """
    states, found = np.asarray(states), np.asarray(kinds, dtype=object)
    lengths = [len(found)] + ([] if pairs is None else [len(pairs)])
    if np.ndim(states) != 2 or {len(states)} != set(lengths):
        raise ValueError(
            f"states of shape {np.shape(states)}, with {' kinds and '.join(map(str, lengths))} "
            f"{'kinds' if pairs is None else 'pairs'}: every row of [item, dim] has one of each."
        )
    check_kinds(found, needed)
    check_finite(states)
    kept = np.flatnonzero(np.isin(found, list(needed)) | others)
    keys = [("alone", i) if pairs is None or pairs[i] is None else ("pair", pairs[i]) for i in kept]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    x = as_fp32(states[kept])  # a copy, by its indices
    if (x == x[0]).all():
        raise ValueError(
            "all states are the same: take them after a layer and at a token that sees the prompt."
        )
    if normalised:
        x /= norms_of(x, kept)[:, None]
    x -= x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    return Items(x, found[kept], np.array([number[key] for key in keys]))


def check_finite(states: States) -> None:
    """Raises ValueError where some are not."""
    bad = np.flatnonzero(~np.isfinite(states).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} states are not finite, the first of item {bad[0]}: leave such items out, "
            "or compute the states in a wider number format."
        )


def norms_of(states: States, numbers: Sequence[int] | None = None) -> Float[np.ndarray, " item"]:
    """Raises ValueError where one is 0; ``numbers`` are those of the items, for its words."""
    norms = np.linalg.norm(states, axis=1)
    if not norms.all():
        first = np.flatnonzero(norms == 0)[0]
        item = first if numbers is None else numbers[first]
        raise ValueError(f"item {item} has a state of norm 0, without direction: leave it out.")
    return norms


def check_scatter(variances: np.ndarray, states: States) -> None:
    """Raises ValueError where a variance within the kinds is no more than rounding of states."""
    # Of fp32 also where states are fp64: the weights of the items are in fp32.
    rounding = 8 * np.finfo(np.float32).eps * np.linalg.norm(states)
    if not np.all(variances > rounding**2 / len(states)):
        raise ValueError(
            "the states do not vary within their kinds along the direction that parts them, in all "
            "items or in a sample of the bootstrap: leave out items that repeat others."
        )


def as_fp32(states: States) -> States:
    """In fp32, or in fp64 if they are that: half precision is for storing, not for sums."""
    dtype = np.float64 if states.dtype == np.float64 else np.float32
    return states.astype(dtype, copy=False)


def check_kinds(kinds: np.ndarray, needed: Sequence[str]) -> None:
    """Raises ValueError for an unknown kind, and for fewer than two items of one in ``needed``."""
    count = Counter(kinds)
    unknown = [kind for kind in (*needed, *count) if kind not in KINDS]
    if unknown:
        raise ValueError(f"kind {unknown[0]!r:.60} is not one of {', '.join(KINDS)}.")
    if len(set(needed)) < len(needed):
        raise ValueError(f"{' and '.join(needed)}: the kinds to compare must differ.")
    for kind in needed:
        if count[kind] < 2:
            raise ValueError(
                f"{count[kind]} {kind} items: at least 2 are needed to tell a class from an item."
            )


def bootstrap(
    kinds: np.ndarray, groups: Int[np.ndarray, " item"], draws: int, seed: int
) -> Float[np.ndarray, "draw item"]:
    """How often each item is in each of ``draws`` samples, as fp32 weights.

    Whole groups are drawn with replacement. Those with the same kinds in them are drawn as often as
    there are of them, so that no sample lacks a kind.

    Raises:
        ValueError: no draws.
    """
    _check_count("draws", draws)
    draw = np.random.default_rng(seed)
    strata, groups = _strata(kinds, groups)
    weights = np.empty((draws, len(strata)), dtype=np.float32)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        shares = np.full(len(members), 1 / len(members))
        weights[:, members] = draw.multinomial(len(members), shares, draws)
    return weights[:, groups]


def deal(
    kinds: np.ndarray,
    groups: Int[np.ndarray, " item"],
    needed: Sequence[str],
    seed: int,
) -> Int[np.ndarray, " item"]:
    """A fold for each item: whole groups, dealt so that each fold has its share of every kind.

    Raises:
        ValueError: fewer than two groups a fold have a needed kind.
    """
    strata, groups = _strata(kinds, groups)
    for kind in needed:
        count = len(np.unique(groups[kinds == kind]))
        if count < 2 * FOLDS:
            raise ValueError(
                f"{count} {kind} items or pairs: at least {2 * FOLDS} are needed to hold some out."
            )
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    fold = np.empty(len(order), dtype=int)
    fold[order] = np.arange(len(order)) % FOLDS
    return fold[groups]


def shuffle(
    kinds: np.ndarray, groups: Int[np.ndarray, " item"], repeats: int, seed: int
) -> Bool[np.ndarray, "item repeat"]:
    """Which items are harmful: in column 0 in truth, in the others after shuffling two kinds.

    Members of a group of both kinds swap; groups of one kind swap with each other. So the shuffled
    labels keep what holds a group together, and lose only what they mean. As many items are harmful
    as in truth: where groups of one kind differ in size, one of them may be divided for that.

    Raises:
        ValueError: no repeats.
    """
    _check_count("repeats", repeats)
    draw = np.random.default_rng(seed)
    strata, groups = _strata(kinds, groups)
    harmful = kinds == "harmful"
    first = np.unique(groups, return_index=True)[1]
    by_group = np.argsort(groups, kind="stable")
    alone = np.isin(strata, 1 << np.arange(len(KINDS)))
    single = alone[groups]
    labels = np.repeat(harmful[:, None], 1 + repeats, axis=1)
    for column in labels.T[1:]:
        dice = draw.random(len(harmful))
        column[np.lexsort((dice, groups))] = harmful[by_group]
        of_group = harmful[first]
        of_group[alone] = draw.permutation(of_group[alone])
        # Group after group, those drawn as harmful first, until there are enough harmful items.
        order = np.lexsort((dice[first][groups], ~of_group[groups]))
        order = order[single[order]]
        column[order] = np.arange(len(order)) < harmful[single].sum()
    return labels


class Columns(NamedTuple):
    """How much each item counts, ``[item, column]`` in fp32, for harmful items (``one``) and for
    the other kind (``two``), and whatever its kind (``any_kind``).

    A number that is computed by column comes with its controls: column 0 is the truth, then come
    the shuffled labels, then the samples of the bootstrap.
    """

    one: PerColumn
    two: PerColumn
    any_kind: PerColumn


def columns(
    kinds: np.ndarray,
    groups: Int[np.ndarray, " item"],
    other: str,
    repeats: int,
    draws: int,
    seed: int,
) -> Columns:
    """The truth, ``repeats`` shuffles of harmful and ``other`` labels, and ``draws`` samples."""
    two = np.isin(kinds, ["harmful", other])
    labels = shuffle(kinds[two], groups[two], repeats, seed)
    harmful = np.zeros((len(kinds), 1 + repeats + draws), dtype=np.float32)
    harmful[two, : 1 + repeats] = labels
    harmful[two, 1 + repeats :] = labels[:, :1]
    weights = np.ones_like(harmful)
    weights[:, 1 + repeats :] = bootstrap(kinds, groups, draws, seed).T
    return Columns(weights * harmful, weights * (two[:, None] - harmful), weights)


def recentred(values: np.ndarray, repeats: int) -> np.ndarray:
    """Values by column, with the samples of the bootstrap moved to have the true value as mean.

    What is fitted to a sample that has some items twice and others never does a little worse on the
    rest; its scatter is that of the number, its mean is not.
    """
    drawn = values[1 + repeats :]
    return np.concatenate([values[: 1 + repeats], drawn - drawn.mean() + values[0]])


def estimate(values: np.ndarray, n: int, repeats: int, **controls: Chance) -> Controlled:
    """Of values by column, of ``n`` items: the truth, the samples' central 95 %, and shuffled."""
    shuffled = chance(values[0], values[1 : 1 + repeats])
    return interval(values[0], n, values[1 + repeats :], shuffled=shuffled, **controls)


def interval(value: float, n: int, draws: np.ndarray, **controls: Chance) -> Controlled:
    """``value`` with the central 95 % of the bootstrap's ``draws``."""
    low, high = _quantiles(draws, [0.025, 0.975])
    return Controlled(float(value), n, float(low), float(high), **controls)


def chance(value: float, repeats: np.ndarray) -> Chance:
    """``value`` against what it was in the ``repeats`` of a control."""
    low, middle, high = _quantiles(repeats, [0.025, 0.5, 0.975])
    p = (1 + np.count_nonzero(repeats >= value)) / (1 + len(repeats))
    return Chance(float(middle), len(repeats), float(low), float(high), float(p))


def random_directions(count: int, dim: int, seed: int) -> Float[np.ndarray, "direction dim"]:
    """Unit vectors, every direction as likely.

    Raises:
        ValueError: none are asked for.
    """
    _check_count("repeats", count)
    found = np.random.default_rng(seed).standard_normal((count, dim))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{count} {name}: at least 1 is needed, and hundreds for an interval.")


def _quantiles(values: np.ndarray, shares: list[float]) -> np.ndarray:
    # Not interpolated: a ratio may be infinite in some draws.
    return np.quantile(values, shares, method="inverted_cdf")


def _strata(
    kinds: np.ndarray, groups: Int[np.ndarray, " item"]
) -> tuple[Int[np.ndarray, " group"], Int[np.ndarray, " item"]]:
    """Which kinds each group has, as a number, and the groups counted from 0."""
    _, groups = np.unique(groups, return_inverse=True)
    has = np.zeros((groups.max() + 1, len(KINDS)), dtype=int)
    has[groups, [KINDS.index(kind) for kind in kinds]] = 1
    return has @ (1 << np.arange(len(KINDS))), groups
