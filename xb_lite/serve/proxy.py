"""A prompt defense in front of a chat model, for any client of the OpenAI API: it changes its URL.

``POST /v1/chat/completions`` asks the model behind one of ``intention.DEFENSES``. A client gets the
text of the last stage alone, whole or as it is said; tokens are counted over all stages. A defense
that may change its answer is told when that is whole (``intention.stages.as_said``). Whatever
``model`` a client names, the one here answers, and says its name. With a guard (``xb_lite.guard``)
an answer is read before it is shown, and a refusal stands in its place where something is wrong.
What is asked and said is not logged, and keys are not. From the command line:
``python -m xb_lite serve``.
"""

from __future__ import annotations

import errno
import json
import logging
import secrets
import socket
import time
import traceback
from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import CancelledError as LeftError
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from threading import Thread
from urllib.parse import urlsplit

import uvicorn
from anyio import CancelScope, CapacityLimiter, create_task_group, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from xb_lite.guard.stream import Guard
from xb_lite.intention.defenses import Defended, Defense
from xb_lite.intention.stages import is_as_said
from xb_lite.models.cached import ModelError
from xb_lite.replies.types import Reply
from xb_lite.serve.requests import Asked, ServingError, read_request
from xb_lite.serve.upstreams import FILTERED, RemoteModel, Upstream, check_not_begun

log = logging.getLogger(__name__)

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

MOST = 2_000_000  # bytes of a request; the longest contexts there are have about as many


def application(
    upstream: Upstream,
    defense: Defense,
    hosts: Collection[str] = ("localhost",),
    guard: Guard | None = None,
) -> Starlette:
    """The proxy as an ASGI application.

    ``hosts`` are the names under which it answers, besides addresses in numbers: a page of the web
    can give this machine's address a name of its own (DNS rebinding), and would be let in.

    A ``guard`` reads every answer, with the user's last message as its request. A stream that it
    ends goes on with the refusal, an answer that is sent whole becomes it, and the finish_reason is
    ``content_filter``; tokens of a stream that was ended are counted up to there, but for what a
    server read for it, which that says at the end of a stream alone.

    Raises:
        ValueError: the defense begins answers, and the model is behind a server.
    """
    if isinstance(upstream, RemoteModel):
        check_not_begun(defense)
    reading = CapacityLimiter(1)  # one at a time: a guard's model has the machine to itself

    def check_host(request: Request) -> None:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        try:
            ip_address(host)
        except ValueError:
            if host not in {name.lower() for name in hosts}:
                raise ServingError(
                    403, "this host name is not the proxy's: start it with --host of that name."
                ) from None

    async def chat(request: Request) -> ASGIApp:
        try:
            check_host(request)
            asked = read_request(await _body(request), request.headers)
            return _Exchange(upstream, defense, asked, guard, reading)
        except (ServingError, ValueError) as error:
            return _failure(error)
        except ClientDisconnect:
            return Response()

    async def models(request: Request) -> JSONResponse:
        try:
            check_host(request)
        except (ServingError, ValueError) as error:
            return _failure(error)
        one = {"id": upstream.name, "object": "model", "created": 0, "owned_by": "xb-lite"}
        return JSONResponse({"object": "list", "data": [one]})

    @asynccontextmanager
    async def closing(_app: Starlette) -> AsyncIterator[None]:
        yield
        await upstream.close()

    async def elsewhere(_request: Request, error: HTTPException) -> JSONResponse:
        here = "here are POST /v1/chat/completions and GET /v1/models"
        return _failure(ServingError(error.status_code, f"{error.detail}: {here}."))

    chat_route = Route("/v1/chat/completions", chat, methods=["POST"])
    return Starlette(
        routes=[chat_route, Route("/v1/models", models)],
        exception_handlers={HTTPException: elsewhere},
        lifespan=closing,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket to ``serve`` on; port 0 is any free one.

    Raises:
        ValueError: the port is in use, or the address is none of this machine's, or is empty.
    """
    if not host.strip():
        raise ValueError("--host is empty, which would be every address: name one (127.0.0.1).")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        what = f"cannot listen on {host} port {port}"
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            what = f"port {port} of {host} is in use"
        raise ValueError(f"{what}; pass another --host or --port.") from None


def url_of(listening: socket.socket) -> str:
    """The base_url for clients of what is served there."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Serve until Ctrl-C; requests under way then have three seconds."""
    _server(app).run(sockets=[listening])


@contextmanager
def in_background(app: ASGIApp) -> Iterator[str]:
    """Serve in a thread, on a free port of this machine, while the block runs; gives the URL."""
    server = _server(app)
    with listen("127.0.0.1", 0) as listening:
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield url_of(listening)
        finally:
            server.should_exit = True
            thread.join()


def _server(app: ASGIApp) -> uvicorn.Server:
    options = {"log_level": "warning", "access_log": False}
    return uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=3, **options))


async def _body(request: Request) -> bytes:
    """Raises a ServingError as soon as it is too long."""
    too_long = ServingError(413, f"the request has more than {MOST:,} bytes: shorten the messages.")
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and int(said) > MOST:
        raise too_long
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST:
            raise too_long
    return bytes(body)


class _Ended(Exception):  # noqa: N818 - a signal, not an error
    """Raised into what speaks, when the guard has ended its reply."""


class _Exchange:
    """One request and what is sent for it: an ASGI application that ends when the client leaves."""

    def __init__(
        self,
        upstream: Upstream,
        defense: Defense,
        asked: Asked,
        guard: Guard | None,
        reading: CapacityLimiter,
    ) -> None:
        self.read, self.said = 0, 0  # tokens
        tell = self._tell if asked.stream and is_as_said(defense) else None
        backend = upstream.backend(asked, tell, self._count)
        self.asked, self.room = asked, upstream.room
        self.defended = Defended(backend, defense)
        self.begun, self.told = False, 0
        self.guard, self.reading = guard, reading
        self.watch = guard.watch(asked.dialogue[-1]["content"]) if guard else None
        self.broken: Exception | None = None  # the guard, if it is
        self.head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk" if asked.stream else "chat.completion",
            "created": int(time.time()),
            "model": upstream.name,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.send = send
        try:
            async with create_task_group() as group:
                group.start_soon(self._watch, receive, group.cancel_scope)
                await self._answer(scope, receive)
                group.cancel_scope.cancel()
        except CancelledError:  # from the server, which is being stopped
            await self._fail(ServingError(503, "the proxy was stopped."), scope, receive)

    async def _watch(self, receive: Receive, answering: CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        answering.cancel()

    async def _answer(self, scope: Scope, receive: Receive) -> None:
        try:
            # In a thread: a defense waits, and must not keep others waiting.
            dialogues, decoding = [self.asked.dialogue], self.asked.decoding
            (reply,) = await to_thread.run_sync(
                self.defended.reply, dialogues, decoding, limiter=self.room
            )
        except LeftError:  # what the thread waited for was cancelled
            return
        except Exception as error:
            if not self.watch or not self.watch.reason:  # else it is _Ended, or its consequence
                await self._fail(self.broken or error, scope, receive)
                return
            reply = Reply("", self.read, self.said + self.watch.tokens, True)
        try:
            if self.asked.stream:
                await self._end(reply)
            else:
                whole = await self._whole(reply)
                await whole(scope, receive, self.send)
        except Exception as error:
            if error is not self.broken:
                raise
            await self._fail(error, scope, receive)

    async def _whole(self, reply: Reply) -> JSONResponse:
        text, why = reply.text, _why(reply)
        if self.guard:
            asked = self.asked.dialogue[-1]["content"]
            text, reason = await self._read(self.guard.over, asked, text)
            why = FILTERED if reason else why
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": why}
        return JSONResponse({**self.head, "choices": [choice], "usage": _usage(reply)})

    async def _read(self, read: Callable, *words: str) -> object:
        """What the guard does is done in a thread: others must not wait for it."""
        try:
            return await to_thread.run_sync(read, *words, limiter=self.reading)
        except Exception as error:
            self.broken = error  # what speaks would take it for its own
            raise

    def _count(self, read: int, said: int) -> None:
        self.read, self.said = self.read + read, self.said + said

    async def _tell(self, piece: str) -> None:
        self.told += len(piece)
        if not self.watch:
            await self._say(piece)
        elif piece and self.watch.add(piece):
            await self._say(await self._read(self.watch.check))
            if self.watch.reason:
                raise _Ended

    async def _say(self, piece: str) -> None:
        if not self.begun:
            self.begun = True
            headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
            await self.send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._chunk({"role": "assistant", "content": ""})
        if piece:
            await self._chunk({"content": piece})

    async def _end(self, reply: Reply) -> None:
        rest, why = reply.text[self.told :], _why(reply)
        if self.watch:
            self.watch.add(rest)
            rest = await self._read(self.watch.end)
            why = FILTERED if self.watch.reason else why
        await self._say(rest)
        await self._chunk({}, why)
        if self.asked.count:
            await self._event({**self.head, "choices": [], "usage": _usage(reply)})
        await self._event("[DONE]", last=True)

    async def _fail(self, error: Exception, scope: Scope, receive: Receive) -> None:
        failure = _failure(error)
        if self.begun:
            await self._event(json.loads(failure.body), last=True)
        else:
            await failure(scope, receive, self.send)

    async def _chunk(self, delta: dict[str, str], why: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": why}
        await self._event({**self.head, "choices": [choice]})

    async def _event(self, data: dict | str, last: bool = False) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        body = f"data: {text}\n\n".encode()
        await self.send({"type": "http.response.body", "body": body, "more_body": not last})


def _why(reply: Reply) -> str:
    return reply.missing or ("stop" if reply.finished else "length")


def _usage(reply: Reply) -> dict[str, int]:
    read, said = reply.prompt_tokens, reply.new_tokens
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def _failure(error: Exception) -> JSONResponse:
    """An error in the shape of the OpenAI API."""
    if isinstance(error, ValueError):  # the defense or the chat template refuses the dialogue
        error = ServingError(400, str(error), "messages")
    if not isinstance(error, ServingError):
        # Without its message, which may quote what was asked; not where a model cannot be had.
        why = f": {error}" if isinstance(error, ModelError) else ""
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s in the proxy%s\n%s", type(error).__name__, why, where)
        error = ServingError(500, f"the proxy failed ({type(error).__name__}); its log says where.")
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = KINDS.get(error.status, kind)
    said = {"message": str(error), "type": kind, "param": error.field, "code": error.code}
    wait = {"retry-after": error.wait} if error.wait else None
    return JSONResponse({"error": said}, error.status, wait)
