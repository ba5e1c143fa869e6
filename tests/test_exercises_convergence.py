"""Chapter 6: its exercises. Every solution passes, and known wrong answers get their words."""

from math import ceil

import numpy as np
import pytest
from exercise_pages import accepts, cells_of, is_mistaken, says_not_yet, sources_of

from xb_lite.convergence import wasserstein1
from xb_lite.exercises import convergence as check

SOURCES = sources_of(cells_of("06_convergence"))
EXERCISES = ("06-try-matching", "06-try-six", "06-try-scaled", "06-ex1", "06-ex2", "06-ex3")


@pytest.fixture
def page():
    """The names of the page."""
    return {"np": np, "wasserstein1": wasserstein1, "check": check}


@pytest.mark.parametrize("stub", EXERCISES)
def test_an_untouched_stub_is_not_attempted(page, stub):
    says_not_yet(SOURCES[stub], page)


@pytest.mark.parametrize("stub", EXERCISES)
def test_the_solution_on_the_page_is_right(page, stub):
    hints = SOURCES[f"{stub}-hints"]
    accepts(SOURCES[stub], hints, page)
    assert hints.count("<summary>Hint") == 2


def ratio(centre=np.median, weigh=True, cost=wasserstein1, own=True, turn=1.0, power=1.0):
    """The solution of ``ratio`` with a mistake."""

    def answer(margins, features, labels):
        spread = []
        for label in (0, 1):
            some = features[labels == label]
            k = len(some) // 2
            share = len(some) / len(features) if weigh is True else weigh
            spread.append(share * cost(some[:k], some[k : 2 * k]))
        total = sum(spread) if own else cost(features[:5], features[5:10])
        return turn * (centre(margins) / total) ** power

    return answer


def dealt(one, other):
    return np.linalg.norm(one - other, axis=1).mean()


def between(margins, features, labels):
    return np.median(margins) / wasserstein1(features[labels == 0], features[labels == 1])


def in_place(margins, features, labels):
    features -= features.mean(axis=0)
    return ratio()(margins, features, labels)


def k_of(half=2.0, cells=-1, inside=2, wide=True, goal=2.0, power=2, rounded=ceil):
    """The solution of ``least_k`` with a mistake."""

    def answer(n, delta, diameter):
        room = diameter / goal - inside * delta
        return rounded((n + cells) / half * ((diameter if wide else 1) / room) ** power)

    return answer


HEAP = 0.05 * np.random.default_rng(0).normal(size=(6, 2))
NEAR, FAR = np.concatenate([HEAP, HEAP + 0.001]), np.concatenate([HEAP, HEAP + 3])
WRONG = [
    (check.matched, 7, "sum"),
    (check.matched, 5, "worst"),
    (check.matched, 2, "share a dot"),
    (check.matched, 33 / 9, "all nine"),
    (check.matched, 1, "two means"),
    (check.matched, 7**0.5, "squared"),
    (check.matched, 4, "longest"),
    (check.matched, -7 / 3, "sign"),
    (check.six_points, [2.4, 3.6], "swapped"),
    (check.six_points, [3.0, 2.4], "meet itself"),
    (check.six_points, [3.6, 2], "costs least"),
    (check.six_points, [3.6, 6], "costs most"),
    (check.six_points, [3.6, 4], "not equally many"),
    (check.six_points, [3.6, 7.2], "added"),
    (check.six_points, [3.6, 3.6], "falls with k"),
    (check.six_points, [3, 3], "to the mean"),
    (check.six_points, [9, 9], "squares"),
    (check.six_points, 3.6, "Two numbers"),
    (check.scaled, [10, 100, 0.1, 1], "mean length"),
    (check.scaled, [1, 10, 0.1, 1], "moves with"),
    (check.scaled, [10, 1, 10, 1], "arrows grow"),
    (check.scaled, [10, 10, 10, 1], "over another"),
    (check.scaled, [10, 10, 100, 1], "quotient"),
    (check.scaled, [10, 10, 1, 10], "both lengths"),
    (check.scaled, [10, 10, 1, 0.1], "as the diameter"),
    (check.scaled, [1, 1, 1, 1], "tenfold"),
    (check.scaled, [10, 10, 10, 10], "quotients of lengths"),
    (check.scaled, [10, 10], "shape"),
    (check.ratio, ratio(turn=-1), "negative"),
    (check.ratio, ratio(power=-1), "turn it over"),
    (check.ratio, ratio(centre=np.mean), "mean margin"),
    (check.ratio, ratio(weigh=0.5), "Weigh"),
    (check.ratio, ratio(weigh=1.0), "added"),
    (check.ratio, ratio(own=False), "within a class"),
    (check.ratio, between, "between the classes"),
    (check.ratio, ratio(cost=dealt), "best matching"),
    (check.ratio, ratio(centre=lambda m: m), "One value for each item"),
    (check.ratio, lambda m, f, y: np.median(m), "margin alone"),
    (check.ratio, in_place, "in place"),
    (check.tight_and_near, [FAR, NEAR], "swapped"),
    (check.tight_and_near, [FAR, FAR], "first set has a margin"),
    (check.tight_and_near, [NEAR, NEAR], "move its two heaps apart"),
    (check.tight_and_near, [NEAR, 10 * FAR], "Not concentrated"),
    (check.tight_and_near, [NEAR[:6], FAR[:6]], "[12, 2]"),
    (check.tight_and_near, [np.repeat([[0.0, 0], [1, 1]], 6, axis=0), FAR], "coincide"),
    (check.tight_and_near, [np.concatenate([HEAP, HEAP]), FAR], "same mean"),
    (check.tight_and_near, [NEAR, np.full((12, 2), np.nan)], "not finite"),
    (check.tight_and_near, 3, "Two arrays"),
    (check.least_k, k_of(rounded=float), "round up"),
    (check.least_k, k_of(rounded=int), "Rounded down"),
    (check.least_k, k_of(cells=0), "n - 1"),
    (check.least_k, k_of(half=1), "The 2 under the root"),
    (check.least_k, k_of(inside=1), "2 delta"),
    (check.least_k, k_of(goal=1), "half of it"),
    (check.least_k, k_of(wide=False), "factor D"),
    (check.least_k, k_of(power=1), "square"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_known_wrong_answer_gets_its_words(number):
    exercise, answer, words = WRONG[number]
    is_mistaken(exercise(answer), words)


def test_the_unspoilt_answers_are_right():
    for exercise, answer in (
        (check.ratio, ratio()),
        (check.least_k, k_of()),
        (check.tight_and_near, [NEAR, FAR]),
    ):
        assert exercise(answer).right
