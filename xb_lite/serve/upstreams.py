"""What answers behind the proxy, telling its answer as it goes: here, a server.

A defense asks a backend once or more and waits. So it runs in a thread, against a backend made for
one request, which tells one reply piece by piece: that of the stage ``"answer"``, with the client's
own ``Decoding``; every defense of ``intention`` names its other stages. When the client leaves,
what the thread waits for is cancelled.
"""

from __future__ import annotations

import re
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Protocol
from urllib.parse import urlsplit

import openai
from anyio import CapacityLimiter, from_thread

from xb_lite.dialogues import Dialogue
from xb_lite.intention.defenses import begins_answers
from xb_lite.intention.stages import Defense
from xb_lite.replies.server import HERE, RemoteBackend
from xb_lite.replies.types import Backend, Decoding, Reply, whole_characters
from xb_lite.serve.requests import BESIDES, THINKING, Asked, ServingError

Tell = Callable[[str], Awaitable[None]]
Count = Callable[[int, int], None]  # tokens read and said
FILTERED = "content_filter"  # the API's reason for an end by a guard, here or at the server

BEGUN = (
    "this defense begins the answer itself, which needs a model on the proxy's machine: serve "
    "without --server, or take another defense."
)


class Upstream(Protocol):
    """A model to put a defense in front of. ``name`` is what clients see; ``room`` bounds the
    requests under way, the others wait."""

    name: str
    room: CapacityLimiter

    def backend(self, asked: Asked, tell: Tell | None, count: Count) -> Backend:
        """A backend for one request, to be used in a worker thread of anyio.

        The reply of the stage ``"answer"`` goes through ``tell`` as it is said; what was not told
        at the end is in the reply's text. Tokens go through ``count`` as soon as they are known: a
        reply that is ended amid ``tell`` has none.

        Raises:
            ServingError: the model cannot do what is asked; from its replies, too.
        """
        ...

    async def close(self) -> None:
        """The server that it was behind ends; another may begin."""
        ...


def check_not_begun(defense: Defense) -> None:
    """Raise a ValueError where a server, which may not continue what was begun, is to stand behind
    a defense that begins answers."""
    if begins_answers(defense):
        raise ValueError(BEGUN)


class RemoteModel:
    """A chat model behind an OpenAI-compatible server, under the server's ``name`` for it.

    What the client says about decoding reaches the last stage as it stands; other stages have
    their own. With a ``key`` that is sent for every client, else each client's own. A server that
    does not count its tokens has used 0.

    Raises:
        ValueError: an address, key or ``timeout`` (seconds without a word) that cannot be.
    """

    def __init__(self, url: str, name: str, key: str | None = None, timeout: float = 120.0) -> None:
        RemoteBackend(url, name, key or "a client's", timeout=timeout)  # for its checks
        self.url, self.name, self.key, self.timeout = url, name, key, timeout
        self.room = CapacityLimiter(100)
        self._clients: dict[AbstractEventLoop, openai.AsyncOpenAI] = {}

    def backend(self, asked: Asked, tell: Tell | None, count: Count) -> Backend:
        return _RemoteRequest(self, asked, tell, count)

    def client(self) -> openai.AsyncOpenAI:
        """Of the event loop that runs: connections cannot be used in another."""
        loop = get_running_loop()
        if loop not in self._clients:
            elsewhere = urlsplit(self.url).hostname not in HERE
            self._clients[loop] = openai.AsyncOpenAI(
                base_url=self.url,
                api_key=self.key or "none",
                timeout=self.timeout,
                max_retries=0,  # clients try again by themselves
                http_client=openai.DefaultAsyncHttpxClient(
                    trust_env=elsewhere,
                    # None are kept: they would go to the next client's requests.
                    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                ),
            )
        return self._clients[loop]

    async def close(self) -> None:
        if client := self._clients.pop(get_running_loop(), None):
            await client.close()


@dataclass(frozen=True)
class _RemoteRequest:
    server: RemoteModel
    asked: Asked
    tell: Tell | None
    count: Count

    def reply(
        self, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        """Raises ServingError for a prefill, which servers do not continue alike; no client sends
        one, some defenses do."""
        if prefill:
            raise ServingError(400, BEGUN, code="prefill_not_supported")
        replies = [from_thread.run(self._ask, dialogue, decoding) for dialogue in dialogues]
        for reply in replies:
            self.count(reply.prompt_tokens, reply.new_tokens)
        return replies

    async def _ask(self, dialogue: Dialogue, decoding: Decoding) -> Reply:
        fields, tell = dict(self.asked.fields), self.tell
        besides = {name: fields.pop(name) for name in (*BESIDES, *THINKING) if name in fields}
        if decoding.stage != "answer":
            # Some servers know only one of the two names: the client's.
            limit = "max_completion_tokens"
            fields = {limit if limit in fields else "max_tokens": decoding.max_new_tokens}
            fields |= {name: getattr(decoding, name) for name in ("temperature", "top_p", "seed")}
            besides = {name: value for name, value in besides.items() if name in THINKING}
            tell = None
        if tell:
            fields = {**fields, "stream": True, "stream_options": {"include_usage": True}}
        own = self.asked.key and not self.server.key
        try:
            answer = await self.server.client().chat.completions.create(
                model=self.server.name,
                messages=dialogue,
                extra_body=besides or None,
                extra_headers={"Authorization": self.asked.key} if own else None,
                **fields,
            )
            if not tell:
                choice = answer.choices[0]
                return _reply(choice.message.content, choice.finish_reason, answer.usage)
            async with answer:
                return await _told(answer, tell)
        except Exception as error:  # openai does not check what a server sends
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> ServingError:
        """What is wrong and what to do, in a sentence without the key."""
        who = f"{self.server.name} at {self.server.url}"
        if isinstance(error, openai.APITimeoutError):  # is a connection error, too
            what = f"{who} was silent for {self.server.timeout:g} seconds"
            return ServingError(504, f"{what}; try again, or raise --timeout of the proxy.")
        if isinstance(error, openai.APIConnectionError):
            what = f"{who} cannot be reached, or hung up"
            return ServingError(502, f"{what}; start it, or correct --server of the proxy.")
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            what = f"{who} wants a key, or another"  # its own words may quote the key
            to_do = "set the client's api_key, or OPENAI_API_KEY of the proxy"
            return ServingError(error.status_code, f"{what}; {to_do}.", code=self._word(error.code))
        if type(error) is not openai.APIError and not isinstance(error, openai.APIStatusError):
            what = f"{who} gave no chat completion"
            return ServingError(502, f"{what}; correct --server of the proxy (most end in /v1).")
        words = error.body.get("message") if isinstance(error.body, dict) else error.body
        words = " ".join(str(words or error.body or "nothing more").split())
        words = self._without_key(words)
        status = getattr(error, "status_code", 502)  # none where it failed amid a stream
        if not 400 <= status < 500:
            return ServingError(502, f"{who} failed (it says: {words:.300}); its log says why.")
        what = f"{who} refuses the request (it says: {words:.300})."
        wait = self._word(error.response.headers.get("retry-after"))
        return ServingError(status, what, self._word(error.param), self._word(error.code), wait)

    def _without_key(self, words: str) -> str:
        for key in filter(None, (self.server.key, self.asked.key)):
            words = words.replace((key.split() or [key])[-1], "…")
        return words

    def _word(self, said: object) -> str | None:
        """What a server says in one word; it may say anything there."""
        if not isinstance(said, str) or not re.fullmatch(r"[\w .,:\[\]/-]{1,100}", said):
            return None
        return said if self._without_key(said) == said else None


async def _told(chunks: openai.AsyncStream, tell: Tell) -> Reply:
    text, end, usage = "", None, None
    async for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices[:1]:
            if piece := whole_characters(choice.delta.content or ""):
                text += piece
                await tell(piece)
            end = choice.finish_reason or end
    if end is None:
        raise openai.APIConnectionError(request=chunks.response.request)
    return _reply(text, end, usage)


def _reply(text: str | None, end: str, usage: object) -> Reply:
    """Raises ValueError where there is no text and no reason for it."""
    if text is None and end in ("stop", "length", FILTERED):
        text = ""
    if not isinstance(text, str):
        raise ValueError(f"no text, but {end}")
    counts = [getattr(usage, f"{which}_tokens", 0) or 0 for which in ("prompt", "completion")]
    if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
        raise ValueError("no counts of tokens")
    why = FILTERED if end == FILTERED else ""  # the rest is missing, or all of it
    return Reply(whole_characters(text), *counts, finished=end != "length", missing=why)
