"""Draw book/static/preview.png, what a link to the book shows elsewhere, from the key picture.

    python book/tools/preview.py

Needs Chromium. The picture carries the digest of the key picture that it was drawn from; a test
compares them, so run this after `make notebooks` has changed the key picture.
"""

import base64
import hashlib
import os
import sys
import tempfile

from check_book import FLAGS, browser_or_word
from notebook_files import ROOT, write_whole
from site_files import config

KEY = "key picture"  # the name of the digest among the text chunks of the PNG
SIZE = {"width": 1200, "height": 630}  # what the sites that show previews ask for
PAGE = """<!DOCTYPE html><html><body style="margin:0;width:1200px;height:630px;background:#fdfdfc;
font-family:system-ui,'Noto Sans',Arial,sans-serif;color:#1c1f22">
<div style="padding:36px 48px 0">
<div style="font:600 60px/1.1 Palatino,Georgia,serif">{title}</div>
<div style="font-size:27px;color:#565b61;margin-top:10px">Defending chat models against jailbreaks
without breaking their usefulness</div></div>
<img src="data:image/svg+xml;base64,{picture}" style="width:1104px;height:420px;margin:26px 48px 0;
object-fit:contain;object-position:left"></body></html>"""


def key_picture(root=ROOT):
    return (root / "book" / "images" / "key_picture.svg").read_bytes()


def draw(browser_path, into):
    from PIL import Image, PngImagePlugin
    from playwright.sync_api import sync_playwright

    picture = base64.b64encode(key_picture()).decode()
    with tempfile.TemporaryDirectory(prefix="xb-browser-") as profile, sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=browser_path, args=FLAGS, env={**os.environ, "HOME": profile}
        )
        tab = browser.new_page(viewport=SIZE)
        tab.set_content(PAGE.format(title=config()["title"], picture=picture))
        shot = os.path.join(profile, "shot.png")
        tab.screenshot(path=shot)
        browser.close()
        # Few colors are enough for lines and dots, and a third of the size.
        drawn = Image.open(shot).convert("RGB").quantize(128)
        about = PngImagePlugin.PngInfo()
        about.add_text(KEY, hashlib.sha256(key_picture()).hexdigest())
        part = os.path.join(profile, "part.png")
        drawn.save(part, optimize=True, pnginfo=about)
        with open(part, "rb") as file:
            write_whole(into, file.read())


def main():
    if (browser := browser_or_word()) is None:
        return 1
    draw(browser, ROOT / "book" / "static" / "preview.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
