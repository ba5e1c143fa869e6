"""What a client of the OpenAI API asks for, checked: one request for one answer in text.

A field that would make another answer of it is refused if it cannot be had; others are left out.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from xb_lite.dialogues import Dialogue
from xb_lite.replies.types import Decoding

LENGTH = 512  # of an answer in tokens, where neither the client nor a server sets it
A_LENGTH = ("max_new_tokens", int, "a whole number of at least 1")

DECODING = {  # the API's name: ours, its kind, what it must be
    "max_tokens": A_LENGTH,
    "max_completion_tokens": A_LENGTH,
    "temperature": ("temperature", float, "a number of at least 0"),
    "top_p": ("top_p", float, "a number above 0 and at most 1"),
    "seed": ("seed", int, "a whole number of 63 bits"),
}

# Known to servers alone: of the API, of vLLM and others besides, and those by which a model thinks,
# which hold for every stage.
FOR_SERVERS = ("stop", "frequency_penalty", "presence_penalty", "logit_bias")
BESIDES = ("top_k", "min_p", "repetition_penalty")
THINKING = ("chat_template_kwargs", "reasoning_effort")

# Change nothing in an answer's text.
HARMLESS = {
    *("model", "messages", "stream", "stream_options", "user", "store", "metadata"),
    *("service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "verbosity"),
}

UNSUPPORTED = {  # and the value that changes nothing
    "n": 1,
    "tools": None,
    "functions": None,
    "tool_choice": "none",
    "function_call": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "logprobs": None,
}

KIND_WORDS = {dict: "an object", str: "a text"}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ServingError(RuntimeError):
    """What a client is told instead of an answer: an HTTP status, and where they are known the
    field of its request that is at fault, the API's code for it, and the seconds to wait."""

    def __init__(
        self,
        status: int,
        message: str,
        field: str | None = None,
        code: str | None = None,
        wait: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.field, self.code, self.wait = status, field, code, wait


@dataclass(frozen=True)
class Asked:
    """What a client asks for. ``fields`` has what it says itself about decoding, in the words of
    the API; ``count`` is whether a stream ends with the usage; ``key`` the Authorization header."""

    dialogue: Dialogue
    decoding: Decoding
    fields: dict[str, object]
    stream: bool = False
    count: bool = False
    key: str | None = field(default=None, repr=False)


def _is_json(value: object) -> bool:
    """Python also reads NaN and infinity; JSON has neither, and a server would fail at them."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _is_unicode(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_request(body: bytes, headers: Mapping[str, str]) -> Asked:
    """The request with this body and these headers, whose names are in lower case.

    Raises:
        ServingError: it is malformed or cannot be had; the field is named.
    """
    # A web page may send anything else to this machine without being allowed to.
    if not headers.get("content-type", "").startswith("application/json"):
        raise ServingError(415, "the request must have the content type application/json.")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise ServingError(400, "the request is not JSON.") from None
    if not isinstance(said, dict):
        raise ServingError(400, "the request must be a JSON object.")
    for name, harmless in UNSUPPORTED.items():
        if said.get(name) and said[name] != harmless:
            raise ServingError(400, f"{name} is not supported by the proxy; leave it out.", name)
    known_names = {*HARMLESS, *UNSUPPORTED, *DECODING, *FOR_SERVERS, *BESIDES, *THINKING}
    if unknown := [name for name in said if said[name] and name not in known_names]:
        name = f"{repr(unknown[0])[1:-1]:.60}"  # on one line, whatever is in it
        raise ServingError(400, f"{name} is not known to the proxy; leave it out.", name)
    if unreal := [name for name in said if name not in DECODING and not _is_json(said[name])]:
        raise ServingError(400, f"{unreal[0]} has a number that JSON has not.", unreal[0])
    for name in FOR_SERVERS:
        if not _is_unicode(said.get(name)):
            raise ServingError(400, f"{name} has half a character (a lone surrogate).", name)
    for name, kind in (("chat_template_kwargs", dict), ("reasoning_effort", str)):
        if not isinstance(said.get(name) or kind(), kind):
            raise ServingError(400, f"{name} must be {KIND_WORDS[kind]}.", name)
    stream, options = said.get("stream") or False, said.get("stream_options") or {}
    if not isinstance(stream, bool):
        raise ServingError(400, "stream must be true or false.", "stream")
    if not isinstance(options, dict):
        raise ServingError(400, "stream_options must be an object.", "stream_options")
    names = (*DECODING, *FOR_SERVERS, *BESIDES, *THINKING)
    known = {name: said[name] for name in names if said.get(name) is not None}
    return Asked(
        _dialogue(said.get("messages")),
        _decoding(known),
        known,
        stream=stream,
        count=bool(options.get("include_usage")),
        key=headers.get("authorization"),
    )


def _decoding(fields: Mapping[str, object]) -> Decoding:
    settings: dict[str, object] = {"max_new_tokens": LENGTH, "seed": secrets.randbits(31)}
    for name, (ours, kind, must) in DECODING.items():
        if name not in fields:
            continue
        value = settings[ours] = fields[name]
        try:
            Decoding(**{ours: value})
            fits = type(value) in (int, kind) and abs(value) < 2**63
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ServingError(400, f"{name} must be {must}.", name)
    return Decoding(**settings)


def _dialogue(messages: object) -> Dialogue:
    """Messages of role and text; what else they have is left out."""
    if not isinstance(messages, list) or not messages:
        raise ServingError(400, "messages must be a list of at least one message.", "messages")
    dialogue = []
    for i, message in enumerate(messages):
        message = message if isinstance(message, dict) else {}
        role, text = str(message.get("role")), _text(message.get("content"))
        if role not in ROLES:
            at = f"messages[{i}].role"
            raise ServingError(400, f"{at} must be one of {', '.join(ROLES)}.", at)
        if text is None:
            at = f"messages[{i}].content"
            raise ServingError(400, f"{at} must be text; the proxy takes nothing else.", at)
        dialogue.append({"role": ROLES[role], "content": text})
    if dialogue[-1]["role"] != "user":
        raise ServingError(400, "the last message must be the user's.", f"messages[{i}].role")
    return dialogue


def _text(content: object) -> str | None:
    """A message's text, in one piece or in several; None where it is or has something else."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    return (
        content if isinstance(content, str) and not re.search("[\ud800-\udfff]", content) else None
    )
