"""Checks of the exercises of chapter 5: what a batch holds, an adapter at part of its strength, and
a comparison of two defenses at equal attack success."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from xb_lite.exercises.verdicts import (
    Prediction,
    Verdict,
    attempted,
    called,
    in_place,
    judged,
    predict,
    unattempted,
)
from xb_lite.reproduce.matching import crossing

__all__ = [
    "PROTOCOL",
    "Prediction",
    "leaks",
    "matched_difference",
    "predict",
    "prefilled_kept",
    "scaled_weight",
    "strength_at",
]

# ------------------------------------------------------------------------------------- in the body


def prefilled_kept(function: Callable[[int, float, float, float], object]) -> Verdict:
    """A function of pairs, boundary_share, refusal_share and prefilled_share that gives how many of
    the rows to keep begin with the prefill."""
    cases = [(480, 0.25, 0.25, 0.5), (400, 0.5, 0.25, 0.2), (360, 0.0, 0.5, 0.25)]

    def each(rule: Callable[[int, float, float, float], float]) -> list[float]:
        return [rule(*case) for case in cases]

    mistakes = [
        (
            each(lambda n, b, r, p: p * n),
            "You prefilled the refusals too; the row to keep of a refusal has no prefill.",
        ),
        (
            each(lambda n, b, r, p: p * b * n),
            "These are the boundary-safe rows alone; benign ones are prefilled as well.",
        ),
        (
            each(lambda n, b, r, p: p * (1 - b - r) * n),
            "These are the benign rows alone; boundary-safe ones are prefilled as well.",
        ),
        (
            each(lambda n, b, r, p: p * (1 - b) * (1 - r) * n),
            "refusal_share is a share of all pairs, not of those that are left beside the "
            "boundary-safe ones.",
        ),
        (each(lambda n, b, r, p: p * r * n), "These are the refusals, the rows without a prefill."),
        (each(lambda n, b, r, p: (1 - r) * n), "These are all harmless rows, prefilled or not."),
        (
            each(lambda n, b, r, p: (1 - p) * (1 - r) * n),
            "These are the harmless rows without the prefill.",
        ),
        (each(lambda n, b, r, p: p * (1 - r)), "This is a share; multiply it by the pairs."),
    ]
    right = each(lambda n, b, r, p: p * (1 - r) * n)
    answer = called(function, *cases[0])
    if attempted(answer) and callable(function):
        answer = [called(function, *case) for case in cases]
    praise = "boundary_share drops out: boundary-safe and benign rows are prefilled alike."
    return judged(answer, right, mistakes, praise=praise)


def scaled_weight(function: Callable[[Tensor, Tensor, Tensor, float], object]) -> Verdict:
    """A function of a weight [out, in], A [rank, in], B [out, rank] and a strength that gives the
    weight with the adapter at that strength."""
    dice = torch.Generator().manual_seed(5)
    weight = torch.randn(4, 4, generator=dice)  # square, so that a wrong order has the right shape
    down, up = torch.randn(2, 4, generator=dice), torch.randn(4, 2, generator=dice)
    strength = 0.5
    change = up @ down
    mistakes = [
        (
            weight + strength**2 * change,
            "Both matrices carry the factor, so the change has its square: scale one of them.",
        ),
        (strength * (weight + change), "The model's own weight is scaled, too; it stays."),
        (strength * weight + change, "You scaled the model's own weight; the change is meant."),
        (strength * change, "This is the change alone; add it to the weight."),
        (weight + change, "This is full strength; where does the strength come in?"),
        (weight + strength * change.T, "Transposed: the change is B A."),
        (weight - strength * change, "The size is right and the sign is not."),
        (
            weight + strength + change,
            "The strength is added; it multiplies the change.",
        ),
    ]
    given = [tensor.clone() for tensor in (weight, down, up)]
    found = called(function, *given, strength)
    if in_place(found, *zip(given, (weight, down, up), strict=True)):
        return Verdict(False, "It changes a tensor that it was given; make a new one.")
    praise = "At 0 it is the model itself, at 1 the adapter as trained; above 1 it goes further."
    return judged(found, weight + strength * change, mistakes, praise=praise)


# ---------------------------------------------------------------------------------- at the end

# Steps of an invented comparison; those in LEAKS let the test data or the maker's wish decide.
PROTOCOL: Mapping[str, str] = MappingProxyType(
    {
        "a": "The prompts are split into train, validation and test by topic, so that no topic is "
        "in two of them.",
        "b": "Each method is trained with four learning rates; the one with the best result on the "
        "test prompts is reported.",
        "c": "Every adapter is scaled to the strength at which 20 % of the prefilled attacks on "
        "validation prompts succeed.",
        "d": "Half of the boundary-safe training prompts are the first sentences of boundary-safe "
        "test prompts.",
        "e": "Each method is run with seeds 0 to 4; of the new method the three best are averaged, "
        "of the old one all five.",
        "f": "The judge is calibrated on labelled replies to validation prompts.",
        "g": "The same prompts are asked of every method, and differences are taken prompt by "
        "prompt.",
    }
)
LEAKS = frozenset("bde")


def leaks(answer: Collection[str]) -> Verdict:
    """The letters of the steps of ``PROTOCOL`` that make its result worthless."""
    if not attempted(answer):
        return unattempted(answer)
    try:
        found = {str(letter).strip().lower() for letter in answer}
    except TypeError:
        return Verdict(False, f"This is a {type(answer).__name__}; a set of letters is wanted.")
    if unknown := sorted(found - PROTOCOL.keys()):
        return Verdict(False, f"There is no step {unknown[0]!r:.20}; steps are a to g.")
    if found == LEAKS:
        return Verdict(
            True, "b chooses on the test, d trains on it, and e chooses seeds for one side only."
        )
    if not found:
        return Verdict(False, "There are some: ask of each step what decides, and when.")
    words = {
        "a": "a is right: a split by topic is stricter than one by prompt.",
        "c": "c is fine: the strength is chosen on validation prompts, the same way for all.",
        "f": "f is fine: a judge may be fitted on validation replies, as it is not what is tested.",
        "g": "g is fine, and good: pairs have less noise than two groups.",
    }
    if wrong := sorted(found - LEAKS):
        return Verdict(False, words[wrong[0]])
    hints = {
        "b": "One step lets the test decide which run is reported.",
        "d": "One step has parts of the test in the training set.",
        "e": "One step treats the two methods differently.",
    }
    return Verdict(False, f"Right so far. {hints[min(LEAKS - found)]}")


# Success and over-refusal by strength, invented: the second defense is harsher at each strength.
ONE = MappingProxyType({0.0: (0.60, 0.10), 0.5: (0.40, 0.14), 1.0: (0.16, 0.22), 1.5: (0.04, 0.40)})
OTHER = MappingProxyType(
    {0.0: (0.60, 0.10), 0.5: (0.30, 0.20), 1.0: (0.10, 0.30), 1.5: (0.02, 0.36)}
)
NEVER = MappingProxyType({0.0: 0.6, 0.5: 0.5, 1.0: 0.45})
BACK = MappingProxyType({1.5: 0.25, 0.0: 0.6, 1.0: 0.1, 0.5: 0.3})  # not sorted, and it rises again


def strength_at(function: Callable[[Mapping[float, float], float], object]) -> Verdict:
    """A function of success by strength and a level that gives the lowest strength at which
    success, linear between the points, falls to the level; None where it never does."""
    cases = [
        ({s: point[0] for s, point in ONE.items()}, 0.2),
        (dict(BACK), 0.2),
        ({0.0: 0.5, 1.0: 0.2, 1.5: 0.1}, 0.2),
    ]

    def each(rule: Callable[[Mapping[float, float], float], float]) -> list[float]:
        return [rule(*case) for case in cases]

    def nearest(points: Mapping[float, float], level: float) -> float:
        return min(points, key=lambda s: abs(points[s] - level))

    def first_below(points: Mapping[float, float], level: float) -> float:
        return min(s for s in points if points[s] <= level)

    def last_above(points: Mapping[float, float], level: float) -> float:
        return max(s for s in points if points[s] > level)

    def middle(points: Mapping[float, float], level: float) -> float:
        low = max(s for s in points if s < first_below(points, level))
        return (low + first_below(points, level)) / 2

    def mirrored(points: Mapping[float, float], level: float) -> float:
        high = first_below(points, level)
        low = max(s for s in points if s < high)
        return high - (high - low) * (points[low] - level) / (points[low] - points[high])

    def straight(points: Mapping[float, float], level: float) -> float:
        low, high = min(points), max(points)
        return low + (high - low) * (points[low] - level) / (points[low] - points[high])

    mistakes = [
        (each(nearest), "You took the nearest point; go along the line between two."),
        (each(first_below), "You took the first point at or below the level; interpolate."),
        (each(last_above), "You took the last point above the level, which may come too late."),
        (each(middle), "You took the middle of the interval; how far along it is the level?"),
        (each(mirrored), "You counted from the wrong end of the interval."),
        (each(straight), "You drew one line from the first point to the last; use neighbours."),
    ]
    answer = called(function, *cases[0])
    if not attempted(answer):
        return judged(answer, 0.0)
    if callable(function):
        answer = [called(function, *case) for case in cases]
        if None in answer:
            return Verdict(False, "It gives None where the level is reached; test with <=.")
    verdict = judged(answer, each(crossing), mistakes)
    if verdict.right and callable(function) and function(dict(NEVER), 0.2) is not None:
        return Verdict(False, "Where success never falls to the level there is no strength: None.")
    if verdict.right:
        return Verdict(True, "The first crossing, whatever success does at higher strengths.")
    return verdict


def matched_difference(answer: float) -> Verdict:
    """Over-refusal of ONE minus that of OTHER, in points, where success of each is 20 %."""
    low, high = _matched(ONE), _matched(OTHER)
    right = 100 * (low - high)
    mistakes = [
        (-right, "The size is right and the sign is not: the first minus the second."),
        (right / 100, "This is a share; points are wanted, a hundred times as many."),
        (100 * (0.22 - 0.30), "This is at strength 1, where attack success differs."),
        (100 * (0.14 - 0.20), "This is at strength 0.5, where attack success differs."),
        (100 * (0.40 - 0.36), "This is at strength 1.5, where attack success differs."),
        (100 * low, "This is over-refusal of the first alone; subtract that of the second."),
        (100 * (0.22 - 0.20), "These are the points nearest to 20 %; interpolate both."),
        (
            100 * (crossing({s: p[0] for s, p in ONE.items()}, 0.2) or 0)
            - 100 * (crossing({s: p[0] for s, p in OTHER.items()}, 0.2) or 0),
            "This is the difference of the strengths; read over-refusal off at them.",
        ),
    ]
    praise = (
        "At strength 1 the first looked better by eight points. Part of that was only that it "
        "stopped fewer attacks."
    )
    return judged(answer, right, mistakes, praise=praise, tolerance=6e-3)


def _matched(points: Mapping[float, tuple[float, float]], level: float = 0.2) -> float:
    """Over-refusal where success falls to the level, both linear between the points."""
    at = crossing({s: success for s, (success, _) in points.items()}, level)
    strengths = sorted(points)
    after = min(s for s in strengths if s >= at)
    before = max(s for s in strengths if s < after)
    part = (at - before) / (after - before)
    return (1 - part) * points[before][1] + part * points[after][1]
