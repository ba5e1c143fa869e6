"""The exercises of chapter 9: solutions pass, stubs are not attempted, mistakes get their words."""

import pytest
from exercise_pages import (
    cells_of,
    defining,
    is_mistaken,
    is_not_attempted,
    is_solved,
    solutions_of,
    stubs_of,
)

from xb_lite.exercises import scaling_up as check

CELLS = cells_of("09_scaling_up")
NAMES = ("adapter_size", "largest_pass", "per_card", "boundary_size", "bill")
SOLUTIONS = solutions_of(CELLS)
STUBS = stubs_of(CELLS, NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_in_the_notebook_passes(name):
    is_solved(check, name, defining(SOLUTIONS, name))


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_in_the_notebook_is_not_attempted(name):
    is_not_attempted(check, name, STUBS[name])


def fits(memory, pairs, limit):
    return [n for n in range(1, pairs + 1) if pairs % n == 0 and memory(n) <= limit]


def rest(parts):
    return sum(parts.values()) - parts["weights"]


def share(s, n):
    return n * s / (1 - s)


MISTAKES = {
    "adapter_size": [
        (lambda m, n, r: n * sum(a * b for a, b in m.values()), "leaves alone"),
        (lambda m, n, r: n * r * sum(a * b for a, b in m.values()), "add"),
        (lambda m, n, r: n * r * sum(a for a, _ in m.values()), "Only A"),
        (lambda m, n, r: n * r * sum(b for _, b in m.values()), "Only B"),
        (lambda m, n, r: r * sum(a + b for a, b in m.values()), "one layer"),
        (lambda m, n, r: n * sum(a + b for a, b in m.values()), "rank is missing"),
        (lambda m, n, r: n * r * r * sum(a + b for a, b in m.values()), "not squared"),
        (lambda m, n, r: 2 * n * r * sum(a + b for a, b in m.values()), "twice"),
        (lambda m, n, r: n * r * sum(m["q_proj"] + m["k_proj"]), "attention alone"),
        (lambda m, n, r: list(m), "numbers are wanted"),
    ],
    "largest_pass": [
        (lambda m, p, limit: max(fits(m, p, limit - 0.01), default=0), "exactly the limit"),
        (
            lambda m, p, limit: max((n for n in range(1, p + 1) if m(n) <= limit), default=0),
            "must divide",
        ),
        (lambda m, p, limit: min(fits(m, p, limit), default=0), "smallest"),
        (lambda m, p, limit: p, "not looked at"),
        (lambda m, p, limit: max(fits(m, p, limit), default=1), "say 0"),
        (lambda m, p, limit: p // max(fits(m, p, limit), default=p), "counts the passes"),
        (lambda m, p, limit: max(map(m, fits(m, p, limit)), default=0), "This is the memory"),
    ],
    "per_card": [
        (lambda parts, n: sum(parts.values()), "without sharing"),
        (lambda parts, n: sum(parts.values()) / n, "on every card whole"),
        (lambda parts, n: parts["weights"] / n, "other parts"),
        (lambda parts, n: parts["weights"] + rest(parts) / n, "rest is not"),
        (lambda parts, n: rest(parts), "not gone"),
        (lambda parts, n: n * parts["weights"] + rest(parts), "not all"),
        (
            lambda parts, n: (
                (parts["weights"] + parts["activations"]) / n + parts["adapter"] + parts["base"]
            ),
            "items of its own",
        ),
    ],
    "boundary_size": [
        (lambda s, n: round(n * s), "of all"),
        (lambda s, n: n * s, "not rounded"),
        (share, "half a prompt"),
        (lambda s, n: int(share(s, n)), "not down"),
        (lambda s, n: -int(-share(s, n) // 1), "not up"),
        (lambda s, n: round(n * s / (1 + s)), "1 - share"),
        (lambda s, n: round(n / (1 - s)), "number of all"),
        (lambda s, n: round(n * (1 - s)), "boundary-safe ones"),
    ],
    "bill": [
        (lambda t, n, p, c, e: t * n / 3600 * p, "loss of efficiency"),
        (lambda t, n, p, c, e: t * n / 3600 * p / (c * e), "All cards"),
        (lambda t, n, p, c, e: t * n / 3600 * p * c, "less time"),
        (lambda t, n, p, c, e: t * n / 3600 * p * e, "dearer"),
        (lambda t, n, p, c, e: t * n / 3600 * p * c / e, "counted twice"),
        (lambda t, n, p, c, e: t * n * p / e, "seconds"),
        (lambda t, n, p, c, e: t * n / 60 * p / e, "minutes"),
        (lambda t, n, p, c, e: t * n / 3600 / (c * e), "multiply by what they cost"),
    ],
}


@pytest.mark.parametrize(
    ("name", "wrong", "words"), [(name, *one) for name, some in MISTAKES.items() for one in some]
)
def test_mistakes_get_their_words(name, wrong, words):
    is_mistaken(getattr(check, name)(wrong), words)
