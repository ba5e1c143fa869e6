"""Memory, time and disk of a training run, from recipe and model sizes alone.

Memory is counted part by part as the training here uses it: what autograd keeps of one layer was
read off its graph, the rest follows from the recipe. Two numbers are measured and not derived: what
a process takes before there is a model, and how much more than the sum of its tensors an allocator
holds. ``benchmarks/estimate.py`` compares the sum with runs on a CPU; on GPUs it was not compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from xb_lite.recipes import Budget, Recipe
from xb_lite.scaling.cards import CARDS, Card
from xb_lite.scaling.shapes import Shape, spec_of

BASE = {True: 0.58e9, False: 0.8e9}  # bytes of a process without a model, by whether on a CPU
HELD = {True: 1.22, False: 1.1}  # what an allocator holds by what is in use, likewise
STATE = 20  # bytes of an adapter's parameter: itself, gradient, two moments, the last good value
FP32 = 4
BOOK_MEAN = 110  # tokens of an item of the book's own data
SHORT = 384  # tokens up to which attention on a CPU is in fp32 (models.packing)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of each part of the memory at the peak, on the card (on a CPU: all); seconds; disk.

    Attributes:
        weights: of the model, whole: the layers above LoRA's stay in memory.
        copies: of the weights in bf16, which autograd keeps where the weights are fp32.
        adapter: LoRA with gradients and optimiser.
        activations: of one forward pass, kept for the way back, and what the loss keeps of it.
        kept: reference states of items that come again; on a GPU in the host's memory.
        base: the process without a model.
        step, seconds: of one optimiser step, and of all.
        download, disk: bytes to fetch, and to have free for model, adapter and checkpoints.
        operations: of one step.
        card: for which.
    """

    weights: float
    copies: float
    adapter: float
    activations: float
    kept: float
    base: float
    step: float
    seconds: float
    download: float
    disk: float
    operations: float
    card: Card

    @property
    def memory(self) -> float:
        """Bytes at the peak, on the card."""
        on_card = self.weights + self.copies + self.adapter + self.activations + self.base
        return on_card + (self.kept if self.card.is_cpu else 0)

    @property
    def fits(self) -> bool:
        return self.memory <= self.card.memory * 1e9


def estimate(
    recipe: Budget,
    shape: Shape,
    card: Card = CARDS["cpu"],
    *,
    tokens: int | None = None,
    mean: int | None = None,
    items: int | None = None,
    processes: int = 1,
    sharded: bool = False,
) -> Estimate:
    """What a recipe takes on a card, before anything is fetched.

    Args:
        tokens: of the longest items; the recipe's most if not given, which is the upper end.
        mean: tokens of an item on average, by which time and kept states go; ``tokens`` if not
            given. Of the book's own data they are about ``BOOK_MEAN``.
        items: different ones whose reference states are kept; all that are drawn if not given.
        processes: a card each.
        sharded: the model's weights are shared by them (ZeRO-3, FSDP).

    Raises:
        RecipeError: the recipe's layers are not in the model.

    Example:
        >>> recipe = load_recipe("x-boundary-llama-3-8b")
        >>> shape = shape_of(recipe.model)
        >>> estimate(recipe, shape, CARDS["a100-80gb"]).fits
        True
    """
    recipe.check_model(shape.num_hidden_layers)
    tokens = min(tokens or recipe.max_tokens, recipe.max_tokens)
    mean = min(mean or tokens, tokens)
    # As precision_of: a model of the hub is not known to be small before it is loaded.
    known = spec_of(recipe.model) is not None or os.path.isdir(recipe.model)
    weight, product = card.formats(shape.parameters if known else None)
    drawn = recipe.steps * recipe.pairs
    defense = isinstance(recipe, Recipe)
    layers = recipe.lora_layers if defense else shape.num_hidden_layers
    trained = shape.lora_parameters(recipe.lora_layers, recipe.rank)
    in_layers = layers * shape.layer_weights

    copies = 0.0
    if product != weight and not recipe.gradient_checkpointing:
        copies = product * in_layers
    weights = weight * shape.parameters
    if sharded:  # and two layers gathered at a time
        weights = weights / processes + 2 * weight * shape.layer_weights
    adapter = STATE * trained
    rows = 4 if recipe.method == "dpo" else 2  # of a pair; of dpo each item with either answer
    in_pass = rows * recipe.pairs_at_once * tokens
    per_token = _per_token(recipe, shape, card, tokens, weight, product, layers)

    kept = 0.0
    if defense and recipe.reference == "cache":
        each = min(drawn, items or drawn) * mean * FP32 * shape.hidden_size
        kept = each * (layers + len(recipe.target_layers))

    passes = 2 + recipe.gradient_checkpointing
    if defense:  # kept states are computed once an item
        again = 1.0 if recipe.reference == "adapter-off" else min(1.0, (items or drawn) / drawn)
        passes += again
    else:  # without the adapter, dpo all rows, where there is a drift those to keep
        without = {"dpo": 1.0, "refusal-tuning": 0.5, "intention-tuning": 0.5}
        passes += without.get(recipe.method, 0.0)
    in_step = rows * recipe.pairs * mean
    attention = 2 * shape.query * mean * layers  # causal: half of all pairs of tokens
    operations = passes * in_step * (2 * in_layers + attention)
    speed = 1e12 * (card.single if product == FP32 else card.half) * card.share
    step = operations / processes / speed

    download, on_disk = _model_files(recipe.model, shape)
    return Estimate(
        weights=weights,
        copies=copies,
        adapter=adapter,
        activations=HELD[card.is_cpu] * per_token * in_pass,
        kept=kept,
        base=BASE[card.is_cpu],
        step=step,
        seconds=step * recipe.steps,
        download=download,
        disk=on_disk + 2 * trained + 2 * 12 * trained,  # two checkpoints for a moment
        operations=operations,
        card=card,
    )


def _per_token(
    recipe: Budget, shape: Shape, card: Card, tokens: int, weight: int, product: int, layers: int
) -> float:
    """Bytes a token at the peak, over all layers: what autograd keeps, and what the loss does."""
    dim, inner = shape.hidden_size, shape.intermediate_size
    query, keys = shape.query, shape.keys
    layer = 2 * FP32 * dim  # what goes into the two norms, which compute in fp32
    # What goes into LoRA: of fp32 states autocast makes a copy for every map, else maps share it.
    copied = product != weight
    layer += product * ((5 * dim + query) if copied else 2 * dim)
    in_attention = FP32 if card.is_cpu and tokens <= SHORT else product
    heads = keys if card.is_cpu else query  # GPUs repeat keys and values for every head
    layer += in_attention * (2 * query + 2 * heads)
    layer += product * 4 * inner  # gate, its activation, up, and their product
    layer += product * 7 * recipe.rank
    if recipe.dropout:  # a mask and an output for every map
        layer += (product + 1) * (5 * dim + query + inner)
    if not isinstance(recipe, Recipe):  # a loss of tokens: logits, their softmax and gradient
        logits = 3 * FP32 * shape.vocab_size * 0.5  # of the responses, about half
        per_layer = _through(recipe, layer, weight * dim, layers)
        return per_layer + logits
    # The loss: states as padded rows, the difference and the reference of those to keep, and at
    # the start of the way back the gradients of all states, as rows and as they were.
    reference = 2 if recipe.reference == "cache" else 4
    loss = dim * (FP32 + 2 + reference + 2 * FP32)
    return _through(recipe, layer, weight * dim, layers) + layers * loss


def _through(recipe: Budget, layer: float, state: float, layers: int) -> float:
    """With recompute the states between layers alone are kept, and one layer's inside."""
    if recipe.gradient_checkpointing:
        return layers * state + layer
    return layers * layer


def _model_files(name: str, shape: Shape) -> tuple[float, float]:
    spec = spec_of(name)
    if spec:  # packed, and unpacked to fp32
        return spec.size, spec.size + FP32 * spec.parameters
    return 2 * shape.parameters, 2 * shape.parameters


def estimate_table(recipe: Budget, shape: Shape, cards: Iterable[Card], **how: object) -> str:
    """``estimate`` for several cards as text: a line a card, and below it what of the memory is
    what, on the first of them. Arguments as of ``estimate``."""
    found = [estimate(recipe, shape, card, **how) for card in cards]
    lines = [
        f"{recipe.model}: {shape.parameters / 1e9:.2f} billion parameters, "
        f"{recipe.lora_layers} of {shape.num_hidden_layers} layers trained",
        f"{'':26}{'memory':>10}{'of':>9}{'':>9}{'a step':>10}{'in all':>11}",
    ]
    for one in found:
        lines.append(
            f"{one.card.title:26}{one.memory / 1e9:>7.1f} GB{one.card.memory:>6.0f} GB"
            f"{'' if one.fits else 'too much':>9}{one.step:>8.2f} s{_time(one.seconds):>11}"
        )
    first = found[0]
    parts = ("weights", "copies", "adapter", "activations", "kept", "base")
    said = ", ".join(f"{name} {getattr(first, name) / 1e9:.2f}" for name in parts)
    lines += [
        f"{first.card.title}, GB: {said}",
        f"to fetch {first.download / 1e9:.2f} GB, disk {first.disk / 1e9:.2f} GB; "
        "speeds of GPUs are assumed, not measured",
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
