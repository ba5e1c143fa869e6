"""All attacks by the names that commands have for them, ready for a subject."""

from __future__ import annotations

import os
from dataclasses import fields

from xb_lite.attacks.chunks import ChunkBoundary
from xb_lite.attacks.directions import Ablation, Subtraction
from xb_lite.attacks.embeddings import EmbeddingPrefix
from xb_lite.attacks.prefills import Openings, OwnBeginning
from xb_lite.attacks.running import Attack
from xb_lite.attacks.sampling import BestOfN
from xb_lite.attacks.suffix import TokenSuffix
from xb_lite.attacks.tuning import FineTuning
from xb_lite.attacks.turns import AdaptiveTurns
from xb_lite.guard.stream import Guard
from xb_lite.recipes.kinds import is_number, is_whole
from xb_lite.replies.types import Backend

# By name: the attack, and what of its budget the name says.
ATTACKS: dict[str, tuple[type, dict[str, object]]] = {
    "openings": (Openings, {}),
    "own-beginning": (OwnBeginning, {}),
    "best-of-n": (BestOfN, {}),
    "embedding-prefix": (EmbeddingPrefix, {}),
    "ablated-direction": (Ablation, {}),
    "token-suffix": (TokenSuffix, {}),
    "benign-tuning": (FineTuning, {}),
    "refusals-tuned-away": (FineTuning, {"harmful": True, "dialogues": 5}),
    "subtracted-guess": (Subtraction, {}),
    "adaptive-turns": (AdaptiveTurns, {}),
    "chunk-boundary": (ChunkBoundary, {}),
}
NEEDED = ("talker", "guess", "guard")
ZERO = ("seed",)  # a whole number that may be 0


def attack_named(
    name: str,
    *,
    placebo: bool = False,
    talker: Backend | None = None,
    guess: str | os.PathLike[str] | None = None,
    guard: Guard | None = None,
    **budget: object,
) -> Attack:
    """An attack by its name in ``ATTACKS``, with changes of its budget.

    Args:
        talker: an undefended model, for ``own-beginning``.
        guess: the folder of another defense's adapter, for ``subtracted-guess``.
        guard: for ``chunk-boundary``.

    Raises:
        ValueError: there is no such attack or field of its budget, a value cannot be, or what it
            needs is missing.
    """
    settings = settings_of(name, **budget)
    given = dict(zip(NEEDED, (talker, guess, guard), strict=True))
    needed = {need: given[need] for need in needs_of(name)}
    if missing := [need for need, value in needed.items() if value is None]:
        raise ValueError(f"the attack {name} needs a {missing[0]}.")
    return ATTACKS[name][0](**settings, **needed, placebo=placebo)


def settings_of(name: str, **budget: object) -> dict[str, object]:
    """The fields of an attack with changes of its budget, but for what it needs besides: they can
    be checked before anything is loaded.

    Raises:
        ValueError: there is no such attack or field of its budget, or a value cannot be.
    """
    if name not in ATTACKS:
        raise ValueError(f"there is no attack {name!r}; there are {', '.join(ATTACKS)}.")
    kind, said = ATTACKS[name]
    besides = ("placebo", *NEEDED)
    own = {field.name: field.default for field in fields(kind) if field.name not in besides}
    if wrong := sorted(budget.keys() - own.keys()):
        raise ValueError(
            f"the budget of {name} has no {wrong[0]}; it has {', '.join(sorted(own))}."
        )
    for field, value in budget.items():
        if must := _must_be(value, own[field], least=0 if field in ZERO else 1):
            raise ValueError(f"{field} of {name} is {value!r:.60}; it must be {must}.")
    return {**own, **said, **budget}


def _must_be(value: object, usual: object, least: int) -> str | None:
    """What a value of a budget must be, if it is not that; ``least`` is of whole numbers."""
    if isinstance(usual, tuple):
        wrong = not isinstance(value, tuple) or not value
        wrong = wrong or any(_must_be(each, usual[0], 0) for each in value)
        return "a list like the usual one, with something in it" if wrong else None
    if isinstance(usual, bool | str):
        kind = "true or false" if isinstance(usual, bool) else "a text"
        return None if isinstance(value, type(usual)) else kind
    if isinstance(usual, float):
        return None if is_number(value, least=0) else "a number, 0 or more"
    return None if is_whole(value, least) else f"a whole number, at least {least}"


def needs_of(name: str) -> list[str]:
    """What besides its budget an attack needs: ``talker``, ``guess`` or ``guard``."""
    return [field.name for field in fields(ATTACKS[name][0]) if field.name in NEEDED]
