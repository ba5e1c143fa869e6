"""Grade a submitted notebook: each exercise in a process of its own, kept from your files."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from xb_lite.files import cache_folder
from xb_lite.grading import walls
from xb_lite.grading.submission import Exercise, exercises_of

PACKAGE = Path(__file__).resolve().parents[1]
KEPT = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT")  # of the environment: no keys, no tokens
UNHEARD = "which does not hear what compiled code does (torch.save writes where you may)"
LOADING = 180  # seconds until torch and the rest are there
# The kernel's own walls, tried in this order: first with namespaces for files, and as a user of its
# own, which is granted without being root.
APART = ("--net", "--pid", "--fork", "--kill-child")
AS_USER = ("--user", "--map-root-user")
WALLS = tuple(
    ("unshare", *user, *files, *APART)
    for files in (("--mount", "--ipc"), ())
    for user in (AS_USER, ())
)


@dataclass(frozen=True)
class Grade:
    """How one exercise went: ``good``, ``wrong``, ``open`` (not attempted), ``missing`` (its check
    is not in the notebook), ``endless`` or ``hostile``; ``why`` in words. ``cell`` counts the code
    cells from 1, and is 0 where there is none."""

    chapter: str
    name: str
    cell: int
    status: str
    why: str

    def __str__(self) -> str:
        return f"{self.status:<8} {self.name:<22} {self.reason}".rstrip()

    @property
    def reason(self) -> str:
        """``why`` on one line: an error of several must not look like the verdicts below it."""
        return " ".join("".join(c if c.isprintable() else " " for c in self.why).split())


def grade(path: str | Path, *, seconds: int = 20, memory: int = 2048) -> list[Grade]:
    """Run the exercises of a submission, each by itself, and say how they went.

    A submission has an empty home folder, none of your environment variables but PATH and the
    language, and in each process the time and memory given here. It is to write to a temporary
    folder only, use no network, start no program, and read neither home folders nor the folder of
    the submission. Python's audit hook ends what tries this in plain Python; what compiled code
    does it does not hear. Where Linux grants namespaces (``isolation`` says it), the system itself
    keeps all of this but the start of programs, which are then as shut in as what started them;
    elsewhere compiled code reads and writes what you can. The verdict is reached in the
    submission's own process, so that "good" does not prove that nobody forged it.

    Args:
        path: a notebook.
        seconds: for each exercise.
        memory: for each exercise, in MB.

    Raises:
        ValueError: no notebook, no exercise of the book in it, or a system without these walls.
    """
    path = Path(path)
    exercises = exercises_of(path)
    if os.name != "posix":
        raise ValueError("Grading needs Linux or macOS: elsewhere there are no such limits.")
    with tempfile.TemporaryDirectory(prefix="xb-grade-", ignore_cleanup_errors=True) as folder:
        job = job_of(path, exercises, os.path.realpath(folder), seconds, memory)
        lines, in_time = _ask(job, LOADING + len(exercises) * (seconds + 5))
    found = []
    for number, exercise in enumerate(exercises):
        said = {"status": "hostile", "why": "ends the grading itself"}
        if not in_time:
            said = {"status": "endless", "why": "the time for all exercises was over"}
        if number < len(lines):
            said = lines[number]
        if said["status"] != "skipped":
            found.append(Grade(exercise.chapter, exercise.name, exercise.cell, **said))
    if len(lines) > len(exercises):
        for one in lines[-1]:
            found.append(Grade(**one, cell=0, status="missing", why=""))
    return found


def job_of(
    path: Path, exercises: list[Exercise], scratch: str, seconds: int, memory: int
) -> dict[str, object]:
    """What the worker is told: the exercises of the notebook at ``path``, and what they may do."""
    return {
        "exercises": [asdict(exercise) for exercise in exercises],
        "seconds": seconds,
        "memory": memory << 20,
        "scratch": scratch,
        "readable": _readable(),
        "denied": _denied(path),
    }


def isolation() -> str:
    """What keeps a submission from files, network and processes of this machine, in one line."""
    if "--mount" in _walls():
        return "Linux itself keeps files, network and processes apart; and an audit hook of Python"
    if _walls():
        return (
            "Linux itself keeps network and processes apart, but not files: these are kept by an "
            f"audit hook of Python alone, {UNHEARD}"
        )
    return f"an audit hook of Python alone, {UNHEARD}"


@functools.cache
def _walls() -> tuple[str, ...]:
    """The command that starts a program in the most that this system grants."""
    if not shutil.which("unshare"):
        return ()
    place = {"scratch": os.path.realpath(tempfile.gettempdir())}
    told = json.dumps({**place, "readable": _readable(), "denied": _homes()})
    for wall in WALLS:
        program = [sys.executable, "-I", walls.__file__] if "--mount" in wall else ["true"]
        tried = subprocess.run([*wall, *program], capture_output=True, input=told, text=True)
        if tried.returncode == 0:
            return wall
    return ()


def _ask(job: dict, longest: int) -> tuple[list, bool]:
    """The lines of the worker, as far as it came, and whether it ended by itself."""
    in_time = True
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR"), job["scratch"])
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1"}
    environment |= {"XB_LITE_CACHE": str(cache_folder()), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"PYTHONUSERBASE": site.getuserbase()}
    if "site-packages" not in PACKAGE.parts:
        environment["PYTHONPATH"] = str(PACKAGE.parent)
    worker = subprocess.Popen(
        # -P: no module is taken from the working folder, into which submissions write.
        [*_walls(), sys.executable, "-P", "-m", "xb_lite.grading.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=job["scratch"],
        env=environment,
        start_new_session=True,
        text=True,
    )
    try:
        told = json.dumps({**job, "enclosed": "--mount" in _walls()})
        said, failed = worker.communicate(told, timeout=longest)
    except subprocess.TimeoutExpired as error:
        said, in_time = (error.stdout or b"").decode("utf-8", "replace"), False
        failed = f"nothing was graded within {longest} s; is this machine busy?"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, 9)
        worker.communicate()
    if worker.returncode and not said:
        raise ValueError(f"The grading process could not start: {failed.strip()[-400:]}")
    return [json.loads(line) for line in said.splitlines()], in_time


def _readable() -> list[str]:
    """Where Python, the package, its results and the models lie, even inside a home folder."""
    paths = {sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib")}
    paths |= {*site.getsitepackages(), site.getusersitepackages(), PACKAGE}
    paths |= {PACKAGE.parent / name for name in ("results", "artifacts")}
    paths |= {cache_folder() / name for name in ("results", "artifacts")}
    paths |= {path.parent for path in cache_folder().glob("*/manifest.json")}  # models
    return _real(paths)


def _denied(submission: Path) -> list[str]:
    """The home folders, where grading was started, and where submissions lie."""
    return _real({*_homes(), Path.cwd(), submission.parent, cache_folder()})


def _homes() -> list[str]:
    homes = {"~", pwd.getpwuid(os.getuid()).pw_dir, "/home", "/root", "/Users"}
    return _real(map(os.path.expanduser, homes))


def _real(paths: Iterable[str | Path]) -> list[str]:
    return sorted({os.path.realpath(path) for path in paths})
