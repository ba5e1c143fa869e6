"""Make one PDF of the rendered book, _build/exact-boundaries.pdf, through Chromium.

    python book/tools/pdf.py [--html DIR] [--into FILE]

The articles of all pages are put into one document, in the order of the table of contents, with
links between them as links inside the document. Chromium prints it with a tagged structure and a
bookmark for every heading. What is folded on a page is open here, but for the code of figures.
"""

import argparse
import os
import re
import sys
import tempfile
from datetime import date
from html import escape
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import yaml
from bs4 import BeautifulSoup
from check_book import FLAGS, MATH_READY, browser_or_word, is_rendered, serve
from notebook_files import ROOT
from site_files import base, config, git

# Of a page, what a paper has no use for. What one can move stays as it was before anybody moved it,
# and needs its own style.
NOT_PRINTED = ".headerlink, .copybtn, button, script, details.hide, .hidden"
ADDRESSES = ("id", "for", "aria-labelledby", "aria-describedby", "name")
FOOTER = (
    '<div style="font: 8px sans-serif; width: 100%; text-align: center; color: #565b61">'
    '<span class="pageNumber"></span></div>'
)
TITLE = re.compile(rb"/Title \(((?:\\.|[^()\\])*)\)")
MARGIN = {"top": "18mm", "bottom": "18mm", "left": "17mm", "right": "17mm"}


def order(root):
    """The pages of the book in reading order, without their ending."""
    toc = yaml.safe_load((root / "book" / "_toc.yml").read_text())
    parts = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *parts]


def name_of(place, fragment=""):
    return f"{place.replace('/', '-')}--{fragment}" if fragment else place.replace("/", "-")


def article(html, place, places):
    """One page's text, with identifiers of its own and links that lead inside the document."""
    page = BeautifulSoup((html / f"{place}.html").read_text(encoding="utf-8"), "html.parser")
    found = page.select_one("article.bd-article")
    for node in found.select(NOT_PRINTED):
        node.decompose()
    for node in found.select("details"):
        node["open"] = ""
    for node in found.find_all(True):
        for key in ADDRESSES:
            if key in node.attrs:
                node[key] = name_of(place, node[key])
        if node.get("src") and not node["src"].startswith("data:"):
            node["src"] = "/" + urljoin(f"{place}.html", node["src"])
        if "href" in node.attrs:
            node["href"] = link(node["href"], place, places)
    found.name, found["id"], found["class"] = "article", name_of(place), "bd-article printed"
    return str(found)


def link(href, place, places):
    """Where a link of a page leads in the document, or on the public site."""
    target, fragment = urldefrag(urljoin(f"{place}.html", href))
    if re.match(r"\w+:", target):
        return href
    target = target or f"{place}.html"
    if target.removesuffix(".html") in places:
        return "#" + name_of(target.removesuffix(".html"), unquote(fragment))
    return base() + urljoin(f"{place}.html", href)


def document(html, root=ROOT):
    """The whole book as one page of HTML."""
    places = order(root)
    about = config(root)
    version = yaml.safe_load((root / "CITATION.cff").read_text())["version"]
    revision = git(root, "rev-parse", "--short=12", "HEAD")
    head = f"Version {version}, {date.today().isoformat()}" + (
        f", revision {revision}" if revision else ""
    )
    formulas = any("mathjax/" in (html / f"{place}.html").read_text() for place in places)
    first = BeautifulSoup((html / f"{places[0]}.html").read_text(), "html.parser")
    addresses = [node["href"] for node in first.select("link[rel=stylesheet]")]
    sheets = "".join(
        f'<link rel="stylesheet" href="/{urljoin(places[0], address)}">' for address in addresses
    )
    math = (
        "<script>MathJax = {options: {processHtmlClass: 'tex2jax_process|mathjax_process|math|"
        "output_area', enableMenu: false, ignoreHtmlClass: 'printed'}};</script>"
        '<script defer src="/_static/mathjax/tex-chtml.js"></script>'
    )
    return (
        '<!DOCTYPE html><html lang="en" data-theme="light" data-mode="light"><head>'
        f'<meta charset="utf-8"><title>{escape(about["title"])}</title>{sheets}'
        f'{math if formulas else ""}</head><body class="one-document">'
        f'<header class="title-page"><p class="title">{escape(about["title"])}</p>'
        "<p>Defending chat models against jailbreaks without breaking their usefulness</p>"
        f"<p>{escape(about['author'])}</p><p>{escape(head)}</p>"
        f'<p><a href="{base(root)}">{base(root)}</a></p>'
        "<p>Text under CC BY 4.0, code under Apache-2.0</p></header><main class='bd-content'>"
        + "".join(f"<div class='new-page'></div>{article(html, p, places)}" for p in places)
        + "</main></body></html>"
    )


def mended(data):
    """A PDF whose bookmarks say their heading once.

    Chromium writes the words of a heading twice where it moved it to the next page. Space takes the
    place of the second, so that no address in the file changes.
    """

    def once(found):
        said = found.group(1)
        half = said[: len(said) // 2]
        if len(said) < 2 or said != half + half:
            return found.group(0)
        return b"/Title (" + half + b")" + b" " * len(half)

    return TITLE.sub(once, data)


def printed(text, html, browser_path, into):
    from playwright.sync_api import sync_playwright

    server = serve(html)
    address = f"http://127.0.0.1:{server.server_port}/whole-book.html"
    with tempfile.TemporaryDirectory(prefix="xb-browser-") as profile, sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=browser_path, args=FLAGS, env={**os.environ, "HOME": profile}
        )
        tab = browser.new_page(color_scheme="light")
        tab.set_default_timeout(300_000)
        tab.route(address, lambda route: route.fulfill(body=text, content_type="text/html"))
        tab.goto(address, wait_until="load")
        tab.evaluate(MATH_READY)
        shown = {"display_header_footer": True, "header_template": "<i></i>"}
        tab.pdf(
            path=into,
            format="A4",
            margin=MARGIN,
            outline=True,
            tagged=True,
            print_background=True,
            footer_template=FOOTER,
            **shown,
        )
        browser.close()
    server.shutdown()


def main(arguments=None):
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--html", type=Path, default=ROOT / "_build" / "html")
    options.add_argument("--into", type=Path, default=ROOT / "_build" / "exact-boundaries.pdf")
    chosen = options.parse_args(arguments)
    html = chosen.html.resolve()
    if not is_rendered(html) or (browser := browser_or_word()) is None:
        return 1
    print("pdf: printing the book", flush=True)
    printed(document(html), html, browser, chosen.into)
    data = mended(chosen.into.read_bytes())
    chosen.into.write_bytes(data)
    pages = len(re.findall(rb"/Type\s*/Page\b", data))
    print(
        f"pdf: {chosen.into}, {pages} pages, {len(TITLE.findall(data))} bookmarks, "
        f"{len(data) / 1e6:.1f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
