"""The terms of X-Boundary's loss, as functions of one layer's hidden states.

All take fp32 states of the defended model and of the reference model (adapter off) after the same
decoder layer, ``[batch, token, dim]``, and a mask of the tokens that count, ``[batch, token]``. The
terms of several layers are averaged. Where the paper's description and its official code part, both
are here, by name. Derived in 04_xboundary_loss.

Sources: X-Boundary (arXiv 2502.09990) and its code, ``src/lorra_x_boundary.py``; the erase and the
retain term are those of circuit breakers (arXiv 2406.04313).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from xb_lite.recipes.kinds import RETAIN

State = Float[Tensor, "batch token dim"]
Mask = Bool[Tensor, "batch token"]
Scalar = Float[Tensor, ""]


def erase(state: State, reference: State) -> Float[Tensor, "batch token"]:
    """ReLU of the cosine between a token's state and what it was: 1 unchanged, 0 erased.

    At the reference itself the cosine is at its maximum, so its gradient is zero.
    """
    return torch.relu((normalize(state, dim=-1) * normalize(reference, dim=-1)).sum(dim=-1))


def separate(state: State, centroid: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch token"]:
    """ReLU of the dot product of a token's direction and the ``centroid`` it is to leave.

    Which tokens leave which centroid is what the variants differ in (``SEPARATE``):

    - ``as_coded``: the prompt tokens of a boundary-safe item, tags included, away from the centroid
      of that prompt with its compliant answer. What the official code does.
    - ``as_described``: the response tokens of harmful items, away from the common centroid of
      boundary-safe items (of a run's first 128, see ``step.CENTROID_ROWS``). What the paper's
      abstract says, as we read it.
    - ``refusal``: the tokens of a refusal to a boundary-safe prompt, away from the centroid of that
      prompt with its compliant answer. What the official code's data suggest was meant.

    ``as_coded`` and ``refusal`` differ in the mask alone; for ``as_described`` expand the one
    centroid to the batch.
    """
    return torch.relu((normalize(state, dim=-1) * centroid[:, None]).sum(dim=-1))


def centroid(reference: State, mask: Mask) -> Float[Tensor, "batch dim"]:
    """Mean direction of each item's tokens: of unit vectors, and so itself shorter than 1.

    Official code: not normalised again, so the separate term is largest for items whose tokens all
    point one way.

    Raises:
        ValueError: an item has no token in the mask.
    """
    if not mask.any(dim=-1).all():
        raise ValueError("an item has no token in the mask, so it has no centroid.")
    directions = torch.where(mask[..., None], normalize(reference, dim=-1), 0)
    return directions.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def retain(state: State, reference: State, kind: str = "relative") -> Float[Tensor, "batch token"]:
    """How far each token's state is from what it was: the L2 norm of the difference (not squared).

    ``"absolute"`` as in the official code; ``"relative"`` divides by the reference's norm, so that
    a layer of long states weighs no more than one of short ones.

    Raises:
        ValueError: ``kind`` is neither.
    """
    if kind not in RETAIN:
        raise ValueError(f"retain is {' or '.join(map(repr, RETAIN))}, not {kind!r}.")
    distance = (state - reference).norm(dim=-1)
    return distance if kind == "absolute" else distance / reference.norm(dim=-1)


def masked_mean(
    values: Float[Tensor, "batch token"], mask: Mask, count: int | float | Tensor | None = None
) -> Scalar:
    """Sum over the tokens of the mask by ``count``; by their number if not given, and 0 over none.

    ``count`` is for means over more than this batch: over all processes, over accumulated batches,
    or over padded positions as in the official retain term.
    """
    if count is None:
        count = mask.sum().clamp(min=1)
    # where(), not a product: a value of padding may be infinite, and 0 * inf is not 0.
    return torch.where(mask, values, 0).sum() / count


class Coefficients(NamedTuple):
    """Weights of the two sides of the loss at one step."""

    retain: float
    xb: float


def coefficients(step: int, schedule: int | float, alpha: int | float = 10) -> Coefficients:
    """The schedule: from erasing and separating to retaining, linear in the optimizer step.

    With progress ``p = step / schedule``, the retain term weighs ``alpha * p`` and the erase and
    separate terms ``alpha * (1 - p)``. ``p`` stays within 0 and 1, and a term of weight 0 is no
    special case; the official code, which counts forward passes, crashes at ``p = 0`` and from
    ``p = 1`` on.

    Args:
        step: optimizer steps, the first is 1. Accumulated batches are one step.
        schedule: steps to progress 1; the official ``loss_coeff`` (300 or 600, for 180 steps).
        alpha: the official ``lorra_alpha``.

    Raises:
        ValueError: ``schedule`` is not positive.
    """
    if schedule <= 0:
        raise ValueError(f"the schedule is {schedule} steps long; it must be more than 0.")
    progress = min(max(step / schedule, 0.0), 1.0)
    return Coefficients(alpha * progress, alpha * (1 - progress))


class Terms(NamedTuple):
    """The three terms of one step, each a mean."""

    retain: Scalar
    erase: Scalar
    separate: Scalar


def total(
    weights: Coefficients,
    terms: Terms,
    retain_weight: int | float = 1,
    separate_weight: int | float | None = 1,
) -> Scalar:
    """The loss of one step.

    In the official code erase and separate share one mean over the tokens of both, in which the few
    and short boundary-safe prompts have about one part in fifty. ``separate_weight`` None is for
    terms that were divided so, by the tokens of both; they weigh 1.
    """
    separate_weight = 1 if separate_weight is None else separate_weight
    change = terms.erase + separate_weight * terms.separate
    return weights.retain * retain_weight * terms.retain + weights.xb * change
