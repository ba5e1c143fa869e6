"""Steering: a direction added to the hidden states, which trains nothing.

Source: Refusal is mediated by a single direction (arXiv 2406.11717)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xb_lite.dialogues import as_dialogue
from xb_lite.hidden import decoder_layers, hidden_states


def refusal_direction(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    harmful: Sequence[str],
    harmless: Sequence[str],
    layer: int,
) -> Float[Tensor, " dim"]:
    """Where harmful requests lie, seen from harmless ones: the difference of their mean states.

    Of the last token of the prompt, after decoder ``layer`` (from 0); not normalised, in fp32 on
    the CPU. Source: Refusal is mediated by a single direction (arXiv 2406.11717).

    Raises:
        ValueError: there are no prompts of a kind, or there is no such layer.
    """
    if not harmful or not harmless:
        raise ValueError("a direction needs harmful and harmless prompts.")
    by_kind = (
        hidden_states(model, tokenizer, [as_dialogue(prompt) for prompt in prompts], [layer])
        for prompts in (harmful, harmless)
    )
    to, origin = (states[:, 0].double().mean(dim=0) for states in by_kind)
    return (to - origin).float()


@contextmanager
def steered(
    model: nn.Module, layer: int, vector: Float[Tensor, " dim"], strength: float = 1.0
) -> Iterator[None]:
    """Adds ``strength * vector`` to the output of decoder ``layer`` (from 0), at every token.

    With ``refusal_direction`` of the same layer and strength 1 as in arXiv 2406.11717, where a
    model then refuses harmless requests.

    Raises:
        ValueError: there is no such layer, or the vector has another length.
    """
    layers, dim = decoder_layers(model), model.config.get_text_config().hidden_size
    if not 0 <= layer < len(layers) or vector.shape != (dim,):
        raise ValueError(
            f"layer {layer} and a vector of shape {tuple(vector.shape)}; this model has layers 0 "
            f"to {len(layers) - 1}, of {dim} dimensions."
        )

    def add(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, tuple):  # by family and version
            return (output[0] + strength * vector.to(output[0]), *output[1:])
        return output + strength * vector.to(output)

    handle = layers[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
