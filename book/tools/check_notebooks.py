"""Check that each committed notebook is what it says: run in order, by these cells.

    python book/tools/check_notebooks.py [FILE ...]

Prints one line for each fault, with the notebook and the cell, and ends with status 1 if there
is any. Nothing is executed.
"""

import argparse
import re
import sys
from pathlib import Path

from notebook_files import (
    code_cells,
    code_digest,
    image_kinds,
    is_report,
    machine_path,
    notebooks,
    output_texts,
    read,
)

EXERCISES = 3
QUESTIONS = (3, 5)
WIDGET = "application/vnd.jupyter.widget-view+json"


def execution_faults(notebook):
    for number, cell in enumerate(code_cells(notebook), start=1):
        if not cell.source.strip():
            yield f"code cell {number} is empty"
        if cell.execution_count is None:
            yield f"code cell {number} was not run"
        elif cell.execution_count != number:
            yield f"code cell {number} was run as number {cell.execution_count}, not in order"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"code cell {number} ended in {output.ename}: {output.evalue}"
            if WIDGET in output.get("data", {}):
                yield f"code cell {number} shows a live widget, which is blank on a page"


def record_faults(notebook):
    record = notebook.metadata.get("xb_lite")
    if record is None:
        yield "has no record of its run: run `make notebooks`"
        return
    if record.get("source_sha256") != code_digest(notebook):
        yield "has outputs of other code than it shows: run `make notebooks`"
    if record.get("profile") not in ("quick", "full"):
        yield f"was run in the {record.get('profile')} profile; outputs come from quick or full"


def picture_faults(notebook):
    for number, cell in enumerate(code_cells(notebook), start=1):
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if image_kinds(cell) and not alt.strip():
            yield f"code cell {number} shows a picture without alt text (mystnb.image.alt)"
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "markdown" and re.search(r"!\[\s*\]\(", cell.source):
            yield f"cell {number} has a Markdown picture without alt text"


def path_faults(notebook):
    for number, cell in enumerate(code_cells(notebook), start=1):
        for text in output_texts(cell):
            if found := machine_path(text):
                yield f"code cell {number} prints a path of somebody's machine ({found})"
    for number, cell in enumerate(notebook.cells, start=1):
        if found := machine_path(cell.source):
            yield f"cell {number} contains a path of somebody's machine ({found})"


def exercise_faults(notebook):
    """An "Exercises" heading, then at least three parts, each with a folded solution."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    _, found, rest = text.partition("\n## Exercises")
    if not found:
        yield "has no section `## Exercises`"
        return
    rest = re.split(r"\n## ", rest)[0]
    parts = re.split(r"\n#{3,4} +(?=Exercise\b)", rest)[1:]
    if len(parts) < EXERCISES:
        yield f"has {len(parts)} exercises (headings `### Exercise n`), not {EXERCISES}"
    for number, part in enumerate(parts, start=1):
        if not re.search(
            r"<details>.*?<summary>.*?solution.*?</summary>.*?</details>", part, re.I | re.S
        ):
            yield f"exercise {number} has no folded solution (<details>, <summary>Solution)"


def question_faults(notebook):
    """Of each question to check yourself: options before its folded answers, an answer an option,
    and one of them right."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    parts = re.split(r'<details class="answer">(.*?)</details>', text, flags=re.S)
    if len(parts) > 1 and not QUESTIONS[0] <= len(parts) // 2 <= QUESTIONS[1]:
        yield f"has {len(parts) // 2} questions, not {QUESTIONS[0]} to {QUESTIONS[1]}"
    for number, (before, answers) in enumerate(zip(parts[::2], parts[1::2], strict=False), 1):
        options = re.search(r"(?:^\d\. .*(?:\n .*)*\n)+\s*\Z", before, re.M)
        options = re.findall(r"^\d\. ", options.group(0) if options else "", re.M)
        answers = re.findall(r"^\d\. (.*)", answers, re.M)
        if len(options) < 2 or len(options) != len(answers):
            yield f"question {number} has {len(options)} options and {len(answers)} answers"
        if sum(answer.startswith("Right") for answer in answers) != 1:
            yield f"question {number} needs one answer that begins with Right"


def faults(notebook, report):
    """``report``: whether it is one, which has no exercises."""
    checks = [execution_faults, record_faults, picture_faults, path_faults]
    for check in checks if report else [*checks, exercise_faults, question_faults]:
        yield from check(notebook)


def check(paths):
    """Every fault of these files, as printable lines."""
    lines, first_cells = [], {}
    for path in paths:
        notebook = read(path)
        lines += [f"{path.name}: {fault}" for fault in faults(notebook, is_report(path))]
        if code_cells(notebook):
            first_cells[path.name] = code_cells(notebook)[0].source
    if first_cells:
        model, expected = next(iter(first_cells.items()))
        lines += [
            f"{name}: its first code cell differs from that of {model}"
            for name, source in first_cells.items()
            if source != expected
        ]
    return lines


def main(arguments):
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="default: all notebooks"
    )
    paths = options.parse_args(arguments).files or notebooks()
    lines = check(paths)
    for line in lines:
        print(line)
    print(f"notebooks: {len(paths)} checked, {len(lines)} faults")
    return 1 if lines or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
