"""Defenses side by side: rates over several seeds, and differences on the same items.

Seeds are not items: an item that three seeds of a defense are asked is one item, with the share of
the seeds as its value. So intervals say what other items would change, not other seeds.
Used in 05_training and 07_intention_analysis.
"""

from __future__ import annotations

from collections.abc import Sequence

from xb_lite.evaluation.outcomes import Outcome
from xb_lite.evaluation.summary import verdicts
from xb_lite.results.stats import Estimate, mean_gain, mean_of_runs

COUNTED = {
    "asr": ("complied",),
    "asr-last-turn": ("complied",),  # as of dialogues it is called in results
    "orr": ("refused", "gibberish"),
    "served": ("complied",),
    "refused": ("refused",),
    "gibberish": ("gibberish",),
}


def item_rates(
    logs: Sequence[Sequence[Outcome]],
    metric: str,
    sets: Sequence[str],
    attack: str = "direct",
    judge: str = "x-boundary",
) -> dict[str, float]:
    """By item, in how many of the seeds' last replies it counts for the metric, 0 to 1.

    Args:
        logs: one of each seed, from ``read_log``, all of the same items.
        metric: one of ``COUNTED``, see ``summary.summarise``.
        sets, attack: of the items.

    Raises:
        ValueError: there are no such items, the logs are not of the same ones, a verdict could not
            be read, or there is no such metric or judge.
    """
    if metric not in COUNTED:
        raise ValueError(f"metric is one of {', '.join(COUNTED)}, not {metric!r}.")
    found = []
    for log in logs:
        outcomes = [o for o in log if o.set in sets and o.attack == attack]
        last = [labels[-1] for labels in verdicts(outcomes, judge)]
        if None in last:
            raise ValueError(f"{judge} has verdicts that could not be read.")
        counts = [label in COUNTED[metric] for label in last]
        found.append(dict(zip([o.id for o in outcomes], counts, strict=True)))
    if not found or not found[0] or any(seed.keys() != found[0].keys() for seed in found):
        raise ValueError(f"every seed needs the same items of {', '.join(sets)} under {attack}.")
    return {name: sum(seed[name] for seed in found) / len(found) for name in found[0]}


def gap(one: dict[str, float], other: dict[str, float]) -> Estimate:
    """Mean difference ``one - other`` of ``item_rates``, paired by item.

    Raises:
        ValueError: they are not of the same items.
    """
    return mean_gain(list(_gains(one, other).values()))


def gap_by_group(one: dict[str, float], other: dict[str, float], part: int) -> Estimate:
    """``gap`` where items with one ``part`` of the name in common are one value: of
    ``"<request>+<wrapper>"`` part 0 makes a unit of a request, part 1 of a wrapper. With Student's
    interval, as groups are few; of what does not change in any group it has no width.

    Raises:
        ValueError: they are not of the same items.
    """
    groups: dict[str, list[float]] = {}
    for name, gain in _gains(one, other).items():
        groups.setdefault(name.split("+")[part], []).append(gain)
    return mean_of_runs([sum(gains) / len(gains) for gains in groups.values()])


def _gains(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    if one.keys() != other.keys():
        raise ValueError("a paired difference is of the same items.")
    return {name: one[name] - other[name] for name in one}
