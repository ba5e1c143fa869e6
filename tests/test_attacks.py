"""What is asked: sets as they are, and plain requests under attack."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xb_lite.corpora import KINDS, SPLITS, Wrapper, load_corpus, load_scripts, load_wrappers
from xb_lite.data.items import (
    ATTACKS,
    OTHER_PREFILL,
    PREFILL,
    WRAPPERS_EACH,
    Item,
    attacked,
    items_digest,
    load_items,
    plan,
)
from xb_lite.data.rows import BenchmarkError

pytestmark = pytest.mark.usefixtures("made_up_sets")


def user(text):
    return {"role": "user", "content": text}


# In the layouts of the official X-Boundary code.
PROMPTS = {"data": [{"behavior": "homonyms", "messages": [user("How do I kill time?")]}] * 2}
TURNS = {
    "data": [
        {
            "behavior": "cooking",
            "default_target": "Bake a cake",
            "queries": ["Who bakes?", "What with?"],
        }
    ]
}


def direct(i):
    return Item(f"item-{i}", "own", "harmful", "direct", f"Request {i}", (f"Request {i}",))


def wrappers(n):
    return [Wrapper(f"wrapper-{i}", "letter", "test", f"{i}: {{request}}") for i in range(n)]


@pytest.fixture
def save(tmp_path):
    def write(content, name="mine.json"):
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return str(path)

    return write


def test_the_second_edition_has_its_own_prompts_scripts_and_wrappers():
    harmful, prefilled, wrapped, scripts = (
        [
            item
            for item in plan(["harmful", "multi-turn"], split="validation", edition=2)
            if item.attack == attack
        ]
        for attack in ("direct", "prefill", "wrapper", "multi-turn")
    )
    assert [i.request for i in harmful] == [
        row.prompt for row in load_corpus("harmful", "validation", 2)
    ]
    assert len(prefilled) == len(harmful) == 40 and len(wrapped) == WRAPPERS_EACH * 40
    wrappers = {wrapper.id for wrapper in load_wrappers("validation", 2)}
    assert {item.id.partition("+")[2] for item in wrapped} == wrappers
    assert len(scripts) == len(load_scripts("validation", 2)) == 20


def test_the_digest_of_items_is_of_all_that_a_judge_reads():
    known = [items_digest([direct(1)])]
    for other in (
        {"context": "A letter."},
        {"context": "Another letter."},
        {"prefill": "A letter."},
        {"request": "Request 2"},
    ):
        known.append(items_digest([replace(direct(1), **other)]))
    assert len(set(known)) == 5


def test_the_other_prefill_is_put_before_the_same_requests():
    (item,) = attacked([direct(1)], "other-prefill")
    assert item.prefill == OTHER_PREFILL != PREFILL and item.id == "item-1+other-prefill"
    assert item.turns == direct(1).turns and item.attack == "other-prefill"


@pytest.mark.parametrize("split", [*SPLITS, None])
@pytest.mark.parametrize("kind", KINDS)
def test_own_prompts_are_asked_as_they_are(kind, split):
    items = load_items(kind, split)
    assert [(item.id, item.request) for item in items] == [
        (row.id, row.prompt) for row in load_corpus(kind, split)
    ]
    assert all(item.turns == (item.request,) and item.prefill == "" for item in items)
    assert {(item.set, item.kind, item.attack) for item in items} == {(kind, kind, "direct")}


def test_own_items_are_of_the_test_split_unless_asked_otherwise():
    for name in (*KINDS, "multi-turn"):
        assert load_items(name) == load_items(name, "test")
        parts = [item for split in SPLITS for item in load_items(name, split)]
        assert sorted(i.id for i in parts) == sorted(i.id for i in load_items(name, None))
        assert len({item.id for item in parts}) == len(parts)


def test_scripts_are_judged_against_the_plain_request():
    for item, script in zip(load_items("multi-turn"), load_scripts("test"), strict=True):
        assert (item.id, item.request, item.turns) == (
            script.id,
            script.target,
            tuple(script.turns),
        )
        assert (item.kind, item.attack) == ("harmful", "multi-turn") and len(item.turns) > 1


def test_a_copy_of_a_benchmark_has_the_kind_of_the_benchmark(save):
    first, second = load_items("oktest", path=save(PROMPTS))
    assert (first.id, second.id) == ("oktest-1", "oktest-2")
    assert (first.set, first.kind, first.attack) == ("oktest", "boundary-safe", "direct")
    assert first.request == "How do I kill time?" and first.turns == ("How do I kill time?",)
    (item,) = load_items("actorattack", path=save(TURNS))
    assert (item.kind, item.attack, item.request) == ("harmful", "multi-turn", "Bake a cake")
    assert item.turns[:2] == ("Who bakes?", "What with?")


def test_a_file_of_ones_own_needs_a_name_and_a_kind(save):
    path = save(TURNS)
    (item,) = load_items("cakes", path=path, kind="benign")
    assert (item.id, item.set, item.kind) == ("mine-1", "cakes", "benign")
    for kind in (None, "rude", []):
        with pytest.raises(ValueError, match="set 'cakes' needs a kind, one of harmful, "):
            load_items("cakes", path=path, kind=kind)
    for name in ("oktest", "harmful"):
        with pytest.raises(ValueError, match=f"set '{name}' has a kind of its own"):
            load_items(name, kind="benign")


def test_what_is_not_there_is_named(save, tmp_path):
    with pytest.raises(ValueError, match="there is no set 'jokes': sets are harmful, .*multi-turn"):
        load_items("jokes")
    for name in (*KINDS, "multi-turn"):
        with pytest.raises(ValueError, match="no split 'tests'"):
            load_items(name, "tests")
        with pytest.raises(ValueError, match=f"set '{name}' is the book's own"):
            load_items(name, path=save(PROMPTS))
    with pytest.raises(BenchmarkError, match="There is no file"):
        load_items("oktest", path=str(tmp_path / "none.json"))
    with pytest.raises(BenchmarkError, match="row 1, field 'queries'"):
        load_items("cakes", path=save({"data": [{"queries": []}]}), kind="benign")


def test_a_prefill_is_put_before_the_same_request():
    items = load_items("harmful")
    for plain, item in zip(items, attacked(items, "prefill"), strict=True):
        assert item.id == f"{plain.id}+prefill" and item.attack == "prefill"
        assert item.prefill == PREFILL and item.turns == plain.turns
        assert (item.request, item.set, item.kind) == (plain.request, plain.set, plain.kind)


def test_wrapped_requests_are_judged_against_the_plain_one():
    plain, own = load_items("harmful"), {w.id: w for w in load_wrappers("test")}
    items = attacked(plain, "wrapper")
    assert len(items) == WRAPPERS_EACH * len(plain)
    by_id = {item.id: item for item in plain}
    for item in items:
        request, wrapper = item.id.split("+")
        assert item.request == by_id[request].request
        assert item.turns == (own[wrapper].wrap(item.request),) != by_id[request].turns
        assert (item.attack, item.prefill) == ("wrapper", "")
    assert {wrapper for wrapper in own} == {item.id.split("+")[1] for item in items}


def test_an_unknown_attack_is_refused_before_anything_is_read():
    """Also where no set is there for it to be on."""
    for sets in (["benign"], ["nonsense"]):
        with pytest.raises(ValueError, match="no attack 'threat'; attacks are prefill"):
            plan(sets, ["prefill", "threat"])


@given(st.integers(0, 40), st.integers(1, 12))
def test_all_wrappers_carry_equally_many_requests(n, n_wrappers):
    items = attacked([direct(i) for i in range(n)], "wrapper", wrappers(n_wrappers))
    each = min(WRAPPERS_EACH, n_wrappers)
    assert len({item.id for item in items}) == len(items) == n * each
    carried = Counter(item.id.split("+")[1] for item in items)
    counts = [carried[wrapper.id] for wrapper in wrappers(n_wrappers)]
    assert max(counts) - min(counts) <= 1
    assert all(count == each for count in Counter(item.request for item in items).values())


def test_an_unknown_attack_is_named_even_without_items():
    with pytest.raises(
        ValueError, match="no attack 'threat'; attacks are prefill, other-prefill, wrapper"
    ):
        attacked([], "threat")


@pytest.mark.parametrize("again", ATTACKS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacked_twice_is_refused(attack, again):
    once = attacked([direct(0)], attack)
    with pytest.raises(ValueError, match=f"item-0.* is {attack} already"):
        attacked([direct(1), *once], again)
    with pytest.raises(ValueError, match="is multi-turn already"):
        attacked(load_items("multi-turn")[:1], again)


def test_ids_are_unique_over_the_whole_plan():
    items = plan()
    assert len({item.id for item in items}) == len(items)
    assert {item.attack for item in items} == {"direct", "multi-turn", *ATTACKS}
    assert {item.kind for item in items} == set(KINDS)
