"""Training a defense: transformers' Trainer and peft's LoRA with the loss of X-Boundary.

One forward pass a step for all items, through the layers that the loss reads and none above. What
accelerate, DeepSpeed and FSDP do they do by their own configs. Used in 04_training.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)

from xb_lite import losses
from xb_lite.adapters import save_adapter
from xb_lite.hidden import lowest_layers
from xb_lite.models import hub_name
from xb_lite.pairs import Pair, collate, draw_pairs
from xb_lite.precision import Precision
from xb_lite.recipes import Recipe, as_fields
from xb_lite.runs import (
    Progress,
    StopAfterStep,
    TrainingError,
    adapted,
    arguments,
    clear_memory_errors,
    curve,
    fast_attention,
    last_checkpoint,
    take_up,
)
from xb_lite.steps import Reference, forward, step_terms, token_counts
from xb_lite.training_sets import Sets


@dataclass(frozen=True)
class Trained:
    """A finished run: where its adapter is, and its terms at every step."""

    folder: Path
    curve: list[dict[str, float]]


def train(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sets,
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
    checkpoint.

    Args:
        sets: from ``reference_sets`` of the same model.
        model_digest: what identifies the model's weights, for the card.
        on_step: called with the terms after every step, e.g. to draw them.
        resume: False begins anew.

    Raises:
        RecipeError: the model or the sets do not fit the recipe; before training.
        TrainingError: the folder has another run in it; the loss is not finite, and the adapter of
            the last good step is saved; or there is not enough memory.
        KeyboardInterrupt: it was stopped; the same call goes on.
    """
    recipe.check_model(model.config.get_text_config().num_hidden_layers)
    pairs = draw_pairs(recipe, sets, tokenizer, seed)
    run = {
        "recipe": as_fields(recipe),
        "seed": seed,
        "sets": sets.digest,
        "model": model_digest,
        "precision": str(precision),
    }
    folder = Path(folder)
    if (done := take_up(folder, run, resume)) is not None:
        return Trained(folder, done)
    base = hub_name(recipe.model)
    with (
        lowest_layers(model, recipe.lora_layers),
        adapted(model, recipe, seed) as learning,
        fast_attention(model, precision, max(map(len, pairs))),
        clear_memory_errors(recipe),
        StopAfterStep() as stop,
    ):
        trainer = XBoundaryTrainer(recipe, learning, tokenizer, pairs, folder, precision, seed)
        trainer.add_callback(Progress(recipe.steps, on_step))
        trainer.add_callback(stop)
        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        except _NotFinite as error:
            save_adapter(learning, folder / "last_good", run, curve(trainer.state), base)
            raise TrainingError(
                f"{error}; the adapter of the step before is in {folder / 'last_good'}. A lower "
                "learning_rate or a higher retain_weight may help."
            ) from None
        if stop.asked:
            raise KeyboardInterrupt(f"stopped after step {trainer.state.global_step}")
        if trainer.is_world_process_zero():
            save_adapter(learning, folder, run, curve(trainer.state), base)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        return Trained(folder, curve(trainer.state))


class XBoundaryTrainer(Trainer):
    """transformers' Trainer with the loss of X-Boundary (or of circuit breakers, by recipe).

    Means are over all items of a step, whatever number of processes and forward passes share them,
    so that neither changes the gradient.
    """

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
        pad_id = tokenizer.pad_token_id
        super().__init__(
            model=model,
            args=arguments(recipe, folder, precision, seed),
            train_dataset=list(pairs),
            data_collator=lambda some: collate(some, pad_id),
            callbacks=[_KeepGood(self)],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # compute_loss is given the counts of the whole step
        self.recipe = recipe
        self.reference = Reference(recipe, pairs, pad_id)
        self.terms = torch.zeros(3)  # of the step under way, over all processes once it is whole

    def _get_train_sampler(self, *_: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The passes of one step, and the tokens of each term in all of them and all processes."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        counts = sum(token_counts(self.recipe, batch) for batch in batches).to(device)
        self.terms = torch.zeros(3)
        return batches, self.accelerator.reduce(counts, "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This pass's part of the step's loss."""
        peft_model = self.accelerator.unwrap_model(model)
        reference = self.reference.of(model, peft_model, inputs)
        states = forward(model, peft_model, inputs, self.recipe)
        terms = step_terms(self.recipe, inputs, states, reference, num_items_in_batch)
        self.terms += torch.stack([term.detach().cpu() for term in terms])
        weights = losses.coefficients(
            self.state.global_step + 1, self.recipe.schedule, self.recipe.alpha
        )
        # Processes average their gradients; what they share here are parts of a sum.
        return self.accelerator.num_processes * losses.total(
            weights, terms, self.recipe.retain_weight, self.recipe.separate_weight
        )

    def log(self, logs, *rest, **more):
        """With the terms of the step; called in every step and process."""
        if "loss" in logs:
            logs = {**logs, **dict(zip(losses.Terms._fields, self.terms.tolist(), strict=True))}
        super().log(logs, *rest, **more)


class _NotFinite(Exception):  # noqa: N818 - becomes a TrainingError with the adapter's place
    """The loss of a step is not finite."""


class _KeepGood(TrainerCallback):
    """Keeps the last weights whose loss was finite, and puts them back when one is not."""

    def __init__(self, trainer: XBoundaryTrainer) -> None:
        self.trainer = trainer
        self.good: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **_) -> None:
        trainer = self.trainer
        trainer.terms = trainer.accelerator.reduce(trainer.terms, "sum").cpu()
        learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if all(map(math.isfinite, trainer.terms.tolist())):
            self.good = {name: value.detach().clone() for name, value in learned.items()}
            return
        for name, value in self.good.items():
            learned[name].data.copy_(value)
        found = ", ".join(
            f"{name} {value:.3g}"
            for name, value in zip(losses.Terms._fields, trainer.terms.tolist(), strict=True)
        )
        raise _NotFinite(f"the loss of step {state.global_step + 1} is not finite ({found})")
