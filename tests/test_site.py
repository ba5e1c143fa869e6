"""What stands around the chapters: site files, slides, the one PDF, exam bank, errors page."""

import ast
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "book" / "tools"), str(ROOT / "book" / "extensions")]

import lean  # noqa: E402
import mend  # noqa: E402
import notebook_files  # noqa: E402
import pages  # noqa: E402
import pdf  # noqa: E402
import preview  # noqa: E402
import site_files  # noqa: E402
import slides  # noqa: E402
import vendored  # noqa: E402

from xb_lite.corpora import load_corpus  # noqa: E402
from xb_lite.models import wheels  # noqa: E402

RUN = {"date": "2026-01-02", "seconds": 130, "hardware": "2 CPU cores", "profile": "quick"}
BASE = site_files.base()


# What pages load of other projects


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The keywords of ``vendored.cached``, for a wheel that is fetched into a cache of its own."""

    def fetch_wheel(wheel, folder):
        fetched.append(wheel.package)
        with zipfile.ZipFile(folder / "toy.whl", "w") as archive:
            for name in ("LICENSE", "es5/a.js", "es5/fonts/b", "es5/c.js"):
                archive.writestr(f"toy/static/{name}", name)
            archive.writestr("toy/LICENSE", "another")
        return folder / "toy.whl"

    fetched = []
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wheels, "fetch_wheel", fetch_wheel)
    return fetched, {
        "wheel": {"package": "toy", "version": "1.0", "sha256": "", "size": 2_000_000},
        "inside": "toy/static/",
        "keep": ("LICENSE", "es5/a.js", "es5/fonts/"),
    }


@pytest.mark.parametrize("drop", ["", "es5/"])
def test_files_of_a_wheel_are_fetched_once(wheel, drop, tmp_path, capsys):
    fetched, options = wheel
    folder = vendored.cached("Toy.js", "1.0", **options, drop=drop)
    assert folder == vendored.cached("Toy.js", "1.0", **options, drop=drop)
    assert folder == tmp_path / "cache" / "toy-1.0" and fetched == ["toy"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in files}
    kept = ("LICENSE", "es5/a.js", "es5/fonts/b")
    assert found == {name.removeprefix(drop): name for name in kept}
    assert list(folder.parent.iterdir()) == [folder]
    assert capsys.readouterr().out == "fetching Toy.js 1.0 (once, 2 MB)\n"


def test_what_an_interrupted_run_left_is_fetched_anew(wheel, tmp_path):
    fetched, options = wheel
    left = tmp_path / "cache" / "toy-1.0" / "LICENSE"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    folder = vendored.cached("Toy", "1.0", **options)
    assert (folder / "LICENSE").read_text() == "LICENSE" and (folder / "es5" / "a.js").exists()


def test_of_two_processes_the_faster_ones_copy_stays(wheel, tmp_path, monkeypatch):
    fetched, options = wheel
    slow = wheels.fetch_wheel

    def slower(*where):
        monkeypatch.setattr(wheels, "fetch_wheel", slow)
        own = vendored.cached("Toy", "1.0", **options)
        (own / "LICENSE").write_text("of the faster one")
        return slow(*where)

    monkeypatch.setattr(wheels, "fetch_wheel", slower)
    folder = vendored.cached("Toy", "1.0", **options)
    assert (folder / "LICENSE").read_text() == "of the faster one" and fetched == ["toy", "toy"]


# Site


@pytest.fixture
def html(tmp_path):
    """A rendered book in small."""
    for name in ("book/intro", "notebooks/00_start_here", "search", "_static/webpack"):
        path = tmp_path / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('<i class="fa-solid fa-sun"></i><i class="fab fa-github"></i>')
    scripts = tmp_path / "_static" / "scripts"
    scripts.mkdir()
    whole = 'var a={sun:[512,512,[],"f1","M1"],"github":[9,8,[],"f2","M2"],"moon":[1,1,[],"f","M"]}'
    (scripts / "fontawesome.js").write_text(whole)
    return tmp_path


def test_a_sitemap_lists_the_pages_with_the_day_of_their_outputs(html):
    site_files.finish(html)
    tree = ElementTree.fromstring((html / "sitemap.xml").read_text())
    found = {entry[0].text: [part.text for part in entry[1:]] for entry in tree}
    assert set(found) == {f"{BASE}book/intro.html", f"{BASE}notebooks/00_start_here.html"}
    (day,) = found[f"{BASE}notebooks/00_start_here.html"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    assert f"Sitemap: {BASE}sitemap.xml" in (html / "robots.txt").read_text()


def test_the_page_for_wrong_addresses_works_from_any_address(html):
    site_files.finish(html)
    links = re.findall(r'href="([^"]+)"', (html / "404.html").read_text())
    assert len(links) > 3
    assert all(link.startswith((BASE, "data:")) for link in links)
    for link in links[1:]:
        place = link.removeprefix(BASE).removesuffix(".html")
        assert place == "search" or (ROOT / f"{place}.md").exists()


def test_only_the_icons_in_use_are_sent(html):
    site_files.lighten(html)
    text = (html / "_static" / "scripts" / "fontawesome.js").read_text()
    found = json.loads(re.search(r"drawings = (\{.*\});", text).group(1))
    assert found == {"github": [9, 8, "M2"], "sun": [512, 512, "M1"]}
    site_files.lighten(html)
    assert (html / "_static" / "scripts" / "fontawesome.js").read_text() == text


def app_of(folder):
    options = {"repository_url": "https://github.com/o/r", "repository_branch": "main"}
    config = SimpleNamespace(html_theme_options=options, html_baseurl=BASE, html_title="Book")
    return SimpleNamespace(srcdir=str(folder), config=config)


def test_a_page_that_was_changed_since_names_no_revision(tmp_path):
    """Also the first of the files that git lists, and one that is not committed yet."""
    places = ["book/a.md", "book/b.md", "notebooks/c.ipynb"]
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("as it was")
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert site_files.revisions(tmp_path, places).keys() == set(places)
    (tmp_path / "book/a.md").write_text("another")
    assert site_files.revisions(tmp_path, places).keys() == {"book/b.md", "notebooks/c.ipynb"}


def test_a_page_says_when_where_and_from_which_revision_its_outputs_are(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book").mkdir()
    made = nbformat.v4.new_notebook(metadata={"xb_lite": RUN})
    (tmp_path / "notebooks" / "00_a.ipynb").write_text(notebook_files.as_text(made))
    known = {"notebooks/00_a.ipynb": ["0123456789abcdef", "2026-01-03"]}
    (tmp_path / "book" / "revisions.json").write_text(json.dumps(known))
    said = mend.made(app_of(tmp_path), "notebooks/00_a")
    assert "made on 2026-01-02 in 130 s on 2 CPU cores (profile quick" in said
    assert 'href="../book/status.html"' in said
    assert "https://github.com/o/r/blob/0123456789abcdef/notebooks/00_a.ipynb" in said
    assert mend.made(app_of(tmp_path), "search") == ""


def test_a_link_to_a_page_shows_its_first_sentence_and_the_key_picture(tmp_path):
    words = "A plane tells <em>harmful</em> from harmless prompts in most comparisons. " * 9
    body = f'<h1>T</h1><p class="admonition-title">In one sentence of many words</p><p>{words}</p>'
    tags = mend.preview(app_of(tmp_path), "book/a", {"body": body, "title": "A &amp; B"})
    assert '<meta property="og:title" content="A &amp; B">' in tags
    assert f'content="{BASE}_static/preview.png"' in tags
    description = re.search(r'name="description" content="([^"]*)"', tags).group(1)
    assert description.startswith("A plane tells harmful from") and description.endswith(" …")
    assert len(description) <= mend.MOST + 2


def test_the_preview_was_drawn_from_the_key_picture():
    from PIL import Image

    image = Image.open(ROOT / "book" / "static" / "preview.png")
    assert image.size == (1200, 630)
    drawn = image.text[preview.KEY]
    assert drawn == hashlib.sha256(preview.key_picture()).hexdigest(), "run book/tools/preview.py"


def test_kaggle_stands_beside_colab_and_binder(tmp_path):
    (tmp_path / "a.ipynb").write_text("{}")
    context = {"header_buttons": [{"label": "launch-buttons", "buttons": []}]}
    mend.kaggle(app_of(tmp_path), "a", "", context, None)
    (button,) = context["header_buttons"][0]["buttons"]
    assert button["url"].endswith("?src=https://github.com/o/r/blob/main/a.ipynb")
    launch = site_files.config()["launch_buttons"]
    assert launch["colab_url"] and launch["binderhub_url"]


def test_mathjax_is_sent_with_formulas_alone():
    files = [SimpleNamespace(filename="mathjax/tex.js"), SimpleNamespace(filename="a.js")]
    for body, left in (("<p>no</p>", 1), ('<div class="math notranslate">', 2)):
        context = {"body": body, "script_files": list(files)}
        mend.only_with_formulas(None, "a", "", context, None)
        assert len(context["script_files"]) == left


def test_the_reference_names_every_room_of_the_table():
    text = pages.api(ROOT, [])
    rooms = re.findall(r"automodule:: xb_lite\.(\w+)\n   :members: (.+)", text)
    assert len(rooms) > 20
    for room, names in rooms:
        module = __import__(f"xb_lite.{room}", fromlist=["x"])
        assert all(hasattr(module, name) for name in names.split(", ")), room


# What a page loads


SENT = """<html data-content_root="../">
  <head>
  <link rel="stylesheet" href="../_static/styles/a.css?v=1" />
  <link rel="stylesheet" type="text/css" href="../_static/book.css" />
  <link rel="preload" as="script" href="../_static/scripts/b.js" />
  <script src="../_static/documentation_options.js?v=2"></script>
  <script src="../_static/a.js"></script>
  <script>let plain = 1;</script>
  <script src="../searchindex.js"></script>
  </head>
  <body class="shown"><a href="#top">T</a><a href="glossary.html#x">G</a>
  <a href="https://e.org/">E</a><script defer src="../_static/scripts/b.js"></script></body></html>
"""


@pytest.fixture
def rendered(tmp_path):
    """A book of two pages, as the theme makes it."""
    files = {
        "book/intro.html": SENT,
        "search.html": SENT.replace("../", ""),
        "_static/styles/a.css": '@charset "UTF-8";@import "../basic.css";/* .remark */'
        ".shown,.never{color:red}@media print{.never{top:0}.a:not(.never){top:1px}}"
        ".b-made{background:url(../file.png)}.shown:not(.a,.never) p,.never:is(p,a){left:0}",
        "_static/basic.css": "p{margin:0}",
        "_static/book.css": ".one-document{margin:0}",
        "_static/documentation_options.js": "const DOCUMENTATION_OPTIONS = {\n  A: 1,\n};",
        "_static/scripts/b.js": 'add("a", "b-made")',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    lean.slim(tmp_path)
    return tmp_path


def test_one_sheet_has_the_rules_that_pages_use_in_their_order(rendered):
    text = (rendered / "_static" / "sheets.css").read_text()
    assert text.split("\n") == [
        "p{margin:0}",
        ".shown{color:red}@media print{.a:not(.never){top:1px}}.b-made{background:url(file.png)}"
        ".shown:not(.a,.never) p{left:0}",
        ".one-document{margin:0}",
    ]


def test_a_page_waits_for_no_script_and_one_sheet(rendered):
    text = (rendered / "book" / "intro.html").read_text()
    (sheet,) = re.findall(r'<link rel="stylesheet" href="([^"]+)">', text)
    assert re.fullmatch(r"\.\./_static/sheets\.css\?v=\w{8}", sheet)
    assert text.index("let plain") < text.index('<link rel="stylesheet"') < text.index("</head>")
    assert "<script>const DOCUMENTATION_OPTIONS = { A: 1, };</script>" in text
    assert re.findall(r"<script (?!defer )", text) == []
    assert "searchindex" not in text and 'as="script"' not in text
    assert "searchindex" in (rendered / "search.html").read_text()


def test_the_front_page_is_the_landing_page_from_the_folder_above(rendered):
    text = (rendered / "index.html").read_text()
    assert 'data-content_root="./"' in text and 'href="book/glossary.html#x"' in text
    assert 'src="_static/a.js"' in text and "../" not in text
    assert 'href="#top"' in text and 'href="https://e.org/"' in text


# Slides and PDF


@pytest.mark.parametrize("path", notebook_files.chapters(), ids=lambda path: path.stem)
def test_a_deck_has_one_figure_a_slide_and_notes(path):
    notebook = notebook_files.read(path)
    made = slides.deck(notebook, "https://x")
    shown = [cell.source for cell in made.cells if slides.is_slide(cell)]
    assert shown[0].startswith(f"# {pages.title(notebook)}")
    assert all(source.count("<img ") <= 1 for source in shown)
    assert sum(source.count("<img ") for source in shown) == len(slides.figures(notebook))
    kinds = [cell.metadata["slideshow"]["slide_type"] for cell in made.cells]
    assert kinds == ["slide", "notes"] * (len(kinds) // 2)
    assert all(cell.source.strip() for cell in made.cells)
    for figure in slides.figures(notebook):
        assert figure["alt"], figure["heading"]


def test_notes_are_what_the_chapter_says_to_notice():
    cells = [
        nbformat.v4.new_markdown_cell("# T\n\n## 2. Which plane?"),
        nbformat.v4.new_code_cell(
            outputs=[nbformat.v4.new_output("display_data", {"image/svg+xml": "<svg/>"})],
            metadata={"mystnb": {"image": {"alt": "A line."}}},
        ),
        nbformat.v4.new_markdown_cell("**What to notice.** It *rises*.\n\n## Next\n\nNot this."),
    ]
    (figure,) = slides.figures(nbformat.v4.new_notebook(cells=cells))
    assert (figure["heading"], figure["notes"]) == ("Which plane?", "It *rises*.")


def test_a_deck_asks_no_other_host():
    text = slides.as_html(slides.deck(notebook_files.read(notebook_files.chapters()[0]), "x"))
    loaded = re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="([^"]+)"', text)
    assert loaded
    assert not [name for name in loaded if re.match(r"https?:|//", name)]
    assert "tabindex" not in text


def test_one_chapter_can_be_made_alone_and_says_whose_it_is(tmp_path, monkeypatch, capsys):
    (tmp_path / "reveal").mkdir()
    monkeypatch.setattr(slides.mathjax, "place", lambda _: None)
    monkeypatch.setattr(slides, "cached", lambda: tmp_path / "reveal")
    assert slides.main(["01_hidden_states", "--into", str(tmp_path / "made")]) == 0
    assert [path.name for path in (tmp_path / "made").glob("0*")] == ["01_hidden_states.html"]
    text = (tmp_path / "made" / "01_hidden_states.html").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text and "notebooks/01_hidden_states.html" in text
    assert '<li value="1">' in (tmp_path / "made" / "index.html").read_text(encoding="utf-8")
    assert slides.main(["12_nothing", "--into", str(tmp_path)]) == 2
    assert "12_nothing; there are 00_start_here" in capsys.readouterr().err


def test_the_document_of_the_pdf_links_within_itself(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "notebooks").mkdir()
    first = (
        '<article class="bd-article"><h1 id="top">A</h1><a href="../notebooks/b.html#x">b</a>'
        '<a href="c.html">c</a><a href="https://e.org/">e</a><img src="../_images/p.svg">'
        "<details><summary>S</summary>in</details><button>copy</button>"
        '<details class="hide above-input"><summary>Show</summary>plt.plot()</details>'
        "<div><style>.map {}</style><svg></svg></div></article>"
    )
    (tmp_path / "book" / "a.html").write_text(first)
    places = ["book/a", "notebooks/b"]
    text = pdf.article(tmp_path, "book/a", places)
    assert 'href="#notebooks-b--x"' in text and 'id="book-a--top"' in text
    assert f'href="{BASE}book/c.html"' in text and 'href="https://e.org/"' in text
    assert 'src="/_images/p.svg"' in text
    assert "<details open" in text and "button" not in text
    assert "plt.plot" not in text and "<style>.map" in text


def test_a_bookmark_says_its_heading_once():
    data = rb"1 <</Title (A \(b\)A \(b\))/D 2>> 3 <</Title (Runs)>> 4 <</Title (No\) no)>>"
    made = pdf.mended(data)
    assert len(made) == len(data)
    assert [title.strip() for title in pdf.TITLE.findall(made)] == [
        rb"A \(b\)",
        b"Runs",
        rb"No\) no",
    ]


def test_the_pdf_has_every_page_in_order():
    found = pdf.order(ROOT)
    assert found[:2] == ["book/intro", "notebooks/00_start_here"]
    assert len(found) == len(set(found)) > 20


# Teaching


def test_the_exam_bank_has_five_questions_a_chapter_with_rubrics():
    text = (ROOT / "book" / "exam_bank.md").read_text(encoding="utf-8")
    parts = re.split(r"^\*\*(\d+)\.\*\* ", text, flags=re.M)[1:]
    numbers, bodies = parts[::2], parts[1::2]
    assert [int(number) for number in numbers] == list(range(1, 51))
    assert all("*Rubric (6).*" in body for body in bodies)
    asked = [part.count("*Rubric (6).*") for part in text.split("\n## Chapter ")[1:]]
    assert asked == [5] * len(notebook_files.chapters())
    assert "exam_bank" not in (ROOT / "book" / "_toc.yml").read_text()


def test_the_plans_add_up_to_their_sessions():
    text = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    lecture = text.partition("### One lecture")[2].partition("###")[0]
    spans = [tuple(map(int, pair)) for pair in re.findall(r"^\| (\d+)-(\d+) \|", lecture, re.M)]
    assert spans[0][0] == 0 and spans[-1][1] == 90
    assert all(one[1] == other[0] for one, other in zip(spans, spans[1:], strict=False))


def test_the_homework_takes_as_long_as_the_chapters_say():
    text = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    plan = text.partition("### Eleven sessions")[2].partition("###")[0]
    total = 0
    for chapter, numbers, minutes in re.findall(
        r"chapter (\d), exercises? ([\d to,and]+) \((\d+) min\)", plan
    ):
        first, last = re.findall(r"\d+", numbers)[0], re.findall(r"\d+", numbers)[-1]
        notebook = notebook_files.read(notebook_files.chapters()[int(chapter)])
        page = "\n\n".join(cell.source for cell in notebook.cells)
        said = dict(re.findall(r"^### Exercise (\d).*?(\d+) min", page, re.M | re.S))
        wanted = range(int(first), int(last) + 1)
        assert sum(int(said[str(n)]) for n in wanted) == int(minutes), chapter
        total += int(minutes)
    assert f"{total} in all" in text


def test_the_minutes_of_each_session_add_up():
    text = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    plan = text.partition("### Eleven sessions")[2].partition("###")[0]
    live = [row.split(" | ")[2] for row in re.findall(r"^\| (?:[2-9]|1\d) \| .*", plan, re.M)]
    live += re.findall(r"^\[Chapter 9\].*", plan, re.M)
    assert len(live) == 11
    for said in live:
        assert sum(map(int, re.findall(r"(\d+): ", said))) == 70, said


def test_every_chapter_has_its_misconception_and_its_figures():
    text = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    for part in ("## What students get wrong", "## On a projector"):
        rows = re.findall(r"^\| (\d) \|", text.partition(part)[2].partition("\n## ")[0], re.M)
        assert [int(row) for row in rows] == list(range(len(notebook_files.chapters())))


def test_week_one_fills_its_session():
    text = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    week = text.partition("### Week one")[2].partition("###")[0]
    spans = [tuple(map(int, pair)) for pair in re.findall(r"^\| (\d+)-(\d+) \|", week, re.M)]
    assert spans[0][0] == 0 and spans[-1][1] == 90
    assert all(one[1] == other[0] for one, other in zip(spans, spans[1:], strict=False))


def test_the_teaching_page_names_the_chapters_that_print_harmful_requests():
    prompts = [row.prompt for row in load_corpus("harmful")]
    found = []
    for path in notebook_files.chapters():
        page = json.dumps(notebook_files.read(path), ensure_ascii=False)
        page = unescape(re.sub(r"<[^<>]+>|\\n|\s+", " ", page))
        page = re.sub(r" +", " ", page)
        if shown := [page.index(prompt) for prompt in prompts if prompt in page]:
            found.append(path.stem[1])
            assert max(shown) < page.index("## Exercises"), path.stem
    text = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    assert f"chapters {', '.join(found[:-1])} and {found[-1]}, and in no exercise" in text


# Errors


def seen_on_the_page():
    """What the errors page quotes, with the title of its entry."""
    text = (ROOT / "book" / "errors.md").read_text(encoding="utf-8")
    for entry in text.split("\n## ")[1:]:
        title, _, body = entry.partition("\n")
        for line in re.findall(r"^\*\*You see\*\*.*$", body, re.M):
            for quoted in re.findall(r"`([^`]{16,})`", line):
                if not quoted.startswith(("python -m", "make ", "xb-lite ")):
                    yield title, quoted


def said_in_the_code():
    """Every string of the package and the tools; what is filled in is a gap."""
    for path in [*(ROOT / "xb_lite").rglob("*.py"), *(ROOT / "book" / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                yield "".join(parts)


OF_OTHERS = {  # of pip and of the shell
    "Could not find a version that satisfies the requirement",
    "make: command not found",
}


@pytest.mark.parametrize(("title", "quoted"), [*seen_on_the_page()])
def test_the_errors_page_quotes_what_the_code_says(title, quoted):
    if quoted in OF_OTHERS:
        return
    code = [re.sub(r"\s+", " ", text) for text in said_in_the_code()]
    wanted = re.compile(r".*?".join(map(re.escape, re.split(r"…|\.\.\.|\d+", quoted))))
    assert any(wanted.search(text) for text in code), f"nothing says {quoted!r} ({title})"


def test_every_error_class_of_the_package_is_on_the_errors_page():
    text = (ROOT / "book" / "errors.md").read_text(encoding="utf-8")
    named = set()
    for path in (ROOT / "xb_lite").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                named.add(node.name)
    assert named
    assert [name for name in sorted(named) if f"`{name}`" not in text] == []
