"""The paper's baselines: other ways to defend, with X-Boundary's data, LoRA and budget.

The paper (arXiv 2502.09990) compares with fine-tuning on refusals, DPO and gradient ascent, whose
code it does not give; here each is as in the work that it comes from. ``training.train`` follows
their recipes. Steering, of the work on the refusal direction, trains nothing. Used in 05_training.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, logsigmoid
from transformers import PreTrainedTokenizerBase, Trainer

from xb_lite.corpora import SHORT_REFUSAL
from xb_lite.dialogues import encode
from xb_lite.losses.batch import Pair
from xb_lite.models.likelihood import token_logits, token_losses
from xb_lite.recipes import Baseline, RecipeError
from xb_lite.training.draw import draw_pairs
from xb_lite.training.lora import TrainingError, arguments
from xb_lite.training.sets import Sets
from xb_lite.training.trainers import InOrder, PairTrainer

REPLY = [{"role": "assistant", "content": SHORT_REFUSAL}]


def draw(recipe: Baseline, sets: Sets, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[Pair]:
    """All pairs of a run, in the order of training: a harmful item to change and one to keep.

    SFT and refusal tuning need no harmful response: their items are all harmful requests, with
    ``SHORT_REFUSAL``.

    Raises:
        RecipeError: a set that the recipe needs is empty, the method has no such field, a prompt
            leaves no room for a response (trl cuts at the end alone), or trl is to train a model
            that thinks.
        ValueError: an item cannot be encoded.
    """
    if recipe.method == "sft" and recipe.weight != 1:
        raise RecipeError(f"weight is {recipe.weight}; it must be 1: sft has one loss for all.")
    if recipe.method in BY_TRL and "<think>" in str(tokenizer.chat_template):
        raise RecipeError(
            f"{recipe.method} cannot train a model that thinks: trl renders dialogues by itself, "
            "and not with the thought left empty as everywhere else here. Take another method."
        )
    if recipe.method in ("sft", "refusal-tuning"):
        refused, attacks = (
            [[*dialogue[:-1], *REPLY] for dialogue in dialogues]
            for dialogues in (sets["refused"], sets["harmful_dialogues"])
        )
        sets = sets.having("written", harmful=refused, harmful_dialogues=attacks)
    if recipe.method == "dpo" and recipe.refusal_share:
        raise RecipeError(
            f"refusal_share is {recipe.refusal_share}; it must be 0: in dpo a refusal of a harmful "
            "request is what the items to change prefer already."
        )
    pairs = draw_pairs(recipe, sets, tokenizer, seed)
    for row in (row for pair in pairs for row in (pair.change, pair.keep)):
        prompt = row.dialogue[:-1]
        if row.encoding.n_cut and len(encode(tokenizer, prompt)) >= recipe.max_tokens:
            raise RecipeError(
                f"max_tokens is {recipe.max_tokens}; it must be more than the longest prompt takes."
            )
    return pairs


def sft(
    recipe: Baseline,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *where: object,
) -> Trainer:
    """Supervised fine-tuning on refusals, mixed with answers to keep, by trl's SFTTrainer.

    Minimises the mean negative log-likelihood of the tokens of all completions of a step; by trl a
    completion is the last assistant turn alone, with what the template writes behind its
    end-of-turn token. ``weight`` is 1.
    Source: Safety-Tuned LLaMAs (arXiv 2309.07875), which mixes refusals into instruction data.

    Args:
        where: folder, precision and seed, as for ``lora.arguments``.
    """
    trl = import_trl()

    class Sft(_ByTrl, trl.SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            counted = inputs["labels"] != -100
            losses = token_losses(model, self.accelerator.unwrap_model(model), inputs, counted)
            return self.accelerator.num_processes * losses.sum() / num_items_in_batch

    items = [row.dialogue for pair in pairs for row in (pair.change, pair.keep)]
    rows = [{"prompt": item[:-1], "completion": item[-1:]} for item in items]
    settings = _settings(trl.SFTConfig, recipe, where, completion_only_loss=True)
    return _on_rows(Sft, model, tokenizer, settings, rows)


def dpo(
    recipe: Baseline,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *where: object,
) -> Trainer:
    """Direct preference optimisation (arXiv 2305.18290), by trl's DPOTrainer; ``weight`` is beta.

    To a harmful request the refusal is preferred to the response. DPO has no term that keeps
    anything, so the items to keep are preferences as well: their own answer to the refusal. Each is
    a completion as in ``sft``. The reference is the model without the adapter. Arguments as there.
    """
    trl = import_trl()

    class Dpo(_ByTrl, trl.DPOTrainer):
        term_names = ("loss", "margin")

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            peft_model = self.accelerator.unwrap_model(model)
            counted = inputs["completion_mask"].bool()
            now = token_losses(model, peft_model, inputs, counted).sum(dim=1)
            with torch.no_grad(), peft_model.disable_adapter():
                before = token_losses(model, peft_model, inputs, counted).sum(dim=1)
            chosen, rejected = (before - now).chunk(2)  # log-ratios
            margin = recipe.weight * (chosen - rejected)
            self.add(margin=margin.mean() / self.current_gradient_accumulation_steps)
            return -logsigmoid(margin).mean()

    rows = []
    for pair in pairs:
        change, keep = pair.change.dialogue, pair.keep.dialogue
        rows += [
            {"prompt": change[:-1], "chosen": REPLY, "rejected": change[-1:]},
            {"prompt": keep[:-1], "chosen": keep[-1:], "rejected": REPLY},
        ]
    # Dropout as the recipe says; trl's default is none.
    settings = _settings(trl.DPOConfig, recipe, where, beta=recipe.weight, disable_dropout=False)
    trainer = _on_rows(Dpo, model, tokenizer, settings, rows)
    if "ref" in model.peft_config:  # a copy that newer versions of trl make
        model.delete_adapter("ref")
    return trainer


class GradientAscent(PairTrainer):
    """Gradient ascent on harmful responses, with descent on the responses to keep.

    Minimises ``keep - weight * change``, each the mean negative log-likelihood of the response
    tokens of a step. It has no lower end: with steps enough the model forgets how to speak.
    Sources: the ascent arXiv 2210.01504, the difference arXiv 2203.12817 and (by name) 2401.06121.
    """

    term_names = ("keep", "change")

    def counts(self, batch):
        change, keep = batch["response"].chunk(2)
        return torch.stack([keep.sum(), change.sum()]).float()

    def parts(self, model, batch, counts):
        peft_model = self.accelerator.unwrap_model(model)
        losses = token_losses(model, peft_model, batch, batch["response"])
        change, keep = (half.sum() for half in losses.chunk(2))
        keep, change = torch.stack([keep, change]) / counts.clamp(min=1)
        return (keep, change), keep - self.recipe.weight * change


class RefusalTuning(PairTrainer):
    """A refusal to harmful requests, and to all others what the model said before.

    Minimises ``refuse + weight * drift``: the mean negative log-likelihood of the refusal's tokens,
    and the mean Kullback-Leibler divergence of the model's next-token distribution from that of
    the model without the adapter, over the tokens of the responses to keep.
    """

    term_names = ("refuse", "drift")

    def counts(self, batch):
        change, keep = batch["response"].chunk(2)
        return torch.stack([change.sum(), keep.sum()]).float()

    def parts(self, model, batch, counts):
        peft_model = self.accelerator.unwrap_model(model)
        change, keep = batch["response"].chunk(2)
        logits = token_logits(model, peft_model, batch, batch["response"])
        refused, now = logits.split([int(change.sum()), int(keep.sum())])
        lower = {name: batch[name].chunk(2)[1] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), peft_model.disable_adapter():
            before = token_logits(model, peft_model, lower, keep).log_softmax(dim=-1)
        ids = batch["input_ids"].chunk(2)[0][change]
        refuse = cross_entropy(refused, ids, reduction="sum")
        drift = kl_div(now.log_softmax(dim=-1), before, reduction="sum", log_target=True)
        refuse, drift = torch.stack([refuse, drift]) / counts.clamp(min=1)
        return (refuse, drift), refuse + self.recipe.weight * drift


TRAINERS = {
    "sft": sft,
    "dpo": dpo,
    "gradient-ascent": GradientAscent,
    "refusal-tuning": RefusalTuning,
}

BY_TRL = ("sft", "dpo")


class _ByTrl(InOrder):
    """Mixed into one of trl's trainers, of which all is used but the code of the loss.

    On a CPU that reads the vocabulary out at every token, of prompts and padding too, which takes
    as long as all the rest.
    """

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.add(loss=loss)
        return loss

    def add(self, **means: Tensor) -> None:
        """This pass's part of the step's terms."""
        for name, value in means.items():
            part = value.detach().cpu() / self.accelerator.num_processes
            self.terms[self.term_names.index(name)] += part

    def _send_telemetry(self) -> None:
        """trl tells its makers of every run; a book does not."""


def import_trl() -> ModuleType:
    """trl, which takes seconds. Raises a TrainingError where it is not installed."""
    try:
        import trl
    except ImportError as error:
        raise TrainingError(f"{error}: pip install 'xb-lite[baselines]' brings it.") from error
    return trl


def _settings(kind: type, recipe: Baseline, where: Sequence[object], **more: object) -> object:
    items = 2 * recipe.pairs_at_once  # in one pass; a row is an item here, not a pair
    sizes = {"per_device_train_batch_size": items, "max_length": recipe.max_tokens}
    return arguments(recipe, *where, kind=kind, **sizes, **more)


def _on_rows(
    kind: type, model: PeftModel, tokenizer: PreTrainedTokenizerBase, settings, rows: list[dict]
) -> Trainer:
    """A trainer of trl's on conversational rows, which it renders by the tokenizer's template."""
    import datasets

    data = datasets.Dataset.from_list(rows)
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return kind(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    finally:
        if shown:
            datasets.enable_progress_bars()
