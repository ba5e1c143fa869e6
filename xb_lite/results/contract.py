"""Results on disk: every number with its n and interval, and where it came from.

Pages print what is here and nothing else. A row is ``metric``, ``set``, ``attack``, ``judge`` (None
where none judged), ``n``, ``k`` (of a rate) or ``mean``, and the 95 % interval ``low`` to ``high``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from xb_lite.files import write_whole
from xb_lite.results.stats import Estimate, Rate, wilson

SCHEMA = 2
VERSIONS = ("xb-lite", "torch", "transformers", "peft", "numpy")

FIELDS = {
    *("schema", "command", "started", "seconds", "hardware", "versions"),
    *("model", "adapter", "data", "seed", "rows", "setting", "commit"),
}

KINDS = {  # of a field: its type, and its parts that are texts
    "command": (str, ()),
    "started": (str, ()),
    "seconds": (int | float, ()),
    "hardware": (str, ()),
    "versions": (dict, ()),
    "model": (dict, ("name", "digest")),
    "adapter": (dict, ()),
    "data": (dict, ("set", "split", "digest")),
    "seed": (int | list, ()),
    "commit": (str, ()),
}

MOST = 10**12  # items
CLOSE = 1e-6  # of an interval that was rounded

# What was evaluated and how; None in place of all of it for a result of several settings.
SETTING = (
    *("defense", "method", "changes", "strength", "training_seed"),
    *("decoding", "judges", "precision", "tasks"),
)


def rate_row(found: Rate, metric: str, set_: str, attack: str, judge: str | None) -> dict:
    """A rate as a row."""
    place = {"metric": metric, "set": set_, "attack": attack, "judge": judge}
    return {**place, "n": found.n, "k": found.k, "low": found.low, "high": found.high}


def mean_row(found: Estimate, metric: str, set_: str, attack: str) -> dict:
    """A mean as a row; NumPy's numbers become plain ones."""
    place = {"metric": metric, "set": set_, "attack": attack, "judge": None}
    numbers = {"mean": float(found.value), "low": float(found.low), "high": float(found.high)}
    return {**place, "n": found.n, **numbers}


def provenance(started: datetime) -> dict:
    """What a result says of its run: command, start, seconds since, machine, versions and the
    commit of the code (None outside a checkout; with ``+`` where files differed from it)."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "schema": SCHEMA,
        "command": " ".join(["python", *_command()]),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds()),
        "hardware": f"{gpu or platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": {name: version(name) for name in VERSIONS},
        "commit": _commit(),
    }


@cache
def _commit() -> str | None:
    """Of the code that this process has loaded; a commit that is made later is not its own."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    root = Path(__file__).parents[2]
    try:
        if not (root / ".git").exists():  # installed: another checkout may lie around it
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "xb_lite")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _command() -> list[str]:
    """As a reader would type it: modules and files by their names, and no server's address."""
    script = Path(sys.argv[0])
    main = sys.modules["__main__"].__spec__
    root = Path(__file__).parents[2]
    own = script.absolute()
    shown = own.relative_to(root).as_posix() if own.is_relative_to(root) else script.name
    if main:
        name = ["-m", main.name.removesuffix(".__main__")]
    else:  # the installed command is the same as the module, wherever it lies
        name = ["-m", "xb_lite"] if script.stem == "xb-lite" else [shown]
    bare = [re.sub(r"(?<![\w./])~?/(?!/)([^/,]*/)*", "", argument) for argument in sys.argv[1:]]
    return [*name, *(re.sub(r"(\w+://)[^\s,]+", r"\1…", argument) for argument in bare)]


def write_result(path: str | os.PathLike[str], result: dict) -> None:
    """Write a result as JSON, in one step.

    Raises:
        ValueError: a field of the contract is missing or unknown, a row has no n or no interval,
            or a number is not finite; nothing is written.
    """
    _check(result)
    try:
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"a result has something in it that JSON has not: {error}.") from None
    write_whole(Path(path), text)


def read_result(path: str | os.PathLike[str]) -> dict:
    """A result from its file.

    Raises:
        ValueError: there is no such file, or it is no result.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no result ({error}); evaluate to make it.") from None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no result of schema {SCHEMA}; evaluate again to make it.")
    try:
        _check(result)
        _check_kinds(result)
    except ValueError as error:
        raise ValueError(f"{path} is no result: {error}") from None
    return result


def named(result: dict, path: object) -> dict:
    """The result, which says of which model it is.

    Raises:
        ValueError: it does not.
    """
    if not (result["model"] or {}).get("name") or result["data"] is None:
        raise ValueError(f"{path} says of no model and data; evaluate again to make it.")
    return result


def _check(result: dict) -> None:
    if wrong := FIELDS ^ result.keys():
        raise ValueError(
            f"a result has the fields {sorted(FIELDS)}; wrong here: {sorted(map(str, wrong))}."
        )
    setting = result["setting"]
    if setting is not None and (not isinstance(setting, dict) or setting.keys() != set(SETTING)):
        raise ValueError(f"setting has the fields {sorted(SETTING)}, or is null: {setting!r:.200}.")
    if not isinstance(result["rows"], list):
        raise ValueError(f"rows is a list, not {result['rows']!r:.60}.")
    for number, row in enumerate(result["rows"]):
        _check_row(row, number)


def _check_kinds(result: dict) -> None:
    for name, (kind, parts) in KINDS.items():
        value = result[name]
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(f"{name} is {value!r:.60}, which it cannot be.")
        if wrong := [part for part in parts if not isinstance((value or {}).get(part, ""), str)]:
            raise ValueError(f"{wrong[0]} of {name} is no text: {value!r:.200}.")


def _check_row(row: dict, number: int) -> None:
    keys = {"metric", "set", "attack", "judge", "n", "low", "high"}
    if not isinstance(row, dict) or not keys <= row.keys() or ("k" in row) == ("mean" in row):
        raise ValueError(f"row {number} needs {sorted(keys)} and either k or mean: {row!r:.200}.")
    if not all(isinstance(row[name], str | None) for name in ("metric", "set", "attack", "judge")):
        raise ValueError(f"row {number} has a metric, set, attack or judge that is no name: {row}.")
    counts = [row[name] for name in ("n", "k") if name in row]
    numbers = [row[name] for name in ("low", "high", "mean") if name in row]
    if (
        not all(type(x) is int and 0 <= x <= MOST for x in counts)
        or not all(type(x) in (int, float) and abs(x) <= sys.float_info.max for x in numbers)
        or not 0 <= row.get("k", 0) <= row["n"]
        or row["n"] < 1
        or row["low"] > row["high"]
    ):
        raise ValueError(f"row {number} has no n, or a number that cannot be: {row!r:.200}.")
    if "k" in row:
        low, high = wilson(row["k"], row["n"])
        agree = abs(row["low"] - low) < CLOSE and abs(row["high"] - high) < CLOSE
    else:
        room = CLOSE * max(1.0, abs(row["mean"]))
        agree = row["low"] - room <= row["mean"] <= row["high"] + room
    if not agree:
        raise ValueError(
            f"row {number} has an interval that is not of its counts or mean: {row!r:.200}."
        )


_commit()  # now, not when the first result is written, hours later
