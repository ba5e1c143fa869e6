"""The process in which submissions run: ``python -m xb_lite.grading.worker``, started by ``grade``.

It reads a job as JSON, loads what is heavy once, and forks for every exercise. A fork has a time, a
memory and an audit hook; what it says arrives over a pipe, a line of JSON at a time.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
from types import FunctionType
from typing import IO

from xb_lite.grading.guard import guard, limit
from xb_lite.grading.walls import enclose

# Loaded before the limits hold: what the chapters import, and nothing that a submission brings.
WELCOME = (
    *("xb_lite", "torch", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "transformers"),
    *("IPython", "peft", "math", "re", "random", "collections", "itertools", "functools"),
)
# By chapter what the package imports only when it is used: in a fork that would look hostile.
WHEN_USED = {"convergence": "ot"}
MOST = 20_000  # characters of a reason
LONGEST = 13 * MOST  # bytes of what a fork says: JSON writes up to twelve for a character


def main() -> None:
    """Grade a job from stdin; to stdout goes a line of JSON an exercise, then what was missing."""
    job = json.load(sys.stdin)
    if job["enclosed"]:
        enclose(scratch=job["scratch"], readable=job["readable"], denied=job["denied"])
        importlib.import_module("torch")  # its error is told, where the walls hide what it needs
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # what a library prints is no answer
    for exercise in job["exercises"]:
        print(json.dumps(graded(exercise, job, answers)), file=answers, flush=True)
    asked = {(exercise["chapter"], exercise["name"]) for exercise in job["exercises"]}
    missing = [
        {"chapter": chapter, "name": name}
        for chapter in sorted({chapter for chapter, _ in asked})
        for name in offered(chapter)
        if (chapter, name) not in asked
    ]
    print(json.dumps(missing), file=answers, flush=True)


def offered(chapter: str) -> list[str]:
    """The checks of a chapter: its public functions that return a verdict, wherever they lie."""
    try:
        room = importlib.import_module(f"xb_lite.exercises.{chapter}")
    except ImportError:
        return []
    return [
        name
        for name, value in vars(room).items()
        if isinstance(value, FunctionType)
        and not name.startswith("_")
        and (value.__module__ == room.__name__ or name in getattr(room, "__all__", ()))
        and value.__annotations__.get("return") == "Verdict"
    ]


def graded(exercise: dict, job: dict, answers: IO[str]) -> dict:
    """Status and reason of one exercise, from a fork of this process; ``answers`` is what the fork
    must not write to."""
    if exercise["fault"]:
        return {"status": "wrong", "why": exercise["fault"]}
    if exercise["name"] not in offered(exercise["chapter"]):
        return {"status": "skipped", "why": "no exercise"}
    check = getattr(sys.modules[f"xb_lite.exercises.{exercise['chapter']}"], exercise["name"])
    _load(exercise)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.close(answers.fileno())
        os.setsid()
        _run(check, exercise, job, writing)
    os.close(writing)
    said, in_time = _heard(reading, job["seconds"])
    os.close(reading)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return _outcome(said, in_time, status, job["seconds"])


def _load(exercise: dict) -> None:
    """Import here what the exercise will; names are asked for, since rooms load theirs late."""
    if later := WHEN_USED.get(exercise["chapter"]):
        importlib.import_module(later)
    for node in ast.walk(ast.parse(exercise["source"])):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            wanted = [(node.module or "", alias.name) for alias in node.names]
            wanted += [(f"{module}.{name}", None) for module, name in wanted]
        else:
            continue
        for module, name in wanted:
            if module.partition(".")[0] in WELCOME:
                with contextlib.suppress(Exception):  # the submission meets the error itself
                    found = importlib.import_module(module)
                    getattr(found, name or "__name__")


def _run(check: FunctionType, exercise: dict, job: dict, channel: int) -> None:
    """In the fork, which ends here."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.chdir(job["scratch"])
    before = _code()
    limit(job["seconds"], job["memory"])
    guard(
        channel,
        scratch=job["scratch"],
        readable=tuple(job["readable"]),
        denied=tuple(job["denied"]),
    )
    try:
        program = compile(exercise["source"], f"cell {exercise['cell']}", "exec")
        space: dict = {"__name__": "submission"}
        exec(program, space)
        verdict = check(*eval(exercise["arguments"], space), **eval(exercise["by_name"], space))
        found = [verdict.right, str(verdict.text)]
    except MemoryError:
        found = [False, f"It takes more than {job['memory'] >> 20} MB of memory."]
    except SystemExit:
        found = [False, "It ends the program."]
    except BaseException as error:
        if "can't allocate memory" in str(error):  # torch's own
            found = [False, f"It takes more than {job['memory'] >> 20} MB of memory."]
        else:
            found = [False, f"{type(error).__name__}: {error}"]
    if _code() != before:
        os.write(channel, b"hostile: changes the check\n")
    else:
        right, why = found
        os.write(channel, json.dumps([right, why[:MOST]]).encode())
    os._exit(0)


def _code() -> dict[str, tuple[int, int]]:
    """Which functions the exercises have, and with which code."""
    return {
        f"{module}.{name}": (id(value), id(value.__code__))
        for module, loaded in list(sys.modules.items())
        if module.startswith("xb_lite.exercises")
        for name, value in vars(loaded).items()
        if isinstance(value, FunctionType)
    }


def _heard(channel: int, seconds: int) -> tuple[str, bool]:
    """What a fork says until it ends, and whether it ended in time."""
    said, deadline = b"", time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([channel], [], [], left)[0]:
            piece = os.read(channel, 4096)
            said += piece
            if not piece or len(said) > LONGEST:
                return said.decode("utf-8", "replace"), True
    return said.decode("utf-8", "replace"), False


def _outcome(said: str, in_time: bool, status: int, seconds: int) -> dict:
    tried = [line for line in said.splitlines() if line.startswith("hostile: ")]
    if tried:
        return {"status": "hostile", "why": tried[0].removeprefix("hostile: ")}
    by_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if not in_time or by_signal == signal.SIGXCPU:
        return {"status": "endless", "why": f"no answer within {seconds} s"}
    if by_signal == signal.SIGXFSZ:
        return {"status": "wrong", "why": "It writes a very large file."}
    match _json(said):
        case [(True | False | None) as right, str(why)]:
            return {"status": {True: "good", False: "wrong", None: "open"}[right], "why": why}
    return {"status": "wrong", "why": "It ends the process without an answer."}


def _json(said: str) -> object:
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        return None


if __name__ == "__main__":
    main()
