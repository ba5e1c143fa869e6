"""The command ``xb-lite grade``."""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from pathlib import Path

from xb_lite.files import write_whole
from xb_lite.grading.report import grade, isolation


def add_grade(commands: argparse._SubParsersAction) -> None:
    """Add ``grade`` to the commands of the book."""
    parser = commands.add_parser(
        "grade",
        help="run the exercises of submitted notebooks, kept from your files",
        description="Says for each exercise: good, wrong with the reason, open, missing, endless "
        "or hostile. A submission has an empty home folder, of your environment variables only "
        "PATH and the language, and the limits below. The first line says what else protects this "
        "machine. Where Linux keeps files, network and processes apart, compiled code and programs "
        "that a submission starts have no network, see none of your processes, write only to a "
        "folder in memory, and do not find home folders, the folder of the submission, the one you "
        "are in, temporary files, sockets or devices. What Python and the book need there, and "
        "files elsewhere on the disk, they read as you can. Without this an audit hook ends what "
        "tries such things in plain Python, and does not hear compiled code: torch.save, for "
        "example, writes wherever you may.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE.ipynb", help="submissions")
    parser.add_argument("--seconds", type=int, default=20, help="for an exercise (default: 20)")
    parser.add_argument(
        "--memory", type=int, default=2048, metavar="MB", help="for an exercise (default: 2048)"
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE.csv", help="a table as well, with a line an exercise"
    )
    parser.set_defaults(run=_grade, begins_anew=True)


def _grade(args: argparse.Namespace) -> None:
    for name in ("seconds", "memory"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 1.")
    print(f"isolation: {isolation()}")
    rows, unread = [], []
    for file in args.files:
        print(f"\n{file}", flush=True)
        try:
            found = grade(file, seconds=args.seconds, memory=args.memory)
        except (ValueError, OSError) as error:  # one bad file must not cost the others' verdicts
            print("not graded")
            unread.append(f"{error}")
            rows.append((file, "", "", "", "unread", str(error)))
        else:
            for one in found:
                print(one)
                rows.append((file, one.chapter, one.name, one.cell or "", one.status, one.reason))
            counts = Counter(one.status for one in found)
            print(", ".join(f"{count} {status}" for status, count in counts.items()))
        if args.csv:
            _write(args.csv, rows)
    if unread:
        raise ValueError("\n".join(["", "not graded:", *unread]))


def _write(path: Path, rows: list[tuple[object, ...]]) -> None:
    """The table so far: who stops a long run keeps what was graded."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file", "chapter", "exercise", "cell", "status", "why"))
    # A spreadsheet would compute a cell that begins like a formula; students choose these texts.
    table.writerows(
        [f"'{cell}" if str(cell).startswith(("=", "+", "-", "@")) else cell for cell in row]
        for row in rows
    )
    write_whole(path, text.getvalue())
