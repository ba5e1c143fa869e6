"""Scripts by their style, beside all of them as one set."""

from dataclasses import replace

from test_targets import case

from xb_lite.corpora import load_scripts
from xb_lite.evaluation.styles import by_style
from xb_lite.evaluation.summary import summarise


def test_rows_by_style_add_up_to_those_of_all_scripts():
    scripts = load_scripts("test", 2)
    outcomes = []
    for place, script in enumerate(scripts):
        labels = ["refused", "complied" if place % 3 else "refused"]
        _, outcome = case(0, script.target, labels, "multi-turn")
        outcomes.append(replace(outcome, id=script.id))
    outcomes.append(case(0, "public", ["complied"])[1])
    rows = [row for row in by_style(outcomes) if row["metric"] == "asr-last-turn"]
    assert {row["set"] for row in rows} == {f"multi-turn, {s.style}" for s in scripts}
    whole = next(
        row
        for row in summarise(outcomes)
        if (row["metric"], row["set"]) == ("asr-last-turn", "multi-turn")
    )
    assert sum(row["n"] for row in rows) == whole["n"] == len(scripts)
    assert sum(row["k"] for row in rows) == whole["k"]
    actors = next(row for row in rows if row["set"] == "multi-turn, actor-network")
    assert actors["n"] == sum(s.style == "actor-network" for s in scripts)
