"""One training step's states and terms: which tokens of which layers meet in which term.

A batch is what ``pairs.collate`` makes: rows to change, and below them as many to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from xb_lite import losses
from xb_lite.hidden import watch_layers
from xb_lite.losses import Terms, masked_mean
from xb_lite.pairs import Pair, collate
from xb_lite.recipes import Recipe

Batch = dict[str, Tensor]
States = dict[int, Float[Tensor, "row token dim"]]

CENTROID_ROWS = 128  # boundary-safe items that the as_described variant's centroid is of at most


@dataclass(frozen=True)
class ReferenceStates:
    """What the reference model makes of a batch: states of the rows to change at the target layers
    and of those to keep at all layers, ``[pair, token, dim]`` by layer, and at the target layers
    the centroid that each row to change is to leave, ``[pair, dim]``."""

    change: States
    keep: States
    centroid: dict[int, Float[Tensor, "pair dim"]]


def forward(model: nn.Module, peft_model: PeftModel, batch: Batch, recipe: Recipe) -> States:
    """States after each decoder layer, in fp32. With the absolute retain term that of the last is
    after the model's final norm, as in the official code: a state the whole model does not have.

    Args:
        model: ``peft_model``, or what accelerate made of it.
    """
    states: States = {}

    def see(layer: int, state: Tensor) -> None:
        states[layer] = state.float()

    with watch_layers(peft_model, range(recipe.lora_layers), see, stop=False):
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
            logits_to_keep=1,  # the loss reads none, but the head asks for one
            output_hidden_states=recipe.retain == "absolute",
        )
    if recipe.retain == "absolute":
        states[recipe.lora_layers - 1] = output.hidden_states[-1].float()
    return states


class Reference:
    """The reference model's states: of the adapter switched off, or kept from an earlier step."""

    def __init__(self, recipe: Recipe, pairs: Sequence[Pair], pad_id: int) -> None:
        self.recipe, self.pad_id = recipe, pad_id
        self.boundary = [pair for pair in pairs if pair.boundary]
        self.kept: dict[int, Float[Tensor, "layer token dim"]] = {}
        self.common: dict[int, Float[Tensor, " dim"]] | None = None

    def of(self, model: nn.Module, peft_model: PeftModel, batch: Batch) -> ReferenceStates:
        """For one batch; arguments as in ``forward``."""
        if self.recipe.reference == "cache":
            change, keep = self._cached(model, peft_model, batch)
        else:
            states = self._off(model, peft_model, batch)
            pairs = len(batch["boundary"])
            change = {layer: states[layer][:pairs] for layer in self.recipe.target_layers}
            keep = {layer: state[pairs:] for layer, state in states.items()}
        mask = counted(batch)[len(batch["boundary"]) :]
        if self.recipe.separate != "as_described":
            targets = self.recipe.target_layers
            centroid = {layer: losses.centroid(keep[layer], mask) for layer in targets}
        else:
            if self.common is None:
                self.common = self._common_centroid(model, peft_model, batch["input_ids"].device)
            centroid = {layer: state.expand(len(mask), -1) for layer, state in self.common.items()}
        return ReferenceStates(change, keep, centroid)

    @torch.no_grad()
    def _off(self, model: nn.Module, peft_model: PeftModel, batch: Batch) -> States:
        with peft_model.disable_adapter():
            return forward(model, peft_model, batch, self.recipe)

    def _cached(
        self, model: nn.Module, peft_model: PeftModel, batch: Batch
    ) -> tuple[States, States]:
        numbers, lengths = batch["numbers"].tolist(), batch["attention_mask"].sum(dim=1).tolist()
        # A boundary-safe row to change is compared with a centroid, never with itself.
        needed = [True] * len(numbers)
        needed[: len(batch["boundary"])] = (~batch["boundary"]).tolist()
        missing = [i for i, n in enumerate(numbers) if needed[i] and n not in self.kept]
        if missing:
            longest = max(lengths[i] for i in missing)
            some = {
                name: batch[name][missing, :longest] for name in ("input_ids", "attention_mask")
            }
            states = self._off(model, peft_model, some)
            for place, i in enumerate(missing):
                layers = self._layers(i, batch)
                rows = [states[layer][place, : lengths[i]] for layer in layers]
                self.kept[numbers[i]] = torch.stack(rows).cpu()
        pairs = len(batch["boundary"])
        return (
            self._padded(batch, range(pairs), needed),
            self._padded(batch, range(pairs, 2 * pairs), needed),
        )

    def _layers(self, row: int, batch: Batch) -> list[int]:
        """Of a row to change the target layers, of one to keep all."""
        if row < len(batch["boundary"]):
            return list(self.recipe.target_layers)
        return list(range(self.recipe.lora_layers))

    def _padded(self, batch: Batch, rows: range, needed: list[bool]) -> States:
        width, device = batch["input_ids"].shape[1], batch["input_ids"].device
        layers = self._layers(rows[0], batch)
        kept = [self.kept[int(batch["numbers"][i])] if needed[i] else None for i in rows]
        dim = next(k.shape[-1] for k in self.kept.values())
        # Ones, not zeros: where nothing is kept, the relative term divides by their norm.
        states = torch.ones(len(layers), len(rows), width, dim)
        for place, row in enumerate(kept):
            if row is not None:
                states[:, place, : row.shape[1]] = row
        return dict(zip(layers, states.to(device), strict=True))

    def _common_centroid(
        self, model: nn.Module, peft_model: PeftModel, device: torch.device
    ) -> dict[int, Tensor]:
        """The mean of the centroids of the boundary-safe items with their compliant answers."""
        by_number = {pair.keep.number: pair for pair in self.boundary}
        pairs, layers = list(by_number.values())[:CENTROID_ROWS], self.recipe.target_layers
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        size = self.recipe.pairs_at_once
        for begin in range(0, len(pairs), size):
            some = pairs[begin : begin + size]
            batch = {k: v.to(device) for k, v in collate(some, self.pad_id).items()}
            states = self._off(model, peft_model, batch)
            for layer in layers:
                keep, mask = states[layer][len(some) :], counted(batch)[len(some) :]
                found[layer] += list(losses.centroid(keep, mask))
        return {layer: torch.stack(rows).mean(dim=0) for layer, rows in found.items()}


def counted(batch: Batch) -> Tensor:
    """Tokens that count, ``[row, token]``: of prompt and response, neither padding nor sink."""
    return batch["prompt"] | batch["response"]


def masks(recipe: Recipe, batch: Batch) -> dict[str, Tensor]:
    """Which tokens each term is over, ``[pair, token]``: erase and separate of the rows to change,
    retain of those to keep."""
    pairs = len(batch["boundary"])
    boundary = batch["boundary"][:, None]
    change = {name: batch[name][:pairs] for name in ("prompt", "response")}
    separate = {
        None: torch.zeros_like(change["prompt"]),
        "as_coded": change["prompt"] & boundary,
        "as_described": change["response"] & ~boundary,
        "refusal": change["response"] & boundary,
    }[recipe.separate]
    return {
        "retain": counted(batch)[pairs:],
        "erase": counted(batch)[:pairs] & ~boundary,
        "separate": separate,
    }


def token_counts(recipe: Recipe, batch: Batch) -> Float[Tensor, " term"]:
    """What a batch adds to the divisors of the retain, erase and separate terms.

    Of the absolute retain term as in the official code: all hidden states, the embeddings too, and
    all positions of the window, padding too.
    """
    by_term = masks(recipe, batch)
    targets = len(recipe.target_layers)
    if recipe.retain == "absolute":
        retain = len(batch["boundary"]) * recipe.max_tokens * (recipe.lora_layers + 1)
    else:
        retain = int(by_term["retain"].sum()) * recipe.lora_layers
    erase, separate = (int(by_term[name].sum()) * targets for name in ("erase", "separate"))
    if recipe.separate_weight is None:
        erase = separate = erase + separate
    return torch.tensor([retain, erase, separate], dtype=torch.float32)


def step_terms(
    recipe: Recipe,
    batch: Batch,
    states: States,
    reference: ReferenceStates,
    counts: Float[Tensor, " term"],
) -> Terms:
    """A batch's part of the step's terms: sums over its layers and tokens by the step's counts."""
    pairs = len(batch["boundary"])
    by_term = masks(recipe, batch)
    counts = dict(zip(Terms._fields, counts.clamp(min=1), strict=True))

    def part(name: str, values: Tensor) -> Tensor:
        return masked_mean(values, by_term[name], counts[name])

    retain = sum(
        part("retain", losses.retain(states[layer][pairs:], keep, recipe.retain))
        for layer, keep in reference.keep.items()
    )
    erase = separate = states[0].new_zeros(())
    for layer in recipe.target_layers:
        change = states[layer][:pairs]
        erase = erase + part("erase", losses.erase(change, reference.change[layer]))
        if recipe.separate is not None:
            values = losses.separate(change, reference.centroid[layer])
            separate = separate + part("separate", values)
    return Terms(retain, erase, separate)
