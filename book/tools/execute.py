"""Run the notebooks, each in a fresh kernel and an empty folder, and keep what they print.

    python book/tools/execute.py --into _build/executed             # what `make book` does
    python book/tools/execute.py --into _build/smoke --profile smoke --at-once 2
    python book/tools/execute.py --in-place 01_hidden_states        # outputs to be committed

A notebook is skipped when nothing that it depends on changed since its last run: its own cells,
the package, the pins, the profile, XB_MODEL and the Python version. A cell that raises, or that
was not run, ends the command with status 1 and leaves the old file as it was.
"""

import argparse
import base64
import datetime
import importlib.metadata
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from locks import lock
from notebook_files import (
    ROOT,
    as_text,
    cell_digest,
    code_cells,
    code_digest,
    digest,
    machine_path,
    notebooks,
    output_texts,
    read,
    write_whole,
)

RECIPE = "1"  # raise it when this file changes what it writes
SWITCHES = ("XB_MODEL", "XB_BF16")  # of the environment, that a notebook's numbers depend on
CELL_SECONDS = 1800
PACKAGES = ("torch", "transformers", "peft", "numpy", "scikit-learn", "matplotlib")
WIDGET = "application/vnd.jupyter.widget-view+json"
KEY_PICTURE = {"image/svg+xml": ".svg", "image/png": ".png"}


class Heartbeat:
    """Prints cell by cell how long it takes, and that it is alive after five silent seconds."""

    def __init__(self, name, total, every=5.0):
        self.name, self.total, self.every, self.number = name, total, every, 0
        self.start = self.last = time.monotonic()
        self.done = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.done.set()

    def _say(self, line):
        self.last = time.monotonic()
        print(line, flush=True)

    def _beat(self):
        while not self.done.wait(0.2):
            now = time.monotonic()
            if now - self.last >= self.every:
                where = (
                    f"cell {self.number} of {self.total}" if self.number else "starting the kernel"
                )
                self._say(f"  … {self.name} {where}, {now - self.start:.0f} s")

    def cell_start(self, cell, cell_index, **_):
        if cell.cell_type == "code":
            self.number, self.start = self.number + 1, time.monotonic()

    def cell_end(self, cell, cell_index, **_):
        if cell.cell_type == "code":
            seconds = time.monotonic() - self.start
            first = next((line for line in cell.source.splitlines() if line.strip()), "")
            count = f"cell {self.number:2d} of {self.total}"
            self._say(f"  {self.name} {count}  {seconds:6.1f} s  {first[:60]}")


def hardware():
    """What the run had, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = f"{cores} CPU core{'s' if cores != 1 else ''}"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True)
        if answer.returncode == 0 and answer.stdout.strip():
            words += ", " + answer.stdout.strip().splitlines()[0]
    return words


def versions():
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def package_parts(root):
    """Names and contents of the files that notebooks read: the package, the pins, results and
    adapters."""
    trees = [sorted((root / name).rglob("*")) for name in ("xb_lite", "results", "artifacts")]
    for path in [*sum(trees, []), root / "constraints.txt"]:
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".lock":
            yield path.relative_to(root).as_posix()
            yield path.read_bytes()


def last_lines(text):
    """What a terminal would show of text with carriage returns: a progress bar's last state."""
    return re.sub(r"[^\n]*\r(?!\n)", "", text.replace("\r\n", "\n"))


def tidy(notebook):
    """Drop what changes from run to run, and join the pieces of one stream."""
    notebook.metadata.pop("widgets", None)
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)
        joined = []
        for output in cell.outputs:
            if WIDGET in output.get("data", {}):
                continue  # a live progress bar; on a page it would be a bar stuck at 0
            if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
                joined[-1].text += output.text
            else:
                joined.append(output)
        for output in joined:
            if output.output_type == "stream":
                output.text = last_lines(output.text)
        cell.outputs = joined


def faults(notebook):
    """What is wrong with a notebook that ran to its end."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        if cell.execution_count is None:
            yield f"code cell {number} was not run"
        for text in output_texts(cell):
            path = machine_path(text)
            if path:
                yield f"code cell {number} prints a path of this machine ({path})"


def run_notebook(path, profile):
    """Execute one notebook; returns it with outputs and metadata, or raises RuntimeError."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = read(path)
    cells = code_cells(notebook)
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
    start = time.monotonic()
    beat = Heartbeat(path.stem[:2], len(cells))
    with tempfile.TemporaryDirectory(prefix="xb-run-") as folder, beat:
        environment = dict(
            os.environ,
            XB_PROFILE=profile,
            IPYTHONDIR=os.path.join(folder, ".ipython"),  # no start-up files of the reader's own
            PYTHONHASHSEED="0",
        )
        work = os.path.join(folder, "work")
        os.mkdir(work)
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": work}},
            record_timing=False,
            store_widget_state=False,
            on_cell_start=beat.cell_start,
            on_cell_executed=beat.cell_end,
        )
        try:
            client.execute(env=environment)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            source = cells[beat.number - 1].source if beat.number else ""
            raise RuntimeError(
                f"{path.name}, code cell {beat.number}:\n\n{source}\n\n{error}"
            ) from None
    tidy(notebook)
    found = list(faults(notebook))
    if found:
        raise RuntimeError("\n".join(f"{path.name}: {fault}" for fault in found))
    notebook.metadata["xb_lite"] = {
        "profile": profile,
        "source_sha256": code_digest(notebook),
        "seconds": round(time.monotonic() - start),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
    }
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def save_key_picture(notebook, folder):
    """Write the image of the cell tagged ``key-picture`` into ``folder``, for the landing page."""
    for cell in code_cells(notebook):
        if "key-picture" not in cell.metadata.get("tags", []):
            continue
        for output in cell.outputs:
            for kind, ending in KEY_PICTURE.items():
                if kind in output.get("data", {}):
                    write_whole(
                        folder / f"key_picture{ending}", picture_bytes(kind, output.data[kind])
                    )
                    for other in set(KEY_PICTURE.values()) - {ending}:
                        (folder / f"key_picture{other}").unlink(missing_ok=True)
                    return f"key_picture{ending}"
    return None


def picture_bytes(kind, data):
    return data.encode() if kind == "image/svg+xml" else base64.b64decode(data)


def execute(path, target, stamp, profile, root):
    """Run ``path`` into ``target`` unless its stamp says that this was done; True if it ran."""
    parts = [RECIPE, profile, platform.python_version(), cell_digest(read(path))]
    parts += [f"{name}={value}" for name in SWITCHES if (value := os.environ.get(name))]
    inputs = digest([*parts, *package_parts(root)])
    if stamp.exists() and target.exists():
        last = json.loads(stamp.read_text())
        if last == {"inputs": inputs, "output": digest([target.read_bytes()])}:
            print(
                f"{path.name}: unchanged since its last run ({profile} profile), skipped",
                flush=True,
            )
            return False
    print(f"{path.name}: running, {profile} profile", flush=True)
    start = time.monotonic()
    notebook = run_notebook(path, profile)
    text = as_text(notebook)
    write_whole(target, text)
    # The stamp comes last: a run killed before this line is simply run again.
    write_whole(stamp, json.dumps({"inputs": inputs, "output": digest([text])}) + "\n")
    print(f"{path.name}: done in {time.monotonic() - start:.0f} s", flush=True)
    return True


def alone(path, into, stamps, profile, root):
    """``execute`` while no other process runs this notebook there; the exit status."""
    target = into / path.relative_to(root / "notebooks")
    stamp = stamps / f"{path.stem}.stamp.json"
    try:
        with lock(stamps / f"{path.stem}.lock", f"running {path.name}"):
            execute(path, target, stamp, profile, root)
    except RuntimeError as error:
        print(f"\n{error}\n\n{path.name}: not finished, left as it was", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def in_a_process(*arguments):
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, end)
    sys.exit(alone(*arguments))


def side_by_side(paths, at_once, *options):
    """``alone`` on ``at_once`` notebooks at a time; after the first that fails none is begun.

    Each has one thread: threads of two processes that wait for each other's cores are many times
    slower than a core each.
    """
    waiting, running, status = list(paths), [], 0
    # Forks of a clean process that has loaded what runs a notebook: loading it takes 2 s.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nbclient"])
    start = context.Process
    try:
        while running or (waiting and not status):
            while waiting and not status and len(running) < at_once:
                running.append(start(target=in_a_process, args=(waiting.pop(0), *options)))
                running[-1].start()
            multiprocessing.connection.wait([child.sentinel for child in running])
            for child in [child for child in running if not child.is_alive()]:
                running.remove(child)
                status = status or abs(child.exitcode)
    finally:  # Ctrl-C and the like
        for child in running:
            child.terminate()
        for child in running:
            child.join()
    return status


def end(number, _frame):
    sys.exit(128 + number)


def choose(names, folder):
    if not names:
        return notebooks(folder)
    there = {path.stem: path for path in notebooks(folder)}
    stems = [Path(name).stem for name in names]
    absent = [f"{stem}.ipynb" for stem in stems if stem not in there]
    if absent:
        raise SystemExit(f"no such notebook in {folder.name}/: {', '.join(absent)}")
    return [there[stem] for stem in stems]


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--in-place", action="store_true", help="write the outputs into notebooks/")
    where.add_argument("--into", type=Path, metavar="DIR", help="write executed copies into DIR")
    parser.add_argument("--profile", choices=("smoke", "quick", "full"), default="quick")
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="so many with one thread each (--into)"
    )
    parser.add_argument(
        "names", nargs="*", metavar="NOTEBOOK", help="notebooks by name; all without it"
    )
    chosen = parser.parse_args(arguments)
    if chosen.in_place and chosen.profile == "smoke":
        parser.error("the smoke profile is for tests; its outputs are not for committing")
    if chosen.at_once < 1 or (chosen.in_place and chosen.at_once > 1):
        parser.error("--at-once N: with --into, where no run is timed for the book; N from 1")

    # The environment's own kernel, whatever kernels the reader has registered.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    signal.signal(signal.SIGTERM, end)
    # A notebook runs in an empty folder, from which a relative path leads nowhere.
    if os.path.isdir(model := os.environ.get("XB_MODEL", "")):
        os.environ["XB_MODEL"] = os.path.abspath(model)
    folder = root / "notebooks"
    into = folder if chosen.in_place else (root / chosen.into).resolve()
    stamps = root / "_build" / "in_place" if chosen.in_place else into
    paths = choose(chosen.names, folder)
    options = (into, stamps, chosen.profile, root)
    try:
        if chosen.at_once > 1:
            status = side_by_side(paths, chosen.at_once, *options)
        else:
            status = next(filter(None, (alone(path, *options) for path in paths)), 0)
    except KeyboardInterrupt:
        return 130
    for path in paths if chosen.in_place else []:
        picture = save_key_picture(read(path), root / "book" / "images")
        if picture:
            print(f"{path.name}: its key picture is book/images/{picture}")
    if status:
        return status
    if not chosen.in_place and not chosen.names:
        keep = {into / path.relative_to(folder) for path in notebooks(folder)}
        for old in {*into.glob("*.ipynb"), *into.glob("reports/*.ipynb")} - keep:
            old.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
