"""The exercises of chapter 0: solutions pass, stubs are not attempted, mistakes get their words."""

import pytest
import torch
from exercise_pages import (
    cells_of,
    defining,
    is_mistaken,
    is_not_attempted,
    is_solved,
    solutions_of,
    stubs_of,
)

from xb_lite.exercises import start_here as check
from xb_lite.exercises.verdicts import NO_RETURN, judged

CELLS = cells_of("00_start_here")
NAMES = ("refusal_depth", "two_rates", "walk", "leaks")
SOLUTIONS = solutions_of(CELLS)
STUBS = stubs_of(CELLS, NAMES)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_in_the_notebook_passes(name):
    is_solved(check, name, defining(SOLUTIONS, name), torch=torch)


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_in_the_notebook_is_not_attempted(name):
    is_not_attempted(check, name, STUBS[name])


def rates(leaks, dim=1):
    return leaks.float().mean(dim)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda leaks: int(leaks.any(1).nonzero()[0]), "at least half are wanted"),
        (lambda leaks: int(rates(leaks).argmax()), "fewer words"),
        (lambda leaks: int((rates(leaks) > 0.5).nonzero()[0]), "One too far"),
        (lambda leaks: int((rates(leaks) >= 0.5).nonzero()[0]) - 1, "One too few"),
        (lambda leaks: int((rates(leaks) >= 0.5).sum()), "counted the rows"),
        (lambda leaks: int((rates(leaks, 0) >= 0.5).nonzero()[0]), "dimension 0"),
        (lambda leaks: int((rates(leaks) >= 0.5).nonzero()[-1]), "last row"),
        (lambda leaks: rates(leaks)[3], "the rate at that row"),
        (rates, "These are the rates"),
        (lambda leaks: rates(leaks) >= 0.5, "for every row"),
        (lambda leaks: (rates(leaks) >= 0.5).nonzero()[:, 0], "all reach half"),
        (lambda leaks: (rates(leaks) >= 0.5).nonzero()[0], "with int()"),
    ],
)
def test_mistakes_of_refusal_depth(wrong, words):
    is_mistaken(check.refusal_depth(wrong), words)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((4 / 6, 2 / 5), "has not succeeded"),
        ((2 / 6, 1 / 5), "counts gibberish"),
        ((2 / 6, 3 / 5), "not over-refusal"),
        ((4 / 6, 1 / 5), "only looked for refusals"),
        ((2, 2), "counts"),
        ((2 / 11, 2 / 11), "own denominator"),
        ((2 / 5, 2 / 6), "other order"),
        ((100 / 3, 40), "percentages"),
        ((2 / 5, 2 / 4), "denominator"),
        (2 / 6, "shape"),
        ((0.33, 0.4), "If you rounded"),
        ((33, 40), "rounded percentages"),
        ((0.9, 0.1), "The shape is right"),
    ],
)
def test_mistakes_of_two_rates(wrong, words):
    is_mistaken(check.two_rates(wrong), words)


def played(reply, dialogue, turns, history=True):
    now, said = [*dialogue], []
    for turn in turns:
        now.append(user(turn))
        said.append(reply(now))
        if history:
            now.append(assistant(said[-1]))
    return said


def walk_in_place(reply, dialogue, turns):
    for turn in turns:
        dialogue.append(user(turn))
        text = reply(dialogue)
        dialogue.append(assistant(text))
    return text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda r, d, t: played(r, d, t, history=False)[-1], "own replies are missing"),
        (lambda r, d, t: played(r, d, t), "the last one only"),
        (lambda r, d, t: played(r, d, t)[0], "first turn"),
        (lambda r, d, t: played(r, d, t)[-2], "not asked"),
        (lambda r, d, t: r([*d, user(t[-1])]), "plain request"),
        (lambda r, d, t: played(r, [], t)[-1], "missing in front"),
        (lambda r, d, t: r([*d, user(" ".join(t))]), "joined"),
        (walk_in_place, "in place"),
        (lambda r, d, t: 3, "int"),
        (lambda r, d, t: "no", "first hint"),
    ],
)
def test_mistakes_of_walk(wrong, words):
    is_mistaken(check.walk(wrong), words)


def bare(text):
    return "".join(letter for letter in text.lower() if letter.isalpha())


def refuses(text):
    return "sorry" in text.lower() or "cannot" in text.lower()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda r, s: s in r, "small letters"),
        (lambda r, s: s.lower() in r.lower(), "L-E-M-O-N"),
        (lambda r, s: s in r.upper().replace("-", ""), "with spaces"),
        (lambda r, s: s in r.replace("-", "").replace(" ", ""), "still missed"),
        (lambda r, s: not refuses(r), "looks for refusals"),
        (lambda r, s: bare(s) in bare(r) and not refuses(r), "say sorry and leak"),
        (lambda r, s: r.lower() == s.lower(), "inside a sentence"),
        (lambda r, s: set(bare(s)) <= set(bare(r)), "without their order"),
        (lambda r, s: "lemon" in bare(r), "second argument"),
        (lambda r, s: bare(s) not in bare(r), "exchanged"),
        (lambda r, s: "yes", "true of every reply"),
        (lambda r, s: r.find(s), "`find`"),
        (lambda r, s: s in r.replace("-", ""), "'It is lemon' and the secret 'LEMON'"),
    ],
)
def test_mistakes_of_leaks(wrong, words):
    is_mistaken(check.leaks(wrong), words)


@pytest.mark.parametrize("name", ["refusal_depth", "walk", "leaks"])
def test_a_function_that_only_prints_is_asked_for_its_return(name):
    verdict = getattr(check, name)(lambda *arguments: None)
    assert (verdict.right, verdict.text) == (None, NO_RETURN)


def test_values_and_places_of_torch_are_told_apart():
    rows = torch.tensor([[1.0, 3.0], [4.0, 2.0]])
    verdict = judged(rows.max(dim=1), [3.0, 4.0])
    assert verdict.right is False and "`.values`" in verdict.text


def test_where_one_number_is_wanted_the_words_say_so():
    assert judged(torch.ones(2), 1.0).text.endswith("it should be [], a single number.")


@pytest.mark.parametrize("message", ["Hello.", {"role": "user", "text": "Hello."}])
def test_what_is_no_message_is_said_in_words(message):
    with pytest.raises(ValueError, match="a list of messages"):
        check.walk(lambda reply, dialogue, turns: reply([*dialogue, message]))


def test_a_judge_is_given_as_a_function():
    verdict = check.leaks(True)
    assert verdict.right is False and "the function itself" in verdict.text
