"""A model on this machine behind the proxy, telling its answer token by token.

It is run by ``LocalBackend``, so that the second stage of Intention Analysis re-uses the key-value
cache of the first here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from anyio import CapacityLimiter, from_thread
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from xb_lite.dialogues import Dialogue, as_dialogue
from xb_lite.intention.prompts import FIRST
from xb_lite.models.precision import Precision
from xb_lite.replies.local import LocalBackend, TooLongError, context_of
from xb_lite.replies.talk import token_ids
from xb_lite.replies.types import Backend, Decoding, Reply
from xb_lite.serve.requests import BESIDES, FOR_SERVERS, THINKING, Asked, ServingError
from xb_lite.serve.upstreams import Count, Tell

NEUTRAL = {  # the value that changes nothing; thinking is off here
    "repetition_penalty": 1.0,
    "top_k": -1,
    "reasoning_effort": "none",
    "chat_template_kwargs": {"enable_thinking": False},
}
A_TOKEN = 32  # characters; hardly one has more, but runs of blanks


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine; it answers one request at a time."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    room: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))

    def backend(self, asked: Asked, tell: Tell | None, count: Count) -> Backend:
        for name in (*FOR_SERVERS, *BESIDES, *THINKING):
            said = asked.fields.get(name)
            if said and said != NEUTRAL.get(name):
                what = f"{name} is not supported by a model on the proxy's machine; leave it out."
                raise ServingError(400, what, name)
        # Before it is tokenised, which cannot be stopped: a second or two for a million characters.
        most = context_of(self.model)
        characters = sum(len(message["content"]) for message in asked.dialogue)
        if most and characters > A_TOKEN * most:
            raise ServingError(
                400,
                f"the messages have {characters:,} characters, and the model takes {most:,} tokens:"
                " shorten them.",
                "messages",
                "context_length_exceeded",
            )
        return _LocalRequest(
            self.model,
            self.tokenizer,
            tell=tell,
            count=count,
            answer_tokens=asked.decoding.max_new_tokens,
            precision=self.precision,
        )

    async def close(self) -> None:
        """Nothing of it is open."""


@dataclass(frozen=True, kw_only=True)
class _LocalRequest(LocalBackend):
    tell: Tell | None
    count: Count
    answer_tokens: int  # that were asked for, whatever stages come before

    def reply(
        self, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        new = decoding.max_new_tokens
        if decoding.stage == FIRST.stage:  # an intention is read again, with an answer after it
            new += self.answer_tokens
        self._check_length(dialogues, new, prefill)
        silent = 0 if decoding.stage == "answer" else 1
        return self._telling(silent, prefill).reply(dialogues, decoding, prefill)

    def reply_twice(
        self,
        dialogues: Sequence[Dialogue],
        turn: str,
        first: Decoding,
        decoding: Decoding,
        prefill: str = "",
    ) -> list[list[Reply]]:
        said = {"role": "assistant", "content": "."}
        longer = [[*dialogue, said, *as_dialogue(turn)] for dialogue in dialogues]
        self._check_length(longer, first.max_new_tokens + decoding.max_new_tokens, prefill)
        return self._telling(1, prefill).reply_twice(dialogues, turn, first, decoding, prefill)

    def _telling(self, silent: int, prefill: str) -> LocalBackend:
        begun = token_ids(self.tokenizer, prefill).tolist()
        tell, count = self.tell, self.count
        model = _TellingModel(self.model, self.tokenizer, tell, count, silent, begun)
        return LocalBackend(model, self.tokenizer, precision=self.precision)

    def _check_length(self, dialogues: Sequence[Dialogue], new: int, prefill: str) -> None:
        """Before anything is generated, in words for a client."""
        try:
            self.check(dialogues, new, prefill)
        except TooLongError as error:
            raise ServingError(
                400,
                f"the messages have {error.read} tokens with the defense's words, and up to {new} "
                f"would follow; the model takes {error.most} in all: shorten the messages or lower "
                "max_tokens.",
                "messages",
                "context_length_exceeded",
            ) from None


class _TellingModel:
    """A model that tells what it says behind the tokens ``begun``, but not the first ``silent``
    times that it generates."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tell: Tell | None,
        count: Count,
        silent: int,
        begun: list[int],
    ) -> None:
        self.model, self.tokenizer, self.tell, self.count = model, tokenizer, tell, count
        self.silent, self.begun = silent, begun

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def generate(self, ids: Tensor, *, attention_mask: Tensor, **options):
        self.count(int(attention_mask.sum()), 0)
        streamer = _Pieces(self.tokenizer, None if self.silent else self.tell, self.begun)
        self.silent = max(0, self.silent - 1)
        output = self.model.generate(
            ids, attention_mask=attention_mask, streamer=streamer, **options
        )
        self.count(0, output.sequences.shape[1] - ids.shape[1])
        return output


class _Pieces(BaseStreamer):
    """Tells the text of one row of tokens as they come, and stops where the client has left. As in
    ``Talk``, it is what they say behind the tokens ``begun``."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tell: Tell | None, begun: list[int]
    ) -> None:
        self.tokenizer, self.tell, self.begun = tokenizer, tell, begun
        self.ids: list[int] | None = None  # None until the prompt has gone by
        self.told = len(self._decoded(begun))

    def put(self, value: Tensor) -> None:
        from_thread.check_cancelled()
        if self.ids is None or self.tell is None:
            self.ids = []
            return
        # One token late: the newest may be the end tag. And of a character all its tokens.
        text = self._decoded([*self.begun, *self.ids]).rstrip("\ufffd")
        self.ids += value.flatten().tolist()
        if len(text) > self.told:
            from_thread.run(self.tell, text[self.told :])
            self.told = len(text)

    def end(self) -> None:
        """The rest is in the reply."""

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)
