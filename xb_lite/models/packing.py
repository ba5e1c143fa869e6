"""Rows of unlike length in one pass without padding: laid end to end, each attending to itself.

As transformers' ``DataCollatorWithFlattening`` does for flash attention, which CPUs do not have.
Plain attention of transformers gives the same states for rows laid so, as it sees where positions
begin anew; within ``by_row`` nothing is computed across rows. Of other kinds (with sinks, softcaps,
ALiBi, or state spaces beside them) that is not so: ``relative_error`` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from xb_lite.hidden import watch_layers

NAME = "xb_lite_by_row"  # among transformers' attention implementations
IN_FP32 = 384  # tokens up to which a CPU is faster at fused attention in fp32 than in bf16


def end_to_end(batch: dict[str, Tensor], shared: int = 0) -> dict[str, object]:
    """What a model of transformers is given for ``batch``, as one row without padding.

    Args:
        batch: ``input_ids`` and ``attention_mask`` ``[row, token]``, padded on the right.
        shared: so many first tokens are the same in all rows, as of a template's system message:
            they stand there once, and every row attends to them.
    """
    real = batch["attention_mask"].bool()
    positions = torch.arange(real.shape[1], device=real.device).expand_as(real)
    own = real.clone()
    own[1:, :shared] = False
    rows = own.sum(dim=1).tolist()
    return {
        "input_ids": batch["input_ids"][own][None],
        "position_ids": positions[own][None],
        "row_lengths": [shared, rows[0] - shared, *rows[1:]] if shared else rows,
        "shared": shared,
    }


def as_rows(
    state: Float[Tensor, "one all dim"], row_lengths: list[int], width: int
) -> Float[Tensor, "row token dim"]:
    """The rows of a state apart again, padded on the right with zeros to ``width`` tokens."""
    places = [torch.arange(n) + row * width for row, n in enumerate(row_lengths)]
    rows = state.new_zeros(len(row_lengths) * width, state.shape[-1])
    # Not row by row, as pad_sequence does: on the way back each row would copy all of them.
    rows.index_copy_(0, torch.cat(places).to(state.device), state[0])
    return rows.view(len(row_lengths), width, -1)


@contextmanager
def by_row(model: PreTrainedModel) -> Iterator[None]:
    """Within, attention is computed row by row; around backward too, which may recompute it."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def relative_error(model: PreTrainedModel, layer: int) -> float:
    """How far the states after decoder ``layer`` of rows laid end to end are from those of the same
    rows padded: the norm of the difference by that of the state, median over the tokens of two
    short rows. ``model`` in evaluation mode.

    Raises:
        Exception: the model cannot be given rows laid so; of any kind, by family and version.
    """
    # Words, not the special tokens at the start of a vocabulary, between which rounding goes far.
    ids = (1000 + 97 * torch.arange(16).view(2, 8)) % model.get_input_embeddings().weight.shape[0]
    padded = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 3 + [0] * 5, [1] * 8])}
    padded = {name: value.to(model.device) for name, value in padded.items()}

    def states(inputs: dict[str, object]) -> Tensor:
        seen = {}
        with watch_layers(model, [layer], seen.__setitem__):
            model(**inputs, use_cache=False)
        return seen[layer].float()

    real = padded["attention_mask"].bool()
    wanted = states(padded)
    wanted = wanted[real.to(wanted.device)]
    with by_row(model):
        found = states(end_to_end(padded))[0]
    # By token: the first may be longer than all others together. The median: rounding may tip one.
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median())


def _attention(
    module, query, key, value, attention_mask, row_lengths=None, shared=0, **options
) -> tuple[Tensor, None]:
    """As of transformers' ``sdpa``, whose arguments these are; ``[batch, head, token, dim]``."""
    if row_lengths is None:  # a plain batch within ``by_row``
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows = list(zip(*(part.split(row_lengths, dim=2) for part in (query, key, value)), strict=True))
    if shared:
        first, *rest = rows
        keys, values = ([torch.cat([first[k], row[k]], dim=2) for row in rest] for k in (1, 2))
        rows = [first, *zip((row[0] for row in rest), keys, values, strict=True)]
    return torch.cat([_row(module, *row, **options) for row in rows], dim=1), None


def _row(module, query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    length, mask = key.shape[2], None  # without a mask it is causal
    before = length - query.shape[2]
    window = options.get("sliding_window") or length
    if before or length > window:
        mask = torch.ones(query.shape[2], length, dtype=torch.bool, device=query.device)
        mask = mask.tril(before).triu(1 + before - window)[None, None]
    if query.device.type != "cpu" or length > IN_FP32:
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    with torch.autocast("cpu", enabled=False):
        row = (part.float() for part in (query, key, value))
        return sdpa_attention_forward(module, *row, mask, **options)[0].to(query.dtype)


AttentionInterface.register(NAME, _attention)


def _mask(*args, attention_mask=None, **options) -> Tensor | None:
    """None for rows laid end to end, which need none: it would be of all tokens by all tokens."""
    if attention_mask is None:
        return None
    return sdpa_mask(*args, attention_mask=attention_mask, **options)


AttentionMaskInterface.register(NAME, _mask)
