"""Controls of the boundary-safe data, and that without one nothing is changed."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_model, tiny_recipe, tiny_sets

from xb_lite.corpora import load_corpus
from xb_lite.models.adapters import read_run
from xb_lite.models.precision import Precision
from xb_lite.recipes import RecipeError
from xb_lite.replies.types import Decoding, Reply
from xb_lite.training.controls import controlled
from xb_lite.training.draw import draw_pairs
from xb_lite.training.official import OfficialSets
from xb_lite.training.run import train
from xb_lite.training.sets import GROUPS, REFUSAL, Sets, reference_sets

pytestmark = pytest.mark.usefixtures("one_thread")

EXACT = Precision("cpu", torch.float32, None, "tests")
SETS = tiny_sets()
STYLED = Sets(
    [
        replace(e, style="list" if " 1" in e.dialogue[0]["content"] else "story")
        if e.kind == "boundary-safe"
        else e
        for e in SETS.examples
    ]
)
FIRST = len(load_corpus("boundary-safe", "train", 1))  # of the second edition, too
NOISE = {"label_noise": 0.4}  # two of five prompts
CONTROLS = [
    NOISE,
    {"boundary_style": "list"},
    {"separate_target": "random"},
    {"separate_target": "random", "separate": "as_described"},
    {"method": "circuit-breakers", "separate": None, **NOISE},
]


def prompts(sets, name):
    return [dialogue[-2]["content"] for dialogue in sets[name]]


def noisy(seed=0, sets=SETS, **changes):
    return controlled(tiny_recipe(**{**NOISE, **changes}), sets, seed)


def test_without_a_control_the_sets_are_the_same_ones():
    for changes in ({}, {"separate_target": "random"}, {"label_noise": 0}):
        assert controlled(tiny_recipe(**changes), SETS, 0) is SETS


def test_shuffled_labels_change_places_and_take_their_responses_along():
    found = noisy()
    assert {name: len(found[name]) for name in GROUPS} == {name: len(SETS[name]) for name in GROUPS}
    safe = set(prompts(SETS, "compliant")) - set(prompts(found, "compliant"))
    bad = set(prompts(SETS, "harmful")) - set(prompts(found, "harmful"))
    assert len(safe) == len(bad) == 2
    for name in ("compliant", "over_refused", "compliant_prefilled", "over_refused_prefilled"):
        assert set(prompts(found, name)) == set(prompts(SETS, name)) - safe | bad
        refusals = "over_refused" in name
        for dialogue in found[name]:
            if dialogue[-2]["content"] in bad:
                said = dialogue[-1]["content"]
                assert (said == REFUSAL) == refusals and (dialogue in SETS["harmful"]) != refusals
    for name, was in (("harmful", "compliant_prefilled"), ("refused", "over_refused")):
        assert set(prompts(found, name)) == set(prompts(SETS, name)) - bad | safe
        moved = [d for d in found[name] if d[-2]["content"] in safe]
        assert moved == [d for d in SETS[was] if d[-2]["content"] in safe]
    for name in ("benign", "harmful_dialogues", "benign_dialogues_prefilled"):
        assert found[name] == SETS[name]
    # What is refused in the separate set is still answered in the same place of the retain set.
    for which in ("", "_prefilled"):
        assert prompts(found, f"compliant{which}") == prompts(found, f"over_refused{which}")


def test_the_runs_seed_shuffles_the_labels():
    again, others = noisy(), [noisy(seed) for seed in range(1, 6)]
    assert again.digest == noisy().digest
    assert len({again.digest, *(other.digest for other in others)}) > 2


def test_all_labels_and_more_than_there_are_harmful_requests():
    found = noisy(label_noise=1)
    assert not set(prompts(found, "compliant")) & set(prompts(SETS, "compliant"))
    few = tiny_sets(harmful=1)
    with pytest.raises(RecipeError, match="0.4, which is 2 boundary-safe prompts, but there are 1"):
        noisy(sets=few)


def test_without_an_answer_after_the_prefill_the_plain_one_is_taken():
    bare = SETS.having(compliant_prefilled=[], over_refused_prefilled=[])
    found = noisy(sets=bare, prefilled_share=0)
    assert sum(dialogue in SETS["compliant"] for dialogue in found["harmful"]) == 2


def test_of_one_style_alone():
    found = controlled(tiny_recipe(boundary_style="list"), STYLED, 0)
    assert {e.style for e in found.examples if e.kind == "boundary-safe"} == {"list"}
    assert len(found["compliant"]) == len(found["over_refused_prefilled"]) == 1
    for name in ("harmful", "refused", "benign", "harmful_dialogues"):
        assert found[name] == SETS[name]
    with pytest.raises(RecipeError, match="'list', but no boundary-safe prompt has it"):
        controlled(tiny_recipe(boundary_style="list"), SETS, 0)
    both = controlled(tiny_recipe(boundary_style="list", label_noise=1), STYLED, 0)
    assert set(prompts(both, "compliant")) < set(prompts(SETS, "harmful"))


def test_the_second_edition_has_styles_in_its_later_prompts(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path))

    class Fake:
        def reply(self, dialogues, decoding, prefill=""):
            return [Reply(f"{prefill} it is so.", 7, 5, True) for _ in dialogues]

        def play(self, scripts, decoding):
            return [[Reply("It is so.", 7, 5, True) for _ in script] for script in scripts]

    def styles(edition):
        some = {"edition": edition, "limit": FIRST + 30}
        sets = reference_sets(Fake(), Decoding(32), {"model": "fake"}, **some)
        assert {e.style for e in sets.examples if e.kind != "boundary-safe"} == {None}
        return sets, {e.style for e in sets.examples if e.kind == "boundary-safe"}

    rows = load_corpus("boundary-safe", "train", 2)[: FIRST + 30]
    sets, found = styles(2)
    assert found == {row.style for row in rows} and styles(1)[1] == {None}
    one = controlled(tiny_recipe(boundary_style="question"), sets, 0)
    wanted = [row.prompt for row in rows if row.style == "question"]
    assert prompts(one, "compliant") == prompts(one, "over_refused_prefilled") == wanted


def test_official_data_have_no_controls_of_the_books_prompts(tokenizer):
    for changes in (NOISE, {"boundary_style": "list"}):
        field = next(iter(changes))
        with pytest.raises(RecipeError, match=f"{field} is a control of the book's own prompts"):
            OfficialSets([], [], [], []).draw(tiny_recipe(**changes), tokenizer)


@pytest.mark.parametrize("changes", CONTROLS, ids=str)
def test_a_control_draws_as_the_run_that_it_controls(tokenizer, changes):
    """Kinds of pairs at the same places, from the same number of items."""
    own = {name: changes[name] for name in ("method", "separate") if name in changes}
    plain, other = (
        draw_pairs(tiny_recipe(steps=9, **some), STYLED, tokenizer, 0) for some in (own, changes)
    )
    assert [(p.boundary, p.separate) for p in plain] == [(p.boundary, p.separate) for p in other]
    same = [p.change.dialogue == q.change.dialogue for p, q in zip(plain, other, strict=True)]
    assert all(same) == ("separate_target" in changes)


@pytest.mark.parametrize("changes", CONTROLS, ids=str)
def test_a_control_trains_says_so_and_goes_on_only_as_itself(tmp_path, tokenizer, changes):
    recipe = tiny_recipe(**{"steps": 2, "lora_std": 0.1, **changes})
    model = tiny_model(tokenizer, num_hidden_layers=4)

    def trained(recipe, folder, seed=0):
        return train(recipe, model, tokenizer, STYLED, folder, EXACT, seed=seed)

    curve = trained(recipe, tmp_path / "one").curve
    assert all(math.isfinite(value) for row in curve for value in row.values())
    said = read_run(tmp_path / "one")["run"]["recipe"]
    assert said.items() >= changes.items()
    assert trained(recipe, tmp_path / "again").curve == curve
    off = {"label_noise": 0.0, "boundary_style": None, "separate_target": "centroid"}
    plain = replace(recipe, **off)
    assert trained(plain, tmp_path / "plain").curve != curve
    assert not read_run(tmp_path / "plain")["run"]["recipe"].keys() & off.keys()
    with pytest.raises(RuntimeError, match="has a run of another recipe in it"):
        trained(plain, tmp_path / "one")
