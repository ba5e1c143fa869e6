"""Adapters on disk: safetensors that plain peft and vLLM load, with a card that says what they are.

Weights are kept in fp16: half the size, and what is evaluated is what was saved.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from xb_lite.files import own_file, write_whole

WEIGHTS = "adapter_model.safetensors"


CONFIG = "adapter_config.json"


RUN = "run.json"


FILES = (WEIGHTS, CONFIG, RUN)


VERSIONS = ("xb-lite", "torch", "transformers", "peft")


# peft asks by the old name; nobody who reads a page can mend that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


class AdapterError(RuntimeError):
    """An adapter cannot be used; the message says why."""


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
        AdapterError: there is no adapter of this book in the folder, or it is damaged.
        ValueError: the strength is not a number of at least 0, both folders are one, or ``into``
            holds another adapter.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"the strength is {strength}; it must be a number of at least 0.")
    folder, into = Path(folder), Path(into)
    if folder.resolve() == into.resolve():
        raise ValueError(
            f"{into} holds the adapter itself: name another folder for the scaled one."
        )
    weights, config = _read(folder)
    if (ended := read_run(folder)) is None:
        raise AdapterError(f"there is no finished adapter in {folder}: {RUN} is missing.")
    # LoRA's change is B A: one of them carries the factor.
    scaled = {k: v.float() * strength if ".lora_B." in k else v for k, v in weights.items()}
    run = ended["run"]
    run = {**run, "strength": strength * run.get("strength", 1.0)}
    if (there := read_run(into)) is not None and there["run"] != run:
        raise ValueError(f"{into} holds another adapter: name another folder, or delete it first.")
    _write(into, scaled, config, {**ended, "run": run})
    return into


def _write(
    folder: Path, weights: dict[str, Tensor], config: PeftConfig, ended: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.detach().cpu().half().contiguous() for name, value in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    config.target_modules = sorted(config.target_modules)  # a set: in another order every time
    config.save_pretrained(str(folder))
    card = _card(**ended, base=config.base_model_name_or_path)
    (folder / "README.md").write_text(card, encoding="utf-8")
    # Last: an adapter without it is not finished.
    write_whole(folder / RUN, json.dumps(ended, indent=1) + "\n")


def read_run(folder: str | os.PathLike[str]) -> dict | None:
    """``run.json`` of a finished adapter; None where there is none.

    Raises:
        AdapterError: the file is damaged.
    """
    path = Path(folder) / RUN
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path} is damaged ({error}); delete it and train again.") from None


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
        AdapterError: there is no adapter, it is damaged, or it is of another model, which is then
            as before.
    """
    weights, config = _read(Path(folder))
    if reason := _misfit(model, weights):  # peft would find out halfway, or leave layers out
        raise AdapterError(f"the adapter in {folder} does not fit this model, {reason}.")
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    model = PeftModel.from_pretrained(model, str(folder), config=config).merge_and_unload()
    for name, value in model.named_parameters():
        value.requires_grad_(flags[name])
    return model.eval()


def _read(folder: Path) -> tuple[dict[str, Tensor], PeftConfig]:
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).exists():
            raise AdapterError(f"there is no adapter in {folder}: {name} is missing.")
    try:
        return load_file(folder / WEIGHTS), PeftConfig.from_pretrained(str(folder))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"the adapter in {folder} is damaged: {error}") from error


def _misfit(model: PreTrainedModel, weights: dict[str, Tensor]) -> str | None:
    """Why LoRA's weights are not of this model."""
    for name, value in weights.items():
        place, _, side = name.removesuffix(".weight").rpartition(".")
        place = place.removeprefix("base_model.model.")
        try:
            shape = model.get_submodule(place).weight.shape
        except AttributeError:
            return f"which has no {place}"
        axis = 1 if side == "lora_A" else 0
        if value.shape[axis] != shape[axis]:
            return f"whose {place} is {tuple(shape)}: {side} has {value.shape[axis]}"
    return None


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
---

# A defense of {recipe.get("model", base)}

LoRA adapter, fp16. Made by the book on defending chat models against jailbreaks; the base model's
weights are those with the digest below, and its licence holds.

{table({k: v for k, v in run.items() if k != "recipe"})}

## Recipe

{table(recipe)}

## Terms at the last step

{table(last)}

## Versions

{table(versions)}
"""
