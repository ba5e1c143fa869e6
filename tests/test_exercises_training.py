"""Chapter 5's checks: solutions pass, stubs are silent, and known mistakes get their words."""

import numpy as np
import pytest
import torch
from exercise_pages import accepts, cells_of, is_mistaken, says_not_yet, sources_of

from xb_lite.exercises import training as check
from xb_lite.reproduce.matching import crossing

SOURCES = sources_of(cells_of("05_training"))
EXERCISES = {  # stub: the cell that holds its solution
    "05-12": "05-13",
    "05-44": "05-45",
    "05-46": "05-47",
    "05-48": "05-49",
    "05-50": "05-51",
}


def page():
    return {"check": check, "np": np, "torch": torch}


@pytest.mark.parametrize("stub", EXERCISES)
def test_an_untouched_stub_is_not_attempted(stub):
    says_not_yet(SOURCES[stub], page())


@pytest.mark.parametrize("stub", EXERCISES)
def test_the_solution_on_the_page_is_right(stub):
    accepts(SOURCES[stub], SOURCES[EXERCISES[stub]], page())


@pytest.mark.parametrize("stub", EXERCISES)
def test_every_exercise_has_two_hints(stub):
    assert SOURCES[EXERCISES[stub]].count("<summary>Hint") == 2


# Known wrong answers, and words of what is said of each


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda n, b, r, p: p * n, "refusals too"),
        (lambda n, b, r, p: p * b * n, "boundary-safe rows alone"),
        (lambda n, b, r, p: p * (1 - b - r) * n, "benign rows alone"),
        (lambda n, b, r, p: p * (1 - b) * (1 - r) * n, "share of all pairs"),
        (lambda n, b, r, p: p * r * n, "without a prefill"),
        (lambda n, b, r, p: (1 - r) * n, "prefilled or not"),
        (lambda n, b, r, p: (1 - p) * (1 - r) * n, "without the prefill"),
        (lambda n, b, r, p: p * (1 - r), "multiply"),
        (lambda n, b, r, p: -p * (1 - r) * n, "sign"),
    ],
)
def test_wrong_shares(wrong, said):
    is_mistaken(check.prefilled_kept(wrong), said)


def changed(weight, a, b, s):
    weight += s * (b @ a)
    return weight


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda w, a, b, s: w + (s * b) @ (s * a), "square"),
        (lambda w, a, b, s: s * (w + b @ a), "own weight is scaled, too"),
        (lambda w, a, b, s: s * w + b @ a, "scaled the model's own weight"),
        (lambda w, a, b, s: s * (b @ a), "change alone"),
        (lambda w, a, b, s: w + b @ a, "full strength"),
        (lambda w, a, b, s: w + s * (b @ a).T, "Transposed"),
        (lambda w, a, b, s: w - s * (b @ a), "sign"),
        (lambda w, a, b, s: w + s + b @ a, "multiplies"),
        (lambda w, a, b, s: w[0], "shape"),
        (changed, "given"),
    ],
)
def test_wrong_weights(wrong, said):
    is_mistaken(check.scaled_weight(wrong), said)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("", "There are some"),
        ("bdea", "by topic"),
        ("bc", "strength"),
        ("f", "judge"),
        ("bdeg", "pairs"),
        ("de", "the test decide"),
        ("be", "parts of the test"),
        ("bd", "differently"),
        ("bz", "no step 'z'"),
        (7, "a set of letters"),
    ],
)
def test_wrong_leaks(wrong, said):
    is_mistaken(check.leaks(wrong), said)


def test_leaks_may_be_a_text_a_list_or_capitals():
    assert check.leaks("bde").right
    assert check.leaks(["D", "e ", "b"]).right


def line(points, level):
    """From the first point to the last, whatever lies between."""
    low, high = min(points), max(points)
    return low + (high - low) * (points[low] - level) / (points[low] - points[high])


def of_end(points, level):
    high = min(s for s in points if points[s] <= level)
    low = max(s for s in points if s < high)
    return high - (high - low) * (points[low] - level) / (points[low] - points[high])


def halfway(points, level):
    high = min(s for s in points if points[s] <= level)
    return (high + max(s for s in points if s < high)) / 2


def never_none(points, level):
    return crossing(points, level) or 1.5


def strict(points, level):
    lowest = min(points.values())
    return crossing(points, level) if all(v != level for v in points.values()) else lowest and None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda p, v: min(p, key=lambda s: abs(p[s] - v)), "nearest"),
        (lambda p, v: min(s for s in p if p[s] <= v), "first point at or below"),
        (lambda p, v: max(s for s in p if p[s] > v), "too late"),
        (halfway, "middle"),
        (of_end, "wrong end"),
        (line, "neighbours"),
        (never_none, "None"),
        (strict, "<="),
    ],
)
def test_wrong_strengths(wrong, said):
    is_mistaken(check.strength_at(wrong), said)


def test_strength_at_takes_the_books_own():
    assert check.strength_at(crossing).right


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (4.33, "sign"),
        (-0.0433, "share"),
        (-8, "strength 1"),
        (-6, "0.5"),
        (4, "1.5"),
        (20.67, "first alone"),
        (2, "interpolate both"),
        (16.67, "strengths"),
    ],
)
def test_wrong_differences(wrong, said):
    is_mistaken(check.matched_difference(wrong), said)


def test_the_matched_difference_by_hand():
    # The first falls from 40 to 16 % between 0.5 and 1, so it is at 20 % at 11/12; the second from
    # 30 to 10 %, so at 3/4.
    first = 14 + (22 - 14) * 5 / 6
    assert check.matched_difference(first - 25).right
