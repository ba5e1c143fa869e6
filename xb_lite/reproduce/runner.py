"""Make every result of the manifest that is missing, one after another or several workers at once.

A worker takes the first task that no other one holds. It can be killed at any time: an evaluation
goes on from its log, a training from its last checkpoint, and a result is written whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from filelock import FileLock, Timeout

from xb_lite.data.items import Item, items_digest
from xb_lite.data.public import BENCHMARKS
from xb_lite.evaluation.outcomes import read_log
from xb_lite.evaluation.runs import evaluate_subject
from xb_lite.evaluation.styles import by_style
from xb_lite.evaluation.targets import by_target
from xb_lite.files import cache_folder, digest
from xb_lite.intention.prompts import restates
from xb_lite.judges.named import judges_named
from xb_lite.judges.strings import Judge
from xb_lite.models.loading import precision_of
from xb_lite.models.precision import Precision
from xb_lite.replies.cache import ask
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding
from xb_lite.reproduce import matching
from xb_lite.reproduce.manifest import MANIFEST, Plan, items_of, load_manifest
from xb_lite.reproduce.matching import NeededFirstError, at_matched_strength
from xb_lite.reproduce.status import Task, tasks_of
from xb_lite.reproduce.subjects import subject_of
from xb_lite.results.contract import rate_row
from xb_lite.results.frames import write_index
from xb_lite.results.stats import rate
from xb_lite.session import tier as tier_here

ROOT = Path(__file__).parents[2]


def reproduce(
    folder: str | os.PathLike[str] = "results",
    *,
    only: Sequence[str] = (),
    tier: str | None = None,
    files: Mapping[str, str] | None = None,
    manifest: str | os.PathLike[str] = MANIFEST,
) -> list[Task]:
    """Make what of the manifest is missing in a folder of results, and say how far it is.

    What another worker is making is left to it; what needs that first waits, and if nothing else
    is left it stays missing, as is said. What is stale is left as it is: delete the file, with its
    log, and it is made again.

    Args:
        folder: of the results.
        only, tier: as in ``tasks_of``.
        files: your copies of public sets, by name.
        manifest: the file.

    Returns:
        All tasks that are meant, as they are at the end.

    Raises:
        ManifestError: see ``load_manifest``; or what a setting needs first is neither there
            nor meant.
        ValueError: nothing is meant by ``only``, a copy in ``files`` is of no public set or is not
            there, a script is not there (the package runs outside its repository) or wrote another
            file, or the items of a plan are not those of the manifest. And the errors of training
            and evaluation.
    """
    for name, path in (files or {}).items():
        if name not in BENCHMARKS:
            raise ValueError(f"there is no public set {name!r}; there are {', '.join(BENCHMARKS)}.")
        if not Path(path).is_file():
            raise ValueError(f"{path}, your copy of {name}, is not there.")
    book = load_manifest(manifest)
    look = partial(tasks_of, book, folder, only, tier)

    def waits(task: Task) -> NeededFirstError | None:
        """What it waits for, where it can neither be made nor be left to another worker."""
        lock = _lock(folder, task.path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        try:
            path = Path(folder) / task.path
            if not path.exists():  # another worker may just be done
                print(progress(look(), task), flush=True)
                _make(task, Path(folder), files, book.plans)
            with _lock(folder, f"{Path(task.path).parent}/index"):
                write_index(path.parent)
        except NeededFirstError as needed:
            if needed.path not in {one.path for one in look()}:
                raise
            return needed
        finally:
            lock.release()
        return None

    left = [task for task in look() if task.state == "missing"]
    while left:
        waiting = [(task, needed) for task in left if (needed := waits(task))]
        if len(waiting) == len(left):
            task, needed = waiting[0]
            print(f"{len(left)} wait for what is not there yet: {task.path} for {needed.path}")
            break
        left = [task for task, _ in waiting]
    return look()


def progress(tasks: Sequence[Task], task: Task | None = None) -> str:
    """One line: how many are done, what is missing and stale, and the hours that are left on one
    machine like that of the others."""
    count = {state: sum(t.state == state for t in tasks) for state in ("done", "missing", "stale")}
    hours = sum(t.seconds for t in tasks if t.state == "missing") / 3600
    line = f"{count['done']} of {len(tasks)} done, {count['missing']} missing"
    line += f", {count['stale']} stale" if count["stale"] else ""
    line += f", about {hours:.1f} h left" if count["missing"] else ""
    return f"{line}; now {task.path}" if task else line


def _lock(folder: str | os.PathLike[str], path: str) -> FileLock:
    """Of a path within a folder of results; in the cache, for results are committed."""
    where = digest(str(Path(folder).resolve()))[:8]
    place = cache_folder() / "locks" / where / f"{path.replace('/', '_')}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(place)


def _make(
    task: Task, folder: Path, files: Mapping[str, str] | None, plans: Mapping[str, Plan]
) -> None:
    if task.script:
        _run_script(task, folder, files)
        return
    plan, setting = task.plan, task.setting
    if setting.match is not None:
        setting = at_matched_strength(plans[matching.PLAN], setting, task.seed, folder)
    items = _items(plan, files)
    precision = precision_of(setting.model, exact=plan.exact)
    decoding = Decoding(plan.max_new_tokens)
    with subject_of(setting, task.seed, precision, plan.edition) as subject:
        if task.setting.match is not None:  # its name says what was asked for
            subject = replace(subject, defense=task.setting.defense(task.seed))
        place = folder / plan.folder
        log = folder / Path(task.path).with_suffix(".jsonl")

        def more() -> list[dict]:
            rows = by_target(items, read_log(log)) if plan.by_target else []
            if plan.by_style:
                rows += by_style(read_log(log))
            if plan.restated:
                rows += restatements(subject, items, decoding, precision)
            return rows

        path = evaluate_subject(
            subject,
            items,
            precision,
            decoding,
            place,
            split=plan.split,
            tasks=plan.tasks,
            capability=plan.capability,
            judged_by=_judges(tuple(plan.judges)),
            more_rows=more,
        )
    if path != folder / task.path:
        raise ValueError(f"{path} was written in place of {task.path}: a name of the setting.")


@cache
def _judges(names: tuple[str, ...]) -> list[Judge]:
    return judges_named(names)


def _items(plan: Plan, files: Mapping[str, str] | None) -> list[Item]:
    items = items_of(plan, files)
    found = items_digest(items)
    if plan.digest not in (None, found):
        raise ValueError(
            f"the items of plan {plan.name} have the digest {found[:12]}, not {plan.digest[:12]} "
            "of the manifest: a public set is another edition, or a corpus was changed."
        )
    return items


def restatements(
    subject: Subject, items: Sequence[Item], decoding: Decoding, precision: Precision
) -> list[dict]:
    """Rows ``restated`` and ``restated-only`` by set and attack: which last replies begin with the
    intention, and which of them also end within the limit, so that there is nothing else in them.

    Replies are taken from the cache.
    """
    replies = ask(subject.backend, items, decoding, subject=subject.identity(precision))
    found: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for item, turns in zip(items, replies, strict=True):
        begins = restates(turns[-1].text)
        only = begins and turns[-1].finished
        found.setdefault((item.set, item.attack), []).append((begins, only))
    return [
        rate_row(rate(column), metric, set_, attack, None)
        for (set_, attack), pairs in found.items()
        for metric, column in zip(
            ("restated", "restated-only"), zip(*pairs, strict=True), strict=True
        )
    ]


def _run_script(task: Task, folder: Path, files: Mapping[str, str] | None) -> None:
    script, *words = task.script.command
    is_file = script.endswith(".py")
    if is_file and not (ROOT / script).is_file():
        raise ValueError(f"{task.path} is made by {script}, which is in the book's repository.")
    start = [str(ROOT / script)] if is_file else ["-m", script]
    copies = {name: f"{name}={path}" for name, path in (files or {}).items()}
    words = [copies.get(word, word.replace("{results}", str(folder))) for word in words]
    subprocess.run([sys.executable, *start, *words], check=True)
    if not (folder / task.path).is_file():
        raise ValueError(
            f"{script} ended without writing {task.path}; scripts write into the folder of their "
            f"machine's tier, which is {tier_here()} here."
        )
