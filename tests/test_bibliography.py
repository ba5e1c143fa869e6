"""Every paper that a chapter, a page or the package links to has its entry in book/refs.bib."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
ENTRIES = (ROOT / "book" / "refs.bib").read_text(encoding="utf-8")
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))]
CODE = sorted((ROOT / "xb_lite").rglob("*.py"))
ARXIV = re.compile(r"arxiv(?:\.org/(?:abs|pdf)/|[ :])(\d{4}\.\d{4,5})", re.I)
DOI = re.compile(r"doi\.org/(10\.\d{4,}/[^\s)\]\"'>]+)")


def text_of(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells)


@pytest.mark.parametrize("path", [*CHAPTERS, *PAGES, *CODE], ids=lambda path: path.name)
def test_every_linked_paper_has_an_entry(path):
    text = text_of(path)
    arxiv = set(ARXIV.findall(text)) - set(ARXIV.findall(ENTRIES))
    doi = {found for found in DOI.findall(text) if found not in ENTRIES}
    assert not arxiv and not doi


def test_the_patterns_find_what_is_there():
    assert len(set(ARXIV.findall(ENTRIES))) > 20
    linked = {found for path in CHAPTERS for found in ARXIV.findall(text_of(path))}
    assert {"2502.09990", "2401.06561"} <= linked


def test_no_entry_stands_twice():
    keys = re.findall(r"^@\w+\{(\w+),", ENTRIES, re.M)
    assert len(keys) == len(set(keys))
    numbers = ARXIV.findall(ENTRIES)
    assert len(numbers) == len(set(numbers))
