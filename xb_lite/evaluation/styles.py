"""Attack success of the book's multi-turn scripts by their style.

All scripts are one set of items; those after ActorAttack (``actor-network``) are what the papers
ask, and are not as hard as the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from xb_lite.corpora import EDITIONS, load_scripts
from xb_lite.evaluation.outcomes import Outcome
from xb_lite.evaluation.summary import summarise


def by_style(outcomes: Iterable[Outcome]) -> list[dict]:
    """Rows of ``summarise`` for the scripts of each style, with a set of its own, as
    ``"multi-turn, actor-network"``; of what is no script of the book none."""
    style = {script.id: script.style for script in load_scripts(edition=EDITIONS[-1])}
    scripts = [
        replace(outcome, set=f"{outcome.set}, {style[outcome.id]}")
        for outcome in outcomes
        if outcome.set == "multi-turn"
    ]
    return [row for row in summarise(scripts) if row["judge"] is not None]
