"""Replies of a chat model behind an OpenAI-compatible server: vLLM, transformers serve, or hosted.

The server has the weights and the chat template; it gets messages and gives texts. It batches what
reaches it together, so several requests are under way at once.
"""

from __future__ import annotations

import os
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from urllib.parse import urlsplit

import openai
from tqdm.auto import tqdm

from xb_lite.dialogues import Dialogue, as_dialogue
from xb_lite.replies.side_by_side import side_by_side
from xb_lite.replies.types import (
    Decoding,
    Reply,
    answer_of,
    check_open,
    check_scripts,
    whole_characters,
)

CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}  # vLLM's, and others'
# By which servers switch thinking off, the first that does it; a field that a server does not know
# it refuses or ignores.
THOUGHTLESS = (
    {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "minimal"},
)
PROBE = as_dialogue("Name a river.", "One of the rivers that I have heard of is")
THOUGHT = 256  # tokens, for which a model that thinks about PROBE shows it
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
        if waiting:  # before there are several threads that would ask it
            with suppress(RemoteError):  # which the first dialogue then meets, too
                _ = self._thought
        repeats = bool(prefill and waiting) and self._repeats_prefill

        def work(job: _Job) -> Reply:
            i, turn, dialogue = job
            # With one seed for all, a dialogue that is there ten times would get one reply.
            seed = random.Random(f"{decoding.seed} {i} {turn}").getrandbits(31)
            own = replace(decoding, seed=seed)
            reply = self._ask(f"{kind} {i}", dialogue, own, prefill)
            said = reply.text.removeprefix(prefill) if repeats else reply.text
            return replace(reply, text=prefill + said)

        with tqdm(total=total, desc="replies", delay=2, leave=False, disable=total == 1) as bar:
            for (i, _, _), reply in side_by_side(waiting, work, self.concurrency):
                bar.update()
                yield i, reply

    def check(self, dialogues: Sequence[Dialogue], room: int, prefill: str = "") -> None:
        """Find out, by requests for one token, what would else end an evaluation amid it.

        Args:
            dialogues: each ends with a user turn.
            room: so many tokens may follow each.
            prefill: of the replies.

        Raises:
            RemoteError: the server continues no prefill, or the longest of the dialogues and what
                is to follow do not fit into the context that it says it has.
        """
        if not dialogues:
            return
        _ = self._thought
        if prefill:
            _ = self._repeats_prefill
        longest = max(dialogues, key=lambda some: sum(len(one["content"]) for one in some))
        read = self._ask("the longest dialogue", longest, Decoding(max_new_tokens=1), "")
        if (most := self._context) and read.prompt_tokens + room > most:
            raise RemoteError(
                f"the longest dialogue has {read.prompt_tokens} tokens, and up to {room} would "
                f"follow; {self.model} at {self.base_url} takes {most}: leave out the set with it, "
                "or lower max_new_tokens."
            )

    @cached_property
    def _client(self) -> openai.OpenAI:
        # What is meant for this machine must not go through a proxy of the environment.
        elsewhere = urlsplit(self.base_url).hostname not in HERE
        return openai.OpenAI(
            base_url=self.base_url,
            api_key=self.api_key or "none",
            timeout=self.timeout,
            max_retries=self.retries,
            http_client=openai.DefaultHttpxClient(trust_env=elsewhere),
        )

    @cached_property
    def _context(self) -> int | None:
        """How many tokens the model takes, where the server says so, as vLLM and SGLang do."""
        with suppress(openai.APIError, ValueError, AttributeError, TypeError):
            for one in self._client.models.list().data:
                most = getattr(one, "max_model_len", None)
                if one.id == self.model and type(most) is int and most > 0:
                    return most
        return None

    @cached_property
    def _thought(self) -> tuple[dict[str, object], bool]:
        """The fields that switch thinking off, as far as this server goes along, which are sent
        with every request; and whether a reply begins within a thought that the prompt opened.

        What a model thinks nevertheless is left out where its answer is judged.
        """
        asked, some = PROBE[:1], Decoding(max_new_tokens=THOUGHT)
        plain = self._sent("thinking", asked, some, "", {})
        if not _thinks(plain):
            return {}, False
        for fields in THOUGHTLESS:
            with suppress(RemoteError):
                if not _thinks(self._sent("thinking", asked, some, "", fields)):
                    _say(f"{self.model} thinks; that is switched off by {', '.join(fields)}.")
                    return fields, False
        _say(
            f"{self.model} thinks before it answers, and its server does not switch that off: "
            "judged is what comes after the thought, and a reply that ends before is no answer."
        )
        text = plain.choices[0].message.content or ""
        return {}, "</think>" in text and "<think>" not in text

    @cached_property
    def _repeats_prefill(self) -> bool:
        """Whether the server's texts begin with the prefill; an error if it continues none.

        Many servers ignore fields that they do not know, and would answer anew. But a message that
        is continued has no end tag and no generation prompt behind it: fewer tokens are read.
        """
        *asked, begun = PROBE
        one, refusal = Decoding(max_new_tokens=1), None
        try:
            continued = self._ask("prefill", asked, one, begun["content"])
            closed = self._ask("prefill", PROBE, one, "")
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

    def _ask(self, label: str, dialogue: Dialogue, decoding: Decoding, prefill: str) -> Reply:
        fields, opened = vars(self).get("_thought", ({}, False))
        answer = self._sent(label, dialogue, decoding, prefill, fields)
        with suppress(AttributeError, LookupError, TypeError, ValueError):  # openai does not check
            choice, usage = answer.choices[0], answer.usage
            text, end, missing = choice.message.content, choice.finish_reason, ""
            if text is None and end in ("stop", "length", "content_filter"):
                text, missing = "", end
            if isinstance(text, str):
                counts = int(usage.prompt_tokens), int(usage.completion_tokens)
                text = whole_characters(text)
                if opened and not prefill and not missing:
                    text = f"<think>{text}"
                return Reply(text, *counts, finished=end == "stop", missing=missing)
        raise RemoteError(f"{label}: {self.model} at {self.base_url} {NO_CHAT}.")

    def _sent(
        self,
        label: str,
        dialogue: Dialogue,
        decoding: Decoding,
        prefill: str,
        fields: dict[str, object],
    ) -> object:
        """What the server sends, whatever that is."""
        begun = [{"role": "assistant", "content": prefill}] if prefill else []
        label = f"{label}: {self.model} at {self.base_url}"
        more = {**fields, **(CONTINUE if begun else {})}
        try:
            return self._client.chat.completions.create(
                model=self.model,
                messages=[*dialogue, *begun],
                max_tokens=decoding.max_new_tokens,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                seed=decoding.seed,
                extra_body=more or None,
            )
        except openai.APIError as error:
            advice = next(words for kind, words in ADVICE.items() if isinstance(error, kind))
            what, to_do = advice.split("; ")
            why = f"{label} {what}{self._quoted(error)}; {to_do}."
            raise RemoteError(why, getattr(error, "status_code", None)) from None
        except ValueError:  # not even JSON
            return None

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


def _thinks(answer: object) -> bool:
    """Whether there is a thought in what a server sent: in the text, or beside it by any of the
    names that servers have for it, or in place of a text that it left no room for."""
    with suppress(AttributeError, LookupError, TypeError):
        choice = answer.choices[0]
        said, text = choice.message, choice.message.content
        if any(getattr(said, name, None) for name in ("reasoning_content", "reasoning")):
            return True
        if isinstance(text, str):
            return "</think>" in text or text.lstrip().startswith("<think>")
        return text is None and choice.finish_reason == "length"
    return False


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
