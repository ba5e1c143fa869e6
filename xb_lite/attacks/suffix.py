"""A suffix of tokens found by coordinate gradient, at a small budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xb_lite.attacks.inside import (
    backend_of,
    no_weight_gradients,
    numbers_of,
    opening_losses,
    places,
    plain,
    target_ids,
    token_ids,
)
from xb_lite.attacks.running import Ask, Budgeted
from xb_lite.data.items import Item
from xb_lite.dialogues import as_dialogue
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding

START = " !"


@dataclass(frozen=True, kw_only=True)
class TokenSuffix(Budgeted):
    """``tokens`` tokens behind the request, found in ``steps`` steps: the gradient of the loss of
    the opening ``inside.TARGET`` names the ``top`` best tokens for each place, ``candidates`` of
    these single changes are tried, and the best is kept if it is better.

    A candidate counts only if the whole prompt, written out and tokenised again, has the same
    tokens: what is optimised is what is asked. The suffix is found on the model without its prompt
    defense, and asked through it.

    The placebo changes as many places to tokens drawn at random, whether better or not.

    Source: GCG, arXiv 2307.15043, there with 20 tokens, 500 steps and 512 candidates.
    """

    name: ClassVar[str] = "token suffix"
    source: ClassVar[str] = "GCG, arXiv 2307.15043"
    at_once: ClassVar[int] = 1
    tokens: int = 8
    steps: int = 8
    candidates: int = 16
    top: int = 64
    seed: int = 0

    @contextmanager
    def on(self, subject: Subject) -> Iterator[Ask]:
        backend_of(subject)

        def ask(items: Sequence[Item], decoding: Decoding) -> list[list[str]]:
            plain(items)
            with no_weight_gradients(subject.model), numbers_of(subject):
                asked = [as_dialogue(i.judged + self.found(subject, i.judged)) for i in items]
            return [[reply.text] for reply in subject.backend.reply(asked, decoding)]

        yield ask

    def found(self, subject: Subject, request: str) -> str:
        """The suffix for one request, as text."""
        draw = torch.Generator().manual_seed(self.seed)
        suffix, best = START * self.tokens, float("inf")
        if not self.placebo:
            start = token_ids(subject, as_dialogue(request + suffix))
            best = float(self._losses(subject, start[None])[0])
        for _ in range(self.steps):
            dialogue = as_dialogue(request + suffix)
            ids, where = token_ids(subject, dialogue), places(subject, dialogue, suffix)
            better = self._candidates(subject, ids, where, draw)
            kept = [
                (row, text)
                for row in better
                if (text := rewritten(subject, request, row, where)) is not None
            ]
            if not kept:
                continue
            if self.placebo:
                suffix = kept[0][1]
                continue
            losses = self._losses(subject, torch.stack([row for row, _ in kept]))
            if float(losses.min()) < best:
                best, suffix = float(losses.min()), kept[int(losses.argmin())][1]
        return suffix

    @torch.no_grad()
    def _losses(
        self, subject: Subject, rows: Int[Tensor, "prompt token"]
    ) -> Float[Tensor, " prompt"]:
        embedded = subject.model.get_input_embeddings()(rows)
        return opening_losses(subject.model, embedded, target_ids(subject))

    def _candidates(
        self,
        subject: Subject,
        ids: Int[Tensor, " token"],
        where: Int[Tensor, " place"],
        draw: torch.Generator,
    ) -> Int[Tensor, "candidate token"]:
        """Prompts with one token of the suffix changed."""
        words = plain_words(subject.tokenizer).to(ids.device)
        rows = ids.repeat(self.candidates, 1)
        spots = torch.randint(len(where), (self.candidates,), generator=draw)
        if self.placebo:
            chosen = words[torch.randint(len(words), (self.candidates,), generator=draw)]
        else:
            table = subject.model.get_input_embeddings()
            prompt = table(ids).detach()
            mine = prompt[where].clone().requires_grad_()
            prompt = prompt.index_copy(0, where.to(ids.device), mine)
            opening_losses(subject.model, prompt[None], target_ids(subject)).sum().backward()
            scores = mine.grad.float() @ table.weight[words].float().T  # lower is better
            ranked = scores.topk(min(self.top, len(words)), dim=1, largest=False).indices
            picks = torch.randint(ranked.shape[1], (self.candidates,), generator=draw)
            chosen = words[ranked[spots, picks.to(ranked.device)]]
        rows[torch.arange(self.candidates), where[spots]] = chosen
        return rows


def rewritten(
    subject: Subject, request: str, row: Int[Tensor, " token"], where: Int[Tensor, " place"]
) -> str | None:
    """The suffix of a prompt's tokens as text, if the prompt that is written with it has these very
    tokens; else None."""
    # Behind what stands before it: Llama's decoder, among others, leaves out a text's first space.
    before, whole = (
        subject.tokenizer.decode(row[:end], clean_up_tokenization_spaces=False)
        for end in (int(where[0]), int(where[-1]) + 1)
    )
    text = whole[len(before) :]
    again = token_ids(subject, as_dialogue(request + text))
    return text if torch.equal(again, row) else None


@cache
def plain_words(tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " word"]:
    """Tokens that a person could type: printable ASCII, and not special."""
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[k] for k in range(len(tokenizer))])
    kept = [
        k
        for k, text in enumerate(texts)
        if k not in special and text.strip() and text.isascii() and text.isprintable()
    ]
    return torch.tensor(kept, dtype=torch.long)
