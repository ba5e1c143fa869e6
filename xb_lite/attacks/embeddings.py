"""Vectors in front of the request that are no words, found by gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from xb_lite.attacks.inside import (
    backend_of,
    last_asked,
    no_weight_gradients,
    numbers_of,
    opening_losses,
    places,
    plain,
    reply_to,
    target_ids,
    token_ids,
)
from xb_lite.attacks.running import Ask, Budgeted
from xb_lite.corpora import SHORT_REFUSAL
from xb_lite.data.items import Item
from xb_lite.dialogues import Dialogue
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding


@dataclass(frozen=True, kw_only=True)
class EmbeddingPrefix(Budgeted):
    """``tokens`` vectors in front of the request, each of norm at most ``norm`` times the mean norm
    of the model's word embeddings, after ``steps`` of Adam towards the opening ``inside.TARGET``;
    one for each request. Behind a prompt defense they stand in what the model is asked last.

    The placebo's are drawn at random and scaled to that norm.

    Source: Schwinn and Geisler (arXiv 2407.15902) on circuit breakers, there without a bound and
    with 20 replies a request; soft prompts, arXiv 2402.09063.
    """

    name: ClassVar[str] = "embedding prefix"
    source: ClassVar[str] = "Schwinn and Geisler, arXiv 2407.15902"
    at_once: ClassVar[int] = 1
    tokens: int = 8
    norm: float = 1.0
    steps: int = 20
    rate: float = 0.1
    seed: int = 0

    @contextmanager
    def on(self, subject: Subject) -> Iterator[Ask]:
        backend_of(subject)

        def ask(items: Sequence[Item], decoding: Decoding) -> list[list[str]]:
            asked = last_asked(subject, plain(items))
            with no_weight_gradients(subject.model), numbers_of(subject):
                return [
                    [self._one(subject, dialogue, item.request, decoding)]
                    for dialogue, item in zip(asked, items, strict=True)
                ]

        yield ask

    def _one(
        self, subject: Subject, dialogue: Dialogue | None, request: str, decoding: Decoding
    ) -> str:
        if dialogue is None:
            return SHORT_REFUSAL
        embed = subject.model.get_input_embeddings()
        ids = token_ids(subject, dialogue)
        prompt = embed(ids).detach()
        found = places(subject, dialogue, request)
        place = int(found[0]) if len(found) else 1
        words = embed.weight.detach()
        # Some families scale what they look up.
        scale = float(prompt.float().norm() / words[ids].float().norm())
        most = self.norm * scale * float(words.float().norm(dim=1).mean())
        prefix = self._found(subject, prompt, place, most)
        return reply_to(subject, _inserted(prompt, prefix.to(prompt), place), decoding)

    def _found(
        self, subject: Subject, prompt: Float[Tensor, "token dim"], place: int, most: float
    ) -> Float[Tensor, "new dim"]:
        draw = torch.Generator().manual_seed(self.seed)
        prefix = torch.randn(self.tokens, prompt.shape[1], generator=draw).to(prompt.device)
        prefix = within(prefix * 1e6, most)  # on the border
        if self.placebo:
            return prefix
        prefix = (0.1 * prefix).requires_grad_()
        # Adam's steps are of one size in every dimension: ``rate`` is a share of the norm.
        step = torch.optim.Adam([prefix], lr=self.rate * most / prompt.shape[1] ** 0.5)
        for _ in range(self.steps):
            step.zero_grad()
            whole = _inserted(prompt, prefix.to(prompt), place)[None]
            opening_losses(subject.model, whole, target_ids(subject)).sum().backward()
            step.step()
            with torch.no_grad():
                prefix.copy_(within(prefix, most))
        return prefix.detach()


def within(vectors: Float[Tensor, "n dim"], most: float) -> Float[Tensor, "n dim"]:
    """Each vector, shortened to the norm ``most`` where it is longer."""
    return vectors * (most / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)


def _inserted(
    prompt: Float[Tensor, "token dim"], new: Float[Tensor, "n dim"], place: int
) -> Float[Tensor, "longer dim"]:
    return torch.cat([prompt[:place], new, prompt[place:]])
