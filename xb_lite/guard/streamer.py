"""The guard as a part of transformers' ``generate``: it hears every token, and ends generation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from xb_lite.guard.stream import Guard


class GuardStreamer(BaseStreamer, StoppingCriteria):
    """Give it to ``generate`` twice, as ``streamer`` and in ``stopping_criteria``; one reply.

    ``tell`` gets the text that may be shown, as soon as it may; ``text`` is all of it, ending with
    the refusal where ``reason`` is not None.

    Raises:
        ValueError: from ``generate``, when several rows are generated at once.

    Example:
        >>> guarded = GuardStreamer(guard, tokenizer, request, print)  # doctest: +SKIP
        >>> model.generate(ids, streamer=guarded, stopping_criteria=[guarded])  # doctest: +SKIP
    """

    def __init__(
        self,
        guard: Guard,
        tokenizer: PreTrainedTokenizerBase,
        request: str,
        tell: Callable[[str], object] | None = None,
    ) -> None:
        self.watch, self.tokenizer, self.tell = guard.watch(request), tokenizer, tell
        self.ids: list[int] | None = None  # None until the prompt has gone by
        self.heard = 0

    @property
    def text(self) -> str:
        return self.watch.shown

    @property
    def reason(self) -> str | None:
        return self.watch.reason

    def put(self, value: Tensor) -> None:
        if self.ids is None:
            if value.ndim > 1 and len(value) > 1:
                raise ValueError(f"a guard hears one reply, and {len(value)} rows are generated.")
            self.ids = []
            return
        for token in value.flatten().tolist():
            self.ids.append(token)
            # Of a character of several tokens all, but each of them counts as held back.
            self._show(self.watch.feed(self._new(whole=False)))

    def end(self) -> None:
        self.watch.add(self._new(whole=True))
        self._show(self.watch.end())

    def __call__(
        self, input_ids: Int[Tensor, "batch token"], scores: object, **_: object
    ) -> Bool[Tensor, " batch"]:
        """True, which ends generation, once something was wrong."""
        return torch.full((len(input_ids),), self.reason is not None, device=input_ids.device)

    def _new(self, whole: bool) -> str:
        text = self.tokenizer.decode(self.ids or [], skip_special_tokens=True)
        text = text if whole else text.rstrip("\ufffd")
        new, self.heard = text[self.heard :], max(self.heard, len(text))
        return new

    def _show(self, text: str) -> None:
        if text and self.tell:
            self.tell(text)
