"""An evaluation that is killed goes on, makes nothing twice, and refuses what it cannot ask.

Run as a program, this file is the evaluation that is killed.
"""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xb_lite.data.items import PREFILL, Item
from xb_lite.dialogues import as_turns
from xb_lite.evaluation import outcomes as evaluation
from xb_lite.evaluation.outcomes import Outcome, evaluate, read_log
from xb_lite.evaluation.summary import summarise
from xb_lite.files import digest
from xb_lite.judges.strings import XSTEST, VerdictError
from xb_lite.replies.cache import BATCH, ask, reply_store
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.types import Decoding, Reply
from xb_lite.results.logs import LogError

DECODING = Decoding(max_new_tokens=8)
SUBJECT = {"model": "fake", "defense": "none"}
KILLS = 10


def asked_of(turns, prefill=""):
    return json.dumps([prefill, *turns])


@dataclass
class Fake:
    """A backend whose replies follow from what it is asked; ``asked`` has all that it was."""

    asked: list[str] = field(default_factory=list)
    calls: int = 0

    def note(self, asked):
        self.calls += 1
        self.asked += asked

    def reply(self, dialogues, decoding, prefill=""):
        texts = [dialogue[-1]["content"] for dialogue in dialogues]
        self.note([asked_of([text], prefill) for text in texts])
        return [said(prefill, text, 0) for text in texts]

    def play(self, scripts, decoding):
        self.note([asked_of(script) for script in scripts])
        return [[said("", turn, i) for i, turn in enumerate(script)] for script in scripts]


def said(prefill, text, turn):
    words = f"{prefill} no" if len(text) % 3 else f"{prefill} yes, turn {turn}: {text[::-1]}"
    return Reply(words.strip(), len(text), len(words), len(text) % 5 > 0)


@dataclass
class FakeJudge:
    """Refused where the reply has a "no"; ``judged`` has all pairs it was given."""

    name: str = "fake"
    source: str = "tests"
    judged: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, requests, responses):
        self.judged += zip(requests, responses, strict=True)
        return ["refused" if "no" in response else "complied" for response in responses]


def direct(i, kind="harmful"):
    text = f"Request {i}" + "." * (i % 7)
    return Item(f"{kind}-{i}", kind, kind, "direct", text, (text,))


def mixed_items(n):
    """Plain, prefilled and multi-turn items, ``n`` of each, of which scripts have 2 or 3 turns."""
    plain = [direct(i) for i in range(n)]
    filled = [
        replace(item, id=f"{item.id}+prefill", attack="prefill", prefill=PREFILL) for item in plain
    ]
    scripts = [
        Item(f"script-{i}", "multi-turn", "harmful", "multi-turn", f"Aim {i}", turns)
        for i in range(n)
        for turns in [tuple(f"Turn {t} of {i}" for t in range(2 + i % 2))]
    ]
    return [*plain, *filled, *scripts]


ITEMS = mixed_items(5)


@contextmanager
def own_cache():
    """A folder of its own, with the cache in it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XB_LITE_CACHE", f"{folder}/cache")
        yield Path(folder)


@pytest.fixture
def folder():
    with own_cache() as path:
        yield path


def run(folder, items=ITEMS, judges=None, backend=None, log="log.jsonl", **options):
    judges = [FakeJudge()] if judges is None else judges
    options = {"subject": SUBJECT, **options}
    decoding = options.pop("decoding", DECODING)
    return evaluate(backend or Fake(), items, judges, decoding, log=folder / log, **options)


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def without_seconds(rows):
    times = ("seconds", "judging")
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def the_reply_store(folder):
    (path,) = (folder / "cache" / "replies").glob("*.jsonl")
    return path


# What an evaluation gives.


def test_outcomes_are_of_the_items_in_their_order(folder):
    judge = FakeJudge()
    outcomes = run(folder, judges=[judge, XSTEST])
    assert [o.id for o in outcomes] == [item.id for item in ITEMS]
    for item, outcome in zip(ITEMS, outcomes, strict=True):
        replies = [said(item.prefill, turn, i) for i, turn in enumerate(item.turns)]
        own = ["refused" if "no" in reply.text else "complied" for reply in replies]
        assert outcome.labels == {
            "fake": own,
            "xstest": XSTEST([""] * len(replies), [reply.text for reply in replies]),
        }
        assert (outcome.set, outcome.kind, outcome.attack) == (item.set, item.kind, item.attack)
        assert outcome.prompt_tokens == [reply.prompt_tokens for reply in replies]
        assert outcome.new_tokens == [reply.new_tokens for reply in replies]
        assert outcome.finished == [reply.finished for reply in replies]
        # Judged against the plain request, whatever the user said.
        assert all((item.request, reply.text) in judge.judged for reply in replies)
    assert len(judge.judged) == sum(len(item.turns) for item in ITEMS)


def test_a_prefill_is_put_into_the_last_of_several_turns(folder):
    class Recorder(Fake):
        replied, played = [], []

        def reply(self, dialogues, decoding, prefill=""):
            self.replied += [(dialogue, prefill) for dialogue in dialogues]
            return super().reply(dialogues, decoding, prefill)

        def play(self, scripts, decoding):
            self.played += map(tuple, scripts)
            return super().play(scripts, decoding)

    plain = [item for item in ITEMS if item.attack == "multi-turn"]
    items = [replace(item, prefill=PREFILL) for item in plain]
    assert {len(item.turns) for item in items} == {2, 3}
    backend, judge = Recorder(), FakeJudge()
    outcomes = run(folder, items, [judge], backend)
    assert sorted(backend.played) == sorted(item.turns[:-1] for item in items)
    for item, outcome in zip(items, outcomes, strict=True):
        earlier = [said("", turn, i) for i, turn in enumerate(item.turns[:-1])]
        history = as_turns(item.turns, [reply.text for reply in earlier])
        replies = [*earlier, said(PREFILL, item.turns[-1], 0)]
        assert (history, PREFILL) in backend.replied
        assert outcome.new_tokens == [reply.new_tokens for reply in replies]
        assert outcome.prompt_tokens == [reply.prompt_tokens for reply in replies]
        assert all((item.request, reply.text) in judge.judged for reply in replies)
    assert len(backend.replied) == len(items)
    again = Fake()
    assert run(folder, items, backend=again) == outcomes and again.calls == 0
    refused(folder, "is not what it was", items=plain)


def test_log_has_no_text_of_any_request_or_reply(folder):
    run(folder)
    logged = (folder / "log.jsonl").read_text()
    assert "Request" not in logged and "Turn" not in logged and "yes" not in logged
    assert "yes" in the_reply_store(folder).read_text()


def test_replies_lie_where_the_cache_says(folder):
    run(folder)
    store = reply_store({"subject": SUBJECT, "decoding": DECODING.settings()})
    assert store == the_reply_store(folder)


def test_what_cannot_be_read_is_none_and_left_out_of_n(folder):
    class Unreadable(FakeJudge):
        def __call__(self, requests, responses):
            labels = super().__call__(requests, responses)
            raise VerdictError([None, *labels[1:]], ["?"] * len(labels))

    items = [direct(i) for i in range(6)]
    outcomes = run(folder, items, [Unreadable(), XSTEST])
    assert [o.labels["fake"] == [None] for o in outcomes] == [True] + [False] * 5
    counted = {row["judge"]: row["n"] for row in summarise(outcomes) if row["metric"] == "asr"}
    assert counted == {"fake": 5, "xstest": 6}
    assert run(folder, items, [Unreadable(), XSTEST]) == outcomes


def test_a_local_model_is_asked_as_any_other(folder, default_model):
    items = [direct(0), replace(direct(1), prefill=PREFILL), ITEMS[-1]]
    items.append(replace(ITEMS[-2], prefill=PREFILL))
    backend, short = LocalBackend(*default_model), Decoding(max_new_tokens=2)
    outcomes = run(folder, items, [XSTEST], backend, decoding=short)
    assert [len(o.new_tokens) for o in outcomes] == [1, 1, 2, 3]
    assert all(0 < n <= 2 for o in outcomes for n in o.new_tokens)
    store = {row["id"]: row for row in read(the_reply_store(folder))[1:]}
    assert store["harmful-1"]["replies"][0]["text"].startswith(PREFILL)
    filled = [reply["text"].startswith(PREFILL) for reply in store[ITEMS[-2].id]["replies"]]
    assert filled == [False, False, True]
    again = run(folder, items[:1], [XSTEST], backend, decoding=short, resume=False)
    assert again[0].sha256 == outcomes[0].sha256


# What is there is not made again.


def test_a_second_run_makes_nothing_new(folder):
    first = run(folder)
    before = (folder / "log.jsonl").read_bytes(), the_reply_store(folder).read_bytes()
    backend, judge = Fake(), FakeJudge()
    assert run(folder, backend=backend, judges=[judge]) == first
    assert (backend.calls, judge.judged) == (0, [])
    assert ((folder / "log.jsonl").read_bytes(), the_reply_store(folder).read_bytes()) == before


def test_more_items_cost_only_what_is_new(folder):
    run(folder, ITEMS[3:9])
    backend, judge = Fake(), FakeJudge()
    outcomes = run(folder, ITEMS[::-1], [judge], backend)
    assert [o.id for o in outcomes] == [item.id for item in ITEMS[::-1]]
    new = [asked_of(item.turns, item.prefill) for item in ITEMS[:3] + ITEMS[9:]]
    assert sorted(backend.asked) == sorted(new)
    assert len(judge.judged) == sum(len(item.turns) for item in ITEMS[:3] + ITEMS[9:])
    assert len(read(folder / "log.jsonl")) == 1 + len(ITEMS)
    fewer = run(folder, ITEMS[:2], backend=Fake())
    assert fewer == outcomes[::-1][:2]


def test_other_judges_in_another_log_need_no_new_replies(folder):
    run(folder)
    backend = Fake()
    outcomes = run(folder, judges=[XSTEST], backend=backend, log="other.jsonl")
    assert backend.calls == 0 and set(outcomes[0].labels) == {"xstest"}


def test_a_judge_of_some_kinds_is_asked_about_these_alone(folder):
    judge, items = FakeJudge(), [*ITEMS, direct(9, "benign")]
    judge.kinds = ("harmful",)
    outcomes = run(folder, items, [judge, XSTEST])
    for outcome in outcomes:
        assert (judge.name in outcome.labels) == (outcome.kind == "harmful")
        assert "xstest" in outcome.labels
    assert run(folder, items, [judge, XSTEST]) == outcomes
    rows = summarise(outcomes)
    assert {row["metric"] for row in rows if row["judge"] == judge.name} >= {"asr"}
    assert not [row for row in rows if row["judge"] == judge.name and row["metric"] == "orr"]


def test_a_log_stands_without_the_cache(folder):
    first = run(folder)
    the_reply_store(folder).unlink()
    backend = Fake()
    assert run(folder, backend=backend) == first and backend.calls == 0


def test_without_resuming_what_is_asked_is_made_anew_and_other_replies_stay(folder):
    run(folder)
    backend, judge = Fake(), FakeJudge()
    run(folder, ITEMS[:4], [judge], backend, resume=False)
    assert len(backend.asked) == len(judge.judged) == 4
    assert len(read(folder / "log.jsonl")) == 5
    backend = Fake()
    ask(backend, ITEMS, DECODING, subject=SUBJECT)
    assert backend.calls == 0


def test_two_items_of_one_name_do_not_share_a_reply(folder):
    backend = Fake()
    twice = [direct(0), replace(direct(1), id=direct(0).id)]
    with pytest.raises(ValueError, match=f"named '{direct(0).id}': names must differ"):
        ask(backend, twice, DECODING, subject=SUBJECT)
    assert backend.calls == 0
    assert len(ask(backend, [direct(0), direct(0)], DECODING, subject=SUBJECT)) == 2


def test_without_resuming_even_a_damaged_log_is_made_anew(folder):
    first = run(folder)
    log = folder / "log.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"id"', b"\xff", 1))
    again = run(folder, resume=False)
    assert [replace(o, seconds=0.0) for o in again] == [replace(o, seconds=0.0) for o in first]


def test_an_error_of_a_judge_loses_no_reply(folder):
    class Broken(FakeJudge):
        def __call__(self, requests, responses):
            raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError, match="the server is gone"):
        run(folder, judges=[Broken()])
    backend = Fake()
    assert len(run(folder, backend=backend)) == len(ITEMS) and backend.calls == 0


def test_half_a_character_in_a_reply_is_kept(folder):
    class Half(Fake):
        def reply(self, dialogues, decoding, prefill=""):
            return [Reply("cut \ud83d", 1, 1, False) for _ in dialogues]

    assert len(run(folder, [direct(0)], backend=Half())) == 1
    assert read(the_reply_store(folder))[1]["replies"][0]["text"] == "cut \ud83d"


# What is refused.


def refused(folder, match, **options):
    """The run is refused with one sentence, nothing is asked, and nothing on disk changes."""
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    backend = Fake()
    with pytest.raises(LogError, match=match) as error:
        run(folder, backend=backend, **options)
    assert "\n" not in str(error.value) and backend.calls == 0
    assert all(path.read_bytes() == data for path, data in before.items())


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"decoding": Decoding(max_new_tokens=9)}, "decoding"),
        ({"decoding": Decoding(8, temperature=1.0)}, "decoding"),
        ({"subject": {**SUBJECT, "defense": "other"}}, "subject"),
        ({"judges": [XSTEST]}, "judges"),
        ({"judges": [FakeJudge(source="another version")]}, "judges"),
        ({"judges": [FakeJudge(), XSTEST]}, "judges"),
    ],
)
def test_a_changed_setting_is_one_sentence_that_names_it(folder, changed, name):
    run(folder)
    refused(folder, f"other settings .*'{name}'.*start anew", **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"request": "Another"},
        {"turns": ("Another",)},
        {"prefill": "Well,"},
        {"kind": "benign"},
        {"set": "another"},
        {"attack": "wrapper"},
    ],
)
def test_an_item_that_changed_under_its_id_is_refused(folder, changed):
    run(folder)
    items = [direct(99), *ITEMS[1:], replace(ITEMS[0], **changed)]
    refused(folder, f"'{ITEMS[0].id}' is not what it was", items=items)


@pytest.mark.parametrize(
    "changed", [{"request": "Another"}, {"turns": ("Another",)}, {"prefill": "Well,"}]
)
def test_an_item_that_changed_under_its_id_is_asked_again_for_another_log(folder, changed):
    run(folder)
    items, backend, judge = [replace(ITEMS[0], **changed), *ITEMS[1:]], Fake(), FakeJudge()
    outcomes = run(folder, items, [judge], backend, "other.jsonl")
    assert backend.asked == [asked_of(items[0].turns, items[0].prefill)]
    reply = said(items[0].prefill, items[0].turns[0], 0).text
    assert (items[0].request, reply) in judge.judged and len(outcomes) == len(items)
    again = Fake()
    (newer,), *_ = ask(again, items, DECODING, subject=SUBJECT)
    assert newer.text == reply and again.calls == 0


def test_until_a_changed_item_is_answered_its_earlier_reply_stays(folder):
    class Dead(Fake):
        def reply(self, dialogues, decoding, prefill=""):
            raise RuntimeError("the server is gone")

    run(folder)
    before = the_reply_store(folder).read_bytes()
    with pytest.raises(RuntimeError, match="the server is gone"):
        ask(Dead(), [replace(ITEMS[0], turns=("Another",))], DECODING, subject=SUBJECT)
    assert the_reply_store(folder).read_bytes() == before


def test_a_finished_log_reads_no_reply_to_another_file_of_the_same_names(folder, monkeypatch):
    first, seen = run(folder), []
    others = [replace(item, turns=("Another",)) for item in ITEMS]
    ask(Fake(), others, DECODING, subject=SUBJECT)
    monkeypatch.setattr(evaluation, "unseen", lambda judges, answers: seen.extend(answers) or [])
    backend = Fake()
    assert run(folder, backend=backend) == first
    assert (backend.calls, seen) == (0, [])


def test_a_second_run_at_once_is_refused_with_its_log(folder):
    class Nested(Fake):
        def reply(self, dialogues, decoding, prefill=""):
            for again in (False, True):
                refused(folder, "another process is writing to", resume=not again)
            return super().reply(dialogues, decoding, prefill)

    assert len(run(folder, backend=Nested())) == len(ITEMS)


@pytest.mark.parametrize("evaluates", [False, True])
def test_who_asks_the_same_waits_for_the_replies_of_the_other(folder, monkeypatch, evaluates):
    """Several trainings that start together ask the same model for the same sets."""
    asking, go_on = threading.Event(), threading.Event()

    class Slow(Fake):
        def reply(self, dialogues, decoding, prefill=""):
            asking.set()
            assert go_on.wait(30)
            return super().reply(dialogues, decoding, prefill)

    lines = []

    def say(line, file):
        lines.append(line)
        go_on.set()

    monkeypatch.setattr("xb_lite.results.logs.print", say, raising=False)
    first, second, found = Slow(), Fake(), []
    other = threading.Thread(
        target=lambda: found.extend(ask(first, ITEMS, DECODING, subject=SUBJECT))
    )
    other.start()
    try:
        assert asking.wait(30)
        more = [*ITEMS, direct(99)]
        if evaluates:
            sha256s = [outcome.sha256 for outcome in run(folder, items=more, backend=second)]
        else:
            replies = ask(second, more, DECODING, subject=SUBJECT)
            sha256s = [digest([reply.text for reply in turns]) for turns in replies]
    finally:
        go_on.set()
        other.join()
    assert len(first.asked) == len(ITEMS) and second.asked == [asked_of(direct(99).turns)]
    assert sha256s[:-1] == [digest([reply.text for reply in turns]) for turns in found]
    (line,) = lines
    assert line.startswith(f"another process is writing to {the_reply_store(folder)}; waiting")


def test_while_replies_are_judged_the_cache_is_free(folder, capfd):
    class Asks(FakeJudge):
        def __call__(self, requests, responses):
            more = ask(Fake(), [direct(99)], DECODING, subject=SUBJECT)
            assert len(more) == 1
            return super().__call__(requests, responses)

    assert len(run(folder, judges=[Asks()])) == len(ITEMS)
    assert "waiting" not in capfd.readouterr().err
    assert direct(99).id in the_reply_store(folder).read_text()


def test_a_lock_of_another_process_is_seen(folder):
    run(folder)
    with (folder / "log.jsonl.lock").open("w") as lock:
        other = os.fork()
        if not other:
            fcntl.flock(lock, fcntl.LOCK_EX)
            signal.pause()
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    run(folder)
                except LogError as error:
                    assert "another process is writing to" in str(error)
                    break
            else:
                pytest.fail("the lock was never seen")
        finally:
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)


def test_a_log_that_is_something_else_is_left_alone(folder):
    (folder / "log.jsonl").write_text("a diary")
    refused(folder, "not a log of this program")
    refused(folder, "not a log of this program", resume=False)


@pytest.mark.parametrize("of", ["log", "replies"])
def test_a_damaged_line_in_the_middle_names_its_number(folder, of):
    run(folder)
    path = folder / "log.jsonl" if of == "log" else the_reply_store(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], lines[4][:30] + b"\n", *lines[5:]]))
    refused(folder, "line 5 is damaged", judges=[FakeJudge()])
    path.write_bytes(b"".join(lines[:4] + lines[5:]))
    backend = Fake()
    run(folder, backend=backend)
    assert backend.calls == 0


def test_every_field_of_a_line_is_looked_at(folder):
    run(folder)
    for path in (folder / "log.jsonl", the_reply_store(folder)):
        head, *rows = read(path)
        log = "log.jsonl" if path.parent == folder else "other.jsonl"
        # A row of the cache that is of something else is no error: it is asked again.
        known = {"id"} if log == "log.jsonl" else {"id", "asked"}
        for name in rows[0].keys() - known:
            gone = {other: value for other, value in rows[0].items() if other != name}
            odd = [{**rows[0], name: value} for value in (None, 3, [], [[1]], {"fake": [3]})]
            for damaged in (*([gone] if name != "judging" else []), *odd):  # older logs lack it
                text = "".join(json.dumps(row) + "\n" for row in [head, damaged, *rows[1:]])
                path.write_text(text)
                refused(folder, f"{rows[0]['id']}' is (not what it was|damaged)", log=log)
        path.write_text("".join(json.dumps(row) + "\n" for row in [head, *rows]))


@pytest.mark.parametrize("labels", [[], ["refused"] * 2, "x", None, 3, ["served"], [3], [[]]])
def test_what_a_judge_gives_instead_of_labels_is_named(folder, labels):
    class Odd(FakeJudge):
        def __call__(self, requests, responses):
            return labels

    with pytest.raises(ValueError, match="judge 'fake' ") as error:
        run(folder, [direct(0)], [Odd()])
    assert "\n" not in str(error.value)
    assert len(read(folder / "log.jsonl")) == 1  # nothing but its head


ODD = (
    st.none()
    | st.integers()
    | st.binary(max_size=3)
    | st.sampled_from(
        ["", " ", "\n", "\ud800", (), ("fine", ""), ("fine", None), ["x", 3], {}, b""]
    )
    | st.lists(st.none() | st.integers(), max_size=2)
)
FIELDS = [name for name in Item.__dataclass_fields__ if name not in ("prefill", "context")]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from(FIELDS), ODD).map(lambda odd: replace(direct(0), **dict([odd])))
        | st.sampled_from(
            [
                None,
                "A request.",
                {"id": "a"},
                direct,
                direct(1),  # a twin of a good one
                replace(direct(0), kind="rude"),
                replace(direct(0), turns="A text, no list of them."),
                replace(direct(0), prefill=None),
                replace(direct(0), prefill=" "),
                replace(direct(0), prefill=["Sure"]),
                replace(direct(0), context=None),
                replace(direct(0), context=" "),
            ]
        ),
        min_size=1,
        max_size=3,
    ),
    st.randoms(),
)
def test_malformed_items_are_refused_before_anything_is_generated(bad, shuffle):
    items = [direct(1), direct(2), *bad]
    shuffle.shuffle(items)
    backend = Fake()
    with own_cache() as folder:
        with pytest.raises(ValueError) as error:
            run(folder, items, backend=backend)
        assert type(error.value) is ValueError and "\n" not in str(error.value)
        assert len(str(error.value)) < 300
        assert backend.calls == 0 and not list(folder.iterdir())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(FakeJudge, name=ODD)
        | st.builds(FakeJudge, source=ODD)
        | st.sampled_from([None, "xstest", len, object(), FakeJudge("good"), direct(0)]),
        min_size=1,
        max_size=3,
    )
)
def test_malformed_judges_are_refused_before_anything_is_generated(bad):
    backend = Fake()
    with own_cache() as folder:
        with pytest.raises(ValueError) as error:
            run(folder, judges=[FakeJudge("good"), *bad], backend=backend)
        assert type(error.value) is ValueError and "\n" not in str(error.value)
        assert backend.calls == 0 and not list(folder.iterdir())


def test_judges_that_would_say_nothing_are_refused(folder):
    """Their rows would only be missing from the result."""
    of_no_kind = FakeJudge()
    of_no_kind.kinds = ("harmfull",)
    for judge, says in (
        (FakeJudge, "FakeJudge is a class"),
        (of_no_kind, "has kinds .'harmfull',., not some of harmful, boundary-safe"),
        (FakeJudge("gibberish"), "give yours another name"),
    ):
        backend = Fake()
        with pytest.raises(ValueError, match=says):
            run(folder, judges=[judge], backend=backend)
        assert backend.calls == 0


def test_no_two_batches_are_drawn_from_one_seed(folder):
    """Or the replies of all batches would repeat the same chances."""
    seeds, fake = [], Fake()
    reply = fake.reply
    fake.reply = lambda asked, drawn, prefill="": seeds.append(drawn.seed) or reply(asked, drawn)
    items = [direct(i) for i in range(3 * BATCH)]
    run(folder, items, backend=fake, decoding=Decoding(8, temperature=1.0))
    assert len(set(seeds)) == len(seeds) == 3
    again = seeds.copy()
    seeds.clear()
    run(folder, items, backend=fake, decoding=Decoding(8, temperature=1.0), resume=False)
    assert seeds == again


@pytest.mark.parametrize("what", ["items", "judges"])
def test_without_items_or_judges_there_is_nothing_to_do(folder, what):
    with pytest.raises(ValueError, match=f"there are no {what} to evaluate with"):
        run(folder, **{what: []})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["log", "replies"]),
    st.integers(0, 3),
    st.sampled_from([*Outcome.__dataclass_fields__, "asked", "replies", "run"]),
    VALUES,
)
def test_a_log_with_any_field_changed_is_one_sentence_or_clean_outcomes(of, line, name, value):
    items = mixed_items(1)
    with own_cache() as folder:
        run(folder, items)
        path = folder / "log.jsonl" if of == "log" else the_reply_store(folder)
        rows = read(path)
        rows[line][name] = value
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "log.jsonl").unlink() if of == "replies" else None
        try:
            outcomes = run(folder, items)
        except LogError as error:
            assert "\n" not in str(error)
        else:
            assert [o.id for o in outcomes] == [item.id for item in items]
            assert all(
                len(o.finished) == len(i.turns) for o, i in zip(outcomes, items, strict=True)
            )


# Killed at random moments.

SLOW_ITEMS = mixed_items(20)  # 90 replies
SECONDS_ASKING, SECONDS_JUDGING = 0.012, 0.02  # a reply


@dataclass
class Diary:
    """What was asked for, a line a call, on disk before anything else is done."""

    path: Path

    def write(self, of):
        line = json.dumps({"run": os.getpid(), "of": of}) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())


@dataclass
class SlowBackend(Fake):
    diary: Diary = None

    def note(self, asked):
        self.diary.write(asked)
        time.sleep(SECONDS_ASKING * sum(len(json.loads(turns)) - 1 for turns in asked))


@dataclass
class SlowJudge(FakeJudge):
    diary: Diary = None

    def __call__(self, requests, responses):
        self.diary.write([list(pair) for pair in zip(requests, responses, strict=True)])
        time.sleep(SECONDS_JUDGING * len(responses))
        return super().__call__(requests, responses)


def slow_run(folder):
    os.environ["XB_LITE_CACHE"] = str(folder / "cache")
    evaluation.BATCH = 4
    backend = SlowBackend(diary=Diary(folder / "asked.jsonl"))
    run(folder, SLOW_ITEMS, [SlowJudge(diary=Diary(folder / "judged.jsonl"))], backend)


def serve():
    """Run in a child of its own, for every folder that is read, and say how it ended: importing
    torch again for each of them would take a minute."""
    for line in sys.stdin:
        if not (child := os.fork()):
            try:
                slow_run(Path(line.strip()))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


@pytest.fixture(scope="module")
def start():
    """Start a slow run in a folder; gives its process, and what waits for its end."""
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def answer():
            return int(server.stdout.readline())

        def begin(folder):
            server.stdin.write(f"{folder}\n")
            server.stdin.flush()
            return answer(), answer

        yield begin
        server.stdin.close()


def calls_and_lost(path):
    """What each call was about; and whether a kill may have met it, as the last of its run."""
    calls = read(path)
    last = {call["run"]: number for number, call in enumerate(calls)}
    return [(set(map(str, c["of"])), last[c["run"]] == n) for n, c in enumerate(calls)]


def test_killed_at_ten_random_moments_it_ends_as_if_it_never_was(tmp_path, start):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    _, ended = start(whole)
    assert ended() == 0
    draw = random.Random(10)
    # In sum less than a run sleeps, so that the last of the kills still meets one under way.
    waits = [draw.uniform(0.03, 0.43) for _ in range(KILLS)]
    assert 1.8 < sum(waits) < 90 * (SECONDS_ASKING + SECONDS_JUDGING)
    for wait in waits:
        process, ended = start(killed)
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)
        assert ended() == -signal.SIGKILL
    _, ended = start(killed)
    assert ended() == 0

    for name in ("log.jsonl", str(the_reply_store(whole).relative_to(whole))):
        rows = read(killed / name)
        assert without_seconds(rows) == without_seconds(read(whole / name))
        ids = [row["id"] for row in rows[1:]]
        assert len(set(ids)) == len(ids) == len(SLOW_ITEMS)
    for name in ("asked.jsonl", "judged.jsonl"):
        saved = set()
        for of, perhaps_lost in calls_and_lost(killed / name):
            assert not of & saved
            saved |= set() if perhaps_lost else of
        everything = set.union(*(of for of, _ in calls_and_lost(killed / name)))
        assert everything == set.union(*(of for of, _ in calls_and_lost(whole / name)))
    assert len({call["run"] for call in read(killed / "asked.jsonl")}) > 3


@pytest.mark.parametrize("of", ["log", "replies"])
def test_cut_at_any_byte_of_the_last_two_lines_it_ends_the_same(folder, of):
    items = mixed_items(1)
    run(folder, items)
    log, store = folder / "log.jsonl", the_reply_store(folder)
    path = log if of == "log" else store
    data = path.read_bytes()
    wanted = {each: without_seconds(read(each)) for each in (log, store)}
    last_two = sum(map(len, data.splitlines(keepends=True)[-2:]))
    for cut in range(len(data) - last_two, len(data)):
        path.write_bytes(data[:cut])
        if of == "replies":
            log.unlink()
        backend, judge = Fake(), FakeJudge()
        run(folder, items, [judge], backend)
        missing = len(items) - (data[:cut].count(b"\n") - 1)
        assert len(backend.asked) == (missing if of == "replies" else 0)
        assert {each: without_seconds(read(each)) for each in (log, store)} == wanted
    assert path.read_bytes() == data or of == "replies"


if __name__ == "__main__":
    serve()


class Thinking(Fake):
    """Of three replies one ends within the thought and one is none, for a reason."""

    def reply(self, dialogues, decoding, prefill=""):
        texts = ["<think>no</think>yes", "<think>on", ""]
        return [Reply(text, 1, 1, True, "" if text else "length") for text in texts]


def test_a_judge_sees_the_answer_and_no_answer_has_no_verdict(tmp_path):
    judge = FakeJudge()
    with own_cache():
        items = [direct(i) for i in range(3)]
        found = evaluate(
            Thinking(), items, [judge], Decoding(), subject=SUBJECT, log=tmp_path / "log.jsonl"
        )
    assert [outcome.labels["fake"] for outcome in found] == [["complied"], [None], [None]]
    assert [response for _, response in judge.judged] == ["yes"]
    assert read_log(tmp_path / "log.jsonl") == found
    rows = {row["metric"]: row for row in summarise(found)}
    assert (rows["asr"]["k"], rows["asr"]["n"]) == (1, 1)
    assert (rows["no-answer"]["k"], rows["no-answer"]["n"]) == (2, 3)
    assert rows["gibberish"]["k"] == 0
