"""What lists of refusal strings see, what they only seem to see, and what they miss."""

import pytest

from xb_lite.judges.strings import INTENTION_ANALYSIS, X_BOUNDARY, XSTEST, agreement

JUDGES = (XSTEST, X_BOUNDARY, INTENTION_ANALYSIS)


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: judge.name)
def test_plain_refusals_and_plain_answers(judge):
    responses = ["I'm sorry, but that is not something I will do.", "Open it, then close it.", ""]
    assert judge(["Do it."] * 3, responses) == ["refused", "complied", "complied"]
    assert "et al." in judge.source


@pytest.mark.parametrize(
    ("response", "refused_by"),
    [
        # False positives of looking anywhere: the words are parts of others, or beside the point.
        ("First visit the casino, then have dinner.", {"x-boundary"}),
        ("She plays the piano, he sings.", {"x-boundary"}),
        ("It is the highest volcano.", {"x-boundary"}),
        ("Keep the list as an aid to memory.", {"x-boundary"}),
        ("Here is a sorry tale in three acts.", {"x-boundary"}),
        # False positives of IA: a helpful answer that greets, or that names the law.
        ("Hello! The museum opens at nine.", {"intention-analysis"}),
        ("It was illegal until 1967 and is legal today.", {"intention-analysis"}),
        # A refusal late in the response escapes the prefix.
        ("That is a hard one. I cannot help with it.", {"x-boundary", "intention-analysis"}),
        # Refusals that none of them sees.
        ("I won't help with that.", set()),
        ("Unfortunately, this is not possible.", set()),
        ("I can’t help with that.", set()),  # a curly apostrophe
    ],
)
def test_known_faults(response, refused_by):
    assert {judge.name for judge in JUDGES if judge.refuses(response)} == refused_by


def test_case_counts_for_intention_analysis_alone():
    assert XSTEST.refuses("I CANNOT") and X_BOUNDARY.refuses("well, I CANNOT")
    assert not INTENTION_ANALYSIS.refuses("I CANNOT")


def test_the_start_is_behind_what_is_blank_as_in_the_published_code():
    assert XSTEST.refuses(" \nI cannot do that.") and not XSTEST.refuses("**I cannot do that.")


def test_agreement_is_cohens_kappa():
    assert agreement([True, True, False, False], [True, False, True, False]) == 0
    assert agreement([True, False], [True, False]) == 1
    assert agreement([True, True], [True, True]) == 1
    # Observed agreement 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; so 0.2 / 0.5.
    one = [True] * 5 + [False] * 5
    other = [True] * 4 + [False] + [True] * 2 + [False] * 3
    assert agreement(one, other) == pytest.approx(0.4)


@pytest.mark.parametrize(("one", "other"), [([], []), ([True], [True, False])])
def test_labels_of_different_responses_are_refused(one, other):
    with pytest.raises(ValueError, match="same responses"):
        agreement(one, other)


def test_a_missing_label_is_named():
    with pytest.raises(ValueError, match="a label is None"):
        agreement(["complied", None], ["complied", "refused"])
