"""What a site needs beside its pages: sitemap, robots.txt, a page for addresses that are not there.

``finish`` writes them into a rendered book; ``base`` is the book's public address.
"""

import json
import re
import subprocess
from datetime import date
from html import escape

import yaml
from notebook_files import ROOT, read

NOT_LISTED = {"genindex.html", "search.html", "404.html", "index.html", "py-modindex.html"}
MISSING = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="robots" content="noindex">
<link rel="icon" href="data:,">
<title>Not here: {title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1.1rem/1.6 system-ui, sans-serif; max-width: 36rem; }}
body {{ margin: 15vh auto; padding: 0 1rem; }}
h1 {{ font-family: Palatino, Georgia, serif; line-height: 1.15; }}
html {{ background: #fdfdfc; color: #1c1f22; }}
a {{ color: #0a5f73; }}
@media (prefers-color-scheme: dark) {{
html {{ background: #15181b; color: #dfe1e3; }}
a {{ color: #7cc7d6; }}
}}
</style>
</head>
<body>
<main>
<h1>This page is not here</h1>
<p>It may have been renamed, or the address has a slip in it.</p>
<ul>
<li><a href="{base}book/intro.html">The book's first page</a> lists every chapter and report.</li>
<li><a href="{base}search.html">Search</a> finds terms, names of functions and error messages.</li>
<li><a href="{base}book/changelog.html">The changelog</a> says what was renamed.</li>
</ul>
</main>
</body>
</html>
"""


# Puts a drawing into the place of each icon, with its classes, which the theme's style asks for.
ICONS = """(() => {
  const drawings = FOUND;
  const space = "http://www.w3.org/2000/svg";
  const draw = (icon) => {
    const name = [...icon.classList].map((c) => c.slice(3)).find((c) => c in drawings);
    if (!name) return;
    const [width, height, path] = drawings[name];
    const svg = document.createElementNS(space, "svg");
    for (const { name, value } of icon.attributes) svg.setAttribute(name, value);
    svg.classList.add("svg-inline--fa");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-hidden", "true");
    const shape = document.createElementNS(space, "path");
    shape.setAttribute("fill", "currentColor");
    shape.setAttribute("d", path);
    svg.append(shape);
    icon.replaceWith(svg);
  };
  const all = (node) => node.querySelectorAll("i[class*=fa-], span[class*='fa-']").forEach(draw);
  all(document);
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes)
      for (const node of addedNodes) if (node.nodeType === 1 && node.tagName !== "svg") all(node);
  }).observe(document.body, { childList: true, subtree: true });
})();
"""


def config(root=ROOT):
    return yaml.safe_load((root / "book" / "_config.yml").read_text())


def base(root=ROOT):
    """The public address of the pages, with a slash at its end."""
    return config(root)["html"]["baseurl"].rstrip("/") + "/"


def git(root, *command):
    """What git says in ``root``; nothing where it is missing, or this is no repository."""
    done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True)
    # Not the blanks before: in a status they are the first of two columns.
    return done.stdout.strip("\n") if done.returncode == 0 else ""


def revisions(root, places):
    """The commit and day of each source file as it is; without those that were changed since, and
    empty where there is no git."""
    found = {}
    changed = {
        line[3:]
        for line in git(root, "status", "--porcelain", "--", "book", "notebooks").splitlines()
    }
    for place in places:
        line = git(root, "log", "-1", "--format=%H %cs", "--", place)
        if line and place not in changed:
            found[place] = line.split()
    return found


def sitemap(html, root=ROOT):
    """The text of sitemap.xml, with a day where the page's source has one."""
    entries = []
    for path in sorted(html.rglob("*.html")):
        name = path.relative_to(html).as_posix()
        if name in NOT_LISTED or name.startswith("_"):
            continue
        day = last_run(root, name)
        when = f"<lastmod>{day}</lastmod>" if day else ""
        entries.append(f"<url><loc>{escape(base(root) + name)}</loc>{when}</url>")
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"
    return (
        "\n".join(
            [
                '<?xml version="1.0" encoding="UTF-8"?>',
                f'<urlset xmlns="{space}">',
                *entries,
                "</urlset>",
            ]
        )
        + "\n"
    )


def last_run(root, name):
    """The day on which the outputs of a notebook's page were made, as YYYY-MM-DD, or None."""
    notebook = root / name.replace(".html", ".ipynb")
    if not notebook.exists():
        return None
    day = read(notebook).metadata.get("xb_lite", {}).get("date", "")
    return day if re.fullmatch(r"\d{4}-\d\d-\d\d", day) and date.fromisoformat(day) else None


def icons(html):
    """The names of the theme's icons that pages use, or that its scripts may add."""
    pages = [path.read_text(encoding="utf-8") for path in html.rglob("*.html")]
    scripts = [path.read_text() for path in (html / "_static" / "scripts").glob("*theme.js")]
    classes = [found for text in pages for found in re.findall(r'class="([^"]*\bfa-[^"]*)"', text)]
    return {name for text in [*classes, *scripts] for name in re.findall(r"\bfa-([a-z-]+)", text)}


def lighten(html):
    """Replace the theme's script of all icons, 1.5 MB on every page, by one of those in use."""
    script = html / "_static" / "scripts" / "fontawesome.js"
    whole = script.read_text(encoding="utf-8")
    licence = "/*! Icons of Font Awesome Free (https://fontawesome.com), CC BY 4.0 */\n"
    if whole.startswith(licence):
        return
    found = {}
    for name in sorted(icons(html)):
        drawn = re.findall(
            rf'[{{,]"?{name}"?:\[(\d+),(\d+),\[[^\]]*\],"[0-9a-f]+","([^"]+)"\]', whole
        )
        if drawn:  # the last is the solid one
            width, height, path = drawn[-1]
            found[name] = [int(width), int(height), path]
    script.write_text(licence + ICONS.replace("FOUND", json.dumps(found)), encoding="utf-8")


def finish(html, root=ROOT):
    """Write all of it into the folder of a rendered book."""
    lighten(html)
    (html / "sitemap.xml").write_text(sitemap(html, root))
    (html / "robots.txt").write_text(f"User-agent: *\nSitemap: {base(root)}sitemap.xml\n")
    title = escape(config(root)["title"])
    (html / "404.html").write_text(MISSING.format(base=base(root), title=title))
