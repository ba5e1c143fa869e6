"""What the tests of exercises read off a chapter: its solutions, and the cells of its stubs."""

import json
import re
from pathlib import Path

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def cells_of(chapter):
    """The cells of a chapter, by its name without the ending."""
    return json.loads((NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]


def sources_of(cells, kinds=("code", "markdown")):
    """The text of each cell of these kinds, by its id."""
    return {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] in kinds}


def solutions_of(cells):
    """The code of each folded solution."""
    return [
        code for text in sources_of(cells, ("markdown",)).values() for code in solutions_in(text)
    ]


def solutions_in(text):
    """The same of the text of one cell."""
    return re.findall(r"<summary>Solution</summary>\s*```python\n(.*?)```", text, re.S)


def defining(codes, name):
    """Of several pieces of code the one that defines a name."""
    found = [code for code in codes if re.search(rf"^(def {name}\(|{name} =)", code, re.M)]
    assert len(found) == 1, f"{name} is defined {len(found)} times"
    return found[0]


def stubs_of(cells, names):
    """By name of an exercise the code cell that checks it."""
    return {
        name: source
        for source in sources_of(cells, ("code",)).values()
        for name in names
        if f"check.{name}(" in source
    }


def call_in(stub):
    """A stub's own call of its check: a line that begins with it."""
    return next(line for line in stub.splitlines() if line.startswith("check."))
