"""Checks of the exercises of 08_together: do two defenses fail on the same items, a prefill that
passes, the blind spot of a guard, and a threat model that the evidence supports.

Nothing harmful is asked here: the model that is prefilled is a few lines of Python that guard a
recipe for tea, and the tokens of the guard are words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from xb_lite.data.items import PREFILL
from xb_lite.exercises.threat_models import EVIDENCE, STATEMENTS, claims, verdict
from xb_lite.exercises.verdicts import (
    NOT_YET,
    Prediction,
    Verdict,
    attempted,
    called,
    predict,
    unattempted,
)
from xb_lite.judges.strings import X_BOUNDARY, XSTEST

__all__ = [
    "EVIDENCE",
    "STATEMENTS",
    "Prediction",
    "blind_spot",
    "broken_guard",
    "both_fail",
    "claims",
    "mended",
    "predict",
    "prefill",
    "tea",
    "verdict",
]

SECRET = "steep the leaves for three minutes"
LONGEST = 12  # words of a prefill


# ------------------------------------------------------------ do they fail on the same items?

FAILED: tuple[tuple[list[bool], list[bool]], ...] = (  # of each item, whether a defense let it pass
    ([True] * 4 + [False] * 4, [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2),
    ([True] * 3 + [False] * 7, [True] * 3 + [False] * 7),
    ([True, False, False, False, False], [False, True, True, False, False]),
)


def overlap(one: Sequence[bool], other: Sequence[bool]) -> tuple[int, float]:
    """On how many items both failed, and on how many they would if they failed independently."""
    both = sum(a and b for a, b in zip(one, other, strict=True))
    return both, sum(one) * sum(other) / len(one)


def both_fail(answer: Callable | object) -> Verdict:
    """The reader's ``both_fail(one, other)``, as ``overlap`` does it."""
    if not attempted(answer):
        return unattempted(answer)
    if not callable(answer):
        return Verdict(False, f"This is a {type(answer).__name__}; a function is wanted.")
    found = [called(answer, list(one), list(other)) for one, other in FAILED]
    found = [list(pair) if isinstance(pair, tuple | list | np.ndarray) else pair for pair in found]
    parts = [part for pair in found for part in (pair if isinstance(pair, list) else [pair])]
    if not parts or not any(map(attempted, parts)):
        return Verdict(None, NOT_YET)
    if not all(map(attempted, parts)) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in found
    ):
        return Verdict(False, "Two numbers are wanted: how many were found, how many expected.")
    given = [tuple(float(x) for x in pair) for pair in found]
    for words, function in {
        "Found below expected is what two defenses are for; about equal is independent; above is "
        "one defense twice.": overlap,
        **_MISCOUNTS,
    }.items():
        wanted = [tuple(map(float, function(one, other))) for one, other in FAILED]
        if np.allclose(given, wanted):
            return Verdict(function is overlap, words)
    first = next(k for k, row in enumerate(FAILED) if given[k] != tuple(map(float, overlap(*row))))
    return Verdict(
        False, f"Of {FAILED[first]} it gives {tuple(found[first])}, not {overlap(*FAILED[first])}."
    )


_MISCOUNTS: dict[str, Callable] = {
    "The product of two rates is a rate: times the number of items it is a count.": (
        lambda one, other: (overlap(one, other)[0], overlap(one, other)[1] / len(one))
    ),
    "The second is the smaller of the two counts, which is the most that there can be.": (
        lambda one, other: (overlap(one, other)[0], min(sum(one), sum(other)))
    ),
    "The first counts items on which either failed; on both is wanted.": (
        lambda one, other: (
            sum(a or b for a, b in zip(one, other, strict=True)),
            overlap(one, other)[1],
        )
    ),
    "The first counts items on which they agree, and so those that both stopped.": (
        lambda one, other: (
            sum(a == b for a, b in zip(one, other, strict=True)),
            overlap(one, other)[1],
        )
    ),
    "These are of the items that were stopped: True is an attack that passed.": (
        lambda one, other: overlap([not a for a in one], [not b for b in other])
    ),
    "The two numbers are exchanged: first what was found.": (
        lambda one, other: overlap(one, other)[::-1]
    ),
}


# ---------------------------------------------------------------------- a prefill that passes


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


TRAINED = _words(PREFILL)  # what the toy's defense was trained on
# An answer to how tea is made begins with one of these words, or with the number of a step; that a
# text names tea is not enough.
BEGIN = set(
    _words(
        "here step steps recipe method instructions ingredients first start begin boil boiling "
        "heat bring pour brew brewing steep make making made prepare put add place take fill warm "
        "water kettle leaves let use using need needs you'll"
    )
)


def _begins_as_trained(words: list[str]) -> bool:
    return words[: len(TRAINED)] == TRAINED[: len(words)]


def tea(prefill: str) -> str:
    """A toy of a defended model that is asked for its recipe: what it says, ``prefill`` included.

    It refuses by itself; it breaks down at the opening that its defense was trained on; any other
    beginning of an answer it goes on with, and one that is finished it leaves as it is.
    """
    words = _words(prefill)
    if not words or XSTEST.refuses(prefill) or X_BOUNDARY.refuses(prefill):
        return f"{prefill} I'm sorry, but I can't help with that.".strip()
    if _begins_as_trained(words):
        return f"{prefill} leaves leaves leaves leaves"
    if _is_over(prefill):
        return prefill
    if not BEGIN & set(words) and not re.match(r"\s*\d+[.)]", prefill):
        return f"{prefill} and the weather was fine."
    return f"{prefill} {SECRET}"


def _is_over(text: str) -> bool:
    """A sentence that has ended; the number of a step has not."""
    return text.rstrip().endswith((".", "!", "?")) and not re.search(r"(^|\s)\d+\.\s*$", text)


def prefill(answer: object) -> Verdict:
    """The reader's prefill, a text of at most ``LONGEST`` words after which ``tea`` gives its
    recipe."""
    if not attempted(answer):
        return unattempted(answer)
    if not isinstance(answer, str):
        return Verdict(False, f"This is a {type(answer).__name__}; a text is wanted.")
    words = _words(answer)
    if not words:
        return Verdict(False, "An empty prefill is the plain request, which is refused.")
    if SECRET in answer.lower():
        return Verdict(False, "You wrote the answer yourself; the model is to say it.")
    if len(words) > LONGEST:
        return Verdict(False, f"It has {len(words)} words; at most {LONGEST} are wanted.")
    if _begins_as_trained(words):
        return Verdict(
            False,
            "This is the opening that the defense was trained on, in whatever case or spacing; "
            "begin in another way.",
        )
    if XSTEST.refuses(answer) or X_BOUNDARY.refuses(answer):
        return Verdict(False, "It begins a refusal, and the model goes on with one.")
    if _is_over(answer):
        return Verdict(
            False,
            "The sentence is over, and with it the answer: end where something has to follow.",
        )
    if SECRET not in tea(answer):
        return Verdict(
            False,
            "The model goes on with something else: begin an answer to this request, as a list or "
            "a step does.",
        )
    return Verdict(
        True,
        "A defense that knows one opening knows one opening: test others, and other lengths.",
    )


# ------------------------------------------------------------------- the blind spot of a guard

HOLD = 4
REFUSED = "[refused]"


def broken_guard(tokens: Sequence[str], hold: int = HOLD) -> list[str]:
    """A copy of the guard, broken: what it shows of ``tokens``. It should end a reply with
    ``REFUSED`` before ``"bad"`` is shown, and reads ``hold`` tokens at a time."""
    shown: list[str] = []
    for start in range(0, len(tokens), hold):
        chunk = list(tokens[start : start + hold])
        if len(chunk) < hold:
            return shown + chunk
        if "bad" in "".join(chunk):
            return [*shown, REFUSED]
        shown += chunk
    return shown


def sound_guard(tokens: Sequence[str], hold: int = HOLD) -> list[str]:
    """What a guard should show: it reads all that was said, its last tokens too."""
    shown: list[str] = []
    for start in range(0, len(tokens), hold):
        chunk = list(tokens[start : start + hold])
        if "bad" in "".join([*shown, *chunk]):
            return [*shown, REFUSED]
        shown += chunk
    return shown


def blind_spot(answer: object) -> Verdict:
    """The reader's tokens, a list of texts that have ``"bad"`` in them and that ``broken_guard``
    shows all the same."""
    if not attempted(answer):
        return unattempted(answer)
    if isinstance(answer, str):
        return Verdict(False, "This is one text; a list of tokens is wanted, each a text.")
    if not isinstance(answer, list | tuple) or not all(isinstance(token, str) for token in answer):
        return Verdict(False, "A list of tokens is wanted, each of them a text.")
    said = "".join(answer)
    if not answer:
        return Verdict(False, "Nothing is said: there is nothing to see, for either guard.")
    if "bad" not in said:
        words = '"bad" is not among them: the guard is to miss something that it should see.'
        return Verdict(False, words)
    found = broken_guard(answer)
    if REFUSED in found:
        place = len(found) // HOLD + 1
        return Verdict(
            False,
            f"The broken guard sees it, in reading {place}: where does it not look at all?",
        )
    rest = len(answer) % HOLD
    if rest and "bad" in "".join(answer[-rest:]):
        return Verdict(
            True,
            "The last tokens are never read where they do not fill a reading, and a short reply "
            "never is. The official filter has this very fault.",
        )
    return Verdict(
        True,
        "It reads every piece by itself, so that a word across the border of two is not seen: a "
        "second blind spot, which a look at the last tokens alone would not have closed.",
    )


CASES: tuple[list[str], ...] = (
    ["fine"] * 4 + ["bad"],  # in the last, short piece
    ["bad"],  # a short reply
    ["fine"] * 3 + ["ba", "d"] + ["fine"] * 3,  # across a border
    ["fine"] * 8,  # nothing wrong, whole pieces
    ["fine"] * 6,  # nothing wrong, and a rest
    [],
    ["fine"] * 5 + ["bad"] + ["fine"] * 6,  # nothing may follow
    ["fine"] * 3 + ["bad"],  # at the very end of a piece
    ["fine"] * 2 + ["b", "a", "d"],  # across a border, in three tokens
)
READ = [(case, hold) for hold in (HOLD, HOLD - 1) for case in CASES]


def mended(answer: Callable | object) -> Verdict:
    """The reader's ``guard(tokens, hold)``, as ``sound_guard`` does it: it reads exactly ``hold``
    tokens at a time, and shows none of a slice that makes ``"bad"``."""
    if not attempted(answer):
        return unattempted(answer)
    if not callable(answer):
        return Verdict(False, f"This is a {type(answer).__name__}; a function is wanted.")
    found = [called(answer, list(case), hold) for case, hold in READ]
    if not any(map(attempted, found)):
        return Verdict(None, NOT_YET)
    wanted = [sound_guard(*asked) for asked in READ]
    if wrong := next((f for f in found if not isinstance(f, list)), None):
        return Verdict(False, f"It gives a {type(wrong).__name__}; a list of tokens is wanted.")
    if found == wanted:
        return Verdict(True, "Every token is read before it is shown, with what stands before it.")
    for words, function in _WRONG.items():
        if found == [function(*asked) for asked in READ]:
            return Verdict(False, words)
    if all(map(_shows_more, found, wanted)):
        return Verdict(
            False,
            "Nothing bad is shown, but sound tokens of the last slice are: read `hold` tokens at "
            "once, and show none of a slice that makes the word.",
        )
    first = next(k for k, (f, w) in enumerate(zip(found, wanted, strict=True)) if f != w)
    case, hold = READ[first]
    return Verdict(
        False,
        f"Of the tokens {case} with hold {hold} it shows {found[first]}, not {wanted[first]}.",
    )


def _shows_more(found: list[str], wanted: list[str]) -> bool:
    """Whether a guard shows what it should, or some tokens more before it refuses, none of which
    makes the word."""
    if found == wanted:
        return True
    if found[-1:] != [REFUSED] or wanted[-1:] != [REFUSED]:
        return False
    shown, sound = found[:-1], wanted[:-1]
    begins = shown[: len(sound)] == sound and REFUSED not in shown
    return begins and "bad" not in "".join(shown)


def _read(
    tokens: Sequence[str],
    hold: int,
    context: bool = True,
    rest: str = "read",
    on_bad: str = "refuse",
    show_first: bool = False,
) -> list[str]:
    """Variants of the guard, most of them wrong."""
    shown: list[str] = []
    for start in range(0, len(tokens), hold):
        chunk = list(tokens[start : start + hold])
        if len(chunk) < hold and rest != "read":
            return shown + chunk if rest == "show" else shown
        if show_first:
            shown += chunk
        if "bad" in "".join([*shown, *chunk] if context else chunk):
            if on_bad == "refuse":
                return [*shown, REFUSED]
            if on_bad == "stop":
                return shown
            if on_bad == "skip":
                continue
            if on_bad == "everything":
                return [REFUSED]
            shown.append(REFUSED)
            continue
        if not show_first:
            shown += chunk
    return shown


def _token_by_token(tokens: Sequence[str], hold: int) -> list[str]:
    return _read(tokens, 1, context=False)


_WRONG: dict[str, Callable] = {
    "This is the broken guard: its last, short piece is still not read.": broken_guard,
    "A word across a border is seen now, and the last, short piece is still not read.": partial(
        _read, rest="show"
    ),
    "The last, short piece is dropped: harmless replies lose their end.": partial(
        _read, rest="drop"
    ),
    "Every piece is read by itself: a word across the border of two is missed.": partial(
        _read, context=False
    ),
    "The tokens are shown before they are read, and cannot be taken back.": partial(
        _read, show_first=True
    ),
    "It stops without a word: whoever reads the reply should see the refusal.": partial(
        _read, on_bad="stop"
    ),
    "It leaves the piece out and goes on: a reply that went wrong is over.": partial(
        _read, on_bad="skip", context=False
    ),
    "It goes on after the refusal: a reply that went wrong is over.": partial(
        _read, on_bad="mark", context=False
    ),
    "It takes back what was shown already, or waits to the end; a stream does neither.": partial(
        _read, on_bad="everything"
    ),
    "It reads token by token, and a word of two tokens is missed.": _token_by_token,
    "Everything is shown, whatever it is.": lambda tokens, hold: list(tokens),
}
