"""Is it harm that is read, or only length or topic words? Subsets of items that are alike in these.

A subset keeps as many harmful items as others; every number of ``xb_lite.boundary`` and the modules
beside it can be computed on it again. Derived in 02_boundary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from xb_lite.boundary.probes import probe
from xb_lite.boundary.resampling import check_kinds

WORDS = 4096  # of the prompts, the commonest


def matched(
    values: Sequence[float] | np.ndarray, kinds: Sequence[str], other: str, tolerance: float = 0
) -> Int[np.ndarray, " kept"]:
    """Items of both kinds in equal number, each harmful one with an ``other`` of like value.

    As many couples as can be, none further apart than ``tolerance``. With token counts as values
    this is a length-matched subset. Numbers found on it are no longer due to length.

    Returns:
        Indices into ``kinds``, in rising order.

    Raises:
        ValueError: unequal lengths, a value that is not finite, a kind with fewer than two items,
            or fewer than two couples.
    """
    kinds, values = np.asarray(kinds, dtype=object), np.asarray(values, dtype=float)
    if values.shape != kinds.shape or not np.isfinite(values).all():
        raise ValueError(
            f"values of shape {values.shape} for {len(kinds)} kinds: one finite number an item."
        )
    check_kinds(kinds, ["harmful", other])
    order = np.argsort(values, kind="stable")
    one, two = (iter(order[kinds[order] == kind]) for kind in ("harmful", other))
    kept: list[int] = []
    i, j = next(one, None), next(two, None)
    # Whichever is smaller and finds no partner here has none further on either.
    while i is not None and j is not None:
        if abs(values[i] - values[j]) <= tolerance:
            kept += [i, j]
            i, j = next(one, None), next(two, None)
        elif values[i] < values[j]:
            i = next(one, None)
        else:
            j = next(two, None)
    if len(kept) < 4:
        raise ValueError(
            f"{len(kept) // 2} couples of harmful and {other} items within {tolerance:g}: at least "
            "2 are needed; allow a larger tolerance or bring more items."
        )
    return np.sort(np.array(kept))


def word_counts(prompts: Sequence[str]) -> Float[np.ndarray, "item word"]:
    """Which of the ``WORDS`` commonest words each prompt has, 0 or 1, to be probed in place of
    states.

    What a probe finds here is found in the words alone, by no model.

    Raises:
        ValueError: no word is in two prompts.
    """
    # Apostrophes stay: "don't" is one word.
    found = [set(re.findall(r"[\w']+", prompt.lower())) for prompt in prompts]
    count = Counter(word for of_one in found for word in of_one)
    kept = sorted(count, key=lambda word: (-count[word], word))[:WORDS]
    column = {word: i for i, word in enumerate(w for w in kept if count[w] > 1)}
    if not column:
        raise ValueError("no word is in two prompts: there is nothing for a probe to learn.")
    table = np.zeros((len(found), len(column)), dtype=np.float32)
    for row, of_one in zip(table, found, strict=True):
        row[[column[word] for word in of_one if word in column]] = 1
    return table


def word_matched(
    prompts: Sequence[str],
    kinds: Sequence[str],
    pairs: Sequence[int | None] | None = None,
    other: str = "boundary-safe",
    tolerance: float = 0.2,
    seed: int = 0,
) -> Int[np.ndarray, " kept"]:
    """Items of both kinds that their words do not tell apart.

    A probe of the words alone gives each item a margin, and each harmful item is kept with one of
    ``other`` of like margin: propensity-score matching (Rosenbaum and Rubin, 1983), with the usual
    caliper of 0.2 standard deviations (Austin, 2011). What a probe of states finds on this subset,
    it does not read off single words.

    Returns:
        Indices into ``prompts``, in rising order, as many of one kind as of the other.

    Raises:
        ValueError: as ``probe`` and ``matched``.
    """
    words = probe(word_counts(prompts), kinds, pairs, other, repeats=1, draws=1, seed=seed)
    return matched(words.margins, kinds, other, tolerance)
