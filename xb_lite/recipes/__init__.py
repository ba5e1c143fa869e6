"""Recipes: everything that decides what a training run does, except data and seed, as small files.

A recipe is a JSON file here or of your own; ``load_recipe`` checks it before anything is computed.
What the fields do is derived in 04_xboundary_loss and tried out in 05_training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from xb_lite.recipes.kinds import (
    METHODS,
    Baseline,
    Budget,
    Recipe,
    RecipeError,
    is_number,
    usual_values,
)


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(
        path.name.removesuffix(".json")
        for path in files(__name__).iterdir()
        if path.name.endswith(".json")
    )


def parse_change(text: str) -> tuple[str, object]:
    """``field=value`` as it would stand in a recipe; what is no JSON is a text."""
    field, _, value = text.partition("=")
    try:
        return field, json.loads(value)
    except ValueError:
        return field, value


def own_recipe(method: str, model: str) -> str:
    """The name under which a recipe for a method and model comes with the package, if one does."""
    return _own().get((method, model), f"{method}-{model.removesuffix('-aligned')}")


@cache
def _own() -> dict[tuple[str, str], str]:
    read = {n: json.loads((files(__name__) / f"{n}.json").read_text()) for n in recipe_names()}
    return {(values["method"], values["model"]): name for name, values in read.items()}


def changes_of(recipe: Budget) -> dict[str, object]:
    """What a recipe changes in the one that comes with the package for its method and model; of one
    that has none there, nothing can be said, and the changes are empty."""
    name = own_recipe(recipe.method, recipe.model)
    if name not in recipe_names():
        return {}
    own, found = _whole(load_recipe(name)), _whole(recipe)
    changed = sorted(_changed(own, found), key=_place)
    return {field: found[field] for field in changed if field != "source"}


def run_name(
    method: str, changes: Mapping[str, object], recipe: str | os.PathLike[str] | None = None
) -> str:
    """The one name of a setting in paths, e.g. ``"x-boundary,steps=300,schedule=450"``.

    The length of a run comes first, the strength last, and the others by name. A value is written
    as the recipe has its type (45 is 45.0, and 1.6e-3 is 0.0016), and one that is the recipe's own
    is no change.

    Args:
        recipe: what is changed; None for a method without one, as steering.

    Raises:
        RecipeError: there is no such recipe.
    """
    own = _whole(load_recipe(recipe)) if recipe is not None else {"strength": 1.0}
    own.setdefault("strength", 1.0)
    kept = {}
    for field, value in changes.items():
        if isinstance(own.get(field), float) and is_number(value):
            value = float(value)
        if field not in own or value != own[field] or recipe is None:
            kept[field] = value
    said = (f"{field}={kept[field]}" for field in sorted(kept, key=_place))
    return ",".join([method, *said])


def _place(field: str) -> tuple[int, str]:
    first = {"steps": 0, "schedule": 1, "strength": 3, "match": 3}
    return first.get(field, 2), field


def load_recipe(name: str | os.PathLike[str], /, **changes: object) -> Recipe | Baseline:
    """A recipe by name, or from a JSON file of your own, with ``changes`` to its fields.

    A changed recipe is not the one that its ``source`` speaks of. So ``source`` then begins with
    the fields that were changed and the name of the recipe, unless it is among the changes itself.

    Raises:
        RecipeError: there is no such recipe, or a field is missing, unknown or cannot be.

    Example:
        >>> load_recipe("x-boundary-smollm2-135m", steps=7).source
        'steps changed from x-boundary-smollm2-135m: this book'
    """
    path = Path(name) if str(name).endswith(".json") else files(__name__) / f"{name}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RecipeError(
            f"there is no recipe {str(name)!r}; there are {', '.join(recipe_names())}, or give a "
            "JSON file."
        ) from None
    except ValueError as error:
        raise RecipeError(f"recipe {name} is no JSON: {error}.") from None
    own = values if isinstance(values, dict) else {}
    values = {**own, **changes} if own else {}
    kind = METHODS.get(str(values.get("method")))
    if kind is None:
        raise RecipeError(
            f"method of recipe {name} is {values.get('method')!r:.60}; it must be one of "
            f"{', '.join(METHODS)}."
        )
    known = {field.name for field in fields(kind)}
    optional = usual_values(kind).keys()
    if wrong := (known ^ values.keys()) - (optional - values.keys()):
        listed = ", ".join(
            # On one line, whatever is in it.
            f"{repr(field)[1:-1]:.60} ({'missing' if field in known else 'unknown'})"
            for field in sorted(wrong)
        )
        raise RecipeError(f"recipe {name} has wrong fields: {listed}.")
    recipe = kind(**values)
    changed = _changed({**usual_values(kind), **own}, _whole(recipe))
    if not changed or "source" in changes:
        return recipe
    what = f"{', '.join(changed)} changed from {path.name.removesuffix('.json')}"
    return replace(recipe, source=f"{what}: {recipe.source}")


def _changed(own: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """The fields that differ, in their order."""
    return [field for field in found if field not in own or found[field] != own[field]]


def recipe_for(
    method: str, model: str, layers: Sequence[int], **changes: object
) -> Recipe | Baseline:
    """The recipe that comes with the package for a method and model; for a model that has none,
    that of SmolLM2-135M, fitted to the model's depth.

    Args:
        model: for ``load_model``.
        layers: the target layers of the fitted one, as of ``hidden.layers_at``; LoRA is on all
            layers up to the last of them.

    Raises:
        RecipeError: there is no such method, or a change is unknown or cannot be.
    """
    own = own_recipe(method, model)
    if own in recipe_names():
        return load_recipe(own, **changes)
    fitted: dict[str, object] = {"model": model, "lora_layers": max(layers) + 1}
    if issubclass(METHODS.get(method, Baseline), Recipe):
        fitted["target_layers"] = list(layers)
    return load_recipe(f"{method}-smollm2-135m", **{**fitted, **changes})


def as_fields(recipe: Budget) -> dict[str, object]:
    """The recipe as JSON can hold it, without the controls that it has not (``usual_values``):
    those of before there were controls are the same as ever."""
    usual = usual_values(type(recipe))
    return {
        field: value
        for field, value in _whole(recipe).items()
        if field not in usual or value != usual[field]
    }


def _whole(recipe: Budget) -> dict[str, object]:
    """All its fields, as JSON can hold them."""
    return json.loads(json.dumps(asdict(recipe)))
