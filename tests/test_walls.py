"""Walls of Linux: what a program in them, without any hook, finds and can change."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from xb_lite.grading import report, walls

BOOK = Path(__file__).parent.parent / "book"  # neither a home folder nor a temporary one
TRIES = """
import json, os, sqlite3, sys
from multiprocessing.util import spawnv_passfds
sys.path.insert(0, PLACE)
import walls
walls.enclose(**json.load(sys.stdin))

def tried(what):
    try:
        return what()
    except (OSError, sqlite3.Error) as error:
        return f"{type(error).__name__}: {error}"

def shell(command):
    command = f"({command}) >said 2>&1".encode()
    os.waitpid(spawnv_passfds(b"/bin/sh", [b"sh", b"-c", command], []), 0)
    return open("said").read()

def through_a_link():
    os.makedirs("a")
    os.symlink("..", "l")
    return os.listdir("l" + "/.." * 9 + BOOK)

def attached():
    database = sqlite3.connect(":memory:")
    database.execute(f"ATTACH '{WRITABLE}/a.db' AS a")
    database.execute("CREATE TABLE a.t (x)")

top = os.open("/", 0)
print(json.dumps({
    "own": tried(lambda: open("note", "w").write("x")),
    "covered": tried(lambda: os.listdir(BOOK)),
    "kept": tried(lambda: "questions.js" in os.listdir(f"{BOOK}/static")),
    "from a folder": tried(lambda: os.open(f"{BOOK}/teaching.md"[1:], 0, dir_fd=top)),
    "into a folder": tried(lambda: os.open(f"{WRITABLE}/b"[1:], 0o101, dir_fd=top)),
    "through a link": tried(through_a_link),
    "attached": tried(attached),
    "shell": shell(f"cat {BOOK}/teaching.md; touch {WRITABLE}/c; chmod 700 {WRITABLE}"),
    "undone": shell(f"umount {BOOK}; mount -o remount,rw,bind /; ls -A {BOOK}"),
    "another user": shell("unshare --user true"),
    "processes": [name for name in os.listdir("/proc") if name.isdigit()],
    "sockets": os.listdir("/run"),
    "power": [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")],
}))
"""


@pytest.mark.parametrize("wall", [w for w in report.WALLS if "--mount" in w], ids=" ".join)
def test_a_program_in_walls_finds_nothing_and_changes_nothing(tmp_path, wall):
    if subprocess.run([*wall, "true"], capture_output=True).returncode:
        pytest.skip("This system does not grant the namespaces that the walls need.")
    writable = sysconfig.get_path("purelib")
    place = {"PLACE": str(Path(walls.__file__).parent), "BOOK": str(BOOK), "WRITABLE": writable}
    names = "".join(f"{name} = {value!r}\n" for name, value in place.items())
    job = {"scratch": str(tmp_path), "denied": [str(BOOK)], "readable": [*report._readable()]}
    job["readable"] += [str(BOOK / "static"), str(Path(walls.__file__).parent)]
    before, permissions = sorted(os.listdir(writable)), os.stat(writable).st_mode
    said = subprocess.run(
        [*wall, sys.executable, "-I", "-c", names + TRIES],
        input=json.dumps(job),
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert (found["own"], found["covered"], found["kept"]) == (1, ["static"], True)
    assert "No such file" in found["from a folder"]
    assert "Read-only" in found["into a folder"]
    assert found["through a link"] == ["static"]
    assert "unable to open database" in found["attached"]
    assert "No such file" in found["shell"] and found["shell"].count("Read-only") == 2
    assert found["undone"].endswith("\nstatic\n") and "superuser" in found["undone"]
    assert "unshare failed" in found["another user"] or "--user" not in wall
    assert (found["processes"], found["sockets"]) == (["1"], [])
    assert set(found["power"]) == {"0" * 16}
    assert not list(tmp_path.iterdir())  # what it wrote was in memory
    assert (sorted(os.listdir(writable)), os.stat(writable).st_mode) == (before, permissions)


def test_walls_are_not_raised_round_the_whole_machine(tmp_path):
    with pytest.raises(OSError, match="namespaces of their own"):
        walls.enclose(scratch=str(tmp_path), readable=[], denied=[])


def test_where_all_of_the_machine_is_denied_the_system_stays():
    found = walls._below_root(["/", "/home/x"])
    assert "/home/x" in found and not found & {"/", "/usr", "/etc", "/proc", "/dev"}
