"""What the book measures of every subject, alike: sets, attacks, judges, capability, one result.

A subject is a model with a defense. Its result and its log lie side by side in one folder; the log
has a line an item, so that two subjects can be compared item by item.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from xb_lite.data.items import Item, items_digest
from xb_lite.evaluation.capability import capability_rows
from xb_lite.evaluation.harness import check_tasks, harness_rows
from xb_lite.evaluation.outcomes import check_given, check_log, evaluate, seconds_spent
from xb_lite.evaluation.summary import summarise
from xb_lite.intention.defenses import Defended
from xb_lite.judges.named import judges
from xb_lite.judges.strings import Judge
from xb_lite.models.precision import Precision
from xb_lite.recipes import METHODS, RecipeError, changes_of
from xb_lite.replies.shares import ask_shared, processes
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding
from xb_lite.results.contract import provenance, read_result, write_result


def setting_of(
    subject: Subject,
    precision: Precision,
    decoding: Decoding,
    judged_by: Sequence[Judge],
    tasks: Sequence[str] = (),
) -> dict[str, object]:
    """What a result says was evaluated and how (``results.SETTING``), as JSON can hold it.

    ``changes`` are those of the recipe that comes with the package for the method and model, and
    empty where this package cannot read the adapter's recipe, as one of a fork's method;
    ``strength`` is 1 for an adapter as it was trained, None where nothing was. The method of an
    adapter that does not say how it was trained, as one from the hub, is ``adapter``.
    """
    run = (subject.adapter or {}).get("run") or {}
    recipe = run.get("recipe") or {}
    trained = recipe.get("method") or ("adapter" if subject.adapter else subject.method)
    methods = [trained, subject.prompt]
    return {
        "defense": subject.defense,
        "method": "+".join(filter(None, methods)) or "none",
        "changes": _changes(recipe),
        "strength": run.get("strength", 1.0) if subject.adapter else subject.strength,
        "training_seed": run.get("seed"),
        "decoding": decoding.settings(),
        "judges": {judge.name: judge.source for judge in judged_by},
        "precision": subject.identity(precision)["precision"],
        "tasks": list(tasks),
    }


def _changes(recipe: dict) -> dict[str, object]:
    try:
        read = METHODS[recipe["method"]](**recipe)
    except (KeyError, TypeError, RecipeError):  # the result has it whole, under ``adapter``
        return {}
    return changes_of(read)


def evaluate_subject(
    subject: Subject,
    items: Sequence[Item],
    precision: Precision,
    decoding: Decoding,
    folder: str | os.PathLike[str],
    *,
    split: str = "test",
    tasks: Sequence[str] = (),
    task_limit: int | None = None,
    capability: bool = True,
    judged_by: Sequence[Judge] | None = None,
    more_rows: Callable[[], list[dict]] = list,
    resume: bool = True,
) -> Path:
    """Evaluate a subject on all items and write ``<folder>/<subject>/<defense>.json``.

    The log lies beside it (``.jsonl``), of the same items. A run that was stopped goes on where it
    was; one of more items adds to it, one without some of them is refused. A finished result of the
    same setting on the same items is left as it is. ``seconds`` are of all attempts: asking,
    judging, and what is measured after them. Of several processes each asks its share, and the
    first does the rest; the log is as that of one.

    Args:
        items: from ``plan``.
        precision: of the subject; that of one behind a server does not count.
        split: of ``items``, and of what capability is measured on.
        tasks: names of lm-evaluation-harness tasks, measured as well, on the first ``task_limit``
            items of each (see ``harness_rows``).
        capability: False leaves out the quiz and the passages of ``capability_rows``, as they are
            left out for a subject behind a server.
        judged_by: default: ``judges``.
        more_rows: what else the result holds; called once all items are judged.
        resume: False asks and judges these items anew, and writes the result again.

    Raises:
        ValueError: an item or a task cannot be asked, a judge is none, or several processes are to
            begin anew.
        LogError: an earlier run of other settings or of other items is in the way, or the folder
            cannot be used.
    """
    started = datetime.now(UTC)
    if tasks and (subject.model is None or isinstance(subject.backend, Defended)):
        raise ValueError(
            "harness tasks need a model on this machine, not one behind a server or a prompt."
        )
    if tasks:
        check_tasks(tasks)
    judged_by = judges() if judged_by is None else judged_by
    check_given(items, judged_by)
    path = Path(folder) / subject.name / f"{subject.defense}.json"
    identity, log = subject.identity(precision), path.with_suffix(".jsonl")
    same = {
        "model": {
            "name": subject.name,
            "digest": subject.digest,
            **({"date": subject.date} if subject.date else {}),
        },
        "adapter": subject.adapter,
        "data": {
            "set": ", ".join(dict.fromkeys(item.set for item in items)),
            "split": split,
            "digest": items_digest(items),
        },
        "seed": decoding.seed,
        "setting": setting_of(
            subject,
            precision,
            decoding,
            judged_by,
            [f"{task}, first {task_limit}" if task_limit else task for task in tasks],
        ),
    }
    if resume and _is_finished(path, same, capability and subject.model is not None):
        return path
    if processes() > 1:
        if not resume:
            raise ValueError(
                "several processes cannot begin anew together: delete the result first."
            )
        # By each of them, before hours of asking: one alone would leave the others waiting.
        check_log(items, judged_by, decoding, subject=identity, log=log)
    if not ask_shared(subject.backend, items, decoding, subject=identity):
        return path
    outcomes = evaluate(
        subject.backend,
        items,
        judged_by,
        decoding,
        subject=identity,
        log=log,
        resume=resume,
        alone=True,
    )
    rows, measured = summarise(outcomes), time.monotonic()
    with precision.autocast():
        if capability:
            rows += capability_rows(subject, split)
        if tasks:
            rows += harness_rows(subject.model, subject.tokenizer, tasks, task_limit)
    rows += more_rows()
    spent = seconds_spent(log) + time.monotonic() - measured
    run = provenance(started)
    if subject.model is None:
        run["hardware"] = f"behind a server; judged on {run['hardware']}"
    write_result(path, {**same, "rows": rows, **run, "seconds": round(spent)})
    return path


def _is_finished(path: Path, same: dict, capability: bool) -> bool:
    """Whether there is a result of all of this already, with capability where it is asked for; what
    is no result is made anew."""
    try:
        there = read_result(path)
    except ValueError:
        return False
    if capability and not any(row["set"] == "quiz" for row in there["rows"]):
        return False
    return all(there[name] == value for name, value in json.loads(json.dumps(same)).items())
