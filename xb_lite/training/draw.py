"""All pairs of a run, drawn before it begins: each an item to change and an item to retain.

As in the official code every item to change (harmful, to erase, or boundary-safe, to separate)
comes with one to retain; that of a boundary-safe item is the same prompt with its compliant answer,
whose centroid it is to leave. A run that was stopped, or that runs on more processes, sees the
same pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import count

import torch
from transformers import PreTrainedTokenizerBase

from xb_lite.dialogues import Dialogue, encode
from xb_lite.losses.batch import Pair, Row
from xb_lite.recipes import Baseline, Recipe, RecipeError
from xb_lite.training.controls import controlled
from xb_lite.training.sets import GROUPS, Sets

WINDOW = 8  # steps whose pairs are sorted by length together


def draw_pairs(
    recipe: Recipe | Baseline, sets: Sets, tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[Pair]:
    """All pairs of a run, ``recipe.pairs`` for each of its steps, in the order of training.

    Each set is gone through in a new random order again and again. Pairs of like length share a
    step, drawn from a window of steps. As near as can be, every step has the recipe's share of
    boundary-safe items, and every window that of refusals. A recipe's controls are applied to the
    sets before (``controls``).

    Raises:
        RecipeError: a set that the recipe needs is empty, or cannot have its controls, or there is
            not a refusal for each answer to a boundary-safe prompt.
        ValueError: an item cannot be encoded.
    """
    # Exactly: 0.3 of the 1 - 0.7 that are left must be all of them.
    boundary_share, refusal_share, multi_turn_share, prefilled_share = (
        Fraction(getattr(recipe, f"{name}_share")).limit_denominator(10**6)
        for name in ("boundary", "refusal", "multi_turn", "prefilled")
    )
    defense = isinstance(recipe, Recipe)
    separates = defense and recipe.separate in ("as_coded", "refusal")
    sink_tokens = recipe.sink_tokens if defense else 0
    if defense:
        sets = controlled(recipe, sets, seed)
    erases, single = 1 - boundary_share, 1 - multi_turn_share
    others = erases - refusal_share
    chatting = others * multi_turn_share
    for field, needed, name in (
        ("boundary_share", erases * single > 0 or boundary_share * (not separates) > 0, "harmful"),
        ("boundary_share", boundary_share > 0, "compliant"),
        ("refusal_share", refusal_share > 0, "refused"),
        ("refusal_share", others * single > 0, "benign"),
        ("multi_turn_share", multi_turn_share * erases > 0, "harmful_dialogues"),
        ("multi_turn_share", chatting > 0, "benign_dialogues"),
        ("prefilled_share", prefilled_share * boundary_share > 0, "compliant_prefilled"),
        ("prefilled_share", prefilled_share * others * single > 0, "benign_prefilled"),
        ("prefilled_share", prefilled_share * chatting > 0, "benign_dialogues_prefilled"),
    ):
        if needed and not sets[name]:
            raise RecipeError(f"{field} is {getattr(recipe, field)}, but the {name} set is empty.")
    if separates and boundary_share:
        _check_refusals(recipe, sets, ("", "_prefilled") if prefilled_share else ("",))
    unused = [
        name
        for name in GROUPS
        if ("_prefilled" in name and not prefilled_share)
        or ("dialogues" in name and not multi_turn_share)
    ]
    sets = sets.having(**dict.fromkeys(unused, ()))
    dice = random.Random(seed)
    numbers = iter(range(1 << 62))

    def rows(dialogues: Sequence[Dialogue]) -> list[Row]:
        return [
            Row(next(numbers), encode(tokenizer, d, recipe.max_tokens, sink_tokens), d)
            for d in dialogues
        ]

    def in_step(*names: str) -> Iterator[tuple[Row, ...]]:
        """A row of each set at once, by the recipe's share of their prefilled ones."""
        plain, prefilled = (
            again_and_again(
                list(zip(*(rows(sets[name + which]) for name in names), strict=True)),
                dice,
            )
            for which in ("", "_prefilled")
        )
        return (next(prefilled if _due(n, prefilled_share) else plain) for n in count())

    harmful, refused = (again_and_again(rows(sets[name]), dice) for name in ("harmful", "refused"))
    attacks = again_and_again(list(map(_last_exchange, rows(sets["harmful_dialogues"]))), dice)
    benign, chats = in_step("benign"), in_step("benign_dialogues")
    boundary = in_step("over_refused", "compliant") if separates else in_step("compliant")
    pairs = []
    for number in range(recipe.steps * recipe.pairs):
        if _due(number, boundary_share):
            *over_refused, keep = next(boundary)
            change = over_refused[0] if separates else next(harmful)
            pairs.append(Pair(change, keep, True, separates))
        else:
            # Of what is left beside the boundary-safe items, which bring their own.
            share = refusal_share / (1 - boundary_share)
            erased = number - int(number * boundary_share)
            if _due(erased, share):
                keep = next(refused)
            else:
                kept = erased - int(erased * share)
                (keep,) = next(chats if _due(kept, multi_turn_share) else benign)
            change = next(attacks if _due(erased, multi_turn_share) else harmful)
            pairs.append(Pair(change, keep, False, False))
    return list(_by_length(pairs, recipe.pairs, dice))


def _check_refusals(recipe: Recipe, sets: Sets, parts: Sequence[str]) -> None:
    for part in parts:
        answers, refusals = len(sets[f"compliant{part}"]), len(sets[f"over_refused{part}"])
        if answers != refusals:
            raise RecipeError(
                f"separate is {recipe.separate}, but the compliant{part} set has {answers} "
                f"dialogues and over_refused{part} {refusals}: each answer needs the refusal of "
                "its prompt."
            )


def _last_exchange(row: Row) -> Row:
    """With masks of the last turn and its response alone: what came before was not harmful."""
    said = row.encoding.response.int()
    before = torch.cat([said.new_zeros(1), said[:-1]])
    responses, ended = (said > before).sum(), (said < before).cumsum(dim=0)
    late = ended >= responses - 1
    masks = {name: row.encoding.mask(name) & late for name in ("prompt", "response")}
    return replace(row, encoding=replace(row.encoding, **masks))


def _due(number: int, share: Fraction) -> bool:
    """True for a share of all numbers, evenly spread."""
    return int((number + 1) * share) > int(number * share)


def again_and_again(rows: list, dice: random.Random) -> Iterator:
    """All rows in a new random order, without end; nothing of no rows."""
    while rows:
        yield from dice.sample(rows, len(rows))


def _by_length(pairs: list[Pair], step: int, dice: random.Random) -> Iterator[Pair]:
    """Boundary-safe pairs keep their places, so that every step has its share of them."""
    for begin in range(0, len(pairs), WINDOW * step):
        window = pairs[begin : begin + WINDOW * step]
        by_kind = {
            kind: iter(sorted((p for p in window if p.boundary == kind), key=len))
            for kind in (True, False)
        }
        sorted_window = [next(by_kind[pair.boundary]) for pair in window]
        steps = [sorted_window[i : i + step] for i in range(0, len(window), step)]
        dice.shuffle(steps)
        for pairs_of_step in steps:
            yield from pairs_of_step
