"""Training a defense: transformers' Trainer and peft's LoRA with the loss of X-Boundary.

One forward pass a step for all items, through the layers that the loss reads and none above. What
accelerate, DeepSpeed and FSDP do they do by their own configs. Recipes of other methods are
followed the same way, by the trainers in ``WAYS``. Used in 05_training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from xb_lite import losses
from xb_lite.dialogues import padding_id
from xb_lite.hidden import lowest_layers
from xb_lite.losses.batch import Pair
from xb_lite.losses.step import Reference, forward, step_terms, token_counts
from xb_lite.models.adapters import save_adapter
from xb_lite.models.loading import hub_name, without_place
from xb_lite.models.packing import by_row
from xb_lite.models.precision import Precision
from xb_lite.recipes import Baseline, Budget, Recipe, as_fields
from xb_lite.training import alignment, baselines, intention_tuning
from xb_lite.training.checks import check_drawn, check_fit, check_place, check_seed
from xb_lite.training.draw import draw_pairs
from xb_lite.training.lora import (
    Progress,
    StopAfterStep,
    TrainingError,
    adapted,
    clear,
    clear_disk_errors,
    clear_memory_errors,
    curve,
    last_checkpoint,
    no_casts_twice,
    take_up,
)
from xb_lite.training.official import OfficialSets
from xb_lite.training.sets import Sets
from xb_lite.training.trainers import NotFinite, PairTrainer

# Of the methods that are no variant of X-Boundary: how pairs are drawn, and by what they train.
WAYS = {
    **{method: (baselines.draw, build) for method, build in baselines.TRAINERS.items()},
    "alignment": (alignment.draw, alignment.AlignmentTrainer),
    "intention-tuning": (intention_tuning.draw, intention_tuning.IntentionTuning),
}


@dataclass(frozen=True)
class Trained:
    """A finished run: where its adapter is, and its terms at every step."""

    folder: Path
    curve: list[dict[str, float]]


def train(
    recipe: Recipe | Baseline,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sets | OfficialSets,
    folder: str | os.PathLike[str],
    precision: Precision,
    *,
    seed: int = 0,
    model_digest: str = "",
    on_step: Callable[[dict[str, float]], None] | None = None,
    resume: bool = True,
) -> Trained:
    """Train an adapter by a recipe and save it in ``folder``; ``model`` is as before afterwards.

    A run that was stopped goes on from its last checkpoint, and a finished one is not made again.
    An interrupt (Ctrl-C, or a notebook's stop button) ends it after the step under way, with a
    checkpoint; of several processes at once, and it goes on from the last checkpoint there is.

    Args:
        sets: from ``reference_sets`` of the same model, or from ``official_sets``.
        model_digest: what identifies the model's weights, for the card.
        on_step: called with the terms after every step, e.g. to draw them.
        resume: False begins anew.

    Raises:
        RecipeError: the model or the sets do not fit the recipe, or the seed is none; before
            training.
        TrainingError: the folder has another run in it, or checkpoints or a README.md that are not
            of a run, or cannot be written to; the loss is not finite, and the adapter of the last
            good step is saved; there is not enough memory; or a package is missing.
        KeyboardInterrupt: it was stopped; the same call goes on.
    """
    check_seed(seed)
    check_fit(recipe, model)
    baseline = isinstance(recipe, Baseline)
    draw, build = WAYS.get(recipe.method, (draw_pairs, XBoundaryTrainer))
    if isinstance(sets, OfficialSets):
        pairs = sets.draw(recipe, tokenizer, seed)
    else:
        pairs = draw(recipe, sets, tokenizer, seed)
    check_drawn(recipe, pairs)
    run = {**identity(recipe, seed, model_digest, precision), "sets": sets.digest}
    folder = Path(folder)
    check_place(recipe, folder, resume)
    if (done := take_up(folder, run, resume)) is not None:
        return Trained(folder, done)
    base = hub_name(recipe.model)
    with (
        nullcontext() if baseline else lowest_layers(model, recipe.lora_layers),
        adapted(model, recipe, seed) as learning,
        by_row(model),
        no_casts_twice(learning, precision),
        clear_memory_errors(recipe),
        clear_disk_errors(folder),
        StopAfterStep() as stop,
    ):
        trainer = build(recipe, learning, tokenizer, pairs, folder, precision, seed)
        trainer.add_callback(Progress(recipe.steps, on_step))
        trainer.add_callback(stop)
        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        except NotFinite as error:
            _save(trainer, learning, folder / "last_good", run, base)
            raise TrainingError(
                f"{error}; the adapter of the step before is in {folder / 'last_good'}. A lower "
                f"learning_rate{'' if baseline else ' or a higher retain_weight'} may help."
            ) from None
        if stop.asked:
            raise KeyboardInterrupt(f"stopped after step {trainer.state.global_step}")
        _save(trainer, learning, folder, run, base)
        if trainer.is_world_process_zero():
            clear(folder)
        trainer.accelerator.wait_for_everyone()
        return Trained(folder, curve(trainer.state))


def _save(
    trainer: Trainer, learning: PeftModel, folder: Path, run: dict[str, object], base: str
) -> None:
    """``save_adapter`` of a trainer's model by one process; called in all."""
    whole = None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # each process has a part
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        save_adapter(learning, folder, run, curve(trainer.state), base, whole)


def identity(
    recipe: Budget, seed: int, model_digest: str, precision: Precision
) -> dict[str, object]:
    """What decides a run beside its sets; see ``train``. It is published, so it names no place."""
    return {
        "recipe": {**as_fields(recipe), "model": without_place(recipe.model)},
        "seed": seed,
        "model": model_digest,
        "precision": str(precision),
    }


class XBoundaryTrainer(PairTrainer):
    """The loss of X-Boundary (or of circuit breakers, by recipe)."""

    term_names = losses.Terms._fields

    def __init__(
        self,
        recipe: Recipe,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[Pair],
        folder: Path,
        precision: Precision,
        seed: int = 0,
    ) -> None:
        super().__init__(recipe, model, tokenizer, pairs, folder, precision, seed)
        self.reference = Reference(recipe, pairs, padding_id(tokenizer), seed)

    def counts(self, batch):
        return token_counts(self.recipe, batch)

    def parts(self, model, batch, counts):
        peft_model = self.accelerator.unwrap_model(model)
        reference = self.reference.of(model, peft_model, batch)
        states = forward(model, peft_model, batch, self.recipe)
        terms = step_terms(self.recipe, batch, states, reference, counts)
        step, recipe = self.state.global_step + 1, self.recipe
        weights = losses.coefficients(step, recipe.schedule, recipe.alpha)
        return terms, losses.total(weights, terms, recipe.retain_weight, recipe.separate_weight)
