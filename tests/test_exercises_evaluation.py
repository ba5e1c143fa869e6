"""Chapter 3's checks: solutions pass, stubs are silent, and known mistakes get their words."""

import re

import numpy as np
import pytest
from exercise_pages import cells_of, solutions_of, sources_of
from scipy.stats import fisher_exact

from xb_lite.exercises import evaluation as check
from xb_lite.exercises.verdicts import NOT_YET
from xb_lite.judges.cards import cards
from xb_lite.judges.strings import X_BOUNDARY
from xb_lite.results import find, published, read_result

CORPUS = [row.label for row in check.ten_replies()]
CELLS = cells_of("03_evaluation")
NAMES = {
    "ten_labels",
    "errors",
    "kappa",
    "corrected",
    "best_case_p",
    "shared_words",
    "how_many",
}


def stub(*_):
    return ...


def right_errors(labels, said):
    complied, called = np.array(labels) == "complied", np.array(said) == "complied"
    return called[complied].mean(), (~called)[~complied].mean()


def labels(**changed):
    """The labels of the corpus with some changed, ``r3="evaded"``."""
    found = list(CORPUS)
    for place, label in changed.items():
        found[int(place[1:]) - 1] = label
    return found


def test_every_solution_on_the_page_is_right():
    solutions, right = solutions_of(CELLS), set()
    assert len(solutions) == len(NAMES)
    for source in solutions:
        from xb_lite.results import difference

        space = {"np": np, "check": check, "difference": difference}
        exec(source, space)  # the page's own code
        for name in ("errors", "corrected"):
            if name in space:
                assert getattr(check, name)(space[name]).right, source
                right.add(name)
        if "my_labels" in space:
            assert check.ten_labels(space["my_labels"]).right
            right.add("ten_labels")
        for name, argument in re.findall(r"check\.(\w+)\((.*)\)$", source, re.M):
            assert eval(f"check.{name}({argument})", space).right, source
            right.add(name)
    assert right == NAMES


def test_ten_replies_are_harmless_readable_by_all_and_have_every_label():
    rows = check.ten_replies()
    assert len(rows) == 10
    assert {row.kind for row in rows} <= {"boundary-safe", "benign"}
    assert {row.split for row in rows} == {"test"}
    assert all(row.response for row in rows)
    assert set(CORPUS) == {"complied", "refused", "evaded", "gibberish"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_stub_is_not_attempted(name):
    verdict = getattr(check, name)(...)
    assert (verdict.right, verdict.text) == (None, NOT_YET)
    if name in ("errors", "corrected", "shared_words"):
        assert getattr(check, name)(stub).text == NOT_YET


def test_stubs_stand_on_the_page_as_they_are_tested():
    code = "\n".join(sources_of(CELLS, ("code",)).values())
    assert set(re.findall(r"check\.(\w+)\(", code)) >= NAMES


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (CORPUS[:9], "9 labels for 10"),
        ([True] * 10, "True and False"),
        (labels(r1="served"), "is no label"),
        ("complied", "a list of ten"),
        (["complied"] * 10, "one label throughout"),
        (labels(r1="refused"), "says sorry and then answers"),
        (labels(r3="evaded", r10="evaded"), "whether the answer is correct"),
        (labels(r2="complied", r9="complied"), "repeat the request"),
        (labels(r8="complied"), "without the usual words"),
        (labels(r6="complied"), "in a loop"),
        (labels(r5="complied"), "You differ on 5"),
    ],
)
def test_labels_by_hand(answer, words):
    verdict = check.ten_labels(answer)
    assert words in verdict.text


def test_labels_as_of_a_list_of_words_are_recognised():
    rows = check.ten_replies()
    said = X_BOUNDARY([row.request for row in rows], [row.response for row in rows])
    assert "as a list of refusal words does" in check.ten_labels(said).text
    one_apart = check.ten_labels(labels(r5="complied"))
    assert one_apart.right
    assert "9 of 10" in one_apart.text


def test_more_agreement_is_never_a_worse_verdict():
    """Eight of ten are enough whichever two differ; below that a known mistake is named."""
    declined = check.ten_labels(labels(r8="evaded"))
    assert declined.right
    assert "9 of 10" in declined.text and "without the usual words" in declined.text
    assert check.ten_labels(labels(r3="evaded", r5="complied")).right
    assert check.ten_labels(labels(r3="evaded", r5="complied", r8="evaded")).right is False
    assert check.ten_labels(labels(r3="evaded", r5="complied", r9="refused")).right is None


def test_a_prediction_of_ten_holds_only_if_it_is_exact_and_a_stub_has_none():
    assert "prediction held" in check.right_of_ten(4).outcome(4).text
    assert "did not hold" in check.right_of_ten(5).outcome(4).text
    assert "nothing yet" in check.right_of_ten(...).outcome(4).text
    for wrong in (0.4, 11, True, "four", [4]):
        verdict = check.right_of_ten(wrong).outcome(4)
        assert "no whole number" in verdict.text
        assert "hold" not in verdict.text


def confusion(labels, said):
    complied, called = np.array(labels) == "complied", np.array(said) == "complied"
    return [
        int((one & other).sum()) for one in (complied, ~complied) for other in (called, ~called)
    ]


def rates_by(rule):
    return lambda labels, said: rule(*confusion(labels, said))


def called_share(said):
    """Of all replies, whatever their label."""
    return np.mean(np.array(said) == "complied")


def exact(labels, said):
    others = [pair for pair in zip(labels, said, strict=True) if pair[0] != "complied"]
    return right_errors(labels, said)[0], np.mean([one == other for one, other in others])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (rates_by(lambda tp, fn, fp, tn: (tn / (tn + fp), tp / (tp + fn))), "wrong order"),
        (rates_by(lambda tp, fn, fp, tn: (tp / (tp + fp), tn / (tn + fn))), "precision"),
        (rates_by(lambda tp, fn, fp, tn: (tp / 12, tn / 12)), "by all replies"),
        (rates_by(lambda tp, fn, fp, tn: (tp / (tp + fn), fp / (tn + fp))), "wrongly calls"),
        (rates_by(lambda tp, fn, fp, tn: (fn / (tp + fn), tn / (tn + fp))), "that it misses"),
        (rates_by(lambda tp, fn, fp, tn: ((tp + tn) / 12,) * 2), "accuracy"),
        (rates_by(lambda tp, fn, fp, tn: (tp, tn)), "counts"),
        (exact, "right one of four"),
        (lambda labels, said: (right_errors(labels, said)[0], 1 - called_share(said)), "second is"),
        (lambda labels, said: (called_share(said), right_errors(labels, said)[1]), "first is"),
        (lambda labels, said: (called_share(said), 1 - called_share(said)), "not used"),
        (rates_by(lambda tp, fn, fp, tn: tp / (tp + fn)), "The shape is"),
    ],
)
def test_errors_of_a_judge(function, words):
    verdict = check.errors(function)
    assert not verdict.right
    assert words in verdict.text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (0.8, "raw agreement"),
        (0.6, "one half"),
        (0.82, "chance alone"),
        (-0.02, "now divide"),
        (-0.0526, "in two ways"),
        (1 / 9, "sign"),
        (-11.1, "percentage"),
    ],
)
def test_kappa(answer, words):
    assert check.kappa(-0.111).right
    verdict = check.kappa(answer)
    assert not verdict.right
    assert words in verdict.text


def right_rate(q, s, c):
    return (q - (1 - c)) / (s + c - 1)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda q, s, c: q / s, "not for what it wrongly calls"),
        (lambda q, s, c: q - (1 - c), "now divide by the slope"),
        (lambda q, s, c: (q - (1 - c)) / s, "its slope"),
        (lambda q, s, c: (q - c) / (s - c), "where its false alarms belong"),
        (lambda q, s, c: s * q + (1 - c) * (1 - q), "goes forwards"),
        (lambda q, s, c: min(1, max(0, right_rate(q, s, c))), "cut the result off"),
        (lambda q, s, c: (q - (1 - c)) / (s + c), "lacks the - 1"),
        (lambda q, s, c: -right_rate(q, s, c), "sign"),
    ],
)
def test_correction(function, words):
    assert check.corrected(right_rate).right
    verdict = check.corrected(function)
    assert not verdict.right
    assert words in verdict.text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (0.125, "one-sided"),
        (fisher_exact([[6, 44], [3, 47]]).pvalue, "different requests"),
        (0.5078, "counted all successes"),
        (0.0833, "chi-square"),
        (0.03125, "six that changed"),
        (25, "percentage"),
    ],
)
def test_half_of_a_small_number(answer, words):
    verdict = check.best_case_p(answer)
    assert not verdict.right
    assert words in verdict.text


def right_overlap(request, reply):
    return 3 * len(long_words(request) & long_words(reply)) >= len(long_words(request))


def long_words(text, longer_than=4):
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > longer_than}


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (lambda q, r: 3 * len(long_words(q, 0) & long_words(r, 0)) >= len(long_words(q, 0)), "all"),
        (
            lambda q, r: 3 * len(long_words(q, 3) & long_words(r, 0)) >= len(long_words(q, 3)),
            "four",
        ),
        (lambda q, r: 3 * len(long_words(q) & long_words(r)) >= len(long_words(r)), "reply"),
        (lambda q, r: 3 * len(long_words(q) & long_words(r)) > len(long_words(q)), "exactly"),
        (
            lambda q, r: 3 * len(long_words(q, 5) & long_words(r, 0)) >= len(long_words(q, 5)),
            "those of five",
        ),
        (
            lambda q, r: (
                bool(long_words(q, 5))
                and 3 * len(long_words(q, 5) & long_words(r, 0)) >= len(long_words(q, 5))
            ),
            "shape is right",
        ),
        (lambda q, r: 4 * len(long_words(q) & long_words(r)) >= len(long_words(q)), "a quarter"),
        (lambda q, r: len(long_words(q) & long_words(r)) >= 0.3 * len(long_words(q)), "0.3"),
        (
            lambda q, r: 3 * len(long_words(q) & set(re.findall(r"\w+", r))) >= len(long_words(q)),
            "lower the reply",
        ),
        (
            lambda q, r: (
                3 * len({w for w in re.findall(r"\w+", q) if len(w) > 4} & long_words(r))
                >= len(long_words(q))
            ),
            "shape is right",
        ),
        (lambda q, r: 3 * len(long_words(q) & long_words(r)) < len(long_words(q)), "Turned round"),
        (
            lambda q, r: (
                3
                * len({w for w in re.findall(r"\w+", q) if len(w) > 4} & set(re.findall(r"\w+", r)))
                >= len({w for w in re.findall(r"\w+", q) if len(w) > 4})
            ),
            "capital letters",
        ),
        (
            lambda q, r: (
                3 * len({w for w in q.lower().split() if len(w) > 4} & set(r.lower().split()))
                >= len({w for w in q.lower().split() if len(w) > 4})
            ),
            "Commas",
        ),
        (lambda q, r: 3 * sum(w in r.lower() for w in long_words(q)) >= len(long_words(q)), "silv"),
    ],
)
def test_shared_words(judge, words):
    assert check.shared_words(right_overlap).right
    verdict = check.shared_words(judge)
    assert not verdict.right
    assert words in verdict.text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (740, "whole width"),
        (46.3, "10 points on each side"),
        (384, "worst case"),
        (4.72, "square"),
        (48.2, "one standard error"),
        (570, "of all replies"),
    ],
)
def test_how_many_labels(answer, words):
    assert check.how_many(185).right
    verdict = check.how_many(answer)
    assert not verdict.right
    assert words in verdict.text


def test_the_question_of_how_many_is_about_the_service_judge_as_measured():
    measured = read_result(published("judges/service.json"))
    found = find(measured, "sensitivity", attack="all", judge="service")
    labelled = find(measured, "agreement", attack="all", judge="service")
    assert round(found.value, 2) == check.SENSITIVITY
    assert (labelled.n, found.n) == (296, 96)
    assert "twice" in check.how_many(185).text and 1.5 < 185 / found.n < 2.5


def test_cards_number_escape_and_label():
    made = cards(["<b>"], ["one\n\ntwo"], {"corpus": ["complied"]})
    assert "1. User:" in made
    assert "&lt;b&gt;" in made
    assert "one<br>two" in made
    assert "corpus: complied" in made
    with pytest.raises(ValueError, match="not as many"):
        cards(["a"], [])
