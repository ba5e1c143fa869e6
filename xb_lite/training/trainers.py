"""What every trainer here does beyond transformers': items in the order drawn, terms by name, and a
halt at the last good weights where a loss is not finite.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import SequentialSampler
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from xb_lite.dialogues import padding_id
from xb_lite.losses.batch import Pair, collate
from xb_lite.models.precision import Precision
from xb_lite.recipes import Budget
from xb_lite.training.lora import arguments

IN_A_ROW = 3  # gradients that are not finite: then it is no accident
SCALED_IN_A_ROW = 25  # under fp16: its scale begins at 2**16, and each such step halves it


class NotFinite(Exception):  # noqa: N818 - becomes a TrainingError with the adapter's place
    """The loss of a step is not finite, or the gradients of several."""


class InOrder:
    """Mixed into a Trainer. ``terms`` are of the step under way; before the weights change they are
    summed over all processes.
    """

    term_names: tuple[str, ...] = ("loss",)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.terms = torch.zeros(len(self.term_names))
        self.remove_callback(PrinterCallback)
        self.add_callback(_KeepGood(self))

    def _get_train_sampler(self, *_: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self.terms = torch.zeros(len(self.term_names))
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def log(self, logs, *rest, **more):
        """With the terms of the step; called in every step and process."""
        if "loss" in logs:
            logs = {**logs, **dict(zip(self.term_names, self.terms.tolist(), strict=True))}
        super().log(logs, *rest, **more)


class PairTrainer(InOrder, Trainer):
    """transformers' Trainer on pairs, with a loss made of means.

    Means are over all items of a step, whatever number of processes and forward passes share them,
    so that neither changes the gradient. Subclasses say what is counted and what the terms are.
    """

    def __init__(
        self,
        recipe: Budget,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[Pair],
        folder: Path,
        precision: Precision,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments(recipe, folder, precision, seed),
            train_dataset=list(pairs),
            data_collator=lambda some: collate(some, padding_id(tokenizer)),
        )
        self.model_accepts_loss_kwargs = True  # compute_loss is given the counts of the whole step
        self.recipe = recipe

    def counts(self, batch: dict[str, Tensor]) -> Float[Tensor, " term"]:
        """What a batch adds to the divisors of the terms."""
        raise NotImplementedError

    def parts(
        self, model: nn.Module, batch: dict[str, Tensor], counts: Float[Tensor, " term"]
    ) -> tuple[Sequence[Tensor], Tensor]:
        """A batch's part of the step's terms, and of its loss; ``counts`` are the step's."""
        raise NotImplementedError

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The passes of one step, and the counts over all of them and all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = sum(self.counts(batch) for batch in batches).to(device)
        return batches, self.accelerator.reduce(counts, "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        terms, loss = self.parts(model, inputs, num_items_in_batch)
        self.terms += torch.stack([term.detach().cpu() for term in terms])
        # Processes average their gradients; what they share here are parts of a sum.
        return self.accelerator.num_processes * loss


class _KeepGood(TrainerCallback):
    """Keeps the last weights whose loss was finite, and puts them back when one is not. Where the
    loss is finite and its gradient is not, the step is left out; not ``IN_A_ROW`` of them, or
    ``SCALED_IN_A_ROW``."""

    def __init__(self, trainer: InOrder) -> None:
        self.trainer = trainer
        self.good: dict[str, Tensor] = {}
        self.left_out = 0  # in a row

    def on_pre_optimizer_step(self, args, state, control, model=None, **_) -> None:
        trainer = self.trainer
        terms = trainer.terms.to(args.device)  # NCCL knows GPUs alone
        trainer.terms = trainer.accelerator.reduce(terms, "sum").cpu()
        learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if all(map(math.isfinite, trainer.terms.tolist())):
            if self._everywhere(_can_be_saved(learned), args.device):
                self.good = {name: value.detach().clone() for name, value in learned.items()}
            self._check_gradient(learned, state.global_step + 1, args)
            return
        for name, value in self.good.items():
            learned[name].data.copy_(value)
        found = ", ".join(
            f"{name} {value:.3g}"
            for name, value in zip(trainer.term_names, trainer.terms.tolist(), strict=True)
        )
        raise NotFinite(f"the loss of step {state.global_step + 1} is not finite ({found})")

    def on_step_end(self, args, state, control, model=None, **_) -> None:
        learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # Of the last update no loss tells.
        if state.global_step < state.max_steps:
            return
        if self._everywhere(_can_be_saved(learned), args.device):
            return
        for name, value in self.good.items():
            learned[name].data.copy_(value)
        raise NotFinite(f"the weights after step {state.global_step} are not finite in fp16")

    def _everywhere(self, holds: bool, device: torch.device) -> bool:
        """Whether it holds in all processes, of which each may have a part of the weights."""
        fails = torch.tensor(float(not holds), device=device)
        return self.trainer.accelerator.reduce(fails, "sum").item() == 0

    def _check_gradient(
        self, learned: dict[str, Tensor], step: int, args: TrainingArguments
    ) -> None:
        gradients = [value.grad for value in learned.values() if value.grad is not None]
        finite = self._everywhere(
            all(_local(value).isfinite().all() for value in gradients), args.device
        )
        self.left_out = 0 if finite else self.left_out + 1
        if self.left_out == (SCALED_IN_A_ROW if args.fp16 else IN_A_ROW):
            raise NotFinite(
                f"the gradients of {self.left_out} steps, to step {step}, are not finite"
            )
        # Under fp16 the scaler leaves such steps out itself, and makes its scale smaller.
        if not finite and not args.fp16:
            warnings.warn(
                f"the gradient of step {step} is not finite: the weights stay as they are.",
                stacklevel=2,
            )
            for value in learned.values():
                value.grad = None


def _can_be_saved(weights: dict[str, Tensor]) -> bool:
    """In fp16, as adapters are; of shared weights this process's part."""
    return all(_local(value.detach()).half().isfinite().all() for value in weights.values())


def _local(value: Tensor) -> Tensor:
    """What of it this process has, where FSDP shares it."""
    return value.to_local() if isinstance(value, DTensor) else value
