"""Checks of the exercises of 04_xboundary_loss.

Each takes an answer, or the reader's function, and gives a ``Verdict``. Functions are called on
small made-up tensors in which no two mistakes give the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.functional import normalize

from xb_lite.exercises.verdicts import Verdict, attempted, called, in_place, judged
from xb_lite.losses.terms import centroid as right_centroid
from xb_lite.losses.terms import erase


def gradient(answer: object) -> Verdict:
    """The gradient of the erase term by the state, at (3, 4) with the reference (1, 0)."""
    reference, state = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])
    size, direction = state.norm(), state / state.norm()
    value = direction @ reference
    across = reference - value * direction
    right = across / size
    return judged(
        answer,
        right,
        [
            (-right, "This is the direction of descent; the gradient points the other way."),
            (across, "The direction is right. The factor 1 / |h| is missing."),
            (across / size**2, "One factor 1 / |h| too many: the unit vector has it already."),
            (reference / size, "The part along the state is still in it: subtract cos times ĥ."),
            (
                (reference - value * state) / size,
                "The second ĥ is a unit vector: you subtracted cos times h, which is 5 long.",
            ),
            (
                direction - value * reference,
                "This is the gradient by the reference, which is fixed; take the one by the state.",
            ),
            (value, "This is the cosine itself; its gradient has two entries."),
            (right.norm(), "This is the size of the gradient; it has two entries."),
            (
                torch.zeros(2),
                "Zero would be right at the reference itself, or where the cosine is negative; "
                "here it is 0.6.",
            ),
        ],
        praise="It is orthogonal to (3, 4): 3 · 0.128 - 4 · 0.096 = 0.",
    )


def centroid(answer: Callable | object) -> Verdict:
    """The reader's ``centroid(states, mask)``, of ``[token, dim]`` and ``[token]``."""
    dice = torch.Generator().manual_seed(4)
    states = torch.randn(5, 3, generator=dice) * torch.tensor([[1.0], [4.0], [0.5], [2.0], [3.0]])
    mask = torch.tensor([True, True, False, True, False])
    kept, directions = states[mask], normalize(states, dim=-1)
    right = right_centroid(states[None], mask[None])[0]
    summed = directions[mask].sum(dim=0)
    wrong = [
        (kept.mean(dim=0), "Long states weigh more here: make each a unit vector first."),
        (
            normalize(kept.mean(dim=0), dim=0),
            "You averaged first and normalised after; it is the other way round, and only once.",
        ),
        (normalize(right, dim=0), "The mean of unit vectors stays as short as it is."),
        (directions.mean(dim=0), "The mask is not used: all five tokens are in this mean."),
        (summed / len(mask), "You divide by all tokens; divide by those in the mask."),
        (summed, "This is the sum; divide by the number of tokens in the mask."),
        (directions[~mask].mean(dim=0), "The mask is inverted."),
        (
            normalize(states, dim=0)[mask].mean(dim=0),
            "You normalised along the tokens; a state's entries lie along the last dimension.",
        ),
        (directions[mask], "These are the unit vectors; their mean over the tokens is wanted."),
        (directions[mask].mean(dim=1), "This mean is over the entries; take it over the tokens."),
    ]
    before = states.clone()
    found = called(answer, states, mask)
    if in_place(found, (states, before)):
        return Verdict(False, "Your function changed the states that it was given (in place).")
    return judged(
        found, right, wrong, praise=f"Its length is {right.norm():.2f}, since the tokens disagree."
    )


def meeting_step(answer: Callable | object) -> Verdict:
    """After how many steps retain weighs as much as erase: schedule 150, retain weight 15. A
    function is called with other values first, with which no two mistakes give the same."""
    if not callable(answer):
        return _meeting_step(answer, 150, 15)
    other = _meeting_step(answer(170, 3), 170, 3)
    return _meeting_step(answer(150, 15), 150, 15) if other.right else other


def _meeting_step(found: object, schedule: int, weight: int) -> Verdict:
    right = schedule / (1 + weight)
    whole = (
        "The two are equal between two steps and not at one: with 150 and 15, retain weighs less "
        "at step 9 and more at step 10. A fraction is fine."
    )
    return judged(
        found,
        right,
        [
            (math.floor(right), whole),
            (math.ceil(right), whole),
            (1 / (1 + weight), "This is the progress p; the step is p times the schedule."),
            (schedule / weight, "Nearly: p · 15 = 1 - p, and the p on the right counts as well."),
            (schedule / 2, "That holds for a retain weight of 1."),
            (
                2 * schedule / (2 + weight),
                "Here retain weighs as much as erase and separate together, 2 (1 - p); compare it "
                "with erase alone.",
            ),
            (schedule * weight / (1 + weight), "This is 1 - p; you solved for the other side."),
            (10 * right, "α multiplies both sides, so it cancels."),
            (right / 10, "α multiplies both sides, so it cancels."),
            (schedule / (1 - weight), "A sign is lost: p · 15 + p = 1."),
            (150 / 16, "That is right for 150 and 15 alone: compute it from the arguments."),
        ],
        praise="From step 10 of 100 on, retain has the larger weight.",
    )


def final_angles(answer: object) -> Verdict:
    """Angles in degrees after 400 steps from (1, 0.1): with the ReLU, and without."""
    ends = []
    for relu in (True, False):
        state, reference = torch.tensor([1.0, 0.1]), torch.tensor([1.0, 0.0])
        for _ in range(400):
            state = state.detach().requires_grad_()
            value = normalize(state, dim=0) @ reference
            (slope,) = grad(torch.relu(value) if relu else value, state)
            state = state - 0.1 * slope
        ends.append(torch.rad2deg(torch.atan2(state[1], state[0])).abs().item())
    with_relu, plain = ends
    found = answer
    if isinstance(answer, list | tuple) and len(answer) == 2 and not all(map(attempted, answer)):
        found = ...
    return judged(
        found,
        [with_relu, plain],
        [
            ([plain, with_relu], "The two are swapped: first with the ReLU."),
            (
                [90.0, plain],
                "Not exactly 90: a step has a size, and the last one lands beyond. Run it.",
            ),
            (
                torch.deg2rad(torch.tensor(ends)),
                "These are radians; degrees are wanted.",
            ),
            (
                torch.cos(torch.deg2rad(torch.tensor(ends))),
                "These are cosines; angles are wanted.",
            ),
            (
                [0.0, 0.0],
                "Nothing moved: you started at the reference itself. Start at (1, 0.1).",
            ),
            ([plain, plain], "Both are without the ReLU."),
            ([with_relu, with_relu], "Both are with the ReLU."),
        ],
        praise="Without the ReLU the old direction is not erased but reversed.",
        tolerance=5e-3,
    )


def erase_term(answer: Callable | object) -> Verdict:
    """The reader's ``erase_term(states, reference, mask)``, a scalar of a padded batch."""
    dice = torch.Generator().manual_seed(11)
    reference = torch.randn(2, 4, 3, generator=dice)
    states = 2 * reference + 2 * torch.randn(2, 4, 3, generator=dice)
    states[0, 1] = -states[0, 1]
    mask = torch.tensor([[True, True, True, True], [True, False, True, False]])
    right = erase(states, reference)[mask].mean()
    cosines = (normalize(states, dim=-1) * normalize(reference, dim=-1)).sum(dim=-1)
    values = torch.relu(cosines)
    wrong = [
        (cosines[mask].mean(), "The ReLU is missing: a negative cosine still counts here."),
        (
            torch.relu(states * reference).sum(dim=-1)[mask].mean(),
            "Make both unit vectors, and take the ReLU of the sum, not of each product.",
        ),
        (
            torch.relu((states * reference).sum(dim=-1))[mask].mean(),
            "This is the dot product; for the cosine both must be unit vectors.",
        ),
        (
            torch.relu((states * normalize(reference, dim=-1)).sum(dim=-1))[mask].mean(),
            "Only the reference is a unit vector; make the state one as well.",
        ),
        (values.mean(), "The mask is not used: padding is in this mean."),
        ((values * mask).mean(), "Padding is zeroed and still counted: divide by the mask's sum."),
        (values[mask].sum(), "This is the sum over the tokens; the mean is wanted."),
        (values[~mask].mean(), "The mask is inverted."),
        (
            ((values * mask).sum(dim=1) / mask.sum(dim=1)).mean(),
            "This is a mean of the rows' means, in which tokens of short rows weigh more.",
        ),
        (
            torch.relu((normalize(states, dim=1) * normalize(reference, dim=1)).sum(dim=-1))[
                mask
            ].mean(),
            "You normalised along the tokens; a state's entries lie along the last dimension.",
        ),
        (-right, "The sign is wrong: the term falls as a state turns away, so it is +cos."),
        (values, "One value per token; the mean over the mask is wanted."),
    ]
    if not callable(answer):
        return judged(answer, right, wrong)
    untouched, mask_before = states.clone(), mask.clone()
    answer(untouched, reference.clone(), mask)
    if not torch.equal(untouched, states) or not torch.equal(mask, mask_before):
        return Verdict(False, "Your function changes its input in place; compute with a copy.")
    given = states.clone().requires_grad_()
    found = answer(given, reference.clone(), mask)
    verdict = judged(
        found,
        right,
        wrong,
        praise="Value and gradient are right, and stay so where padding is infinite.",
    )
    if not verdict.right:
        return verdict
    gradient = _gradient(found, given)
    if gradient is None:
        return Verdict(
            False, "The value is right, but it is detached: no gradient reaches the states."
        )
    fault = _fault_of_gradient(gradient, states, normalize(reference, dim=-1), mask)
    if fault:
        return Verdict(False, fault)
    padded, padded_reference = states.clone(), reference.clone()
    padded[1, 3] = padded_reference[1, 3] = torch.inf
    padded.requires_grad_()
    found = answer(padded, padded_reference, mask)
    if not torch.isfinite(found):
        return Verdict(
            False,
            "Right, until padding holds an infinity: 0 · ∞ is NaN. Select tokens instead of "
            "multiplying by the mask.",
        )
    gradient = _gradient(found, padded)
    if gradient is None or not torch.isfinite(gradient).all():
        return Verdict(
            False,
            "The value is right, but where padding is infinite its gradient is NaN: a selection at "
            "the end, by index or torch.where, hides the value, and 0 · ∞ comes back in the "
            "backward pass. Select the tokens first, and compute with those alone.",
        )
    return verdict


def _gradient(found: object, given: Tensor) -> Tensor | None:
    """The gradient of what the reader's function gave by its input; None where there is none."""
    if not (isinstance(found, Tensor) and found.requires_grad):
        return None
    return grad(found.sum(), given, allow_unused=True)[0]


def _fault_of_gradient(
    gradient: Tensor, states: Tensor, direction: Tensor, mask: Tensor
) -> str | None:
    """What is wrong with the gradient of a term of the right value, the mean of ReLU(ĥ · direction)
    over the tokens of the mask; None if nothing."""
    leaf = states.clone().requires_grad_()
    values = torch.relu((normalize(leaf, dim=-1) * direction).sum(dim=-1))[mask]
    (right,) = grad(values.mean(), leaf)
    # With the length detached, the part along the state is still in it.
    toward = direction / states.norm(dim=-1, keepdim=True) / len(values)
    positive = mask & ((states * direction).sum(dim=-1) > 0)
    without_length = torch.where(positive[..., None], toward, 0)
    if torch.allclose(gradient, right, rtol=1e-4, atol=1e-6):
        return None
    if torch.allclose(gradient, without_length, rtol=1e-4, atol=1e-6):
        return (
            "The value is right and the gradient is not: the length of the state is detached, so "
            "the part along the state is still in it."
        )
    return (
        "The value is right and the gradient is not: it is that of another function. Is a part of "
        "the product detached?"
    )


def as_described(answer: Callable | object) -> Verdict:
    """The reader's ``as_described(states, kept, response, counted, boundary)``, a scalar: harmful
    responses leave the mean of the centroids of the boundary-safe items."""
    dice = torch.Generator().manual_seed(5)
    drift = torch.tensor([1.0, 0.6, 0.3])
    states = torch.randn(4, 5, 3, generator=dice) + drift
    states[1, 4] = -drift  # a response token on the far side, for the ReLU
    kept = torch.randn(4, 5, 3, generator=dice) + drift
    response = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 1, 0]])
    counted = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    response, counted = response.bool(), counted.bool()
    boundary = torch.tensor([True, False, True, False])
    own = right_centroid(kept, counted)
    common = own[boundary].mean(dim=0)
    directions = normalize(states, dim=-1)
    values = torch.relu(directions @ common)
    over = response & ~boundary[:, None]
    right = values[over].mean()

    def leaving(mu: Tensor, mask: Tensor = over) -> Tensor:
        return torch.relu((directions * mu).sum(dim=-1))[mask].mean()

    tokens = normalize(kept, dim=-1)[counted & boundary[:, None]]
    wrong = [
        (leaving(own[:, None]), "Each row leaves its own pair's centroid; take the common one."),
        (
            leaving(common, response & boundary[:, None]),
            "These are the refusals of boundary-safe "
            "rows, as in the variant `refusal`; the harmful responses are wanted.",
        ),
        (leaving(common, response), "Boundary-safe responses are in the mean; leave them out."),
        (leaving(own.mean(dim=0)), "Your centroid is of all items; take the boundary-safe ones."),
        (
            leaving(own[~boundary].mean(dim=0)),
            "Your centroid is of the benign items: the selection by `boundary` is inverted.",
        ),
        (
            leaving(tokens.mean(dim=0)),
            "You averaged over all tokens at once, so long items weigh "
            "more; average within each item, then over items.",
        ),
        (leaving(normalize(common, dim=0)), "The centroid is not made a unit vector again."),
        ((directions @ common)[over].mean(), "The ReLU is missing."),
        (torch.relu(states @ common)[over].mean(), "The states are not unit vectors yet."),
        (values[over].sum(), "This is the sum over the tokens; the mean is wanted."),
        ((values * over).mean(), "You divide by all positions; divide by the tokens in the mask."),
        (
            leaving(common, ~boundary[:, None].expand_as(over)),
            "Prompt and padding are in the mean; take the response alone.",
        ),
    ]
    if not callable(answer):
        return judged(answer, right, wrong)
    given = states.clone().requires_grad_()
    found = answer(given, kept.clone(), response, counted, boundary)
    verdict = judged(
        found,
        right,
        wrong,
        praise="The formula of `refusal`, over other tokens and from another centroid: a different "
        "objective.",
    )
    if not verdict.right:
        return verdict
    gradient = _gradient(found, given)
    if gradient is None:
        return Verdict(
            False, "The value is right, but it is detached: no gradient reaches the states."
        )
    fault = _fault_of_gradient(gradient, states, common, over)
    return Verdict(False, fault) if fault else verdict
