"""Measure the landing page and the heaviest page as a reader on a slow line meets them.

    python book/tools/measure.py [--record]

Each is opened in Chromium with an empty cache, 390, 768 and 1280 pixels wide, light and dark. The
line is what Lighthouse calls slow 4G: 1.6 Mbit/s down, 750 kbit/s up, 150 ms a round trip, as the
browser emulates it: the round trip once for each request, and none for the connection. The
processor is not slowed down. Files are sent compressed, as a public server sends them, over one
connection for each file that is under way, up to six.

Printed are the bytes and requests, the seconds to the largest contentful paint, how many elements
the Tab key reaches, and what axe-core finds. It ends with status 1 where the landing page is over
500 KB or 1.5 s, where Tab does not reach an element or shows no focus on it, and where axe finds
anything serious. ``--record`` keeps the figures in book/checked.json, which the status page shows.
"""

import argparse
import functools
import gzip
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

from bs4 import BeautifulSoup
from check_book import (
    FLAGS,
    MATH_READY,
    MOST,
    THEMES,
    Quiet,
    axe_faults,
    browser_or_word,
    is_rendered,
    serve,
)
from lean import LANDING, every_page
from notebook_files import ROOT
from recorded import record

WIDTHS = (390, 768, 1280)
LINE = {"latency": 150, "download": 1638.4, "upload": 750}  # ms; kbit/s of 1024 bits
SLOWEST = 1.5  # seconds to the largest paint of the landing page
TRIES = 3  # a busy moment of the machine is no fault of the page
TEXT = {".html", ".css", ".js", ".svg", ".json", ".txt", ".xml", ".map"}
PAINT = """new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.largestPaint = {
    at: performance.timeOrigin + entry.startTime,
    what: entry.element ? entry.element.tagName.toLowerCase() : "",
  };
}).observe({ type: "largest-contentful-paint", buffered: true });"""
# What Tab should reach: visible, not disabled, and of a group of radio buttons one.
REACHABLE = """() => {
  const asked = "a[href], button, input, select, textarea, summary, audio[controls], [tabindex]";
  const groups = new Set();
  const own = (e) => {
    const s = getComputedStyle(e);
    const parts = [s.outlineStyle, s.outlineWidth, s.outlineColor, s.boxShadow, s.borderColor];
    return [...parts, s.backgroundColor, s.color, s.textDecorationLine].join("|");
  };
  // The label beside a hidden button may show it, or what the element is a part of.
  const look = (e) => [e, e.nextElementSibling, e.parentElement, e.closest("svg")]
    .filter(Boolean).map(own).join();
  window.wanted = [...document.querySelectorAll(asked)].filter((e) => {
    if (e.tabIndex < 0 || e.disabled || e.closest("[inert]") || e.type === "hidden") return false;
    if (!e.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true })) return false;
    if (e.type !== "radio") return true;
    const group = `${e.form && [...document.forms].indexOf(e.form)} ${e.name}`;
    return !groups.has(group) && groups.add(group);
  });
  // What lies off the page shows its focus by coming into view.
  const away = (e) => e.getBoundingClientRect().bottom <= 0;
  window.plain = new Map(wanted.map((e) => [e, away(e) ? "" : look(e)]));
  window.lookOf = look;
  return wanted.length;
}"""
# Where the focus is now: the place in the list, and whether one can see it.
FOCUSED = """() => {
  const e = document.activeElement;
  if (!e || e === document.body) return null;
  const same = (w) => w === e || (w.type === "radio" && e.type === "radio" && w.form === e.form
    && w.name === e.name);
  const box = e.getBoundingClientRect();
  const inside = box.width > 0 && box.height > 0 && box.bottom > 0 && box.right > 0
    && box.top < innerHeight && box.left < innerWidth;
  const changed = !plain.has(e) || plain.get(e) !== lookOf(e);
  return [wanted.findIndex(same), inside && changed];
}"""
NAME = """(number) => {
  const e = wanted[number];
  const words = e.innerText || e.getAttribute("aria-label") || e.name || e.className;
  return `${e.tagName.toLowerCase()} ${String(words).trim().slice(0, 40)}`;
}"""


@dataclass
class Visit:
    """What one page was like at one width in one theme."""

    page: str
    theme: str
    width: int
    kilobytes: int = 0
    requests: int = 0
    seconds: float = 0.0
    what: str = ""
    reached: int = 0
    of: int = 0
    rules: int = 0
    faults: list = field(default_factory=list)


class Compressed(Quiet):
    """Sends texts compressed, and keeps a connection, as public servers do."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):  # noqa: N802
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            self.send_error(404)
            return
        data = sent(path)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        if path.suffix in TEXT:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@functools.cache
def sent(path):
    """The bytes of a file as they are sent."""
    data = path.read_bytes()
    return gzip.compress(data, 6) if path.suffix in TEXT else data


def weight(html, page):
    """The bytes of a page with the files that its markup names, as they are sent."""
    soup = BeautifulSoup((html / page).read_text(encoding="utf-8"), "html.parser")
    named = [n.get("src") for n in soup.select("script[src], img[src]")]
    named += [n.get("href") for n in soup.select("link[rel=stylesheet]")]
    files = {page} | {unquote(urldefrag(urljoin(page, a))[0].partition("?")[0]) for a in named}
    return sum(len(sent(html / name)) for name in files if (html / name).is_file())


def heaviest(html):
    """The page, other than the landing page, for which the most is sent."""
    names = [path.relative_to(html).as_posix() for path in every_page(html)]
    return max(
        (n for n in names if n not in ("index.html", LANDING)), key=lambda n: weight(html, n)
    )


def loaded(context, address, visit):
    """Open a page over the slow line; the tab, with bytes, requests and the largest paint noted."""
    tab = context.new_page()
    tab.add_init_script(PAINT)
    session = context.new_cdp_session(tab)
    session.send("Network.enable")
    speed = {way: LINE[f"{way}load"] * 1024 / 8 for way in ("down", "up")}
    session.send(
        "Network.emulateNetworkConditions",
        {
            "offline": False,
            "latency": LINE["latency"],
            "downloadThroughput": speed["down"],
            "uploadThroughput": speed["up"],
        },
    )
    sizes = []
    session.on("Network.loadingFinished", lambda e: sizes.append(e["encodedDataLength"]))
    begin = time.time()
    tab.goto(address, wait_until="commit")
    tab.wait_for_load_state("networkidle")
    tab.evaluate(MATH_READY)
    paint = tab.evaluate("() => window.largestPaint")
    visit.kilobytes, visit.requests = round(sum(sizes) / 1000), len(sizes)
    visit.seconds, visit.what = round(paint["at"] / 1000 - begin, 2), paint["what"]
    return tab


def walked(tab, visit):
    """Press Tab until the end of the page, and note what it does not reach or does not show."""
    visit.of = tab.evaluate(REACHABLE)
    seen, dim, nowhere = set(), set(), 0
    for _ in range(2 * visit.of + 20):
        tab.keyboard.press("Tab")
        place = tab.evaluate(FOCUSED)
        nowhere = nowhere + 1 if place is None else 0
        if nowhere == 2 or place and place[0] == 0 and len(seen) > 1:
            break
        if place is None:  # the end, or something that gives the focus away
            continue
        number, shown = place
        if not shown:
            tab.wait_for_timeout(400)  # some move or fade into view
            shown = tab.evaluate(FOCUSED)[1]
        if number >= 0:
            seen.add(number)
            if not shown:
                dim.add(number)
    else:
        visit.faults.append("the Tab key does not leave a part of the page")
    visit.reached = len(seen)
    missed = [number for number in range(visit.of) if number not in seen]
    for numbers, words in ((missed, "Tab does not reach"), (sorted(dim), "no focus is seen on")):
        visit.faults += [f"{words} {tab.evaluate(NAME, number)!r}" for number in numbers[:5]]


def visited(browser, axe, origin, page, theme, width):
    """One page at one width in one theme."""
    address = f"{origin}/" if page == LANDING else f"{origin}/{page}"
    limit = SLOWEST if page == LANDING else float("inf")
    for _ in range(TRIES):
        visit = Visit(page, theme, width)
        context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 900})
        tab = loaded(context, address, visit)
        if visit.seconds <= limit:
            break
        context.close()
    else:
        visit.faults.append(f"largest paint after {visit.seconds} s, {limit} at most")
        return visit
    if page == LANDING and visit.kilobytes > MOST / 1000:
        visit.faults.append(f"{visit.kilobytes} KB are sent, {MOST // 1000} at most")
    walked(tab, visit)
    visit.rules, found = axe_faults(tab, axe, theme)
    visit.faults += found
    context.close()
    return visit


def measured(html, browser_path):
    """Every visit, printed as it ends."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    server, axe, visits = serve(html, Compressed), Axe(), []
    origin = f"http://127.0.0.1:{server.server_port}"
    pages = (LANDING, heaviest(html))
    print(f"{'page':32} {'theme':5} width   KB requests  paint  by    Tab axe rules")
    with tempfile.TemporaryDirectory(prefix="xb-browser-") as profile, sync_playwright() as play:
        home = {"HOME": profile, "XDG_CONFIG_HOME": profile, "XDG_CACHE_HOME": profile}
        browser = play.chromium.launch(
            executable_path=browser_path, args=FLAGS, env={**os.environ, **home}
        )
        for page in pages:
            for theme in THEMES:
                for width in WIDTHS:
                    v = visited(browser, axe, origin, page, theme, width)
                    visits.append(v)
                    print(
                        f"{page:32} {theme:5} {width:5} {v.kilobytes:4} {v.requests:8} "
                        f"{v.seconds:4.2f} s {v.what:4} {v.reached:3} of {v.of} {v.rules:3}",
                        flush=True,
                    )
                    for fault in v.faults:
                        print(f"  {fault}")
        browser.close()
    server.shutdown()
    return visits


def main(arguments=None):
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--html", type=Path, default=ROOT / "_build" / "html")
    options.add_argument("--record", action="store_true", help="keep the figures")
    chosen = options.parse_args(arguments)
    html = chosen.html.resolve()
    if not is_rendered(html) or (browser := browser_or_word()) is None:
        return 1
    visits = measured(html, browser)
    faults = sum(len(visit.faults) for visit in visits)
    print(f"\n{len(visits)} visits over a slow line, {faults} faults")
    if chosen.record:
        rows = [{**asdict(visit), "faults": len(visit.faults)} for visit in visits]
        record("measured", {"line": LINE, "visits": rows})
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
