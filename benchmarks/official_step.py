"""One training step's loss as the official X-Boundary code computes it, restated plainly.

Restates ``src/lorra_x_boundary.py::compute_loss`` and the batches of ``src/xb_train_dataset.py`` of
the code published with the paper (arXiv 2502.09990). Written from a description of what they do; it
has none of their code and shares none with ``xb_lite``. The tests use it as an oracle and the
benchmark as the slow side: it is slow on purpose. Every row is padded to the full window, the
reference and the defended model each see two batches, every layer's states are kept, and so are the
logits that nothing reads.

One departure: the official code stops with an error where the progress is 0 or from 1 on; here the
progress stays within 0 and 1.

Target layers are entries of ``hidden_states``: entry 0 is the embeddings and entry ``l`` the output
of block ``l - 1``, so the official 10 and 20 are the decoder layers 9 and 19 counted from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor


@dataclass(frozen=True)
class Item:
    """Token ids of one item: what to erase or separate, and what to retain in the same step.

    Of a boundary item, ``retain`` is the same prompt with its compliant answer.
    """

    request: Sequence[int]
    response: Sequence[int]
    retain: Sequence[int]
    boundary: bool = False


class Step(NamedTuple):
    """The loss, its two terms before their weights, and the two shares that sum to ``xb``."""

    loss: Tensor
    retain: Tensor
    xb: Tensor
    erase: Tensor
    separate: Tensor


def official_step(
    model: PeftModel,
    items: Sequence[Item],
    step: int,
    *,
    targets: Sequence[int] = (10, 20),
    schedule: float = 300,
    alpha: float = 10.0,
    window: int = 512,
    pad_id: int = 0,
) -> Step:
    """The loss of ``items``; its gradient reaches the adapter of ``model``.

    Args:
        model: with its adapter, and cut to ``max(targets) + 1`` layers.
        step: forward passes so far, this one included: the first is 1.
        targets: entries of ``hidden_states``.
        schedule: the official ``loss_coeff``.
        window: tokens of a request and of a response; ``retain`` has twice as many.
    """
    device = next(model.parameters()).device
    request_ids, request_mask = batch([i.request for i in items], window, pad_id, "left", device)
    response_ids, response_mask = batch(
        [i.response for i in items], window, pad_id, "right", device
    )
    retain_ids, retain_mask = batch([i.retain for i in items], 2 * window, pad_id, "left", device)
    xb_ids = torch.cat([request_ids, response_ids], dim=1)
    xb_mask = torch.cat([request_mask, response_mask], dim=1)
    request_only = torch.cat([request_mask, torch.zeros_like(response_mask)], dim=1)

    with torch.no_grad(), model.disable_adapter():
        retain_reference = all_states(model, retain_ids, retain_mask)
        xb_reference = all_states(model, xb_ids, xb_mask)
    retain_defended = all_states(model, retain_ids, retain_mask)
    xb_defended = all_states(model, xb_ids, xb_mask)

    # Padding is zeroed and still counted, and so are the embeddings, which no adapter changes.
    kept = retain_mask[None, :, :, None].to(retain_defended.dtype)
    difference = kept * retain_defended - kept * retain_reference
    retain = difference.norm(dim=-1, dtype=torch.float32).nanmean()

    erase = separate = torch.zeros((), device=device)
    count = 0
    for i, item in enumerate(items):
        mask = (request_only if item.boundary else xb_mask)[i].float()
        for entry in targets:
            now = unit(xb_defended[entry, i])
            if item.boundary:
                real = retain_mask[i].bool()
                # Of unit vectors, so shorter than 1; it is not made a unit vector again.
                centre = unit(retain_reference[entry, i])[real].mean(dim=0)
                separate = separate + (mask * torch.relu((now * centre).sum(dim=-1))).sum()
            else:
                before = unit(xb_reference[entry, i])
                erase = erase + (mask * torch.relu((now * before).sum(dim=-1))).sum()
            count += mask.sum()
    # One mean over the tokens of both kinds: the longer kind weighs more.
    erase, separate = erase / count, separate / count
    xb = erase + separate

    progress = min(max(step / schedule, 0.0), 1.0)
    loss = alpha * progress * retain + alpha * (1 - progress) * xb
    return Step(loss, retain, xb, erase, separate)


def batch(
    texts: Sequence[Sequence[int]], length: int, pad_id: int, padding: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, all ``length`` long; of a longer text the left end is kept."""
    ids, mask = [], []
    for text in texts:
        real = list(text)[:length]
        missing = length - len(real)
        if padding == "left":
            ids.append([pad_id] * missing + real)
            mask.append([0] * missing + [1] * len(real))
        else:
            ids.append(real + [pad_id] * missing)
            mask.append([1] * len(real) + [0] * missing)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def all_states(model: PeftModel, ids: Tensor, mask: Tensor) -> Tensor:
    """All hidden states, ``[entry, batch, token, dim]``; the last is after the final norm."""
    return torch.stack(
        model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    )


def unit(states: Tensor) -> Tensor:
    states = states.float()
    return states / states.norm(dim=-1, keepdim=True)
