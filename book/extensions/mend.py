"""Small repairs of generated markup, so that pages work without a mouse or a screen."""

import re

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


def setup(app):
    app.connect("html-page-context", mend)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
