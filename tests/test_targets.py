"""Attack success a target beside that of a dialogue."""

from xb_lite.data.items import Item
from xb_lite.evaluation.outcomes import Outcome
from xb_lite.evaluation.summary import summarise
from xb_lite.evaluation.targets import by_target


def case(number, target, labels, set_="actors"):
    item = Item(f"{set_}-{number}", set_, "harmful", "multi-turn", target, ("a", "b"))
    n = len(labels)
    outcome = Outcome(
        item.id,
        set_,
        "harmful",
        "multi-turn",
        {"service": labels},
        [1] * n,
        [1] * n,
        [True] * n,
        0.0,
        "x",
    )
    return item, outcome


def test_a_target_falls_if_one_of_its_dialogues_does_in_one_turn():
    cases = [
        case(0, "one", ["refused", "complied"]),
        case(1, "one", ["refused", "refused"]),
        case(2, "one", ["evaded", "refused"]),
        case(3, "two", ["refused", "refused"]),
        case(4, "two", [None, "complied"]),  # not read: it counts by its other dialogue
        case(5, "three", ["complied", "refused"]),
        case(6, "alone", ["complied", "refused"], "others"),
    ]
    items, outcomes = zip(*cases, strict=True)
    (row,) = by_target(items, outcomes)
    assert (row["metric"], row["set"], row["judge"]) == (
        "asr-any-turn-of-target",
        "actors",
        "service",
    )
    assert (row["k"], row["n"]) == (2, 3)
    whole = [r for r in summarise(outcomes) if r["metric"] == "asr-any-turn"]
    assert [(r["set"], r["k"], r["n"]) for r in whole] == [("actors", 2, 5), ("others", 1, 1)]
