"""A public set is what its name says: its requests, its number, its last turn, its context."""

import json
import os
from pathlib import Path

import pytest

from xb_lite.data import published
from xb_lite.data.items import attacked, load_items, plan
from xb_lite.data.public import BENCHMARKS, load_dialogues
from xb_lite.data.published import Published, mark
from xb_lite.data.rows import BenchmarkError
from xb_lite.judges.classifiers import CONTEXT_PROMPTS, HARMBENCH_PROMPTS

OFFICIAL = Path(os.environ.get("XB_LITE_OFFICIAL_DATA", "/none"))
BAKING = [f"How do I bake {n} loaves?" for n in range(8)]
SINGING = [f"How do I sing {n} songs?" for n in range(8)]


@pytest.fixture
def known(monkeypatch):
    """Baking is XSTest, singing is OKTest, and of OR-Bench only a part is known."""
    sets = {
        "xstest": Published((8,), True, frozenset(map(mark, BAKING))),
        "oktest": Published((8, 4), True, frozenset(map(mark, SINGING))),
        "orbench": Published((300,), False, frozenset({mark("How do I knit?")})),
    }
    monkeypatch.setattr(published, "published", lambda: sets)


@pytest.fixture
def save(tmp_path):
    def write(prompts):
        path = tmp_path / "mine.json"
        rows = [{"behavior": "b", "messages": [{"role": "user", "content": p}]} for p in prompts]
        path.write_text(json.dumps({"data": rows}))
        return str(path)

    return write


@pytest.mark.filterwarnings("error")
def test_a_whole_copy_is_taken(known, save):
    assert len(load_dialogues("xstest", path=save(BAKING))) == 8
    assert len(load_dialogues("oktest", path=save(SINGING[:4]))) == 4
    assert len(load_dialogues("xstest", path=save([p.upper() + " " for p in BAKING]))) == 8


@pytest.mark.parametrize(
    ("name", "prompts", "says"),
    [
        (
            "xstest",
            SINGING,
            "is not xstest: 0% of its requests are of that set, and most are of ok",
        ),
        ("xstest", ["How do I knit 1 sock?"] * 8, "is not xstest: 0% .* and they are others"),
        ("xstest", [*BAKING[:3], *SINGING[:5]], "is not xstest: 38% .*most are of oktest"),
        ("orbench", BAKING, "is not orbench: 0% .*most are of xstest"),
    ],
)
def test_another_set_under_its_name_is_refused(known, save, name, prompts, says):
    with pytest.raises(BenchmarkError, match=says) as raised:
        load_dialogues(name, path=save(prompts))
    assert "NAME:KIND=FILE" in str(raised.value) and "\n" not in str(raised.value)


def test_a_part_of_it_says_so(known, save):
    with pytest.warns(UserWarning, match="has 5 items, and xstest is published with 8"):
        load_dialogues("xstest", path=save(BAKING[:5]))
    with pytest.warns(UserWarning, match="has 3 items, and oktest is published with 8 or 4"):
        load_dialogues("oktest", path=save(SINGING[:3]))


@pytest.mark.filterwarnings("error")
def test_a_file_of_ones_own_is_nothing_else_than_it_says(known, save):
    assert len(load_items("cakes", path=save(BAKING), kind="benign")) == 8


def test_marks_are_of_the_sets_that_there_are():
    known = published.published()
    assert set(known) == set(BENCHMARKS)
    assert len(known["xstest"].marks) == 250 and known["xstest"].counts == (250,)
    assert len(known["harmbench"].marks) == 237  # of 240, three come twice
    assert not known["xstest"].marks & known["harmbench"].marks


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="XB_LITE_OFFICIAL_DATA names no folder")
def test_harmful_requests_are_not_xstest():
    with pytest.raises(BenchmarkError, match="is not xstest: 0% .*most are of harmbench"):
        load_dialogues("xstest", path=OFFICIAL / "harmbench_test_std.json")
    items = load_items("actorattack", path=str(OFFICIAL / "SafeMTData_Attack_test_600.json"))
    assert {len(item.turns) for item in items} == {6}
    assert all(item.turns[-1].startswith("Format above content to ") for item in items)


def actors(**details):
    query = {"query_details": details} if details else {}
    return {"default_target": "Bake", "behavior": "food", "queries": ["Who?", "How?"], **query}


def test_actorattack_ends_with_the_turn_that_asks_for_all_of_it(tmp_path, made_up_sets):
    path = tmp_path / "actors.json"
    rows = [
        actors(delivery_type="recipe", other_details="a poem"),
        actors(delivery_type="recipe", other_details=""),
        actors(),
    ]
    path.write_text(json.dumps({"data": rows}))
    found = [item.turns for item in load_items("actorattack", path=str(path))]
    assert found == [
        ("Who?", "How?", "Format above content to recipe in style of a poem."),
        ("Who?", "How?", "Format above content to recipe"),
        ("Who?", "How?"),
    ]
    first = plan([f"actorattack={path}"], as_published=False)
    assert {item.turns for item in first} == {("Who?", "How?")}


def test_a_judge_is_told_what_a_request_is_about(tmp_path, made_up_sets):
    path = tmp_path / "bench.json"
    row = {"behavior": "Bake it", "default_target": "Sure", "context": "Flour and water."}
    row["messages"] = [{"role": "user", "content": "Bake it"}]
    path.write_text(json.dumps({"data": [row]}))
    (item,) = load_items("harmbench", path=str(path))
    assert item.request == "Bake it" and item.context == "Flour and water."
    assert item.judged == item.turns[0] == "Flour and water.\n\n---\n\nBake it"
    wrapped = attacked([item], "wrapper")
    assert all("Flour and water." in one.turns[0] for one in wrapped)
    (before,) = load_items("harmbench", path=str(path), as_published=False)
    assert before.judged == "Bake it" and before.turns == item.turns


def test_harmbenchs_prompt_for_a_context_is_the_other_with_it():
    for kind, prompt in CONTEXT_PROMPTS.items():
        assert "[CONTEXT]:\n{context}\n\n[BEHAVIOR]:\n{behavior}\n" in prompt
        without = prompt.replace("[CONTEXT]:\n{context}\n\n", "")
        without = without.replace("the behavior given the context", "the following behavior")
        assert without.replace("behavior and context", "behavior") == HARMBENCH_PROMPTS[kind]
