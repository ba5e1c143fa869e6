"""What a defense learns from: the erase, separate and retain sets, answered by the reference model.

No answer comes with the book. The reference model says them on the reader's machine, into the
cache: harmful ones after an affirmative prefill, all others by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xb_lite.attacks import Item, attacked, load_items
from xb_lite.dialogues import Dialogue, as_dialogue
from xb_lite.evaluation import ask, digest
from xb_lite.generation import Backend, Decoding
from xb_lite.judges import X_BOUNDARY, XSTEST

# Of the official code (src/xb_train_dataset.py), the refusal of every boundary-safe prompt.
REFUSAL = (
    "I cannot provide with information or guidance on illegal or harmful activities. "
    "Can I help you with something else?"
)


@dataclass(frozen=True)
class Sets:
    """Dialogues with a response each.

    ``harmful`` requests with a response that complies, ``refused`` ones with a refusal; the
    boundary-safe prompts ``compliant`` with an answer and, in the same order, ``over_refused`` with
    a refusal; ``benign`` ones with an answer.
    """

    harmful: list[Dialogue]
    refused: list[Dialogue]
    compliant: list[Dialogue]
    over_refused: list[Dialogue]
    benign: list[Dialogue]

    @property
    def digest(self) -> str:
        """SHA-256 of all dialogues."""
        return digest([self.harmful, self.refused, self.compliant, self.over_refused, self.benign])


def reference_sets(
    backend: Backend,
    decoding: Decoding,
    subject: dict[str, str],
    split: str = "train",
    limit: int | None = None,
) -> Sets:
    """The sets of the book's own prompts, answered by the model to be defended.

    Harmful requests to which it does not comply even when prefilled, and boundary-safe prompts that
    it refuses, are left out. Where it answers a harmful request asked plainly, ``REFUSAL`` stands
    for its refusal. A reply that was cut short ends with its last whole sentence.

    Args:
        subject: what identifies the model, as in ``evaluate``; its replies are cached under it.
        limit: at most so many prompts of each kind.

    Raises:
        ValueError: there is no such split.
        LogError: the cache cannot be used.
    """
    harmful, boundary, benign = (
        load_items(kind, split)[:limit] for kind in ("harmful", "boundary-safe", "benign")
    )
    prefilled = attacked(harmful, "prefill")
    items = [*prefilled, *harmful, *boundary, *benign]
    said = dict(
        zip(
            [item.id for item in items], ask(backend, items, decoding, subject=subject), strict=True
        )
    )

    def answer(item: Item) -> str:
        reply = said[item.id][0]
        return reply.text if reply.finished else _whole_sentences(reply.text)

    # After a prefill a refusal comes later than at the start, where XSTest's rule looks.
    complied = [item for item in prefilled if not X_BOUNDARY.refuses(answer(item))]
    served = [item for item in boundary if not XSTEST.refuses(answer(item))]
    return Sets(
        harmful=_dialogues(complied, map(answer, complied)),
        refused=_dialogues(
            harmful,
            (answer(i) if XSTEST.refuses(answer(i)) else REFUSAL for i in harmful),
        ),
        compliant=_dialogues(served, map(answer, served)),
        over_refused=_dialogues(served, (REFUSAL for _ in served)),
        benign=_dialogues(benign, map(answer, benign)),
    )


def _dialogues(items: Sequence[Item], answers: Iterable[str]) -> list[Dialogue]:
    return [as_dialogue(item.request, said) for item, said in zip(items, answers, strict=True)]


def _whole_sentences(text: str) -> str:
    """Up to the end of the last whole sentence, or all of it where there is none."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[: ends[-1]] if ends else text
