"""What each step sees: the shares, every item in turn, and the same ones every time."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_recipe, tiny_sets

from xb_lite.dialogues import as_turns, encode
from xb_lite.losses.batch import collate
from xb_lite.recipes import RecipeError
from xb_lite.training.draw import WINDOW, draw_pairs
from xb_lite.training.sets import GROUPS

SETS = tiny_sets()
PREFILLED = [name for name in GROUPS if name.endswith("_prefilled")]
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
        for name, dialogues in ((name, SETS[name]) for name in GROUPS)
        for i, words in enumerate(ids(tokenizer, dialogues))
    }
    return [
        tuple(place[tuple(row.encoding.input_ids.tolist())] for row in (p.change, p.keep))
        for p in pairs
    ]


def bare(name):
    return name.removesuffix("_prefilled")


def test_a_boundary_safe_pair_is_one_prompt_with_its_refusal_and_its_answer(tokenizer):
    for pair, ((change, i), (keep, k)) in zip(
        drawn(tokenizer), kinds(tokenizer, drawn(tokenizer)), strict=True
    ):
        assert pair.boundary == (bare(change) == "over_refused") == (bare(keep) == "compliant")
        assert pair.separate == pair.boundary
        assert bare(change) in ("over_refused", "harmful", "harmful_dialogues")
        if pair.boundary:
            assert i == k and (change in PREFILLED) == (keep in PREFILLED)
        else:
            assert bare(keep) in ("refused", "benign", "benign_dialogues")
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


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.3333, 1])
@pytest.mark.parametrize(
    "boundary, refusals, separate",
    [(0.25, 0.25, "refusal"), (0.3, 0, "refusal"), (0.5, 0.5, "refusal"), (0.5, 0.25, None)],
)
def test_dialogues_have_their_share_of_harmful_and_of_benign_items(
    tokenizer, share, boundary, refusals, separate
):
    changes = {"boundary_share": boundary, "refusal_share": refusals, "separate": separate}
    changes |= {} if separate else {"method": "circuit-breakers"}
    pairs = drawn(tokenizer, steps=3 * WINDOW, multi_turn_share=share, **changes)
    found = kinds(tokenizer, pairs)
    size = WINDOW * PAIRS
    for begin in range(0, len(pairs), size):
        window = slice(begin, begin + size)
        beside = [
            (change, keep)
            for ((change, _), (keep, _)), pair in zip(found[window], pairs[window], strict=True)
            if not pair.boundary
        ]
        erased = Counter(change for change, _ in beside)
        kept = Counter(bare(keep) for _, keep in beside)
        benign = kept["benign"] + kept["benign_dialogues"]
        assert abs(erased["harmful_dialogues"] - share * len(beside)) < 1
        assert abs(kept["benign_dialogues"] - share * benign) < 1
        assert erased.total() == erased["harmful_dialogues"] + erased["harmful"]
    # What comes beside a boundary-safe item is never one of several turns.
    boundary_safe = [kind for kind, pair in zip(found, pairs, strict=True) if pair.boundary]
    names = {(bare(change), bare(keep)) for (change, _), (keep, _) in boundary_safe}
    assert names == {("over_refused" if separate else "harmful", "compliant")}


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.3333, 0.5, 1])
@pytest.mark.parametrize(
    "boundary, refusals, dialogues, separate",
    [
        (0.25, 0.25, 0.25, "refusal"),
        (0.3, 0, 0, "as_coded"),
        (0.5, 0.5, 0, "refusal"),
        (0.5, 0.25, 1, None),
        (0.6, 0.1, 0.5, "as_described"),
    ],
)
def test_of_each_kind_to_keep_but_refusals_the_share_is_prefilled(
    tokenizer, share, boundary, refusals, dialogues, separate
):
    changes = {"boundary_share": boundary, "refusal_share": refusals, "separate": separate}
    changes |= {"multi_turn_share": dialogues, "prefilled_share": share}
    changes |= {} if separate else {"method": "circuit-breakers"}
    found = kinds(tokenizer, drawn(tokenizer, steps=3 * WINDOW, **changes))
    seen = Counter()
    size = WINDOW * PAIRS
    for begin in range(0, len(found), size):
        kept = Counter(keep for _, (keep, _) in found[begin : begin + size])
        for name in ("compliant", "benign", "benign_dialogues"):
            prefilled = kept[f"{name}_prefilled"]
            assert abs(prefilled - share * (prefilled + kept[name])) < 1
        seen += kept
    # The prefilled ones are in place of others, so no kind is seen more often for them.
    others = len(found) * (1 - boundary - refusals)
    for name, count in (
        ("compliant", boundary * len(found)),
        ("refused", refusals * len(found)),
        ("benign", (1 - dialogues) * others),
        ("benign_dialogues", dialogues * others),
    ):
        assert seen[name] + seen[f"{name}_prefilled"] == pytest.approx(count, abs=1)


def test_a_prefilled_refusal_comes_with_the_prefilled_answer_to_its_prompt(tokenizer):
    pairs = [pair for pair in drawn(tokenizer, steps=50) if pair.boundary]
    begun = [pair for pair in pairs if pair.keep.dialogue in SETS["compliant_prefilled"]]
    assert 0 < len(begun) < len(pairs)
    for pair in pairs:
        refusals = SETS["over_refused_prefilled"] if pair in begun else SETS["over_refused"]
        assert pair.change.dialogue in refusals
        assert pair.change.dialogue[:-1] == pair.keep.dialogue[:-1]
    # They may be of other prompts, and fewer, than those that were not prefilled.
    fewer = {f"{name}_prefilled": SETS[name][3:] for name in ("compliant", "over_refused")}
    for pair in drawn(tokenizer, SETS.having(**fewer), steps=50):
        assert not pair.boundary or pair.change.dialogue[:-1] == pair.keep.dialogue[:-1]
    # But to each answer there must be a refusal.
    for name, count in (("compliant", 5), ("compliant_prefilled", 5)):
        short = SETS.having(**{name: SETS[name][1:]})
        refusals = name.replace("compliant", "over_refused")
        words = f"the {name} set has {count - 1} dialogues and {refusals} {count}: each answer"
        with pytest.raises(RecipeError, match=words):
            drawn(tokenizer, short, prefilled_share=0.25)


def test_where_nothing_separates_no_refusal_of_a_boundary_safe_prompt_is_needed(tokenizer):
    def words(sets):
        changes = {"separate": "as_described", "boundary_share": 0.5}
        return [(p.change.dialogue, p.keep.dialogue) for p in drawn(tokenizer, sets, **changes)]

    assert words(SETS.having(over_refused=[], over_refused_prefilled=[])) == words(SETS)


def test_without_a_share_prefilled_sets_may_be_short(tokenizer):
    short = SETS.having(compliant_prefilled=SETS["compliant_prefilled"][1:])
    assert drawn(tokenizer, short, prefilled_share=0)


MANY = tiny_sets(boundary=9, benign=9, dialogues=9)
DIALOGUES = [name for name in GROUPS if "dialogues" in name]


@pytest.mark.parametrize(
    "name, changes",
    [
        ("x-boundary-smollm2-135m", {}),
        ("x-boundary-smollm2-135m", {"separate": "as_described", "boundary_share": 0.6}),
        ("circuit-breakers-smollm2-135m", {"boundary_share": 0, "refusal_share": 1}),
    ],
)
@pytest.mark.parametrize(
    "share, without", [("multi_turn_share", DIALOGUES), ("prefilled_share", PREFILLED)]
)
def test_without_a_share_its_sets_change_nothing_that_is_drawn(
    tokenizer, name, changes, share, without
):
    def words(count):
        recipe = tiny_recipe(name, **{"steps": 20, "max_tokens": 256, share: 0, **changes})
        sets = SETS.having(**{which: MANY[which][:count] for which in without})
        return [
            (pair.change.dialogue, pair.keep.dialogue, pair.boundary, pair.separate)
            for pair in draw_pairs(recipe, sets, tokenizer, seed=3)
        ]

    assert words(0) == words(1) == words(9)


@unhurried
@given(st.integers(0, 100), st.data())
def test_only_sets_with_a_share_are_needed(tokenizer, boundary, data):
    """In hundredths, as people write them: 0.3 and 0.7 leave nothing, though 1 - 0.7 > 0.3."""
    refusals = data.draw(st.sampled_from([0, 100 - boundary]))
    share = data.draw(st.sampled_from([0, 0.25, 1]))
    prefilled = data.draw(st.sampled_from([0, 0.25]))
    others = boundary + refusals < 100
    needed = {
        "harmful": boundary < 100 and share < 1,
        "compliant": boundary > 0,
        "refused": refusals > 0,
        "benign": others and share < 1,
        "harmful_dialogues": boundary < 100 and share > 0,
        "benign_dialogues": others and share > 0,
        "compliant_prefilled": boundary > 0 and prefilled > 0,
        "benign_prefilled": others and share < 1 and prefilled > 0,
        "benign_dialogues_prefilled": others and share > 0 and prefilled > 0,
    }
    sets = SETS.having(**{name: [] for name, used in needed.items() if not used})
    for name in ("compliant", "compliant_prefilled"):
        if not needed[name]:
            sets = sets.having(**{name.replace("compliant", "over_refused"): []})
    changes = {"boundary_share": boundary / 100, "refusal_share": refusals / 100}
    changes |= {"multi_turn_share": share, "prefilled_share": prefilled}
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
        ("harmful_dialogues", "multi_turn_share"),
        ("benign_dialogues", "multi_turn_share"),
        ("compliant_prefilled", "prefilled_share"),
        ("benign_prefilled", "prefilled_share"),
        ("benign_dialogues_prefilled", "prefilled_share"),
    ],
)
def test_a_set_that_is_needed_and_empty_is_named(tokenizer, name, field):
    with pytest.raises(RecipeError, match=rf"^{field} is 0.25, but the {name} set is empty"):
        drawn(tokenizer, SETS.having(**{name: []}), prefilled_share=0.25)


def test_every_item_comes_equally_often(tokenizer):
    found = kinds(tokenizer, drawn(tokenizer, steps=100))
    counts = Counter(item for pair in found for item in pair)
    for name in GROUPS:
        often = [counts[name, i] for i in range(len(SETS[name]))]
        assert max(often) - min(often) <= 1 and min(often) > 10


def test_rows_of_one_item_have_one_number(tokenizer):
    pairs = drawn(tokenizer, steps=50)
    by_number = {}
    for row in [row for pair in pairs for row in (pair.change, pair.keep)]:
        assert by_number.setdefault(row.number, row) is row
    assert len(by_number) == len(SETS.examples)


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
        pairs = drawn(tokenizer, tiny_sets(dialogues=0), max_tokens=48, multi_turn_share=0)
    lengths = {len(row.encoding) for pair in pairs for row in (pair.change, pair.keep)}
    assert 40 < max(lengths) <= 48


@pytest.mark.parametrize("separate", [None, "as_described"])
def test_without_a_term_of_its_prompt_a_boundary_safe_item_is_only_kept(tokenizer, separate):
    changes = {"method": "circuit-breakers"} if separate is None else {}
    pairs = drawn(tokenizer, boundary_share=0.5, separate=separate, **changes)
    assert sum(pair.boundary for pair in pairs) == len(pairs) / 2
    assert not any(pair.separate for pair in pairs)
    harmful = [*SETS["harmful"], *SETS["harmful_dialogues"]]
    assert all(pair.change.dialogue in harmful for pair in pairs)


def attack_rows(tokenizer, dialogue, **changes):
    """The rows of a run in which all to change is one dialogue of several turns."""
    breakers = {"method": "circuit-breakers", "separate": None, "boundary_share": 0}
    sets = SETS.having(harmful_dialogues=[dialogue])
    pairs = drawn(tokenizer, sets, steps=1, multi_turn_share=1, **breakers, **changes)
    return [pair.change.encoding for pair in pairs]


def last_exchange(turn, reply, end="<|im_end|>\n"):
    return f"\n<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n{reply}{end}"


def texts(tokenizer, row):
    """Of the prompt and the response together, and of the response."""
    return tuple(
        tokenizer.decode(row.input_ids[mask]) for mask in (row.prompt | row.response, row.response)
    )


words = st.lists(st.sampled_from(["a", "tree", "42", "is?", "Élan", "no.", "\n\n"]), min_size=1)
said = words.map(" ".join).map(str.strip).filter(bool)


@unhurried
@given(st.lists(st.tuples(said, said), min_size=2, max_size=5), st.sampled_from([0, 1, 3]))
def test_of_a_harmful_dialogue_the_last_exchange_alone_is_changed(tokenizer, talk, sink_tokens):
    dialogue = as_turns(*zip(*talk, strict=True))
    wide = {"max_tokens": 1024, "sink_tokens": sink_tokens}
    for row in attack_rows(tokenizer, dialogue, **wide):
        assert texts(tokenizer, row) == (last_exchange(*talk[-1]), f"{talk[-1][1]}<|im_end|>")
        # It is read as it was said.
        whole = encode(tokenizer, dialogue, sink_tokens=sink_tokens)
        assert torch.equal(row.input_ids, whole.input_ids) and torch.equal(row.sink, whole.sink)


@pytest.mark.parametrize("long", range(6))
def test_of_a_harmful_dialogue_that_was_cut_the_last_exchange_is_changed(tokenizer, long):
    contents = ["one", "two", "three", "four", "five", "six"]
    contents[long] = "word " * 200
    with pytest.warns(UserWarning, match="cut to 12"):
        row = attack_rows(tokenizer, as_turns(contents[::2], contents[1::2]))[0]
    exchange, response = texts(tokenizer, row)
    turn, reply = contents[4:]
    if long == 4:
        turn = exchange.removeprefix("\n<|im_start|>user\n").partition("<|im_end|>")[0]
    if long == 5:
        reply = response
    for kept, content in ((turn, contents[4]), (reply, contents[5])):
        assert kept and content.startswith(kept)
    # A response that was cut has not come to its end.
    end = "" if long == 5 else "<|im_end|>"
    assert response == reply + end
    assert exchange == last_exchange(turn, reply, end and f"{end}\n")
    assert len(row) <= 128


def test_rows_of_one_turn_and_rows_to_keep_have_all_their_tokens(tokenizer):
    pairs = drawn(tokenizer, sink_tokens=1)
    rows = [row for p in pairs for row in (p.change, p.keep)]
    rows = [row for row in rows if row.dialogue not in SETS["harmful_dialogues"]]
    assert any(row.dialogue in SETS["benign_dialogues"] for row in rows)
    for row in rows:
        whole = encode(tokenizer, row.dialogue)
        assert torch.equal(row.encoding.prompt, whole.prompt)
        assert torch.equal(row.encoding.response, whole.response)
    once = attack_rows(tokenizer, SETS["harmful"][0])[0]
    assert torch.equal(once.prompt, encode(tokenizer, SETS["harmful"][0]).prompt)


# Of the code before any response to keep was prefilled; without dialogues also of that before them.
BEFORE = {
    0: [
        (("harmful", 6), ("benign", 3)),
        (("harmful", 2), ("benign", 5)),
        (("harmful", 3), ("refused", 2)),
        (("over_refused", 4), ("compliant", 4)),
        (("harmful", 4), ("benign", 1)),
        (("harmful", 5), ("benign", 0)),
        (("harmful", 0), ("refused", 1)),
        (("over_refused", 0), ("compliant", 0)),
    ],
    0.25: [
        (("harmful", 4), ("refused", 1)),
        (("harmful", 6), ("benign", 3)),
        (("harmful", 2), ("benign", 5)),
        (("over_refused", 0), ("compliant", 0)),
        (("harmful", 3), ("refused", 2)),
        (("harmful_dialogues", 0), ("benign", 0)),
        (("harmful", 5), ("benign_dialogues", 1)),
        (("over_refused", 4), ("compliant", 4)),
    ],
}


@pytest.mark.parametrize("dialogues", BEFORE)
def test_without_a_share_the_draw_is_what_it_was_before_there_was_one(tokenizer, dialogues):
    recipe = tiny_recipe(steps=2, multi_turn_share=dialogues, prefilled_share=0)
    assert kinds(tokenizer, draw_pairs(recipe, SETS, tokenizer, 0)) == BEFORE[dialogues]
