"""Recipes: everything that decides what a training run does, except data and seed, as small files.

A recipe is a JSON file here or of your own; ``load_recipe`` checks it before anything is computed.
What the fields do is derived in 04_xboundary_loss and tried out in 05_training.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
REFERENCE = ("cache", "adapter-off")
RETAIN = ("absolute", "relative")
SEPARATE = ("as_coded", "as_described", "refusal")

MOST = {"steps": 1_000_000, "pairs": 100_000, "rank": 100_000, "max_tokens": 10_000_000}
MOST_PAIRS = 5_000_000  # all are drawn before a run


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message names the field and says what to do."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every way to train an adapter has in common, so that they can be compared.

    Attributes:
        method: one of ``METHODS``.
        model: a name, folder or hub id for ``load_model``.
        lora_layers: LoRA is on decoder layers 0 up to but not with this one.
        rank, lora_alpha, dropout: of LoRA, on all linear layers (``LINEAR``).
        lora_std: standard deviation of LoRA's B at the start; 0, the usual, starts at the model
            itself.
        steps, learning_rate: constant rate, AdamW without weight decay; gradients whose norm is
            above 1 are scaled down to it.
        pairs: pairs of one item to change and one to keep in a step, over all processes.
        pairs_at_once: pairs in one forward pass; the gradients of a step are accumulated.
        max_tokens: of one item; longer ones are cut.
        boundary_share, refusal_share: of the items to keep, how many are boundary-safe prompts with
            their answers and how many refusals of harmful requests; the others are benign. Where
            the separate term is of the prompt itself (``as_coded``, ``refusal``), the item to
            change beside a boundary-safe one is the same prompt with a refusal, else a harmful one.
        multi_turn_share: of the harmful items beside benign or refused ones, and of the benign
            items, how many are dialogues of several turns. Of a harmful one the last turn and the
            response to it are changed.
        prefilled_share: of the boundary-safe and benign items to keep, how many responses begin
            with the prefill, as those to harmful requests do. At 0 a defense can tell what to
            change by these words alone, and does (02_boundary).
        gradient_checkpointing: less memory, a third more time.
        source: where the numbers come from.
    """

    method: str
    model: str
    lora_layers: int
    rank: int
    lora_alpha: int | float
    dropout: int | float
    lora_std: int | float
    steps: int
    learning_rate: int | float
    pairs: int
    pairs_at_once: int
    max_tokens: int
    boundary_share: int | float
    refusal_share: int | float
    multi_turn_share: int | float
    prefilled_share: int | float
    gradient_checkpointing: bool
    source: str

    def __post_init__(self) -> None:
        demand = self._demand
        for field in ("model", "source"):
            text = getattr(self, field)
            demand(field, isinstance(text, str) and text.strip(), "a text")
        whether = self.gradient_checkpointing
        demand("gradient_checkpointing", isinstance(whether, bool), "true or false")
        for field in ("lora_layers", "rank", "steps", "pairs", "pairs_at_once", "max_tokens"):
            demand(field, _whole(getattr(self, field), 1), "a whole number, at least 1")
        for field, most in MOST.items():
            demand(field, getattr(self, field) <= most, f"at most {most:,}, for the run to end")
        for field in ("lora_alpha", "learning_rate"):
            demand(field, _number(getattr(self, field), above=0), "a number above 0")
        demand("lora_std", _number(self.lora_std, least=0), "0 or more")
        shares = ("boundary_share", "refusal_share", "multi_turn_share", "prefilled_share")
        for field in ("dropout", *shares):
            demand(field, _number(getattr(self, field), least=0, most=1), "from 0 to 1")
        demand(
            "steps",
            self.steps * self.pairs <= MOST_PAIRS,
            f"less: {MOST_PAIRS:,} pairs in all are the most that can be drawn, and a step has "
            f"{self.pairs:,}",
        )
        demand("pairs_at_once", self.pairs % self.pairs_at_once == 0, "a divisor of pairs")
        demand(
            "refusal_share",
            self.refusal_share + self.boundary_share <= 1,
            f"at most 1 together with boundary_share, which is {self.boundary_share}",
        )

    @property
    def layers_with_lora(self) -> range:
        return range(self.lora_layers)

    def check_model(self, n_layers: int) -> None:
        """Raise a RecipeError where a model of ``n_layers`` decoder layers cannot be trained so."""
        self._demand(
            "lora_layers",
            self.lora_layers <= n_layers,
            f"at most {n_layers}: {self.model} ends there",
        )

    def _demand(self, field: str, holds: object, must: str) -> None:
        if not holds:
            raise RecipeError(f"{field} is {getattr(self, field)!r:.200}; it must be {must}.")


@dataclass(frozen=True, kw_only=True)
class Recipe(Budget):
    """X-Boundary, or circuit breakers where no item to change is boundary-safe.

    LoRA's layers are all that is run in training, and the retain term covers all of them.

    Attributes:
        target_layers: decoder layers, from 0, of the erase and separate terms.
        separate: variant of the separate term, one of ``SEPARATE``; None for circuit
            breakers.
        separate_weight: of the separate term's mean beside the erase term's; None for one mean over
            the tokens of both, as in the official code.
        retain, retain_weight: variant of the retain term, one of ``RETAIN``, and its weight.
        alpha, schedule: see ``losses.coefficients``.
        sink_tokens: first tokens that count in no term.
        reference: ``"cache"`` keeps the reference states of every item, ``"adapter-off"`` computes
            them anew in each step; the first is faster where items come again.
    """

    target_layers: tuple[int, ...]
    separate: str | None
    separate_weight: int | float | None
    retain: str
    retain_weight: int | float
    alpha: int | float
    schedule: int | float
    sink_tokens: int
    reference: str

    def __post_init__(self) -> None:
        super().__post_init__()
        demand = self._demand
        layers = self.target_layers
        whole = isinstance(layers, list | tuple) and layers and all(_whole(x, 0) for x in layers)
        demand("target_layers", whole, "a list of decoder layers, from 0")
        object.__setattr__(self, "target_layers", tuple(layers))
        demand(
            "target_layers",
            max(layers) < self.lora_layers,
            f"within the layers that are trained (lora_layers is {self.lora_layers})",
        )
        for field in ("alpha", "schedule"):
            demand(field, _number(getattr(self, field), above=0), "a number above 0")
        demand("retain_weight", _number(self.retain_weight, least=0), "0 or more")
        demand("sink_tokens", _whole(self.sink_tokens, 0), "0 or more")
        demand("retain", self.retain in RETAIN, f"one of {', '.join(RETAIN)}")
        demand("reference", self.reference in REFERENCE, f"one of {', '.join(REFERENCE)}")
        breakers = self.method == "circuit-breakers"
        known = self.separate is None if breakers else self.separate in SEPARATE
        must = "null for circuit breakers (--set separate=null)"
        demand("separate", known, must if breakers else f"one of {', '.join(SEPARATE)}")
        demand(
            "boundary_share",
            breakers or self.boundary_share > 0,
            "above 0, for the separate term needs boundary-safe items",
        )
        weight = self.separate_weight
        demand("separate_weight", weight is None or _number(weight, least=0), "0 or more, or null")


@dataclass(frozen=True, kw_only=True)
class Baseline(Budget):
    """Another way to train, on the same data; ``weight`` is of the items to change (see
    ``baselines``)."""

    weight: int | float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand("weight", _number(self.weight, above=0), "a number above 0")


@dataclass(frozen=True, kw_only=True)
class Alignment(Baseline):
    """How a subject learns to refuse (see ``training.alignment``); ``weight`` is of the refusals,
    and the rate falls linearly to 0.

    Attributes:
        first_layer: LoRA is on no layer below this one.
        first_weight: the first token of a response counts so many times.
        answer_tokens: of an answer, the first so many are learned.
        cut_share, cut_tokens: of so many pairs the first few tokens of the responses alone: more
            pairs in the same time.
        late_from, late_weight: after so many steps the boundary is learned and ``late_weight``
            stands for ``weight``.
        shallow_share: of the items to keep, how many are late harmful requests after a prefill,
            whose responses are not to change.
    """

    first_layer: int
    first_weight: int | float
    answer_tokens: int
    cut_share: int | float
    cut_tokens: int
    late_from: int
    late_weight: int | float
    shallow_share: int | float

    def __post_init__(self) -> None:
        super().__post_init__()
        demand = self._demand
        first = _whole(self.first_layer, 0) and self.first_layer < self.lora_layers
        demand("first_layer", first, f"a whole number below lora_layers, {self.lora_layers}")
        demand("late_from", _whole(self.late_from, 0), "a whole number, 0 or more")
        for field in ("first_weight", "late_weight"):
            demand(field, _number(getattr(self, field), above=0), "a number above 0")
        for field in ("answer_tokens", "cut_tokens"):
            demand(field, _whole(getattr(self, field), 1), "a whole number, at least 1")
        for field in ("cut_share", "shallow_share"):
            demand(field, _number(getattr(self, field), least=0, most=1), "from 0 to 1")

    @property
    def layers_with_lora(self) -> range:
        return range(self.first_layer, self.lora_layers)


METHODS = {
    "x-boundary": Recipe,
    "circuit-breakers": Recipe,
    "sft": Baseline,
    "dpo": Baseline,
    "gradient-ascent": Baseline,
    "refusal-tuning": Baseline,
    "alignment": Alignment,
}


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
    own = as_fields(load_recipe(name))
    found = as_fields(recipe)
    return {
        field: found[field]
        for field in sorted(found, key=_place)
        if found[field] != own.get(field) and field != "source"
    }


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
    own = as_fields(load_recipe(recipe)) if recipe is not None else {"strength": 1.0}
    own.setdefault("strength", 1.0)
    kept = {}
    for field, value in changes.items():
        if isinstance(own.get(field), float) and _number(value):
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

    Raises:
        RecipeError: there is no such recipe, or a field is missing, unknown or cannot be.
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
    values = {**values, **changes} if isinstance(values, dict) else {}
    kind = METHODS.get(str(values.get("method")))
    if kind is None:
        raise RecipeError(
            f"method of recipe {name} is {values.get('method')!r:.60}; it must be one of "
            f"{', '.join(METHODS)}."
        )
    known = {field.name for field in fields(kind)}
    if wrong := known ^ values.keys():
        listed = ", ".join(
            # On one line, whatever is in it.
            f"{repr(field)[1:-1]:.60} ({'missing' if field in known else 'unknown'})"
            for field in sorted(wrong)
        )
        raise RecipeError(f"recipe {name} has wrong fields: {listed}.")
    return kind(**values)


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
    """The recipe as JSON can hold it."""
    return json.loads(json.dumps(asdict(recipe)))


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(
    value: object, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and least <= value <= most and above < value < math.inf
