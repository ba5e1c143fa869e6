"""Pieces of HTML that a notebook shows: what is in their markup, and a browser to use them in."""

import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "book" / "tools"))

import check_book  # noqa: E402

BROWSER = check_book.find_browser()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")


class Elements(HTMLParser):
    """The start tags of a text, each with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def count(self, tag):
        return sum(name == tag for name, _ in self.found)


def with_scripts(text):
    """The markup as it is once the parts that wait for scripts are put in."""
    return re.sub(r'<script type="text/html">(.*?)</script>', r"\1", text, flags=re.S)


def data_of(text):
    packed = re.search(r'<script type="application/json">(.*?)</script>', text, re.S)[1]
    return json.loads(packed)


PAGE = """<!DOCTYPE html><html lang="en"{attributes}><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Page</title></head>
<body><main><h1>Page</h1>{parts}</main></body></html>"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    play = pytest.importorskip("playwright.sync_api")
    home = str(tmp_path_factory.mktemp("browser"))
    home = {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
    flags = [flag for flag in check_book.FLAGS if "reduced-motion" not in flag]
    with play.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=flags, env={**os.environ, **home})
        yield browser
        browser.close()


@pytest.fixture
def show(chromium):
    """Opens pieces on a page; at the end nothing was logged and nobody was asked for more."""
    contexts, faults = [], []

    def show(*parts, width=1280, attributes="", **settings):
        settings = {"reduced_motion": "reduce", **settings}
        context = chromium.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        tab = context.new_page()
        html = PAGE.format(attributes=attributes, parts="".join(parts))

        def answer(route):
            if route.request.url == "http://piece.test/":
                route.fulfill(body=html, content_type="text/html")
            elif not route.request.url.endswith("/favicon.ico"):
                faults.append(f"asks for {route.request.url}")
                route.abort()

        tab.route("**/*", answer)
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("dialog", lambda dialog: faults.append(dialog.message))
        tab.goto("http://piece.test/")
        return tab

    yield show
    for context in contexts:
        context.close()
    assert faults == []


def slide(tab, name, value):
    """Move a slider, as a drag does."""
    tab.locator(f"[name={name}]").evaluate(
        "(e, to) => { e.value = to; e.dispatchEvent(new Event('input', { bubbles: true })); }",
        value,
    )
