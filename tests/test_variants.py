"""The changes to the two stages ask what they say, and the answer is the answer alone."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from xb_lite.corpora import load_corpus
from xb_lite.dialogues import as_dialogue, check_dialogue
from xb_lite.intention import variants
from xb_lite.intention.defenses import BY_MODEL, DEFENSES, Defended, defense_named, prompted
from xb_lite.intention.examples import shown
from xb_lite.intention.prompts import (
    FIRST,
    NEUTRAL,
    REMINDER,
    STAGE_2,
    first_stage,
    neutral_reminder,
    restates,
    second_stage,
)
from xb_lite.intention.variants import (
    BEGINNING,
    by_beginning,
    by_examples,
    by_model,
    by_note,
    noted,
    with_examples,
)
from xb_lite.models.precision import choose_precision
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding, Reply

SHORT = Decoding(max_new_tokens=8)
SYSTEM = {"role": "system", "content": "Be brief."}
QUERY = as_dialogue("Name a river.")
LONGER = [SYSTEM, *as_dialogue("Hello.", "Hello."), *QUERY]
SAID = "The essential intention of the query is to learn of a river."


@dataclass
class Fake:
    """A backend that says an intention where it is asked for one, and else a river."""

    calls: list = field(default_factory=list)

    def reply(self, dialogues, decoding, prefill=""):
        self.calls.append(([list(d) for d in dialogues], decoding, prefill))
        return [Reply(prefill + self.says(d), 3, 2, True) for d in dialogues]

    @staticmethod
    def says(dialogue):
        return (
            SAID
            if "essential intention behind the following" in dialogue[-1]["content"]
            else "The Danube."
        )


def asked_of(defense, dialogue, prefill=""):
    """What is asked in turn, and the stages that come of it."""
    fake = Fake()
    (stages,) = defense(fake, [dialogue], SHORT, prefill)
    return [dialogues[0] for dialogues, *_ in fake.calls], fake.calls, stages


def test_examples_show_both_stages_before_the_query_and_behind_the_system_message():
    (first, second), calls, stages = asked_of(by_examples, LONGER)
    assert first[0] == SYSTEM and first[-3:] == first_stage(LONGER)[1:]
    assert second == [*first, {"role": "assistant", "content": SAID}, *as_dialogue(STAGE_2)]
    shown = first[1:-3]
    assert len(shown) == 12 and [m["role"] for m in shown] == ["user", "assistant"] * 6
    assert [m["content"] for m in shown[2::4]] == [STAGE_2] * 3
    assert all(restates(m["content"]) for m in shown[1::4])
    assert [decoding for _, decoding, _ in calls] == [FIRST, SHORT]
    assert [reply.text for reply in stages] == [SAID, "The Danube."]
    check_dialogue(second)


def test_examples_are_drawn_anew_for_each_query_and_the_same_for_one():
    others = [with_examples(as_dialogue(f"Name river {i}.")) for i in range(6)]
    assert with_examples(QUERY) == with_examples(QUERY)
    assert with_examples(QUERY) == with_examples(LONGER)[1:-3] + QUERY
    assert len({str(dialogue[:-1]) for dialogue in others}) == len(others)


def test_examples_are_prompts_of_the_train_split_with_the_books_own_answers():
    answers = {row.answer for kind in ("benign", "boundary-safe") for row in load_corpus(kind)}
    there = shown()
    assert {name: len(some) for name, some in there.items()} == {"harmless": 24, "harmful": 6}
    assert all(example[-1]["content"] in answers for example in there["harmless"])
    assert len({example[-1]["content"] for example in there["harmful"]}) == 6
    assert not any(example[-1]["content"] in answers for example in there["harmful"])
    held_out = {
        row.prompt
        for k in ("benign", "boundary-safe", "harmful")
        for s in ("validation", "test")
        for row in load_corpus(k, s)
    }
    assert not any(prompt in str(there) for prompt in held_out)


def test_one_example_may_be_refused():
    first = with_examples(QUERY, harmless=2, harmful=1)
    ends = [message["content"] for message in first[3:-1:4]]
    refusals = {example[-1]["content"] for example in shown()["harmful"]}
    assert len(ends) == 3 and len(refusals & set(ends)) == 1
    assert asked_of(DEFENSES["ia-examples-refused"], QUERY)[0][0] == first_stage(first)


@pytest.mark.parametrize("wanted", [(25, 0), (0, 7), (-1, 0)])
def test_there_are_only_so_many_examples(wanted):
    with pytest.raises(ValueError, match="there are 24 and 6"):
        with_examples(QUERY, *wanted)


def test_the_note_stands_in_the_system_message_without_the_opening_words():
    (first, second), calls, stages = asked_of(by_note, LONGER, "Sure, ")
    assert first == first_stage(LONGER)
    assert second[1:] == LONGER[1:] and second[0]["role"] == "system"
    note = second[0]["content"]
    assert note.startswith("Be brief.\n\nThe user's next message was read before.")
    assert "wants is to learn of a river." in note and "intention" not in note
    assert [prefill for *_, prefill in calls] == ["", "Sure, "]
    assert stages[-1].text == "Sure, The Danube."


@pytest.mark.parametrize(
    ("intention", "what"),
    [
        ("The essential intention of the query is to learn.", "is to learn. Answer"),
        ("'The essential intention of the user's query is.' To learn.", "is To learn. Answer"),
        ("The user's intention is to learn.", "is to learn. Answer"),
        ("To learn.", "is To learn. Answer"),
        ("To learn. The intention is good.", "is To learn. The intention is good. Answer"),
        ("The intention is", "is not known. Answer"),
        (" ", "is not known. Answer"),
    ],
)
def test_the_opening_words_are_left_out(intention, what):
    assert what in noted(QUERY, intention)[0]["content"]


def test_the_beginning_is_asked_for_and_not_shown():
    asked, calls, stages = asked_of(by_beginning, QUERY, "Sure, ")
    assert asked == [first_stage(QUERY), second_stage(QUERY, SAID)]
    assert [prefill for *_, prefill in calls] == ["", f"{BEGINNING}Sure, "]
    assert [reply.text for reply in stages] == [SAID, "Sure, The Danube."]


def test_another_model_is_loaded_when_it_is_first_asked_and_once(monkeypatch):
    analyst, loaded = Fake(), []

    def local_subject(name, precision):
        loaded.append(name)
        return Subject(name, name, analyst)

    monkeypatch.setattr(variants, "local_subject", local_subject)
    defense = defense_named("ia-by-smollm2-135m")
    assert loaded == []
    (second,), _, _ = asked_of(defense, QUERY)
    asked_of(defense, LONGER)
    assert second == second_stage(QUERY, SAID)
    assert loaded == ["smollm2-135m"]
    assert [asked[0] for asked, *_ in analyst.calls] == [first_stage(QUERY), first_stage(LONGER)]
    assert by_model("x") is not by_model("x")


def test_another_model_is_loaded_once_for_many_threads(monkeypatch):
    loaded = []

    def local_subject(name, precision):
        loaded.append(name)
        time.sleep(0.05)
        return Subject(name, name, Fake())

    monkeypatch.setattr(variants, "local_subject", local_subject)
    analyst = by_model("m")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: analyst([QUERY], SHORT), range(4)))
    assert loaded == ["m"]


def test_another_model_is_not_asked_before_the_answer_but_its_words_are_counted(monkeypatch):
    analyst, fake, checked = Fake(), Fake(), []
    monkeypatch.setattr(variants, "local_subject", lambda *_: Subject("a", "a", analyst))
    fake.check = lambda dialogues, room, prefill="": checked.append((dialogues, room, prefill))
    defended = Defended(fake, defense_named("ia-by-smollm2-135m"))
    defended.check([LONGER], 9, "Sure, ")
    assert analyst.calls == fake.calls == []
    assert checked == [([second_stage(LONGER, ".")], FIRST.max_new_tokens + 9, "Sure, ")]
    (reply,) = defended.reply([LONGER], SHORT)
    assert reply.text == "The Danube."
    assert [len(backend.calls) for backend in (analyst, fake)] == [1, 1]


def test_a_model_of_the_hub_makes_no_folder_in_paths():
    subject = prompted(Subject("m", "m", Fake()), "ia-by-owner/model")
    assert (subject.defense, subject.prompt) == ("ia-by-owner-model", "ia-by-owner/model")


def test_replies_behind_another_analyst_are_kept_apart(tmp_path):
    """Whatever stands in its folder now; those behind a defense without one stay where they are."""
    precision = choose_precision("cpu", exact=True)
    plain, found = Subject("m", "m", Fake()), []
    for weights in ("some", "others"):
        (tmp_path / "weights").write_text(weights)
        found.append(prompted(plain, f"ia-by-{tmp_path}").identity(precision))
    one, other = found
    assert one.pop("analyst") != other.pop("analyst") and one == other
    of_all = {"model": "m", "precision": "the server's"}
    for name in DEFENSES:
        assert prompted(plain, name).identity(precision) == {**of_all, "defense": name}


@pytest.mark.parametrize("name", ["ia-by", BY_MODEL, "ia-exmples"])
def test_a_misspelled_defense_is_told_what_there_is(name):
    with pytest.raises(ValueError, match=r"ia-note, ia-begun, ia-by-MODEL\."):
        defense_named(name)


@pytest.mark.parametrize("name", DEFENSES)
def test_whatever_is_rehearsed_is_asked(name):
    fake = Fake()
    fake.check = lambda dialogues, room, prefill="": checked.append((dialogues, prefill))
    checked = []
    defended = Defended(fake, DEFENSES[name])
    defended.check([LONGER], 9, "Sure, ")
    assert fake.calls == [] and len(checked) == len(asked_of(DEFENSES[name], LONGER)[0])
    (reply,) = defended.reply([LONGER], SHORT, "Sure, ")
    assert reply.text == "Sure, The Danube."


@pytest.mark.parametrize("defense", [by_examples, by_note, by_beginning])
@pytest.mark.parametrize(
    ("dialogue", "prefill", "complaint"),
    [
        ([*QUERY, {"role": "assistant", "content": "x"}], "", "dialogue 0 ends with"),
        ([SYSTEM], "", "no query"),
        (QUERY, None, "prefill is not a text"),
    ],
)
def test_nothing_is_asked_about_what_is_no_query(defense, dialogue, prefill, complaint):
    fake = Fake()
    with pytest.raises(ValueError, match=complaint):
        defense(fake, [dialogue], SHORT, prefill)
    assert fake.calls == []


def test_the_neutral_reminder_is_as_long_and_says_nothing_of_safety(tokenizer):
    assert neutral_reminder(LONGER) == [
        *LONGER[:-1],
        {"role": "user", "content": f"{NEUTRAL[0]}Name a river.{NEUTRAL[1]}"},
    ]
    for one, other in zip(REMINDER, NEUTRAL, strict=True):
        assert len(one.split()) == len(other.split())
        assert len(tokenizer(one)["input_ids"]) == len(tokenizer(other)["input_ids"])
    assert not any(word in str(NEUTRAL) for word in ("responsib", "harm", "mislead", "safe"))
