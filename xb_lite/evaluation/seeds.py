"""Two arms over several training seeds: how far other seeds, and other items too, would move the
difference, and what may be said of it. Used in the report on X-Boundary and circuit breakers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from xb_lite.results.stats import Estimate, mean_of_runs

NEAR = 0.05  # within five points of zero a difference is called absent


def gap_over_seeds(
    ones: Sequence[Mapping[str, float]],
    others: Sequence[Mapping[str, float]],
    *,
    level: float = 0.95,
) -> Estimate:
    """Mean difference ``one - other`` of the arms' rates, with Student's interval over seeds.

    Args:
        ones, others: of each arm ``item_rates`` of one seed each, in the same order of seeds: a
            seed decides the order of the items and the start of LoRA in both arms.
        level: of the interval, e.g. 0.99 for one of five comparisons that hold together at 95 %.

    Raises:
        ValueError: see ``gap_over_seeds_and_items``.
    """
    return mean_of_runs(_gains(ones, others).mean(1), level)


def gap_over_seeds_and_items(
    ones: Sequence[Mapping[str, float]],
    others: Sequence[Mapping[str, float]],
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Mean difference ``one - other``, with the interval of a bootstrap that draws seeds, then
    items, each with replacement and for both arms alike.

    With few seeds the interval is too narrow; see that of ``gap_over_seeds`` beside it.

    Args:
        ones, others, level: as in ``gap_over_seeds``.
        draws, seed: of the bootstrap.

    Raises:
        ValueError: the arms are not of the same number of seeds, or not of the same items.
    """
    gains = _gains(ones, others)
    draw, (seeds, items) = np.random.default_rng(seed), gains.shape
    of_seed = draw.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    of_item = draw.multinomial(items, np.full(items, 1 / items), draws) / items
    means = np.einsum("ds,si,di->d", of_seed, gains, of_item, optimize=True)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(gains.mean()), items, float(low), float(high))


def finding(at_95: Estimate, at_99: Estimate) -> str:
    """``"present"`` where the interval at 99 % is on one side of zero, ``"absent"`` where that at
    95 % lies within five points of zero, and ``"open"`` otherwise.

    Example:
        >>> finding(Estimate(-0.2, 260, -0.3, -0.1), Estimate(-0.2, 260, -0.35, -0.05))
        'present'
    """
    if at_99.low > 0 or at_99.high < 0:
        return "present"
    return "absent" if at_95.low > -NEAR and at_95.high < NEAR else "open"


def _gains(
    ones: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]
) -> np.ndarray:
    """Differences ``[seed, item]``."""
    if len(ones) != len(others) or not len(ones):
        raise ValueError(f"{len(ones)} and {len(others)} seeds: arms are compared seed by seed.")
    names = list(ones[0])
    if any(rates.keys() != ones[0].keys() for rates in (*ones, *others)):
        raise ValueError("every seed of both arms needs the same items.")
    return np.array(
        [
            [one[name] - other[name] for name in names]
            for one, other in zip(ones, others, strict=True)
        ]
    )
