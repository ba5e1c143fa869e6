"""Render the book to _build/html from the committed notebooks, or from executed copies.

    python book/tools/render.py                                # the committed outputs
    python book/tools/render.py --notebooks _build/executed    # what `make book` does

Notebooks are never executed here. The sources are staged in _build/src, with the computed
tables filled in. Every build starts from nothing in a folder of its own and replaces
_build/html only when it ended well, so a build that fails or is killed changes no page.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import lean
import mathjax
import pages
import site_files
import vendored
from locks import lock
from notebook_files import ROOT, digest, write_whole
from notebook_files import notebooks as notebooks_of
from progress import run

TOOLCHAIN = ("jupyter-book", "sphinx", "sphinx-book-theme", "pydata-sphinx-theme", "myst-nb")
NOT_STAGED = {"tools", "__pycache__"}
REVISIONS = "book/revisions.json"


def sources(root, notebooks):
    """The staged tree as a dictionary: path inside it -> bytes."""
    tree = {pages.place(path): path.read_bytes() for path in notebooks}
    for path in sorted((root / "book").rglob("*")):
        inside = path.relative_to(root)
        if path.is_file() and not NOT_STAGED & set(inside.parts):
            data = path.read_bytes()
            if path.suffix == ".md":
                data = pages.fill(data.decode(), root, notebooks).encode()
            tree[inside.as_posix()] = data
    found = site_files.revisions(root, [name for name in tree if name.endswith((".md", ".ipynb"))])
    tree[REVISIONS] = json.dumps(found, indent=1).encode()
    return tree


def stage(tree, folder):
    """Make ``folder`` hold exactly ``tree``; MathJax stays where it is."""
    formulas = folder / "book" / "static" / "mathjax"
    if folder.exists():
        for path in [p for p in folder.rglob("*") if p.is_file() and formulas not in p.parents]:
            if path.relative_to(folder).as_posix() not in tree:
                path.unlink()
    for name, data in tree.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    mathjax.place(formulas)


def build(staged, work, held):
    """Run Jupyter Book over the staged tree; returns its status. Pages: work/_build/html."""
    shutil.rmtree(work, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(staged)]
    command += [
        "--config",
        str(staged / "book/_config.yml"),
        "--toc",
        str(staged / "book/_toc.yml"),
    ]
    command += ["--path-output", str(work), "-W", "-n", "--keep-going", "-q"]
    # "custom" is the same builder without a closing message that would name the work folder.
    command += ["--builder", "custom", "--custom-builder", "html"]
    environment = dict(os.environ, PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1", NO_COLOR="1")
    return run(command, "rendering pages", pass_fds=(held,), env=environment)


def replace(old, new):
    """Put the folder ``new`` where ``old`` is."""
    aside = old.with_name(old.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def tell(html):
    shown = os.path.relpath(html / "index.html")
    print(f"\nThe book: {shown}\nOpen it in a browser, or run `make serve`, which says where.")


def main(arguments=None, root=ROOT):
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--notebooks", type=Path, default=Path("notebooks"), metavar="DIR")
    chosen = options.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    output = root / "_build"
    html, stamp = output / "html", output / "html.stamp"
    notebooks = notebooks_of(root / chosen.notebooks)
    with lock(output / "render.lock", "rendering the book") as held:
        tree = sources(root, notebooks)
        made_by = [f"{name} {importlib.metadata.version(name)}" for name in TOOLCHAIN]
        own = [
            path.read_bytes()
            for path in map(
                Path, (__file__, *(m.__file__ for m in (lean, mathjax, site_files, vendored)))
            )
        ]
        inputs = digest([*made_by, *own, *(part for item in tree.items() for part in item)])
        if (html / "index.html").exists() and stamp.exists() and stamp.read_text() == inputs:
            print("book: nothing changed since it was last rendered, skipped")
            tell(html)
            return 0
        start = time.monotonic()
        print("book: rendering", flush=True)
        try:
            stage(tree, output / "src")
        except RuntimeError as error:  # MathJax could not be fetched; the message says why
            print(error, file=sys.stderr)
            return 1
        work = output / "rendering"
        status = build(output / "src", work, held)
        if status:
            print(
                f"\nbook: Jupyter Book ended with status {status}; its warnings are above.",
                file=sys.stderr,
            )
            return status
        site_files.finish(work / "_build/html", root)
        lean.slim(work / "_build/html")
        stamp.unlink(missing_ok=True)
        replace(html, work / "_build" / "html")
        write_whole(stamp, inputs)
        shutil.rmtree(work, ignore_errors=True)
        print(f"book: rendered in {time.monotonic() - start:.0f} s")
        tell(html)
    return 0


if __name__ == "__main__":
    sys.exit(main())
