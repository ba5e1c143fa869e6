"""Around a training run, whatever is trained: its adapter, its checkpoints, how it is stopped."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from safetensors import SafetensorError
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from xb_lite.files import write_whole
from xb_lite.models.adapter_files import FILES, WEIGHTS, AdapterError, read_adapter, read_run
from xb_lite.models.adapters import PART
from xb_lite.models.precision import Precision
from xb_lite.recipes import Budget
from xb_lite.recipes.kinds import LINEAR

SAVE_EVERY = 25  # steps between checkpoints
BEGUN = "checkpoints/begun.json"
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and what to change."""


def passes(recipe: Budget, processes: int | None = None) -> int:
    """Forward passes of each process in a step.

    Args:
        processes: how many; those that are running if not given.

    Raises:
        TrainingError: the pairs of a step cannot be shared by the processes.
    """
    processes = processes or int(os.environ.get("WORLD_SIZE", 1))
    found, rest = divmod(recipe.pairs, recipe.pairs_at_once * processes)
    if rest:
        raise TrainingError(
            f"pairs is {recipe.pairs}; it must be a multiple of pairs_at_once "
            f"({recipe.pairs_at_once}) times the number of processes ({processes})."
        )
    return found


def arguments(
    recipe: Budget,
    folder: Path,
    precision: Precision,
    seed: int,
    kind: type = TrainingArguments,
    **more: object,
) -> TrainingArguments:
    """The arguments of transformers' Trainer, or with ``kind`` of one of trl's, which has ``more``.

    Raises a TrainingError as ``passes`` does.
    """
    settings: dict[str, object] = dict(
        output_dir=str(folder / "checkpoints"),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.pairs_at_once,
        gradient_accumulation_steps=passes(recipe),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,  # transformers' default, said here
        use_cpu=precision.device == "cpu",
        bf16=torch.bfloat16 in (precision.products, precision.weights),
        fp16=precision.weights == torch.float16,
        logging_steps=1,
        save_steps=SAVE_EVERY,
        save_total_limit=1,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=seed,
    )
    # Newer transformers warn of the old name; trl's default is True, so it is always said.
    name = "activation" if hasattr(kind, "activation_checkpointing") else "gradient"
    settings[f"{name}_checkpointing"] = recipe.gradient_checkpointing
    settings[f"{name}_checkpointing_kwargs"] = {"use_reentrant": False}
    made = kind(**{**settings, **more})
    if made.n_gpu > 1:  # without a launcher Trainer would share each step among all GPUs by itself
        made._n_gpu = 1
    return made


class Progress(TrainerCallback):
    """A bar for a terminal or a notebook, and the caller's own picture of each step."""

    def __init__(self, steps: int, on_step: Callable[[dict[str, float]], None] | None) -> None:
        self.steps, self.on_step = steps, on_step

    def on_train_begin(self, args, state, control, **_) -> None:
        self.bar = tqdm(
            total=self.steps,
            initial=state.global_step,
            desc="training",
            leave=False,
            disable=not state.is_world_process_zero,
        )

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if state.is_world_process_zero and "loss" in (logs or {}):  # the last is of the whole run
            rows = curve(state)
            self.bar.update(rows[-1]["step"] - self.bar.n)
            self.bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}")
            if self.on_step:
                self.on_step(rows[-1])

    def on_train_end(self, args, state, control, **_) -> None:
        self.bar.close()


def curve(state: TrainerState) -> list[dict[str, float]]:
    """What was logged of every step so far, also of those before a run was resumed, by name: a
    checkpoint has them in that order."""
    left_out = ("epoch", "learning_rate")
    return [
        {name: value for name, value in sorted(row.items()) if name not in left_out}
        for row in state.log_history
        if "loss" in row
    ]


class StopAfterStep(TrainerCallback):
    """An interrupt ends training after the step under way, with a checkpoint."""

    asked = False

    def __enter__(self) -> StopAfterStep:
        # With several processes each would stop at a step of its own, and wait for the others.
        self.alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
        self.alone = self.alone and threading.current_thread() is threading.main_thread()
        if self.alone:
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self.alone:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, *_: object) -> None:
        if self.asked:  # a second time: at once
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args, state, control, **_) -> None:
        if self.asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **_) -> None:
        if state.global_step >= state.max_steps:
            self.asked = False  # it was the last step anyway


@contextmanager
def adapted(model: PreTrainedModel, recipe: Budget, seed: int) -> Iterator[PeftModel]:
    """``model`` with a new adapter in it, which is taken off again after."""
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    own_forward, use_cache = vars(model).get("forward"), model.config.use_cache
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(LINEAR),
        layers_to_transform=list(recipe.layers_with_lora),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learning = get_peft_model(model, config)
        for name, value in learning.named_parameters():
            if recipe.lora_std and "lora_B" in name:
                nn.init.normal_(value, std=recipe.lora_std)
    try:
        yield learning
    finally:
        learning.unload()
        vars(model).pop("forward", None)  # trl puts one of its own there
        if own_forward is not None:
            model.forward = own_forward
        model.config.use_cache = use_cache  # of transformers' Trainer, as is the next
        model.disable_input_require_grads()
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.gradient_checkpointing = False
        for name, value in model.named_parameters():
            value.requires_grad_(flags[name])
        model.eval()


def no_casts_twice(model: PeftModel, precision: Precision) -> AbstractContextManager:
    """Autocast casts what goes into the adapter's products; peft would cast it to the dtype of the
    adapter's weights before, and both once more on the way back."""
    return disable_input_dtype_casting(model, active=precision.products is not None)


@contextmanager
def clear_memory_errors(recipe: Budget) -> Iterator[None]:
    try:
        yield
    except TrainingError:
        raise
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch raises a plain RuntimeError.
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if known or "tried to allocate" in str(error).lower():
            raise TrainingError(
                f"there is not enough memory for pairs_at_once = {recipe.pairs_at_once} and "
                f"max_tokens = {recipe.max_tokens}: lower either, or set gradient_checkpointing."
            ) from error
        raise


@contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """As of a full disk at a checkpoint, which each library says in its own way."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _of_disk(error, folder):
            raise
        said = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise TrainingError(
            f"{folder} cannot be written to ({said}): make room; the same command then goes on "
            "from the last checkpoint."
        ) from error


def _of_disk(error: Exception, folder: Path) -> bool:
    """Whether it is of writing to ``folder``, and not of any other file or connection."""
    if not isinstance(error, OSError):
        return isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error)
    if error.filename is None:
        return error.errno in DISK_ERRORS
    return Path(str(error.filename)).resolve().is_relative_to(folder.resolve())


def check_same(folder: Path, run: dict) -> None:
    """Raise a TrainingError where ``folder`` has a run in it that differs in any field of ``run``,
    which may be some of them. Where a recipe comes from decides nothing."""
    begun = folder / BEGUN
    if (finished := read_run(folder)) is not None:
        found = finished["run"]
    else:
        found = json.loads(begun.read_text()) if begun.exists() else run
    found, run = _without_source(found), _without_source(run)
    if wrong := [name for name in run if found.get(name) != run[name]]:
        raise TrainingError(
            f"{folder} has a run of another {', '.join(wrong)} in it; take another folder, or "
            "begin anew."
        )


def _without_source(run: dict) -> dict:
    recipe = run.get("recipe")
    if not isinstance(recipe, dict):
        return run
    return {**run, "recipe": {name: recipe[name] for name in recipe if name != "source"}}


def take_up(folder: Path, run: dict, resume: bool) -> list[dict[str, float]] | None:
    """The curve of the same run, if it is finished; None if it is to be begun or gone on with.

    Raises a TrainingError where the folder has another run in it, and an AdapterError where the
    finished one is damaged.
    """
    first = os.environ.get("RANK", "0") == "0"  # of several processes the one that writes
    if resume:
        check_same(folder, run)
        if (finished := read_run(folder)) is not None:
            read_adapter(folder)
            if first:  # a kill can fall between the last file and this
                clear(folder)
            return finished["curve"]
    elif first:
        # What a run makes and no more: the folder may be one that has other things in it.
        clear(folder)
        shutil.rmtree(folder / "last_good", ignore_errors=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    if first:
        write_whole(folder / BEGUN, json.dumps(run))  # another process may be reading it
    return None


def clear(folder: Path) -> None:
    """Remove what a run needs while it is under way, and what a killed one left of its adapter.
    Checkpoints that no run here began stay."""
    for part in folder.glob(f"{PART}*"):
        shutil.rmtree(part, ignore_errors=True)
    if (begun := folder / BEGUN).exists():
        # Renamed first: of checkpoints that a kill left by halves a later run would go on.
        aside = begun.parent.rename(folder / f"{PART}checkpoints")
        shutil.rmtree(aside, ignore_errors=True)


def last_checkpoint(folder: Path) -> str | None:
    """The last one that is whole: its state is written last.

    Raises:
        TrainingError: its adapter is damaged; peft would go on from whatever part it finds.
    """
    states = (folder / "checkpoints").glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")
    whole = [state.parent for state in states if state.read_text().rstrip().endswith("}")]
    if not whole:
        return None
    last = max(whole, key=lambda path: int(path.name.split("-")[1]))
    if (last / WEIGHTS).exists():  # not where processes have parts of it
        try:
            read_adapter(last)
        except AdapterError as error:
            raise TrainingError(f"{error} Begin anew (--no-resume).") from error
    return str(last)
