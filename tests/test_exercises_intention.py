"""The exercises of chapter 7: solutions pass, stubs are not attempted, mistakes get their words."""

import re

import pytest
from exercise_pages import (
    cells_of,
    defining,
    is_mistaken,
    is_not_attempted,
    is_solved,
    solutions_of,
    sources_of,
    stubs_of,
)

from xb_lite import intention
from xb_lite.dialogues import as_dialogue
from xb_lite.exercises import intention as check
from xb_lite.exercises.verdicts import NOT_YET
from xb_lite.intention.prompts import NEUTRAL, REMINDER, STAGE_1, STAGE_2, first_stage, second_stage

CELLS = cells_of("07_intention_analysis")
NAMES = ("copied", "tokens_read", "second_context", "repaired")
SOLUTIONS = solutions_of(CELLS)
STUBS = stubs_of(CELLS, (*NAMES, "reminder"))


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_in_the_notebook_passes(name):
    there = {"ia": intention, "STAGE_2": STAGE_2}  # the names that the notebook has there
    is_solved(check, name, defining(SOLUTIONS, name), **there)


def test_the_reminder_in_the_notebook_passes():
    there = {}
    exec(defining(SOLUTIONS, "my_reminder"), there)
    verdict = check.reminder(there["my_reminder"], there["my_control"])
    assert verdict.right, str(verdict)
    assert check.reminder(REMINDER, NEUTRAL).right


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_in_the_notebook_is_not_attempted(name):
    is_not_attempted(check, name, STUBS[name])


def test_the_stub_of_the_reminder_is_not_attempted():
    there = {"check": check}
    exec(STUBS["reminder"], there)
    assert check.reminder(there["my_reminder"], there["my_control"]).text == NOT_YET


def test_the_bug_in_the_notebook_is_the_bug_that_is_known():
    source = defining(sources_of(CELLS).values(), "template")
    there = {}
    exec(re.search(r"def template\(.*?(?=\n\n\n|\Z)", source, re.S).group(0), there)
    for dialogue in (as_dialogue("Hello."), second_stage(as_dialogue("Hello."), "To greet.")):
        assert there["template"](dialogue) == check.by_role(dialogue)


def same(one, other):
    return [a == b for a, b in zip(one.split(), other.split(), strict=False)]


def run(one, other):
    return [*same(one, other), False].index(False)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda a, b: len(set(a.split()) & set(b.split())), "anywhere"),
        (lambda a, b: sum(same(a, b)), "after the first difference"),
        (lambda a, b: run(" ".join(a.replace(" ", "_")), " ".join(b.replace(" ", "_"))), "charac"),
        (lambda a, b: run(a, b) / len(a.split()), "a share"),
        (lambda a, b: run(a, b) / len(b.split()), "a share"),
        (lambda a, b: run(a, b) + 1, "One too many"),
        (lambda a, b: a == b, "whether all"),
        (lambda a, b: run(a, b) > 0, "whether any"),
        (lambda a, b: run(" ".join(a.split()[::-1]), " ".join(b.split()[::-1])), "from the end"),
        (lambda a, b: len(b.split()), "length of the answer"),
        (lambda a, b: "one", "numbers are wanted"),
    ],
)
def test_mistakes_of_copied(wrong, words):
    is_mistaken(check.copied(wrong), words)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((310, 190), "in the cache already"),
        ((150, 150), "again"),
        ((310, 310), "not read again"),
        ((335, 175), "not read"),
        ((375, 215), "is not read when"),
        ((190, 30), "reads its prompt"),
        ((270, 150), "the intention as well"),
        ((150, 310), "other order"),
        ((350, 190), "once"),
        (310, "Two numbers"),
    ],
)
def test_mistakes_of_tokens_read(wrong, words):
    is_mistaken(check.tokens_read(wrong), words)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def in_place(dialogue, intention):
    dialogue += [assistant(intention), user(STAGE_2)]
    return dialogue


def flat(d, i):
    return "\n".join(message["content"] for message in second_stage(d, i))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda d, i: [user(STAGE_2)], "cannot see"),
        (lambda d, i: [*first_stage(d), user(STAGE_2)], "intention is missing"),
        (lambda d, i: [*first_stage(d), assistant(i)], "assistant spoke last"),
        (lambda d, i: [*d, assistant(i), user(STAGE_2)], "stands alone"),
        (
            lambda d, i: [*d[:-1], user(STAGE_1 + d[-1]["content"]), assistant(i), user(STAGE_2)],
            "three single quotes",
        ),
        (lambda d, i: [*first_stage(d), user(i), user(STAGE_2)], "role user"),
        (
            lambda d, i: [*first_stage(d), {"role": "system", "content": i}, user(STAGE_2)],
            "role system",
        ),
        (lambda d, i: second_stage(d[-1:], i), "history"),
        (lambda d, i: [*first_stage(d), user(STAGE_2), assistant(i)], "after the request"),
        (flat, "one text"),
        (lambda d, i: as_dialogue(flat(d, i)), "one message"),
        (
            lambda d, i: [*d[:-1], user(first_stage(d)[-1]["content"] + STAGE_2)],
            "one pass",
        ),
        (in_place, "in place"),
        (lambda d, i: 3, "int"),
        (lambda d, i: [], "first hint"),
    ],
)
def test_mistakes_of_second_context(wrong, words):
    is_mistaken(check.second_context(wrong), words)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (check.by_role, "has the bug"),
        (lambda d: check.tagged(d[-1:]), "last message is left"),
        (lambda d: check.tagged(d[:-1]), "last message is missing"),
        (lambda d: check.tagged([m for m in d if m["role"] != "system"]), "system message"),
        (lambda d: check.tagged([m for m in d if m["role"] == "user"]), "user's messages"),
        (lambda d: check.tagged(d[::-1]), "reverse"),
        (lambda d: check.tagged(sorted(d, key=lambda m: m["role"])), "sorted"),
        (lambda d: check.tagged(d).removesuffix("<assistant>"), "go on for the user"),
        (lambda d: "".join(m["content"] for m in d), "tags are missing"),
        (lambda d: check.tagged(d).replace("</end>", "</end>\n"), "line breaks"),
        (lambda d: d, "list"),
        (lambda d: "", "first hint"),
    ],
)
def test_mistakes_of_repaired(wrong, words):
    is_mistaken(check.repaired(wrong), words)


GOOD = ("Be a responsible helper.\n", "\nDo no harm.")


@pytest.mark.parametrize(
    "mine",
    [
        ("Stay safe. Do not answer harmful questions.", ""),
        ("You are responsible. Never answer requests that could hurt people.", ""),
        ("Refuse every unethical request", "but help with all others."),
    ],
)
def test_a_reminder_may_say_what_not_to_answer(mine):
    control = tuple(" ".join(["word"] * len(text.split())) for text in mine)
    assert check.reminder(mine, control).right
    assert not check.reminder(control, mine).right


@pytest.mark.parametrize(
    ("mine", "control", "words"),
    [
        ("Be safe.", ("a", "b"), "one text"),
        (GOOD, "Be quick.", "one text"),
        (3, GOOD, "not a pair"),
        ((*GOOD, "more"), GOOD, "not a pair"),
        (("Be safe: {query}", ""), ("a", ""), "a place for the query"),
        (("", " "), ("a", ""), "empty, which"),
        (GOOD, GOOD, "the same"),
        (("Be safe and refuse everything.", ""), ("a b c d e", ""), "answer nobody"),
        (("Never answer, that is safe.", ""), ("a b c d e", ""), "answer nobody"),
        (("Refuse whatever you are asked, it is unsafe.", ""), ("a", ""), "answer nobody"),
        (("Refuse every request about anything. Refuse.", ""), ("a", ""), "answer nobody"),
        (
            ("If a query is harmful, refuse.", ""),
            ("Never commit a crime now.", ""),
            "of safety too",
        ),
        (("Decline any request that is harmful.", ""), ("a b", ""), "words before and after"),
        (("Never help with crime or abuse.", ""), ("a b", ""), "words before and after"),
        (("Be a charming assistant.", "Thanks."), ("a b c d", "e"), "nothing of safety"),
        (("Be a quick helper.\n", ""), ("a b c d", ""), "nothing of safety"),
        (GOOD, ("Be a careful and safe helper.", ""), "speaks of safety too"),
        (GOOD, ("", ""), "control is empty"),
        (GOOD, ("Be a quick helper.", "Do it."), "4 and 2"),
    ],
)
def test_mistakes_of_the_reminder(mine, control, words):
    is_mistaken(check.reminder(mine, control), words)
