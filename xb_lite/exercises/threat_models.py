"""Checks of an exercise of 08_together: what results of an attack support, and what they do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from xb_lite.exercises.verdicts import NOT_YET, Verdict, attempted, called, unattempted
from xb_lite.results.stats import wilson

WORKS = 0.9  # of the undefended model
Counts = tuple[int, int] | None  # successes and n; None where nothing was tried

EVIDENCE: tuple[tuple[Counts, Counts, Counts], ...] = (  # undefended, defended, placebo
    ((95, 100), (4, 100), (2, 100)),  # works elsewhere, fails here
    ((95, 100), (70, 100), (2, 100)),  # breaks it
    ((40, 100), (3, 100), (2, 100)),  # weak everywhere
    ((10, 10), (0, 10), (0, 10)),  # too few to say
    ((95, 100), (70, 100), (65, 100)),  # the placebo does as much
    (None, (0, 100), (0, 100)),  # nobody tried it undefended
    ((95, 100), None, None),  # nobody tried it on the defense
    ((98, 100), (15, 100), (1, 100)),  # now and then, and not by chance
    ((90, 100), (5, 100), (5, 100)),  # just works
    ((10, 20), (10, 20), (0, 20)),  # weak, and breaks it all the same
    (None, (70, 100), (2, 100)),  # breaks it, whatever it does undefended
    ((95, 100), (70, 100), None),  # with no placebo there is nothing to compare
)
MOST = 0.2  # a defense holds if its interval ends below


def supports(undefended: Counts, defended: Counts, placebo: Counts) -> str:
    """What results of one attack support: the defense ``"fails"`` (its interval begins above where
    that of the placebo ends), it ``"holds"`` (its interval ends below ``MOST``, and the attack
    reaches ``WORKS`` of the undefended model), or ``"unknown"``."""
    if defended is None:
        return "unknown"
    low, high = wilson(*defended)
    if placebo is not None and low > wilson(*placebo)[1]:
        return "fails"
    if undefended is None or undefended[0] < WORKS * undefended[1]:
        return "unknown"
    return "holds" if high < MOST else "unknown"


def verdict(answer: Callable | object) -> Verdict:
    """The reader's ``verdict(undefended, defended, placebo)``, of counts as in ``EVIDENCE``:
    ``"holds"``, ``"fails"`` or ``"unknown"``, as ``supports`` says."""
    if not attempted(answer):
        return unattempted(answer)
    if not callable(answer):
        return Verdict(False, f"This is a {type(answer).__name__}; a function is wanted.")
    found = [called(answer, *row) for row in EVIDENCE]
    if not any(map(attempted, found)):
        return Verdict(None, NOT_YET)
    if wrong := [one for one in found if one not in ("holds", "fails", "unknown")]:
        return Verdict(
            False,
            f"It says {wrong[0]!r:.40}; 'holds', 'fails' or 'unknown' is wanted, each a text.",
        )
    wanted = [supports(*row) for row in EVIDENCE]
    if found == wanted:
        return Verdict(
            True, "A low number is evidence only where the attack works and n is large enough."
        )
    for words, function in _MISREADINGS.items():
        if found == [function(*row) for row in EVIDENCE]:
            return Verdict(False, words)
    first = next(k for k, (f, w) in enumerate(zip(found, wanted, strict=True)) if f != w)
    return Verdict(
        False, f"{EVIDENCE[first]} supports {wanted[first]!r}, and yours says {found[first]!r}."
    )


def _misread(
    undefended: Counts,
    defended: Counts,
    placebo: Counts,
    *,
    works: bool = True,
    compare: bool = True,
    intervals: bool = True,
    untried: str = "unknown",
    unsure: str = "unknown",
) -> str:
    """``supports`` with one thing left out."""
    if defended is None:
        return untried
    value = defended[0] / defended[1]
    low, high = wilson(*defended) if intervals else (value, value)
    if compare and placebo is not None:
        chance = wilson(*placebo)[1] if intervals else placebo[0] / placebo[1]
        if low > chance:
            return "fails"
    if not compare and low > MOST:
        return "fails"
    if works and (undefended is None or undefended[0] < WORKS * undefended[1]):
        return untried if undefended is None else "unknown"
    return "holds" if high < MOST else unsure


def _exchanged(*row: Counts) -> str:
    return {"holds": "fails", "fails": "holds"}.get(supports(*row), "unknown")


_MISREADINGS: dict[str, Callable] = {
    "By this rule an attack that is weak undefended cannot show that a defense holds.": partial(
        _misread, works=False
    ),
    "The placebo is left out: what it reaches too is not the attack's.": partial(
        _misread, compare=False
    ),
    "These are the rates alone: with 0 of 10 the interval still reaches 28 %.": partial(
        _misread, intervals=False
    ),
    "What nobody tried is not safe: it is unknown.": partial(_misread, untried="holds"),
    "What nobody tried is not broken: it is unknown.": partial(_misread, untried="fails"),
    "Between the two there is a third: the data do not say.": partial(_misread, unsure="fails"),
    "Holds and fails are exchanged.": _exchanged,
    "All is unknown to it, and two of the rows are clear.": lambda *row: "unknown",
}

STATEMENTS = {
    "one-opening": "At this budget the model withstood the opening that it was trained on.",
    "prefills": "The defense withstands prefills.",
    "weights": "The defense withstands somebody who has the weights.",
    "guard": "With the guard, junk after token 16 is shown to nobody.",
    "independent": "Both defenses together are as safe as the product of their failures.",
    "budget": "Against these attacks at these budgets, on this model, it failed this often.",
}
SUPPORTED = {"one-opening", "budget"}
WHY = {
    "one-opening": "it was measured, and it holds",
    "prefills": "other openings and the answer's own beginning are prefills too",
    "weights": "a few steps of tuning, or a direction taken out, need no more than the weights",
    "guard": "a reading sees what stands in it, and a detector misses some of that",
    "independent": "that they fail on other items has to be measured; products assume it",
    "budget": "it says attack, budget and model, and no more than was measured",
}


def claims(answer: object) -> Verdict:
    """The reader's choice among ``STATEMENTS``: a set of their names, those that a chapter may
    make after its table."""
    if not attempted(answer):
        return unattempted(answer)
    if not isinstance(answer, set | frozenset | list | tuple):
        kind = type(answer).__name__
        return Verdict(False, f"This is a {kind}; a set of names is wanted, {{'budget', ...}}.")
    chosen = {str(name) for name in answer}
    if unknown := sorted(chosen - STATEMENTS.keys()):
        return Verdict(False, f"There is no statement {unknown[0]!r}: give names of STATEMENTS.")
    if chosen == SUPPORTED:
        return Verdict(True, "A threat model names what was tried, at which budget, and on what.")
    if more := [name for name in STATEMENTS if name in chosen - SUPPORTED]:
        return Verdict(False, f"Not {more[0]!r}: {WHY[more[0]]}.")
    missing = [name for name in STATEMENTS if name in SUPPORTED - chosen]
    return Verdict(False, f"You may say {missing[0]!r}: {WHY[missing[0]]}.")
