"""What of the manifest is there already, what is of something else, and what is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from xb_lite.judges.named import IN_RESULTS
from xb_lite.judges.strings import REFUSAL_JUDGES
from xb_lite.models.loading import last_name, model_digest
from xb_lite.reproduce.manifest import LARGE, Manifest, Plan, Script, Setting, path_of
from xb_lite.results.contract import named, read_result

HOURS = 0.5  # of a result of which there is no like to go by


@dataclass(frozen=True)
class Task:
    """One result of the manifest: its ``path`` in the folder of results, and what makes it: a
    ``setting`` from a ``seed`` by a ``plan``, or a ``script``.

    ``state`` is ``"done"``, ``"stale"`` (what lies there is of something else, as ``why`` says) or
    ``"missing"``; ``seconds`` is what it took, or what its like took.
    """

    path: str
    tier: str
    state: str
    why: str = ""
    seconds: float = HOURS * 3600
    plan: Plan | None = None
    setting: Setting | None = None
    seed: int | None = None
    script: Script | None = None


def tasks_of(
    manifest: Manifest,
    folder: str | os.PathLike[str],
    only: Sequence[str] = (),
    tier: str | None = None,
) -> list[Task]:
    """Every result of a manifest and its state, in the order in which they are made.

    Args:
        folder: of the results.
        only: names of plans, or patterns of paths such as ``"cpu/test/*/x-boundary*"``.
        tier: of ``TIERS``, for those of one tier. What is for large machines and not there is left
            out unless it is meant by this or by ``only``.

    Raises:
        ValueError: nothing in the manifest is meant by ``only``.
    """
    tasks = []
    for setting in manifest.settings:
        plan = manifest.plans[setting.plan]
        for seed in setting.seeds or (None,):
            path = path_of(plan, setting, seed)
            tasks.append(Task(path, plan.tier, "missing", plan=plan, setting=setting, seed=seed))
    tasks += [Task(one.path, one.tier, "missing", script=one) for one in manifest.scripts]
    for pattern in only:
        if not any(_is_meant(task, pattern) for task in tasks):
            plans = ", ".join(manifest.plans)
            raise ValueError(f"nothing is meant by {pattern!r}: give a path, or a plan ({plans}).")
    tasks = [
        task
        for task in tasks
        if (not only or any(_is_meant(task, pattern) for pattern in only))
        and tier in (task.tier, None)
        and (only or tier or task.tier not in LARGE or (Path(folder) / task.path).is_file())
    ]
    # Of a model the same for all its tasks, and of one in a folder a read of all its files.
    weights = {name: model_digest(name) for name in {t.setting.model for t in tasks if t.setting}}
    return _with_times([_looked_at(task, Path(folder), weights) for task in tasks])


def _is_meant(task: Task, pattern: str) -> bool:
    names = (task.path, task.path.removesuffix(".json"), task.plan.name if task.plan else "")
    return any(fnmatch(name, pattern) for name in names)


def _looked_at(task: Task, folder: Path, weights: Mapping[str, str]) -> Task:
    path = folder / task.path
    if not path.is_file():
        return task
    try:
        result = read_result(path)
        if task.setting:
            named(result, path)
    except ValueError as error:
        return replace(task, state="stale", why=str(error))
    if task.setting and (why := _differs(task, result, weights[task.setting.model])):
        return replace(task, state="stale", why=why)
    return replace(task, state="done", seconds=result["seconds"])


def _differs(task: Task, result: dict, weights: str) -> str:
    """What in a result is not as the manifest says; what a result does not know is not held
    against it."""
    plan, setting = task.plan, task.setting
    said = result["setting"] or {}
    wanted = {
        "defense": setting.defense(task.seed),
        "changes": dict(setting.changes),
        "strength": 1.0 if setting.trained and setting.strength is None else setting.strength,
        "training_seed": task.seed,
    }
    if setting.match is not None:  # what it was is read off other results
        del wanted["strength"]
    found = {name: said.get(name) for name in wanted}
    wanted["judges"], found["judges"] = _judges(plan.judges), set(said.get("judges") or {})
    if plan.tier == "gpu":  # of its first results the gibberish judge is not on record
        wanted["judges"] -= {"gibberish"}
        found["judges"] -= {"gibberish"}
    wanted["reply"] = plan.max_new_tokens
    found["reply"] = (said.get("decoding") or {}).get("max_new_tokens")
    wanted["model"], found["model"] = last_name(setting.model), result["model"]["name"]
    wanted["weights"], found["weights"] = weights, result["model"]["digest"]
    if plan.digest is not None:
        wanted["items"], found["items"] = plan.digest, result["data"]["digest"]
    for name, value in wanted.items():
        if found[name] != value:
            return f"{name}: {found[name]!r:.60} in the file, {value!r:.60} in the manifest"
    return ""


def _judges(names: Sequence[str]) -> set[str]:
    """Under which results know them: ``words`` are several."""
    words = {*(judge.name for judge in REFUSAL_JUDGES), "gibberish"}
    called = {IN_RESULTS.get(name, name) for name in names if name != "words"}
    return called | (words if "words" in names else set())


def _with_times(tasks: list[Task]) -> list[Task]:
    """Of what is not done, the mean time of what is done by the same plan on the same model."""
    taken: dict[tuple, list[float]] = {}
    for task in tasks:
        if task.state == "done" and task.plan:
            taken.setdefault((task.plan.name, task.setting.model), []).append(task.seconds)
    known = {key: sum(times) / len(times) for key, times in taken.items()}
    return [
        replace(task, seconds=known.get((task.plan.name, task.setting.model), task.seconds))
        if task.plan and task.state != "done"
        else task
        for task in tasks
    ]
