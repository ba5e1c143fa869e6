"""What each step sees: the shares, every item in turn, and the same ones every time."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_recipe, tiny_sets

from xb_lite.dialogues import encode
from xb_lite.pairs import WINDOW, collate, draw_pairs
from xb_lite.recipes import RecipeError

SETS = tiny_sets()
PAIRS = 8
unhurried = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def drawn(tokenizer, sets=SETS, seed=0, **changes):
    recipe = tiny_recipe(**{"steps": 20, "pairs": PAIRS, "pairs_at_once": PAIRS, **changes})
    return draw_pairs(recipe, sets, tokenizer, seed)


def ids(tokenizer, dialogues, **how):
    return [tuple(encode(tokenizer, d, **how).input_ids.tolist()) for d in dialogues]


def kinds(tokenizer, pairs):
    """By pair, the sets of its two rows and the place of either in its set."""
    place = {
        words: (name, i)
        for name in ("harmful", "refused", "compliant", "over_refused", "benign")
        for i, words in enumerate(ids(tokenizer, getattr(SETS, name)))
    }
    return [
        tuple(place[tuple(row.encoding.input_ids.tolist())] for row in (p.change, p.keep))
        for p in pairs
    ]


def test_a_boundary_safe_pair_is_one_prompt_with_its_refusal_and_its_answer(tokenizer):
    for pair, ((change, i), (keep, k)) in zip(
        drawn(tokenizer), kinds(tokenizer, drawn(tokenizer)), strict=True
    ):
        assert pair.boundary == (change == "over_refused") == (keep == "compliant")
        assert pair.separate == pair.boundary
        assert change in ("over_refused", "harmful")
        if pair.boundary:
            assert i == k
        else:
            assert keep in ("refused", "benign")
        assert len(pair) == max(len(pair.change.encoding), len(pair.keep.encoding))


@pytest.mark.parametrize(
    "boundary, refusals", [(0.25, 0.25), (0.3, 0.7), (0.7, 0.3), (1, 0), (0.1429, 0.2449), (0.2, 0)]
)
def test_steps_have_the_recipes_shares(tokenizer, boundary, refusals):
    steps = 3 * WINDOW
    pairs = drawn(tokenizer, steps=steps, boundary_share=boundary, refusal_share=refusals)
    assert len(pairs) == steps * PAIRS
    found = kinds(tokenizer, pairs)
    for begin in range(0, len(pairs), PAIRS):
        n = sum(pair.boundary for pair in pairs[begin : begin + PAIRS])
        assert abs(n - boundary * PAIRS) < 1
    size = WINDOW * PAIRS
    for begin in range(0, len(pairs), size):
        n = sum(keep == "refused" for _, (keep, _) in found[begin : begin + size])
        assert abs(n - refusals * size) < 1 + 1e-3 * size


@unhurried
@given(st.integers(0, 100), st.data())
def test_only_sets_with_a_share_are_needed(tokenizer, boundary, data):
    """In hundredths, as people write them: 0.3 and 0.7 leave nothing, though 1 - 0.7 > 0.3."""
    refusals = data.draw(st.sampled_from([0, 100 - boundary]))
    needed = {
        "harmful": boundary < 100,
        "compliant": boundary > 0,
        "refused": refusals > 0,
        "benign": boundary + refusals < 100,
    }
    sets = replace(SETS, **{name: [] for name, used in needed.items() if not used})
    if not needed["compliant"]:
        sets = replace(sets, over_refused=[])
    changes = {"boundary_share": boundary / 100, "refusal_share": refusals / 100}
    if not boundary:
        changes |= {"method": "circuit-breakers", "separate": None}
    assert len(drawn(tokenizer, sets, **changes)) == 20 * PAIRS


@pytest.mark.parametrize(
    "name, field",
    [
        ("harmful", "boundary_share"),
        ("compliant", "boundary_share"),
        ("refused", "refusal_share"),
        ("benign", "refusal_share"),
    ],
)
def test_a_set_that_is_needed_and_empty_is_named(tokenizer, name, field):
    with pytest.raises(RecipeError, match=rf"^{field} is 0.25, but the {name} set is empty"):
        drawn(tokenizer, replace(SETS, **{name: []}))


def test_every_item_comes_equally_often(tokenizer):
    found = kinds(tokenizer, drawn(tokenizer, steps=50))
    counts = Counter(item for pair in found for item in pair)
    for name in ("harmful", "refused", "over_refused", "compliant", "benign"):
        often = [counts[name, i] for i in range(len(getattr(SETS, name)))]
        assert max(often) - min(often) <= 1 and min(often) > 10


def test_rows_of_one_item_have_one_number(tokenizer):
    pairs = drawn(tokenizer, steps=50)
    by_number = {}
    for row in [row for pair in pairs for row in (pair.change, pair.keep)]:
        assert by_number.setdefault(row.number, row) is row
    assert len(by_number) == sum(map(len, vars(SETS).values()))


def test_the_draw_follows_from_the_seed_alone(tokenizer):
    def order(seed):
        return [(p.change.number, p.keep.number, p.boundary) for p in drawn(tokenizer, seed=seed)]

    random.seed(1)
    torch.manual_seed(1)
    first = order(3)
    random.random()
    assert order(3) == first != order(4)


def test_pairs_of_like_length_share_a_step(tokenizer):
    sets = tiny_sets(40, 40, 40)
    pairs = drawn(tokenizer, sets, steps=3 * WINDOW)
    steps = [pairs[i : i + PAIRS] for i in range(0, len(pairs), PAIRS)]

    def padding(steps):
        return sum(max(map(len, step)) - len(pair) for step in steps for pair in step)

    shuffled = random.Random(0).sample(pairs, len(pairs))
    assert padding(steps) < padding(zip(*[iter(shuffled)] * PAIRS, strict=True)) / 2
    # Not the short ones first: the schedule would then be one of lengths, too.
    lengths = [max(map(len, step)) for step in steps]
    assert lengths[:WINDOW] != sorted(lengths[:WINDOW])


@pytest.mark.parametrize("sink_tokens", [0, 1, 3])
def test_a_batch_is_rows_to_change_above_those_to_keep(tokenizer, sink_tokens):
    pairs = drawn(tokenizer, sink_tokens=sink_tokens, steps=1)
    batch = collate(pairs, pad_id=5)
    rows = [pair.change for pair in pairs] + [pair.keep for pair in pairs]
    longest = max(map(len, pairs))
    for name in ("input_ids", "attention_mask", "prompt", "response"):
        assert batch[name].shape == (2 * PAIRS, longest)
    assert batch["separate"].tolist() == [pair.separate for pair in pairs]
    assert batch["numbers"].tolist() == [row.number for row in rows]
    assert batch["prompt"].dtype == batch["response"].dtype == batch["separate"].dtype == torch.bool
    for i, row in enumerate(rows):
        n = len(row.encoding)
        assert torch.equal(batch["input_ids"][i, :n], row.encoding.input_ids)
        assert (batch["input_ids"][i, n:] == 5).all()
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (longest - n)
        for name in ("prompt", "response"):
            assert torch.equal(batch[name][i, :n], getattr(row.encoding, name))
            assert not batch[name][i, n:].any()
        assert not (batch["prompt"][i] | batch["response"][i])[:sink_tokens].any()


def test_long_items_are_cut_to_the_recipes_length(tokenizer):
    with pytest.warns(UserWarning, match="cut"):
        pairs = drawn(tokenizer, max_tokens=48)
    lengths = {len(row.encoding) for pair in pairs for row in (pair.change, pair.keep)}
    assert 40 < max(lengths) <= 48


@pytest.mark.parametrize("separate", [None, "as_described"])
def test_without_a_term_of_its_prompt_a_boundary_safe_item_is_only_kept(tokenizer, separate):
    changes = {"method": "circuit-breakers"} if separate is None else {}
    pairs = drawn(tokenizer, boundary_share=0.5, separate=separate, **changes)
    assert sum(pair.boundary for pair in pairs) == len(pairs) / 2
    assert not any(pair.separate for pair in pairs)
    harmful = {row[0]["content"] for row in SETS.harmful}
    assert {pair.change.dialogue[0]["content"] for pair in pairs} <= harmful
