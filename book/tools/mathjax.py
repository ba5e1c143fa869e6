"""MathJax as local files, in the book's static folder. Only what a page can load is kept: the
TeX-to-HTML component, the TeX packages it loads on demand, the fonts and the licence.
"""

import shutil

import vendored


def cached():
    """The folder with MathJax in the cache; see ``vendored.cached``."""
    return vendored.cached(
        "MathJax",
        "3.2.2",
        wheel={
            "package": "django-static-mathjax",
            "version": "3.2.2.1",
            "sha256": "05ad109fd9e5d9d380c76389689b7f523e9ccb7f7a85c1eb962c7564eac7601d",
            "size": 10249768,
        },
        inside="mathjax/static/mathjax/",
        keep=(
            "es5/tex-chtml.js",
            "es5/output/chtml/fonts/woff-v2/",
            "es5/input/tex/extensions/",
            "LICENSE",
        ),
        drop="es5/",
    )


def place(folder):
    """Put MathJax into ``folder``, if it is not there."""
    if (folder / "tex-chtml.js").exists():
        return
    source = cached()
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    part.rename(folder)
