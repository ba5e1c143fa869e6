"""Chapter 1: masks, layers, means, components and directions, checked on small made-up tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from xb_lite.exercises.verdicts import Verdict, called, in_place, judged

Answer = Callable | object


def last_prompt_token(answer: Answer) -> Verdict:
    """Position of the last true entry in each row of a mask ``[batch, token]``, as ``[batch]``."""
    # One row with a reply and padding behind the prompt, one with a reply in the middle of it.
    mask = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1, 1, 1, 0, 0]]).bool()
    position = torch.arange(mask.shape[1])
    right = torch.where(mask, position, -1).amax(dim=1)
    count = mask.sum(dim=1)
    width = mask.shape[1]
    return judged(
        called(answer, mask.clone()),
        right,
        [
            (
                torch.full_like(right, width - 1),
                "That is the last position of the row, which is padding here, not the prompt.",
            ),
            (torch.full_like(right, -1), "-1 is the last position of the row: padding here."),
            (
                count - 1,
                "You counted the true entries. The sink before the prompt is not in the mask, and "
                "a reply may stand between two parts of a prompt, so a count is not a position.",
            ),
            (
                count,
                "You counted the true entries. That works for one turn with one sink token; in the "
                "second row a reply stands in the middle of the prompt.",
            ),
            (mask.int().argmax(dim=1), "That is the first prompt token; the last one is wanted."),
            (right + 1, "Off by one: that is the first token after the prompt."),
            (
                torch.nn.functional.one_hot(right, width),
                "That is a mask; a position for each dialogue is wanted, [batch].",
            ),
            (
                right.max(),
                "That is one number for the whole batch; take the maximum over the tokens only.",
            ),
        ],
        praise="It holds with padding and with several turns.",
    )


def layer_output(answer: Answer) -> Verdict:
    """The state after decoder layer ``layer`` out of the tuple that transformers returns."""
    dice = torch.Generator().manual_seed(0)
    everything = tuple(torch.randn(2, 3, 4, generator=dice) for _ in range(10))
    from_the_top = "A negative index counts from the top of the model."
    # Two layers: each of them alone is also what some rule gives that does not hold for the other.
    for layer in (2, 6):
        right = everything[layer + 1]
        verdict = judged(
            called(answer, everything, layer),
            right,
            [
                (
                    everything[layer],
                    "One layer too low. Entry 0 holds the embeddings, so entry `layer` is what "
                    "goes into that layer.",
                ),
                (everything[layer + 2], "One layer too high."),
                (everything[-1], "That is the last entry, whichever layer is asked for."),
                *((everything[-layer - more], from_the_top) for more in range(3)),
                (
                    everything[len(everything) // 2],
                    "That is the middle entry, whichever layer is asked for.",
                ),
                (
                    right[0],
                    "The layer is right and the batch is gone: [0] takes the first dialogue. Keep "
                    "[batch, token, dim].",
                ),
                (
                    everything[layer][0],
                    "That is the first dialogue, one layer too low: entry 0 holds the embeddings.",
                ),
                (right[:, -1], "The layer is right, but only its last token is left."),
                (
                    right - everything[layer],
                    "That is what the layer adds. The hidden state is the whole sum up to there.",
                ),
            ],
            praise="Entry 0 holds the embeddings, so layer l is entry l + 1.",
        )
        if not verdict.right:
            break
    return verdict


def mean_state(answer: Answer) -> Verdict:
    """The mean over the tokens of a mask: ``[batch, token, dim]`` and mask to ``[batch, dim]``."""
    dice = torch.Generator().manual_seed(0)
    states = torch.randn(2, 6, 3, generator=dice)
    states[:, 0] = torch.tensor([400.0, -30.0, 5.0])  # the sink
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]]).bool()
    chosen = states * mask[..., None]
    count = mask.sum(dim=1, keepdim=True)
    with_sink = mask.clone()
    with_sink[:, 0] = True
    right = chosen.sum(dim=1) / count
    given, kept = states.clone(), mask.clone()
    found = called(answer, given, kept)
    if in_place(found, (given, states), (kept, mask)):
        return Verdict(
            False,
            "Your function changes the tensors that it was given (in place). A hook that does this "
            "changes the model's own states: work on a copy, or select instead of assigning.",
        )
    return judged(
        found,
        right,
        [
            (
                states.mean(dim=1),
                "The mask is not used: the sink and the padding are in your mean.",
            ),
            (
                chosen.mean(dim=1),
                "The sum is right, the divisor is not: divide by the number of tokens in the mask, "
                "not by the length of the row.",
            ),
            (chosen.sum(dim=1), "That is the sum; divide by the number of tokens in the mask."),
            (
                (states * ~mask[..., None]).sum(dim=1) / (~mask).sum(dim=1, keepdim=True),
                "The mask is upside down: these are the means of the tokens that it leaves out.",
            ),
            (
                (states * with_sink[..., None]).sum(dim=1) / with_sink.sum(dim=1, keepdim=True),
                "The first token is in your mean. The mask leaves it out, because it is the sink.",
            ),
            (
                states[mask].mean(dim=0),
                "That is one mean over all dialogues; one for each is wanted, [batch, dim].",
            ),
            (
                states.mean(dim=-1),
                "You averaged over the dimensions; average over the tokens.",
            ),
            (
                torch.nn.functional.normalize(right, dim=-1),
                "The direction is right; you also scaled it to length 1, which is not a mean.",
            ),
        ],
        praise="Sink and padding stay out, and the divisor is the number of chosen tokens.",
    )


def longest_ordinary(answer: Answer) -> Verdict:
    """In each layer, the largest norm as a multiple of the median: ``[token, layer]`` to
    ``[layer]``."""
    dice = torch.Generator().manual_seed(0)
    norms = torch.rand(9, 4, generator=dice) * torch.tensor([1.0, 5.0, 20.0, 80.0]) + 1
    norms[2, 1] = 60.0
    top, median = norms.max(dim=0).values, norms.median(dim=0).values
    right = top / median
    return judged(
        called(answer, norms.clone()),
        right,
        [
            (top, "That is the largest norm itself; divide it by the layer's median."),
            (
                top / norms.mean(dim=0),
                "You divided by the mean, which the largest norm itself pulls up; take the median.",
            ),
            (median / top, "The ratio is upside down."),
            (
                norms.max(dim=1).values / norms.median(dim=1).values,
                "You compared layers within a token; compare tokens within a layer (dim=0).",
            ),
            (
                top / norms.median(),
                "One median for all layers: the norms grow with depth, so take each layer's own.",
            ),
            (norms.max() / norms.median(), "One number for all layers; one for each is wanted."),
            (norms.argmax(dim=0), "That says which token it is, not how large its norm is."),
            (
                top / norms.min(dim=0).values,
                "You divided by the smallest norm; take the median.",
            ),
        ],
        praise="Each layer is compared with its own median.",
    )


def components(answer: Answer) -> Verdict:
    """Scores on the first two principal components: ``[item, dim]`` to ``[item, 2]``.

    The sign of a component is free, so both answer and solution are turned the same way first.
    """
    dice = torch.Generator().manual_seed(0)
    states = torch.randn(12, 5, generator=dice) * torch.tensor([1.0, 6.0, 3.0, 0.5, 0.2])
    states += torch.tensor([9.0, 2.0, -4.0, 7.0, 1.0])
    centred = states - states.mean(dim=0)
    u, size, axes = torch.linalg.svd(centred, full_matrices=False)
    raw_u, raw_size, raw_axes = torch.linalg.svd(states, full_matrices=False)
    scaled = centred / centred.std(dim=0)
    _, _, scaled_axes = torch.linalg.svd(scaled, full_matrices=False)
    whole = u * size
    found = called(answer, states.clone())
    mistakes = [
        (
            raw_u[:, :2] * raw_size[:2],
            "You did not subtract the mean. The first component then points at the mean, which all "
            "items share, instead of at what varies.",
        ),
        (
            states @ axes[:2].T,
            "The axes are right; subtract the mean from the states before you project them, too.",
        ),
        (
            whole[:, -2:],
            "These are the last two components, which vary least. (`eigh` sorts upwards.)",
        ),
        (whole[:, [-1, -2]], "These are the two components that vary least."),
        (whole[:, [1, 0]], "Right components, wrong order: the largest variance comes first."),
        (
            u[:, :2],
            "Every component has the same length now. Multiply by the singular values, or project "
            "the centred states on the axes.",
        ),
        (axes[:2], "These are the axes, [2, dim]; project the centred states on them."),
        (axes[:2].T, "These are the axes; project the centred states on them."),
        (
            scaled @ scaled_axes[:2].T,
            "You scaled every dimension to unit variance first. The chapter's picture does that "
            "before PCA; the function here gets states that are ready.",
        ),
        (whole, "These are all components; keep the first two."),
    ]
    right = whole[:, :2]
    with suppress(TypeError, ValueError, RuntimeError):  # no numbers, as ``judged`` will say
        found = _turned(found)
    return judged(
        found,
        _turned(right),
        [(_turned(wrong), words) for wrong, words in mistakes],
        praise="Centred, in order of variance; the sign of each is free.",
    )


def without_direction(answer: Answer) -> Verdict:
    """States ``[item, dim]`` with their part along ``direction`` ``[dim]`` taken away."""
    dice = torch.Generator().manual_seed(0)
    states = torch.randn(5, 4, generator=dice)
    direction = torch.tensor([1.0, -2.0, 0.5, 2.0])
    unit = direction / direction.norm()
    along = states @ unit
    right = states - along[:, None] * unit
    given, kept = states.clone(), direction.clone()
    found = called(answer, given, kept)
    if in_place(found, (given, states), (kept, direction)):
        return Verdict(
            False,
            "Your function changes the tensors that it was given (in place): write `x = x - y`, "
            "not `x -= y`.",
        )
    return judged(
        found,
        right,
        [
            (
                states - (states @ direction)[:, None] * direction,
                "The direction does not have length 1, and you multiplied by it twice: divide by "
                "its squared norm, or normalise it first.",
            ),
            (
                states - along[:, None] * direction,
                "Only one of the two factors is normalised; make the direction a unit vector once "
                "and use that twice.",
            ),
            (
                states + along[:, None] * unit,
                "The sign: you doubled the part along the direction; subtract it.",
            ),
            (
                states - 2 * along[:, None] * unit,
                "You subtracted the part twice, which mirrors the states; once takes it away.",
            ),
            (
                along[:, None] * unit,
                "That is the part along the direction; the rest of the state is wanted.",
            ),
            (
                along,
                "That is how far each state goes along the direction, [item]; take that part away "
                "from the state.",
            ),
            (
                states - unit,
                "You moved all states by the same vector. They differ along it as much as before; "
                "subtract from each its own part.",
            ),
            (
                states - direction,
                "You moved all states by the same vector. They differ along it as much as before; "
                "subtract from each its own part.",
            ),
            (
                states - states.mean(dim=0),
                "You subtracted the mean; the direction is still there.",
            ),
        ],
        praise="What is left is at a right angle to the direction.",
    )


def _turned(points: object) -> Tensor:
    """``points``, each column turned so that its entry of largest size is positive."""
    points = torch.as_tensor(points, dtype=torch.float64)
    if points.ndim != 2 or not len(points):
        return points
    largest = points.abs().argmax(dim=0, keepdim=True)
    return points * torch.sign(points.gather(0, largest))
