"""What the tests of exercises read off a chapter: its solutions, and the cells of its stubs."""

import json
import re
from pathlib import Path

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def cells_of(chapter):
    """The cells of a chapter, by its name without the ending."""
    return json.loads((NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]


def solutions_of(cells):
    """The code of each folded solution."""
    return [
        code
        for cell in cells
        if cell["cell_type"] == "markdown"
        for code in re.findall(
            r"<summary>Solution</summary>\s*```python\n(.*?)```", "".join(cell["source"]), re.S
        )
    ]


def stubs_of(cells, names):
    """By name of an exercise the code cell that checks it."""
    return {
        name: source
        for cell in cells
        if cell["cell_type"] == "code"
        for source in ["".join(cell["source"])]
        for name in names
        if f"check.{name}(" in source
    }
