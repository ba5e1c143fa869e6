"""Rates over seeds and differences on the same items."""

import pytest

from xb_lite.evaluation.comparison import gap, gap_by_group, item_rates
from xb_lite.evaluation.outcomes import Outcome
from xb_lite.results.stats import Estimate, mean_gain, mean_of_runs


def outcome(name, *labels, set_="xstest", attack="direct", readable=True):
    said = {
        "x-boundary": list(labels),
        "gibberish": ["complied" if readable else "gibberish"] * len(labels),
    }
    n = [1] * len(labels)
    return Outcome(name, set_, "boundary-safe", attack, said, n, n, [True] * len(labels), 0.1, "")


ONE = [outcome("a", "refused"), outcome("b", "complied"), outcome("c", "complied", readable=False)]
TWO = [outcome("a", "complied"), outcome("b", "complied"), outcome("c", "refused")]


def test_an_item_is_the_share_of_its_seeds():
    assert item_rates([ONE, TWO], "orr", ["xstest"]) == {"a": 0.5, "b": 0.0, "c": 1.0}
    assert item_rates([ONE, TWO], "served", ["xstest"]) == {"a": 0.5, "b": 1.0, "c": 0.0}
    assert item_rates([TWO], "asr", ["xstest"]) == {"a": 1.0, "b": 1.0, "c": 0.0}


def test_only_the_items_asked_for_count_and_of_several_turns_the_last():
    log = [
        *ONE,
        outcome("d", "complied", "refused", set_="actorattack", attack="multi-turn"),
        outcome("e", "refused", "complied", set_="actorattack", attack="multi-turn"),
        outcome("f", "complied", set_="harmbench", attack="prefill"),
    ]
    assert item_rates([log], "asr", ["actorattack"], "multi-turn") == {"d": 0.0, "e": 1.0}
    assert item_rates([log], "asr", ["harmbench", "harmful"], "prefill") == {"f": 1.0}


def test_a_gap_is_paired_by_item_whatever_their_order():
    one = item_rates([ONE], "orr", ["xstest"])
    other = item_rates([TWO[::-1]], "orr", ["xstest"])
    assert gap(one, other) == mean_gain([1.0, 0.0, 0.0]) and gap(one, one).value == 0
    assert gap({"a": 1.0, "b": 0.5}, {"b": 0.5, "a": 0.0}).value == 0.5


@pytest.mark.parametrize(
    ("logs", "metric", "sets"),
    [
        ([], "orr", ["xstest"]),
        ([ONE], "orr", ["orbench"]),
        ([ONE, TWO[:2]], "orr", ["xstest"]),
        ([ONE], "over-refusal", ["xstest"]),
        ([[outcome("a", None)]], "orr", ["xstest"]),
    ],
)
def test_what_cannot_be_compared_is_refused(logs, metric, sets):
    with pytest.raises(ValueError):
        item_rates(logs, metric, sets)


def test_a_gap_between_other_items_is_refused():
    with pytest.raises(ValueError, match="same items"):
        gap({"a": 1.0}, {"b": 1.0})


ASKED = {"a+one": 1.0, "a+two": 0.5, "b+one": 0.0, "b+two": 0.0, "c+one": 1.0}


@pytest.mark.parametrize(
    ("part", "gains"), [(0, [0.75, 0.0, 1.0]), (1, [2 / 3, 0.25])], ids=["request", "wrapper"]
)
def test_a_gap_by_group_has_one_value_a_request_or_a_wrapper(part, gains):
    found = gap_by_group(ASKED, dict.fromkeys(ASKED, 0.0), part)
    assert vars(found) == pytest.approx(vars(mean_of_runs(gains)))


def test_groups_in_which_nothing_changes_have_no_interval():
    assert gap_by_group(ASKED, ASKED, 0) == Estimate(0.0, 3, 0.0, 0.0)


def test_a_gap_by_group_of_other_items_is_refused():
    with pytest.raises(ValueError, match="same items"):
        gap_by_group(ASKED, {"a+one": 1.0}, 0)
