"""Make rendered pages show sooner on a slow line: one style sheet, and scripts that wait.

``slim`` works on a rendered book. Left as the theme makes it, a page waits for twelve style sheets,
one of which asks for another, and for fourteen scripts, before anything is shown.
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
# Icons are drawn by a script (site_files.lighten), so the theme's 1,900 rules for them do nothing.
ICON_RULE = re.compile(r"(?<=\})\.fa-[^{}]*\{(?:--fa:|content:)[^{}]*\}")
FONT = re.compile(r"@font-face\{[^}]*fontawesome[^}]*\}")
OPTIONS = re.compile(r'<script src="[^"]*documentation_options\.js[^"]*"></script>')
PRELOAD = re.compile(r'\s*<link rel="preload" as="script"[^>]*>')
# Only the page of results searches; the index of all words is on it.
SEARCHES = re.compile(
    r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>'
)
SCRIPT = re.compile(r"<script (?![^>]*\b(?:defer|async)\b)(?=[^>]*\bsrc=)")
RELATIVE = re.compile(r'\b(href|src|action)="(?!https?:|mailto:|data:|#)([^"]*)"')


def sheet(html, name):
    """The text of a style sheet with what it imports, its addresses as seen from ``_static``."""
    folder = PurePosixPath(name).parent

    def seen(found):
        target = urljoin(f"{folder}/", found.group(2)).removeprefix("_static/")
        return f"url({found.group(1)}{target}{found.group(1)})"

    def imported(found):
        return sheet(html, urljoin(f"{folder}/", found.group(1)))

    text = IMPORT.sub("/*-*/", (html / name).read_text(encoding="utf-8"))
    first = [
        imported(found) for found in IMPORT.finditer((html / name).read_text(encoding="utf-8"))
    ]
    text = ADDRESS.sub(seen, text.replace("/*-*/", "").replace('@charset "UTF-8";', ""))
    return "\n".join([*first, FONT.sub("", ICON_RULE.sub("", text))])


def slimmed(page, name, options, address):
    """The markup of a page with one style sheet at ``address`` and scripts after the text.

    ``options`` is the text of Sphinx's ``documentation_options.js``, which scripts on the page
    expect to have run.
    """
    links = list(SHEET_LINK.finditer(page))
    for link in reversed(links[1:]):
        page = page[: link.start()] + page[link.end() :]
    if links:
        link = f'\n    <link rel="stylesheet" href="{address}">'
        page = page[: links[0].start()] + link + page[links[0].end() :]
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
    pages = [p for p in sorted(html.rglob("*.html")) if "_static" not in p.relative_to(html).parts]
    texts = {p.relative_to(html).as_posix(): p.read_text(encoding="utf-8") for p in pages}
    named = [urljoin(LANDING, found) for found in SHEET_LINK.findall(texts[LANDING])]
    text = "\n".join(sheet(html, name.partition("?")[0]) for name in named)
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
