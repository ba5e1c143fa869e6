"""Any OpenAI client gets a defense by changing its URL, and is told plainly what fails."""

import asyncio
import copy
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import anyio
import httpx
import openai
import pytest
import torch
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from test_remote import completion, free_port
from tiny import saying, tiny_model
from tokenizers import decoders

from xb_lite import __main__
from xb_lite.corpora import SHORT_REFUSAL
from xb_lite.dialogues import as_dialogue, render
from xb_lite.intention.defenses import BY_MODEL, DEFENSES, IN_SHORT, Defended, defense_named
from xb_lite.intention.prompts import FIRST, STAGE_1, STAGE_2, first_stage, second_stage
from xb_lite.intention.stages import as_said, is_as_said, two_stage
from xb_lite.intention.variants import BEGINNING, by_examples
from xb_lite.models.precision import Precision, choose_precision
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.server import PROBE, RemoteBackend
from xb_lite.replies.types import Decoding, Reply
from xb_lite.serve import proxy
from xb_lite.serve.local import LocalModel, _Pieces
from xb_lite.serve.proxy import in_background, url_of
from xb_lite.serve.requests import Asked, ServingError
from xb_lite.serve.upstreams import RemoteModel

QUERY = "Name a river, please."
INTENTION = "The essential intention of the query is to hear of a river."
ANSWER = "One of them  is the Río\nde la Plata, née Paraná."
KEY = "sk-this-key-is-secret-0123456789"
ASK = {"model": "any", "messages": as_dialogue(QUERY)}


class Talker:
    """An OpenAI-compatible server: ``says(request)`` is a text, or a response to send as it is.

    It keeps the requests and their keys, and how many were under way at once. Between words it
    waits for ``pause(word's number)``. ``gone`` is set when somebody hung up on it.
    """

    def __init__(self):
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.chat, methods=["POST"])])
        self.reset()

    def reset(self):
        self.requests, self.keys, self.active, self.peak = [], [], 0, 0
        self.cookies = []
        self.gone = threading.Event()
        self.says = says
        self.pause = lambda number: asyncio.sleep(0)

    async def chat(self, request):
        try:
            asked = await request.json()
        except ClientDisconnect:
            self.gone.set()
            raise
        self.requests.append(asked)
        self.keys.append(request.headers.get("authorization"))
        self.cookies.append(request.headers.get("cookie"))
        self.active += 1
        self.peak = max(self.peak, self.active)
        said = self.says(asked)
        if not isinstance(said, str):
            self.active -= 1
            return said
        if asked.get("stream"):
            return StreamingResponse(self.stream(asked, said), media_type="text/event-stream")
        slow = asyncio.ensure_future(self.pause(0))
        while not slow.done():
            await asyncio.wait([slow], timeout=0.02)
            if await request.is_disconnected():
                self.gone.set()
                slow.cancel()
                break
        self.active -= 1
        return JSONResponse(completion(asked, said))

    async def stream(self, asked, said):
        whole = completion(asked, said)
        try:
            for number, word in enumerate(words(said)):
                await self.pause(number)
                yield event(delta=word)
            end = asked.get("max_tokens") == 7 and "length" or "stop"
            yield event(delta="", end=end)
            yield "data: " + json.dumps({"choices": [], "usage": whole["usage"]}) + "\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.gone.set()
            raise
        finally:
            self.active -= 1


def says(asked):
    last = asked["messages"][-1]["content"]
    if "'Yes' or 'No'" in last:
        return "No."
    return INTENTION if last.startswith(STAGE_1) else ANSWER


def words(text):
    return re.findall(r"\S+\s*", text)


def event(delta, end=None):
    choice = {"index": 0, "delta": {"content": delta}, "finish_reason": end}
    return "data: " + json.dumps({"choices": [choice]}) + "\n\n"


@pytest.fixture(scope="module")
def talking():
    talker = Talker()
    with in_background(talker.app) as url:
        talker.url = url
        yield talker


@pytest.fixture
def talker(talking):
    talking.reset()
    return talking


def client(url, key="none"):
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=20)


@pytest.fixture(scope="module")
def clients(talking):
    """Clients of the talker behind each defense."""
    made = {}
    apps = Starlette()
    served = [name for name in DEFENSES if name != "ia-begun"]
    for name in served:
        model = RemoteModel(talking.url, "a-model")
        apps.mount(f"/{name}", proxy.application(model, DEFENSES[name]))
    with in_background(apps) as url:
        for name in served:
            made[name] = client(url.replace("/v1", f"/{name}/v1"))
        yield made


@pytest.fixture
def ask(talker, clients):
    """Ask for a completion behind IA; ``stream=True`` gives the chunks."""

    def create(**fields):
        return clients["ia"].chat.completions.create(**{**ASK, **fields})

    return create


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def raw(url, body, **headers):
    """Status, headers and text of what is said to a body of any kind."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{url}/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


# What is asked and what is said.


def test_two_stages_for_one_question(ask, talker):
    answer = ask(max_tokens=9, temperature=0.7, top_p=0.9, seed=3)
    first, second = talker.requests
    assert first["messages"] == first_stage(ASK["messages"])
    assert second["messages"] == second_stage(ASK["messages"], INTENTION)
    assert second["messages"][-1]["content"] == STAGE_2
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role) == (ANSWER, "assistant")
    assert (choice.finish_reason, answer.model, answer.object) == (
        "stop",
        "a-model",
        "chat.completion",
    )
    read = [completion(request, "")["usage"]["prompt_tokens"] for request in talker.requests]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (sum(read), 10)
    assert answer.usage.total_tokens == sum(read) + 10
    own = {"model": "a-model", "temperature": 0.7, "top_p": 0.9, "seed": 3, "max_tokens": 9}
    assert second == {**own, "messages": second["messages"]}
    greedy = {"temperature": 0.0, "top_p": 1.0, "seed": 0, "max_tokens": FIRST.max_new_tokens}
    assert first == {**greedy, "model": "a-model", "messages": first["messages"]}


def test_a_stream_is_the_final_answer_alone(ask, talker):
    talker.says = lambda asked: "Sûr " + says(asked)
    *chunks, last = ask(stream=True, stream_options={"include_usage": True}, max_tokens=7)
    assert [chunk.choices[0].delta.content for chunk in chunks] == [
        "",
        *words("Sûr " + ANSWER),
        None,
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert {(c.id, c.model, c.object) for c in [*chunks, last]} == {
        (chunks[0].id, "a-model", "chat.completion.chunk")
    }
    assert last.choices == [] and last.usage == ask(max_tokens=7).usage
    first, second, *_ = talker.requests
    assert "stream" not in first and second["stream"] is True
    assert second["messages"] == second_stage(ASK["messages"], "Sûr " + INTENTION)
    assert all(chunk.usage is None for chunk in ask(stream=True))


def test_an_answer_that_a_defense_may_change_is_not_told_before_it_is_whole(talker, talking):
    """An own one that reads the answer: what was told cannot be taken back."""

    def no_rivers(backend, dialogues, decoding, prefill=""):
        replies = backend.reply(dialogues, decoding, prefill)
        return [[replace(reply, text="I name none.")] for reply in replies]

    with in_background(proxy.application(RemoteModel(talking.url, "a-model"), no_rivers)) as url:
        chunks = client(url).chat.completions.create(**ASK, stream=True)
        assert text_of(chunks) == "I name none."
    assert "stream" not in talker.requests[-1]


def test_the_help_says_in_short_what_each_defense_is():
    assert IN_SHORT.keys() == {*DEFENSES, f"{BY_MODEL}MODEL"}


def test_all_defenses_of_the_package_are_told_as_they_are_said():
    assert all(map(is_as_said, [*DEFENSES.values(), defense_named("ia-by-m")]))


def test_a_stream_is_events_up_to_done(clients, talker):
    url = str(clients["ia"].base_url).rstrip("/")
    status, headers, text = raw(url, {**ASK, "stream": True})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    *events, done, nothing = text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    assert all(json.loads(e.removeprefix("data: "))["choices"] for e in events)


def test_words_are_passed_on_as_they_come(ask, talker):
    heard = threading.Event()

    async def until_heard(number):
        while number == 2 and not heard.is_set():
            await asyncio.sleep(0.01)

    talker.pause = until_heard
    chunks = iter(ask(stream=True))
    assert text_of([next(chunks) for _ in range(3)]) == "".join(words(ANSWER)[:2])
    heard.set()
    assert text_of(chunks) == "".join(words(ANSWER)[2:])


def test_one_who_asks_for_what_the_first_stage_has_gets_the_second(ask):
    same = {"max_tokens": FIRST.max_new_tokens, "temperature": 0, "top_p": 1, "seed": FIRST.seed}
    assert text_of(ask(stream=True, **same)) == ANSWER


@pytest.mark.parametrize("verdict", ["No.", "Yes."])
@pytest.mark.parametrize("name", [name for name in DEFENSES if name != "ia-begun"])
def test_every_defense_says_the_same_whole_in_pieces_and_without_the_proxy(
    clients, talker, name, verdict
):
    talker.says = lambda asked: verdict if says(asked) == "No." else says(asked)
    dialogue = [
        {"role": "system", "content": "Be brief."},
        *as_dialogue("Hello.", "Hello. How can I help?"),
        *as_dialogue(QUERY),
    ]
    asked = {"model": "any", "messages": dialogue, "max_tokens": 20, "temperature": 0}
    straight = Defended(RemoteBackend(talker.url, "a-model", "none"), DEFENSES[name])
    (said,) = straight.reply([dialogue], Decoding(20))
    # Without what is asked first, to find out whether the model thinks.
    before, talker.requests = [r for r in talker.requests if r["messages"] != PROBE[:1]], []
    whole = clients[name].chat.completions.create(**asked)
    between, talker.requests = talker.requests, []
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *pieces, last = clients[name].chat.completions.create(**asked, **options)
    assert text_of(pieces) == whole.choices[0].message.content == said.text
    assert said.text == (SHORT_REFUSAL if name == "input-check" and verdict == "Yes." else ANSWER)
    assert whole.usage == last.usage
    counts = whole.usage.prompt_tokens, whole.usage.completion_tokens
    assert counts == (said.prompt_tokens, said.new_tokens)
    for requests in (between, talker.requests):
        assert [r["messages"] for r in requests] == [r["messages"] for r in before]
    streamed = [request.get("stream", False) for request in talker.requests]
    assert streamed == [False] * (len(before) - 1) + [said.text != SHORT_REFUSAL]


def test_a_proxy_of_the_environment_is_not_asked_for_a_server_here(talker, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    app = proxy.application(RemoteModel(talker.url, "a-model"), DEFENSES["self-reminder"])
    with in_background(app) as url, httpx.Client(trust_env=False) as plain:
        answer = plain.post(f"{url}/chat/completions", json=ASK, timeout=20)
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER


def test_a_remote_model_can_be_served_again_and_twice_at_once(talker):
    model = RemoteModel(talker.url, "a-model")
    app = proxy.application(model, DEFENSES["self-reminder"])
    with in_background(app) as url:
        assert raw(url, ASK)[0] == 200
    with in_background(app) as url, in_background(app) as another:
        assert [raw(some, ASK)[0] for some in (url, another, url)] == [200] * 3


def test_who_ends_a_server_hangs_up_behind_it(talker, monkeypatch):
    closed, made = [], openai.AsyncOpenAI.close

    async def close(self):
        await made(self)
        closed.append(self.is_closed())

    monkeypatch.setattr(openai.AsyncOpenAI, "close", close)
    app = proxy.application(RemoteModel(talker.url, "a-model"), DEFENSES["self-reminder"])
    with in_background(app) as url:
        assert raw(url, ASK)[0] == 200 and not closed
    assert closed == [True]


def test_messages_are_cleaned_of_what_is_no_text(ask, talker):
    parts = [{"type": "text", "text": "Name a "}, {"type": "text", "text": "river, please."}]
    developer = {"role": "developer", "content": "Be brief.", "name": "me"}
    ask(messages=[developer, {"role": "user", "content": parts}])
    asked = [{"role": "system", "content": "Be brief."}, *ASK["messages"]]
    assert talker.requests[0]["messages"] == first_stage(asked)


def test_what_the_client_leaves_open_is_left_open(ask, talker):
    ask(user="me", store=False, metadata={}, tools=[], n=1)
    assert talker.requests[1].keys() == {"model", "messages"}


def test_what_servers_know_besides_is_passed_on_and_thinking_in_every_stage(ask, talker):
    thinking = {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}
    ask(extra_body={"top_k": 3, "min_p": 0.1, **thinking})
    first, second = talker.requests
    assert second.items() >= {"top_k": 3, "min_p": 0.1, **thinking}.items()
    assert first.items() >= thinking.items() and "top_k" not in first


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"\ud800x\n": 1}, r"\ud800x\n is not known"),
        ({"stop": "\ud800"}, "stop has half a character"),
    ],
)
def test_half_a_character_is_refused_wherever_it_is(clients, talker, more, says):
    url, kind = f"{clients['ia'].base_url}chat/completions", {"content-type": "application/json"}
    body = json.dumps({**ASK, **more}).encode()
    answer = httpx.post(url, content=body, headers=kind, trust_env=False, timeout=60)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]
    assert not talker.requests


@pytest.mark.parametrize("field", ["guided_json", "best_of", "grammar", "x" * 200])
def test_a_field_that_nobody_knows_is_refused(clients, talker, field):
    answer = post(clients["ia"], {**ASK, field: 2})
    assert answer.status_code == 400 and field[:60] in answer.json()["error"]["message"]
    assert not talker.requests


def post(client, body, **headers):
    url = f"{client.base_url}chat/completions"
    return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=60)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[("evil.example", 403), ("evil.example:80", 403), ("127.0.0.1.evil.example", 403)],
        *[("localhost", 200), ("LOCALHOST:1", 200), ("127.0.0.1:9", 200), ("[::1]:9", 200)],
        *[("", 403), ("[::1", 400), ("192.168.1.9:8001", 200)],
    ],
)
def test_only_hosts_of_ones_own_are_answered(clients, host, status):
    client = clients["ia"]
    assert post(client, ASK, host=host).status_code == status
    found = httpx.get(f"{client.base_url}models", headers={"host": host}, trust_env=False)
    assert found.status_code == status


def test_a_body_that_is_too_long_is_refused_at_once(clients, talker):
    body = {**ASK, "messages": as_dialogue("x " * 5_000_000)}
    began = time.monotonic()
    answer = post(clients["ia"], body)
    assert answer.status_code == 413 and "2,000,000 bytes" in answer.json()["error"]["message"]
    assert time.monotonic() - began < 2 and not talker.requests


@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens"])
@pytest.mark.parametrize("value", ["many", -1, [1], {"a": 1}, 1e400, 10**30, 1.5])
def test_odd_usage_is_the_servers_fault(clients, talker, field, value):
    def odd(request):
        answer = completion(request, "Hi.")
        answer["usage"][field] = value
        return Response(json.dumps(answer), media_type="application/json")

    talker.says = odd
    answer = post(clients["ia"], ASK)
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("value", [{"a": 1}, ["x"], float("nan"), 3, "x" * 1000, "a\nb"])
def test_odd_errors_are_passed_on_in_form(clients, talker, value):
    def odd(_request):
        said = json.dumps({"error": {"message": "no", "param": value, "code": value}})
        return Response(said, 400, media_type="application/json", headers={"retry-after": "soon"})

    talker.says = odd
    error = post(clients["ia"], ASK).json()["error"]
    assert {type(error["param"]), type(error["code"])} <= {str, type(None)}


def test_a_key_in_the_code_of_an_error_is_not_shown(clients, talker):
    talker.says = lambda _: JSONResponse(
        {"error": {"message": "no", "code": KEY, "param": KEY}}, 400
    )
    answer = post(clients["ia"], ASK, authorization=f"Bearer {KEY}")
    assert answer.status_code == 400 and KEY not in answer.text


def test_cookies_of_a_server_are_not_kept(clients, talker):
    def with_cookie(request):
        answer = JSONResponse(completion(request, "Hi."))
        answer.set_cookie("session", "of-one-client")
        return answer

    talker.says = with_cookie
    post(clients["ia"], ASK)
    post(clients["ia"], ASK)
    assert talker.cookies == [None] * 4


def test_a_half_character_from_a_server_is_a_mark(clients, talker):
    talker.says = lambda request: Response(
        json.dumps(completion(request, "a\ud800b")), media_type="application/json"
    )
    content = post(clients["ia"], ASK).json()["choices"][0]["message"]["content"]
    assert content == "a\ufffdb"


def test_an_empty_host_is_refused():
    with pytest.raises(ValueError, match="--host is empty"):
        proxy.listen("", 0)


def test_the_name_of_the_limit_is_the_clients(ask, talker):
    ask(max_completion_tokens=9, stop=["x"], presence_penalty=0.5)
    first, second = talker.requests
    assert first["max_completion_tokens"] == FIRST.max_new_tokens and "stop" not in first
    assert (second["max_completion_tokens"], second["stop"]) == (9, ["x"])
    assert "max_tokens" not in {**first, **second}


def test_models_are_the_one(clients):
    assert [model.id for model in clients["ia"].models.list()] == ["a-model"]


def test_eight_at_once(ask, talker):
    async def until_all_are_here(_number):
        for _ in range(500):
            if talker.peak == 8:
                return
            await asyncio.sleep(0.01)

    talker.pause = until_all_are_here
    talker.says = lambda asked: says(asked) + " " + re.search(r"river (\d)", str(asked))[1]

    def one(number):
        messages, stream = as_dialogue(f"Name river {number}."), number % 2 == 0
        answer = ask(messages=messages, stream=stream)
        return text_of(answer) if stream else answer.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [f"{ANSWER} {number}" for number in range(8)]
    assert talker.peak == 8


@pytest.mark.parametrize("text", ["One", "", None])
def test_the_servers_own_filter_is_passed_on(clients, talker, text):
    talker.says = lambda asked: JSONResponse(completion(asked, text, "content_filter"))
    (choice,) = clients["self-reminder"].chat.completions.create(**ASK).choices
    assert (choice.message.content, choice.finish_reason) == (text or "", "content_filter")
    ended = [event("One"), event("", "content_filter"), "data: [DONE]\n\n"]
    talker.says = lambda asked: StreamingResponse(iter(ended), media_type="text/event-stream")
    chunks = list(clients["self-reminder"].chat.completions.create(**ASK, stream=True))
    assert text_of(chunks) == "One"
    assert chunks[-1].choices[0].finish_reason == "content_filter"


# What fails.


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_there(stream):
    nobody = RemoteModel(f"http://127.0.0.1:{free_port()}/v1", "a-model")
    with (
        in_background(proxy.application(nobody, DEFENSES["ia"])) as url,
        pytest.raises(openai.APIStatusError, match="cannot be reached, .* start it") as caught,
    ):
        client(url).chat.completions.create(**ASK, stream=stream)
    assert caught.value.status_code == 502 and caught.value.body["type"] == "server_error"


@pytest.mark.parametrize(
    ("name", "stream", "number"),
    [("ia", False, 0), ("ia", True, 0), ("self-reminder", True, 0), ("self-reminder", True, 2)],
)
def test_silence(talker, name, stream, number):
    talker.pause = lambda n: asyncio.sleep(20 if n == number else 0)
    slow = RemoteModel(talker.url, "a-model", timeout=0.4)
    with in_background(proxy.application(slow, DEFENSES[name])) as url:
        heard = []
        with pytest.raises(openai.APIError, match=r"silent for 0.4 seconds; .*--timeout") as caught:
            heard += client(url).chat.completions.create(**ASK, stream=stream)
        assert getattr(caught.value, "status_code", None) == (None if number else 504)
        assert talker.gone.wait(5)


def test_an_answer_that_breaks_off_is_an_error(ask, talker):
    async def hang_up(number):
        if number == 2:
            raise RuntimeError("broken")

    talker.pause = hang_up
    heard = []
    with pytest.raises(openai.APIError, match="hung up"):
        for chunk in ask(stream=True):
            heard.append(chunk)
    assert text_of(heard) == "".join(words(ANSWER)[:2])


@pytest.mark.parametrize("end", ["", "data: [DONE]\n\n"])
def test_an_answer_without_an_end_is_an_error(ask, talker, end):
    cut = StreamingResponse(iter([event("One"), end]), media_type="text/event-stream")
    talker.says = lambda asked: cut if asked.get("stream") else INTENTION
    with pytest.raises(openai.APIError, match="hung up"):
        list(ask(stream=True))


def failing(status, words, **headers):
    error = {"message": words, "param": "messages", "code": "too_much"}
    return lambda asked: JSONResponse({"error": error}, status, headers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (failing(400, "context\n length"), 400, r"refuses the request \(it says: context length\)"),
        (failing(401, "no"), 401, "wants a key, or another; set the client's api_key"),
        (failing(403, "no"), 403, "wants a key, or another"),
        (failing(404, "no such model"), 404, "no such model"),
        (failing(422, "no"), 422, "refuses the request"),
        (failing(429, "slow down", **{"retry-after": "7"}), 429, "slow down"),
        (failing(500, "broken"), 502, r"failed \(it says: broken\); its log"),
        (failing(503, "busy"), 502, "failed"),
        (lambda asked: Response("<html>", 500), 502, "failed .it says: <html>"),
        (
            lambda asked: Response("<html>", media_type="text/html"),
            502,
            "gave no chat completion|hung",
        ),
        (lambda asked: JSONResponse({}), 502, "gave no chat completion|hung"),
        (lambda asked: JSONResponse([]), 502, "gave no chat completion|hung"),
        (lambda asked: JSONResponse({"choices": []}), 502, "gave no chat completion|hung"),
        (
            lambda asked: JSONResponse(completion(asked, None, "tool_calls")),
            502,
            "gave no chat|hung",
        ),
    ],
)
def test_what_the_server_refuses_is_passed_on(clients, talker, stream, answer, status, says):
    talker.says = answer
    for name in ("ia", "self-reminder"):
        with pytest.raises(openai.APIStatusError, match=says) as caught:
            clients[name].chat.completions.create(**ASK, stream=stream)
        assert caught.value.status_code == status and "http://127" in str(caught.value)
        assert caught.value.body.keys() == {"message", "type", "param", "code"}
        assert len(talker.requests) == 1  # to try again is the client's business
        talker.requests.clear()
        if status in (400, 404, 422, 429):
            assert (caught.value.param, caught.value.code) == ("messages", "too_much")
        assert caught.value.response.headers.get("retry-after") == ("7" if status == 429 else None)


def test_an_error_amid_a_stream_is_passed_on(ask, talker):
    parts = [event("One"), 'data: {"error": {"message": "out of memory"}}\n\n']
    broken = StreamingResponse(iter(parts), media_type="text/event-stream")
    talker.says = lambda asked: broken if asked.get("stream") else INTENTION
    with pytest.raises(openai.APIError, match="failed .it says: out of memory"):
        list(ask(stream=True))


def test_what_is_not_counted_is_none(ask, talker):
    answer = completion({"messages": []}, "Yes.")
    talker.says = lambda asked: JSONResponse({**answer, "usage": None})
    assert ask().usage.total_tokens == 0


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
DEEP = b'{"messages": ' + b"[" * 100_000


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        (b"{", None, "not JSON"),
        (b"\xff\xfe\x00", None, "not JSON"),
        (DEEP, None, "not JSON"),
        ([ASK], None, "a JSON object"),
        ({"model": "any"}, "messages", "a list of at least one message"),
        ({"messages": []}, "messages", "a list of at least one message"),
        ({"messages": "Hi."}, "messages", "a list of at least one message"),
        ({"messages": ["Hi."]}, "messages[0].role", "must be one of system, developer, user"),
        ({"messages": [{"role": [], "content": "Hi."}]}, "messages[0].role", "must be one of"),
        ({"messages": [{"role": "tool", "content": "Hi."}]}, "messages[0].role", "must be one of"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be text"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content", "be text"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content", "must be text"),
        ({"messages": as_dialogue("\ud800")}, "messages[0].content", "must be text"),
        (
            {"messages": as_dialogue("Hi.", "Hi.")},
            "messages[1].role",
            "last message must be the us",
        ),
        ({"messages": [{"role": "system", "content": "Hi."}]}, "messages[0].role", "last message"),
        ({**ASK, "n": 2}, "n", "n is not supported"),
        ({**ASK, "tools": [{}]}, "tools", "tools is not supported"),
        ({**ASK, "functions": [{}]}, "functions", "functions is not supported"),
        ({**ASK, "logprobs": True}, "logprobs", "logprobs is not supported"),
        ({**ASK, "response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({**ASK, "stream": "yes"}, "stream", "true or false"),
        ({**ASK, "stream_options": [1]}, "stream_options", "an object"),
        ({**ASK, "max_tokens": 0}, "max_tokens", "a whole number of at least 1"),
        ({**ASK, "max_tokens": 1.5}, "max_tokens", "a whole number of at least 1"),
        ({**ASK, "max_tokens": True}, "max_tokens", "a whole number of at least 1"),
        ({**ASK, "max_completion_tokens": "9"}, "max_completion_tokens", "a whole number"),
        ({**ASK, "temperature": -1}, "temperature", "at least 0"),
        ({**ASK, "temperature": float("nan")}, "temperature", "at least 0"),
        ({**ASK, "temperature": float("inf")}, "temperature", "at least 0"),
        ({**ASK, "top_p": 1.1}, "top_p", "above 0 and at most 1"),
        ({**ASK, "seed": 2**64}, "seed", "a whole number of 63 bits"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(clients, talker, body, field, says):
    status, _, text = raw(str(clients["ia"].base_url).rstrip("/"), body)
    error = json.loads(text)["error"]
    assert (status, error["param"], error["type"]) == (400, field, "invalid_request_error")
    assert says in error["message"] and error["message"].endswith(".")
    assert not talker.requests


def test_what_a_web_page_may_send_unasked_is_refused(clients, talker):
    url = str(clients["ia"].base_url).rstrip("/")
    status, _, text = raw(url, ASK, **{"Content-Type": "text/plain"})
    assert status == 415 and "application/json" in text and not talker.requests


def test_other_addresses(clients):
    with pytest.raises(openai.NotFoundError, match="here are POST /v1/chat/completions and GET"):
        clients["ia"].responses.create(model="any", input="Hi.")
    with pytest.raises(openai.APIStatusError, match="Method Not Allowed"):
        clients["ia"].get("/chat/completions", cast_to=object)


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_proxy_says_where_and_not_what(talker, caplog, stream):
    def faulty(backend, dialogues, decoding, prefill=""):
        if served:
            raise KeyError(dialogues[0][-1]["content"])
        return []

    served = []
    app = proxy.application(RemoteModel(talker.url, "a-model"), faulty)
    served.append(True)
    with (
        in_background(app) as url,
        pytest.raises(openai.InternalServerError, match=r"failed \(KeyError\)"),
    ):
        client(url).chat.completions.create(**ASK, stream=stream)
    assert "in faulty" in caplog.text and "river" not in caplog.text


# Who leaves, and what nobody else gets to know.


def test_who_leaves_amid_a_stream_ends_it_for_the_server_too(ask, talker):
    talker.pause = lambda number: asyncio.sleep(20 if number == 2 else 0)
    chunks = ask(stream=True)
    next(chunks), next(chunks)
    assert not talker.gone.is_set()
    chunks.close()
    assert talker.gone.wait(5)
    talker.reset()
    assert ask().choices[0].message.content == ANSWER  # and all goes on


def test_who_leaves_during_the_first_stage_is_not_waited_for(clients, talker, caplog):
    talker.pause = lambda number: asyncio.sleep(20)
    for stream in (False, True):
        talker.gone.clear()
        with pytest.raises(openai.APITimeoutError):
            clients["ia"].with_options(timeout=0.5).chat.completions.create(**ASK, stream=stream)
        assert talker.gone.wait(5)
    assert len(talker.requests) == 2 and not caplog.records


@pytest.mark.parametrize("own", [None, KEY])
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_keys_are_passed_on_and_never_shown(talker, caplog, capfd, own, status):
    caplog.set_level(logging.DEBUG)
    asked = KEY.replace("this", "the-clients") if own else KEY
    if status != 200:
        talker.says = failing(status, f"what a key: {KEY}, or {asked}")
    shown = ""
    with in_background(
        proxy.application(RemoteModel(talker.url, "a-model", own), DEFENSES["ia"])
    ) as url:
        for stream in (False, True):
            shown += raw(url, {**ASK, "stream": stream}, Authorization=f"Bearer {asked}")[2]
    assert set(talker.keys) == {f"Bearer {KEY}"}
    shown += caplog.text + "".join(capfd.readouterr())
    assert "is-secret" not in shown and len(shown) > 100


def test_without_a_key_there_is_none_to_pass_on(clients, talker, caplog, capfd):
    caplog.set_level(logging.INFO)
    url = str(clients["ia"].base_url).rstrip("/")
    assert raw(url, ASK)[0] == 200 and "river" not in caplog.text + "".join(capfd.readouterr())
    assert set(talker.keys) == {"Bearer none"}


# On this machine.


def test_a_reply_is_begun_on_the_proxys_machine_alone(talker):
    model = RemoteModel(talker.url, "a-model")
    with pytest.raises(ValueError, match="a model on the proxy's machine"):
        proxy.application(model, DEFENSES["ia-begun"])
    backend = model.backend(Asked(ASK["messages"], Decoding(9), {}), None, lambda *_: None)
    with pytest.raises(ServingError, match="a model on the proxy's machine") as caught:
        backend.reply([ASK["messages"]], Decoding(9), "Sure")
    assert caught.value.code == "prefill_not_supported" and not talker.requests


def test_what_is_told_behind_a_beginning_is_what_is_said(tokenizer):
    like_llama = copy.deepcopy(tokenizer)
    like_llama.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]
    )
    model = saying(tiny_model(tokenizer), tokenizer, " One of them is the Elbe.")
    here = LocalModel("tiny", model, like_llama, choose_precision("cpu", exact=True))

    @as_said
    def begun(backend, dialogues, decoding, prefill=""):
        replies = backend.reply(dialogues, decoding, BEGINNING)
        return [[replace(reply, text=reply.text.removeprefix(BEGINNING))] for reply in replies]

    with in_background(proxy.application(here, begun)) as url:
        whole = client(url).chat.completions.create(**ASK).choices[0].message.content
        pieces = [*client(url).chat.completions.create(**ASK, stream=True)]
    assert text_of(pieces) == whole == " One of them is the Elbe." and len(pieces) > 5


@pytest.fixture(scope="module")
def tiny(tokenizer):
    model = tiny_model(tokenizer, hidden_size=64)
    model.config.max_position_embeddings = 1000
    return model, tokenizer, choose_precision("cpu", exact=True)


LOCAL = {
    **DEFENSES,
    "ia": partial(two_stage, first=Decoding(8)),
    # The tiny model takes 1,000 tokens.
    "ia-examples": partial(by_examples, harmless=1),
    "ia-examples-refused": partial(by_examples, harmless=0, harmful=1),
}
LONG = {"ia-long": partial(two_stage, first=Decoding(300))}
WARM = {"temperature": 0.9, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def here(tiny, one_thread):
    """Clients of a tiny model behind each defense."""
    apps, served = Starlette(), {**LOCAL, **LONG}
    for name, defense in served.items():
        apps.mount(f"/{name}", proxy.application(LocalModel("tiny", *tiny), defense))
    with in_background(apps) as url:
        yield {name: client(url.replace("/v1", f"/{name}/v1")) for name in served}


@pytest.mark.parametrize(
    ("name", "warm"), [*((name, {}) for name in LOCAL), ("ia", WARM), ("input-check", WARM)]
)
def test_a_local_model_says_the_same_whole_in_pieces_and_without_the_proxy(here, tiny, name, warm):
    backend, asked = LocalBackend(*tiny[:2]), {**ASK, "max_tokens": 24, **warm}
    (said,) = Defended(backend, LOCAL[name]).reply([ASK["messages"]], Decoding(24, **warm))
    whole = here[name].chat.completions.create(**asked)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *pieces, last = here[name].chat.completions.create(**asked, **options)
    assert text_of(pieces) == whole.choices[0].message.content == said.text
    assert len(pieces) > 10
    counts = last.usage.prompt_tokens, last.usage.completion_tokens
    assert whole.usage == last.usage and counts == (said.prompt_tokens, said.new_tokens)
    assert pieces[-1].choices[0].finish_reason == ("stop" if said.finished else "length")


def test_a_character_of_several_tokens_is_told_whole(tokenizer):
    text, told = "née 🧭 Paraná", []
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "\ufffd" in [tokenizer.decode([token]) for token in ids]

    async def tell(piece):
        told.append(piece)

    def say():
        pieces = _Pieces(tokenizer, tell, [])
        for some in ([1, 2, 3], *([token] for token in ids), [tokenizer.eos_token_id]):
            pieces.put(torch.tensor(some))

    anyio.run(anyio.to_thread.run_sync, say)
    assert "".join(told) == text and len(told) > 3


def test_an_end_tag_is_not_told(here, tiny, monkeypatch):
    model, tokenizer, _ = tiny
    defended = Defended(LocalBackend(model, tokenizer), LOCAL["self-reminder"])
    (long,) = defended.reply([ASK["messages"]], Decoding(12))
    ends = tokenizer(long.text, add_special_tokens=False)["input_ids"][4:8]  # no special tokens
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    (said,) = defended.reply([ASK["messages"]], Decoding(12))
    assert said.finished and long.text.startswith(said.text) and said.text
    chunks = here["self-reminder"].chat.completions.create(**ASK, max_tokens=12, stream=True)
    assert text_of(chunks) == said.text


def test_a_local_model_runs_in_its_precision(tiny):
    model, tokenizer, _ = tiny
    mixed, seen = Precision("cpu", torch.float32, torch.bfloat16, "tests"), set()
    hook = model.register_forward_pre_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
    try:
        for name in ("ia", "self-reminder"):
            app = proxy.application(LocalModel("tiny", model, tokenizer, mixed), LOCAL[name])
            with in_background(app) as url:
                client(url).chat.completions.create(**ASK, max_tokens=2)
    finally:
        hook.remove()
    assert seen == {True}


@contextmanager
def generating(model):
    """How often the model is run, and by how many at once."""
    seen = {"runs": 0, "active": 0, "peak": 0}
    generate = model.generate

    def counted(*args, **options):
        seen["active"] += 1
        seen["peak"] = max(seen["peak"], seen["active"])
        try:
            return generate(*args, **options)
        finally:
            seen["active"] -= 1

    def run(*_):
        seen["runs"] += 1
        time.sleep(0.005)

    hook = model.register_forward_pre_hook(run)
    model.generate = counted
    try:
        yield seen
    finally:
        hook.remove()
        del model.generate


def test_a_local_model_answers_one_at_a_time_and_all(here, tiny):
    def one(number):
        answer = here["ia"].chat.completions.create(
            model="any",
            messages=as_dialogue(f"Name river {number}."),
            max_tokens=4,
            stream=number % 2 == 0,
        )
        return text_of(answer) if number % 2 == 0 else answer.choices[0].message.content

    with generating(tiny[0]) as seen, ThreadPoolExecutor(8) as pool:
        together = pool.map(one, range(8))
        while not seen["active"]:
            time.sleep(0.001)
        assert here["ia"].models.list().data[0].id == "tiny" and seen["runs"] < 8 * 12
        together = list(together)
    assert seen["peak"] == 1 and len(set(together)) > 3
    alone = Defended(LocalBackend(*tiny[:2], batch_tokens=1), LOCAL["ia"])
    dialogues = [as_dialogue(f"Name river {number}.") for number in range(8)]
    assert together == [reply.text for reply in alone.reply(dialogues, Decoding(4))]


@pytest.mark.parametrize("name", ["ia-long", "self-reminder"])
def test_who_leaves_frees_the_local_model(here, tiny, name):
    with generating(tiny[0]) as seen:
        if name == "ia-long":
            with pytest.raises(openai.APITimeoutError):
                impatient = here[name].with_options(timeout=0.6)
                impatient.chat.completions.create(**ASK, max_tokens=1)
        else:
            chunks = here[name].chat.completions.create(**ASK, max_tokens=300, stream=True)
            next(chunks), next(chunks)
            chunks.close()
        end = time.monotonic() + 5
        while seen["active"] and time.monotonic() < end:
            time.sleep(0.01)
        assert not seen["active"] and 0 < seen["runs"] < 300
    assert here[name if name == "self-reminder" else "ia"].chat.completions.create(
        **ASK, max_tokens=2
    )


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_local_model_cannot_do_is_refused(here, tiny, name, stream):
    long, code = {"messages": as_dialogue("river " * 1000)}, "context_length_exceeded"
    cases = [(long, "messages", code), ({"stop": "x"}, "stop", None)]
    if name != "input-check":  # which reads on before it knows whether to answer
        cases.append(({"max_tokens": 950}, "messages", code))
    with generating(tiny[0]) as seen:
        for asked, field, code in cases:
            with pytest.raises(openai.BadRequestError, match="shorten|not supported") as caught:
                here[name].chat.completions.create(**{**ASK, **asked}, stream=stream)
            assert (caught.value.param, caught.value.code) == (field, code)
        assert seen["runs"] == 0


@pytest.mark.parametrize("name", LOCAL)
def test_a_local_model_takes_what_changes_nothing(here, name):
    neutral = {"top_k": -1, "repetition_penalty": 1.0, "reasoning_effort": "none"}
    ask = here[name].chat.completions.create
    assert ask(**ASK, max_tokens=2, extra_body=neutral).choices
    with pytest.raises(openai.BadRequestError, match="top_k is not supported"):
        ask(**ASK, max_tokens=2, extra_body={**neutral, "top_k": 5})


def test_the_beginning_of_an_answer_takes_room_too(here, tiny, monkeypatch):
    model, tokenizer, _ = tiny
    asked = second_stage(ASK["messages"], ".")
    read, begun = (
        len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (render(tokenizer, asked), BEGINNING)
    )
    left = model.config.max_position_embeddings - FIRST.max_new_tokens - read - begun
    said = [Reply(".", 0, 0, True), Reply(f"{BEGINNING}Po", 0, 0, True)]
    monkeypatch.setattr(LocalBackend, "reply_twice", lambda *_: [said])
    ask = here["ia-begun"].chat.completions.create
    assert ask(**ASK, max_tokens=left).choices[0].message.content == "Po"
    with pytest.raises(openai.BadRequestError, match=f"have {read + begun} tokens"):
        ask(**ASK, max_tokens=left + 1)


def test_what_the_chat_template_refuses_is_the_clients_fault(here, tiny, monkeypatch):
    monkeypatch.setattr(tiny[1], "chat_template", "{{ raise_exception('no system here') }}")
    with pytest.raises(openai.BadRequestError, match="no system here"):
        here["ia"].chat.completions.create(**ASK)


# The command.


@pytest.fixture
def command(monkeypatch, tiny):
    """Run ``serve`` with these arguments; ``during(url)`` is called while it serves."""

    def run(*arguments, during=lambda url: None):
        def serve(app, listening):
            assert listening.getsockname()[0] == "127.0.0.1"
            with in_background(app) as url:
                during(url)
            raise KeyboardInterrupt

        monkeypatch.setattr(proxy, "serve", serve)
        return __main__.main(["serve", *arguments])

    monkeypatch.setattr("xb_lite.models.loading.load_model", lambda name, precision: tiny[:2])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return run


def test_the_command_serves_a_server(command, talker, capsys, monkeypatch):
    def during(url):
        assert client(url, KEY).chat.completions.create(**ASK).choices[0].message.content == ANSWER

    server = ["--server", talker.url, "--port", "0"]
    assert command(*server, "--model", "a-model", during=during) == 0
    assert re.fullmatch(
        r"a-model behind ia is at http://127.0.0.1:\d+/v1 \(Ctrl-C ends it\)\n",
        capsys.readouterr().out,
    )
    assert talker.keys == [f"Bearer {KEY}"] * 2
    monkeypatch.setenv("OPENAI_API_KEY", "own")
    assert command(*server, "a-model", "--defense", "self-reminder", during=during) == 0
    assert talker.keys[2:] == ["Bearer own"]


def test_the_command_serves_a_local_model(command, capsys):
    def during(url):
        assert client(url).chat.completions.create(**ASK, max_tokens=2).model == "smollm2-135m"

    assert command("--port", "0", during=during) == 0
    assert "smollm2-135m behind ia is at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--defense", "nonsense"], "there is no defense 'nonsense'"),
        (
            ["--defense", "ia-begun", "--server", "http://127.0.0.1:1/v1", "--model", "a"],
            "this defense begins the answer itself",
        ),
        (["--adapter", "nowhere"], "there is no adapter in nowhere"),
        (["--adapter", "mine", "--server", "http://127.0.0.1:1/v1"], "behind a server"),
        (["--server", "http://127.0.0.1:1/v1"], "name one of them"),
        (["--server", "nonsense", "--model", "a"], "base_url must look like"),
        (["--server", "http://a/v1", "--model", "a", "--timeout", "0"], "timeout above 0"),
        (["one", "--model", "another"], "one and another: name one model"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1 port 0; pass another"),
        (["--port", "70000"], "port 70000; pass another"),
    ],
)
def test_a_bad_command_says_so_in_one_sentence(command, arguments, says, capsys):
    assert command("--port", "0", *arguments) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_port_in_use(command, capsys, monkeypatch):
    monkeypatch.setattr("xb_lite.models.loading.load_model", lambda *_: 1 / 0)  # not even looked at
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert command("--port", str(taken.getsockname()[1])) == 1
    assert "of 127.0.0.1 is in use; pass another --host or --port." in capsys.readouterr().err


def test_a_missing_extra(command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "xb_lite.serve.proxy", None)
    assert command() == 1
    assert "pip install 'xb-lite[serve]' brings it." in capsys.readouterr().err


def test_ctrl_c_ends_it_though_somebody_is_being_answered(talker):
    talker.pause = lambda number: asyncio.sleep(20)
    app = proxy.application(RemoteModel(talker.url, "a-model"), DEFENSES["ia"])

    def press(url):
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(raw, url, ASK)
            while not talker.active:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            status, _, text = answer.result()
            assert status == 503 and "the proxy was stopped" in text

    with proxy.listen("127.0.0.1", 0) as listening:
        pressing = ThreadPoolExecutor(1)
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            pressed = pressing.submit(press, url_of(listening))
            proxy.serve(app, listening)
    pressed.result()
    assert time.monotonic() - begin < 10 and talker.gone.wait(5)
