"""Tasks of lm-evaluation-harness by name, as rows of a result. Most fetch data and want a GPU."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xb_lite.results.contract import mean_row, rate_row
from xb_lite.results.stats import mean, rate

RIGHT_OR_WRONG = re.compile(r"[^,]*acc|(exact_match|em),")  # of "metric,filter"


def harness_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    limit: int | None = None,
    include_path: str | None = None,
    batch_size: int = 8,
) -> list[dict]:
    """A row for each task and metric of lm-evaluation-harness (Gao et al., 2023).

    Prompts, examples and metrics are the task's own, in the tokenizer's chat template; generation
    is greedy unless the task samples. Autocast around the call holds inside. The harness sets the
    global random seeds. ``n`` counts items.

    Items that are right or wrong make a rate, ``"accuracy"``; where a task has several, the name
    in the harness follows, as in ``"accuracy-acc_norm"``, ``"accuracy-exact_match,strict-match"``.
    Any other metric keeps its name and is a mean, in the harness's units. One that is no mean of a
    number an item (bleu of a corpus, perplexity) has no row. Warns of a task without any.

    Args:
        tasks: names of tasks, tags or groups; a group has rows for its tasks, none of its own.
        limit: the first so many items of each task; all by default.
        include_path: a folder with task files of your own, besides those of the harness.
        batch_size: requests that run together; less needs less memory.

    Raises:
        ValueError: no items; and see ``check_tasks``. All before any work.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"tasks {tasks} with limit {limit}: nothing would be measured.")
    manager = check_tasks(tasks, include_path)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # The harness switches autocast off around the model, unless it is told of it.
    device = model.device.type
    products = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    run_as = {"batch_size": batch_size, "mixed_precision_dtype": products}
    lm = HFLM(model, tokenizer=tokenizer, **run_as, enable_thinking=False)  # as dialogues.render
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    run = {"tasks": list(tasks), "limit": limit, "task_manager": manager, "bootstrap_iters": 0}
    allowed = {"confirm_run_unsafe_code": _code_may_run()}
    found = simple_evaluate(model=lm, **run, **chat, **allowed)
    return [row for t, s in found["samples"].items() for row in _rows(t, s, found["results"][t])]


def check_tasks(tasks: Sequence[str], include_path: str | None = None) -> object:
    """The harness's task manager, if it knows all of ``tasks`` and may run them.

    Raises:
        ValueError: the harness is not installed, there are no tasks, or a name is unknown; or a
            task runs what the model writes (HumanEval, MBPP), and ``HF_ALLOW_CODE_EVAL=1`` is not
            in the environment, with which the harness's own metric is allowed to.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'xb-lite[harness]' brings it.") from error
    if not tasks:
        raise ValueError("no tasks: nothing would be measured.")
    manager = TaskManager(include_path=include_path)
    if wrong := [task for task in tasks if task not in manager.all_tasks]:
        raise ValueError(f"no tasks with these names: {', '.join(wrong)}; see `lm_eval ls tasks`.")
    running = [task for task in tasks if _runs_code(manager.task_index, task)]
    if running and not _code_may_run():
        raise ValueError(
            f"{', '.join(running)}: the code that the model writes is run on this machine. Set "
            "HF_ALLOW_CODE_EVAL=1 where that can do no harm, as in a container, or leave it out."
        )
    return manager


def _code_may_run() -> bool:
    return os.environ.get("HF_ALLOW_CODE_EVAL") == "1"


def _runs_code(index: Mapping[str, object], task: str | dict) -> bool:
    """Whether the code that a model writes is run in a task of the harness's index, or in one of a
    group or tag."""
    if isinstance(task, str):
        if not (entry := index.get(task)):  # a name that is made within a group
            return False
        config = entry.cfg or {"task": sorted(entry.tags)}  # a tag has no config
    else:  # within a group: another one, or a task with changes
        config = task
    parts = config.get("task", [])
    if isinstance(parts, str):
        parts = [] if parts == task else [parts]
    return bool(config.get("unsafe_code")) or any(_runs_code(index, part) for part in parts)


def _rows(task: str, samples: list[dict], totals: dict[str, float]) -> list[dict]:
    """A row for each metric and filter whose total in the harness is the mean over the items."""
    items: dict[str, list] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            items.setdefault(f"{metric},{sample['filter']}", []).append(sample[metric])
    means = {
        name.removesuffix(",none"): np.array(values, dtype=float)
        for name, values in items.items()
        if all(isinstance(value, int | float | np.number | np.bool_) for value in values)
        and abs(np.mean(values) - totals.get(name, np.nan)) < 1e-6
    }
    if not means:
        warnings.warn(f"{task} has no metric that is a mean over its items: no row.", stacklevel=3)
    rates = [m for m, v in means.items() if RIGHT_OR_WRONG.match(f"{m},") and set(v) <= {0, 1}]
    named = {name: "accuracy" if len(rates) == 1 else f"accuracy-{name}" for name in rates}
    return [
        rate_row(rate(values == 1), named[name], task, "direct", None)
        if name in named
        else mean_row(mean(values), name, task, "direct")
        for name, values in means.items()
    ]
