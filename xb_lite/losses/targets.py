"""Controls of the separate term: what states are to leave in place of the boundary-safe centroid.

A claim about the centroid needs one: would any other direction have done? Used by the recipe field
``separate_target`` and in 06_convergence.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def random_direction(dim: int, seed: int, layer: int) -> Float[Tensor, " dim"]:
    """A random unit vector, the same in all steps of a run; in fp32 on the CPU.

    Args:
        dim: of the hidden states.
        seed: the run's.
        layer: the target layer, which has a direction of its own.

    Example:
        >>> round(random_direction(64, seed=0, layer=9).norm().item(), 4)
        1.0
    """
    dice = torch.Generator().manual_seed(1000 * seed + layer)
    direction = torch.randn(dim, generator=dice)
    return direction / direction.norm()


def random_centroid(
    centroid: Float[Tensor, "pair dim"], seed: int, layer: int
) -> Float[Tensor, "pair dim"]:
    """``random_direction`` in place of each centroid, as long as it was.

    It points to the side of the centroid: away from it the term, a ReLU, would be 0 from the first
    step on. In high dimensions it is nearly orthogonal to the states all the same, so that the term
    begins small.
    """
    direction = random_direction(centroid.shape[-1], seed, layer).to(centroid)
    sign = torch.sign(centroid @ direction)[:, None]
    return sign * direction * centroid.norm(dim=-1, keepdim=True)
