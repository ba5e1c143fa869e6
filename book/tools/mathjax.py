"""MathJax as local files, so that a page with formulas asks no other host for anything.

The files come once from a wheel on the Python package index into the cache folder that the
models use, and from there into the book's static folder. Only what a page can load is kept: the
TeX-to-HTML component, the TeX packages it loads on demand, the fonts and the licence.
"""

import shutil
import tempfile
import zipfile
from pathlib import Path

VERSION = "3.2.2"
INSIDE = "mathjax/static/mathjax/"
KEEP = (
    "es5/tex-chtml.js",
    "es5/output/chtml/fonts/woff-v2/",
    "es5/input/tex/extensions/",
    "LICENSE",
)


def unpack(wheel, folder):
    """Write the kept files of the wheel into ``folder``, without the es5 level."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.removeprefix(INSIDE)
            if inner == name or name.endswith("/") or not inner.startswith(KEEP):
                continue
            target = folder / inner.removeprefix("es5/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))


def cached():
    """The folder with MathJax in the cache; fetched when it is not there yet."""
    from xb_lite.files import cache_folder
    from xb_lite.models.wheels import Wheel, fetch_wheel

    wheel = Wheel(
        package="django-static-mathjax",
        version="3.2.2.1",
        sha256="05ad109fd9e5d9d380c76389689b7f523e9ccb7f7a85c1eb962c7564eac7601d",
        size=10249768,
    )
    folder = cache_folder() / f"mathjax-{VERSION}"
    if not (folder / "tex-chtml.js").exists():
        print(f"mathjax: fetching MathJax {VERSION} (once, 10 MB)", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            fresh = Path(scratch) / "mathjax"
            unpack(fetch_wheel(wheel, Path(scratch)), fresh)
            # Whole or not at all; if another process was faster, its copy is as good.
            try:
                fresh.rename(folder)
            except OSError:
                if not (folder / "tex-chtml.js").exists():
                    raise
    return folder


def place(folder):
    """Put MathJax into ``folder``, if it is not there."""
    if (folder / "tex-chtml.js").exists():
        return
    source = cached()
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    part.rename(folder)
