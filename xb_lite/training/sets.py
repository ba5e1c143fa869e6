"""What a defense learns from: the erase, separate and retain sets, answered by the reference model.

No answer comes with the book. The reference model says them on the reader's machine, into the
cache: harmful ones after an affirmative prefill, all others by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from xb_lite.corpora import load_corpus
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
HARMLESS = ("boundary-safe", "benign")
TURNS = (2, 3)  # of the dialogues


# Names of the sets, and what the examples of each have in common. Those of several turns are the
# ends of multi-turn attacks, and harmless prompts one after the other.
GROUPS: dict[str, tuple[str, str, bool, bool]] = {
    # name: kind, response, prefilled, of several turns
    "harmful": ("harmful", "answer", True, False),
    "refused": ("harmful", "refusal", False, False),
    "compliant": ("boundary-safe", "answer", False, False),
    "over_refused": ("boundary-safe", "refusal", False, False),
    "benign": ("benign", "answer", False, False),
    "harmful_dialogues": ("harmful", "answer", True, True),
    "benign_dialogues": ("benign", "answer", False, True),
    "compliant_prefilled": ("boundary-safe", "answer", True, False),
    "over_refused_prefilled": ("boundary-safe", "refusal", True, False),
    "benign_prefilled": ("benign", "answer", True, False),
    "benign_dialogues_prefilled": ("benign", "answer", True, True),
}


@dataclass(frozen=True)
class Example:
    """A dialogue to learn from.

    Attributes:
        dialogue: it ends with the response that counts.
        kind: of the prompt: ``"harmful"``, ``"boundary-safe"`` or ``"benign"``.
        response: ``"answer"`` or ``"refusal"``.
        prefilled: the response begins with ``PREFILL``; a refusal, that it belongs to such a one.
        several: the dialogue has several turns.
        source: of the response: ``"model"`` said it, or it was ``"written"``.
        style: of a boundary-safe prompt of the book's second edition, one of ``corpora.STYLES``;
            None for all others.
    """

    dialogue: Dialogue
    kind: str
    response: str
    prefilled: bool = False
    several: bool = False
    source: str = "model"
    style: str | None = None


@dataclass(frozen=True)
class Sets:
    """Examples, in sets by what they have in common: ``sets["harmful"]`` are dialogues.

    Every harmful response begins with the prefill, without which there would be none. So that this
    does not tell harm from the rest, the sets ``…_prefilled`` answer harmless prompts after the
    same words. ``over_refused`` has a refusal of every prompt of ``compliant``, in the same order,
    and so have the prefilled ones.

    Example:
        >>> sets = Sets().having(benign=[as_turns(["Hello?"], ["Good day."])])
        >>> len(sets["benign"]), len(sets["harmful"])
        (1, 0)
    """

    examples: Sequence[Example] = ()

    def __getitem__(self, name: str) -> list[Dialogue]:
        return [example.dialogue for example in self.examples if _group(example) == GROUPS[name]]

    def having(self, source: str = "model", **dialogues: Iterable[Dialogue]) -> Sets:
        """The same with other dialogues in the sets named."""
        others = [GROUPS[name] for name in dialogues]
        kept = [example for example in self.examples if _group(example) not in others]
        new = [
            Example(dialogue, *GROUPS[name], source)
            for name, some in dialogues.items()
            for dialogue in some
        ]
        return Sets([*kept, *new])

    @property
    def digest(self) -> str:
        """SHA-256 of all dialogues, by set."""
        return digest([self[name] for name in GROUPS])


def _group(example: Example) -> tuple[str, str, bool, bool]:
    return example.kind, example.response, example.prefilled, example.several


def reference_sets(
    backend: Backend,
    decoding: Decoding,
    subject: dict[str, str],
    split: str = "train",
    limit: int | None = None,
    items: Mapping[str, Sequence[Item]] | None = None,
    answers: Mapping[str, str] | None = None,
    edition: int = 1,
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
        answers: written answers to harmless items, by id, as ``load_corpus`` has them; they stand
            in place of what the model says, which may refuse, except after a prefill. In the
            official code, too, answers to boundary-safe and benign prompts come with the data.
        edition: of the book's own prompts, as in ``load_corpus``; the second comes with answers.

    Raises:
        ValueError: there is no such split, edition or kind, two items have the same id (those made
            of them, as ``ID+2`` of two turns, count), or an item has turns of another number.
        LogError: the cache cannot be used.
    """
    styles: dict[str, str | None] = {}
    if items is None:
        items = {kind: load_items(kind, split, edition=edition) for kind in KINDS}
        rows = [row for kind in HARMLESS for row in load_corpus(kind, split, edition)]
        answers = {row.id: row.answer for row in rows if edition > 1 and row.answer}
        styles = {row.prompt: row.style for row in rows if row.kind == "boundary-safe"}
    _check(items)
    harmful, boundary, benign, scripts = (list(items.get(kind, ()))[:limit] for kind in KINDS)
    prefilled = attacked([*harmful, *(_part(s, s.turns[-1:]) for s in scripts)], "prefill")
    attacks = [
        replace(_part(s, s.turns[-n:]), prefill=PREFILL)
        for n in TURNS
        for s in scripts
        if len(s.turns) >= n
    ]
    chats = [
        _part(some[0], [item.request for item in some])
        for n in TURNS
        for some in (benign[i : i + n] for i in range(0, len(benign) - n + 1, n))
    ]
    begun = [attacked(plain, "prefill") for plain in (boundary, benign, chats)]
    asked = [*prefilled, *harmful, *boundary, *benign, *attacks, *chats, *sum(begun, [])]
    _check_ids(asked)
    written = {
        item.request: answers[item.id]
        for item in (*boundary, *benign)
        if item.id in (answers or {})
    }
    # Not after a prefill: one text that goes on from it would tell the harmless ones apart.
    by_hand = {
        item.id: [written[turn] for turn in item.turns]
        for item in asked
        if not item.prefill and written.keys() >= {*item.turns}
    }
    left = [item for item in asked if item.id not in by_hand]
    replies = ask(backend, left, decoding, subject=subject)
    said = {item.id: list(map(_said, turns)) for item, turns in zip(left, replies, strict=True)}
    said |= by_hand

    def refused(judge: RefusalStrings, item: Item) -> bool:
        return judge.refuses(said[item.id][-1])

    boundary_begun, benign_begun, chats_begun = begun
    # After a prefill a refusal comes later than at the start, where XSTest's rule looks.
    answered = {
        "harmful": [item for item in prefilled if not refused(X_BOUNDARY, item)],
        "compliant": [item for item in boundary if not refused(XSTEST, item)],
        "benign": benign,
        "harmful_dialogues": [item for item in attacks if not refused(X_BOUNDARY, item)],
        "benign_dialogues": chats,
        "compliant_prefilled": [i for i in boundary_begun if not refused(X_BOUNDARY, i)],
        "benign_prefilled": benign_begun,
        "benign_dialogues_prefilled": chats_begun,
    }
    examples = [
        Example(
            as_turns(item.turns, said[item.id]),
            *GROUPS[name],
            "written" if item.id in by_hand else "model",
            styles.get(item.request),
        )
        for name, some in answered.items()
        for item in some
    ]
    for item in harmful:
        own = refused(XSTEST, item)
        response = said[item.id] if own else [REFUSAL]
        source = "model" if own else "written"
        examples.append(Example(as_turns(item.turns, response), *GROUPS["refused"], source))
    for name in ("compliant", "compliant_prefilled"):
        group = GROUPS[name.replace("compliant", "over_refused")]
        examples += [
            Example(as_turns(item.turns, [REFUSAL]), *group, "written", styles.get(item.request))
            for item in answered[name]
        ]
    return Sets(examples)


def _check(items: Mapping[str, Sequence[Item]]) -> None:
    if wrong := items.keys() - set(KINDS):
        raise ValueError(f"kinds are {', '.join(KINDS)}, not {', '.join(sorted(wrong))}.")
    _check_ids([item for some in items.values() for item in some])
    for kind, some in items.items():
        for item in some:
            if kind != "multi-turn" and (item.attack != "direct" or len(item.turns) != 1):
                raise ValueError(
                    f"{kind} item {item.id!r} is not one plain turn: give those of several turns "
                    "as 'multi-turn'."
                )
            if kind == "multi-turn" and len(item.turns) < min(TURNS):
                raise ValueError(
                    f"multi-turn item {item.id!r} has {len(item.turns)} turn; it needs at least "
                    f"{min(TURNS)}: give those of one as 'harmful'."
                )


def _check_ids(items: Iterable[Item]) -> None:
    ids = Counter(item.id for item in items)
    if again := [name for name, count in ids.items() if count > 1]:
        raise ValueError(f"two items have the id {again[0]!r}: give each one of its own.")


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
