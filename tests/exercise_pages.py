"""What the tests of exercises read off a chapter, its solutions and the cells of its stubs, and
what is asked of every verdict."""

import json
import re
from pathlib import Path

from xb_lite.exercises.verdicts import NOT_YET

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


def is_mistaken(verdict, words):
    """Wrong, with these words of why."""
    assert verdict.right is False, str(verdict)
    assert words in verdict.text


# Where a check has the name of what the reader defines


def is_solved(check, name, solution, **names):
    """A solution is right; ``names`` are those of the page that it uses."""
    exec(solution, names)
    verdict = getattr(check, name)(names[name])
    assert verdict.right, str(verdict)


def is_not_attempted(check, name, stub):
    """Of what a stub leaves, and of ``...``, it is said that nothing was attempted."""
    names = {"check": check}
    exec(stub, names)
    for untouched in (names[name], ...):
        verdict = getattr(check, name)(untouched)
        assert verdict.right is None
        assert verdict.text == NOT_YET


# Where a stub calls its check: by the text of its cells


def says_not_yet(stub, names):
    """The check that a stub calls says so of the stub as it stands."""
    exec(stub.replace(call_in(stub), ""), names)
    assert str(eval(call_in(stub), names)) == NOT_YET


def accepts(stub, hints, names):
    """The check that a stub calls finds the solution right that its hints end with."""
    (solution,) = solutions_in(hints)
    exec(solution, names)
    verdict = eval(call_in(stub), names)
    assert verdict.right, verdict
