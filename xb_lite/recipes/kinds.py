"""What a recipe can say: its fields by kind of method, and what they must be."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields

from xb_lite.corpora import STYLES

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
REFERENCE = ("cache", "adapter-off")
RETAIN = ("absolute", "relative")
SEPARATE = ("as_coded", "as_described", "refusal")
TARGETS = ("centroid", "random")

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
            demand(field, is_whole(getattr(self, field), 1), "a whole number, at least 1")
        for field, most in MOST.items():
            demand(field, getattr(self, field) <= most, f"at most {most:,}, for the run to end")
        for field in ("lora_alpha", "learning_rate"):
            demand(field, is_number(getattr(self, field), above=0), "a number above 0")
        demand("lora_std", is_number(self.lora_std, least=0), "0 or more")
        shares = ("boundary_share", "refusal_share", "multi_turn_share", "prefilled_share")
        for field in ("dropout", *shares):
            demand(field, is_number(getattr(self, field), least=0, most=1), "from 0 to 1")
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
    """X-Boundary, or circuit breakers where no item to change is boundary-safe; or a method of your
    own that changes states of the same items, as a subclass.

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
        label_noise: a control: of the boundary-safe prompts so many change places with harmful
            requests, drawn by the run's seed; see ``training.controls``.
        boundary_style: a control: boundary-safe prompts of this style alone, one of
            ``corpora.STYLES``; None for all.
        separate_target: what the separate term's states are to leave, one of ``TARGETS``:
            ``"random"`` is a control, see ``losses.targets``.
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
    label_noise: int | float = 0.0
    boundary_style: str | None = None
    separate_target: str = "centroid"

    def __post_init__(self) -> None:
        super().__post_init__()
        demand = self._demand
        layers = self.target_layers
        whole = isinstance(layers, list | tuple) and layers and all(is_whole(x, 0) for x in layers)
        demand("target_layers", whole, "a list of decoder layers, from 0")
        object.__setattr__(self, "target_layers", tuple(layers))
        demand(
            "target_layers",
            max(layers) < self.lora_layers,
            f"within the layers that are trained (lora_layers is {self.lora_layers})",
        )
        for field in ("alpha", "schedule"):
            demand(field, is_number(getattr(self, field), above=0), "a number above 0")
        demand("retain_weight", is_number(self.retain_weight, least=0), "0 or more")
        demand("sink_tokens", is_whole(self.sink_tokens, 0), "0 or more")
        demand("retain", self.retain in RETAIN, f"one of {', '.join(RETAIN)}")
        demand("reference", self.reference in REFERENCE, f"one of {', '.join(REFERENCE)}")
        one_of = f"one of {', '.join(SEPARATE)}"
        allowed, must = {
            "x-boundary": (SEPARATE, one_of),
            "circuit-breakers": ((None,), "null for circuit breakers (--set separate=null)"),
        }.get(self.method, ((None, *SEPARATE), f"{one_of}, or null"))
        demand("separate", self.separate in allowed, must)
        demand(
            "boundary_share",
            self.separate is None or self.boundary_share > 0,
            "above 0, for the separate term needs boundary-safe items",
        )
        weight = self.separate_weight
        demand(
            "separate_weight", weight is None or is_number(weight, least=0), "0 or more, or null"
        )
        self._check_controls()

    def _check_controls(self) -> None:
        demand = self._demand
        demand("label_noise", is_number(self.label_noise, least=0, most=1), "from 0 to 1")
        styles = f"one of {', '.join(STYLES)}, or null"
        demand("boundary_style", self.boundary_style in (None, *STYLES), styles)
        demand("separate_target", self.separate_target in TARGETS, f"one of {', '.join(TARGETS)}")
        without = "where boundary_share is 0: there are no boundary-safe items"
        demand("label_noise", self.boundary_share or not self.label_noise, f"0 {without}")
        demand("boundary_style", self.boundary_share or not self.boundary_style, f"null {without}")
        demand(
            "separate_target",
            self.separate is not None or self.separate_target == "centroid",
            "centroid where separate is null: there is no separate term",
        )


@dataclass(frozen=True, kw_only=True)
class Baseline(Budget):
    """Another way to train, on the same data; ``weight`` is that of the loss in ``baselines`` or
    ``intention_tuning``."""

    weight: int | float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._demand("weight", is_number(self.weight, above=0), "a number above 0")


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
        first = is_whole(self.first_layer, 0) and self.first_layer < self.lora_layers
        demand("first_layer", first, f"a whole number below lora_layers, {self.lora_layers}")
        demand("late_from", is_whole(self.late_from, 0), "a whole number, 0 or more")
        for field in ("first_weight", "late_weight"):
            demand(field, is_number(getattr(self, field), above=0), "a number above 0")
        for field in ("answer_tokens", "cut_tokens"):
            demand(field, is_whole(getattr(self, field), 1), "a whole number, at least 1")
        for field in ("cut_share", "shallow_share"):
            demand(field, is_number(getattr(self, field), least=0, most=1), "from 0 to 1")

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
    "intention-tuning": Baseline,
}


def usual_values(kind: type[Budget]) -> dict[str, object]:
    """The fields that a recipe need not name, with what they are then: its controls are off."""
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING}


def is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(
    value: object, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and least <= value <= most and above < value < math.inf
