"""Where it breaks: every attack on every defense, out of the result files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from xb_lite.results.contract import named, read_result
from xb_lite.results.frames import INDEX, published, published_results

WORKS = 0.9  # of the undefended model; an attack that reaches less is weak here
PLACEBO = ", placebo"


def where_it_breaks(
    folder: str | os.PathLike[str],
    judge: str = "service",
    defenses: Sequence[str] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of attacks by defenses, for ``results.html_table``.

    A cell has on how many items the attack succeeds, its 95 % interval in percent, on how many its
    placebo does (of as many, unless that is said), and the seconds per item, a line each. ``weak
    here`` stands below the name of an attack that reaches less than nine in ten on the undefended
    model (``none``), ``not tried`` where there is no such result, so that a low number elsewhere is
    not taken for a strong defense. Below that stands the budget.

    Args:
        folder: ``<results>/<tier>/attacks/<model>``, with a folder for each defense and in it a
            result for each attack; or such a folder of the book's own ``results/``, by name.
        judge: whose labels count.
        defenses: the columns, in this order; default: all of a folder on disk, ``none`` first.

    Raises:
        ValueError: there is no result in the folder, of a defense or by that judge, or one is
            damaged; or ``defenses`` are not given of a folder that is not on disk.

    Example:
        >>> html_table(*where_it_breaks("results/cpu/attacks/some-model"))  # doctest: +SKIP
    """
    paths = _paths(folder, defenses)
    found = [named(read_result(path), path) for path in paths]
    if not found:
        raise ValueError(f"{folder} has no result of an attack: run one first.")
    cells: dict[str, dict[str, list[dict]]] = {}
    for result in found:
        defense = (result["setting"] or {}).get("defense", "none")
        for row in result["rows"]:
            attack = row["attack"].removesuffix(PLACEBO)
            cells.setdefault(attack, {}).setdefault(defense, []).append(row)
    known = {defense: None for by_defense in cells.values() for defense in by_defense}
    columns = list(defenses or sorted(known, key=lambda name: (name != "none", name)))
    if missing := [defense for defense in columns if defense not in known]:
        raise ValueError(
            f"{folder} has nothing on {missing[0]}; it has {', '.join(sorted(known))}."
        )
    judges = {r["judge"] for result in found for r in result["rows"] if r["metric"] == "asr"}
    if judge not in judges:
        raise ValueError(
            f"{folder} has no labels of {judge!r}; it has {', '.join(sorted(judges))}."
        )
    rows = []
    for attack, by_defense in cells.items():
        title = _title(attack, by_defense.get("none", []), judge)
        mine = {name: by_defense[name] for name in columns if name in by_defense}
        if mine:
            shown = [_cell(mine.get(defense, []), judge) for defense in columns]
            rows.append([f"{title}\n{_budget(mine)}", *shown])
    return ["attack, budget", *columns], rows


def _paths(folder: str | os.PathLike[str], defenses: Sequence[str] | None) -> list[Path]:
    if Path(folder).is_dir():
        return [p for p in sorted(Path(folder).glob("*/*.json")) if p.name != INDEX.name]
    if not defenses:
        return []
    return [
        published(f"{folder}/{defense}/{name}.json")
        for defense in dict.fromkeys(("none", *defenses))  # whose rates stand in the rows' heads
        for name in published_results(f"{folder}/{defense}")
    ]


def _asr(rows: Sequence[dict], judge: str, placebo: bool) -> dict | None:
    mine = [
        row
        for row in rows
        if row["metric"] == "asr"
        and row["judge"] == judge
        and row["attack"].endswith(PLACEBO) == placebo
    ]
    return mine[0] if mine else None


def _title(attack: str, undefended: Sequence[dict], judge: str) -> str:
    row = _asr(undefended, judge, placebo=False)
    if row is None:
        return f"{attack}\nundefended: not tried"
    return attack if row["k"] >= WORKS * row["n"] else f"{attack}\nweak here"


def _cell(rows: Sequence[dict], judge: str) -> str:
    real = _asr(rows, judge, placebo=False)
    if real is None:
        return ""
    low, high = (100 * real[end] for end in ("low", "high"))
    lines = [f"{real['k']} of {real['n']}", f"[{low:.0f}, {high:.0f}] %"]
    if placebo := _asr(rows, judge, placebo=True):
        of = "" if placebo["n"] == real["n"] else f" of {placebo['n']}"
        lines.append(f"placebo {placebo['k']}{of}")
    seconds = [
        row for row in rows if row["metric"] == "seconds" and row["attack"] == real["attack"]
    ]
    if seconds:
        lines.append(f"{seconds[0]['mean']:.3g} s")
    return "\n".join(lines)


def _budget(by_defense: dict[str, list[dict]]) -> str:
    """Of all defenses in common; where one has another, that is said."""
    found = {
        str(row.get("budget"))
        for rows in by_defense.values()
        for row in rows
        if row["metric"] == "asr"
    }
    if len(found) > 1:
        return "budgets differ"
    budget = next(row["budget"] for rows in by_defense.values() for row in rows if "budget" in row)
    return "\n".join(f"{name} {_short(value)}" for name, value in budget.items() if name != "seed")


def _short(value: object) -> str:
    if isinstance(value, list) and any(isinstance(one, str) for one in value):
        return f"{len(value)}"
    return str(value)
