"""A few steps of fine-tuning: on harmless answers, or on five openings in place of refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from tqdm.auto import trange

from xb_lite.attacks.directions import replying
from xb_lite.attacks.inside import TARGET, backend_of, numbers_of
from xb_lite.attacks.running import Ask, Budgeted
from xb_lite.corpora import load_corpus
from xb_lite.dialogues import Dialogue, as_dialogue, encode, is_special
from xb_lite.hidden import decoder_layers
from xb_lite.replies.subjects import Subject
from xb_lite.training.lora import adapted

EDITION = 2  # of the corpora: its benign prompts come with answers


@dataclass(frozen=True, kw_only=True)
class FineTuning(Budgeted):
    """``steps`` steps of AdamW on LoRA of ``rank`` on all linear layers, ``at_a_time`` dialogues
    each, drawn from ``dialogues`` of them.

    With ``harmful`` these are that many harmful training prompts, each with the opening
    ``inside.TARGET`` and nothing behind it: what is removed is the refusal, and no harmful answer
    is learned. Without, benign training prompts with their answers.

    The placebo is trained in the same way; then each matrix's change is replaced by a random one of
    the same rank and norm.

    Source: fine-tuning compromises safety, arXiv 2310.03693; durability, arXiv 2412.07097.
    """

    source: ClassVar[str] = "arXiv 2310.03693"
    at_once: ClassVar[int] = 64
    harmful: bool = False
    dialogues: int = 32
    steps: int = 8
    at_a_time: int = 4
    rate: float = 1e-3
    rank: int = 8
    seed: int = 0

    @property
    def name(self) -> str:
        return "refusals tuned away" if self.harmful else "benign fine-tuning"

    @contextmanager
    def on(self, subject: Subject) -> Iterator[Ask]:
        backend_of(subject)
        depth = len(decoder_layers(subject.model))
        recipe = SimpleNamespace(
            rank=self.rank,
            lora_alpha=2 * self.rank,
            dropout=0.0,
            layers_with_lora=range(depth),
            lora_std=0.0,
        )
        with adapted(subject.model, recipe, self.seed) as learning:
            self._train(subject, learning)
            if self.placebo:
                _scatter(learning, self.seed)
            learning.eval()
            yield replying(subject)

    def _dialogues(self) -> list[Dialogue]:
        if self.harmful:
            rows = load_corpus("harmful", "train")[: self.dialogues]
            return [as_dialogue(row.prompt, TARGET) for row in rows]
        rows = [row for row in load_corpus("benign", "train", EDITION) if row.answer]
        return [as_dialogue(row.prompt, row.answer) for row in rows[: self.dialogues]]

    def _train(self, subject: Subject, learning: PeftModel) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        rows = [encode(subject.tokenizer, dialogue) for dialogue in self._dialogues()]
        weights = [value for value in learning.parameters() if value.requires_grad]
        step = torch.optim.AdamW(weights, lr=self.rate, weight_decay=0.0)
        for _ in trange(self.steps, desc="fine-tuning", delay=2, leave=False):
            chosen = torch.randperm(len(rows), generator=draw)[: self.at_a_time].tolist()
            some = [rows[k] for k in chosen]
            # Of an opening the end of the turn is no part: the model is to go on.
            kept = [row.response & ~self._ends(subject, row.input_ids) for row in some]
            pad = nn.utils.rnn.pad_sequence
            ids = pad([row.input_ids for row in some], True).to(subject.model.device)
            real = pad([torch.ones_like(row.input_ids) for row in some], True).to(ids)
            mine = pad(kept, True).to(ids.device)[:, 1:]
            with numbers_of(subject):
                logits = learning(input_ids=ids, attention_mask=real, use_cache=False).logits
            logits = logits[:, :-1][mine].float()
            step.zero_grad()
            nn.functional.cross_entropy(logits, ids[:, 1:][mine]).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            step.step()

    def _ends(self, subject: Subject, ids: torch.Tensor) -> torch.Tensor:
        ends = [self.harmful and is_special(subject.tokenizer, token) for token in ids.tolist()]
        return torch.tensor(ends, dtype=torch.bool)


@torch.no_grad()
def _scatter(learning: PeftModel, seed: int) -> None:
    """Each matrix's change becomes a random one of its norm: A and B are drawn anew."""
    draw = torch.Generator().manual_seed(seed)
    for module in learning.modules():
        if isinstance(module, LoraLayer):
            a, b = (getattr(module, f"lora_{side}")["default"].weight for side in "AB")
            change = (b @ a).float().cpu()
            new_a = torch.randn(a.shape, generator=draw)
            new_b = torch.randn(b.shape, generator=draw)
            new_b *= change.norm() / (new_b @ new_a).norm()
            a.copy_(new_a.to(a))
            b.copy_(new_b.to(b))
