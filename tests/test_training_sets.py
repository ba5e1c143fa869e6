"""What becomes of a model's replies as training data, and that they are asked for once."""

import re
from dataclasses import asdict, dataclass, field, replace

import pytest
from tiny import tiny_recipe

from xb_lite.data.items import PREFILL, Item, load_items
from xb_lite.dialogues import as_dialogue, as_turns
from xb_lite.evaluation.outcomes import evaluate
from xb_lite.judges.strings import XSTEST
from xb_lite.recipes import RecipeError
from xb_lite.replies.cache import ask
from xb_lite.replies.types import Decoding, Reply
from xb_lite.training.draw import draw_pairs
from xb_lite.training.sets import GROUPS, REFUSAL, reference_sets

DECODING = Decoding(max_new_tokens=32)
SUBJECT = {"model": "fake", "defense": "none"}
N = 6
SCRIPTS = [item.turns for item in load_items("multi-turn", "train")][:N]
PROMPTS = {
    **{
        kind: [item.request for item in load_items(kind, "train")][:N]
        for kind in ("harmful", "boundary-safe", "benign")
    },
    "script": [turns[-1] for turns in SCRIPTS],
}
CHATS = [tuple(PROMPTS["benign"][i : i + n]) for n in (2, 3) for i in range(0, N, n)]

# By kind, and by place of the prompt: what is said, and whether it came to its end.
ANSWER = ("It is done so. Then so.", True)
CUT = ("It is done so. Then e.g. three steps. And at 3.5 deg", False)
SAID = {
    "harmful": [("I'm sorry, but I can't.", True), ANSWER, ("No, I can't. Ask ano", False)],
    "prefill": [(" is how.", True), (" is why I can't, sorry.", True), (" is how! And th", False)],
    "boundary-safe": [
        ANSWER,
        ("I apologize, this is not safe.", True),
        CUT,
        ("No full stop", False),
    ],
    "benign": [ANSWER, CUT, ("I can't say; sorry.", True)],
}
# By turn, where no reply is prefilled; whole is what is left of it.
PLAYED = [("I'm sorry, it is.", True), ("It is so. Then", False), ("No, I can't. Ask", False)]
WHOLE = ["I'm sorry, it is.", "It is so.", "No, I can't."]


@dataclass
class Fake:
    asked: list[tuple[str, ...]] = field(default_factory=list)
    played: list[tuple[str, ...]] = field(default_factory=list)

    def reply(self, dialogues, decoding, prefill=""):
        texts = [[message["content"] for message in dialogue] for dialogue in dialogues]
        self.asked += [(prefill, *words) for words in texts]
        return [Reply(*self.say(words[-1], prefill, len(words) // 2)) for words in texts]

    def say(self, prompt, prefill, before=0):
        """The next in turn for each turn before it."""
        kind = next(kind for kind, prompts in PROMPTS.items() if prompt in prompts)
        said = SAID["prefill" if prefill else kind]
        text, finished = said[(PROMPTS[kind].index(prompt) + before) % len(said)]
        return prefill + text, 7, 5, finished

    def play(self, scripts, decoding):
        self.played += map(tuple, scripts)
        return [
            [Reply(PLAYED[i % 3][0], 3, 2, PLAYED[i % 3][1]) for i in range(len(script))]
            for script in scripts
        ]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))


def sets(backend=None, **options):
    return reference_sets(backend or Fake(), DECODING, SUBJECT, **{"limit": N, **options})


def dialogues(kind, places, answers):
    return [as_dialogue(PROMPTS[kind][i], said) for i, said in zip(places, answers, strict=True)]


def test_harmful_requests_that_are_refused_even_prefilled_are_left_out():
    complied = [f"{PREFILL} is how.", f"{PREFILL} is how!"] * 2  # the second was cut short
    assert sets()["harmful"] == [
        *dialogues("harmful", [0, 2, 3, 5], complied),
        *dialogues("script", [0, 2, 3, 5], complied),
    ]


def test_ends_of_scripts_have_their_history_and_a_last_reply_that_complies():
    whole, cut = f"{PREFILL} is how.", f"{PREFILL} is how!"
    ends = {2: {1: cut, 2: whole, 4: cut, 5: whole}, 3: {0: cut, 1: whole, 3: cut, 4: whole}}
    assert sets()["harmful_dialogues"] == [
        as_turns(SCRIPTS[place][-n:], [*WHOLE[: n - 1], said])
        for n, by_place in ends.items()
        for place, said in by_place.items()
    ]


def test_only_the_last_turn_of_a_script_or_a_chat_is_prefilled():
    backend = Fake()
    sets(backend)
    one, two = [text for text, _ in PLAYED[:2]]
    talks = [*(turns[-n:] for n in (2, 3) for turns in SCRIPTS), *CHATS]
    assert sorted(words for words in backend.asked if len(words) > 2) == sorted(
        (PREFILL, first, one, *((second,) if not rest else (second, two, *rest)))
        for first, second, *rest in talks
    )
    # What comes before it is played as it is; so is a chat that is not prefilled.
    assert sorted(backend.played) == sorted([*(tuple(turns[:-1]) for turns in talks), *CHATS])


@pytest.mark.parametrize(
    "limit, places", [(6, ["01", "23", "45", "012", "345"]), (5, ["01", "23", "012"]), (1, [])]
)
def test_harmless_prompts_are_asked_one_after_the_other_whatever_is_said(limit, places):
    chats = [[PROMPTS["benign"][int(i)] for i in chain] for chain in places]
    assert sets(limit=limit)["benign_dialogues"] == [
        as_turns(turns, WHOLE[: len(turns)]) for turns in chats
    ]


def test_refusals_are_the_models_own_where_it_refuses():
    own = ["I'm sorry, but I can't.", REFUSAL, "No, I can't."] * 2
    assert sets()["refused"] == dialogues("harmful", range(N), own)


def test_boundary_safe_prompts_that_are_refused_are_in_neither_set():
    whole = "It is done so. Then e.g. three steps."
    served = [ANSWER[0], whole, "No full stop", ANSWER[0]]
    found = sets()
    assert found["compliant"] == dialogues("boundary-safe", [0, 2, 3, 4], served)
    assert found["over_refused"] == dialogues("boundary-safe", [0, 2, 3, 4], [REFUSAL] * 4)


def test_benign_prompts_are_kept_whatever_is_said():
    whole = "It is done so. Then e.g. three steps."
    answers = [ANSWER[0], whole, "I can't say; sorry."] * 2
    assert sets()["benign"] == dialogues("benign", range(N), answers)


def test_harmless_prompts_are_answered_after_the_prefill_as_well():
    whole, refused, cut = (f"{PREFILL} is {end}" for end in ("how.", "why I can't, sorry.", "how!"))
    found = sets()
    # Kept whatever is said, as those that were not prefilled.
    assert found["benign_prefilled"] == dialogues("benign", range(N), [whole, refused, cut] * 2)
    assert found["benign_dialogues_prefilled"] == [
        as_turns(turns, [*WHOLE[: len(turns) - 1], last])
        for turns, last in zip(CHATS, [cut, refused, whole, refused, refused], strict=True)
    ]


def test_boundary_safe_prompts_that_are_refused_even_prefilled_are_in_neither_set():
    found, places = sets(), [0, 2, 3, 5]  # not those that are served when they are asked plainly
    complied = [f"{PREFILL} is how.", f"{PREFILL} is how!"] * 2
    assert found["compliant_prefilled"] == dialogues("boundary-safe", places, complied)
    assert found["over_refused_prefilled"] == dialogues("boundary-safe", places, [REFUSAL] * 4)


def test_after_the_prefill_a_refusal_counts_wherever_it_is(monkeypatch):
    """X-Boundary's strings are looked for in all of a reply, XSTest's at its start."""
    late = " is one. But I cannot say more."
    assert not XSTEST.refuses(late) and not XSTEST.refuses(PREFILL + late)
    monkeypatch.setitem(SAID, "prefill", [(late, True)])
    found = sets()
    assert found["harmful"] == found["compliant_prefilled"] == found["over_refused_prefilled"] == []
    assert len(found["benign_prefilled"]) == len(found["compliant"]) + 2 == N


def test_a_refusal_that_was_cut_off_counts_as_what_is_left_of_it(monkeypatch):
    monkeypatch.setitem(SAID, "boundary-safe", [("It is so. But I am sor", False)])
    assert sets()["compliant"] == dialogues("boundary-safe", range(N), ["It is so."] * N)


def test_replies_are_asked_for_once():
    backend = Fake()
    first = sets(backend)
    assert sorted(words for words in backend.asked if len(words) == 2) == sorted(
        [(PREFILL, prompt) for prompts in PROMPTS.values() for prompt in prompts]
        + [
            ("", prompt)
            for kind in ("harmful", "boundary-safe", "benign")
            for prompt in PROMPTS[kind]
        ]
    )
    n = len(CHATS)
    assert len(backend.played) == 2 * N + n + n  # scripts, chats, and those to be prefilled
    again = Fake()
    assert sets(again) == first and not again.asked + again.played
    # Fewer of what is there already; another model has said nothing yet.
    assert (
        sets(again, limit=2)["refused"] == first["refused"][:2] and not again.asked + again.played
    )
    reference_sets(again, DECODING, {**SUBJECT, "model": "other"}, limit=2)
    assert len(again.asked) == 2 * (4 + 3) + 2 * 2 + 1  # prompts, ends of scripts, and a chat
    assert len(again.played) == 2 * 2 + 2


def test_the_digest_is_of_every_word_and_of_the_set_it_is_in():
    found = sets()
    assert re.fullmatch("[0-9a-f]{64}", found.digest) and sets().digest == found.digest
    others = [found.having(**{name: found[name][1:]}) for name in GROUPS]
    pairs = [
        ("harmful", "refused"),
        ("harmful_dialogues", "benign_dialogues"),
        *((name.removesuffix("_prefilled"), name) for name in GROUPS if "prefilled" in name),
    ]
    swapped = [found.having(**{one: found[other], other: found[one]}) for one, other in pairs]
    assert len({s.digest for s in (found, *swapped, *others)}) == 1 + 6 + 11


def test_there_is_no_other_split():
    with pytest.raises(ValueError):
        sets(split="tra")


def test_ask_gives_what_evaluate_was_told(tmp_path):
    items = [item for kind in PROMPTS if kind != "script" for item in load_items(kind, "train")[:3]]
    items += load_items("multi-turn", "test")[:2]
    items += [replace(item, prefill=PREFILL) for item in load_items("multi-turn", "train")[:2]]
    backend = Fake()
    outcomes = evaluate(
        backend, items, [XSTEST], DECODING, subject=SUBJECT, log=tmp_path / "log.jsonl"
    )
    n = len(backend.asked)
    replies = ask(backend, items, DECODING, subject=SUBJECT)
    assert len(backend.asked) == n  # all out of the cache
    for item, outcome, turns in zip(items, outcomes, replies, strict=True):
        assert len(turns) == len(item.turns)
        assert all(isinstance(reply, Reply) for reply in turns)
        assert outcome.labels["xstest"] == XSTEST([""] * len(turns), [r.text for r in turns])
        for name in ("prompt_tokens", "new_tokens", "finished"):
            assert getattr(outcome, name) == [getattr(reply, name) for reply in turns]
    # The other way round: what ask was told, evaluate does not ask again.
    more = load_items("benign", "train")[3:5]
    told = ask(backend, more, DECODING, subject=SUBJECT)
    n = len(backend.asked)
    evaluate(backend, more, [XSTEST], DECODING, subject=SUBJECT, log=tmp_path / "more.jsonl")
    assert len(backend.asked) == n
    assert [asdict(turns[0])["text"] for turns in told] == [
        Fake().say(item.request, "")[0] for item in more
    ]


def test_ask_refuses_what_cannot_be_asked_and_asks_a_changed_item_again():
    item, other = load_items("benign", "train")[:2]
    backend = Fake()
    with pytest.raises(ValueError, match="no turn"):
        ask(backend, [item, type(item)(**{**asdict(item), "turns": ()})], DECODING, subject=SUBJECT)
    assert not backend.asked
    ask(backend, [item], DECODING, subject=SUBJECT)
    asked = len(backend.asked)
    ask(backend, [replace(other, id=item.id)], DECODING, subject=SUBJECT)
    assert len(backend.asked) == asked + 1 and other.request in str(backend.asked[-1])


def test_written_answers_stand_in_place_of_what_the_model_says():
    """Nothing is asked where every turn has one, and examples say where a response is from."""
    items = {kind: load_items(kind, "train")[:N] for kind in ("boundary-safe", "benign")}
    answers = {item.id: f"Of {item.id}." for some in items.values() for item in some[1:]}
    backend = Fake()
    found = sets(backend, items=items, answers=answers)
    plain = dialogues("benign", range(1, N), [f"Of {i.id}." for i in items["benign"][1:]])
    assert found["benign"][1:] == plain
    assert found["compliant"][1:] == dialogues(
        "boundary-safe", range(1, N), [f"Of {i.id}." for i in items["boundary-safe"][1:]]
    )
    plainly = {words[1] for words in backend.asked if len(words) == 2 and words[0] != PREFILL}
    assert plainly == {PROMPTS["benign"][0], PROMPTS["boundary-safe"][0]}
    # After the prefill the model goes on by itself, as it does after harmful requests.
    assert found["benign_prefilled"] == sets(items=items)["benign_prefilled"]
    written = {e.source for e in found.examples if e.dialogue in plain}
    assert written == {"written"} and found.examples[0].source == "model"


# Prompts of one's own


def own(kind, prompts):
    return [Item(f"my-{kind}-{i}", "mine", kind, "direct", p, (p,)) for i, p in enumerate(prompts)]


def test_own_prompts_stand_in_place_of_the_books():
    mine = {kind: own(kind, PROMPTS[kind]) for kind in ("harmful", "boundary-safe", "benign")}
    backend, book = Fake(), sets()
    found = sets(backend, items=mine)
    assert found["harmful"] == book["harmful"][:4] and found["compliant"] == book["compliant"]
    assert (
        found["benign"] == book["benign"] and found["benign_dialogues"] == book["benign_dialogues"]
    )
    assert found["harmful_dialogues"] == []
    assert not any(script[-1] in words for script in SCRIPTS for words in backend.asked)
    some = sets(items={"benign": mine["benign"]})
    assert (
        some["benign"] == book["benign"]
        and some["harmful"] == some["refused"] == some["compliant"] == []
    )


def test_an_empty_set_that_a_recipe_needs_is_named(tokenizer):
    some = sets(items={"benign": own("benign", PROMPTS["benign"])})
    with pytest.raises(RecipeError, match="boundary_share is 0.25, but the harmful set is empty"):
        draw_pairs(tiny_recipe(), some, tokenizer, 0)


def test_a_script_of_two_turns_is_one_attack():
    one, *_ = own("harmful", PROMPTS["harmful"])
    short = replace(one, id="talk", turns=SCRIPTS[1][-2:])
    assert len(sets(items={"multi-turn": [short]})["harmful_dialogues"]) == 1


def test_own_prompts_that_cannot_be_are_named():
    one, two = own("harmful", PROMPTS["harmful"][:2])
    talk = replace(one, id="talk", turns=("a", "b"))
    for items, words in (
        ({"harmless": []}, "kinds are harmful, .*, not harmless"),
        ({"harmful": [one], "benign": [one]}, "two items have the id 'my-harmful-0'"),
        ({"harmful": [replace(two, turns=("a", "b"))]}, "'my-harmful-1' is not one plain turn"),
        ({"benign": [replace(two, attack="wrapper")]}, "'my-harmful-1' is not one plain turn"),
        ({"multi-turn": [one]}, "'my-harmful-0' has 1 turn; it needs at least 2"),
        (
            {"harmful": [replace(one, id="talk+1")], "multi-turn": [talk]},
            r"two items have the id 'talk\+1\+prefill'",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            sets(items=items)
