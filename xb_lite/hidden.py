"""Hidden states of dialogues, at the layers asked for and nothing above them.

A hidden state is the residual stream after a decoder layer. Layers count from 0: layer ``l`` is
``hidden_states[l + 1]`` of transformers, whose entry 0 is the embeddings. (Of the last layer
transformers returns the state after the final norm; here it is the residual stream before it.)
Derived in 01_hidden_states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xb_lite.dialogues import Dialogue, encode, padding_id

# What to keep of one layer's output: [batch, token, dim] and [batch, token] masks to a list, an
# item a dialogue.
Pool = Callable[[Float[Tensor, "batch token dim"], Bool[Tensor, "batch token"]], list[Tensor]]


def hidden_states(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Sequence[Dialogue],
    layers: Sequence[int],
    pool: str | None = "last",
    over: str = "prompt",
    *,
    max_length: int | None = None,
    sink_tokens: int = 1,
    batch_tokens: int = 2048,
) -> Float[Tensor, "dialogue layer dim"] | list[Float[Tensor, "token layer dim"]]:
    """Hidden states of ``dialogues`` after the decoder layers ``layers``, as fp32 on the CPU.

    Computes in the precision of the surrounding context (``with precision.autocast(): ...``).
    Dialogues are sorted by length, padded on the right and batched; neither the tokenizer's padding
    side nor what shares a batch changes the result by more than rounding, of
    which there is more under products in bf16 than in fp32.

    Args:
        layers: decoder layers, counted from 0; the result has them in this order.
        pool: ``"last"`` (the last token of the mask), ``"mean"`` (over the mask), or None for every
            token of the mask.
        over: the mask: ``"prompt"``, ``"response"``, ``"all"`` or ``"sink"`` (see ``Encoding``). Of
            the prompt here without what a template puts behind the last response (of ChatML a
            newline): it is given to nobody, and has seen the response.
        max_length, sink_tokens: as in ``dialogues.encode``.
        batch_tokens: tokens in a batch, padding included; one longer dialogue is a batch alone.

    Returns:
        ``[dialogue, layer, dim]``, or with ``pool=None`` a list of ``[token, layer, dim]``, in the
        order of ``dialogues``.

    Raises:
        ValueError: a layer that the model does not have, an unknown ``pool`` or ``over``, a
            malformed dialogue or one with no token in the mask (its index is given); all before
            the first forward pass.
    """
    pools = {"last": _last, "mean": _mean, None: _each}
    if pool not in pools:
        raise ValueError(f"pool is 'last', 'mean' or None, not {pool!r}.")
    layers = list(layers)
    _check_layers(model, layers)
    rows = [
        _encode(tokenizer, i, dialogue, over, max_length, sink_tokens)
        for i, dialogue in enumerate(dialogues)
    ]
    states: list[Tensor | None] = [None] * len(rows)
    with tqdm(total=len(rows), desc="hidden states", delay=2, leave=False) as bar:
        for batch in batches_by_length([len(ids) for ids, _ in rows], batch_tokens):
            ids, attention, mask = _pad([rows[i] for i in batch], padding_id(tokenizer))
            kept = _run(model, ids, attention, mask, layers, pools[pool])
            for i, *of_layers in zip(batch, *kept, strict=True):
                states[i] = torch.stack(of_layers, dim=-2)
            bar.update(len(batch))
    if pool is None:
        return states
    return torch.stack(states) if states else torch.empty(0, len(layers), model.config.hidden_size)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a transformers or peft model, whatever its family calls them.

    Raises:
        ValueError: the model has no list of ``num_hidden_layers`` modules.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {count} decoder layers.")


def layers_at(model: nn.Module, shares: Sequence[float]) -> list[int]:
    """The decoder layers (from 0) that end at these shares of the depth.

    Raises:
        ValueError: a share is not above 0 and at most 1.

    Example:
        Of 30 layers, ``layers_at(model, [1 / 3, 2 / 3, 1])`` are ``[9, 19, 29]``.
    """
    if wrong := [share for share in shares if not 0 < share <= 1]:
        raise ValueError(f"a share of the depth is above 0 and at most 1, not {wrong[0]}.")
    depth = len(decoder_layers(model))
    return [max(1, round(share * depth)) - 1 for share in shares]


@contextmanager
def watch_layers(
    model: nn.Module, layers: Sequence[int], see: Callable[[int, Tensor], None], stop: bool = True
) -> Iterator[None]:
    """Calls ``see(layer, state)``, state ``[batch, token, dim]``, in a forward pass within.

    The states still carry their gradient. With ``stop`` the pass ends after the highest of
    ``layers``: nothing above it is computed, and what follows it in the ``with`` block is skipped.

    Raises:
        ValueError: the model has no such layer, or there are none.
    """
    _check_layers(model, list(layers))
    modules, last = decoder_layers(model), max(layers) if stop else None
    handles = [
        modules[layer].register_forward_hook(partial(_show, see, layer, layer == last))
        for layer in set(layers)
    ]
    try:
        yield
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _show(
    see: Callable[[int, Tensor], None],
    layer: int,
    last: bool,
    _module: nn.Module,
    _inputs: tuple,
    output: Tensor | tuple,
) -> None:
    """What a layer's hook does."""
    # Some families and versions return a tuple, others the tensor, of which [0] would silently be
    # the first item of the batch.
    see(layer, output[0] if isinstance(output, tuple) else output)
    if last:
        raise _Enough


@contextmanager
def lowest_layers(model: nn.Module, count: int) -> Iterator[None]:
    """The model without its decoder layers from ``count`` on, which are back in place after.

    For training, where a pass cannot be left half way: other processes wait for its end.
    """
    layers, config = decoder_layers(model), model.config.get_text_config()
    above, whole = list(layers[count:]), config.num_hidden_layers
    del layers[count:]
    config.num_hidden_layers = count
    try:
        yield
    finally:
        layers.extend(above)
        config.num_hidden_layers = whole


@contextmanager
def without_head(model: PreTrainedModel) -> Iterator[None]:
    """The model without its output embeddings, which are back in place after: of a small model
    they are as large as several layers, and a loss of hidden states reads none."""
    head = model.get_output_embeddings()
    model.set_output_embeddings(nn.Identity())
    try:
        yield
    finally:
        model.set_output_embeddings(head)


class _Enough(Exception):  # noqa: N818 - a signal, not an error
    """Raised in a forward pass to end it after the highest layer that was asked for."""


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first, at most ``batch_tokens`` with padding.

    Longest first, so that a batch too large for the memory fails at once and not at the end.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _check_layers(model: nn.Module, layers: list[int]) -> None:
    count = len(decoder_layers(model))
    wrong = [layer for layer in layers if not 0 <= layer < count]
    if wrong or not layers:
        raise ValueError(
            f"layers {wrong or '[]'} asked for; this model has decoder layers 0 to {count - 1} "
            "(layer l is hidden_states[l + 1] of transformers)."
        )


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    index: int,
    dialogue: Dialogue,
    over: str,
    max_length: int | None,
    sink_tokens: int,
) -> tuple[Int[Tensor, " token"], Bool[Tensor, " token"]]:
    """The tokens, and which of them count."""
    try:
        encoding = encode(tokenizer, dialogue, max_length, sink_tokens)
        mask = encoding.mask(over)
        if over == "prompt" and dialogue[-1]["role"] == "assistant" and encoding.response.any():
            mask = mask & (torch.arange(len(mask)) < encoding.response.nonzero().max())
        if not mask.any():
            raise ValueError(f"it has no {over} token")
    except ValueError as error:
        raise ValueError(f"dialogue {index}: {error}") from error
    return encoding.input_ids, mask


def _pad(
    rows: list[tuple[Tensor, Tensor]], pad_id: int
) -> tuple[Int[Tensor, "batch token"], Int[Tensor, "batch token"], Bool[Tensor, "batch token"]]:
    # On the right, always: positions then count from 0 and no real token sees a padded one.
    def pad(rows: Sequence[Tensor], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids, masks = zip(*rows, strict=True)
    return pad(ids, pad_id), pad([torch.ones_like(row) for row in ids], 0), pad(masks, False)


@torch.no_grad()
def _run(
    model: nn.Module, ids: Tensor, attention: Tensor, mask: Tensor, layers: list[int], pool: Pool
) -> list[list[Tensor]]:
    device = next(model.parameters()).device
    kept: dict[int, list[Tensor]] = {}

    def see(layer: int, state: Tensor) -> None:
        with torch.autocast(device.type, enabled=False):
            kept[layer] = [row.cpu() for row in pool(state.float(), mask.to(state.device))]

    with watch_layers(model, layers, see):
        model(input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False)
    return [kept[layer] for layer in layers]


def _last(state: Tensor, mask: Tensor) -> list[Tensor]:
    place = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, place, -1).amax(dim=1)
    return list(state[torch.arange(len(state), device=mask.device), last])


def _mean(state: Tensor, mask: Tensor) -> list[Tensor]:
    # Not a product with the mask: that would copy the whole state, and 0 * inf is not 0.
    return [row[chosen].mean(dim=0) for row, chosen in zip(state, mask, strict=True)]


def _each(state: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[chosen] for row, chosen in zip(state, mask, strict=True)]
