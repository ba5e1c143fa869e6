"""How long a chapter is for its reader: words of prose, visible lines of code, figures, minutes.

    python book/tools/budgets.py [FILE ...]     a line a chapter, and status 1 where one is too long

Counted is what a reader sees without opening anything: folded parts (`<details>`), cells with the
tag hide-input, the first cell, and all that is to be done at the end are left out.
"""

import argparse
import re
import sys
from pathlib import Path

from notebook_files import chapters, code_cells, image_kinds, read

WORDS_A_MINUTE, LINES_A_MINUTE, MINUTES_A_FIGURE = 140, 25, 1
# Words, lines of code, figures; chapter 0 is a welcome, and 9 an outlook.
BUDGETS = {"00": (1200, 60, 3), "09": (2000, 150, 3)}
BUDGET = (2500, 300, 8)


def prose(notebook):
    """All Markdown before the exercises, without what is folded, code, formulas and addresses."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.split(r"\n## (?:Check yourself|Exercises)", text)[0]
    for away in (
        r"<details[^>]*>.*?</details>",
        r"```(?!\{).*?```",
        r"\$\$.*?\$\$",
        r"\$[^$\n]*\$",
        r"<!--.*?-->",
        r"^[ \t]*(:::|```)+[^\n]*$",
        r"^\|?[ \t:|-]+\|?$",
    ):
        text = re.sub(away, " ", text, flags=re.S | re.M)
    return re.sub(r"\]\([^)]*\)", "] ", text)


def counts(notebook):
    """Words, visible lines of code, figures, and minutes to read."""
    words = len(re.findall(r"\w[\w'’-]*", prose(notebook)))
    cells = code_cells(notebook)[1:]
    shown = [cell for cell in cells if "hide-input" not in cell.metadata.get("tags", [])]
    lines = sum(bool(line.strip()) for cell in shown for line in cell.source.splitlines())
    figures = sum(bool(image_kinds(cell)) for cell in cells)
    minutes = words / WORDS_A_MINUTE + lines / LINES_A_MINUTE + figures * MINUTES_A_FIGURE
    return words, lines, figures, round(minutes)


def over(path, found):
    """What of a chapter is over its budget, in words."""
    names = ("words of prose", "visible lines of code", "figures")
    budget = BUDGETS.get(path.stem[:2], BUDGET)
    return [
        f"{found[i]} {name}, {most} at most"
        for i, (name, most) in enumerate(zip(names, budget, strict=True))
        if found[i] > most
    ]


def main(arguments=None):
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("files", nargs="*", type=Path, metavar="FILE")
    paths = options.parse_args(arguments).files or chapters()
    faults = 0
    for path in paths:
        found = counts(read(path))
        shown = zip(found, ("words", "lines", "figures", "min"), strict=True)
        print(f"{path.stem:<24}" + "".join(f"{n:>6} {what}" for n, what in shown))
        for line in over(path, found):
            print(f"  {line}")
            faults += 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
