"""Short trainings that differ in one thing each: the arms of the convergence study.

Every arm trains one subject by the recipe of X-Boundary, smaller, on the same items in the same
order; arms differ in what ``ARMS`` says and in nothing else. The loop is ``training``'s with the
three terms' gradients taken one by one. Arms in 06_convergence, results in report B.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.autograd import grad
from transformers import PreTrainedModel

from xb_lite.dialogues import padding_id
from xb_lite.hidden import decoder_layers, lowest_layers
from xb_lite.losses.batch import Pair, collate
from xb_lite.losses.step import Reference, ReferenceStates, forward, masks, step_terms, token_counts
from xb_lite.losses.targets import random_centroid, random_direction
from xb_lite.losses.terms import Terms, centroid, coefficients, total
from xb_lite.models.packing import by_row
from xb_lite.models.precision import Precision
from xb_lite.recipes import Recipe, load_recipe, own_recipe
from xb_lite.replies.subjects import Subject
from xb_lite.training.draw import draw_pairs
from xb_lite.training.lora import adapted, no_casts_twice
from xb_lite.training.sets import Sets

WARM_UP = 10  # steps to the full rate
CLIP = 1.0  # norm of the gradient; the default of transformers' Trainer
PUSH = 0.02  # standard deviation of LoRA's B, as in the recipe of circuit breakers

# What an arm changes: fields of the recipe, and what the loop below knows.
ARMS: dict[str, dict[str, object]] = {
    "separate": {},
    "none": {"separate_weight": 0.0},
    "random": {"target": "random"},
    "other": {"target": "other"},
    "near": {"target": "near"},
    "push": {"separate_weight": 0.0, "lora_std": PUSH},
    "no-retain": {"separate_weight": 0.0, "retain_weight": 0.0},
    "separate+push": {"lora_std": PUSH},
    "none, warm-up": {"separate_weight": 0.0, "warm_up": WARM_UP},
    "separate, warm-up": {"warm_up": WARM_UP},
    "separate, official retain": {"retain": "absolute", "retain_weight": 1.0},
    "none, official retain": {"separate_weight": 0.0, "retain": "absolute", "retain_weight": 1.0},
    "push, official retain": {
        "separate_weight": 0.0,
        "lora_std": PUSH,
        "retain": "absolute",
        "retain_weight": 1.0,
    },
    "separate+push, official retain": {
        "lora_std": PUSH,
        "retain": "absolute",
        "retain_weight": 1.0,
    },
}
MAIN = ("separate", "none")

# What is written down of a model in training after so many steps, under names of its own.
Look = Callable[[int, nn.Module], Mapping[str, object]]


def base_recipe(model: str, steps: int, layers: list[int]) -> Recipe:
    """That of the book for a subject, with these target layers and no more layers than they need,
    on short single-turn items, from B = 0. The reference is computed beside every step, so that at
    the start both states are the same to the last bit.

    Raises:
        RecipeError: there is no recipe for the subject, or it does not have the layers.
    """
    return load_recipe(
        own_recipe("x-boundary", model),
        steps=steps,
        target_layers=layers,
        lora_layers=max(layers) + 1,
        lora_std=0.0,
        max_tokens=64,
        multi_turn_share=0.0,
        reference="adapter-off",
    )


def random_target(
    reference: ReferenceStates, recipe: Recipe, seed: int, mask: Tensor
) -> ReferenceStates:
    """The same reference with every centroid turned into one random direction."""
    turned = {n: random_centroid(reference.centroid[n], seed, n) for n in recipe.target_layers}
    return replace(reference, centroid=turned)


def near_target(
    reference: ReferenceStates, recipe: Recipe, seed: int, mask: Tensor
) -> ReferenceStates:
    """The same reference with every centroid turned about the mean direction of the states that are
    to leave it, into a random plane: as long, and as near to them, as it was."""
    turned, some = {}, mask.any(dim=1)
    for layer in recipe.target_layers:
        turned[layer] = reference.centroid[layer].clone()
        old = turned[layer][some]
        here = centroid(reference.change[layer][some], mask[some])
        here = nn.functional.normalize(here, dim=-1)
        direction = random_direction(old.shape[-1], seed, layer).to(old)
        across = nn.functional.normalize(direction - (here @ direction)[:, None] * here, dim=-1)
        along = (here * old).sum(dim=-1, keepdim=True)
        rest = (old.pow(2).sum(dim=-1, keepdim=True) - along**2).clamp(min=0).sqrt()
        turned[layer][some] = along * here + rest * across
    return replace(reference, centroid=turned)


def other_target(
    reference: ReferenceStates, recipe: Recipe, seed: int, mask: Tensor
) -> ReferenceStates:
    """The same reference with every centroid that of the next item of the step: for a boundary-safe
    prompt, as pairs are drawn, a benign prompt's or a refused one's."""
    rolled = {layer: c.roll(1, dims=0) for layer, c in reference.centroid.items()}
    return replace(reference, centroid=rolled)


TARGETS = {"random": random_target, "other": other_target, "near": near_target}


@contextmanager
def as_it_replies(
    model: PreTrainedModel, above: Sequence[nn.Module], attention: str
) -> Iterator[None]:
    """Within, a model in training has its layers ``above`` those that learn and its own attention
    again, so that it can be asked."""
    layers, config = decoder_layers(model), model.config.get_text_config()
    learning, of_training = len(layers), model.config._attn_implementation
    layers.extend(above)
    config.num_hidden_layers = len(layers)
    model.set_attn_implementation(attention)
    try:
        yield
    finally:
        del layers[learning:]
        config.num_hidden_layers = learning
        model.set_attn_implementation(of_training)


def train_arm(
    subject: Subject,
    recipe: Recipe,
    changes: Mapping[str, object],
    seed: int,
    sets: Sets,
    precision: Precision,
    look: Look,
) -> dict[str, object]:
    """One run: its curve with gradients, what ``look`` made of the model by name and step, and the
    seconds it took.

    Args:
        changes: an arm of ``ARMS``.
        look: called before each step, with the number of steps done, and after the last; the
            subject's model can be asked then, with what it has learned.
    """
    changes = dict(changes)
    target, warm_up = changes.pop("target", None), int(changes.pop("warm_up", 0))
    recipe = replace(recipe, **changes)
    model, tokenizer = subject.model, subject.tokenizer
    pairs = draw_pairs(recipe, sets, tokenizer, seed)
    above = decoder_layers(model)[recipe.lora_layers :]
    attention = model.config._attn_implementation
    began = time.perf_counter()
    curve: list[dict[str, float]] = []
    seen: dict[str, dict[int, object]] = {}
    with (
        lowest_layers(model, recipe.lora_layers),
        adapted(model, recipe, seed) as learning,
        by_row(model),
        no_casts_twice(learning, precision),
    ):
        learned = [p for p in learning.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=recipe.learning_rate, weight_decay=0.0)
        reference = Reference(recipe, pairs, padding_id(tokenizer), seed)
        for step in range(recipe.steps + 1):
            with as_it_replies(model, above, attention):
                for name, found in look(step, learning).items():
                    seen.setdefault(name, {})[step] = found
            if step == recipe.steps:
                break
            some: list[Pair] = pairs[step * recipe.pairs : (step + 1) * recipe.pairs]
            batch = collate(some, padding_id(tokenizer))
            with precision.autocast():
                before = reference.of(learning, learning, batch)
                if target is not None:
                    separated = masks(recipe, batch)["separate"]
                    before = TARGETS[target](before, recipe, seed, separated)
                now = forward(learning, learning, batch, recipe)
                terms = step_terms(recipe, batch, now, before, token_counts(recipe, batch))
            row = {"step": step + 1, **{n: t.item() for n, t in terms._asdict().items()}}
            row |= _gradients(terms, learned, recipe, step + 1)
            nn.utils.clip_grad_norm_(learned, CLIP)
            for group in optimizer.param_groups:
                share = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
                group["lr"] = recipe.learning_rate * share
            optimizer.step()
            curve.append({name: float(f"{value:.6g}") for name, value in row.items()})
    return {"curve": curve, **seen, "seconds": round(time.perf_counter() - began)}


def measured(step: int) -> bool:
    """Whether the gradient of each term is taken at this step."""
    return step <= 5 or step in (10, 15, 30) or step % 20 == 0


def _gradients(terms: Terms, learned: list[Tensor], recipe: Recipe, step: int) -> dict[str, float]:
    """Sets the gradient of the loss; at some steps says how long each term's own is, without its
    weight, and the cosine of those of erase and separate."""
    weights = coefficients(step, recipe.schedule, recipe.alpha)
    loss = total(weights, terms, recipe.retain_weight, recipe.separate_weight)
    found: dict[str, float] = {}
    if not measured(step):
        for value, slope in zip(learned, grad(loss, learned), strict=True):
            value.grad = slope
        return found
    slopes = {}
    for name, term in terms._asdict().items():
        parts = grad(term, learned, retain_graph=True, allow_unused=True)
        slopes[name] = [
            torch.zeros_like(v) if s is None else s for v, s in zip(learned, parts, strict=True)
        ]
        found[f"{name} gradient"] = _dot(slopes[name], slopes[name]) ** 0.5
    both = found["erase gradient"] * found["separate gradient"]
    found["cosine"] = _dot(slopes["erase"], slopes["separate"]) / both if both else 0.0
    factors = grad(loss, terms)
    for place, value in enumerate(learned):
        value.grad = sum(f * slopes[n][place] for f, n in zip(factors, Terms._fields, strict=True))
    return found


def _dot(one: list[Tensor], other: list[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)))
