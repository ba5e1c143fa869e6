"""Checks of chapter 2: directions, rates at a threshold, controls, areas, splits and ablation.

The page's states and scores are NumPy arrays. A function written for tensors is as good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from xb_lite.exercises.verdicts import NOT_YET, Verdict, attempted, called, judged, unattempted

# Five made-up states [item, dim] with their kinds: small enough to be checked by hand.
STATES = torch.tensor(
    [[4.0, 1.0, 0.0], [2.0, 3.0, 6.0], [3.0, 5.0, 3.0], [0.0, 1.0, 1.0], [2.0, -1.0, 3.0]]
)
HARMFUL = torch.tensor([True, True, True, False, False])

# Nine scores with a tie between the kinds at the threshold; no two of the mistakes below agree.
SCORES = torch.tensor([2.0, -0.7, 3.0, -1.0, 1.0, 1.0, -2.0, 0.8, -0.5])
IS_HARMFUL = torch.tensor([True, True, True, True, True, False, False, False, False])
THRESHOLD = 1.0

# Of each prompt the number of its pair; the second half is in another order than the first.
PAIRS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 3, 5, 0, 6, 1, 4, 2])


def harm_direction(answer: object) -> Verdict:
    """From the mean of the boundary-safe states to that of the harmful ones, at unit length."""
    to, origin = STATES[HARMFUL].mean(dim=0), STATES[~HARMFUL].mean(dim=0)
    gap = to - origin
    right = gap / gap.norm()
    units = STATES / STATES.norm(dim=1, keepdim=True)
    of_units = units[HARMFUL].mean(dim=0) - units[~HARMFUL].mean(dim=0)
    of_sums = STATES[HARMFUL].sum(dim=0) - STATES[~HARMFUL].sum(dim=0)
    return _function(
        answer,
        (STATES, HARMFUL),
        right,
        [
            (-right, "The sign: this points from harmful to boundary-safe."),
            (gap, "The direction is right; divide it by its norm, so that its length is 1."),
            (gap / gap.norm() ** 2, "Divide by the norm, not by its square."),
            (
                gap / gap.abs().sum(),
                "You divided by the sum of absolute values; use the square root of the sum of "
                "squares.",
            ),
            (
                to / to.norm(),
                "This is where harmful states are, seen from the origin; subtract the other mean.",
            ),
            (
                of_units / of_units.norm(),
                "You normalised each state before averaging; average first, normalise once.",
            ),
            (
                of_sums / of_sums.norm(),
                "These are sums and not means: with more harmful items they weigh more.",
            ),
            (
                STATES[HARMFUL].mean(dim=1),
                "You averaged over the dimensions; average over the items, axis=0.",
            ),
            (right[None], "One axis too many: the result has shape [dim]."),
        ],
        praise="One unit vector that points from boundary-safe to harmful.",
    )


def rates_at(answer: object) -> Verdict:
    """The share of harmful and the share of boundary-safe prompts at or above a threshold."""
    refused = SCORES >= THRESHOLD
    one, other = refused[IS_HARMFUL].double().mean(), refused[~IS_HARMFUL].double().mean()
    strict = SCORES > THRESHOLD
    below = ~refused
    both = [refused & IS_HARMFUL, refused & ~IS_HARMFUL]
    return _function(
        answer,
        (SCORES, IS_HARMFUL, THRESHOLD),
        torch.stack([one, other]),
        [
            ((other, one), "The two are swapped: first harmful, then boundary-safe."),
            (
                [strict[side].double().mean() for side in (IS_HARMFUL, ~IS_HARMFUL)],
                "An item exactly at the threshold is refused, too: use >=.",
            ),
            (
                [below[side].double().mean() for side in (IS_HARMFUL, ~IS_HARMFUL)],
                "You counted the prompts that are let through.",
            ),
            (
                [side.double().mean() for side in both],
                "You divided by all prompts; divide each count by the number of its own kind.",
            ),
            (
                [side.sum() / refused.sum() for side in both],
                "You divided by the refused prompts; divide by all prompts of the kind.",
            ),
            (
                [side.sum() for side in both],
                "These are counts; divide each by the number of prompts of its kind.",
            ),
            (
                (one, 1 - other),
                "The second is the share of boundary-safe prompts that pass; count the refused.",
            ),
        ],
        praise="Each threshold gives such a pair, and the ROC curve is all of them.",
    )


def equal_length(answer: object) -> Verdict:
    """Noise scaled to the length of a direction."""
    noise = torch.tensor([0.6, -1.2, 0.4, 2.0])
    direction = torch.tensor([3.0, 0.0, -4.0, 12.0])
    wanted, length = direction.norm(), noise.norm()
    right = noise / length * wanted
    along = (noise @ direction) / wanted**2 * direction
    return _function(
        answer,
        (noise, direction),
        right,
        [
            (noise / length, "This has length 1; multiply it by the norm of the direction."),
            (
                noise * wanted,
                "The noise has a length of its own: divide by it first.",
            ),
            (noise / length * wanted**2, "You multiplied by the squared norm; take the root."),
            (
                noise / noise.abs().sum() * direction.abs().sum(),
                "You matched the sums of absolute values; match the norms.",
            ),
            (
                noise / noise.abs().max() * direction.abs().max(),
                "You matched the largest entries; match the norms.",
            ),
            (
                noise * direction,
                "This multiplies entry by entry, so it has the shape of the direction in it.",
            ),
            (along, "This is the part of the noise along the direction, which is no control."),
            (
                direction,
                "This is the direction itself; the control points elsewhere, at its length.",
            ),
        ],
        praise="The same length, another direction: what differs is only where it points.",
    )


def area_under_curve(answer: object) -> Verdict:
    """The share of harmful and other prompts, one of each, in which the harmful scores higher."""
    one, other = SCORES[IS_HARMFUL], SCORES[~IS_HARMFUL]
    gap = (one[:, None] - other).double()
    wins, ties = (gap > 0).double(), (gap == 0).double()
    right = (wins + ties / 2).mean()
    twins = gap.diagonal()
    balanced = ((one > 0).double().mean() + (other <= 0).double().mean()) / 2
    return _function(
        answer,
        (SCORES, IS_HARMFUL),
        right,
        [
            (1 - right, "Turned round: count where the harmful prompt scores higher."),
            (wins.mean(), "A tie counts one half; you counted it as 0."),
            ((wins + ties).mean(), "A tie counts one half; you counted it as 1."),
            (
                (wins + ties / 2).sum(),
                "This is the number of such comparisons; divide by how many there are.",
            ),
            (
                ((twins > 0).double() + (twins == 0).double() / 2).mean(),
                "You compared each prompt with one other; compare every harmful with every other.",
            ),
            (
                balanced,
                "This is the accuracy at the threshold 0; the area needs no threshold.",
            ),
            (gap.mean(), "This is the difference of the mean scores; count comparisons instead."),
        ],
        praise="The area under the curve, without drawing the curve.",
    )


def folds(answer: object) -> Verdict:
    """Which of five folds each prompt is in; twins are in the same one."""
    if not attempted(answer):
        return unattempted(answer)
    return _either(answer, (PAIRS,), lambda found, _: _dealt(found))


def _dealt(found: object) -> Verdict:
    """Of the folds of ``PAIRS``: whether twins share one, and whether there are five alike."""
    if not attempted(found):
        return unattempted(found)
    try:
        fold = torch.as_tensor(found).cpu()
    except (TypeError, ValueError, RuntimeError):
        return Verdict(False, f"This is a {type(found).__name__}; one fold a prompt is wanted.")
    if fold.shape != PAIRS.shape:
        return Verdict(
            False, f"The shape is {list(fold.shape)}; one fold a prompt is {list(PAIRS.shape)}."
        )
    if fold.dtype == torch.bool:
        return Verdict(False, "True and false make two folds; number the folds from 0 to 4.")
    used = set(fold.tolist())
    if used <= {float(i) for i in range(5)} and len(used) == 1:
        return Verdict(False, "All prompts are in one fold, so nothing is left to train on.")
    if len(used) > 5:
        return Verdict(False, "That is one fold a pair; five folds hold several pairs each.")
    half = len(PAIRS) // 2
    if not torch.equal(fold[:half][PAIRS[half:]], fold[half:]):
        return Verdict(
            False,
            "Some twins are in different folds: the probe can learn a topic from one twin and "
            "be tested on the other. Let the fold depend on the pair alone.",
        )
    if used != {0, 1, 2, 3, 4}:
        return Verdict(False, f"The folds are {sorted(used)}; use 0, 1, 2, 3 and 4.")
    sizes = torch.bincount(fold.long())
    if sizes.max() > 2 * sizes.min():
        return Verdict(False, "The folds differ a lot in size; deal the pairs out in turn.")
    return Verdict(True, "Twins stay together, whichever kind they are.")


def ablated(answer: object) -> Verdict:
    """States without their part along a direction, which need not have unit length."""
    direction = torch.tensor([2.0, 0.0, -1.0])
    unit = direction / direction.norm()
    part = (STATES @ unit)[:, None] * unit
    raw = (STATES @ direction)[:, None] * direction
    mean = STATES.mean(dim=0)
    centred = STATES - ((STATES - mean) @ unit)[:, None] * unit
    right = STATES - part
    return _function(
        answer,
        (STATES, direction),
        right,
        [
            (STATES - raw, "The direction has length √5: divide it by its norm first."),
            (
                STATES - raw / direction.norm(),
                "You divided by the norm once; the direction occurs twice in the formula.",
            ),
            (STATES + part, "The sign: take the part away, do not add it."),
            (part, "This is the part along the direction; subtract it from the states."),
            (STATES - 2 * part, "This mirrors the states; take the part away once."),
            (STATES - unit, "This shifts all states by the same vector, as steering does."),
            (
                STATES - part.mean(dim=0),
                "You took away the mean part; each state has a part of its own.",
            ),
            (
                centred,
                "You centred the states first: what is left is the mean's part, not zero.",
            ),
            (
                right / right.norm(dim=1, keepdim=True),
                "Leave the length of the states as it comes out; do not normalise them.",
            ),
        ],
        praise="No state has any part along the direction now.",
    )


def _function(
    answer: object,
    arguments: tuple[Tensor | float, ...],
    right: Tensor,
    mistakes: Iterable[tuple[object, str]],
    *,
    praise: str,
) -> Verdict:
    """Judge what the reader's function gives for ``arguments``, and that it leaves them alone."""
    if not isinstance(answer, Callable):
        return judged(answer, right, mistakes, praise=praise)
    listed = [
        (torch.stack([torch.as_tensor(part, dtype=torch.float64) for part in wrong]), words)
        if isinstance(wrong, (tuple, list))
        else (wrong, words)
        for wrong, words in mistakes
    ]

    def said(found: object, given: Sequence[object]) -> Verdict:
        for before, after in zip(arguments, given, strict=True):
            if isinstance(before, Tensor) and not torch.equal(before, torch.as_tensor(after)):
                return Verdict(
                    False, "You changed the arguments in place; the caller still needs them."
                )
        if not attempted(found):
            return unattempted(found)
        if isinstance(found, (tuple, list)):
            if not found or not all(map(attempted, found)):
                return Verdict(None, NOT_YET)
            try:
                found = torch.stack([torch.as_tensor(part, dtype=torch.float64) for part in found])
            except (TypeError, ValueError, RuntimeError):
                return Verdict(False, "These are not numbers or arrays of one shape.")
        return judged(found, right, listed, praise=praise)

    return _either(answer, arguments, said)


def _either(
    answer: Callable,
    arguments: tuple[Tensor | float, ...],
    said: Callable[[object, Sequence[object]], Verdict],
) -> Verdict:
    """What is said of the reader's function, which may be written for arrays, as the page's are, or
    for tensors: it is right if it is so for one of them.

    Raises:
        Exception: what it raises for arrays, if it raises for tensors as well.
    """
    arrays = [value.numpy().copy() if isinstance(value, Tensor) else value for value in arguments]
    tensors = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
    verdicts, raised = [], []
    for given in (arrays, tensors):
        try:
            verdicts.append(said(called(answer, *given), given))
        except Exception as trouble:
            raised.append(trouble)
            continue
        if verdicts[-1].right is not False:
            return verdicts[-1]
    if not verdicts:
        raise raised[0]
    return verdicts[0]
