"""Grading: submissions that are right, wrong, endless or hostile, of which none does any harm."""

import ast
import csv
import json
import os
import re
import socket
import subprocess
import sysconfig
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from exercise_pages import call_in, cells_of, solutions_in

from xb_lite.__main__ import main
from xb_lite.grading import command, exercises_of, grade, report, worker
from xb_lite.grading.report import job_of

ROOT = Path(__file__).parent.parent
IMPORTS = "import torch\nfrom xb_lite.exercises import hidden_states as check"
MEAN = """def mean_state(states, mask):
    kept = mask.unsqueeze(-1)
    return (states * kept).sum(1) / kept.sum(1)
"""
CHECK = "check.mean_state(mean_state)"


def submission(folder: Path, *cells: str, name="submission.ipynb") -> Path:
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(source) for source in (IMPORTS, *cells)]
    path = folder / name
    nbformat.write(made, path)
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with something to steal."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True)
    (folder / ".ssh" / "id").write_text("a key")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    return folder


def graded(folder: Path, *cells: str, seconds=20, memory=2048):
    """Status and reason of the one exercise in these cells, run in a fork of the tests."""
    path = submission(folder, *cells)
    scratch = folder / "scratch"
    scratch.mkdir()
    exercises = exercises_of(path)
    job = job_of(path, exercises, str(scratch), seconds, memory)
    with open(os.devnull, "w") as answers:
        (one,) = [worker.graded(asdict(exercise), job, answers) for exercise in exercises]
    return SimpleNamespace(**one)


def test_good_wrong_endless_and_hostile_submissions_are_told_apart(tmp_path, home):
    path = submission(
        tmp_path,
        MEAN,
        CHECK,
        "def last(mask):\n    return mask.sum(1)\ncheck.last_prompt_token(last)",
        "check.layer_output(lambda a, b: ...)",
        f"print(open('{home}/.ssh/id').read())\ncheck.components(1)",
        "while True: pass\ncheck.without_direction(1)",
    )
    found = {one.name: one for one in grade(path, seconds=4)}
    assert {name: one.status for name, one in found.items()} == {
        "mean_state": "good",
        "last_prompt_token": "wrong",
        "layer_output": "open",
        "components": "hostile",
        "without_direction": "endless",
        "longest_ordinary": "missing",
    }
    assert found["mean_state"].cell == 3
    assert found["last_prompt_token"].why  # the words of the check
    own = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in own and "xb_lite.grading.worker" not in own


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ValueError('no idea')", "ValueError: no idea"),
        ("raise SystemExit", "ends the program"),
        ("import os; os._exit(0)", "without an answer"),
        ("return torch.ones(1 << 32)", "300 MB of memory"),
        ("return bytearray(1 << 32)", "300 MB of memory"),
    ],
)
def test_an_answer_that_fails_is_wrong_with_the_reason(tmp_path, code, why):
    one = graded(tmp_path, f"def mean_state(states, mask):\n    {code}\n", CHECK, memory=300)
    assert one.status == "wrong"
    assert why in one.why


@pytest.mark.parametrize(
    "code", ["while True: pass", "import time; time.sleep(1000)", "try: [].sort()\nfinally:\n  x()"]
)
def test_an_endless_answer_ends(tmp_path, code):
    body = f"def x():\n  while True:\n    try: x()\n    except BaseException: pass\n{code}"
    start = time.monotonic()
    one = graded(tmp_path, f"{body}\n{CHECK.replace('mean_state)', 'None)')}", seconds=2)
    assert (one.status, time.monotonic() - start < 100) == ("endless", True)


HOSTILE = [
    ("open('HOME/.ssh/id').read()", "reads HOME/.ssh/id"),
    ("import os; os.listdir('HOME/x/..')", "reads HOME"),
    ("from pathlib import Path; Path('HOME/new').write_text('x')", "writes HOME/new"),
    ("import os; os.remove(b'HOME/.ssh/id')", "writes HOME/.ssh/id"),
    ("import shutil; shutil.rmtree('HOME')", "reads HOME"),
    ("import io, pathlib; io.FileIO(pathlib.Path('HOME/.ssh/id')).read()", "a path that is not"),
    ("import io, pathlib; io.FileIO(pathlib.Path('HOME/new'), 'w')", "a path that is not text"),
    ("import os; os.symlink('HOME', 'link')", "makes a link"),
    ("import os; os.makedirs('a'); os.chdir('a')", "leaves its folder"),
    ("import os; os.open('HOME/..', 0)", "reads "),
    ("import os; os.open('/', 0)", "reads /"),
    (
        "import os; os.makedirs('a'); os.open('../..HOME/.ssh/id', 0, dir_fd=os.open('a', 0))",
        "reads ",
    ),
    ("open('/dev/fd/../root/HOME/.ssh/id').read()", "reads HOME/.ssh/id"),
    ("import sqlite3; sqlite3.connect(':memory:')", "opens a database"),
    ("import numpy; numpy.fromfile('HOME/.ssh/id')", "reads HOME/.ssh/id"),
    ("open('/proc/1/environ', 'rb').read()", "reads /proc/1/environ"),
    ("import socket; socket.create_connection(('127.0.0.1', PORT))", "uses the network"),
    ("import urllib.request as u; u.urlopen('http://127.0.0.1:PORT/')", "uses the network"),
    ("import os; os.fork()", "process (os.fork)"),
    ("import os\nwhile True: os.fork()", "process (os.fork)"),
    ("import subprocess; subprocess.run(['touch', 'HOME/new'])", "process (subprocess.Popen)"),
    ("import os; os.system('touch HOME/new')", "process (os.system)"),
    ("import os; os.kill(PARENT, 9)", "process (os.kill)"),
    ("import ctypes; ctypes.CDLL(None).fork()", "native code"),
    ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (9, 9))", "loosens"),
    ("check.mean_state.__code__ = (lambda a: a).__code__", "changes the check"),
    (
        "import os, builtins, posixpath\n"
        "builtins.isinstance = lambda *a: False\nposixpath.join = os.fspath = str\n"
        "try: open('HOME/.ssh/id')\nexcept BaseException: pass",
        "reads HOME/.ssh/id",
    ),
    (
        "class S(str):\n  startswith = split = lambda *a: False\nopen(S('HOME/.ssh/id'))",
        "reads HOME/.ssh/id",
    ),
]


@pytest.mark.parametrize(("code", "why"), HOSTILE, ids=[why for _, why in HOSTILE])
def test_a_hostile_submission_is_reported_and_does_no_harm(tmp_path, home, code, why):
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    code = code.replace("HOME", str(home)).replace("PARENT", str(os.getpid()))
    code = code.replace("PORT", str(server.getsockname()[1]))

    one = graded(tmp_path, MEAN, f"{code}\n{CHECK}")
    with server, pytest.raises(TimeoutError):
        server.accept()
    assert one.status == "hostile", one
    assert why.replace("HOME", str(home)) in one.why
    assert [path.name for path in home.rglob("*")] == [".ssh", "id"]
    assert (home / ".ssh" / "id").read_text() == "a key"


@pytest.mark.parametrize(
    ("granted", "said"),
    [
        (report.WALLS[0], "Linux itself keeps files, network and processes apart; and an audit"),
        (report.WALLS[-1], "Linux itself keeps network and processes apart, but not files"),
        ((), "an audit hook of Python alone, which does not hear what compiled code does"),
    ],
)
def test_what_is_not_protected_is_said(monkeypatch, granted, said):
    tried = []

    def tries(command, **_):
        tried.append(command)
        return SimpleNamespace(returncode=int(command[: len(granted)] != [*granted] or not granted))

    monkeypatch.setattr(report.subprocess, "run", tries)
    monkeypatch.setattr(report.shutil, "which", lambda name: name)
    report._walls.cache_clear()
    assert report.isolation().startswith(said)
    assert len(tried) == (len(report.WALLS) if not granted else report.WALLS.index(granted) + 1)
    report._walls.cache_clear()


def test_without_walls_of_the_system_the_hook_is_named_and_no_key_gets_through(
    tmp_path, home, monkeypatch, capsys
):
    monkeypatch.setattr(report, "_walls", lambda: ())
    found = "os.environ.get('OPENAI_API_KEY'), os.listdir()"
    path = submission(
        tmp_path,
        MEAN,
        f"import socket; socket.socket()\n{CHECK}",
        "import os, pathlib\npathlib.Path('~/note').expanduser().write_text('x')\n"
        f"raise ValueError({found})\ncheck.components(1)",
    )
    assert main(["grade", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("isolation: an audit hook of Python alone")
    assert re.search(r"^hostile +mean_state +uses the network", said, re.M)
    assert re.search(r"^wrong +components +ValueError: \(None, \['note'\]\)", said, re.M)
    assert "1 hostile, 1 wrong, 4 missing" in said
    assert not (home / "note").exists()


def test_compiled_code_that_no_hook_hears_meets_the_walls(tmp_path, home):
    if "--mount" not in report._walls():
        pytest.skip("This system does not grant the namespaces that the walls need.")
    beside = Path(sysconfig.get_path("purelib")) / "xb-grade-test.pt"
    shell = f"cat {home}/.ssh/id >said; touch {home}/new {beside} 2>>said"
    spawn = "from multiprocessing.util import spawnv_passfds as start\nimport os\n"
    spawn += f"os.waitpid(start(b'/bin/sh', [b'sh', b'-c', b{shell!r}], []), 0)\n"
    stolen = f"torch.from_file('{home}/.ssh/id', size=5, dtype=torch.uint8)"
    path = submission(
        tmp_path,
        "torch.save({}, 'own.pt')\nraise ValueError(len(torch.load('own.pt')))\n"
        "check.without_direction(1)",
        f"torch.save({{}}, '{beside}')\ncheck.mean_state(1)",
        f"torch.save({{}}, '{home}/new')\ncheck.last_prompt_token(1)",
        f"raise ValueError({stolen})\ncheck.layer_output(1)",
        f"{spawn}raise ValueError(open('said').read())\ncheck.components(1)",
    )
    try:
        found = {one.name: one for one in grade(path)}
    finally:
        written = beside.exists()
        beside.unlink(missing_ok=True)
    assert not written
    assert [file.name for file in home.rglob("*")] == [".ssh", "id"]
    for name in ("mean_state", "last_prompt_token", "layer_output"):
        assert found[name].status == "wrong" and "rror: " in found[name].why, found[name]
    assert "107" not in found["layer_output"].why  # the k of "a key"
    assert "Read-only file system" in found["components"].why
    assert "a key" not in found["components"].why
    assert found["without_direction"].why == "ValueError: 0"


def test_walls_that_cannot_be_raised_end_the_grading(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_walls", lambda: ("sh", "-c", 'exec "$@"', "--mount"))
    with pytest.raises(ValueError, match=r"(?s)could not start.*namespaces of their own"):
        grade(submission(tmp_path, MEAN, CHECK))


def test_only_what_a_check_needs_is_run(tmp_path):
    path = submission(
        tmp_path,
        "model = load_model()\nscale = 2\n%matplotlib inline",
        "numbers = []\nnumbers.append(scale)\nprint(numbers)",
        "check.components(numbers)",
        "if check.components(1).right:\n    print()",
        "def broken(:\n    check.mean_state(broken)",
    )
    components, mean = exercises_of(path)
    assert components.source == "scale = 2\nnumbers = []\nnumbers.append(scale)"
    assert components.arguments == "(numbers,)"
    assert "is not Python" in mean.fault
    assert worker.graded(asdict(mean), {}, None) == {"status": "wrong", "why": mean.fault}


@pytest.mark.parametrize(
    ("text", "why"), [("no", "is no notebook"), ('{"cells": []}', "checks no exercise")]
)
def test_a_file_without_exercises_is_refused(tmp_path, text, why, capsys):
    path = tmp_path / "a.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match=why):
        grade(path)
    assert main(["grade", str(path)]) == 1
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/0*.ipynb")), ids=lambda p: p.stem)
def test_a_chapter_as_it_is_published_has_all_its_checks_and_needs_no_model(path):
    found = exercises_of(path)
    chapters = {exercise.chapter for exercise in found}
    asked = {(exercise.chapter, exercise.name) for exercise in found}
    assert {(c, name) for c in chapters for name in worker.offered(c)} <= asked
    assert not any("load_model" in exercise.source for exercise in found)


@pytest.mark.parametrize("walls", [True, False])
def test_what_a_submission_writes_is_neither_imported_by_the_grading_nor_its_answer(
    tmp_path, monkeypatch, walls
):
    """A module in the working folder, and lines on what may be the grading's own pipe."""
    if not walls:
        monkeypatch.setattr(report, "_walls", lambda: ())
    stolen = "raise SystemExit(1)"
    line = '{"status": "good", "why": ""}'
    path = submission(
        tmp_path,
        f"open('peft.py', 'w').write({stolen!r})\ncheck.components(1)",
        "import os\nfor place in range(3, 30):\n    for said in ("
        f"{line!r}, '5', '[]'):\n        try: os.write(place, (said + '\\n').encode())\n"
        "        except OSError: pass\ncheck.mean_state(1)",
        "import peft\ncheck.last_prompt_token(1)",
        "import socket; socket.socket()\ncheck.without_direction(1)",
    )
    found = {one.name: one.status for one in grade(path)}
    assert found["components"] == found["last_prompt_token"] == found["mean_state"] == "wrong"
    assert found["without_direction"] == "hostile"


@pytest.mark.parametrize("said", ["5", "[]", "[5, 'x']", "[[], 'x']", '["x", "y"]', "[" * 9999])
def test_an_answer_of_another_form_is_none(said):
    assert worker._outcome(said, True, 0, 5)["why"] == "It ends the process without an answer."


@pytest.mark.parametrize("magic", ["%%time", "%%capture out", " %%time"])
def test_a_cell_that_is_timed_or_captured_is_graded(tmp_path, magic):
    path = submission(tmp_path, MEAN, f"{magic}\n{CHECK}")
    (one,) = exercises_of(path)
    assert one.name == "mean_state" and not one.fault
    assert not exercises_of(submission(tmp_path, f"%%bash\n{CHECK}"))


def test_an_expression_that_nests_too_deeply_costs_no_other_file_its_verdict(tmp_path, capsys):
    deep = submission(tmp_path, f"x = {'+'.join('1' * 900)}\ncheck.components(x)", name="a.ipynb")
    fine = submission(tmp_path, MEAN, CHECK, name="b.ipynb")
    assert main(["grade", str(deep), str(fine)]) == 1
    said = capsys.readouterr()
    assert "nests too deeply" in said.err and "a.ipynb" in said.err
    assert re.search("^good +mean_state", said.out, re.M)


def test_names_of_a_function_of_its_own_bring_no_other_cell_along(tmp_path):
    path = submission(
        tmp_path,
        "model = load_model()\nfor kind in kinds:\n    told.append([r for r in model(kind)])",
        "scale = 2\ntold = [kind for kind in kinds]\nreply, secret = model, 3\nprint(scale)",
        "check.mean_state(told)",
        "def leaks(reply, secret=scale):\n    kind = [told for told in reply]\n"
        "    return kind, secret, check.TABLE\nprint(leaks)\ncheck.components(leaks)",
    )
    (components,) = [one for one in exercises_of(path) if one.name == "components"]
    assert components.source.splitlines()[:3] == [
        "from xb_lite.exercises import hidden_states as check",
        "scale = 2",
        "def leaks(reply, secret=scale):",
    ]


@pytest.mark.parametrize(
    ("answer", "needed"),
    [
        ("f = lambda x: x * scale", {"scale"}),
        ("def f(x):\n    global scale\n    scale = x", {"scale"}),
        ("f = [scale for other in range(3)]", {"scale"}),
        ("f = [other for other in other]", {"other"}),
        ("def f(x):\n    return scale, [scale for scale in x]", {"scale"}),
        (
            "def f(x=other):\n    try: scale = 1\n    except Exception as other: return other",
            {"other"},
        ),
        ("@other\ndef f(scale):\n    def other(): return scale", {"other"}),
        ("class f:\n    def one(self): return scale", {"scale"}),
        ("def f(x):\n    match x:\n        case [scale, *other]: return scale, other", set()),
    ],
)
def test_an_answer_brings_along_the_names_it_takes_from_outside(tmp_path, answer, needed):
    path = submission(tmp_path, "scale = 1", "other = 2", answer, "check.components(f)")
    (one,) = exercises_of(path)
    assert {
        n for n in ("scale", "other") if f"{n} = {1 + (n == 'other')}\n" in one.source
    } >= needed
    assert not needed or one.source.startswith(("scale = 1", "other = 2"))
    assert one.source.count("\n") == ast.unparse(ast.parse(answer)).count("\n") + len(needed)


@pytest.mark.parametrize(
    "change",
    [
        "for x in (1, 2): kept.append(x)",
        "if True: kept.sort()",
        "with torch.no_grad():\n    kept.append(1)",
    ],
)
def test_an_answer_that_a_loop_or_a_condition_changes_is_run_as_it_stands(tmp_path, change):
    path = submission(
        tmp_path,
        "kept = []",
        change,
        "for x in kept: check.mean_state(x)",
        "print(kept)",
        "check.components(kept)",
    )
    (components,) = [one for one in exercises_of(path) if one.name == "components"]
    assert f"kept = []\n{ast.unparse(ast.parse(change))}" in components.source


def test_an_answer_given_by_name_is_graded_as_any_other(tmp_path):
    one = graded(tmp_path, MEAN, "more = {}\ncheck.mean_state(answer=mean_state, **more)")
    assert one.status == "good", one


@pytest.mark.parametrize(
    ("cell", "source"),
    [
        ("text = ('%d items'\n        % 3)", "text = '%d items' % 3"),
        ('text = """a\n!b"""', "text = 'a\\n!b'"),
        ("!ls 'x\n%matplotlib inline\ntext = (7\n  % 3)\nif text:\n    !ls", "text = 7 % 3"),
    ],
)
def test_only_lines_for_ipython_are_left_out(tmp_path, cell, source):
    (one,) = exercises_of(submission(tmp_path, cell, "check.components(text)"))
    assert one.source.splitlines()[-1] == source


@pytest.mark.parametrize("character", ["a", "\U0001f600", "\0"])
def test_a_long_reason_is_cut_and_is_still_a_reason(tmp_path, character):
    code = f"def mean_state(states, mask):\n    raise ValueError({character!r} * 30000)\n"
    one = graded(tmp_path, code, CHECK)
    assert one.why == f"ValueError: {character * 30000}"[:20_000]


GRADED = ["00_start_here", "01_hidden_states", "02_boundary", "06_convergence"]


@pytest.mark.parametrize("chapter", GRADED)
def test_the_solutions_of_a_chapter_are_graded_without_a_model(tmp_path, chapter):
    cells = cells_of(chapter)
    for at, cell in enumerate(cells[:-1]):
        source = "".join(cell["source"])
        solution = solutions_in("".join(cells[at + 1]["source"]))
        if cell["cell_type"] == "code" and "check." in source and solution:
            cell["source"] = f"{solution[0]}\n{call_in(source)}"
    path = tmp_path / "solved.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    (tmp_path / "scratch").mkdir()
    found = exercises_of(path)
    assert not any("load_model" in one.source for one in found)
    job = job_of(path, found, str(tmp_path / "scratch"), 20, 2048)
    with open(os.devnull, "w") as answers:
        said = {one.name: worker.graded(asdict(one), job, answers)["status"] for one in found}
    assert said == {one.name: "good" for one in found}


def test_one_file_that_cannot_be_read_costs_no_other_its_verdict(tmp_path, capsys):
    bad, gone = tmp_path / "=bad.ipynb", tmp_path / "gone.ipynb"
    bad.write_text("no")
    good = submission(tmp_path, "check.components(['one\\n\\ngood     mean_state'][1])")
    table = tmp_path / "marks.csv"
    assert main(["grade", str(bad), str(gone), str(good), "--csv", str(table)]) == 1
    said = capsys.readouterr()
    assert f"not graded:\n{bad} is no notebook" in said.err
    assert "gone.ipynb" in said.err
    assert re.search(r"^wrong +components +IndexError: list index", said.out, re.M)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["status"] for row in rows] == ["unread", "unread", "wrong"] + 5 * ["missing"]
    assert rows[2]["exercise"] == "components"
    assert rows[2]["cell"] == "2"


def test_a_reason_is_one_line_and_computes_nothing(tmp_path, monkeypatch, capsys):
    forged = report.Grade("a", "=b()", 1, "wrong", "ValueError:\n\ngood  walk \x1b[2K")
    assert str(forged) == "wrong    =b()                   ValueError: good walk [2K"
    monkeypatch.setattr(command, "grade", lambda *_, **__: [forged])
    assert main(["grade", "x.ipynb", "--csv", str(tmp_path / "t.csv")]) == 0
    assert "'=b()" in (tmp_path / "t.csv").read_text()
