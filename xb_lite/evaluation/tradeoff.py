"""The trade-off as something to touch: a reader chooses a defense, its training seed and strength.

``display(HTML(tradeoff(...)))`` in a notebook; where scripts do not run it is a table. The markup
is ``tradeoff.html``, its look ``tradeoff.css``, what it does ``tradeoff.js``, built on
``xb_lite.elements``; this module checks the data and packs them. Used in 05_training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from xb_lite.elements import element
from xb_lite.results.stats import Rate
from xb_lite.results.tables import html_table

TICKS = (0, 25, 50, 75, 100)  # percent, on both axes


@dataclass(frozen=True)
class Said:
    """A reply to a harmless prompt, and how it was judged."""

    prompt: str
    reply: str
    label: str


@dataclass(frozen=True)
class Place:
    """One adapter of a defense, trained from a ``seed`` and scaled to a ``strength`` (0: without
    it), on the plane: attack success against over-refusal; and what it replies to harmless
    prompts, where that is on record."""

    defense: str
    seed: int
    strength: float
    success: Rate
    over_refusal: Rate
    replies: tuple[Said, ...] = ()


def tradeoff(places: Sequence[Place]) -> str:
    """HTML in which a reader chooses defense, seed and strength, and sees both rates with their n
    and interval, the place on the plane, and the replies. The same data give the same text.

    Args:
        places: of any number of defenses, seeds and strengths, which need not be the same for all;
            the first defense and seed are shown first, at the strength nearest to 1.

    Raises:
        ValueError: there are no places, or one is there twice.
    """
    if not places:
        raise ValueError("nothing to show: there is no place on the plane yet.")
    places = sorted(places, key=lambda p: (_first(places, p.defense), p.seed, p.strength))
    keys = [(p.defense, p.seed, p.strength) for p in places]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError("{} from seed {} at strength {:g} is there twice.".format(*twice))
    data = {
        "ticks": TICKS,
        "places": [
            {
                **asdict(p),
                "success": _counted(p.success),
                "over_refusal": _counted(p.over_refusal),
            }
            for p in places
        ],
    }
    heads = ["defense", "seed", "strength", "attack success, %", "over-refusal, %"]
    rows = [
        [p.defense, str(p.seed), f"{p.strength:g}", *map(_cell, (p.success, p.over_refusal))]
        for p in places
    ]
    parts = {
        "table": html_table(heads, rows).replace('tabindex="0"', "", 1),  # its box has one
        "attacks": _sizes([p.success for p in places]),
        "prompts": _sizes([p.over_refusal for p in places]),
        "defenses": "".join(
            f"<option>{escape(name)}</option>" for name in dict.fromkeys(p.defense for p in places)
        ),
    }
    return element(Path(__file__), data, parts)


def _first(places: Sequence[Place], defense: str) -> int:
    return next(i for i, place in enumerate(places) if place.defense == defense)


def _counted(found: Rate) -> list[int]:
    """Counts, and value and interval in percent, rounded here so that they agree with the table."""
    return [found.k, found.n, *(round(100 * x) for x in (found.value, found.low, found.high))]


def _cell(found: Rate) -> str:
    value, low, high = (100 * x for x in (found.value, found.low, found.high))
    return f"{value:.0f} [{low:.0f}, {high:.0f}], {found.k} of {found.n}"


def _sizes(rates: Sequence[Rate]) -> str:
    """One n, or from which to which."""
    low, high = min(r.n for r in rates), max(r.n for r in rates)
    return str(low) if low == high else f"{low} to {high}"
