"""The two stages of Intention Analysis: the model says first what is being asked, then answers.

Zhang et al. (2025), *Intention Analysis Makes LLMs A Good Jailbreak Defender*, arXiv 2401.06561.
The paper has single queries. In a dialogue the last user message is the query, whose intention is
asked for given what stands before: the user's own words and the answers that the user has seen,
without the prompts and intentions of earlier turns. Derived in 07_intention_analysis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from xb_lite.dialogues import Dialogue
from xb_lite.intention.ablations import Analyst
from xb_lite.intention.prompts import FIRST, STAGE_2, first_stage, second_stage
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.types import Backend, Decoding, Reply, answer_of, check_open

Defense = Callable[[Backend, Sequence[Dialogue], Decoding, str], list[list[Reply]]]


def as_said(defense: Defense) -> Defense:
    """Mark a defense whose answer is, to the letter, what its backend replies at the stage
    ``"answer"``, so that a client can be told it while it is said. Of any other a client gets the
    answer when it is whole: what was told cannot be taken back.

    Example:
        >>> is_as_said(as_said(lambda backend, dialogues, decoding, prefill="": []))
        True
    """
    defense.as_said = True
    return defense


def is_as_said(defense: Defense) -> bool:
    """Whether a defense, or what it is a ``partial`` of, is marked by ``as_said``."""
    return getattr(getattr(defense, "func", defense), "as_said", False)


@as_said
def two_stage(
    backend: Backend,
    dialogues: Sequence[Dialogue],
    decoding: Decoding,
    prefill: str = "",
    *,
    first: Decoding = FIRST,
    analyst: Analyst | None = None,
) -> list[list[Reply]]:
    """Intention Analysis: the intention, then the answer, as one dialogue of two turns (section 3
    of the paper; demo/IA_demo.py).

    On this machine the second stage goes on with the key-value cache of the first.

    Args:
        backend: gives the answers, and the intentions unless there is an ``analyst``.
        dialogues: each ends with the user's query.
        decoding: of the answers.
        prefill: first words of every answer.
        first: of the intentions. An intention that is cut short stands as it is; the paper allows
            1,024 tokens.
        analyst: where intentions come from instead: ``partial(analyse, other_backend)`` for another
            model (Table 12), or an ablation, ``secret``, ``random_words`` or ``of_others(...)``.

    Returns:
        ``[intention, answer]`` for each dialogue. An intention that no model was asked for has no
        tokens.

    Raises:
        ValueError: a dialogue is malformed or does not end with a user message (its index is
            named), the prefill is not a text, or the analyst gives too few or too many intentions;
            before any answer is generated. And the errors of the backend.
    """
    check_queries(dialogues, prefill)
    first = replace(first, stage=FIRST.stage)
    if analyst is None and isinstance(backend, LocalBackend):
        asked = [first_stage(dialogue) for dialogue in dialogues]
        return backend.reply_twice(asked, STAGE_2, first, decoding, prefill)
    if analyst is not None:  # a rehearsal has a stand-in for it
        analyst = getattr(backend, "stand_in", analyst)
    intentions = (analyst or partial(analyse, backend))(dialogues, first)
    if len(intentions) != len(dialogues):
        raise ValueError(
            f"the analyst gave {len(intentions)} intentions for {len(dialogues)} dialogues."
        )
    longer = [
        second_stage(d, answer_of(i.text)) for d, i in zip(dialogues, intentions, strict=True)
    ]
    answers = backend.reply(longer, decoding, prefill)
    return [list(stages) for stages in zip(intentions, answers, strict=True)]


def analyse(
    backend: Backend, dialogues: Sequence[Dialogue], decoding: Decoding = FIRST
) -> list[Reply]:
    """The intention of each dialogue's last message, in the model's words: the first stage alone.

    Raises:
        ValueError: as in ``two_stage``. And the errors of the backend.
    """
    check_queries(dialogues)
    decoding = replace(decoding, stage=FIRST.stage)
    return backend.reply([first_stage(dialogue) for dialogue in dialogues], decoding)


def check_queries(dialogues: Sequence[Dialogue], prefill: str = "") -> None:
    """Raise a ValueError that names the first dialogue that does not end with a query, or says that
    the prefill is not a text."""
    check_open(dialogues)
    for i, dialogue in enumerate(dialogues):
        if dialogue[-1]["role"] != "user":
            raise ValueError(f"dialogue {i} ends with a {dialogue[-1]['role']} message, no query.")
    if not isinstance(prefill, str):
        raise ValueError(f"the prefill is not a text: {prefill!r:.60}")
