"""HTML elements that a reader uses in a notebook: what they have in common.

An element is one self-contained piece of HTML, ``display(HTML(...))``: it works in Jupyter, on
Colab and on a page of the book, and asks nobody for anything. What only scripts can work waits in
``<script type="text/html">``. ``elements.css`` has the ground and the colors of light and dark
pages, ``elements.js`` what every script begins with; an element's own markup, look and script lie
beside the module that packs its data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path


def element(own: Path, data: Mapping[str, object], parts: Mapping[str, object]) -> str:
    """The HTML of an element.

    Args:
        own: path of its files, whatever the ending. ``.html`` has the class ``xb-element`` at its
            root, a form, and ``{{css}}``, ``{{data}}``, ``{{js}}`` and the names of ``parts`` where
            these go; ``.js`` calls ``start``.
        data: what the script gets, as JSON.
        parts: markup for the other places; texts in it are escaped already.
    """
    css, js = (
        "\n".join(_read(path, ending) for path in (Path(__file__), own))
        for ending in (".css", ".js")
    )
    filled = {
        **parts,
        "css": css,
        # A function, so that no name of it is seen on the page.
        "js": f'(() => {{\n"use strict";\n{js}\n}})();',
        # "<" could end the script element; in JSON it may be written like this.
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: str(filled[found[1]]), _read(own, ".html"))


def _read(path: Path, ending: str) -> str:
    return path.with_suffix(ending).read_text(encoding="utf-8").rstrip("\n")
