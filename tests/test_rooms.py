"""The package as a house: small modules, no circles, and rooms whose doors lead somewhere."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "xb_lite").rglob("*.py"))
ROOMS = sorted(
    path.parent.name
    for path in FILES
    if path.name == "__init__.py" and "lazy_loader.attach" in path.read_text()
)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports() -> dict[str, set[str]]:
    """What each module imports of the package when it is loaded."""
    names = {name_of(path) for path in FILES}
    found = {}
    for path in FILES:
        own = found[name_of(path)] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xb_lite"):
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                own |= {one if one in names else node.module for one in whole}
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The names of a circle, or none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next(filter(None, (walk(name, []) for name in sorted(edges))), [])


def test_no_module_is_long():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lines.items() if n > 400} == {}


def test_neither_modules_nor_rooms_import_in_circles():
    edges = imports()
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle(edges) == []
    rooms: dict[str, set[str]] = {}
    for name, others in edges.items():
        room = name.split(".")[1:2] or [name]
        inside = {other.split(".")[1] for other in others if "." in other}
        rooms.setdefault(room[0], set()).update(inside - set(room))
    assert circle(rooms) == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_offers_at_most_ten_names_which_all_are_there(room):
    package = importlib.import_module(f"xb_lite.{room}")
    assert 1 <= len(package.__all__) <= 10
    # lazy-loader before 0.6 gives the module in place of what it offers under the same name.
    inside = {path.stem for path in (ROOT / "xb_lite" / room).glob("*.py")}
    assert not inside & set(package.__all__)
    for name in package.__all__:
        offered = getattr(package, name)
        assert type(offered).__name__ != "module", f"xb_lite.{room}.{name} is hidden by a module"


def test_the_table_has_a_row_for_every_room_and_module_with_the_names_it_offers():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| (.+) \|$", table, re.M)
    there = {name_of(path).split(".")[1] for path in FILES if path.parent != ROOT / "xb_lite"}
    there |= {path.stem for path in (ROOT / "xb_lite").glob("[!_]*.py")}
    assert sorted(name for name, _ in rows) == sorted(there)
    for name, cell in rows:
        package, said = importlib.import_module(f"xb_lite.{name}"), re.findall(r"`(\w+)`", cell)
        assert all(hasattr(package, one) for one in said), name
        if name in ROOMS:
            assert sorted(said) == sorted(package.__all__), name


def test_an_import_that_contributors_are_shown_works():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"`(from xb_lite[\w.]* import \w+)`", text)
    assert len(shown) > 1
    for line in shown:
        exec(line, {})


def test_the_command_and_the_rooms_load_without_torch():
    script = (
        "import sys, xb_lite.__main__\n"
        + "".join(f"import xb_lite.{room}\n" for room in ROOMS)
        + "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
