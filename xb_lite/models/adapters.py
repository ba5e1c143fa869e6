"""Adapters on disk: safetensors that plain peft and vLLM load, with a card that says what they are.

Weights are kept in fp16: half the size, and what is evaluated is what was saved.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from xb_lite.files import own_file
from xb_lite.models.adapter_files import (
    CONFIG,
    FILES,
    PREFIX,
    RUN,
    WEIGHTS,
    Adapter,
    AdapterError,
    is_digest,
    read_adapter,
    read_run,
)

VERSIONS = ("xb-lite", "torch", "transformers", "peft")
CARD = "README.md"
# By this sentence a card is known as one of this book.
SIGNED = "Made by the book on defending chat models against jailbreaks"
PART = ".part-"  # of what is being written


# peft asks by the old name; nobody who reads a page can mend that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def save_adapter(
    adapted: PeftModel,
    folder: str | os.PathLike[str],
    run: dict[str, object],
    curve: list[dict[str, float]],
    base: str,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write weights, peft's config, ``run.json`` (the run and its curve) and a card, README.md.

    Args:
        run: all that decided the run, as JSON can hold it; two runs of one are the same.
        curve: terms at every step.
        base: where others find the base model: a hub id.
        state: all weights of ``adapted``, where it has parts of them alone.

    Raises:
        AdapterError: a weight is not finite in fp16, or the folder cannot be written to; what was
            there stays.
    """
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = base
    config.inference_mode = True
    weights = get_peft_model_state_dict(adapted, state, save_embedding_layers=False)
    versions = {name: version(name) for name in VERSIONS}
    _write(Path(folder), weights, config, {"run": run, "versions": versions, "curve": curve})


def scale_adapter(
    folder: str | os.PathLike[str], strength: float, into: str | os.PathLike[str]
) -> Path:
    """Write the adapter in ``folder`` once more, its change of the base model's weights times
    ``strength``: at 0 it is the base model, at 1 the adapter as trained (task
    arithmetic, arXiv 2212.04089).

    Raises:
        AdapterError: there is no adapter of this book in the folder, or it is damaged; or ``into``
            cannot be written to.
        ValueError: the strength is not a number of at least 0 or takes weights out of fp16's range,
            both folders are one, or ``into`` holds another adapter or a card of something else.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"the strength is {strength}; it must be a number of at least 0.")
    folder, into = Path(folder), Path(into)
    if folder.resolve() == into.resolve():
        raise ValueError(
            f"{into} holds the adapter itself: name another folder for the scaled one."
        )
    adapter = read_adapter(folder)
    if (ended := read_run(folder)) is None:
        raise AdapterError(f"there is no finished adapter in {folder}: {RUN} is missing.")
    # LoRA's change is B A: one of them carries the factor.
    scaled = {k: v.float() * strength if ".lora_B." in k else v for k, v in adapter.weights.items()}
    if strength and any(
        not half.isfinite().all() or (bool(half.any()) != bool(adapter.weights[k].any()))
        for k, half in ((k, v.half()) for k, v in scaled.items())
    ):
        raise ValueError(
            f"the strength is {strength}; times that, weights leave the range of fp16: take one "
            "nearer to 1."
        )
    run = ended["run"]
    run = {**run, "strength": strength * run.get("strength", 1.0)}
    if (there := read_run(into)) is not None and there["run"] != run:
        raise ValueError(f"{into} holds another adapter: name another folder, or delete it first.")
    if has_other_card(into):
        raise ValueError(f"{into} has a {CARD} of its own: name another folder.")
    _write(into, scaled, adapter.config, {**ended, "run": run})
    return into


def has_other_card(folder: Path) -> bool:
    """Whether there is a README.md in a folder that no adapter of this book brought."""
    card = folder / CARD
    if not card.is_file():
        return card.exists()
    return SIGNED not in card.read_text(encoding="utf-8", errors="replace")


def _write(
    folder: Path, weights: dict[str, Tensor], config: PeftConfig, ended: dict[str, Any]
) -> None:
    """To the side, then renamed file by file, ``run.json`` last: without it an adapter is not
    finished."""
    half = {name: value.detach().cpu().half().contiguous() for name, value in weights.items()}
    if wrong := [name for name, value in half.items() if not value.isfinite().all()]:
        raise AdapterError(
            f"{wrong[0]} is not finite in fp16, so nothing is saved: train with a lower "
            "learning_rate."
        )
    config.target_modules = sorted(config.target_modules)  # a set: in another order every time
    card = _card(**ended, base=config.base_model_name_or_path)
    with _beside(folder) as part:
        save_file(half, part / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(part))
        (part / CARD).write_text(card, encoding="utf-8")
        (part / RUN).write_text(json.dumps(ended, indent=1) + "\n", encoding="utf-8")
        for name in (WEIGHTS, CONFIG, CARD, RUN):
            (part / name).replace(folder / name)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder to write into what goes to ``folder``; both are gone where that fails, ``folder``
    if it had nothing else in it."""
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=PART, dir=folder) as part:
                yield Path(part)
        except BaseException:
            with suppress(OSError):
                folder.rmdir()
            raise
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise AdapterError(
            f"the adapter cannot be written to {folder} ({said}): make room, or take another "
            "folder; then the same again."
        ) from error


def published_adapter(name: str) -> Path:
    """The folder of one of the book's own adapters, e.g. ``"x-boundary"``; see ``own_file``.

    Raises:
        AdapterError: it is neither here nor at its public address.
    """
    try:
        return [own_file(f"artifacts/cpu/{name}/{part}") for part in FILES][0].parent
    except ValueError as error:
        raise AdapterError(f"adapter {name} cannot be had: {error}") from error


def merged(model: PreTrainedModel, folder: str | os.PathLike[str]) -> PreTrainedModel:
    """``model`` with the adapter in ``folder`` added into its weights, in place.

    Raises:
        AdapterError: there is no adapter, it is damaged, it is of another model or changes another
            number of weights than it holds; the model is then as before.
    """
    return add(model, read_adapter(folder))


def add(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """``merged`` of an adapter that has been read. Of peft's two ways to apply one, this is the
    exact one: what it would leave out, or bring besides, is an error before any weight changes.
    """
    weights, folder = adapter.weights, adapter.folder
    # Several models have the same shapes; ``load_model`` notes which one this is.
    learned_on, here = adapter.run.get("model", ""), getattr(model, "xb_digest", "")
    if learned_on != here and is_digest(learned_on) and is_digest(here):
        raise AdapterError(
            f"the adapter in {folder} is of a model of the digest {learned_on:.12}…, not of this "
            f"one ({here:.12}…): load that model."
        )
    changing = [name for name, (a, b) in adapter.places.items() if a.any() and b.any()]
    if not changing and adapter.run.get("strength", 1.0):
        raise AdapterError(f"the adapter in {folder} changes nothing: its weights are all 0.")
    # peft would find out halfway.
    if reason := _misfit(model, weights):
        raise AdapterError(f"the adapter in {folder} does not fit this model, {reason}.")
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # of GPT-2's layers
            # On meta: what a config asks for takes no memory until the file agrees.
            learning = PeftModel(model, deepcopy(adapter.config), low_cpu_mem_usage=True)
        expected = get_peft_model_state_dict(learning, save_embedding_layers=False)
        if reason := _disagreement(weights, expected):
            raise AdapterError(f"the adapter in {folder} does not fit this model, {reason}.")
        state = {name: value.float().to(model.device) for name, value in weights.items()}
        set_peft_model_state_dict(learning, state, low_cpu_mem_usage=True)
        _merge(learning, changing, folder)
    except ValueError as error:  # peft's, of modules that it cannot change
        said = str(error).strip().splitlines()[0]
        raise AdapterError(
            f"the adapter in {folder} does not fit this model, peft says: {said}"
        ) from error
    finally:
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                model.set_submodule(name, module.get_base_layer())
        vars(model).pop("peft_config", None)
    for name, value in model.named_parameters():
        value.requires_grad_(flags[name])
    return model.eval()


def _misfit(model: PreTrainedModel, weights: dict[str, Tensor]) -> str | None:
    """Why LoRA's weights are not of this model."""
    for name, value in weights.items():
        place, _, side = name.removesuffix(".weight").rpartition(".")
        place = place.removeprefix(PREFIX)
        try:
            shape = model.get_submodule(place).weight.shape
        except AttributeError:
            return f"which has no {place}"
        axis = 1 if side == "lora_A" else 0
        if value.shape[axis] not in shape:
            return f"whose {place} is {tuple(shape)}: {side} has {value.shape[axis]}"
    return None


def _disagreement(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    if missing := sorted(expected.keys() - found.keys()):
        return f"of which it lacks {missing[0]}"
    if more := sorted(found.keys() - expected.keys()):
        return f"of which {CONFIG} does not have {more[0]}"
    for name, value in expected.items():
        if found[name].shape != value.shape:
            was, must = tuple(found[name].shape), tuple(value.shape)
            return f"whose {name} is {must}, not {was}"
    return None


@torch.no_grad()
def _merge(learning: PeftModel, changing: list[str], folder: Path) -> None:
    """Add every change to its weight, and count the weights that it changed."""
    layers = {
        name.removeprefix(PREFIX): module
        for name, module in learning.named_modules()
        if isinstance(module, LoraLayer)
    }
    changes = []
    for name, layer in layers.items():  # first without writing, so that the model can stay as it is
        weight = layer.get_base_layer().weight
        new = weight + layer.get_delta_weight("default").to(weight.dtype)
        if not new.isfinite().all():
            raise AdapterError(f"with the adapter in {folder}, {name} is not finite.")
        changes += [name] * (not torch.equal(new, weight))
    if len(changes) != len(changing):
        raise AdapterError(
            f"the adapter in {folder} changes {len(changes)} weights of this model and holds "
            f"{len(changing)}: in its precision the others are too small to count."
        )
    for layer in layers.values():
        layer.merge()


def _card(
    run: dict[str, object], versions: dict[str, str], curve: list[dict[str, float]], base: str
) -> str:
    def table(values: dict[str, object]) -> str:
        return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in values.items())])

    recipe = run.get("recipe", {})
    last = {k: round(v, 4) for k, v in curve[-1].items()} if curve else {}
    return f"""---
base_model: {base}
library_name: peft
language: en
---

# A defense of {recipe.get("model", base)}

LoRA adapter, fp16. {SIGNED}; the base model's
weights are those with the digest below, and its licence holds.

{table({k: v for k, v in run.items() if k != "recipe"})}

## Intended use and limits

For study and teaching: to see what such training changes inside a small model, and what it costs.
It protects no product. Attacks succeed against it, those that know of it first of all, and it can
answer harmless requests with a refusal or with gibberish. How often is in the book's results, with
n, interval and seed; one seed says little. Prompts were English and in general terms.

## Recipe

{table(recipe)}

## Terms at the last step

{table(last)}

## Versions

{table(versions)}
"""
