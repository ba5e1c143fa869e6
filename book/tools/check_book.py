"""Check the rendered book as a reader meets it: links, pages in a real browser, accessibility.

    python book/tools/check_book.py [--shots DIR] [--record]

Links and anchors are checked offline. Then _build/html is served on a free port of this machine
and every page is opened in Chromium, light and dark, 1280 and 390 pixels wide. A page fails when
it asks another host for anything, logs an error, is wider than its window, shows raw TeX, leaves
a picture without alt text, has a question that the keyboard cannot answer, breaks an
accessibility rule of axe-core with serious or critical impact, or is the landing page and
sends more than 500 KB. Chromium is the one thing this needs that pip does not bring.
"""

import argparse
import functools
import gzip
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lean import LANDING, every_page
from notebook_files import ROOT
from recorded import record

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
]
THEMES = ("light", "dark")
WIDTHS = (1280, 390)
AT_ONCE = 2  # browsers: a page keeps one core busy
MATH_READY = (
    "() => window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => true) : true"
)
# Text that a reader sees, without code, where a backslash is meant.
VISIBLE_TEXT = """() => {
  const copy = document.querySelector('.bd-article, main').cloneNode(true);
  copy.querySelectorAll('pre, code, script, style, mjx-container').forEach(e => e.remove());
  return copy.textContent;
}"""
RAW_TEX = re.compile(r"\\(?:\(|\[|begin\{|[a-zA-Z]{3,}[{_^ ])|\$\$")
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  const wide = document.documentElement.scrollWidth - width;
  if (wide <= 1) return null;
  const out = e => e.getBoundingClientRect().right > width + 1;
  const far = [...document.querySelectorAll('main *')].find(out);
  return `${wide} px too wide, first at ${far && far.tagName} ${far && far.className}`;
}"""
MOST = 500_000  # bytes as sent, compressed
BARE_PICTURES = """() => {
  const bare = document.querySelectorAll('main img:not([alt]), main img[alt=""]');
  return [...bare].map(e => e.src);
}"""


@dataclass
class Page:
    """What was found on one page, on one visit or on all."""

    name: str
    formulas: int = 0
    requests: int = 0
    rules: int = 0
    faults: list = field(default_factory=list)

    @classmethod
    def of(cls, visits):
        """One page from what each of its visits found."""
        counts = [max(getattr(v, c) for v in visits) for c in ("formulas", "requests", "rules")]
        return cls(visits[0].name, *counts, [fault for v in visits for fault in v.faults])


def question_faults(tab):
    """Answer every question on the page by keyboard; a fault for each that says nothing."""
    for number, form in enumerate(tab.locator("form.question").all(), start=1):
        said = form.get_by_role("status")
        form.get_by_role("button").press("Enter")
        if said.inner_text() != "Choose an answer first.":
            yield f"question {number} does not ask for a choice"
        right = 0
        for option in form.get_by_role("radio").all():
            option.press("Space")
            option.press("Enter")
            right += said.inner_text().startswith("Right")
            if not said.inner_text().strip():
                yield f"question {number} gives no answer to an option"
        if right != 1:
            yield f"question {number} calls {right} options right"
    folded = tab.locator("details.answer").count()
    if folded != tab.locator("form.question + details.answer").count():
        yield "a question was not made into a form"


def find_browser():
    for name in (os.environ.get("CHROMIUM"), *BROWSERS):
        path = shutil.which(name) if name else None
        if path:
            return path
    return None


def browser_or_word():
    """A browser's program file, or None after saying how to have one."""
    browser = find_browser()
    if browser is None:
        print(
            "No Chromium or Chrome was found: install one (apt-get install chromium; "
            "brew install --cask chromium), or set CHROMIUM to its program file.",
            file=sys.stderr,
        )
    return browser


def is_rendered(html):
    """Whether there is a book in the folder; says what to do where there is none."""
    if (html / "index.html").exists():
        return True
    print("There is no rendered book yet: run `make html` first.", file=sys.stderr)
    return False


def linked(html):
    """How many links and anchors of the pages were looked at, how many lead to other sites, which
    is not tried, and a line for each of the pages' own that is dead; by lychee."""
    lychee = Path(sys.executable).with_name("lychee")
    command = [
        str(lychee),
        "--offline",
        "--include-fragments",
        "--no-progress",
        "--format",
        "json",
    ]
    command += ["--root-dir", str(html), *map(str, every_page(html))]
    answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    try:
        found = json.loads(answer.stdout)
    except ValueError:  # it did not get so far
        return 0, 0, [answer.stderr.strip() or "lychee said nothing"]
    dead = [
        f"{place.replace(str(html), '')}: {one['url']} ({one['status']['text']})"
        for place, ones in found["error_map"].items()
        for one in ones
    ]
    return found["total"], found["excludes"], dead


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def serve(html, handler=Quiet):
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(html))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def visit(tab, origin, page, theme, width, axe, shots):
    """Open one page at one width in one theme and add to ``page`` what is wrong there."""
    at = f"{theme}, {width} px"
    heard, answers = [], []
    tab.on("response", lambda answer: answers.append(answer))
    tab.on("request", lambda request: heard.append(request.url))
    tab.on(
        "response",
        lambda r: r.status >= 400 and page.faults.append(f"{at}: status {r.status}: {r.url}"),
    )
    tab.on(
        "console", lambda m: m.type == "error" and page.faults.append(f"{at}: console: {m.text}")
    )
    tab.on("pageerror", lambda error: page.faults.append(f"{at}: script error: {error}"))
    tab.on("requestfailed", lambda r: page.faults.append(f"{at}: request failed: {r.url}"))
    tab.goto(f"{origin}/{page.name}", wait_until="load")
    tab.evaluate(MATH_READY)
    for url in heard:
        if not url.startswith((origin + "/", "data:", "blob:")):
            page.faults.append(f"{at}: asks another host: {url}")
    page.requests = len(heard)
    if page.name == LANDING:
        weight = sum(len(gzip.compress(r.body())) for r in answers if r.url.startswith("http"))
        if weight > MOST:
            page.faults.append(f"{at}: {weight // 1000} KB are sent, {MOST // 1000} at most")
    page.formulas = tab.locator("mjx-container").count()
    if tab.locator(".math").count() and not page.formulas:
        page.faults.append(f"{at}: formulas are not rendered")
    found = RAW_TEX.search(tab.evaluate(VISIBLE_TEXT))
    if found:
        page.faults.append(f"{at}: raw TeX in the text: {found.group(0)!r}")
    too_wide = tab.evaluate(OVERFLOW)
    if too_wide:
        page.faults.append(f"{at}: {too_wide}")
    page.faults += [f"{at}: picture without alt text: {src}" for src in tab.evaluate(BARE_PICTURES)]
    if shots:
        name = page.name.removesuffix(".html").replace("/", "-")
        tab.screenshot(path=shots / f"{name}-{theme}-{width}.png", full_page=True)
    page.faults += [f"{at}: {fault}" for fault in question_faults(tab)]
    page.rules, found = axe_faults(tab, axe, theme)
    page.faults += [f"{at}: {fault}" for fault in found]


def axe_faults(tab, axe, theme):
    """How many rules of axe-core were tried on a page, and what breaks them seriously."""
    # preload: axe would fetch style sheets again, some from addresses that no reader asks for.
    options = {"resultTypes": ["violations"], "preload": False}
    if theme != "light":  # the same page, in other colors
        options["runOnly"] = ["color-contrast"]
    results = axe.run(tab, options=options).response
    faults = []
    for violation in results["violations"]:
        if violation["impact"] in ("serious", "critical"):
            where = "; ".join(str(node["target"][0]) for node in violation["nodes"][:3])
            kind = f"{violation['id']} ({violation['impact']}"
            faults.append(f"{kind}, {len(violation['nodes'])} places): {where}")
    return len(results["passes"]) + len(results["violations"]), faults


def look(origin, names, browser_path, shots, theme, width):
    """Visit every page in one theme and width, in a browser of its own."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    start, pages, axe = time.monotonic(), [Page(name) for name in names], Axe()
    with tempfile.TemporaryDirectory(prefix="xb-browser-") as profile, sync_playwright() as play:
        # Settings and crash reports of the browser stay out of the reader's own folders.
        environment = {
            **os.environ,
            "HOME": profile,
            "XDG_CONFIG_HOME": profile,
            "XDG_CACHE_HOME": profile,
        }
        browser = play.chromium.launch(executable_path=browser_path, args=FLAGS, env=environment)
        context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 900})
        for page in pages:
            tab = context.new_page()
            visit(tab, origin, page, theme, width, axe, shots)
            tab.close()
        browser.close()
    print(f"pages: {theme}, {width} px, {time.monotonic() - start:.0f} s", flush=True)
    return pages


def looks():
    """Every theme and width."""
    return [(theme, width) for theme in THEMES for width in WIDTHS]


def browse(html, names, browser_path, shots):
    """Visit every page in every theme and width, ``AT_ONCE`` of these side by side."""
    server = serve(html)
    origin = f"http://127.0.0.1:{server.server_port}"
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = list(
            threads.map(lambda way: look(origin, names, browser_path, shots, *way), looks())
        )
    server.shutdown()
    return [Page.of(visits) for visits in zip(*found, strict=True)]


def main(arguments=None):
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--shots", type=Path, metavar="DIR", help="save a screenshot of every visit"
    )
    options.add_argument(
        "--record", action="store_true", help="keep the counts for the status page"
    )
    options.add_argument("--html", type=Path, default=ROOT / "_build" / "html")
    chosen = options.parse_args(arguments)
    html = chosen.html.resolve()
    if not is_rendered(html) or (browser := browser_or_word()) is None:
        return 1
    if chosen.shots:
        chosen.shots.mkdir(parents=True, exist_ok=True)
    total, elsewhere, dead = linked(html)
    faults = [f"links: {line}" for line in dead]
    print(
        f"links: {total} looked at, {elsewhere} of them to other sites, {len(dead)} dead",
        flush=True,
    )
    # index.html is the landing page once more.
    names = [p.relative_to(html).as_posix() for p in every_page(html) if p.name != "index.html"]
    pages = browse(html, names, browser, chosen.shots)
    print(f"\n{'page':40} {'formulas':>8} {'requests':>8} {'axe rules':>9} {'faults':>6}")
    for page in pages:
        numbers = f"{page.formulas:8} {page.requests:8} {page.rules:9} {len(page.faults):6}"
        print(f"{page.name:40} {numbers}")
        faults += [f"{page.name}: {fault}" for fault in page.faults]
    print(f"\n{len(pages)} pages, {len(looks())} visits each, {len(faults)} faults")
    for fault in faults:
        print(fault)
    if chosen.record:
        links = {
            "checked": total - elsewhere,
            "dead": len(dead),
            "to_other_sites_not_tried": elsewhere,
        }
        record("links", {"counts": list(links), **links})
        seen = {
            "pages": len(pages),
            "visits": len(pages) * len(looks()),
            "rules_of_axe": max(page.rules for page in pages),
            "faults": sum(len(page.faults) for page in pages),
        }
        record("pages", {"counts": list(seen), **seen})
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
