"""The proxy under load and under attack: answers, seconds, memory.

    python benchmarks/proxy_load.py [--clients 64] [--requests 300]

The proxy runs in a process of its own, once before a tiny local model and once before a server, and
is asked by so many clients at once; then each hostile request is sent alone. Memory is that of the
proxy's process (VmRSS). A hostile request is right if it is refused in the API's form, in under a
second, and ordinary requests are answered after it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny import tiny_model

from xb_lite.intention.defenses import DEFENSES
from xb_lite.models.loading import load_model
from xb_lite.models.precision import Precision
from xb_lite.serve.local import LocalModel
from xb_lite.serve.proxy import application, listen, serve
from xb_lite.serve.upstreams import RemoteModel

EXACT = Precision("cpu", torch.float32, None, "load")
JSON = {"content-type": "application/json"}
MB = 1 << 20
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 4}


class Odd(BaseHTTPRequestHandler):
    """A server that answers in the way that the last message names."""

    protocol_version = "HTTP/1.1"
    WHOLE = {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Yes."},
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }

    def do_POST(self):  # noqa: N802
        said = json.loads(self.rfile.read(int(self.headers["content-length"])))
        words = " ".join(message["content"] for message in said["messages"])
        how = next((f"upstream {how}" for how in UPSTREAM if f"upstream {how}" in words), "")
        answer = {
            "upstream usage": {**self.WHOLE, "usage": {"prompt_tokens": "many"}},
            "upstream huge usage": {**self.WHOLE, "usage": {"prompt_tokens": 10**30}},
            "upstream no choices": {**self.WHOLE, "choices": []},
            "upstream null": {**self.WHOLE, "choices": [{"message": None}]},
            "upstream list": [],
        }.get(how, self.WHOLE)
        body = json.dumps(answer)
        if how == "upstream nan":
            body = body.replace('"prompt_tokens": 5', '"prompt_tokens": NaN')
        if how == "upstream html":
            body = "<html>Welcome</html>"
        self.send_response(500 if how == "upstream 500" else 200)
        self.send_header("content-type", "text/html" if "html" in how else "application/json")
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


class Proxy:
    """The proxy in a process of its own."""

    def __init__(self, upstream: Callable[[], object]) -> None:
        listening = listen("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        self.process = os.fork()
        if not self.process:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
                serve(application(upstream(), DEFENSES["ia-one-pass"]), listening)
            os._exit(0)
        listening.close()
        self.ask(ASKED)

    def memory(self) -> float:
        """In MB."""
        for line in Path(f"/proc/{self.process}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def ask(self, said: object, headers: dict[str, str] | None = None) -> tuple[int, dict]:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        return self.send("POST", "/v1/chat/completions", body, {**JSON, **(headers or {})})

    def send(self, method: str, path: str, body, headers: dict[str, str]) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data else {}
        except BrokenPipeError:  # it was refused before all of it was sent
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def end(self) -> None:
        os.kill(self.process, signal.SIGTERM)
        os.waitpid(self.process, 0)


def load(proxy: Proxy, clients: int, requests: int) -> None:
    before, taken, codes = proxy.memory(), [], Counter()
    lock = threading.Lock()

    def one(_: int) -> None:
        began = time.monotonic()
        code, _ = proxy.ask(ASKED)
        with lock:
            taken.append(time.monotonic() - began)
            codes[code] += 1

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(requests)))
    whole = time.monotonic() - began
    print(
        f"  {clients} clients, {requests} requests: {dict(codes)}, {requests / whole:.0f} a second,"
        f" median {statistics.median(taken):.2f} s, longest {max(taken):.2f} s; "
        f"memory {before:.0f} to {proxy.memory():.0f} MB",
        flush=True,
    )


def message(text: object) -> dict:
    return {**ASKED, "messages": [{"role": "user", "content": text}]}


def raw(proxy: Proxy, data: bytes) -> tuple[int, dict]:
    """Bytes on a socket; 0 where there is no HTTP answer."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as line:
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := line.recv(1 << 16):
            answer += piece
    head = answer.split(b"\r\n", 1)[0].split()
    return int(head[1]) if len(head) > 1 and head[1].isdigit() else 0, {"error": {}}


def chunks():
    """10 MB without saying so beforehand."""
    for _ in range(10):
        yield b"x" * MB


TWO_LENGTHS = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 5\r\nContent-Length: 50\r\n\r\n{}   "
)
HOSTILE: dict[str, Callable[[Proxy], tuple[int, dict]]] = {
    "10 MB in one prompt": lambda p: p.ask(message("word " * (2 * MB))),
    "10 MB without a length": lambda p: p.send("POST", "/v1/chat/completions", chunks(), JSON),
    "1.9 MB in one prompt": lambda p: p.ask(message("word " * (380 * 1024))),
    "another host name": lambda p: p.ask(ASKED, {"host": "evil.example"}),
    "another content type": lambda p: p.ask(ASKED, {"content-type": "text/plain"}),
    "100,000 brackets": lambda p: p.ask(b"[" * 100_000),
    "half a character": lambda p: p.ask(message("\ud800")),
    "no text": lambda p: p.ask(message({"a": 1})),
    "10^400 tokens": lambda p: p.ask(json.dumps({**ASKED, "max_tokens": 10**400}).encode()),
    "temperature NaN": lambda p: p.ask({**ASKED, "temperature": float("nan")}),
    "tools": lambda p: p.ask({**ASKED, "tools": [{"type": "function"}]}),
    "an unknown field": lambda p: p.ask({**ASKED, "guided_json": {"a": 1}}),
    "another path": lambda p: p.send("GET", "/v1/../etc/passwd", None, {}),
    "two lengths": lambda p: raw(p, TWO_LENGTHS),
    "TLS": lambda p: raw(p, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)),
    "HTTP/2": lambda p: raw(p, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30)),
}
UPSTREAM = ("usage", "huge usage", "no choices", "null", "list", "nan", "html", "500")


def attack(proxy: Proxy, cases: dict[str, Callable]) -> int:
    """Prints each, and returns how many are not refused as they should be."""
    wrong = 0
    for name, send in cases.items():
        before, began = proxy.memory(), time.monotonic()
        code, said = send(proxy)
        seconds = time.monotonic() - began
        alive = proxy.ask(ASKED)[0] == 200
        in_form = isinstance(said.get("error"), dict)
        wanted = code == 502 if name.startswith("upstream") else code == 0 or 400 <= code < 500
        right = wanted and in_form and alive and seconds < 1
        wrong += not right
        print(
            f"  {'right' if right else 'WRONG'}  {name:<24}{code}  {seconds:6.2f} s  "
            f"{proxy.memory() - before:+7.1f} MB",
            flush=True,
        )
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=300)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # others would not be there in a copy of the process
    _, tokenizer = load_model(precision=EXACT)
    model = tiny_model(tokenizer, hidden_size=16)
    ThreadingHTTPServer.request_queue_size = 1024  # else it hangs up on some of 64
    odd = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    odd.daemon_threads = True
    url = f"http://127.0.0.1:{odd.server_port}/v1"
    upstreams = {
        "a local model": lambda: LocalModel("tiny", model, tokenizer, EXACT),
        "a server": lambda: RemoteModel(url, "a-model"),
    }
    wrong = count = 0
    for name, upstream in upstreams.items():
        cases = dict(HOSTILE)
        if name == "a server":
            threading.Thread(target=odd.serve_forever, daemon=True).start()
            cases |= {
                f"upstream {how}": lambda p, how=how: p.ask(message(f"upstream {how}"))
                for how in UPSTREAM
            }
            cases.pop("1.9 MB in one prompt")  # of which the server judges
        print(f"before {name}", flush=True)
        proxy = Proxy(upstream)
        try:
            load(proxy, args.clients, args.requests)
            wrong += attack(proxy, cases)
            count += len(cases)
            load(proxy, args.clients, args.requests)
        finally:
            proxy.end()
    print(f"hostile requests: {count}, wrong: {wrong}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
