"""A model behind a server answers as one on this machine does, and says plainly when it cannot."""

import asyncio
import json
import logging
import os
import signal
import threading
import time
import traceback
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from serving import free_port, serving

from xb_lite.data.items import Item
from xb_lite.dialogues import as_dialogue
from xb_lite.intention.defenses import DEFENSES, Defended
from xb_lite.models.cached import DEFAULT, SPECS, cached_model
from xb_lite.replies.cache import ask
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.server import CONTINUE, PROBE, THOUGHT, RemoteBackend, RemoteError
from xb_lite.replies.subjects import remote_subject
from xb_lite.replies.types import Decoding, answer_of
from xb_lite.serve.proxy import application, in_background
from xb_lite.serve.upstreams import RemoteModel

SHORT = Decoding(max_new_tokens=8)
DIALOGUES = [as_dialogue(prompt) for prompt in ("Hi.", "Name a river.", "What is 12+30?")]
KEY = "sk-this-key-is-secret-0123456789"


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server whose ``answer(request)`` is a payload or (status, payload).

    It keeps the requests, and how many of them were under way at once.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.lock = threading.Lock()
        self.models = {"object": "list", "data": [{"id": "a-model", "object": "model"}]}
        self.requests, self.keys, self.active, self.peak = [], [], 0, 0
        self.answer = lambda request: completion(request, last_words(request))
        # What is asked once, to find out whether the model thinks; it is not among the requests.
        self.probed, self.probes = lambda request: completion(request, "The Nile."), []

    def handle_error(self, *_):
        """Who gave up waiting has hung up; that is no news."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):  # noqa: N802
        server, size = self.server, int(self.headers["Content-Length"])
        request = json.loads(self.rfile.read(size))
        if request["messages"] == PROBE[:1] and request["max_tokens"] == THOUGHT:
            server.probes.append(request)
            self.send(server.probed(request))
            return
        with server.lock:
            server.requests.append(request)
            server.keys.append(self.headers["Authorization"])
            server.active += 1
            server.peak = max(server.peak, server.active)
        answer = server.answer(request)
        with server.lock:
            server.active -= 1
        self.send(answer)

    def do_GET(self):  # noqa: N802
        self.send(self.server.models if self.path == "/v1/models" else (404, {}))

    def send(self, answer):
        status, payload = answer if isinstance(answer, tuple) else (200, answer)
        body = payload if isinstance(payload, str) else json.dumps(payload)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body.encode())))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def last_words(request):
    return f"You said: {request['messages'][-1]['content']}"


def completion(request, text, end="stop"):
    """What a server sends; it counts words, and two tokens for each of the template's tags."""
    tokens = sum(len(message["content"].split()) + 4 for message in request["messages"])
    tokens += -2 if request.get("continue_final_message") else 2
    choice = {"index": 0, "finish_reason": end, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": tokens, "completion_tokens": 5, "total_tokens": tokens + 5}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def backend(server, **settings):
    return RemoteBackend(server.url, "a-model", **{"retries": 0, "timeout": 20.0, **settings})


def test_order_is_kept_and_concurrency_bounded(server):
    def answer(request):
        number = int(request["messages"][-1]["content"])
        time.sleep(0.02 + 0.02 * (number % 3))
        return completion(request, str(number))

    server.answer = answer
    replies = backend(server, concurrency=3).reply([as_dialogue(str(n)) for n in range(20)], SHORT)
    assert [reply.text for reply in replies] == [str(n) for n in range(20)]
    assert server.peak == 3


def test_a_request_says_what_decoding_says(server):
    warm = Decoding(max_new_tokens=9, temperature=0.7, top_p=0.9, seed=3)
    (reply,) = backend(server).reply(DIALOGUES[:1], warm)
    (request,) = server.requests
    assert request["messages"] == DIALOGUES[0] and request["model"] == "a-model"
    assert (request["max_tokens"], request["temperature"], request["top_p"]) == (9, 0.7, 0.9)
    assert not CONTINUE.keys() & request.keys()
    assert (reply.text, reply.prompt_tokens, reply.new_tokens) == ("You said: Hi.", 7, 5)


def test_every_dialogue_has_a_seed_of_its_own_the_same_in_every_run(server):
    def seeds(seed):
        server.requests.clear()
        backend(server, concurrency=1).reply(DIALOGUES[:1] * 5, Decoding(seed=seed))
        return [request["seed"] for request in server.requests]

    assert seeds(0) == seeds(0) and len(set(seeds(0) + seeds(1))) == 10


def test_play_sends_what_was_said_before(server):
    scripts = [["One.", "Two.", "Three."], ["Four."], ["Five.", "Six."]]
    played = backend(server).play(scripts, SHORT)
    assert [[reply.text for reply in replies] for replies in played] == [
        [f"You said: {turn}" for turn in script] for script in scripts
    ]
    longest = max((request["messages"] for request in server.requests), key=len)
    assert [message["content"] for message in longest] == [
        "One.",
        "You said: One.",
        "Two.",
        "You said: Two.",
        "Three.",
    ]
    assert [message["role"] for message in longest] == ["user", "assistant"] * 2 + ["user"]


def test_scripts_play_side_by_side(server):
    server.answer = lambda request: time.sleep(0.05) or completion(request, "Yes.")
    backend(server, concurrency=4).play([["One.", "Two."]] * 8, SHORT)
    assert server.peak == 4


@pytest.mark.parametrize(
    ("text", "end", "finished"),
    [("Yes", "stop", True), ("Yes", "length", False), (None, "length", False)],
)
def test_finished_is_what_the_server_says(server, text, end, finished):
    server.answer = lambda request: completion(request, text, end)
    (reply,) = backend(server).reply(DIALOGUES[:1], SHORT)
    assert (reply.text, reply.finished) == (text or "", finished)


@pytest.mark.parametrize("repeats", [False, True])
def test_prefill_begins_the_reply_once(server, repeats):
    def answer(request):
        begun = request["messages"][-1]["content"] if repeats else ""
        return completion(request, begun + " it is.")

    server.answer = answer
    replies = backend(server).reply(DIALOGUES, SHORT, prefill="Sure, here")
    assert [reply.text for reply in replies] == ["Sure, here it is."] * 3
    for request in server.requests[2:]:
        assert request["messages"][-1] == {"role": "assistant", "content": "Sure, here"}
        assert CONTINUE.items() <= request.items()


def test_a_reply_that_says_the_prefill_again_keeps_both(server):
    server.answer = lambda request: completion(
        request, "No, no!" if request["messages"][-1]["content"] == "No" else "long"
    )
    (reply,) = backend(server).reply(DIALOGUES[:1], SHORT, prefill="No")
    assert reply.text == "NoNo, no!"


def ignores(request):
    return completion({"messages": request["messages"]}, "Sure, here you are.")


def refuses(request):
    if "continue_final_message" in request:
        return 422, {"detail": "Unexpected fields in the request"}
    return completion(request, "Yes.")


@pytest.mark.parametrize(("answer", "asked"), [(ignores, 2), (refuses, 1)])
def test_a_prefill_is_never_ignored(server, answer, asked):
    server.answer = answer
    with pytest.raises(RemoteError, match="continues no prefill.* or use LocalBackend"):
        backend(server).reply(DIALOGUES, SHORT, prefill="Sure, here")
    assert len(server.requests) == asked


@pytest.mark.parametrize("status", [429, 500])
def test_what_fails_once_is_tried_again(server, status):
    failed = []

    def answer(request):
        if request["messages"] in failed:
            return completion(request, last_words(request))
        failed.append(request["messages"])
        return status, {"error": {"message": "not now"}}

    server.answer = answer
    replies = backend(server, retries=1).reply(DIALOGUES, SHORT)
    assert [reply.text for reply in replies] == [f"You said: {d[0]['content']}" for d in DIALOGUES]
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (
            (401, {"error": "Unauthorized"}),
            r"a-model at http://.* wants a key, or another; set OPENAI_",
        ),
        ((403, {"error": "Forbidden"}), "is not open to this key; pass another"),
        (
            (404, {"error": {"message": "no such model"}}),
            r"\(it says: no such model\); correct mod",
        ),
        ((404, {"detail": "Not Found"}), r"is not there \(it says: Not Found\); correct model or"),
        ((400, {"error": {"message": "maximum context length"}}), r"maximum .*; if .* shorten the"),
        ((422, {"detail": "no"}), r"refuses the request \(it says: no\)"),
        (
            (429, {"error": {"message": "slow down"}}),
            r"overloaded .*slow down\); lower concurrency",
        ),
        ((503, "<html>\nbusy"), r"failed \(it says: <html> busy\); the server's log"),
        ("{", "no chat completion with text and usage; correct base_url"),
        ("<html>Welcome</html>", "no chat completion"),
        ("[]", "no chat completion"),
        ({}, "no chat completion"),
        ({"choices": [], "usage": {}}, "no chat completion"),
        ({"choices": [{"message": {"content": "Yes."}}]}, "no chat completion"),
        ({"choices": {"message": "Yes."}}, "no chat completion"),
    ],
)
def test_a_failure_is_one_sentence_with_the_index(server, answer, complaint):
    server.answer = lambda request: (
        answer if request["messages"] == DIALOGUES[1] else completion(request, "Yes.")
    )
    with pytest.raises(RemoteError, match=complaint) as caught:
        backend(server).reply(DIALOGUES, SHORT)
    assert str(caught.value).startswith("dialogue 1: ") and str(caught.value).endswith(".")
    assert "".join(traceback.format_exception(caught.value)).count("Traceback") == 1
    with pytest.raises(RemoteError, match="^script 1: "):
        backend(server).play([["Hi."], ["Name a river."]], SHORT)


def test_no_text_and_no_reason_for_it_is_a_failure(server):
    server.answer = lambda request: completion(request, None, "tool_calls")
    with pytest.raises(RemoteError, match="no chat completion"):
        backend(server).reply(DIALOGUES, SHORT)


def test_time_out(server):
    leave = threading.Event()
    server.answer = lambda request: leave.wait(20) and completion(request, "late")
    try:
        with pytest.raises(RemoteError, match="dialogue 0: .* no answer in time; raise timeout"):
            backend(server, timeout=0.2, retries=1).reply(DIALOGUES[:1], SHORT)
        assert len(server.requests) == 2
    finally:
        leave.set()


def test_no_server_there():
    nobody = RemoteBackend(f"http://127.0.0.1:{free_port()}/v1", "a-model", "none", retries=0)
    with pytest.raises(RemoteError, match="dialogue 0: .* cannot be reached; start the server"):
        nobody.reply(DIALOGUES[:1], SHORT)


def test_ctrl_c_does_not_wait(server):
    leave = threading.Event()
    server.answer = lambda request: leave.wait(20) and completion(request, "late")

    def press_once_all_wait():
        while server.active < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_once_all_wait, daemon=True).start()
    try:
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            backend(server, concurrency=2).reply(DIALOGUES, SHORT)
        assert time.monotonic() - begin < 10 and len(server.requests) == 2
    finally:
        leave.set()


def test_works_where_an_event_loop_runs_as_in_a_notebook(server):
    async def cell():
        return backend(server).reply(DIALOGUES[:1], SHORT)

    assert asyncio.run(cell())[0].text == "You said: Hi."


@pytest.mark.parametrize("status", [400, 401, 500])
def test_the_key_is_sent_and_never_shown(server, status, caplog):
    caplog.set_level(logging.DEBUG)
    server.answer = lambda request: (status, {"error": {"message": f"wrong: {KEY} is wrong"}})
    keyed = backend(server, api_key=KEY)
    with pytest.raises(RemoteError) as caught:
        keyed.reply(DIALOGUES, SHORT)
    assert server.keys[0] == f"Bearer {KEY}"
    shown = "".join(traceback.format_exception(caught.value)) + repr(keyed) + caplog.text
    assert "is-secret" not in shown


def test_the_key_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    backend(server).reply(DIALOGUES[:1], SHORT)
    assert server.keys == [f"Bearer {KEY}"]


def test_a_proxy_is_not_asked_for_a_server_here(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    assert len(backend(server).reply(DIALOGUES, SHORT)) == 3


def test_a_server_elsewhere_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(RemoteError, match="may need a key: set OPENAI_API_KEY"):
        RemoteBackend("https://models.example/v1", "a-model")
    RemoteBackend("https://models.example/v1", "a-model", "any")


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "127.0.0.1:8000/v1"},
        {"base_url": f"http://{KEY}@localhost/v1"},
        {"base_url": f"http://localhost/v1?key={KEY}"},
        {"api_key": KEY + "\n"},
        {"concurrency": 0},
        {"timeout": 0.0},
        {"retries": -1},
    ],
)
def test_impossible_settings_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name) as caught:
        RemoteBackend(**{"base_url": "http://localhost/v1", "model": "a-model", **wrong})
    assert "is-secret" not in str(caught.value)


@pytest.mark.parametrize("prefill", ["", "Sure"])
def test_malformed_input_is_named_before_any_request(server, prefill):
    with pytest.raises(ValueError, match="dialogue 1 ends with the assistant's turn"):
        backend(server).reply([DIALOGUES[0], as_dialogue("a", "b")], SHORT, prefill)
    with pytest.raises(ValueError, match="script 1 "):
        backend(server).play([["fine"], ["fine", "  "]], SHORT)
    assert server.requests == []


def test_nothing_in_nothing_out(server):
    assert backend(server).reply([], SHORT, "Sure") == [] == backend(server).play([], SHORT)
    assert server.requests == []


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """transformers serve with the default model, on the CPU and in the fp32 of its weights."""
    folder, port = cached_model(SPECS[DEFAULT]), free_port()
    command = ["transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--device", "cpu"]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    # One thread: on a busy machine, several wait for each other most of the time.
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with serving(command, port, "/health", log, **settings):
        yield RemoteBackend(f"http://127.0.0.1:{port}/v1", str(folder), "none")


def test_a_real_server_says_what_the_same_model_says_here(real, default_model):
    decoding = Decoding(max_new_tokens=13)
    said = real.reply(DIALOGUES[2:], decoding)
    assert said == LocalBackend(*default_model).reply(DIALOGUES[2:], decoding)
    assert said[0].finished


def test_a_real_server_plays_what_the_same_model_plays_here(real, default_model):
    scripts, decoding = [["Name a river.", "And a sea?"], ["Hi."]], Decoding(max_new_tokens=5)
    assert real.play(scripts, decoding) == LocalBackend(*default_model).play(scripts, decoding)


def test_a_real_server_without_prefill_says_so(real):
    with pytest.raises(RemoteError, match="continues no prefill"):
        real.reply(DIALOGUES, SHORT, prefill="Sure, here")


def test_the_proxy_before_a_real_server_says_what_the_defense_says_here(real, default_model):
    upstream = RemoteModel(real.base_url, real.model, "none")
    dialogue, most = as_dialogue("Name a river, please."), 8
    ia = partial(DEFENSES["ia"], first=Decoding(max_new_tokens=12))
    here = Defended(LocalBackend(*default_model), ia)
    (said,) = here.reply([dialogue], Decoding(max_new_tokens=most))
    with in_background(application(upstream, ia)) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
        ask = {"model": "any", "messages": dialogue, "max_tokens": most}
        whole = client.chat.completions.create(**ask)
        pieces = list(client.chat.completions.create(**ask, stream=True))
    assert whole.choices[0].message.content == said.text
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == said.text


def test_one_server_under_two_spellings_is_one(server):
    found = [remote_subject(f"{server.url}{end}", "m") for end in ("", "/", "//")]
    assert len({subject.digest for subject in found}) == 1


def test_half_a_character_is_a_mark(server):
    server.answer = lambda request: completion(request, "a\ud800b")
    (reply,) = RemoteBackend(server.url, "m").reply([as_dialogue("Hi")], Decoding())
    assert reply.text == "a\ufffdb"


def test_why_there_is_no_answer_is_kept(server):
    server.answer = lambda request: completion(request, None, "length")
    (reply,) = RemoteBackend(server.url, "m").reply([as_dialogue("Hi")], Decoding())
    assert (reply.text, reply.missing, reply.finished) == ("", "length", False)


def test_of_a_reply_that_thinks_the_answer_is_what_comes_after(server):
    assert answer_of("<think>\nIll?\n</think>\n\nI can't.") == "I can't."
    assert answer_of("Ill?</think>No.") == "No."  # the template has begun the thought
    assert answer_of(" <think>on and on") == "" and answer_of("No <think>.") == "No <think>."
    texts = iter(["<think>One.</think>Two.", "Three."])
    server.answer = lambda request: completion(request, next(texts))
    RemoteBackend(server.url, "m").play([["Hi", "And?"]], Decoding())
    assert server.requests[1]["messages"][1]["content"] == "Two."


# What is found out first: thinking, prefill, context.


def thinking(request, off=lambda request: False):
    """A model that thinks, unless the request has what its server switches that off by."""
    if off(request):
        return completion(request, "The Nile.")
    return completion(request, "<think>A river, then.</think>The Nile.")


@pytest.mark.parametrize(
    ("off", "fields"),
    [
        (
            lambda r: r.get("chat_template_kwargs", {}).get("enable_thinking") is False,
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
        ),
        (lambda r: r.get("reasoning_effort") == "minimal", {"reasoning_effort": "minimal"}),
    ],
    ids=["template", "effort"],
)
def test_thinking_is_switched_off_by_what_the_server_knows(server, off, fields, capsys):
    server.probed = lambda request: thinking(request, off)
    backend(server).reply(DIALOGUES, SHORT)
    assert all(fields.items() <= request.items() for request in server.requests)
    assert "thinks; that is switched off by" in capsys.readouterr().err


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "ignores"])
def test_who_thinks_all_the_same_is_judged_after_the_thought(server, refuses, capsys):
    def probed(request):
        extra = request.keys() & {"chat_template_kwargs", "reasoning_effort"}
        return (400, {"error": {"message": "unknown"}}) if extra and refuses else thinking(request)

    server.probed = probed
    backend(server).reply(DIALOGUES, SHORT)
    assert not any("reasoning_effort" in request for request in server.requests)
    assert "judged is what comes after the thought" in capsys.readouterr().err


def test_a_thought_that_the_prompt_opened_is_none_of_the_answer(server):
    """As R1's template does: what is cut short within it is no answer."""
    server.probed = lambda request: completion(request, "A river.</think>The Nile.")
    server.answer = lambda request: completion(request, "Let me think", end="length")
    (reply,) = backend(server).reply(DIALOGUES[:1], SHORT)
    assert reply.text == "<think>Let me think" and answer_of(reply.text) == ""


def test_who_does_not_think_is_sent_nothing_more(server, capsys):
    backend(server).reply(DIALOGUES, SHORT)
    assert len(server.probes) == 1 and capsys.readouterr().err == ""
    assert not any("chat_template_kwargs" in request for request in server.requests)


def test_a_context_that_is_too_short_is_found_out_first(server):
    server.models["data"][0]["max_model_len"] = 40
    with pytest.raises(RemoteError, match="longest dialogue has .* tokens, .*takes 40: leave out"):
        ask_items(server, [item("a", "Hi."), item("b", "words " * 30)])
    assert len(server.requests) == 1


def test_a_server_without_prefill_is_found_out_before_all_else(server):
    server.answer = lambda request: (
        (400, {"message": "no"})
        if request.get("continue_final_message")
        else completion(request, "Yes.")
    )
    items = [item("a", "Hi."), replace(item("b", "Ho."), attack="prefill", prefill="Sure, here")]
    with pytest.raises(RemoteError, match="continues no prefill"):
        ask_items(server, items)
    assert all(request["max_tokens"] == 1 for request in server.requests)


# Each reply is kept as it comes.


def item(name, request):
    return Item(name, "set", "harmful", "direct", request, (request,))


def ask_items(server, items, **settings):
    return ask(backend(server, **settings), items, SHORT, subject={"model": server.url})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    if "real" not in request.fixturenames:
        monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("defense", [None, "ia"])
def test_a_server_that_dies_loses_none_that_was_answered(server, defense):
    items = [item(f"i{n}", f"Request {n}.") for n in range(20)]
    stages = 2 if defense else 1
    answered, dying = [], True

    def answer(request):
        if request["max_tokens"] > 1 and len(answered) >= 7 * stages and dying:
            return 500, {"error": {"message": "out of memory"}}
        if request["max_tokens"] > 1:
            answered.append(request["messages"][0]["content"])
        return completion(request, "Yes.")

    def asking():
        remote = backend(server, concurrency=1)
        remote = Defended(remote, DEFENSES[defense]) if defense else remote
        return ask(remote, items, SHORT, subject={"model": server.url})

    server.answer = answer
    with pytest.raises(RemoteError, match="failed"):
        asking()
    assert len(answered) == 7 * stages
    dying = False
    assert len(asking()) == 20
    assert len(answered) == 20 * stages  # none of them twice


def test_replies_side_by_side_are_those_of_one_after_the_other(server):
    """Seeds are of the item: neither the order nor what is there already changes one."""
    items = [item(f"i{n}", f"Request {n}.") for n in range(12)]
    server.answer = lambda request: completion(request, f"Seed {request['seed']}.")
    few = ask(backend(server, concurrency=1), items[5:], SHORT, subject={"model": "a"})
    all_ = ask(backend(server, concurrency=5), items, SHORT, subject={"model": "b"})
    assert all_[5:] == few
    assert len({turns[0].text for turns in all_}) == 12


def test_nobody_else_can_read_the_replies(server, tmp_path):
    ask_items(server, [item("a", "Hi.")])
    assert (tmp_path / "cache" / "replies").stat().st_mode & 0o077 == 0


def test_an_address_is_in_no_result(server):
    subject = remote_subject(server.url, "a-model")
    port = str(server.server_port)
    assert port not in subject.digest and "127.0.0.1" not in subject.digest
    assert subject.digest != remote_subject("http://127.0.0.1:1/v1", "a-model").digest
