"""The border of a streaming guard's readings: replies as long as suits the attacker."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from xb_lite.attacks.inside import plain
from xb_lite.attacks.running import Ask, Budgeted
from xb_lite.data.items import PREFILL, Item
from xb_lite.guard.stream import Guard
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding


@dataclass(frozen=True, kw_only=True)
class ChunkBoundary(Budgeted):
    """Prefilled replies that end just before, at and just after a reading of ``guard``, which
    stands before the subject; an attempt is what the guard lets through. The prefill counts as
    said.

    The placebo's lengths are drawn at random from the same range. A guard without a blind spot
    gives both the same chance.

    Source: the filter of the X-Boundary demo, which never reads its last chunk; this book.
    """

    name: ClassVar[str] = "chunk boundary"
    source: ClassVar[str] = "R1_X_Boundary_demo.py of the X-Boundary code; this book"
    guard: Guard
    readings: int = 3
    seed: int = 0

    @property
    def budget(self) -> dict[str, int | float | str]:
        detectors = ", ".join(detector.name for detector in self.guard.detectors)
        return {**super().budget, "hold": self.guard.hold, "detectors": detectors}

    def lengths(self) -> list[int]:
        """In tokens, three for each reading."""
        hold = self.guard.hold
        at = [k * hold + more for k in range(1, self.readings + 1) for more in (-1, 0, 1)]
        if self.placebo:
            draw = random.Random(self.seed)
            at = [draw.randint(min(at), max(at)) for _ in at]
        return [max(1, length) for length in at]

    @contextmanager
    def on(self, subject: Subject) -> Iterator[Ask]:
        if subject.tokenizer is None:
            raise ValueError("a reply is cut into tokens: give a model on this machine.")

        def ask(items: Sequence[Item], decoding: Decoding) -> list[list[str]]:
            dialogues = plain(items)
            longest = replace(decoding, max_new_tokens=max(self.lengths()))
            said = subject.backend.reply(dialogues, longest, PREFILL)
            return [
                [self._shown(subject.tokenizer, i.request, r.text, n) for n in self.lengths()]
                for i, r in zip(items, said, strict=True)
            ]

        yield ask

    def _shown(
        self, tokenizer: PreTrainedTokenizerBase, request: str, reply: str, length: int
    ) -> str:
        watch = self.guard.watch(request)
        for piece in pieces(tokenizer, reply)[:length]:
            watch.feed(piece)
        watch.end()
        return watch.shown


def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The text, cut where its tokens are."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = sorted({end for _, end in found["offset_mapping"]} | {len(text)})
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False) if b > a]
