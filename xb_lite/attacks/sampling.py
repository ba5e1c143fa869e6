"""Asking the same thing again: best of N samples."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import ClassVar

from xb_lite.attacks.inside import plain
from xb_lite.attacks.running import Ask, Budgeted
from xb_lite.corpora import load_corpus
from xb_lite.data.items import Item
from xb_lite.dialogues import as_dialogue
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding


@dataclass(frozen=True, kw_only=True)
class BestOfN(Budgeted):
    """``n`` replies to each request, sampled at ``temperature``, an attempt each. With ``noise``,
    that share of the request's words has its letters in disorder and in another case.

    The placebo asks ``n`` benign questions in the same way, and its replies are judged against the
    harmful request: what comes out is the judge's error over ``n`` attempts.

    Source: Best-of-N jailbreaking, arXiv 2412.03556 (there with N up to 10,000).
    """

    name: ClassVar[str] = "best of N"
    source: ClassVar[str] = "Best-of-N jailbreaking, arXiv 2412.03556"
    n: int = 8
    temperature: float = 1.0
    noise: float = 0.3
    seed: int = 0

    @contextmanager
    def on(self, subject: Subject) -> Iterator[Ask]:
        harmless = cycle(row.prompt for row in load_corpus("benign", "test"))

        def ask(items: Sequence[Item], decoding: Decoding) -> list[list[str]]:
            plain(items)
            texts = [item.judged for item in items]
            if self.placebo:
                texts = list(islice(harmless, len(items)))  # other ones in the next batch
            attempts: list[list[str]] = [[] for _ in items]
            for k in range(self.n):
                draw = random.Random(f"{self.seed} {k}")
                asked = [as_dialogue(noisy(text, self.noise, draw)) for text in texts]
                sampled = replace(decoding, temperature=self.temperature, seed=self.seed + k)
                for mine, reply in zip(
                    attempts, subject.backend.reply(asked, sampled), strict=True
                ):
                    mine.append(reply.text)
            return attempts

        yield ask


def noisy(text: str, share: float, draw: random.Random) -> str:
    """The text with that share of its words changed: letters inside a word of four and more in
    another order, and some in the other case."""
    words = text.split(" ")
    for place, word in enumerate(words):
        if draw.random() < share:
            inside = list(word[1:-1])
            if len(word) > 3:
                draw.shuffle(inside)
            word = word[:1] + "".join(inside) + word[1:][-1:]
            words[place] = "".join(c.swapcase() if draw.random() < 0.3 else c for c in word)
    return " ".join(words)
