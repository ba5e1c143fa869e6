"""All attacks by the names that commands have for them, ready for a subject."""

from __future__ import annotations

import os
from dataclasses import fields

from xb_lite.attacks.chunks import ChunkBoundary
from xb_lite.attacks.directions import Ablation, Subtraction
from xb_lite.attacks.embeddings import EmbeddingPrefix
from xb_lite.attacks.prefills import Openings, OwnBeginning
from xb_lite.attacks.run import Attack
from xb_lite.attacks.sampling import BestOfN
from xb_lite.attacks.suffix import TokenSuffix
from xb_lite.attacks.tuning import FineTuning
from xb_lite.attacks.turns import AdaptiveTurns
from xb_lite.guard.stream import Guard
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


def attack_named(
    name: str,
    *,
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
        ValueError: there is no such attack or field of its budget, or what it needs is missing.
    """
    settings = settings_of(name, **budget)
    given = dict(zip(NEEDED, (talker, guess, guard), strict=True))
    needed = {need: given[need] for need in needs_of(name)}
    if missing := [need for need, value in needed.items() if value is None]:
        raise ValueError(f"the attack {name} needs a {missing[0]}.")
    return ATTACKS[name][0](**settings, **needed)


def settings_of(name: str, **budget: object) -> dict[str, object]:
    """The fields of an attack with changes of its budget, but for what it needs besides: they can
    be checked before anything is loaded.

    Raises:
        ValueError: there is no such attack or field of its budget.
    """
    if name not in ATTACKS:
        raise ValueError(f"there is no attack {name!r}; there are {', '.join(ATTACKS)}.")
    kind, said = ATTACKS[name]
    own = {field.name: field.default for field in fields(kind) if field.name not in NEEDED}
    if wrong := sorted(budget.keys() - own.keys()):
        raise ValueError(
            f"the budget of {name} has no {wrong[0]}; it has {', '.join(sorted(own))}."
        )
    return {**own, **said, **budget}


def needs_of(name: str) -> list[str]:
    """What besides its budget an attack needs: ``talker``, ``guess`` or ``guard``."""
    return [field.name for field in fields(ATTACKS[name][0]) if field.name in NEEDED]
