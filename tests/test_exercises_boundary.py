"""The exercises of chapter 2: solutions pass, stubs are not attempted, mistakes are recognised."""

import numpy as np
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


def unit(x):
    return x / np.linalg.norm(x)


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
        (lambda x, y: unit(x[~y].mean(axis=0) - x[y].mean(axis=0)), "sign"),
        (lambda x, y: x[y].mean(axis=0) - x[~y].mean(axis=0), "divide it by its norm"),
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
        (lambda s, y, t: ((s > t)[y].mean(), (s > t)[~y].mean()), "use >="),
        (lambda s, y, t: np.array([(s >= t)[~y].mean(), (s >= t)[y].mean()]), "swapped"),
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
        (lambda n, d: np.divide(n, np.linalg.norm(n), out=n) * np.linalg.norm(d), "in place"),
        (lambda n, d: unit(n), "length 1"),
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
        (lambda p: torch.arange(len(p)) % 7 % 5, "different folds"),
        (lambda p: np.arange(len(p)) % 7 % 5, "different folds"),
        (lambda p: np.arange(len(p)) // 3, "different folds"),
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
        (lambda x, d: x + (x @ unit(d))[:, None] * unit(d), "sign"),
    ],
}


def right_area(scores, harmful):
    gap = scores[harmful][:, None] - scores[~harmful]
    return ((gap > 0) + 0.5 * (gap == 0)).mean()


def solution(name):
    scope = {"torch": torch, "np": np}
    exec(defining(SOLUTIONS, name), scope)
    return scope[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_on_the_page_is_right(name):
    verdict = getattr(check, name)(solution(name))
    assert verdict.right is True, verdict


def test_the_solutions_run_on_arrays_like_those_of_the_page():
    dice = np.random.default_rng(0)
    states, harmful = dice.normal(size=(20, 6)), np.arange(20) < 8
    direction = solution("harm_direction")(states, harmful)
    assert isinstance(direction, np.ndarray) and np.isclose(np.linalg.norm(direction), 1)
    score = states @ direction
    assert solution("rates_at")(score, harmful, -np.inf) == (1, 1)
    assert np.isclose(solution("area_under_curve")(score, harmful), right_area(score, harmful))
    noise = solution("equal_length")(dice.normal(size=6), 3 * direction)
    assert np.isclose(np.linalg.norm(noise), 3)
    assert np.allclose(solution("ablated")(states, 3 * direction) @ direction, 0)
    assert set(solution("folds")(np.arange(20))) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("name", "of_arrays", "of_tensors"),
    [
        (
            "harm_direction",
            lambda x, y: unit(np.mean(x[y], axis=0) - np.mean(x[~y], axis=0)),
            lambda x, y: norm(x[y].mean(dim=0) - x[~y].mean(dim=0)),
        ),
        (
            "rates_at",
            lambda s, y, t: (np.mean(s[y] >= t), np.mean(s[~y] >= t)),
            lambda s, y, t: ((s[y] >= t).double().mean(), (s[~y] >= t).double().mean()),
        ),
        (
            "equal_length",
            lambda n, d: unit(n) * np.linalg.norm(d),
            lambda n, d: n / n.norm() * d.norm(),
        ),
        (
            "area_under_curve",
            lambda s, y: np.mean(np.sign(s[y][:, None] - s[~y]) / 2 + 0.5),
            lambda s, y: ((s[y][:, None] - s[~y]).sign() / 2 + 0.5).mean(),
        ),
        ("folds", lambda p: np.mod(p, 5), lambda p: torch.remainder(p, 5)),
        (
            "ablated",
            lambda x, d: x - np.outer(x @ unit(d), unit(d)),
            lambda x, d: x - torch.outer(x @ norm(d), norm(d)),
        ),
    ],
)
def test_arrays_and_tensors_are_both_right(name, of_arrays, of_tensors):
    assert getattr(check, name)(of_arrays).right is True
    assert getattr(check, name)(of_tensors).right is True


def test_what_fails_for_arrays_and_tensors_is_raised():
    with pytest.raises(ZeroDivisionError):
        check.folds(lambda pairs: 1 / 0)
    with pytest.raises(IndexError, match="too many"):
        check.harm_direction(lambda states, harmful: states[:, :, 0])


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
