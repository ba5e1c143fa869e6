"""The tools that run, render and check the book; and what the book's own files must agree on."""

import json
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from browser import needs_browser

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "book" / "tools"
sys.path.insert(0, str(TOOLS))

import budgets  # noqa: E402
import check_book  # noqa: E402
import check_notebooks  # noqa: E402
import colab  # noqa: E402
import execute  # noqa: E402
import measure  # noqa: E402
import notebook_files  # noqa: E402
import pages  # noqa: E402
import recorded  # noqa: E402
import render  # noqa: E402

from xb_lite.corpora import (  # noqa: E402
    KINDS,
    load_corpus,
    load_labelled,
    load_passages,
    load_quiz,
    load_scripts,
    load_wrappers,
)

CHAPTERS = notebook_files.chapters()
EXERCISES = "## Exercises\n" + "".join(
    f"\n### Exercise {n}\n\nTask.\n\n<details>\n<summary>Solution</summary>\n\nIt.\n\n</details>\n"
    for n in (1, 2, 3)
)
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


def notebook(*sources):
    """A notebook with these code cells and a section of exercises, not run."""
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    made.cells = [nbformat.v4.new_markdown_cell("# Title")]
    made.cells += [nbformat.v4.new_code_cell(source) for source in sources]
    made.cells.append(nbformat.v4.new_markdown_cell(EXERCISES))
    return made


def as_if_run(*sources):
    """The same with the traces of a good run."""
    made = notebook(*sources)
    for number, cell in enumerate(notebook_files.code_cells(made), start=1):
        cell.execution_count = number
    made.metadata["xb_lite"] = {
        "profile": "quick",
        "source_sha256": notebook_files.code_digest(made),
    }
    return made


def faults_of(made, folder, name="03_toy.ipynb"):
    (folder / name).write_text(notebook_files.as_text(made))
    return check_notebooks.check([folder / name])


# Committed notebooks


def test_a_good_notebook_has_no_faults(tmp_path):
    assert faults_of(as_if_run("1", "2"), tmp_path) == []


def test_a_changed_code_cell_is_detected(tmp_path):
    made = as_if_run("1", "2")
    notebook_files.code_cells(made)[1].source = "3"
    assert faults_of(made, tmp_path) == [
        "03_toy.ipynb: has outputs of other code than it shows: run `make notebooks`"
    ]


def test_digest_sees_text_that_moved_from_cell_to_cell():
    assert notebook_files.code_digest(notebook("ab", "c")) != notebook_files.code_digest(
        notebook("a", "bc")
    )


def test_a_cell_that_was_not_run_is_named(tmp_path):
    made = as_if_run("1", "2")
    notebook_files.code_cells(made)[1].execution_count = None
    assert faults_of(made, tmp_path) == ["03_toy.ipynb: code cell 2 was not run"]


def test_cells_run_out_of_order_are_named(tmp_path):
    made = as_if_run("1", "2")
    notebook_files.code_cells(made)[1].execution_count = 7
    assert "code cell 2 was run as number 7" in faults_of(made, tmp_path)[0]


def test_an_error_output_is_named(tmp_path):
    made = as_if_run("1", "2")
    notebook_files.code_cells(made)[0].outputs = [
        nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    ]
    assert faults_of(made, tmp_path) == ["03_toy.ipynb: code cell 1 ended in ValueError: no"]


def test_a_picture_needs_alt_text(tmp_path):
    made = as_if_run("1", "2")
    cell = notebook_files.code_cells(made)[1]
    cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": PIXEL})]
    (fault,) = faults_of(made, tmp_path)
    assert fault.startswith("03_toy.ipynb: code cell 2 shows a picture without alt text")
    cell.metadata["mystnb"] = {"image": {"alt": "One pixel."}}
    assert faults_of(made, tmp_path) == []


@pytest.mark.parametrize("path", ["/home/somebody/x.py", "/Users/somebody/x", "/tmp/tmpab12/x"])
def test_a_path_of_a_machine_is_named(tmp_path, path):
    made = as_if_run("1", "2")
    notebook_files.code_cells(made)[1].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=f"saved {path}\n")
    ]
    (fault,) = faults_of(made, tmp_path)
    assert fault.startswith("03_toy.ipynb: code cell 2 prints a path of somebody's machine")


def test_exercises_and_solutions_are_asked_for(tmp_path):
    made = as_if_run("1")
    made.cells[-1].source = EXERCISES.replace("<summary>Solution</summary>", "", 1)
    assert "exercise 1 has no folded solution" in faults_of(made, tmp_path)[0]
    made.cells[-1].source = "Nothing."
    assert "no section `## Exercises`" in faults_of(made, tmp_path)[0]


def test_the_first_code_cell_is_the_same_everywhere(tmp_path):
    faults_of(as_if_run("1"), tmp_path, "00_a.ipynb")
    faults_of(as_if_run("1 "), tmp_path, "01_b.ipynb")
    (fault,) = check_notebooks.check(notebook_files.chapters(tmp_path))
    assert fault == "01_b.ipynb: its first code cell differs from that of 00_a.ipynb"


QUESTION = """**1.** Which?

1. this
2. that,
   or so

<details class="answer">
<summary>Answer</summary>

1. No: not this.
2. Right: that.

</details>

"""


def test_questions_need_as_many_answers_as_options_and_one_that_is_right(tmp_path):
    made = as_if_run("1")
    made.cells[0].source = f"# Title\n\n{3 * QUESTION}"
    assert faults_of(made, tmp_path) == []
    made.cells[0].source = f"# Title\n\n{2 * QUESTION}"
    assert faults_of(made, tmp_path) == ["03_toy.ipynb: has 2 questions, not 3 to 5"]
    made.cells[0].source = f"# Title\n\n{QUESTION.replace('Right', 'No')}{2 * QUESTION}"
    (fault,) = faults_of(made, tmp_path)
    assert fault == "03_toy.ipynb: question 1 needs one answer that begins with Right"
    made.cells[0].source = f"# Title\n\n{2 * QUESTION}{QUESTION.replace('1. this', 'this')}"
    (fault,) = faults_of(made, tmp_path)
    assert fault == "03_toy.ipynb: question 3 has 1 options and 2 answers"


@pytest.mark.parametrize("path", CHAPTERS[:5], ids=lambda path: path.stem)
def test_a_chapter_asks_its_reader(path):
    text = "\n".join(cell.source for cell in notebook_files.read(path).cells)
    assert text.count('<details class="answer">') >= check_notebooks.QUESTIONS[0]


def test_a_report_needs_no_exercises(tmp_path):
    made = as_if_run("1")
    made.cells[-1].source = "A table."
    (tmp_path / "reports").mkdir()
    assert faults_of(made, tmp_path, "reports/A_toy.ipynb") == []
    assert "no section `## Exercises`" in faults_of(made, tmp_path)[0]
    assert [path.name for path in notebook_files.notebooks(tmp_path)] == [
        "03_toy.ipynb",
        "A_toy.ipynb",
    ]


# Running notebooks


@pytest.fixture
def tree(tmp_path):
    """A repository in small: one package file, pins, and room for notebooks."""
    for folder in ("notebooks", "xb_lite", "book/images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "xb_lite" / "a.py").write_text("A = 1\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    return tmp_path


def write(tree, made, name="00_toy.ipynb"):
    path = tree / "notebooks" / name
    path.write_text(notebook_files.as_text(made))
    return path


def test_a_run_is_recorded_and_then_skipped(tree, capsys):
    path = write(tree, notebook("import os; print(os.environ['XB_PROFILE'])", "print(2)"))
    assert execute.main(["--in-place"], root=tree) == 0
    made = notebook_files.read(path)
    record = made.metadata["xb_lite"]
    assert set(record) == {"profile", "source_sha256", "seconds", "date", "hardware", "versions"}
    assert notebook_files.code_cells(made)[0].outputs[0].text == "quick\n"
    assert check_notebooks.check([path]) == []
    assert path.read_text() == notebook_files.as_text(made)

    before = path.read_bytes()
    assert execute.main(["--in-place"], root=tree) == 0
    assert "skipped" in capsys.readouterr().out
    assert path.read_bytes() == before

    (tree / "xb_lite" / "a.py").write_text("A = 2\n")
    assert execute.main(["--into", "_build/executed"], root=tree) == 0
    assert (tree / "_build" / "executed" / path.name).exists()
    for name in ("results", "artifacts"):  # a page reads them
        (tree / name).mkdir(exist_ok=True)
        (tree / name / "made.json").write_text("{}")
        capsys.readouterr()
        assert execute.main(["--into", "_build/executed"], root=tree) == 0
        assert "running" in capsys.readouterr().out
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", execute.SWITCHES)
def test_another_model_or_format_is_another_run(name, tree, capsys, monkeypatch):
    write(tree, notebook(f"import os; print(os.environ.get('{name}'))"))
    into = ["--into", "_build/executed"]
    monkeypatch.delenv(name, raising=False)
    assert execute.main(into, root=tree) == 0
    for model in ("mine", "yours"):
        monkeypatch.setenv(name, model)
        capsys.readouterr()
        assert execute.main(into, root=tree) == 0
        assert "skipped" not in capsys.readouterr().out
        made = notebook_files.read(tree / "_build" / "executed" / "00_toy.ipynb")
        assert notebook_files.code_cells(made)[0].outputs[0].text == f"{model}\n"


def test_a_model_in_a_folder_is_found_from_where_a_notebook_runs(tree, monkeypatch):
    (tree / "my_model").mkdir()
    write(tree, notebook("import os; print(os.path.isdir(os.environ['XB_MODEL']))"))
    monkeypatch.chdir(tree)
    monkeypatch.setenv("XB_MODEL", "./my_model")
    assert execute.main(["--into", "_build/executed"], root=tree) == 0
    made = notebook_files.read(tree / "_build" / "executed" / "00_toy.ipynb")
    assert notebook_files.code_cells(made)[0].outputs[0].text == "True\n"


def test_a_report_runs_into_its_folder(tree):
    made = notebook("print(1)")
    (tree / "notebooks" / "reports").mkdir()
    write(tree, made, "reports/A_toy.ipynb")
    into = tree / "_build" / "executed"
    assert execute.main(["--into", "_build/executed", "A_toy"], root=tree) == 0
    assert (into / "reports" / "A_toy.ipynb").exists()
    write(tree, made)
    (tree / "notebooks" / "reports" / "A_toy.ipynb").unlink()
    assert execute.main(["--into", "_build/executed"], root=tree) == 0
    assert [path.name for path in into.rglob("*.ipynb")] == ["00_toy.ipynb"]


def test_a_failing_cell_leaves_the_old_file(tree, capsys):
    path = write(tree, notebook("print(1)", "raise ValueError('as planned')"))
    before = path.read_bytes()
    assert execute.main(["--in-place"], root=tree) == 1
    said = capsys.readouterr().err
    assert "00_toy.ipynb, code cell 2" in said and "as planned" in said
    assert path.read_bytes() == before


def test_notebooks_run_side_by_side_with_one_thread_each_until_one_fails(tree, capfd):
    threads = "import os; print(os.environ['OMP_NUM_THREADS'])"
    write(tree, notebook(threads), "00_a.ipynb")
    write(tree, notebook("raise ValueError('as planned')"), "01_b.ipynb")
    write(tree, notebook(threads), "02_c.ipynb")
    side_by_side = ["--into", "_build/smoke", "--profile", "smoke", "--at-once", "2"]
    assert execute.main(side_by_side, root=tree) == 1
    said = capfd.readouterr()
    assert "01_b.ipynb, code cell 1" in said.err and "as planned" in said.err
    made = sorted((tree / "_build" / "smoke").glob("*.ipynb"))
    assert made[0].name == "00_a.ipynb" and "01_b.ipynb" not in [path.name for path in made]
    for path in made:  # the third was begun where the first ended before the second
        assert notebook_files.code_cells(notebook_files.read(path))[0].outputs[0].text == "1\n"


def test_a_cell_that_is_skipped_or_shows_a_path_fails_the_run(tree, capsys):
    made = notebook("import os; print(os.getcwd())", "2")
    notebook_files.code_cells(made)[1].metadata["tags"] = ["skip-execution"]
    write(tree, made)
    assert execute.main(["--into", "_build/smoke", "--profile", "smoke"], root=tree) == 1
    said = capsys.readouterr().err
    assert "code cell 1 prints a path of this machine" in said
    assert "code cell 2 was not run" in said


def test_a_progress_bar_keeps_its_last_state():
    assert execute.last_lines("a\n 10%\r 50%\r100%\nb\r\n") == "a\n100%\nb\n"


# Progress


def progress(*command):
    return [sys.executable, str(TOOLS / "progress.py"), "thinking", "--", *command]


def test_progress_passes_output_and_status_through():
    done = subprocess.run(
        progress(sys.executable, "-c", "print('out'); raise SystemExit(7)"), capture_output=True
    )
    assert (done.returncode, done.stdout) == (7, b"out\n")


def test_progress_says_that_it_is_alive():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import progress;"
        "progress.run([sys.executable, '-c', 'import time; time.sleep(1)'], 'thinking', silent=0.3)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(TOOLS)], capture_output=True, text=True)
    assert re.search(r"… \d+ s, thinking", done.stdout)


def test_progress_ends_the_whole_group(tmp_path):
    ticks = tmp_path / "ticks"
    loop = f"touch {ticks}; while :; do echo >> {ticks}; sleep 0.05; done & echo started; wait"
    running = subprocess.Popen(progress("sh", "-c", loop), stdout=subprocess.PIPE)
    assert running.stdout.readline() == b"started\n"
    running.send_signal(signal.SIGTERM)
    assert running.wait(15) == 128 + signal.SIGTERM
    size = ticks.stat().st_size
    time.sleep(0.5)
    assert ticks.stat().st_size == size


# Pages


@pytest.mark.parametrize(
    "name, begins",
    [
        ("judge_errors", "| service | "),
        ("gibberish_found", "| labelled replies, test split | "),
        ("judge_groups", "| 32 tokens | "),
        ("screen", "| OR-Bench, refused | "),
    ],
)
def test_tables_of_results_are_read_from_them(name, begins):
    text = pages.fill(f"<!-- generated: {name} -->\n", ROOT, [])
    row = next(line for line in text.splitlines() if line.startswith(begins))
    assert re.search(r"\d+ % \[\d+, \d+\], \d+ of \d+", row)


def test_the_learning_curve_has_a_row_a_set_and_an_interval_a_cell():
    text = pages.fill("<!-- generated: learning_curve -->\n", ROOT, [])
    (row,) = [line for line in text.splitlines() if line.startswith("| own twins | ")]
    assert re.fullmatch(r"\| own twins \|( 0\.\d\d \[0\.\d\d, 0\.\d\d\] \|){5}", row)


def test_generated_tables_come_from_the_records(tmp_path):
    made = as_if_run("1")
    made.metadata["xb_lite"].update(
        seconds=130, date="2026-01-02", hardware="2 CPU cores", versions={"python": "3.11.7"}
    )
    faults_of(made, tmp_path, "00_a.ipynb")
    text = pages.fill("<!-- generated: runs -->\n", tmp_path, notebook_files.chapters(tmp_path))
    assert (
        "| [Title](../notebooks/00_a.ipynb) | 2 min 10 s | quick | - | 2 CPU cores | 2026-01-02 |"
        in text
    )
    assert "No run on a CPU with bf16 or a CPU without bf16 or a GPU is on record." in text
    text = pages.fill("<!-- generated: versions -->\n", tmp_path, notebook_files.chapters(tmp_path))
    assert "| python | 3.11.7 |" in text


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("fp32 weights, matrix products in bf16 on cpu (this CPU has amx_bf16)", "CPU with bf16"),
        ("fp32 weights on cpu (no fast bf16 on this CPU)", "CPU without bf16"),
        ("bf16 weights on cuda (one GPU)", "GPU"),
        ("nothing", "-"),
    ],
)
def test_the_kind_of_machine_is_what_the_first_cell_printed(said, kind):
    made = as_if_run("1", "2")
    first, second = notebook_files.code_cells(made)
    first.outputs = [nbformat.v4.new_output("stream", name="stdout", text=said)]
    second.outputs = [nbformat.v4.new_output("stream", name="stdout", text="it ran on cuda")]
    assert pages.machine(made) == kind


def test_results_are_counted_by_plan_and_state():
    text = pages.fill("<!-- generated: results_state -->\n", ROOT, [])
    rows = re.findall(r"^\| ([\w -]+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.M)
    *plans, (name, *total) = [(row[0], *map(int, row[1:])) for row in rows]
    assert name == "all" and total == [sum(plan[i] for plan in plans) for i in (1, 2, 3)]
    assert text.count("- `") == total[1]


def test_what_was_not_checked_is_not_on_record(tmp_path):
    text = pages.fill("<!-- generated: checks -->\n", tmp_path, [])
    assert text.count("not on record") == 3
    links = {"checked": 7, "dead": 0}
    recorded.record("links", {"counts": list(links), **links}, tmp_path)
    visit = measure.Visit("book/a.html", "dark", 390, 12, 3, 0.5, "p", 4, 5, 6)
    found = {"line": measure.LINE, "visits": [{**vars(visit), "faults": 1}]}
    recorded.record("measured", found, tmp_path)
    text = pages.fill("<!-- generated: checks -->\n", tmp_path, [])
    assert ": 7 checked, 0 dead." in text and "1.6 Mbit/s down, 150 ms" in text
    assert "| book/a | dark | 390 | 12 | 3 | 0.50 s | 4 of 5 | 6 rules | 1 |" in text


# The rendered book


def test_dead_links_are_named_and_those_to_other_sites_only_counted(tmp_path):
    (tmp_path / "a.html").write_text(
        '<html><body><a href="b.html">b</a><a href="#no">c</a><a href="https://e.org/">e</a></body>'
    )
    total, elsewhere, dead = check_book.linked(tmp_path)
    assert (total, elsewhere, len(dead)) == (3, 1, 2)
    assert any("b.html" in line for line in dead)


WALK = """<html lang="en"><head><title>T</title><style>
.dim:focus { outline: none; } a { display: block }</style></head><body><main>
<a href="#one">one</a><a href="#two" class="dim">two</a><button tabindex="-1">no</button>
<button onfocus="this.blur()">back</button>
<details><summary>s</summary><a href="#in">in</a></details></main></body></html>"""


@needs_browser
def test_the_tab_key_reaches_what_it_can_and_dim_focus_is_named(show):
    tab = show()
    tab.set_content(WALK)
    visit = measure.Visit("a.html", "light", 1280)
    measure.walked(tab, visit)
    assert visit.of == 4
    assert visit.faults == ["Tab does not reach 'button back'", "no focus is seen on 'a two'"]


@needs_browser
def test_a_page_is_measured_over_a_slow_line(tmp_path, chromium):
    (tmp_path / "big.js").write_text(f"// {random.Random(0).randbytes(200_000).hex()}")
    (tmp_path / "a.html").write_text(
        '<html lang="en"><head><title>T</title><script src="big.js"></script></head><body>'
        "<main><p>Some words that are painted.</p></main></body></html>"
    )
    assert measure.heaviest(tmp_path) == "a.html"
    server = measure.serve(tmp_path, measure.Compressed)
    visit, context = measure.Visit("a.html", "light", 390), chromium.new_context()
    measure.loaded(context, f"http://127.0.0.1:{server.server_port}/a.html", visit)
    context.close()
    server.shutdown()
    assert visit.requests >= 2 and 200 < visit.kilobytes < 260
    # Two round trips, and 1.6 Mbit/s.
    assert visit.seconds > 0.3 + visit.kilobytes * 8 / 1638.4


def test_findings_are_what_a_cell_printed(tmp_path):
    made = as_if_run("1")
    (cell,) = notebook_files.code_cells(made)
    cell.metadata["tags"] = ["findings"]
    cell.outputs = [
        nbformat.v4.new_output("execute_result", {"text/html": "<ol><li>X (chapter 0)</li></ol>"})
    ]
    faults_of(made, tmp_path, "00_a.ipynb")
    asked = "<!-- generated: findings -->\n"
    text = pages.fill(asked, tmp_path, notebook_files.chapters(tmp_path))
    assert '<li>X (<a href="../notebooks/00_a.html">chapter 0</a>)</li>' in text
    with pytest.raises(ValueError, match="no notebook has a cell tagged findings"):
        pages.fill(asked, tmp_path, [])


def test_a_public_address_leads_to_the_page_beside():
    sys.path.insert(0, str(ROOT / "book" / "extensions"))
    import mend

    base = "https://o.github.io/r/"
    link = f'<a class="reference external" href="{base}book/glossary.html#term-probe">probe</a>'
    context = {"body": link}
    config = type("Config", (), {"html_baseurl": base})
    mend.mend(type("App", (), {"config": config}), "notebooks/reports/A", "", context, None)
    assert context["body"] == (
        '<a class="reference internal" href="../../book/glossary.html#term-probe">probe</a>'
    )


def test_every_prompt_is_counted():
    items = sum(len(load_corpus(kind, edition=2)) for kind in KINDS)
    text = pages.corpora(ROOT, [])
    assert text.startswith(f"{items} prompts: ")
    by_split = text.partition("### By split")[2].partition("###")[0]
    assert sum(int(number) for number in re.findall(r"\| (\d+)", by_split)) == items


def test_everything_but_prompts_is_counted():
    text = pages.carriers(ROOT, [])
    for title, items in (
        ("Multi-turn scripts", load_scripts(edition=2)),
        ("Wrappers", load_wrappers(edition=2)),
        ("Questions", load_quiz()),
        ("Passages", load_passages()),
        ("Labelled responses", load_labelled()),
    ):
        part = text.partition(f"### {title}: {len(items)}\n")[2].partition("###")[0]
        assert sum(int(number) for number in re.findall(r"\| (\d+)", part)) == len(items)


@pytest.mark.parametrize("path", notebook_files.notebooks(), ids=lambda path: path.stem)
def test_every_notebook_is_in_the_tables_of_contents(path):
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    listed = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    place = pages.place(path)
    assert place.removesuffix(".ipynb") in listed
    assert f"../{place}" in (ROOT / "book" / "intro.md").read_text()
    assert f"({place})" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_committed_key_picture_is_the_committed_output(path, tmp_path):
    name = execute.save_key_picture(notebook_files.read(path), tmp_path)
    if name is None:
        pytest.skip("has no cell tagged key-picture")
    assert (tmp_path / name).read_bytes() == (ROOT / "book" / "images" / name).read_bytes()
    for page in ("README.md", "book/intro.md"):
        assert f"images/{name}" in (ROOT / page).read_text()


# One public address


def test_every_file_names_the_same_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Repository"]
    owner, name = repository.removeprefix("https://github.com/").split("/")
    published = f"https://{owner}.github.io/{name}/"

    config = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())
    assert config["repository"]["url"] == repository
    assert config["html"]["baseurl"] == published
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["repository-code"], citation["url"]) == (repository, published)

    readme = (ROOT / "README.md").read_text()
    assert f"git clone {repository} " in readme and published in readme
    branch = config["repository"]["branch"]
    for path in CHAPTERS:
        colab = "https://colab.research.google.com/github"
        assert f"{colab}/{owner}/{name}/blob/{branch}/notebooks/{path.name}" in readme

    for page in [*ROOT.glob("*.md"), *(ROOT / "book").glob("*.md"), *CHAPTERS]:
        text = page.read_text()
        for found in re.findall(rf"github\.com/([\w.-]+/{name})", text):
            assert found == f"{owner}/{name}", page.name
        for found in re.findall(rf"https://([\w-]+)\.github\.io/{name}", text):
            assert found == owner, page.name


def test_the_citation_agrees_with_the_bibliography():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    bibliography = (ROOT / "book" / "refs.bib").read_text()
    for paper in citation["references"]:
        authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
        assert authors in bibliography
        assert f"pages     = {{{paper['start']}--{paper['end']}}}" in bibliography


def test_every_citation_has_an_entry():
    entries = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "refs.bib").read_text(), re.M))
    texts = [page.read_text() for page in (ROOT / "book").glob("*.md")]
    texts += [json.dumps([c.source for c in notebook_files.read(p).cells]) for p in CHAPTERS]
    cited = {
        key
        for text in texts
        for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
        for key in group.split(",")
    }
    assert cited <= entries


def test_the_check_of_notebooks_has_a_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        check_notebooks.main(["--help"])
    assert "[FILE ...]" in capsys.readouterr().out


def test_no_port_is_named_but_by_make(tmp_path, capsys):
    render.tell(tmp_path)
    shown = capsys.readouterr().out
    assert "make serve" in shown and "8000" not in shown


def test_what_an_installation_replaced_is_named():
    before = {"torch": "2.11.0", "numpy": "2.1.3", "pip": "24.0", "ipython": "7.34.0"}
    after = {"torch": "2.12.0", "numpy": "2.1.3", "pip": "25.0", "pot": "0.9.6"}
    assert colab.replaced(before, after) == [
        "ipython was 7.34.0 and is gone",
        "torch was 2.11.0 and is 2.12.0",
    ]
    assert colab.replaced(before, {**before, "pot": "0.9.6"}) == []


def test_prose_and_code_are_counted_as_a_reader_sees_them():
    v4 = nbformat.v4
    hidden = "<details><summary>Solution</summary>\n\nwords that nobody reads\n\n</details>"
    table = "| one | two |\n|---|---|"
    cells = [
        v4.new_markdown_cell(f"# A title\n\nFour [plain](x.md) words more. $x + y$\n\n{hidden}"),
        v4.new_code_cell("setup = 1"),
        v4.new_code_cell("a = 1\n\nb = 2"),
        v4.new_code_cell("c = 3", metadata={"tags": ["hide-input"]}),
        v4.new_markdown_cell(f"```python\ncode = 1\n```\n\n{table}\n\n## Exercises\n\nNot this."),
    ]
    found = budgets.counts(v4.new_notebook(cells=cells))
    assert found[:3] == (8, 2, 0)
    assert budgets.over(Path("00_x.ipynb"), (1201, 60, 4, 9)) == [
        "1201 words of prose, 1200 at most",
        "4 figures, 3 at most",
    ]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_is_within_its_budget(path):
    assert budgets.over(path, budgets.counts(notebook_files.read(path))) == []
