"""What of a submitted notebook belongs to an exercise: its check, and the statements it needs.

Nothing is run here. Of the notebook's code only this is run later: the cell with the check, and
those statements before it that give a value to a name which is used. So a submission is graded
without loading a model, unless an answer needs one.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOM = "xb_lite.exercises"
# What has names of its own in Python, and what else than an assignment gives a name a value.
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
NAMING = (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)


@dataclass(frozen=True)
class Exercise:
    """One check in a notebook.

    ``chapter`` is a module of ``xb_lite.exercises`` and ``name`` a function of it; ``cell`` counts
    the code cells from 1. ``source`` runs first, then ``arguments``, a tuple, and ``by_name``, a
    dictionary, are evaluated. ``fault`` says why there is nothing to run.
    """

    chapter: str
    name: str
    cell: int
    source: str = ""
    arguments: str = "()"
    by_name: str = "{}"
    fault: str = ""


def exercises_of(path: str | Path) -> list[Exercise]:
    """The exercises of a notebook, in the order of the page; the last check of each counts.

    Raises:
        ValueError: the file is no notebook, checks no exercise of the book, or nests too deeply.
    """
    try:
        return _exercises(path)
    except RecursionError as error:
        raise ValueError(f"{path} has an expression that nests too deeply to be read.") from error


def _exercises(path: str | Path) -> list[Exercise]:
    cells = _code_cells(Path(path))
    parsed: list[tuple[int, list[ast.stmt]]] = []
    broken: list[tuple[int, str, str]] = []
    for number, source in enumerate(cells, start=1):
        try:
            parsed.append((number, _parsed(source)))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            broken.append((number, source, f"cell {number} is not Python: {error}"))
    statements = [(number, node) for number, body in parsed for node in body]
    chapters = dict(_chapters(node for _, node in statements))
    found: dict[tuple[str, str], Exercise] = {}
    direct = set()
    for place, (number, node) in enumerate(statements):
        for call, is_statement in _checks(node, chapters):
            key = chapters[call.func.value.id], call.func.attr
            if key in direct and not is_statement:
                continue  # a later cell that only asks whether the answer was right
            direct |= {key} if is_statement else set()
            found[key] = Exercise(
                *key,
                number,
                _needed(statements[:place], number, call, set(chapters)),
                ast.unparse(ast.Tuple(call.args, ast.Load())),
                _by_name(call.keywords),
            )
    for number, source, fault in broken:
        for alias, name in re.findall(r"\b(\w+)\.(\w+)\(", source):
            if alias in chapters and (chapters[alias], name) not in found:
                key = chapters[alias], name
                found[key] = Exercise(*key, number, fault=fault)
    if not chapters:
        raise ValueError(f"{path} checks no exercise of the book: nothing in it imports {ROOM}.")
    return sorted(found.values(), key=lambda exercise: exercise.cell)


def _code_cells(path: Path) -> list[str]:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no notebook: {error!r}.") from error


def _parsed(source: str) -> list[ast.stmt]:
    """The statements of a cell; a line for IPython does nothing.

    Such a line is known by Python's error: elsewhere ``%`` is a remainder, and a string may have a
    line that begins with ``!``.
    """
    lines = re.split(r"\r\n?|\n", source.lstrip())
    if lines[0].startswith("%%"):
        if not re.match(r"%%(time|capture)\b", lines[0]):  # these two run the rest as it is
            return []
        lines[0] = ""
    while True:
        try:
            return ast.parse("\n".join(lines)).body
        except SyntaxError as error:
            at = (error.lineno or 0) - 1
            if at < 0 or not (magic := re.match(r"(\s*)[%!]", lines[at])):
                raise
            lines[at] = f"{magic[1]}pass"


def _chapters(statements: Iterable[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Under which name the checks of which chapter were imported."""
    for node in statements:
        if isinstance(node, ast.ImportFrom) and node.module == ROOM:
            for alias in node.names:
                if alias.name.islower() and alias.name not in ("predict", "verdicts"):
                    yield alias.asname or alias.name, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname and alias.name.startswith(f"{ROOM}."):
                    yield alias.asname, alias.name.removeprefix(f"{ROOM}.")


def _checks(node: ast.stmt, chapters: dict[str, str]) -> Iterator[tuple[ast.Call, bool]]:
    """Calls of checks in a statement, and whether the call is the whole statement."""
    for part in ast.walk(node):
        if (
            isinstance(part, ast.Call)
            and isinstance(part.func, ast.Attribute)
            and isinstance(part.func.value, ast.Name)
            and part.func.value.id in chapters
        ):
            yield part, isinstance(node, ast.Expr) and node.value is part


def _needed(
    statements: list[tuple[int, ast.stmt]], cell: int, call: ast.Call, checks: set[str]
) -> str:
    """The statements that the arguments of a check depend on, and those of its own cell.

    ``checks`` are the names of the modules with the checks.
    """
    names = set().union(*map(_read, [*call.args, *call.keywords]))
    given = [_given(node, checks) for _, node in statements]
    kept: set[int] = {i for i, (number, _) in enumerate(statements) if number == cell}
    for i in kept:
        names |= _read(statements[i][1])
    while True:
        more = {i for i, (_, node) in enumerate(statements) if i not in kept}
        more = {i for i in more if given[i] & names}
        if not more:
            break
        kept |= more
        for i in more:
            names |= _read(statements[i][1])
    return "\n".join(_as_source(statements[i][1], names) for i in sorted(kept))


def _by_name(keywords: list[ast.keyword]) -> str:
    """Keyword arguments as the text of a dictionary."""
    names = [word.arg and ast.Constant(word.arg) for word in keywords]  # None stands for **more
    return ast.unparse(ast.Dict(names, [word.value for word in keywords]))


def _as_source(node: ast.stmt, names: set[str]) -> str:
    """A statement as text; of an import only the names that are used."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        used = [a for a in node.names if _bound(a) in names or a.name == "*"]
        if not used:
            return ""
        parts = {**dict(ast.iter_fields(node)), "names": used}
        return ast.unparse(type(node)(**parts))
    return ast.unparse(node)


def _read(node: ast.AST) -> set[str]:
    """The names that a node takes from outside.

    What a function or a comprehension calls its parameters and variables is its own affair: a
    parameter ``reply`` must not bring along the cells in which some ``reply`` comes from a model.
    """
    if isinstance(node, ast.Name):
        return {node.id}
    found = set().union(*map(_read, ast.iter_child_nodes(node)))
    if isinstance(node, FUNCTIONS):
        body = node.body if isinstance(node.body, list) else [node.body]
        parameters = {part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)}
        outside = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        outside += getattr(node, "decorator_list", [])
        found -= parameters | _stored(body) - _declared(body)
    elif isinstance(node, COMPREHENSIONS):
        outside = [node.generators[0].iter]
        found -= _stored([each.target for each in node.generators])
    else:
        return found
    return found.union(*map(_read, outside))


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _given(node: ast.AST, checks: set[str]) -> set[str]:
    """The names that a statement gives a value to, or whose value it changes.

    ``checks`` are the names of the modules with the checks: asking one changes nothing in it, so an
    answer that reads ``check.TABLE`` does not run the other answers.
    """
    found = _stored([node])
    for part in _of_its_scope([node]):
        match part:
            case ast.Subscript() | ast.Attribute() if isinstance(part.ctx, ast.Store):
                found |= _root(part)
            case ast.Expr(ast.Call(ast.Attribute() as method)):
                found |= _root(method) - checks  # answers.append(3), and not print(answers)
    return found


def _stored(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that get a value in the scope of these nodes."""
    found = set()
    for part in _of_its_scope(nodes):
        if isinstance(part, ast.Name) and isinstance(part.ctx, (ast.Store, ast.Del)):
            found.add(part.id)
        elif isinstance(part, (*FUNCTIONS, ast.ClassDef, *NAMING)):
            found.add(getattr(part, "name", None))  # a lambda has none
        elif isinstance(part, ast.MatchMapping):
            found.add(part.rest)
        elif isinstance(part, (ast.Import, ast.ImportFrom)):
            found |= {_bound(alias) for alias in part.names}
    return found - {None}


def _declared(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that a function declares to be those of an outer scope."""
    parts = [p for p in _of_its_scope(nodes) if isinstance(p, (ast.Global, ast.Nonlocal))]
    return {name for part in parts for name in part.names}


def _of_its_scope(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """These nodes and what is in them, down to functions, classes and comprehensions."""
    waiting = list(nodes)
    while waiting:
        part = waiting.pop()
        yield part
        if not isinstance(part, (*FUNCTIONS, *COMPREHENSIONS, ast.ClassDef)):
            waiting.extend(ast.iter_child_nodes(part))


def _root(node: ast.AST) -> set[str]:
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()
