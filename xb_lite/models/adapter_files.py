"""What an adapter's folder says, read whole and checked before any model is loaded.

peft leaves out what it does not know, and warns; a defense that was not applied must not get a
number. So every field and key is either understood here or refused.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
RUN = "run.json"
FILES = (WEIGHTS, CONFIG, RUN)


class AdapterError(RuntimeError):
    """An adapter cannot be used; the message says why."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as its folder has it. ``run`` is what decided it (empty where it was not made
    by this book), ``weights`` its tensors by key: ``lora_A`` (rank, in), ``lora_B`` (out, rank)."""

    folder: Path
    config: LoraConfig
    weights: dict[str, Tensor]
    run: dict[str, Any]

    @property
    def places(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B by the linear layer that they change."""
        found = (KEY.fullmatch(key) for key in self.weights)
        names = sorted({match["place"] for match in found if match})
        return {
            name: tuple(self.weights[f"{PREFIX}{name}.lora_{side}.weight"] for side in "AB")
            for name in names
        }


PREFIX = "base_model.model."
KEY = re.compile(re.escape(PREFIX) + r"(?P<place>[\w.]+)\.lora_(?P<side>[AB])\.weight")


def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """The adapter in a folder, of this book or of the hub: LoRA on linear layers.

    Raises:
        AdapterError: there is none, a file is damaged, a field of the config is of another type or
            asks for what is not done here, a key is missing or not expected, or a tensor is of
            another shape, empty or not finite.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).exists():
            raise AdapterError(f"there is no adapter in {folder}: {name} is missing.")
    run = (read_run(folder) or {}).get("run", {})
    config = _read_config(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"the adapter in {folder} is damaged: {error}") from error
    if reason := _wrong_weights(weights, config, bool(run)) or _wrong_run(config, run):
        raise AdapterError(f"the adapter in {folder} is damaged: {reason}.")
    return Adapter(folder, config, weights, run)


def read_run(folder: str | os.PathLike[str]) -> dict | None:
    """``run.json`` of a finished adapter: ``run``, ``versions`` and ``curve``; None where there is
    none.

    Raises:
        AdapterError: the file is damaged.
    """
    path = Path(folder) / RUN
    if not path.exists():
        return None
    try:
        ended = json.loads(path.read_text(encoding="utf-8"))
        reason = _no_run(ended)
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    if reason:
        raise AdapterError(f"{path} is damaged ({reason}); delete it and train again.")
    return ended


def _no_run(ended: object) -> str | None:
    if not isinstance(ended, dict):
        return "it is no object"
    for name, kind in (("run", dict), ("versions", dict), ("curve", list)):
        if not isinstance(ended.get(name), kind):
            return f"its {name} is {ended.get(name)!r:.60}"
    for row in ended["curve"]:
        # A gradient that was left out is not finite.
        if not isinstance(row, dict) or not {type(value) for value in row.values()} <= {int, float}:
            return f"its curve has {row!r:.60}"
    run = ended["run"]
    recipe, strength = run.get("recipe", {}), run.get("strength", 1.0)
    if not isinstance(recipe, dict) or not isinstance(recipe.get("model", ""), str):
        return f"its recipe is {recipe!r:.60}"
    if not isinstance(run.get("model", ""), str):
        return f"its model is {run['model']!r:.60}"
    if not is_number(strength) or strength < 0:
        return f"its strength is {strength!r:.60}"
    return None


def is_number(value: object) -> bool:
    """A finite number that is no truth value; a float can hold it."""
    try:
        return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
    except OverflowError:
        return False


def is_digest(said: str) -> bool:
    """Of a model's weights, with that of an adapter in them behind it; see ``model_digest``."""
    return re.fullmatch(r"[0-9a-f]{64}(\+[0-9a-f]{64})?", said) is not None


# The config.


def _whole(value: object) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _names(value: object) -> bool:
    """peft takes them as patterns, which could mean more than they say, or never end."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(name, str) and re.fullmatch(r"[\w.]+", name) for name in value)
        and len(set(value)) == len(value)
    )


def _layers(value: object) -> bool:
    if type(value) is int:
        return 0 <= value < 2**31
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(layer) is int and 0 <= layer < 2**31 for layer in value)
        and len(set(value)) == len(value)
    )


def _pattern(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, dict)
        and all(re.fullmatch(r"[\w.]+", name) and fits(one) for name, one in value.items())
    )


def _above(value: object) -> bool:
    return is_number(value) and 0 < value < 1e6  # type: ignore[operator]


def _or_none(kind: type) -> Callable[[object], bool]:
    return lambda value: value is None or isinstance(value, kind)


NAMES = "a list of names, each once"

FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {  # what it must be, in code and words
    "peft_type": (lambda value: value == "LORA", "LORA, the only method that is applied here"),
    "task_type": (lambda value: value in (None, "CAUSAL_LM"), "CAUSAL_LM or null"),
    "r": (_whole, "a whole number of at least 1"),
    "lora_alpha": (_above, "a number above 0 and below 1e6"),
    "lora_dropout": (lambda value: is_number(value) and 0 <= value <= 1, "from 0 to 1"),
    "target_modules": (lambda value: value == "all-linear" or _names(value), NAMES),
    "layers_to_transform": (
        lambda value: value is None or _layers(value),
        "null or a list of layers, each once",
    ),
    "layers_pattern": (
        lambda value: value is None or _names([value] if isinstance(value, str) else value),
        f"null or {NAMES}",
    ),
    "rank_pattern": (_pattern(_whole), "ranks by name"),
    "alpha_pattern": (_pattern(_above), "numbers above 0 by name"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "fan_in_fan_out": (lambda value: isinstance(value, bool), "true or false"),
    "inference_mode": (lambda value: isinstance(value, bool), "true or false"),
    # Others of its values change the base model's weights.
    "init_lora_weights": (
        lambda value: value is None or isinstance(value, bool) or value == "gaussian",
        "true or false",
    ),
    "base_model_name_or_path": (_or_none(str), "a text or null"),
    "revision": (_or_none(str), "a text or null"),
    "auto_mapping": (_or_none(dict), "an object or null"),
    "peft_version": (_or_none(str), "a text or null"),
}

NEEDED = ("peft_type", "r", "lora_alpha", "target_modules")
OFF = (None, False, [], {})  # values with which a method that is not known here changes nothing


def _read_config(folder: Path) -> LoraConfig:
    path = folder / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"the adapter in {folder} is damaged: {CONFIG}: {error}") from error
    if not isinstance(fields, dict):
        raise AdapterError(f"the adapter in {folder} is damaged: {CONFIG} is no object.")
    if missing := [name for name in NEEDED if name not in fields]:
        raise AdapterError(f"{path} has no {missing[0]}: the adapter cannot be used.")
    usual = LoraConfig().to_dict()
    for name, value in fields.items():
        if name in FIELDS:
            fits, must = FIELDS[name]
            if not fits(value):
                raise AdapterError(f"{path}: {name} is {value!r:.60}; it must be {must}.")
        elif not any(type(value) is type(off) and value == off for off in (*OFF, usual.get(name))):
            shown = repr(name)[1:-1]  # on one line, whatever is in it
            raise AdapterError(
                f"{path}: {shown} is {value!r:.60}, which is not applied here, so the adapter "
                "would be another: use one that is plain LoRA."
            )
    said = {"peft_version", "auto_mapping"}  # of its making
    known = {name: value for name, value in fields.items() if name in FIELDS.keys() - said}
    try:
        return LoraConfig(**{**known, "inference_mode": True})
    except Exception as error:  # of peft's own checks, which differ by version
        raise AdapterError(f"the adapter in {folder} is damaged: {error}") from error


# The weights.


def _wrong_weights(weights: dict[str, Tensor], config: LoraConfig, own: bool) -> str | None:
    """Why these are not the weights of such an adapter, so far as can be told without the model."""
    if not weights:
        return "it has no weights"
    sides: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in weights.items():
        match = KEY.fullmatch(key)
        if match is None:
            return f"{key:.200} is no weight of LoRA on a linear layer"
        if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            return f"{key} is in {str(value.dtype).removeprefix('torch.')}"
        if value.dim() != 2 or 0 in value.shape:
            return f"{key} has the shape {tuple(value.shape)}"
        if not value.isfinite().all():
            return f"{key} is not finite"
        sides[match["place"]][match["side"]] = value
    ranks = {config.r, *config.rank_pattern.values()}
    for place, both in sides.items():
        if missing := {"A", "B"} - both.keys():
            return f"{place}.lora_{missing.pop()} is missing"
        rank = both["A"].shape[0]
        if both["B"].shape[1] != rank or rank not in ranks:
            return f"{place} has the rank {rank}, which is not that of {CONFIG} ({config.r})"
    return _wrong_places(sorted(sides), config, own)


def _wrong_places(places: list[str], config: LoraConfig, own: bool) -> str | None:
    targets, layers = config.target_modules, config.layers_to_transform
    if isinstance(targets, str):  # all linear layers: the model says which
        return None
    targets = sorted(targets)
    layers = [layers] if isinstance(layers, int) else layers
    grid = set()
    for place in places:
        fits = [name for name in targets if place == name or place.endswith(f".{name}")]
        if not fits:
            return f"{place} is none of the target_modules of {CONFIG}"
        numbers = [int(part) for part in place.split(".") if part.isdecimal()]
        if layers is not None and not set(numbers[:1]) & set(layers):
            return f"{place} is in none of the layers_to_transform of {CONFIG}"
        grid.add((numbers[0] if numbers else None, fits[0]))
    found = {layer for layer, _ in grid}
    if missing := sorted(set(targets) - {name for _, name in grid}):
        return f"no weight is of {missing[0]}, one of the target_modules of {CONFIG}"
    if missing := sorted(set(layers or ()) - found):
        return f"layer {missing[0]}, one of the layers_to_transform of {CONFIG}, has no weights"
    if own:  # of this book: every linear layer in every layer
        for layer in found:
            if missing := sorted(name for name in targets if (layer, name) not in grid):
                return f"{missing[0]} of layer {layer} has no weights"
    return None


def _wrong_run(config: LoraConfig, run: dict[str, Any]) -> str | None:
    """Where config and run of one adapter disagree."""
    recipe = run.get("recipe", {})
    for field, found in (("rank", config.r), ("lora_alpha", config.lora_alpha)):
        if recipe.get(field, found) != found:
            return f"{RUN} says {field} {recipe[field]!r:.60}, and {CONFIG} {found}"
    return None
