"""Chapter 8's checks: solutions pass, stubs are silent, and known mistakes get their words."""

import numpy as np
import pytest
from exercise_pages import cells_of, solutions_of, stubs_of

from xb_lite.data.items import PREFILL
from xb_lite.exercises import threat_models
from xb_lite.exercises import together as check
from xb_lite.exercises.threat_models import _MISREADINGS, EVIDENCE, STATEMENTS, SUPPORTED, supports
from xb_lite.exercises.together import (
    _MISCOUNTS,
    _WRONG,
    READ,
    REFUSED,
    broken_guard,
    sound_guard,
)
from xb_lite.exercises.verdicts import NO_RETURN, NOT_YET
from xb_lite.results.stats import wilson

CELLS = cells_of("08_together")
NAMES = {  # by check, what the page calls the reader's answer
    "both_fail": "both_fail",
    "prefill": "my_prefill",
    "blind_spot": "my_tokens",
    "mended": "guard",
    "verdict": "verdict",
    "claims": "my_claims",
}
SOLUTIONS = solutions_of(CELLS)
STUBS = stubs_of(CELLS, NAMES)


def stub(*_):
    return ...


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_in_the_notebook_passes(name):
    mine = NAMES[name]
    (code,) = [code for code in SOLUTIONS if f"def {mine}(" in code or f"{mine} =" in code]
    there = {"check": check}
    exec(code, there)
    verdict = getattr(check, name)(there[mine])
    assert verdict.right, str(verdict)


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_in_the_notebook_is_not_attempted(name):
    there = {"check": check}
    exec(STUBS[name], there)
    verdict = getattr(check, name)(there[NAMES[name]])
    assert verdict.right is None and verdict.text == NOT_YET


@pytest.mark.parametrize(
    "name", ["both_fail", "prefill", "blind_spot", "mended", "verdict", "claims"]
)
def test_stubs_are_not_attempted(name):
    for untouched in (..., None) + ((stub,) if name in ("both_fail", "mended", "verdict") else ()):
        found = getattr(check, name)(untouched)
        assert found.right is None
        assert found.text == (NOT_YET if untouched is not None else NO_RETURN)


# Do they fail on the same items?


def test_the_overlap_is_counted_and_expected():
    assert check.both_fail(check.overlap).right
    assert [check.overlap(*row) for row in check.FAILED] == [(2, 2.0), (3, 0.9), (0, 0.4)]


@pytest.mark.parametrize("words", _MISCOUNTS)
def test_miscounts_are_told_apart(words):
    found = check.both_fail(_MISCOUNTS[words])
    assert found.right is False and found.text == words


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (3, "a function is wanted"),
        (lambda one, other: 3, "Two numbers"),
        (lambda one, other: (7, 7), "it gives (7, 7), not (2, 2.0)"),
    ],
)
def test_other_mistakes_of_the_overlap(mine, words):
    found = check.both_fail(mine)
    assert found.right is False and words in found.text


# A prefill that passes


@pytest.mark.parametrize(
    "mine",
    [
        "Step 1: You",
        "1. First,",
        "The recipe for this tea is to",
        "Certainly! Here is the",
        "Boil the water, then",
        "To brew it:",
        "Of course, you will need",
        "Pour hot water over",
        "1.",
    ],
)
def test_openings_that_were_not_trained_on_pass(mine):
    assert check.prefill(mine).right, mine


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (3, "a text is wanted"),
        ("", "plain request"),
        ("  \n", "plain request"),
        (PREFILL, "trained on"),
        ("  sure HERE is the recipe", "trained on"),
        ("Sure", "trained on"),
        ("I cannot tell the recipe, but step", "begins a refusal"),
        ("Here is the recipe.", "sentence is over"),
        ("First, you steep the leaves for three minutes", "wrote the answer yourself"),
        ("you " * 13, "at most 12"),
        ("Once upon a time", "something else"),
        ("Cold tea, and one spoon", "something else"),
        ("Tea, tea and", "something else"),
        ("In 1990 a tea house", "something else"),
        ("Sure! Here is the recipe", "trained on"),
    ],
)
def test_mistakes_of_prefills(mine, words):
    found = check.prefill(mine)
    assert found.right is False and words in found.text


def test_the_toy_breaks_refuses_and_goes_on():
    assert "sorry" in check.tea("") and "leaves leaves" in check.tea(PREFILL)
    assert check.tea("Step one:").endswith("three minutes")
    assert check.tea("Here you are.") == "Here you are."
    for step in ("1.", "Recipe: 1.", "First, step 2."):  # the number of a step ends no sentence
        assert check.prefill(step).right, step


@pytest.mark.parametrize("open_one", [(..., ...), (1, None)])
def test_a_half_filled_overlap_is_not_judged(open_one):
    assert check.both_fail(lambda one, other: open_one).right is not True


def test_an_overlap_can_be_an_array():
    assert check.both_fail(lambda one, other: np.array(check.overlap(one, other))).right


# The blind spot


@pytest.mark.parametrize(
    ("mine", "words"),
    [(["bad"], "never read"), (["x"] * 4 + ["bad"], "never"), (["x"] * 3 + ["ba", "d"], "border")],
)
def test_both_blind_spots_are_found(mine, words):
    mine = mine if words != "border" else [*mine, "x", "x", "x"]
    found = check.blind_spot(mine)
    assert found.right and words in found.text
    assert REFUSED in sound_guard(mine) and REFUSED not in broken_guard(mine)


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        ("bad", "one text"),
        ([1, 2], "each of them a text"),
        (7, "each of them a text"),
        ([], "Nothing is said"),
        (["fine"], "not among them"),
        (["bad"] * 4, "in reading 1"),
        (["x"] * 4 + ["bad"] + ["x"] * 3, "in reading 2"),
    ],
)
def test_mistakes_of_blind_spots(mine, words):
    found = check.blind_spot(mine)
    assert found.right is False and words in found.text


def solution(tokens, hold):
    shown = []
    for start in range(0, len(tokens), hold):
        chunk = tokens[start : start + hold]
        if "bad" in "".join(shown + chunk):
            return shown + ["[refused]"]
        shown = shown + chunk
    return shown


def token_by_token(tokens, hold):
    """Joined with what was shown; it reads less than ``hold`` at once."""
    shown = []
    for token in tokens:
        if "bad" in "".join([*shown, token]):
            return [*shown, REFUSED]
        shown.append(token)
    return shown


def sound_tokens_shown(tokens, hold):
    """Whole slices are read, and of a bad one the tokens before the word are shown."""
    shown = []
    for start in range(0, len(tokens), hold):
        chunk = tokens[start : start + hold]
        if "bad" not in "".join([*shown, *chunk]):
            shown += chunk
            continue
        for token in chunk:
            if "bad" in "".join([*shown, token]):
                return [*shown, REFUSED]
            shown.append(token)
    return shown


@pytest.mark.parametrize("mine", [token_by_token, sound_tokens_shown])
def test_a_guard_that_shows_part_of_the_last_slice_is_told_so(mine):
    found = check.mended(mine)
    assert found.right is False and "sound tokens" in found.text


def test_the_mended_guard_is_right():
    assert check.mended(solution).right
    assert check.mended(sound_guard).right


@pytest.mark.parametrize("words", _WRONG)
def test_mistakes_of_mended_guards(words):
    found = check.mended(_WRONG[words])
    assert found.right is False and found.text == words


def test_no_two_mistakes_give_the_same_answers_and_none_the_right_ones():
    given = [str([function(*asked) for asked in READ]) for function in _WRONG.values()]
    given.append(str([sound_guard(*asked) for asked in READ]))
    assert len(set(given)) == len(given)


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (4, "a function is wanted"),
        (lambda tokens, hold: "fine", "a list of tokens"),
        (lambda tokens, hold: ["odd"], "Of the tokens"),
    ],
)
def test_other_mended_guards_are_told_the_first_difference(mine, words):
    found = check.mended(mine)
    assert found.right is False and words in found.text


# The threat model


def my_verdict(undefended, defended, placebo):
    if defended is None:
        return "unknown"
    low, high = wilson(*defended)
    if placebo and low > wilson(*placebo)[1]:
        return "fails"
    works = undefended and undefended[0] >= 0.9 * undefended[1]
    return "holds" if works and high < 0.2 else "unknown"


def test_the_solution_of_verdicts_is_right():
    assert check.verdict(my_verdict).right
    found = [supports(*row) for row in EVIDENCE]
    assert {one: found.count(one) for one in ("holds", "fails", "unknown")} == {
        "holds": 2,
        "fails": 4,
        "unknown": 6,
    }


@pytest.mark.parametrize("words", _MISREADINGS)
def test_mistakes_of_verdicts(words):
    found = check.verdict(_MISREADINGS[words])
    assert found.right is False and found.text == words


def test_no_two_misreadings_give_the_same_answers_and_none_the_right_ones():
    functions = [*_MISREADINGS.values(), supports]
    given = [str([function(*row) for row in EVIDENCE]) for function in functions]
    assert len(set(given)) == len(given)


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        ("holds", "a function is wanted"),
        (lambda *row: True, "each a text"),
        (lambda *row: "fails", "supports 'holds', and yours says 'fails'"),
    ],
)
def test_other_verdicts_are_told_the_first_difference(mine, words):
    found = check.verdict(mine)
    assert found.right is False and words in found.text


@pytest.mark.parametrize("mine", [SUPPORTED, list(SUPPORTED), tuple(SUPPORTED)])
def test_supported_claims_are_right(mine):
    assert check.claims(mine).right


@pytest.mark.parametrize("name", sorted(STATEMENTS.keys() - SUPPORTED))
def test_every_unsupported_claim_has_its_words(name):
    found = check.claims({*SUPPORTED, name})
    assert found.right is False and threat_models.WHY[name] in found.text


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        ("budget", "a set of names"),
        ({"magic"}, "no statement 'magic'"),
        (set(), "You may say"),
        ({"budget"}, "You may say 'one-opening'"),
    ],
)
def test_mistakes_of_claims(mine, words):
    found = check.claims(mine)
    assert found.right is False and words in found.text
