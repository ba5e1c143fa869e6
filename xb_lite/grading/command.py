"""The command ``xb-lite grade``."""

from __future__ import annotations

import argparse
from collections import Counter

from xb_lite.grading.report import grade, isolation


def add_grade(commands: argparse._SubParsersAction) -> None:
    """Add ``grade`` to the commands of the book."""
    parser = commands.add_parser(
        "grade",
        help="the exercises of submitted notebooks, run where they can do no harm",
        description="Says for each exercise: good, wrong with the reason, open, missing, endless "
        "or hostile. A submission has no network, an empty home folder, and these limits.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE.ipynb", help="submissions")
    parser.add_argument("--seconds", type=int, default=20, help="for an exercise (default: 20)")
    parser.add_argument(
        "--memory", type=int, default=2048, metavar="MB", help="for an exercise (default: 2048)"
    )
    parser.set_defaults(run=_grade)


def _grade(args: argparse.Namespace) -> None:
    print(f"isolation: {isolation()}")
    for file in args.files:
        print(f"\n{file}", flush=True)
        found = grade(file, seconds=args.seconds, memory=args.memory)
        for one in found:
            print(one)
        counts = Counter(one.status for one in found)
        print(", ".join(f"{count} {status}" for status, count in counts.items()))
