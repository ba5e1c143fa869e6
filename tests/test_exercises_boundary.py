"""The exercises of chapter 2: solutions pass, stubs are not attempted, mistakes are recognised."""

import pytest
import torch
from exercise_pages import cells_of, defining, solutions_of, sources_of

from xb_lite.exercises import boundary as check
from xb_lite.exercises.verdicts import NOT_YET

CELLS = cells_of("02_boundary")
NAMES = ("harm_direction", "rates_at", "equal_length", "area_under_curve", "folds", "ablated")
SOLUTIONS = solutions_of(CELLS)
STUBS = sources_of(CELLS, ("code",)).values()


def norm(x):
    return x / x.norm()


MISTAKES = {
    "harm_direction": [
        (lambda x, y: norm(x[~y].mean(0) - x[y].mean(0)), "sign"),
        (lambda x, y: x[y].mean(0) - x[~y].mean(0), "divide it by its norm"),
        (
            lambda x, y: (
                (x[y].mean(0) - x[~y].mean(0)) / (x[y].mean(0) - x[~y].mean(0)).norm() ** 2
            ),
            "square",
        ),
        (lambda x, y: norm(x[y].mean(0)), "subtract the other mean"),
        (
            lambda x, y: norm(
                (x / x.norm(dim=1, keepdim=True))[y].mean(0)
                - (x / x.norm(dim=1, keepdim=True))[~y].mean(0)
            ),
            "normalise once",
        ),
        (lambda x, y: norm(x[y].sum(0) - x[~y].sum(0)), "sums and not means"),
        (lambda x, y: x[y].mean(1), "average over the items"),
        (lambda x, y: norm(x[y].mean(0) - x[~y].mean(0))[None], "One axis too many"),
        (lambda x, y: norm(x.sub_(1)[y].mean(0) - x[~y].mean(0)), "in place"),
    ],
    "rates_at": [
        (lambda s, y, t: ((s >= t)[~y].double().mean(), (s >= t)[y].double().mean()), "swapped"),
        (lambda s, y, t: ((s > t)[y].double().mean(), (s > t)[~y].double().mean()), "use >="),
        (lambda s, y, t: ((s < t)[y].double().mean(), (s < t)[~y].double().mean()), "let through"),
        (
            lambda s, y, t: (((s >= t) & y).double().mean(), ((s >= t) & ~y).double().mean()),
            "its own kind",
        ),
        (
            lambda s, y, t: (y[s >= t].double().mean(), (~y)[s >= t].double().mean()),
            "refused prompt",
        ),
        (lambda s, y, t: ((s >= t)[y].sum(), (s >= t)[~y].sum()), "counts"),
        (lambda s, y, t: ((s >= t)[y].double().mean(), (s < t)[~y].double().mean()), "pass"),
    ],
    "equal_length": [
        (lambda n, d: n / n.norm(), "length 1"),
        (lambda n, d: n * d.norm(), "length of its own"),
        (lambda n, d: n / n.norm() * d.norm() ** 2, "root"),
        (lambda n, d: n / n.abs().sum() * d.abs().sum(), "sums of absolute"),
        (lambda n, d: n / n.abs().max() * d.abs().max(), "largest entries"),
        (lambda n, d: n * d, "entry by entry"),
        (lambda n, d: (n @ d) / d.norm() ** 2 * d, "no control"),
        (lambda n, d: d, "direction itself"),
        (lambda n, d: n.div_(n.norm()).mul_(d.norm()), "in place"),
    ],
    "area_under_curve": [
        (lambda s, y: 1 - right_area(s, y), "Turned round"),
        (lambda s, y: (s[y][:, None] > s[~y]).double().mean(), "counted it as 0"),
        (lambda s, y: (s[y][:, None] >= s[~y]).double().mean(), "counted it as 1"),
        (lambda s, y: right_area(s, y) * y.sum() * (~y).sum(), "number of such"),
        (
            lambda s, y: ((s[y][:4] > s[~y]).double() + 0.5 * (s[y][:4] == s[~y]).double()).mean(),
            "every harmful with every other",
        ),
        (
            lambda s, y: ((s[y] > 0).double().mean() + (s[~y] <= 0).double().mean()) / 2,
            "accuracy",
        ),
        (lambda s, y: s[y].mean() - s[~y].mean(), "difference of the mean"),
    ],
    "folds": [
        (lambda p: torch.arange(len(p)) % 5, "different folds"),
        (lambda p: torch.zeros_like(p), "all prompts are in one fold"),
        (lambda p: p, "one fold a pair"),
        (lambda p: p % 5 + 1, "use 0, 1, 2, 3 and 4"),
        (lambda p: p % 4, "use 0, 1, 2, 3 and 4"),
        (lambda p: p % 5 == 0, "two folds"),
        (lambda p: p[:7] % 5, "one fold a prompt"),
        (lambda p: (p - 2).clamp(0, 4), "differ a lot in size"),
        (lambda p: {0: 1}, "one fold a prompt"),
    ],
    "ablated": [
        (lambda x, d: x - (x @ d)[:, None] * d, "divide it by its norm first"),
        (lambda x, d: x - (x @ d)[:, None] * d / d.norm(), "twice in the formula"),
        (lambda x, d: x + (x @ norm(d))[:, None] * norm(d), "sign"),
        (lambda x, d: (x @ norm(d))[:, None] * norm(d), "subtract it"),
        (lambda x, d: x - 2 * (x @ norm(d))[:, None] * norm(d), "mirrors"),
        (lambda x, d: x - norm(d), "shifts all"),
        (lambda x, d: x - ((x @ norm(d))[:, None] * norm(d)).mean(0), "part of its own"),
        (
            lambda x, d: x - ((x - x.mean(0)) @ norm(d))[:, None] * norm(d),
            "centred",
        ),
        (lambda x, d: x.sub_((x @ norm(d))[:, None] * norm(d)), "in place"),
    ],
}


def right_area(scores, harmful):
    gap = scores[harmful][:, None] - scores[~harmful]
    return ((gap > 0) + 0.5 * (gap == 0)).mean()


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_on_the_page_is_right(name):
    scope = {"torch": torch}
    exec(defining(SOLUTIONS, name), scope)
    verdict = getattr(check, name)(scope[name])
    assert verdict.right is True, verdict


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_on_the_page_is_not_attempted(name):
    scope = {"check": check}
    exec(defining(STUBS, name), scope)
    for answer in (scope[name], ...):
        assert getattr(check, name)(answer).right is None
        assert NOT_YET in str(getattr(check, name)(answer))


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [(name, wrong, words) for name, of in MISTAKES.items() for wrong, words in of],
)
def test_a_known_mistake_gets_its_words(name, wrong, words):
    verdict = getattr(check, name)(wrong)
    assert verdict.right is False
    assert words.lower() in verdict.text.lower(), verdict.text


def test_every_exercise_knows_five_mistakes_and_is_on_the_page_with_two_hints():
    assert set(MISTAKES) == set(NAMES)
    assert min(map(len, MISTAKES.values())) >= 5
    page = "\n".join(sources_of(CELLS).values())
    assert page.count("<summary>Hint 1</summary>") == len(NAMES)
    assert page.count("<summary>Hint 2</summary>") == len(NAMES)
    assert page.count("<summary>Solution</summary>") == len(NAMES)
