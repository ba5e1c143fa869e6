"""Small repairs of generated markup, so that pages work without a mouse or a screen."""

import json
import re
from html import escape, unescape
from pathlib import Path

MOST = 200  # characters of a description
PICTURE = re.compile(r'<img [^>]*src="[^"]*_images/[^>]*>')


def mend(app, pagename, templatename, context, doctree):
    body = context.get("body")
    if not body:
        return
    # A display equation may scroll sideways on a narrow screen; the keyboard has to reach it.
    body = body.replace('<div class="math ', '<div tabindex="0" class="math ')
    # So may a picture.
    box = r'<div class="wide-picture" tabindex="0" role="group" aria-label="Picture">\g<0></div>'
    body = PICTURE.sub(box, body)
    # Notebooks name a page by its public address, which works on Colab too; here it is beside them.
    home = "../" * pagename.count("/")
    own = f'href="{app.config.html_baseurl}'
    body = body.replace(f'class="reference external" {own}', f'class="reference internal" {own}')
    body = body.replace(own, f'href="{home}')
    # docutils marks the bibliography as a list, and its entries as something other than list items.
    if 'class="citation-list"' in body:
        body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    context["body"] = body


def sign(app, pagename, templatename, context, doctree):
    """Say at a page's end where it comes from, and in its head what it is."""
    if context.get("body"):
        context["metatags"] = context.get("metatags", "") + preview(app, pagename, context)
        context["body"] += made(app, pagename)


def made(app, pagename):
    """When and where a page's outputs were made, and the exact revision of its source."""
    place = next(
        (
            f"{pagename}{end}"
            for end in (".ipynb", ".md")
            if Path(app.srcdir, f"{pagename}{end}").exists()
        ),
        None,
    )
    if place is None:
        return ""
    said = []
    if place.endswith(".ipynb"):
        notebook = json.loads(Path(app.srcdir, place).read_text(encoding="utf-8"))
        run = notebook["metadata"].get("xb_lite", {})
        if "seconds" in run:
            status = "../" * pagename.count("/") + "book/status.html"
            said.append(
                f"The outputs on this page were made on {escape(run['date'])} in "
                f"{run['seconds']} s on {escape(run['hardware'])} (profile {run['profile']}; "
                f'<a href="{status}">versions</a>).'
            )
    revisions = Path(app.srcdir, "book", "revisions.json")
    known = json.loads(revisions.read_text()) if revisions.exists() else {}
    if place in known:
        commit, day = known[place]
        source = f"{app.config.html_theme_options['repository_url']}/blob/{commit}/{place}"
        said.append(f'Source: <a href="{source}">revision {commit[:10]}</a> of {day}.')
    return f'<p class="made">{" ".join(said)}</p>' if said else ""


def preview(app, pagename, context):
    """What a link to the page shows elsewhere: title, first sentences, and the key picture."""
    base = app.config.html_baseurl
    text = re.sub(r"<(script|style|table|h1)\b.*?</\1>", " ", context["body"], flags=re.S)
    text = re.sub(r'<p class="(admonition-title|subtitle)">.*?</p>', " ", text, flags=re.S)
    first = re.search(r"<p\b[^>]*>(?P<text>.{60,}?)</p>", text, re.S)
    words = " ".join(re.sub(r"<[^>]+>", "", first["text"]).split()) if first else ""
    words = unescape(words)
    if len(words) > MOST:
        words = words[:MOST].rsplit(" ", 1)[0] + " …"
    title = re.sub(r"<[^>]+>", "", unescape(context.get("title") or ""))
    shown = {
        "og:title": title,
        "og:description": words,
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:url": f"{base}{pagename}.html",
        "og:image": f"{base}_static/preview.png",
        "og:image:alt": "Hidden states of harmful and harmless prompts, placed by a probe.",
    }
    tags = [f'<meta property="{key}" content="{escape(value)}">' for key, value in shown.items()]
    tags.append('<meta name="twitter:card" content="summary_large_image">')
    if words:
        tags.append(f'<meta name="description" content="{escape(words)}">')
    return "\n".join(tags)


def kaggle(app, pagename, templatename, context, doctree):
    """A button for Kaggle beside those that the theme knows, in the menu of a notebook's page."""
    if not Path(app.srcdir, f"{pagename}.ipynb").exists():
        return
    options = app.config.html_theme_options
    source = f"{options['repository_url']}/blob/{options['repository_branch']}/{pagename}.ipynb"
    for button in context.get("header_buttons", []):
        if button.get("label") == "launch-buttons":
            button["buttons"].append(
                {
                    "type": "link",
                    "text": "Kaggle",
                    "tooltip": "Launch on Kaggle",
                    "icon": "fas fa-rocket",
                    "url": f"https://www.kaggle.com/kernels/welcome?src={source}",
                }
            )


def only_with_formulas(app, pagename, templatename, context, doctree):
    """MathJax, a megabyte, is asked for by pages with formulas alone."""
    if 'class="math' not in context.get("body", ""):
        context["script_files"] = [
            file for file in context["script_files"] if "mathjax/" not in str(file.filename)
        ]


def setup(app):
    app.connect("html-page-context", mend)
    app.connect("html-page-context", sign, priority=600)
    app.connect("html-page-context", only_with_formulas, priority=900)
    app.connect("html-page-context", kaggle, priority=900)  # after the theme's own
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
