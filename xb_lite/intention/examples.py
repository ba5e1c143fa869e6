"""Both stages of Intention Analysis worked out by hand, for prompts of the train split.

Some are shown to a model before a query (``intention.variants``), and from the benign ones an
adapter learns the format (``training.intention_tuning``).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from xb_lite.corpora import load_corpus, load_refusals
from xb_lite.dialogues import Dialogue, as_dialogue
from xb_lite.intention.prompts import STAGE_2, first_stage


def both_stages(prompt: str, intention: str, answer: str) -> Dialogue:
    """The dialogue in which a prompt's intention is stated and then its answer is given.

    Example:
        >>> [m["role"] for m in both_stages("Name a river.", "It is to learn one.", "The Rhine.")]
        ['user', 'assistant', 'user', 'assistant']
    """
    stated = {"role": "assistant", "content": intention}
    return [*first_stage(as_dialogue(prompt)), stated, *as_dialogue(STAGE_2, answer)]


@cache
def shown() -> dict[str, list[Dialogue]]:
    """A few examples by whether the request is harmful: the harmless ones with the answer written
    for the book, the harmful ones with a refusal."""
    intentions = _read("examples.json")
    refusals = [refusal.text for refusal in load_refusals()]
    made: dict[str, list[Dialogue]] = {"harmless": [], "harmful": []}
    for kind in ("benign", "boundary-safe", "harmful"):
        for row in load_corpus(kind, "train"):
            if row.id not in intentions:
                continue
            harmful = kind == "harmful"
            answer = refusals[len(made["harmful"])] if harmful else row.answer
            example = both_stages(row.prompt, intentions[row.id], answer)
            made["harmful" if harmful else "harmless"].append(example)
    return made


@cache
def benign() -> list[Dialogue]:
    """An example for every benign prompt of the second edition's train split, in its order. Their
    intentions have no verdict: it would be the same for all, and be learned with the format."""
    intentions = _read("benign_intentions.json")
    rows = load_corpus("benign", "train", edition=2)
    return [both_stages(row.prompt, intentions[row.id], row.answer) for row in rows]


def _read(name: str) -> dict[str, str]:
    """Intentions by the id of their prompt."""
    return json.loads(files(__package__).joinpath(name).read_text("utf-8"))
