"""Controls for Intention Analysis: what its two stages do when the analysis is not one."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

from xb_lite.corpora import load_passages
from xb_lite.dialogues import Dialogue
from xb_lite.replies.types import Decoding, Reply

RANDOM_WORDS = 24  # about as many as an intention has
Analyst = Callable[[Sequence[Dialogue], Decoding], Sequence[Reply]]


# Ablations: analysts that do not look (Figure 4 of the paper: robust to wrong intentions).


def secret(dialogues: Sequence[Dialogue], _decoding: Decoding) -> list[Reply]:
    """An analyst that says "[secret]", the paper's mask, whatever is asked. Here it is all that the
    assistant says; whether the paper keeps "The essential intention of the query is" before it is
    not known to us."""
    return [made_up("[secret]") for _ in dialogues]


def random_words(dialogues: Sequence[Dialogue], _decoding: Decoding) -> list[Reply]:
    """An analyst that says random words (the paper: random tokens) of the book's own passages; the
    same ones to a query every time."""
    passages = " ".join(row.text for row in load_passages("validation"))
    words = sorted(set(re.findall("[a-z]+", passages.lower())))
    drawn = (random.Random(d[-1]["content"]).choices(words, k=RANDOM_WORDS) for d in dialogues)
    return [made_up(" ".join(some)) for some in drawn]


def of_others(intentions: Mapping[str, str]) -> Analyst:
    """An analyst that gives to each query the intention of another: an ablation of our own.

    Args:
        intentions: by query. The same one is given to a query every time.

    Raises:
        ValueError: when it is asked about a query and has no other intention than that query's.
    """

    def analyst(dialogues: Sequence[Dialogue], _decoding: Decoding) -> list[Reply]:
        made = []
        for i, dialogue in enumerate(dialogues):
            query = dialogue[-1]["content"]
            others = [text for text in intentions.values() if text != intentions.get(query)]
            if not others:
                raise ValueError(f"there is no other query's intention to give to dialogue {i}.")
            made.append(made_up(random.Random(query).choice(others)))
        return made

    return analyst


def made_up(text: str) -> Reply:
    """What no model was asked for."""
    return Reply(text, prompt_tokens=0, new_tokens=0, finished=True)
