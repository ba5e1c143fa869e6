"""Make rendered pages show sooner on a slow line: one small style sheet, and scripts that wait.

``slim`` works on a rendered book. Left as the theme makes it, a page waits for ten style sheets,
one of which asks for another, and for fourteen scripts, before anything is shown; and two thirds of
the styles are for classes that no page of this book has.
"""

import re
from hashlib import sha256
from pathlib import PurePosixPath
from urllib.parse import urljoin

LANDING = "book/intro.html"
SHEET = "_static/sheets.css"
SHEET_LINK = re.compile(r'\s*<link (?=[^>]*\brel="stylesheet")[^>]*\bhref="([^"]+)"[^>]*>')
IMPORT = re.compile(r'@import "([^"]+)";')
ADDRESS = re.compile(r"""url\((["']?)(?!data:|https?:|#)([^)"']+)\1\)""")
OWN = "_static/book.css"  # kept whole: the PDF has classes that no page has
REMARK = re.compile(r"/\*.*?\*/", re.S)
RULE = re.compile(r"([^{}]+)(\{[^{}]*\})")  # without rules inside
COMMA = re.compile(r"[(),]")
CLASS = re.compile(r"\.(-?(?:[A-Za-z_]|\\.)(?:[\w-]|\\.)*)")
PUT_TOGETHER = ("bs-", "kind-")  # beginnings of classes whose names scripts put together
OPTIONS = re.compile(r'<script src="[^"]*documentation_options\.js[^"]*"></script>')
PRELOAD = re.compile(r'\s*<link rel="preload" as="script"[^>]*>')
# Only the page of results searches; the index of all words is on it.
SEARCHES = re.compile(
    r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>'
)
SCRIPT = re.compile(r"<script (?![^>]*\b(?:defer|async)\b)(?=[^>]*\bsrc=)")
RELATIVE = re.compile(r'\b(href|src|action)="(?!https?:|mailto:|data:|#)([^"]*)"')


def every_page(html):
    """The HTML files that are pages; the theme keeps templates under _static."""
    return [p for p in sorted(html.rglob("*.html")) if "_static" not in p.relative_to(html).parts]


def sheet(html, name, words):
    """The text of a style sheet with what it imports, its addresses as seen from ``_static``.

    Of all sheets but the book's own, rules for classes that are not among ``words`` are left out.
    """
    folder = PurePosixPath(name).parent
    text = REMARK.sub("", (html / name).read_text(encoding="utf-8"))
    text = text.replace('@charset "UTF-8";', "")
    first = [sheet(html, urljoin(f"{folder}/", one), words) for one in IMPORT.findall(text)]

    def seen(found):
        target = urljoin(f"{folder}/", found.group(2)).removeprefix("_static/")
        return f"url({found.group(1)}{target}{found.group(1)})"

    text = ADDRESS.sub(seen, IMPORT.sub("", text))
    return "\n".join([*first, text if name == OWN else used(text, words)])


def used(text, words):
    """A style sheet without the rules for classes that are not among ``words``."""

    def is_used(selector):
        while bare := re.sub(r"\([^()]*\)|\[[^\]]*\]", "", selector):
            if bare == selector:
                break
            selector = bare  # what stands in brackets need not be there
        names = (name.replace("\\", "") for name in CLASS.findall(selector))
        return all(name in words or name.startswith(PUT_TOGETHER) for name in names)

    def kept(found):
        some = [one for one in apart(found.group(1)) if is_used(one)]
        return ",".join(some) + found.group(2) if some else ""

    return RULE.sub(kept, text)


def apart(selectors):
    """The selectors of a rule; commas inside brackets do not part them."""
    found, depth, begin = [], 0, 0
    for mark in COMMA.finditer(selectors):
        depth += {"(": 1, ")": -1, ",": 0}[mark.group()]
        if mark.group() == "," and depth == 0:
            found.append(selectors[begin : mark.start()])
            begin = mark.end()
    return [*found, selectors[begin:]]


def words_of(html, pages):
    """Every word of the pages and of the scripts: among them are all classes in use."""
    scripts = [p for p in (html / "_static").rglob("*.js") if "mathjax" not in p.parts]
    texts = [*pages, *(script.read_text(encoding="utf-8") for script in scripts)]
    return {word for text in texts for word in re.findall(r"[\w-]+", text)}


def slimmed(page, name, options, address):
    """The markup of a page with one style sheet at ``address`` and scripts after the text.

    ``options`` is the text of Sphinx's ``documentation_options.js``, which scripts on the page
    expect to have run.
    """
    if SHEET_LINK.search(page):
        # A script in the page waits for style sheets before it, and the text for the script.
        link = f'  <link rel="stylesheet" href="{address}">\n  </head>'
        early = f'<head>\n    <link rel="preload" as="style" href="{address}">'
        page = SHEET_LINK.sub("", page).replace("</head>", link, 1).replace("<head>", early, 1)
    page = OPTIONS.sub(lambda _: f"<script>{options}</script>", PRELOAD.sub("", page))
    if name != "search.html":
        page = SEARCHES.sub("", page)
    return SCRIPT.sub("<script defer ", page)


def front(page):
    """The landing page as the site's ``index.html``: the same, seen from the folder above."""

    def moved(found):
        target = urljoin(f"/{LANDING}", found.group(2)).removeprefix("/")
        return f'{found.group(1)}="{target or "./"}"'

    return RELATIVE.sub(moved, page).replace('data-content_root="../"', 'data-content_root="./"')


def slim(html):
    """Rewrite every page of a rendered book, and write its front page."""
    pages = every_page(html)
    texts = {p.relative_to(html).as_posix(): p.read_text(encoding="utf-8") for p in pages}
    named = [urljoin(LANDING, found) for found in SHEET_LINK.findall(texts[LANDING])]
    words = words_of(html, texts.values())
    text = "\n".join(sheet(html, name.partition("?")[0], words) for name in named)
    (html / SHEET).write_text(text, encoding="utf-8")
    options = (html / "_static" / "documentation_options.js").read_text(encoding="utf-8")
    options = re.sub(r"\s+", " ", options)
    version = sha256(text.encode()).hexdigest()[:8]
    for name, page in texts.items():
        up = "../" * name.count("/")
        texts[name] = slimmed(page, name, options, f"{up}{SHEET}?v={version}")
    texts["index.html"] = front(texts[LANDING])
    for name, page in texts.items():
        (html / name).write_text(page, encoding="utf-8")
