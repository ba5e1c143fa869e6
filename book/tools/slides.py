"""Make a deck of slides for each chapter, under _build/slides: one figure a slide, with notes.

    python book/tools/slides.py [NAME ...] [--into DIR]

A slide has the heading of its section and one committed figure. Its speaker notes (key S) are what
the chapter says to notice there. The first slide has the chapter's one sentence, the source and the
licence, the last what to remember. NAME is a chapter, such as 00_start_here; without one all are
made. Everything that a deck loads lies beside it: reveal.js and MathJax come from wheels on the
package index, checked by digest, into the cache folder.
"""

import argparse
import base64
import re
import shutil
import sys
from html import escape
from pathlib import Path

import mathjax
import nbformat
import vendored
from nbconvert import SlidesExporter
from notebook_files import ROOT, chapters, read, write_whole
from pages import title
from site_files import base
from traitlets.config import Config

KINDS = ("image/svg+xml", "image/png")
NOTICE = re.compile(r"\*\*What to notice\.?\*\*(.*?)(?=^#{1,3} |^<details|\Z)", re.S | re.M)
CREDIT = "From <i>Exact Boundaries</i>, by the xb-lite contributors; text and figures CC BY 4.0."
LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


def cached():
    """The folder with reveal.js in the cache; see ``vendored.cached``."""
    return vendored.cached(
        "reveal.js",
        "5.2.1",
        wheel={
            "package": "sphinx-revealjs",
            "version": "3.2.1",
            "sha256": "805bed3ca459346e0f01967d5ed1c40d6b7b917de1541e1e4566c8341fe7017b",
            "size": 2390529,
        },
        inside="sphinx_revealjs/_static/revealjs/",
        keep=(
            "dist/reset.css",
            "dist/reveal.css",
            "dist/reveal.js",
            "plugin/notes/notes.js",
            "LICENSE",
        ),
    )


def heading(text):
    """The last heading of a cell, without its number, or None."""
    found = re.findall(r"^##+ (?:\d+\. )?(.+)$", text, re.M)
    return found[-1].strip() if found else None


def section(notebook, name):
    """The text under a heading of level two, up to the next heading."""
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    found = re.search(rf"^## {name}\n(.*?)(?=^##+ |^<details|\Z)", text, re.M | re.S)
    return found.group(1).strip() if found else ""


def in_one_sentence(notebook):
    found = re.search(
        r"^:::\{admonition\} In one sentence\n(.*?)^:::", notebook.cells[0].source, re.M | re.S
    )
    return found.group(1).strip() if found else ""


def figures(notebook):
    """Each figure with its heading, its alt text, and what there is to notice in it."""
    at, found = title(notebook), []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for words in NOTICE.findall(cell.source):
                if found and found[-1]["heading"] == at and not found[-1]["notes"]:
                    found[-1]["notes"] = words.strip()
            at = heading(cell.source) or at
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        for output in cell.outputs:
            kind = next((kind for kind in KINDS if kind in output.get("data", {})), None)
            if kind:
                data = output.data[kind]
                raw = data if kind == "image/png" else base64.b64encode(data.encode()).decode()
                source = f"data:{kind};base64,{raw.strip()}"
                found.append({"heading": at, "alt": alt, "source": source, "notes": ""})
    return found


def slide(text, kind="slide"):
    return nbformat.v4.new_markdown_cell(text, metadata={"slideshow": {"slide_type": kind}})


def deck(notebook, address):
    """The notebook of a deck: text cells that nbconvert makes slides of."""
    source = f"<small>{CREDIT}<br>{address}</small>"
    cells = [slide(f"# {title(notebook)}\n\n{plain(in_one_sentence(notebook))}\n\n{source}")]
    cells.append(slide(f"The chapter: {address}", "notes"))
    for figure in figures(notebook):
        picture = f'<img src="{figure["source"]}" alt="{escape(figure["alt"])}">'
        cells.append(slide(f"## {plain(figure['heading'])}\n\n{picture}"))
        cells.append(slide(plain(figure["notes"] or figure["alt"]), "notes"))
    if remember := section(notebook, "What to remember"):
        cells.append(slide(f"## What to remember\n\n{plain(remember)}"))
        cells.append(slide("Ask for the claim before you show it.", "notes"))
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"title": title(notebook), "language_info": {"name": "python"}}
    )


def plain(text):
    """Without links: a projector has nothing to click."""
    return LINK.sub(r"\1", text)


def as_html(made):
    exporter = SlidesExporter(
        config=Config(SlidesExporter={"exclude_anchor_links": True}),
        template_name="deck",
        extra_template_basedirs=[str(Path(__file__).parent / "templates")],
    )
    page = exporter.from_notebook_node(made)[0]
    return page.replace(' tabindex="0"', "")  # slides that are hidden hold nothing to focus


def index(names):
    """A page that lists the decks."""
    rows = "".join(
        f'<li value="{int(name[:2])}"><a href="{name}.html">{escape(text)}</a></li>'
        for name, text in names
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        "<title>Slides</title><style>:root{color-scheme:light dark}"
        "html{background:#fdfdfc;color:#1c1f22}a{color:#0a5f73}"
        "@media(prefers-color-scheme:dark){html{background:#15181b;color:#dfe1e3}a{color:#7cc7d6}}"
        "body{font:1.1rem/1.6 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}"
        f"</style></head><body><main><h1>Slides</h1><p>S shows the speaker notes.</p><ol>"
        f"{rows}</ol></main></body></html>\n"
    )


def main(arguments=None):
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("names", nargs="*", metavar="NAME", help="chapters (default: all)")
    options.add_argument("--into", type=Path, default=ROOT / "_build" / "slides")
    args = options.parse_args(arguments)
    paths = {path.stem: path for path in chapters()}
    if unknown := [name for name in args.names if name not in paths]:
        known = ", ".join(paths)
        print(f"no such chapter: {', '.join(unknown)}; there are {known}", file=sys.stderr)
        return 2
    into = args.into
    into.mkdir(parents=True, exist_ok=True)
    try:
        mathjax.place(into / "mathjax")
        shutil.copytree(cached(), into / "reveal", dirs_exist_ok=True)
    except RuntimeError as error:  # a wheel could not be fetched; the message says why
        print(error, file=sys.stderr)
        return 1
    names = []
    for path in paths.values():
        notebook = read(path)
        names.append((path.stem, title(notebook)))
        if args.names and path.stem not in args.names:
            continue
        made = deck(notebook, f"{base()}notebooks/{path.stem}.html")
        write_whole(into / f"{path.stem}.html", as_html(made))
        print(f"slides: {path.stem}, {sum(is_slide(cell) for cell in made.cells)} slides")
    write_whole(into / "index.html", index([n for n in names if (into / f"{n[0]}.html").exists()]))
    return 0


def is_slide(cell):
    return cell.metadata["slideshow"]["slide_type"] == "slide"


if __name__ == "__main__":
    sys.exit(main())
