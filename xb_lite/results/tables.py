"""Results as tables a person can read, in a terminal and on a page."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from xb_lite.results.contract import named, read_result

# What a reader looks at first, in this order; the file has more.
SHOWN = ("asr", "asr-any-turn", "asr-last-turn", "orr", "served")

LONG = 36  # characters of a line: longer ones are sentences

TITLES = {
    "asr": "ASR",
    "asr-any-turn": "ASR, any turn",
    "asr-last-turn": "ASR, last turn",
    "orr": "ORR",
}


def judged(result: dict, metrics: Iterable[str] = SHOWN) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table: what was measured on which set, and a column for each judge.

    Cells read ``value [low, high]`` in percent; n is of the items with a verdict.
    """
    rows = [row for row in result["rows"] if row["judge"] is not None]
    judges = list(dict.fromkeys(row["judge"] for row in rows))
    cells: dict[tuple[str, str, str], dict[str, dict]] = {}
    for metric in metrics:
        for row in rows:
            if row["metric"] == metric:
                place = (metric, row["set"], row["attack"])
                cells.setdefault(place, {})[row["judge"]] = row
    heads = ["rate", "asked", "n", *judges]
    return heads, [
        [
            TITLES.get(metric, metric),
            set_ if attack in ("direct", set_) else f"{set_}, {attack}",
            str(max(row["n"] for row in by_judge.values())),
            *(_percent(by_judge[judge]) if judge in by_judge else "" for judge in judges),
        ]
        for (metric, set_, attack), by_judge in cells.items()
    ]


def as_html(result: dict, metrics: Iterable[str] = SHOWN) -> str:
    """``judged`` as a table for a page."""
    return html_table(*judged(result, metrics))


def html_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table for a page, of texts; it scrolls sideways where the page is narrow. A line break in a
    cell is one on the page; sentences are broken where they must, numbers and names are not."""

    def cell(text: str, tag: str) -> str:
        is_long = max(map(len, text.split("\n"))) > LONG
        flow = "min-width:14em" if is_long else "white-space:nowrap"
        look = f"{flow};padding:2px 6px;text-align:left"
        return f'<{tag} style="{look}">{escape(text).replace(chr(10), "<br>")}</{tag}>'

    def line(cells: Iterable[str], tag: str) -> str:
        return f"<tr>{''.join(cell(text, tag) for text in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    table = f"<table><thead>{line(heads, 'th')}</thead><tbody>{body}</tbody></table>"
    return f'<div style="overflow-x:auto" tabindex="0">{table}</div>'


def print_result(path: str | os.PathLike[str]) -> None:
    """Print a result as a table, with its capability and where it lies."""
    result = named(read_result(path), path)
    console = Console(width=max(104, Console().width))  # narrower, cells would be cut
    heads, rows = judged(result)
    title = f"{result['model']['name']}: rates in %, with 95 % intervals, by judge"
    table = Table(title=escape_markup(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        side = "left" if place < 2 else "right"
        table.add_column(escape_markup(head).replace("-", "-\n"), justify=side, no_wrap=True)
    for row in rows:
        table.add_row(*(escape_markup(str(cell)) for cell in row))
    console.print(table)
    for row in result["rows"]:
        if row["judge"] is None and row["metric"] not in ("new_tokens", "seconds"):
            value = _percent(row) + " %" if "k" in row else _number(row)
            console.print(f"{row['metric']} ({row['set']}): {value}, n = {row['n']}", markup=False)
    console.print(f"result: {path}", markup=False, soft_wrap=True)


def _percent(row: dict) -> str:
    value, low, high = (100 * x for x in (row["k"] / row["n"], row["low"], row["high"]))
    return f"{value:.0f} [{low:.0f},{high:.0f}]"


def _number(row: dict) -> str:
    return f"{row['mean']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
