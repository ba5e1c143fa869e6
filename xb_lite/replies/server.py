"""Replies of a chat model behind an OpenAI-compatible server: vLLM, transformers serve, or hosted.

The server has the weights and the chat template; it gets messages and gives texts. It batches what
reaches it together, so several requests are under way at once.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from urllib.parse import urlsplit

import openai
from tqdm.auto import tqdm

from xb_lite.dialogues import Dialogue, as_dialogue
from xb_lite.replies.types import (
    Decoding,
    Reply,
    answer_of,
    check_open,
    check_scripts,
    whole_characters,
)

CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}  # vLLM's, and others'
PROBE = as_dialogue("Name a river.", "One of the rivers that I have heard of is")
NO_CHAT = "gave what is no chat completion with text and usage; correct base_url (most end in /v1)"

ADVICE = {  # the first that fits; a time-out is a connection error to openai, too
    openai.APITimeoutError: "gave no answer in time; raise timeout or lower concurrency",
    openai.APIConnectionError: "cannot be reached; start the server or correct base_url",
    openai.AuthenticationError: "wants a key, or another; set OPENAI_API_KEY or pass api_key",
    openai.PermissionDeniedError: "is not open to this key; pass another api_key",
    openai.NotFoundError: "is not there; correct model or base_url (most end in /v1)",
    openai.RateLimitError: "is overloaded or its quota spent; lower concurrency or wait",
    openai.InternalServerError: "failed; the server's log says why",
    openai.APIStatusError: "refuses the request; if that is too long for the model's context, "
    "shorten the dialogue or lower max_new_tokens",
    openai.APIError: NO_CHAT,
}

HERE = ("localhost", "127.0.0.1", "::1")
_Job = tuple[int, int, Dialogue]  # index of the dialogue or script, turn, messages


class RemoteError(RuntimeError):
    """A server gave no usable reply; the message says why and what to do.

    ``status`` is the HTTP status of a refusal, else None.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RemoteBackend:
    """A chat model behind an OpenAI-compatible server.

    ``model`` is its name there, ``api_key`` by default ``$OPENAI_API_KEY``; a server on this
    machine may need none. ``concurrency`` bounds the requests under way. One that stays without
    answer for ``timeout`` seconds, or meets a server out of reach, overloaded or failing, is sent
    again up to ``retries`` times, with growing pauses.

    A server may have sampling settings of its own: vLLM adds those in the model's
    generation_config.json unless started with ``--generation-config vllm``; transformers serve is
    greedy at any temperature unless that file says ``do_sample``.

    Raises:
        ValueError: a setting is impossible.
        RemoteError: there is no key, and the server is not on this machine.
    """

    base_url: str
    model: str
    api_key: str | None = field(
        default_factory=lambda: os.environ.get("OPENAI_API_KEY"), repr=False
    )
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 2

    def __post_init__(self) -> None:
        # One server under two spellings would be two subjects.
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        url, key = urlsplit(self.base_url), self.api_key or ""
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
            raise ValueError("base_url must look like http://127.0.0.1:8000/v1, with no key in it.")
        if self.concurrency < 1 or self.timeout <= 0 or self.retries < 0:
            raise ValueError("concurrency must be at least 1, timeout above 0, retries at least 0.")
        if not key.isascii() or not key.isprintable():
            raise ValueError("api_key has a line break or another character that no key has.")
        if not key and url.hostname not in HERE:
            raise RemoteError(
                f"{self.base_url} may need a key: set OPENAI_API_KEY or pass api_key (any word, if "
                "it needs none)."
            )

    def reply(
        self, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        """One reply to each dialogue, in their order.

        Args:
            dialogues: each ends with a user turn.
            decoding: the same for all; each dialogue's seed is made from this one and its index.
            prefill: first words of every reply. Two requests for one token find out first whether
                the server continues a message that was begun.

        Raises:
            ValueError: a dialogue is malformed or does not end with a user turn; its index is
                named, before anything is sent.
            RemoteError: a request failed (its index is named), or the server takes no prefill.
        """
        check_open(dialogues)
        replies: list[Reply | None] = [None] * len(dialogues)
        waiting = deque((i, 0, dialogue) for i, dialogue in enumerate(dialogues))
        for i, reply in self._answers(waiting, "dialogue", len(dialogues), decoding, prefill):
            replies[i] = reply
        return replies

    def play(self, scripts: Sequence[Sequence[str]], decoding: Decoding) -> list[list[Reply]]:
        """The replies to each script's user turns, earlier turns and replies being history.

        Raises:
            ValueError: a script is empty or has a turn that is not a string; its index is named,
                before anything is sent.
            RemoteError: a request failed; the script's index is named.
        """
        check_scripts(scripts)
        played: list[list[Reply]] = [[] for _ in scripts]
        waiting = deque((i, 0, as_dialogue(script[0])) for i, script in enumerate(scripts))
        total = sum(map(len, scripts))
        dialogues = [dialogue for _, _, dialogue in waiting]
        for i, reply in self._answers(waiting, "script", total, decoding):
            played[i].append(reply)
            if (turn := len(played[i])) < len(scripts[i]):
                answered = {"role": "assistant", "content": answer_of(reply.text)}
                dialogues[i] = [*dialogues[i], answered, *as_dialogue(scripts[i][turn])]
                waiting.append((i, turn, dialogues[i]))
        return played

    def _answers(
        self, waiting: deque[_Job], kind: str, total: int, decoding: Decoding, prefill: str = ""
    ) -> Iterator[tuple[int, Reply]]:
        """Index and reply of each job as it is done; the caller may append jobs on the way."""
        done: SimpleQueue[tuple[int, Reply | Exception]] = SimpleQueue()
        # What is meant for this machine must not go through a proxy of the environment.
        elsewhere = urlsplit(self.base_url).hostname not in HERE
        client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self.api_key or "none",
            timeout=self.timeout,
            max_retries=self.retries,
            http_client=openai.DefaultHttpxClient(trust_env=elsewhere),
        )

        def work(i: int, turn: int, dialogue: Dialogue) -> None:
            # With one seed for all, a dialogue that is there ten times would get one reply.
            seed = random.Random(f"{decoding.seed} {i} {turn}").getrandbits(31)
            try:
                own = replace(decoding, seed=seed)
                reply = self._ask(client, f"{kind} {i}", dialogue, own, prefill)
                said = reply.text.removeprefix(prefill) if repeats else reply.text
                done.put((i, replace(reply, text=prefill + said)))
            except Exception as error:  # raised again where somebody waits for it
                done.put((i, error))

        under_way = 0
        with client, tqdm(total=total, desc="replies", delay=2, leave=False) as bar:
            repeats = bool(prefill and waiting) and self._repeats_prefill(client)
            while waiting or under_way:
                while waiting and under_way < self.concurrency:
                    # Daemons: neither Ctrl-C nor an error waits for the requests under way.
                    Thread(target=work, args=waiting.popleft(), daemon=True).start()
                    under_way += 1
                i, answer = done.get()
                under_way -= 1
                if isinstance(answer, Exception):
                    raise answer
                bar.update()
                yield i, answer

    def _repeats_prefill(self, client: openai.OpenAI) -> bool:
        """Whether the server's texts begin with the prefill; an error if it continues none.

        Many servers ignore fields that they do not know, and would answer anew. But a message that
        is continued has no end tag and no generation prompt behind it: fewer tokens are read.
        """
        *asked, begun = PROBE
        one, refusal = Decoding(max_new_tokens=1), None
        try:
            continued = self._ask(client, "prefill", asked, one, begun["content"])
            closed = self._ask(client, "prefill", PROBE, one, "")
            if continued.prompt_tokens < closed.prompt_tokens:
                return continued.text.startswith(begun["content"])
        except RemoteError as error:
            if error.status not in (400, 422):
                raise
            refusal = error
        raise RemoteError(
            f"{self.base_url} continues no prefill: it refuses or ignores continue_final_message; "
            "serve the model with vLLM or SGLang, or use LocalBackend."
        ) from refusal

    def _ask(
        self,
        client: openai.OpenAI,
        label: str,
        dialogue: Dialogue,
        decoding: Decoding,
        prefill: str,
    ) -> Reply:
        begun = [{"role": "assistant", "content": prefill}] if prefill else []
        label = f"{label}: {self.model} at {self.base_url}"
        try:
            answer = client.chat.completions.create(
                model=self.model,
                messages=[*dialogue, *begun],
                max_tokens=decoding.max_new_tokens,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                seed=decoding.seed,
                extra_body=CONTINUE if begun else None,
            )
        except openai.APIError as error:
            advice = next(words for kind, words in ADVICE.items() if isinstance(error, kind))
            what, to_do = advice.split("; ")
            why = f"{label} {what}{self._quoted(error)}; {to_do}."
            raise RemoteError(why, getattr(error, "status_code", None)) from None
        except ValueError:  # not even JSON
            answer = None
        with suppress(AttributeError, LookupError, TypeError, ValueError):  # openai does not check
            choice, usage = answer.choices[0], answer.usage
            text, end, missing = choice.message.content, choice.finish_reason, ""
            if text is None and end in ("stop", "length", "content_filter"):
                text, missing = "", end
            if isinstance(text, str):
                counts = int(usage.prompt_tokens), int(usage.completion_tokens)
                text = whole_characters(text)
                return Reply(text, *counts, finished=end == "stop", missing=missing)
        raise RemoteError(f"{label} {NO_CHAT}.")

    def _quoted(self, error: openai.APIError) -> str:
        """The server's own words, cut short; none where they may quote the key."""
        words = error.body
        if not words or getattr(error, "status_code", None) in (401, 403):
            return ""
        if isinstance(words, dict):
            words = words.get("message") or words.get("detail") or words
        words = " ".join(str(words).split())
        if self.api_key:
            words = words.replace(self.api_key, "…")
        return f" (it says: {words:.200})"
