"""Another public address, everywhere at once."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "book" / "tools"))

import address  # noqa: E402

OLD = ("ada", "book")
NEW = "https://github.com/some-body/other.book"
CODE = "%pip install git+https://github.com/ada/book"


def tracked(root):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    return [name for name in listed.stdout.decode().split("\0") if name]


def track(root):
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    # -N: the names alone, for ls-files asks no more
    subprocess.run(["git", "add", "-N", "-f", "."], cwd=root, check=True)


def contents(root):
    return {name: (root / name).read_bytes() for name in tracked(root)}


@pytest.fixture
def small(tmp_path):
    """A tree with an address in a page, a notebook, a program and weights."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "book"\n[project.urls]\nRepository = "https://github.com/ada/book"\n'
    )
    (tmp_path / "page.md").write_bytes(b"<https://ada.github.io/book/>\r\nNo line ends here")
    cell = {"metadata": {"tags": []}, "execution_count": 1}
    output = {"name": "stdout", "output_type": "stream", "text": CODE}
    cells = [
        {"cell_type": "markdown", "source": "In \"source\": 'https://ada.github.io/book'"},
        {"cell_type": "code", "source": ["x = 1\n", CODE], "outputs": [output], **cell},
    ]
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": cells}, indent=3))
    (tmp_path / "two.ipynb").write_text(json.dumps({"cells": cells[:1]}, indent=1))
    (tmp_path / "run").write_text("git clone git@github.com:ada/book.git\n")
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "weights").write_bytes(b"\xff github.com/ada/book")
    (tmp_path / "others.md").write_text("https://github.com/ada/bookshelf\n")
    track(tmp_path)
    (tmp_path / "untracked.md").write_text("https://github.com/ada/book\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://github.com/ada/book.", "https://github.com/me/my-book."),
        ("(https://github.com/ada/book/issues)", "(https://github.com/me/my-book/issues)"),
        ("git@github.com:ada/book.git", "git@github.com:me/my-book.git"),
        ("api.github.com/repos/ada/book", "api.github.com/repos/me/my-book"),
        ("raw.githubusercontent.com/ada/book/a", "raw.githubusercontent.com/me/my-book/a"),
        (
            "https://colab.research.google.com/github/ada/book/blob/main/a.ipynb",
            "https://colab.research.google.com/github/me/my-book/blob/main/a.ipynb",
        ),
        ("https://ada.github.io/book/a.html", "https://me.github.io/my-book/a.html"),
        (
            "git clone https://github.com/ada/book && cd book\n",
            "git clone https://github.com/me/my-book && cd my-book\n",
        ),
        *(
            (same, same)
            for same in (
                "https://github.com/ada/bookshelf",
                "https://github.com/ada/book-2",
                "https://github.com/ada/book.old",
                "https://github.com/canada/book",
                "https://can-ada.github.io/book/",
                "https://ada.github.io/books/",
                "ada/book",
            )
        ),
    ],
)
def test_addresses_of_this_repository_alone_are_replaced(text, wanted):
    assert address.replaced(text, OLD, ("me", "my-book")) == wanted


def test_files_that_git_tracks_change_and_of_notebooks_the_sources(small):
    before = contents(small)
    changed, stale = address.readdress(NEW, small)
    assert changed == ["one.ipynb", "page.md", "run", "two.ipynb", "pyproject.toml"]
    assert stale == ["one.ipynb"]
    assert (small / "untracked.md").read_text() == "https://github.com/ada/book\n"
    assert (small / "run").stat().st_mode & 0o111
    after = contents(small)
    assert after["page.md"] == b"<https://some-body.github.io/other.book/>\r\nNo line ends here"
    cells, was = (json.loads(found["one.ipynb"])["cells"] for found in (after, before))
    assert cells[0]["source"] == "In \"source\": 'https://some-body.github.io/other.book'"
    assert cells[1]["source"] == ["x = 1\n", f"%pip install git+{NEW}"]
    assert cells[1]["outputs"] == was[1]["outputs"]

    address.readdress("https://github.com/ada/book", small)
    assert contents(small) == before
    assert address.readdress("https://github.com/ada/book", small) == ([], [])


def test_a_stopped_run_goes_on(small, monkeypatch):
    write = Path.write_bytes

    def stopped(path, data):
        if path.name == "run":
            raise KeyboardInterrupt
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", stopped)
    with pytest.raises(KeyboardInterrupt):
        address.readdress(NEW, small)
    monkeypatch.undo()
    assert address.readdress(NEW, small)[0] == ["run", "two.ipynb", "pyproject.toml"]


@pytest.mark.parametrize(
    "url",
    [
        "http://github.com/a/b",
        "https://github.com/a",
        "https://github.com/a/b/",
        "https://github.com/a/b.git",
        "https://github.com/a/..",
        "https://github.com/-a/b",
        "https://github.com/a/b c",
        "https://github.com/a/b\n",
        "https://gitlab.com/a/b",
        "https://github.com/a/a.github.io",
        "",
    ],
)
def test_another_form_is_refused_in_one_sentence(url, small, monkeypatch, capsys):
    before = contents(small)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        address.readdress(url, small)
    assert contents(small) == before
    monkeypatch.setattr(address, "readdress", lambda url: address.owner_and_name(url))
    assert address.main([url]) != 0
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_says_what_changed(small, monkeypatch, capsys):
    readdress = address.readdress
    monkeypatch.setattr(address, "readdress", lambda url: readdress(url, small))
    assert address.main([NEW]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("one.ipynb\npage.md\n") and "make notebooks" in shown
    assert address.main([NEW]) == 0
    assert capsys.readouterr().out == "Nothing to change.\n"


def test_a_folder_without_git_is_refused(small):
    shutil.rmtree(small / ".git")
    with pytest.raises(ValueError, match="clone the repository"):
        address.readdress(NEW, small)


def test_the_whole_tree_changes_and_comes_back(tmp_path):
    for name in tracked(ROOT):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    track(tmp_path)
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    owner, name = url.removeprefix("https://github.com/").split("/")
    before = contents(tmp_path)

    # in pieces, for no file, this one included, may name it before
    another = "/".join(["https://github.com", "some-body", "a-copy-of-it"])
    changed, stale = address.readdress(another, tmp_path)
    after = contents(tmp_path)
    assert sorted(changed) == sorted(n for n in after if after[n] != before[n])
    assert {"README.md", "CITATION.cff", "book/_config.yml", "pyproject.toml"} <= set(changed)
    notebooks = [name for name in before if name.endswith(".ipynb")]
    assert sorted(stale) == sorted(notebooks)  # the first cell installs the package
    host = r"github(?:usercontent)?(?:\.com)?[/:](?:repos/)?"
    found = rf"{host}{owner}/{name}(?![\w-])|(?<![\w.-]){owner}\.github\.io"
    named = [n for n in after if owner.encode() in after[n]]  # the search takes seconds on all
    assert [n for n in named if re.search(found.encode(), after[n])] == []

    address.readdress(url, tmp_path)
    assert contents(tmp_path) == before
