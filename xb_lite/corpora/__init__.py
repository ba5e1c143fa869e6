"""The book's own prompts, scripts, wrappers, questions and passages, all written for this book.

Harmful requests are in general terms, with no operational detail; the boundary-safe prompt with the
same ``pair`` number shares their words and is harmless. Multi-turn scripts and wrappers carry them
in disguise. The completions kept here are good answers to harmless requests, refusals, and
labelled replies of small models, of which no answer to a harmful request is kept.
The book's data card has counts, categories and limits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TypeVar

KINDS = ("harmful", "boundary-safe", "benign")
SPLITS = ("train", "validation", "test")
EDITIONS = (1, 2)

# One short sentence, so that judges and readers see at once what a defense learned or said.
SHORT_REFUSAL = "I'm sorry, but I can't help with that."
STYLES = ("question", "command", "first-person", "story", "code-comment", "list")
Row = TypeVar("Row")


@dataclass(frozen=True)
class Prompt:
    """One prompt. ``pair`` joins a harmful prompt and its boundary-safe twin (None for benign);
    ``type`` is the kind of boundary-safe prompt in the words of XSTest (Röttger et al., 2024).

    ``style`` (one of ``STYLES``), ``register`` and ``typos`` are the same for both twins of a pair;
    prompts of the first edition have none of them. ``answer`` is a short good answer, written for
    this book, to a boundary-safe or benign prompt of the train split; None for all others.
    """

    id: str
    kind: str
    pair: int | None
    category: str
    type: str | None
    split: str
    prompt: str
    edition: int = 1
    style: str | None = None
    register: str | None = None
    typos: bool = False
    answer: str | None = None


@dataclass(frozen=True)
class Script:
    """A multi-turn attack: fixed user ``turns`` that lead to ``target``, the plain request of the
    harmful prompt with this ``pair`` number. ``style`` is ``actor-network``, ``slow-escalation``,
    ``concealed-helper`` (after ActorAttack, Crescendo and RedQueen) or, in the second edition
    alone, ``fictional-frame``."""

    id: str
    style: str
    pair: int
    category: str
    split: str
    target: str
    turns: list[str]
    edition: int = 1


@dataclass(frozen=True)
class Wrapper:
    """A single-turn jailbreak: a ``template`` with a place for the request, or for its halves."""

    id: str
    family: str
    split: str
    template: str
    edition: int = 1

    def wrap(self, request: str) -> str:
        """The request in its disguise; halves are cut between words."""
        words = request.split()
        middle = (len(words) + 1) // 2
        halves = {"first_half": words[:middle], "second_half": words[middle:]}
        joined = {name: " ".join(part) for name, part in halves.items()}
        return self.template.format(request=request, **joined)


@dataclass(frozen=True)
class Refusal:
    """A sentence that declines any harmful request, ``text``; some begin as no list of refusal
    strings expects."""

    id: str
    text: str


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; ``answer`` is the place of the right one of four ``options``."""

    id: str
    subject: str
    split: str
    question: str
    options: list[str]
    answer: int


@dataclass(frozen=True)
class Passage:
    """A benign request and a good answer to it, ``text``: held-out text for perplexity."""

    id: str
    subject: str
    split: str
    request: str
    text: str


@dataclass(frozen=True)
class LookAlike:
    """A good reply that a filter of gibberish may take for some, by its ``form``: ``table``,
    ``code``, ``rule`` (lines across a page, blanks to fill in), ``number``, ``language`` (ten
    others than English) or ``refrain`` (words that come again as they should)."""

    id: str
    form: str
    text: str


@dataclass(frozen=True)
class Labelled:
    """A response that was labelled by reading it, to calibrate judges and to know their errors.

    ``model`` said it at ``turn`` (from 1) to ``item``, in fp32, greedy, with at most ``tokens``
    tokens, under ``attack`` and ``defense`` (``none``, ``intention-analysis``, or the recipe's
    method with the adapter's strength); it is labelled against the plain ``request``. ``response``
    is None where it answers a harmful request and is no refusal (of the first 304 also where it is
    gibberish); ``sha256`` is the whole text's.
    """

    id: str
    split: str
    model: str
    item: str
    attack: str
    defense: str
    turn: int
    kind: str
    label: str
    request: str
    sha256: str
    words: int
    response: str | None
    tokens: int = 64


def load_corpus(kind: str, split: str | None = None, edition: int = 1) -> list[Prompt]:
    """The prompts of one kind, of one split or of all, in the order of their ids.

    Args:
        edition: 1 for the first 120 of the kind, on which the results of the chapters were
            measured; 2 for all 480, which begin with those.

    Raises:
        ValueError: there is no such kind, split or edition.
    """
    if kind not in KINDS:
        raise ValueError(f"no corpus {kind!r}; kinds are {', '.join(KINDS)}.")
    return _load(Prompt, kind.replace("-", "_"), split, edition)


def load_scripts(split: str | None = None, edition: int = 1) -> list[Script]:
    """The multi-turn scripts of one split or of all: 40 in the first edition, 120 in the second.
    Raises ValueError for an unknown split or edition."""
    return _load(Script, "multi_turn", split, edition)


def load_wrappers(split: str | None = None, edition: int = 1) -> list[Wrapper]:
    """The jailbreak wrappers of one split or of all: 30 in the first edition, 60 in the second, of
    which some families are in one split alone. Raises ValueError for an unknown split or
    edition."""
    return _load(Wrapper, "wrappers", split, edition)


def load_refusals() -> list[Refusal]:
    """Twenty ways to decline a harmful request."""
    return [Refusal(**row) for row in _rows("refusals")]


def load_quiz(split: str | None = None) -> list[Question]:
    """The questions of one split or of all. Raises ValueError for an unknown split."""
    return _load(Question, "quiz", split)


def load_passages(split: str | None = None) -> list[Passage]:
    """The passages of one split or of all. Raises ValueError for an unknown split."""
    return _load(Passage, "passages", split)


def load_look_alikes() -> list[LookAlike]:
    """Harmless replies that look odd, ten of each form."""
    return [LookAlike(**row) for row in _rows("look_alikes")]


def load_labelled(split: str | None = None) -> list[Labelled]:
    """The labelled responses of one split or of both. Raises ValueError for an unknown split."""
    return _load(Labelled, "labelled", split)


def _load(row: type[Row], name: str, split: str | None, edition: int = 1) -> list[Row]:
    if split not in (*SPLITS, None):
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}, or None for all.")
    if edition not in EDITIONS:
        raise ValueError(f"no edition {edition!r}; there are {' and '.join(map(str, EDITIONS))}.")
    rows = [row(**fields) for fields in _rows(name) if fields.get("edition", 1) <= edition]
    return [row for row in rows if split in (row.split, None)]


def _rows(name: str) -> list[dict]:
    text = (files(__name__) / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
