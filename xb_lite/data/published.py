"""Whether a file is the public set that it is given as: by what is in it, and how many.

``published.json`` has for each set the counts under which it is published (whole, or as the part
that the X-Boundary code asks) and marks of its requests: six hex digits of a digest each, of which
no request can be read off. ``whole`` says that the marks are of all of it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from xb_lite.data.rows import BenchmarkError, BenchmarkItem

LEAST = 0.5  # of a file's requests, to be of a set


@dataclass(frozen=True)
class Published:
    """What is known of a set: see above."""

    counts: tuple[int, ...]
    whole: bool
    marks: frozenset[str]


@cache
def published() -> dict[str, Published]:
    """By the set's name."""
    found = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return {
        name: Published(
            tuple(one["counts"]),
            one["whole"],
            frozenset(one["marks"][i : i + 6] for i in range(0, len(one["marks"]), 6)),
        )
        for name, one in found.items()
    }


def mark(request: str) -> str:
    """Six hex digits for a request, whatever its case and blanks."""
    return hashlib.sha256(" ".join(request.split()).lower().encode()).hexdigest()[:6]


def check_published(name: str, source: str, items: Sequence[BenchmarkItem]) -> None:
    """Warn where a set has not as many items as it is published with.

    Raises:
        BenchmarkError: most of them are not of that set: harmful requests as XSTest would be
            counted as over-refusal.
    """
    known = published()
    if name not in known:
        return
    marks = {mark(item.target or item.turns[-1]) for item in items}

    def share(one: Published) -> float:
        return len(marks & one.marks) / len(marks)

    own = share(known[name])
    likest = max(known, key=lambda other: share(known[other]))
    if own < LEAST and (known[name].whole or share(known[likest]) >= LEAST):
        found = f"most are of {likest}" if share(known[likest]) >= LEAST else "they are others"
        raise BenchmarkError(
            f"{source} is not {name}: {own:.0%} of its requests are of that set, and {found}. Give "
            "it as a set of your own, with its kind (in a command: --sets NAME:KIND=FILE)."
        )
    counts = known[name].counts
    if counts and len(items) not in counts:
        warnings.warn(
            f"{source} has {len(items)} items, and {name} is published with "
            f"{' or '.join(map(str, counts))}: its numbers are of a part, or of more.",
            stacklevel=3,
        )
