"""What can be known before a run: whether recipe, model, machine and folder fit each other."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from xb_lite.hidden import decoder_layers
from xb_lite.losses.batch import Pair
from xb_lite.models.adapter_files import read_run
from xb_lite.models.adapters import CARD, has_other_card
from xb_lite.models.packing import relative_error
from xb_lite.recipes import Budget, Recipe, RecipeError
from xb_lite.recipes.kinds import LINEAR
from xb_lite.training.baselines import BY_TRL, import_trl
from xb_lite.training.lora import BEGUN, TrainingError, passes

ROUNDING = 0.05  # relative error of states that bf16 weights can have


def check_fit(recipe: Budget, model: PreTrainedModel) -> None:
    """Whether ``model`` can be trained by a recipe; it is in evaluation mode afterwards.

    Raises:
        RecipeError: it has too few layers or other linear layers than LoRA is on, or its attention
            cannot do without padding.
    """
    layers = decoder_layers(model)
    recipe.check_model(len(layers))
    for place, layer in enumerate(layers[: recipe.lora_layers]):
        _check_linear(type(model).__name__, place, layer)
    # Of what is above LoRA's layers the loss of X-Boundary reads nothing.
    top = recipe.lora_layers if isinstance(recipe, Recipe) else len(layers)
    _check_rows(model.eval(), top - 1)


def check_drawn(recipe: Budget, pairs: Sequence[Pair]) -> None:
    """Say where no pair of a run is for the separate term; a single step is a rehearsal.

    Raises:
        RecipeError: the term needs one (``as_described`` takes its centroid from them).
    """
    if not isinstance(recipe, Recipe) or not recipe.separate or any(p.boundary for p in pairs):
        return
    words = (
        f"boundary_share is {recipe.boundary_share}, which gives no boundary-safe item in "
        f"{recipe.steps} steps of {recipe.pairs} pairs"
    )
    if recipe.separate == "as_described":
        raise RecipeError(f"{words}: raise any of the three.")
    if recipe.steps > 1:
        warnings.warn(f"{words}: there is no separate term in this run.", stacklevel=2)


def check_seed(seed: int) -> None:
    """Raise a RecipeError where numpy, which transformers seeds as well, would refuse it."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise RecipeError(f"seed is {seed!r:.40}; it must be a whole number from 0 to 2**32 - 1.")


def check_place(recipe: Budget, folder: Path, resume: bool) -> None:
    """Whether this machine can follow a recipe and keep its adapter in ``folder``, which is made.
    A finished run that is not to begin anew needs neither.

    Raises:
        TrainingError: a package is missing, the processes cannot share a step or the weights, or
            the folder cannot be written to, or has checkpoints or a README.md in it that are not of
            a run.
    """
    if resume and read_run(folder) is not None:
        return
    if recipe.method in BY_TRL:
        import_trl()
    passes(recipe)
    if way := sharing():
        check_shared_weights(recipe, way)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TrainingError(
            f"the folder {folder} cannot be written to ({error.strerror}): take another."
        ) from error
    _check_own(folder)


def _check_own(folder: Path) -> None:
    """Whether what a run in ``folder`` would go on from, remove or write over is a run's.

    Raises:
        TrainingError: it is not.
    """
    begun = folder / BEGUN
    place = begun.parent
    # Listed once: meanwhile another process may clear the place and begin.
    there = [path.name for path in place.glob("*")]
    # A kill while the first file is written leaves a part of it alone.
    others = [name for name in there if not name.startswith(begun.name)]
    if place.is_file() or (others and begun.name not in there):
        raise TrainingError(
            f"{place} is not of a run that was begun here ({begun.name} is missing): take another "
            "folder, or move it away."
        )
    if has_other_card(folder):
        raise TrainingError(
            f"{folder} has a {CARD} of its own, which the adapter's would replace: take another "
            "folder, or move it away."
        )


def check_shared_weights(recipe: Budget, way: str) -> None:
    """Whether a recipe can be followed where each process has a part of the model's weights.

    Args:
        way: what shares them, as in ``sharing``.

    Raises:
        TrainingError: it cannot; before anything is loaded.
    """
    if not isinstance(recipe, Recipe):
        raise TrainingError(
            f"{recipe.method} cannot be trained with {way}: its losses switch the adapter off in "
            "the bare model. Take DDP or ZeRO-2 (xb_lite/scaling/launch/ddp.yaml, zero2.yaml)."
        )
    if way == "FSDP" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise TrainingError(
            "FSDP of version 1 cannot train this: its backward pass begins at the model's output, "
            "of which the loss of hidden states reads nothing. Set fsdp_version: 2, as in "
            "xb_lite/scaling/launch/fsdp.yaml."
        )
    if recipe.reference == "cache":
        raise TrainingError(
            f'reference is "cache", which cannot be with {way}: a process that meets a new item '
            "runs the model by itself, and the others, who have parts of its weights, do not come. "
            "Set reference=adapter-off."
        )
    if recipe.separate == "as_described":
        raise TrainingError(
            f"separate is as_described, which cannot be with {way}: its common centroid takes "
            "passes of its own inside the first step. Take another variant, or DDP."
        )


def sharing() -> str | None:
    """What shares the weights among the processes, by what accelerate tells them; None if nothing
    does."""

    def on(name: str) -> bool:
        return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1")

    if on("FSDP"):
        return "FSDP"
    zero3 = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    return "ZeRO-3" if on("DEEPSPEED") and zero3 else None


def _check_linear(name: str, place: int, layer: nn.Module) -> None:
    modules = {path.rpartition(".")[2]: module for path, module in layer.named_modules()}
    missing = [linear for linear in LINEAR if linear not in modules]
    # Experts and convolutions are not always modules of their own, but their weights have 3 axes.
    others = [
        other
        for other, module in modules.items()
        if other not in LINEAR
        and (
            isinstance(module, nn.Linear)
            or any(value.dim() > 2 for value in module.parameters(recurse=False))
        )
    ]
    found = [f"no {', '.join(missing)}"] * bool(missing)
    found += [f"{', '.join(others)} besides"] * bool(others)
    if found:
        raise RecipeError(
            f"{name} cannot be trained by a recipe: LoRA is on {', '.join(LINEAR)}, and its "
            f"decoder layer {place} has {', and '.join(found)}. Take a model that has these linear "
            "layers alone, such as Llama, Mistral, Qwen2 or Gemma 3."
        )


def _check_rows(model: PreTrainedModel, layer: int) -> None:
    name = type(model).__name__
    advice = "take a model with plain attention, such as Llama, Mistral, Qwen2 or Gemma 3."
    try:
        error = relative_error(model, layer)
    except Exception as reason:  # families refuse in ways of their own
        said = str(reason).strip().splitlines() or [type(reason).__name__]
        raise RecipeError(
            f"{name} cannot be trained without padding ({said[0]}): {advice}"
        ) from reason
    if error > ROUNDING:
        raise RecipeError(
            f"{name} cannot be trained without padding (its states change by {error:.2g}): {advice}"
        )
