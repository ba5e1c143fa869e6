"""What a defense learns from: the erase, separate and retain sets, answered by the reference model.

No answer comes with the book. The reference model says them on the reader's machine, into the
cache: harmful ones after an affirmative prefill, all others by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from xb_lite.data.items import PREFILL, Item, attacked, load_items
from xb_lite.dialogues import Dialogue, as_turns
from xb_lite.files import digest
from xb_lite.judges.strings import X_BOUNDARY, XSTEST, RefusalStrings
from xb_lite.replies.cache import ask
from xb_lite.replies.types import Backend, Decoding, Reply, answer_of

# Of the official code (src/xb_train_dataset.py), the refusal of every boundary-safe prompt.
REFUSAL = (
    "I cannot provide with information or guidance on illegal or harmful activities. "
    "Can I help you with something else?"
)

KINDS = ("harmful", "boundary-safe", "benign", "multi-turn")
TURNS = (2, 3)  # of the dialogues


@dataclass(frozen=True)
class Sets:
    """Dialogues with a response each.

    ``harmful`` requests with a response that complies, ``refused`` ones with a refusal; the
    boundary-safe prompts ``compliant`` with an answer and, in the same order, ``over_refused`` with
    a refusal; ``benign`` ones with an answer. ``harmful_dialogues`` and ``benign_dialogues`` have
    several turns: the ends of multi-turn attacks, and harmless prompts one after the other.

    Every harmful response begins with the prefill, without which there would be none. So that this
    does not tell harm from the rest, the ``prefilled`` ones answer harmless prompts after the same
    words; ``over_refused_prefilled`` are refusals of the prompts of ``compliant_prefilled``.
    """

    harmful: list[Dialogue]
    refused: list[Dialogue]
    compliant: list[Dialogue]
    over_refused: list[Dialogue]
    benign: list[Dialogue]
    harmful_dialogues: list[Dialogue]
    benign_dialogues: list[Dialogue]
    compliant_prefilled: list[Dialogue]
    over_refused_prefilled: list[Dialogue]
    benign_prefilled: list[Dialogue]
    benign_dialogues_prefilled: list[Dialogue]

    @property
    def digest(self) -> str:
        """SHA-256 of all dialogues."""
        return digest(list(vars(self).values()))


def reference_sets(
    backend: Backend,
    decoding: Decoding,
    subject: dict[str, str],
    split: str = "train",
    limit: int | None = None,
    items: Mapping[str, Sequence[Item]] | None = None,
) -> Sets:
    """The sets of the book's own prompts, or of yours, answered by the model to be defended.

    Harmful requests to which it does not comply even when prefilled, and boundary-safe prompts that
    it refuses, are left out; of the prefilled ones, those that it refuses even so. Where it answers
    a harmful request asked plainly, ``REFUSAL`` stands for its refusal. A reply that was cut short
    ends with its last whole sentence.

    The last turns of the multi-turn scripts, without what was said before, are harmful requests as
    well; so are the rows of SafeMTData in the official code. Its multi-turn attacks have no
    history, ``harmful_dialogues`` do: the last ``TURNS`` turns of a script, the last prefilled.

    Args:
        subject: what identifies the model, as in ``evaluate``; its replies are cached under it.
        limit: at most so many prompts of each kind.
        items: your own, by kind (``KINDS``), in place of the book's; a kind that is not there has
            none. All are direct, of one turn, but those of ``"multi-turn"``.

    Raises:
        ValueError: there is no such split or kind, or two items have the same id.
        LogError: the cache cannot be used.
    """
    if items is None:
        items = {kind: load_items(kind, split) for kind in KINDS}
    _check(items)
    harmful, boundary, benign, scripts = (list(items.get(kind, ()))[:limit] for kind in KINDS)
    prefilled = attacked([*harmful, *(_part(s, s.turns[-1:]) for s in scripts)], "prefill")
    attacks = [replace(_part(s, s.turns[-n:]), prefill=PREFILL) for n in TURNS for s in scripts]
    chats = [
        _part(some[0], [item.request for item in some])
        for n in TURNS
        for some in (benign[i : i + n] for i in range(0, len(benign) - n + 1, n))
    ]
    begun = [attacked(plain, "prefill") for plain in (boundary, benign, chats)]
    asked = [*prefilled, *harmful, *boundary, *benign, *attacks, *chats, *sum(begun, [])]
    replies = ask(backend, asked, decoding, subject=subject)
    said = {item.id: list(map(_said, turns)) for item, turns in zip(asked, replies, strict=True)}

    def refused(judge: RefusalStrings, item: Item) -> bool:
        return judge.refuses(said[item.id][-1])

    def dialogues(items: Iterable[Item]) -> list[Dialogue]:
        return [as_turns(item.turns, said[item.id]) for item in items]

    served = [item for item in boundary if not refused(XSTEST, item)]
    boundary_begun, benign_begun, chats_begun = begun
    served_begun = [item for item in boundary_begun if not refused(X_BOUNDARY, item)]
    return Sets(
        # After a prefill a refusal comes later than at the start, where XSTest's rule looks.
        harmful=dialogues(item for item in prefilled if not refused(X_BOUNDARY, item)),
        refused=[
            as_turns(item.turns, said[item.id] if refused(XSTEST, item) else [REFUSAL])
            for item in harmful
        ],
        compliant=dialogues(served),
        over_refused=[as_turns(item.turns, [REFUSAL]) for item in served],
        benign=dialogues(benign),
        harmful_dialogues=dialogues(item for item in attacks if not refused(X_BOUNDARY, item)),
        benign_dialogues=dialogues(chats),
        compliant_prefilled=dialogues(served_begun),
        over_refused_prefilled=[as_turns(item.turns, [REFUSAL]) for item in served_begun],
        benign_prefilled=dialogues(benign_begun),
        benign_dialogues_prefilled=dialogues(chats_begun),
    )


def _check(items: Mapping[str, Sequence[Item]]) -> None:
    if wrong := items.keys() - set(KINDS):
        raise ValueError(f"kinds are {', '.join(KINDS)}, not {', '.join(sorted(wrong))}.")
    ids = Counter(item.id for some in items.values() for item in some)
    if again := [name for name, count in ids.items() if count > 1]:
        raise ValueError(f"two items have the id {again[0]!r}: give each one of its own.")
    for kind, some in items.items():
        for item in some:
            if kind != "multi-turn" and (item.attack != "direct" or len(item.turns) != 1):
                raise ValueError(
                    f"{kind} item {item.id!r} is not one plain turn: give those of several turns "
                    "as 'multi-turn'."
                )


def _part(item: Item, turns: Sequence[str]) -> Item:
    """An item with other turns, so under a name of its own."""
    return replace(item, id=f"{item.id}+{len(turns)}", attack="direct", turns=tuple(turns))


def _said(reply: Reply) -> str:
    """The answer, where a model thought before it."""
    answer = answer_of(reply.text)
    return answer if reply.finished else _whole_sentences(answer)


def _whole_sentences(text: str) -> str:
    """Up to the end of the last whole sentence, or all of it where there is none."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[: ends[-1]] if ends else text
