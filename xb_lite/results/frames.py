"""Results as tables: the book's own, by name, one row of one, or all of a folder in one frame."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from xb_lite.files import own_file, write_whole
from xb_lite.results.contract import SETTING, named, read_result
from xb_lite.results.stats import Estimate, Rate, rate

INDEX = Path("index.json")
FRAMED = ("metric", "set", "attack", "judge", "n", "k", "low", "high")


def published(name: str) -> Path:
    """A file of the book's own ``results/``, e.g. ``"cpu/smollm2-135m/none.json"``.

    Raises:
        ValueError: it is neither here nor at its public address.
    """
    return own_file(f"results/{name}")


def write_index(folder: Path) -> None:
    """Write which results are in ``folder``, for ``published_results``: a web address cannot be
    listed."""
    names = sorted({file.stem for file in folder.glob("*.json")} - {INDEX.stem})
    write_whole(folder / INDEX, json.dumps(names, indent=1) + "\n")


def published_results(folder: str) -> list[str]:
    """Names of the results in a folder of the book's own ``results/``, e.g.
    ``"cpu/test/smollm2-135m-aligned"``; errors as of ``published``."""
    return json.loads(published(f"{folder}/{INDEX}").read_text(encoding="utf-8"))


def find(result: dict, metric: str, **where: str | None) -> Estimate:
    """The one row of a metric at a set, attack and judge; that of a count is a ``Rate``.

    Raises:
        ValueError: no row, or more than one, is there.
    """
    rows = [
        row for row in result["rows"] if row["metric"] == metric and where.items() <= row.items()
    ]
    if len(rows) != 1:
        raise ValueError(
            f"{len(rows)} rows for {metric!r} at {where}; say which set, attack, judge."
        )
    row = rows[0]
    if "k" in row:
        return Rate(row["k"] / row["n"], row["n"], row["low"], row["high"], row["k"])
    return Estimate(row["mean"], row["n"], row["low"], row["high"])


def frame(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """All results of a folder as one table, a row a rate or mean, with what was evaluated.

    Columns: ``model``, ``defense``, ``method``, ``changes`` (a dict), ``strength``, ``seed`` (of
    the training), ``split``, ``metric``, ``set``, ``attack``, ``judge``, ``n``, ``k`` (missing for
    a mean), ``value``, ``low``, ``high``, ``hardware`` and ``file`` (its name without the ending).

    Args:
        folder: a folder on disk, or one of the book's own ``results/``, e.g.
            ``"cpu/test/smollm2-135m-aligned"``.

    Raises:
        ValueError: there is no such folder, its results are in folders within, or a file in it is
            no result.

    Example:
        >>> runs = frame("cpu/test/smollm2-135m-aligned")
        >>> asr = runs.query("metric == 'asr' and attack == 'prefill' and judge == 'x-boundary'")
        >>> asr.groupby("method")["value"].mean()  # doctest: +SKIP
    """
    if Path(folder).is_dir():
        files = {p.stem: p for p in sorted(Path(folder).glob("*.json")) if p.name != INDEX.name}
        if not files and (inside := min(Path(folder).glob("*/**/*.json"), default=None)):
            raise ValueError(f"{folder} has no results itself; {inside.parent} has.")
    else:
        names = published_results(str(folder))
        files = {name: published(f"{folder}/{name}.json") for name in names}
    rows = []
    for name, path in files.items():
        result = named(read_result(path), path)
        setting = result["setting"] or dict.fromkeys(SETTING)
        same = {
            "model": result["model"]["name"],
            **{field: setting[field] for field in ("defense", "method", "changes", "strength")},
            "seed": setting["training_seed"],
            "split": result["data"].get("split"),
        }
        for row in result["rows"]:
            value = row["k"] / row["n"] if "k" in row else row["mean"]
            found = {field: row.get(field) for field in FRAMED}
            rows.append(
                {**same, **found, "value": value, "hardware": result["hardware"], "file": name}
            )
    order = [
        *("model", "defense", "method", "changes", "strength", "seed", "split"),
        *("metric", "set", "attack", "judge", "n", "k", "value", "low", "high"),
        *("hardware", "file"),
    ]
    table = pd.DataFrame(rows, columns=order)
    return table.astype({"seed": "Int64", "n": "Int64", "k": "Int64", "strength": "Float64"})


def pooled(
    rows: pd.DataFrame, metric: str, sets: Collection[str], attack: str, judge: str | None
) -> Rate:
    """The rate of a metric over several sets together, of one result.

    Args:
        rows: of ``frame``, of one file.
        sets: by name; each must be there once.
        judge: None for what none judged.

    Raises:
        ValueError: a set is missing, or the rows are of more than one file.

    Example:
        >>> runs = frame("cpu/test/smollm2-135m-aligned")
        >>> one = runs[runs["file"] == "none"]
        >>> pooled(one, "asr", ["harmful", "harmbench"], "prefill", "x-boundary")  # doctest: +SKIP
    """
    judged = rows["judge"].isna() if judge is None else rows["judge"] == judge
    chosen = rows[
        (rows["metric"] == metric) & rows["set"].isin(sets) & (rows["attack"] == attack) & judged
    ]
    if sorted(chosen["set"]) != sorted(sets) or chosen["k"].isna().any():
        raise ValueError(
            f"{metric} of {', '.join(sets)} under {attack} by {judge}: {len(chosen)} rows, not one "
            "for each set; pass the rows of one file."
        )
    return rate(int(chosen["k"].sum()), int(chosen["n"].sum()))
