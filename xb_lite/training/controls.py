"""Controls of the boundary-safe data: the same run with its labels shuffled, or of one style alone.

If a defense is as good with half of the labels wrong, it was not the labels that made it so; if it
is as good for all prompts after those of one style, it did not learn the style. ``draw_pairs``
applies what a recipe says (``label_noise``, ``boundary_style``); a random direction in place of the
centroid, ``separate_target``, is in ``losses.targets``. Used in the report on X-Boundary and
circuit breakers.
"""

from __future__ import annotations

import random

from xb_lite.dialogues import Dialogue
from xb_lite.recipes import Budget, Recipe, RecipeError
from xb_lite.training.sets import REFUSAL, Sets

REFUSED = [{"role": "assistant", "content": REFUSAL}]
FIRST_EDITION = 1  # of the book's prompts, in which none has a style


def controlled(recipe: Recipe, sets: Sets, seed: int) -> Sets:
    """The sets as a recipe's controls have them; the same ones where it has none.

    Raises:
        RecipeError: no boundary-safe prompt has the style, or there are fewer harmful requests than
            labels to shuffle.
    """
    if recipe.boundary_style:
        sets = of_style(sets, recipe.boundary_style)
    if recipe.label_noise:
        sets = with_label_noise(sets, recipe.label_noise, seed)
    return sets


def of_style(sets: Sets, style: str) -> Sets:
    """Boundary-safe prompts of one style alone; all else as it was. Errors as of ``controlled``."""
    kept = [e for e in sets.examples if e.kind != "boundary-safe" or e.style == style]
    if not any(example.kind == "boundary-safe" for example in kept):
        raise RecipeError(f"boundary_style is {style!r}, but no boundary-safe prompt has it.")
    return Sets(kept)


def with_label_noise(sets: Sets, share: float, seed: int) -> Sets:
    """A ``share`` of the boundary-safe prompts, drawn by ``seed``, as harmful requests, and as many
    harmful requests as boundary-safe prompts. Errors as of ``controlled``.

    Each takes its responses along. To a harmful request there is one answer, after the prefill,
    which then is both the plain and the prefilled one. Dialogues of several turns stay.
    """
    safe, harmful = sets["compliant"], sets["harmful"]
    count = round(share * len(safe))
    if count > len(harmful):
        raise RecipeError(
            f"label_noise is {share}, which is {count} boundary-safe prompts, but there are "
            f"{len(harmful)} harmful requests to change places with."
        )
    dice = random.Random(f"label_noise {seed}")  # what is drawn of the sets has dice of its own
    to_harmful = set(map(_prompt, dice.sample(safe, count)))
    to_safe = set(map(_prompt, dice.sample(harmful, count)))

    def moved(name: str, prompts: set[str]) -> list[Dialogue]:
        return [dialogue for dialogue in sets[name] if _prompt(dialogue) in prompts]

    def left(name: str, prompts: set[str]) -> list[Dialogue]:
        return [dialogue for dialogue in sets[name] if _prompt(dialogue) not in prompts]

    begun = {_prompt(d): d for d in moved("compliant_prefilled", to_harmful)}
    answered = [begun.get(_prompt(d), d) for d in moved("compliant", to_harmful)]
    answers = moved("harmful", to_safe)
    refusals = [[*dialogue[:-1], *REFUSED] for dialogue in answers]
    return sets.having(
        harmful=[*left("harmful", to_safe), *answered],
        refused=[*left("refused", to_safe), *moved("over_refused", to_harmful)],
        **{
            name: [*left(name, to_harmful), *(answers if "compliant" in name else refusals)]
            for which in ("compliant", "over_refused")
            for name in (which, f"{which}_prefilled")
        },
    )


def check_edition(recipe: Budget, edition: int) -> None:
    """Raise a RecipeError where the prompts of an edition cannot have a recipe's controls."""
    if isinstance(recipe, Recipe) and recipe.boundary_style and edition == FIRST_EDITION:
        raise RecipeError(
            f"boundary_style is {recipe.boundary_style!r}, but prompts of the first edition have "
            "no style: learn from the second (--edition 2)."
        )


def _prompt(dialogue: Dialogue) -> str:
    return dialogue[-2]["content"]
