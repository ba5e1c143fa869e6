"""The guard in the proxy: streams and whole answers, servers and models here, and many at once."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_proxy import ASK, Talker, client, raw, text_of, words
from test_remote import completion
from tiny import saying, tiny_model

from xb_lite import __main__
from xb_lite.corpora import SHORT_REFUSAL
from xb_lite.guard import fitting
from xb_lite.guard.stream import Guard
from xb_lite.intention.defenses import DEFENSES, by_prompt
from xb_lite.intention.stages import as_said
from xb_lite.models.precision import Precision
from xb_lite.replies.types import Decoding
from xb_lite.serve import proxy
from xb_lite.serve.local import LocalModel
from xb_lite.serve.proxy import in_background
from xb_lite.serve.upstreams import RemoteModel

FINE = "One of them is the Río de la Plata, née Paraná, and the Elbe is another."
BAD = "One of them is the Río bad " + "and on " * 40
NONE = by_prompt(lambda dialogue: dialogue)


class Word:
    """Flags "bad"; knows what was asked, and how many readings were under way at once."""

    name = "word"

    def __init__(self, seconds=0.0):
        self.seconds, self.asked = seconds, set()
        self.active, self.peak = 0, 0

    def __call__(self, request, said):
        self.asked.add(request)
        self.active += 1
        self.peak = max(self.peak, self.active)
        time.sleep(self.seconds)
        self.active -= 1
        return self.name if "bad" in said else None


@pytest.fixture
def guarded():
    """A client of a server behind a guard, the server and the detector."""
    talker, word = Talker(), Word()
    talker.says = lambda asked: FINE
    with in_background(talker.app) as url:
        guard = Guard([word], hold=4)
        app = proxy.application(RemoteModel(url, "a-model"), NONE, guard=guard)
        with in_background(app) as mine:
            yield client(mine), talker, word


def test_a_harmless_stream_arrives_whole_a_little_later(guarded):
    asked, _, word = guarded
    chunks = list(asked.chat.completions.create(**ASK, stream=True))
    assert text_of(chunks) == FINE
    assert chunks[-1].choices[0].finish_reason == "stop"
    pieces = [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content]
    assert pieces[0] == "".join(words(FINE)[:4])  # four tokens were held back and no more
    assert word.asked == {ASK["messages"][-1]["content"]}


def test_a_stream_that_goes_wrong_ends_with_the_refusal_and_hangs_up(guarded):
    asked, talker, _ = guarded
    talker.says = lambda asked: BAD

    async def slowly(_):
        await asyncio.sleep(0.02)

    talker.pause = slowly
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = asked.chat.completions.create(**ASK, **options)
    assert text_of(chunks) == f"One of them is \n\n{SHORT_REFUSAL}"
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert last.usage.completion_tokens == 8
    assert talker.gone.wait(5)  # the server need not go on speaking


def test_of_a_stream_that_was_ended_the_stages_before_are_counted():
    talker, intention = Talker(), "The intention is fine."
    talker.says = lambda asked: BAD if asked.get("stream") else intention
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with in_background(talker.app) as url:
        guard = Guard([Word()], hold=4)
        app = proxy.application(RemoteModel(url, "a-model"), DEFENSES["ia"], guard=guard)
        with in_background(app) as mine:
            *_, last = client(mine).chat.completions.create(**ASK, **options)
    first = completion(talker.requests[0], intention)["usage"]
    assert last.usage.prompt_tokens == first["prompt_tokens"] > 0
    assert last.usage.completion_tokens == first["completion_tokens"] + 8


def test_of_a_stream_that_was_ended_here_all_that_was_read_is_counted(tokenizer):
    model = saying(tiny_model(tokenizer), tokenizer, "fine fine fine fine bad" + " more" * 40)
    here = LocalModel("tiny", model, tokenizer, Precision("cpu", torch.float32, None, "tests"))

    @as_said
    def twice(backend, dialogues, decoding, prefill=""):
        (first,) = backend.reply(dialogues, Decoding(3, stage="first"))
        return [[first, *backend.reply(dialogues, decoding)]]

    asked = {**ASK, "max_tokens": 40, "temperature": 0}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    counts = []
    for guard in (None, Guard([Word()], hold=2)):
        with in_background(proxy.application(here, twice, guard=guard)) as url:
            *_, last = client(url).chat.completions.create(**asked, **options)
        counts.append((last.usage.prompt_tokens, last.usage.completion_tokens))
    assert counts == [(counts[0][0], 3 + 40), (counts[0][0], 3 + 6)]


@pytest.mark.parametrize(("said", "why"), [(FINE, "stop"), (BAD, "content_filter"), ("", "stop")])
def test_a_whole_answer_is_replaced_whole(guarded, said, why):
    asked, talker, _ = guarded
    talker.says = lambda asked: said
    (choice,) = asked.chat.completions.create(**ASK).choices
    assert choice.message.content == (SHORT_REFUSAL if said == BAD else said)
    assert choice.finish_reason == why


@pytest.mark.parametrize("said", ["bad", "fine fine bad", "fine " * 7 + "bad"])
def test_short_answers_and_last_tokens_are_read(guarded, said):
    asked, talker, _ = guarded
    talker.says = lambda asked: said
    assert "bad" not in text_of(asked.chat.completions.create(**ASK, stream=True))


def test_a_stream_is_events_up_to_done_all_the_same(guarded):
    asked, talker, _ = guarded
    talker.says = lambda asked: BAD
    status, _, text = raw(str(asked.base_url).rstrip("/"), {**ASK, "stream": True})
    assert status == 200 and text.endswith("data: [DONE]\n\n")


def test_an_error_of_the_server_is_still_told(guarded):
    asked, talker, _ = guarded
    talker.says = lambda asked: proxy.JSONResponse({"error": {"message": "no"}}, 429)
    with pytest.raises(Exception, match="refuses the request") as caught:
        list(asked.chat.completions.create(**ASK, stream=True))
    assert caught.value.status_code == 429


def test_an_error_of_the_detector_is_no_answer():
    class Broken:
        name = "broken"

        def __call__(self, request, said):
            raise RuntimeError("a secret of the reply")

    talker = Talker()
    talker.says = lambda asked: FINE
    with in_background(talker.app) as url:
        app = proxy.application(RemoteModel(url, "m"), NONE, guard=Guard([Broken()], hold=1))
        with in_background(app) as mine:
            for stream in (False, True):
                status, _, text = raw(mine, {**ASK, "stream": stream})
                assert status == 500 and "secret" not in text and "Elbe" not in text


@pytest.mark.parametrize("defense", ["ia", "self-reminder"])
def test_behind_a_defense_the_answer_alone_is_read(defense):
    talker, word = Talker(), Word()
    talker.says = lambda asked: "The intention is bad." if len(talker.requests) == 1 else FINE
    if defense == "self-reminder":
        talker.says = lambda asked: FINE
    with in_background(talker.app) as url:
        upstream = RemoteModel(url, "a-model")
        with in_background(
            proxy.application(upstream, DEFENSES[defense], guard=Guard([word], hold=4))
        ) as mine:
            found = text_of(client(mine).chat.completions.create(**ASK, stream=True))
    assert found == FINE and word.asked == {ASK["messages"][-1]["content"]}


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_on_this_machine(tokenizer, stream):
    model = saying(tiny_model(tokenizer), tokenizer, "fine fine fine fine bad" + " more" * 40)
    precision = Precision("cpu", torch.float32, None, "tests")
    upstream = LocalModel("tiny", model, tokenizer, precision)
    with in_background(proxy.application(upstream, NONE, guard=Guard([Word()], hold=2))) as mine:
        found = client(mine).chat.completions.create(
            **ASK, max_tokens=40, temperature=0, stream=stream
        )
        found = text_of(found) if stream else found.choices[0].message.content
    assert found.endswith(SHORT_REFUSAL) and "bad" not in found and "more" not in found


def test_sixty_four_streams_at_once(guarded):
    asked, talker, word = guarded
    word.seconds = 0.002
    talker.says = lambda asked: BAD if asked["messages"][-1]["content"].endswith("7") else FINE
    ready = threading.Barrier(64)

    def ask(number):
        ready.wait()
        message = [{"role": "user", "content": f"Question {number}"}]
        return text_of(asked.chat.completions.create(model="m", messages=message, stream=True))

    with ThreadPoolExecutor(64) as many:
        found = list(many.map(ask, range(64)))
    for number, text in enumerate(found):
        assert text.endswith(SHORT_REFUSAL) if number % 10 == 7 else text == FINE
    assert talker.peak > 8 and word.peak == 1 and len(word.asked) == 64


# The command


class Echo:
    def reply(self, dialogues, decoding, prefill):
        self.asked = list(dialogues)
        return ["said" for _ in dialogues]


def test_serve_puts_a_guard_in_front(monkeypatch):
    seen = {}

    def application(upstream, defense, hosts, guard):
        seen.update(guard=guard, defense=defense)

    monkeypatch.setattr(proxy, "application", application)
    monkeypatch.setattr(proxy, "serve", lambda app, listening: None)
    monkeypatch.setattr(fitting, "detectors_named", lambda names: [Word() for _ in names])
    words = ["serve", "--server", "http://127.0.0.1:9/v1", "--model", "m", "--port", "0"]
    assert __main__.main(words) == 0 and seen["guard"] is None
    more = ["--guard", "gibberish", "probe", "--hold", "5", "--defense", "none"]
    assert __main__.main([*words, *more]) == 0
    backend = Echo()
    assert seen["defense"](backend, [ASK["messages"]], Decoding(), "") == [["said"]]
    assert backend.asked == [list(ASK["messages"])]
    assert (len(seen["guard"].detectors), seen["guard"].hold) == (2, 5)


def test_an_unknown_detector_is_named(capsys):
    words = ["serve", "--server", "http://127.0.0.1:9/v1", "--model", "m", "--port", "0"]
    assert __main__.main([*words, "--guard", "smell"]) == 1
    assert "there is no detector 'smell'" in capsys.readouterr().err
