"""One training step's states and terms: which tokens of which layers meet in which term.

A batch is what ``batch.collate`` makes: rows to change, and below them as many to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers.utils import ModelOutput

from xb_lite import losses
from xb_lite.hidden import watch_layers, without_head
from xb_lite.losses.batch import Pair, Row, collate, padded
from xb_lite.losses.targets import random_centroid
from xb_lite.losses.terms import Terms, masked_mean
from xb_lite.models.packing import as_rows, end_to_end
from xb_lite.recipes import Recipe

Batch = dict[str, Tensor]
States = dict[int, Float[Tensor, "row token dim"]]
NORMED = -1  # in place of a layer: the state after the model's final norm
CENTROID_ROWS = 128  # boundary-safe items that the as_described variant's centroid is of at most


@dataclass(frozen=True)
class ReferenceStates:
    """What the reference model makes of a batch: states of the rows to change at the target layers
    and of those to keep at all ``read`` layers, ``[pair, token, dim]`` by layer, and at the target
    layers the centroid that each row to change is to leave, ``[pair, dim]``, or what stands for it;
    none where no term separates."""

    change: States
    keep: States
    centroid: dict[int, Float[Tensor, "pair dim"]]


def retained(recipe: Recipe) -> list[int]:
    """The layers whose states the retain term compares. Of the absolute one the last is ``NORMED``,
    as in the official code: a state the whole model does not have."""
    layers = list(range(recipe.lora_layers))
    return [*layers[:-1], NORMED] if recipe.retain == "absolute" else layers


def read(recipe: Recipe) -> list[int]:
    """The layers whose states some term reads."""
    return list(dict.fromkeys([*retained(recipe), *recipe.target_layers]))


def forward(model: nn.Module, peft_model: PeftModel, batch: Batch, recipe: Recipe) -> States:
    """The states of the layers that are ``read``, in fp32.

    Args:
        model: ``peft_model``, or what accelerate made of it.
    """
    inputs, width = end_to_end(batch), batch["input_ids"].shape[1]
    seen: States = {}

    def see_normed(_module: nn.Module, _inputs: tuple, output: ModelOutput) -> None:
        seen[NORMED] = output.last_hidden_state

    with ExitStack() as stack:
        # Seen, and computed with only after the pass: with gradient checkpointing a layer is run
        # again later, without this, and has to keep the same tensors as before.
        see = seen.__setitem__
        stack.enter_context(watch_layers(peft_model, range(recipe.lora_layers), see, stop=False))
        stack.enter_context(without_head(peft_model.get_base_model()))
        if recipe.retain == "absolute":
            # Not output_hidden_states: transformers' hooks would stay, on these layers alone.
            decoder = peft_model.get_base_model().base_model
            stack.callback(decoder.register_forward_hook(see_normed).remove)
        model(**inputs, use_cache=False)
    rows = inputs["row_lengths"]
    return {layer: as_rows(seen[layer].float(), rows, width) for layer in read(recipe)}


class Reference:
    """The reference model's states: of the adapter switched off, or kept from an earlier step."""

    def __init__(self, recipe: Recipe, pairs: Sequence[Pair], pad_id: int, seed: int = 0) -> None:
        """``seed`` is the run's, of a random ``separate_target``."""
        self.recipe, self.pad_id, self.seed = recipe, pad_id, seed
        self.boundary = [pair for pair in pairs if pair.boundary]
        self.kept: dict[int, Float[Tensor, "layer token dim"]] = {}
        # Each row with those that it is computed together with. What shares a batch can change the
        # last bits, so this must not depend on where in a run it is.
        self.together: dict[int, dict[int, tuple[Row, Sequence[int]]]] = {}
        for begin in range(0, len(pairs), recipe.pairs_at_once):
            rows = self._rows(pairs[begin : begin + recipe.pairs_at_once])
            new = {number: row for number, row in rows.items() if number not in self.together}
            self.together |= dict.fromkeys(new, new)
        self.common: dict[int, Float[Tensor, " dim"]] | None = None

    def of(self, model: nn.Module, peft_model: PeftModel, batch: Batch) -> ReferenceStates:
        """For one batch; arguments as in ``forward``."""
        if self.recipe.reference == "cache":
            change, keep = self._cached(model, peft_model, batch)
        else:
            states = self._off(model, peft_model, batch)
            pairs = len(batch["separate"])
            change = {layer: states[layer][:pairs] for layer in self.recipe.target_layers}
            keep = {layer: state[pairs:] for layer, state in states.items()}
        mask = counted(batch)[len(batch["separate"]) :]
        if self.recipe.separate is None:
            centroid = {}
        elif self.recipe.separate != "as_described":
            targets = self.recipe.target_layers
            centroid = {layer: losses.centroid(keep[layer], mask) for layer in targets}
        else:
            if self.common is None:
                self.common = self._common_centroid(model, peft_model, batch["input_ids"].device)
            centroid = {layer: state.expand(len(mask), -1) for layer, state in self.common.items()}
        if self.recipe.separate_target == "random":
            centroid = {n: random_centroid(c, self.seed, n) for n, c in centroid.items()}
        return ReferenceStates(change, keep, centroid)

    @torch.no_grad()
    def _off(self, model: nn.Module, peft_model: PeftModel, batch: Batch) -> States:
        learned = [value for value in peft_model.parameters() if value.requires_grad]
        with peft_model.disable_adapter():
            # peft freezes what it switches off, and FSDP asks at the first pass in which dtype
            # gradients of what learns will come.
            for value in learned:
                value.requires_grad_()
            return forward(model, peft_model, batch, self.recipe)

    def _cached(
        self, model: nn.Module, peft_model: PeftModel, batch: Batch
    ) -> tuple[States, States]:
        numbers, pairs = batch["numbers"].tolist(), len(batch["separate"])
        needed = [*(~batch["separate"]).tolist(), *[True] * pairs]
        for number, need in zip(numbers, needed, strict=True):
            if need and number not in self.kept:
                self._keep(peft_model, self.together[number], batch["input_ids"].device)
        targets, every = self.recipe.target_layers, read(self.recipe)
        return (
            self._padded(batch, targets, range(pairs), needed),
            self._padded(batch, every, range(pairs, 2 * pairs), needed),
        )

    def _rows(self, pairs: Sequence[Pair]) -> dict[int, tuple[Row, Sequence[int]]]:
        """By number the rows whose states are needed, and at which layers. A boundary-safe row to
        change is compared with a centroid, never with itself."""
        targets, every = self.recipe.target_layers, read(self.recipe)
        change = {pair.change.number: (pair.change, targets) for pair in pairs if not pair.separate}
        return {**change, **{pair.keep.number: (pair.keep, every) for pair in pairs}}

    def _keep(
        self,
        peft_model: PeftModel,
        rows: dict[int, tuple[Row, Sequence[int]]],
        device: torch.device,
    ) -> None:
        batch = padded([row for row, _ in rows.values()], self.pad_id)
        batch = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        # Not by what accelerate made of it: other processes may need nothing now, and not come.
        states = self._off(peft_model, peft_model, batch)
        for place, (number, (row, layers)) in enumerate(rows.items()):
            own = [states[layer][place, : len(row.encoding)] for layer in layers]
            self.kept[number] = torch.stack(own).cpu()

    def _padded(
        self, batch: Batch, layers: Sequence[int], rows: range, needed: list[bool]
    ) -> States:
        width, device = batch["input_ids"].shape[1], batch["input_ids"].device
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
        """The mean of the centroids of boundary-safe items with their compliant answers: of the
        first ``CENTROID_ROWS`` in the order of training."""
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
    pairs = len(batch["separate"])
    separated = batch["separate"][:, None]
    change = {name: batch[name][:pairs] for name in ("prompt", "response")}
    separate = {
        None: torch.zeros_like(change["prompt"]),
        # Not what a template puts behind the response.
        "as_coded": change["prompt"] & separated & (change["response"].cumsum(dim=1) == 0),
        "as_described": change["response"] & ~separated,
        "refusal": change["response"] & separated,
    }[recipe.separate]
    return {
        "retain": counted(batch)[pairs:],
        "erase": counted(batch)[:pairs] & ~separated,
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
        retain = len(batch["separate"]) * recipe.max_tokens * (recipe.lora_layers + 1)
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
    pairs = len(batch["separate"])
    by_term = masks(recipe, batch)
    counts = dict(zip(Terms._fields, counts.clamp(min=1), strict=True))

    def part(name: str, values: Tensor) -> Tensor:
        return masked_mean(values, by_term[name], counts[name])

    retain = sum(
        part("retain", losses.retain(states[layer][pairs:], reference.keep[layer], recipe.retain))
        for layer in retained(recipe)
    )
    erase = separate = states[0].new_zeros(())
    for layer in recipe.target_layers:
        change = states[layer][:pairs]
        erase = erase + part("erase", losses.erase(change, reference.change[layer]))
        if recipe.separate is not None:
            values = losses.separate(change, reference.centroid[layer])
            separate = separate + part("separate", values)
    return Terms(retain, erase, separate)
