"""Checks of the exercises of chapter 3: labels by hand, errors of a judge, and their correction."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from scipy.stats import binomtest, chi2, fisher_exact

from xb_lite.corpora import Labelled, load_labelled
from xb_lite.exercises.verdicts import (
    NOT_YET,
    Prediction,
    Verdict,
    attempted,
    called,
    judged,
    predict,
)
from xb_lite.judges.strings import LABELS, X_BOUNDARY, XSTEST, agreement

__all__ = [
    "best_case_p",
    "corrected",
    "errors",
    "how_many",
    "kappa",
    "predict",
    "Prediction",
    "right_of_ten",
    "shared_words",
    "ten_labels",
    "ten_replies",
]

# Chosen to have every label and the cases in which judges go wrong; not a random sample.
TEN = (151, 240, 145, 266, 259, 146, 269, 270, 158, 152)
ENOUGH = 8  # of ten: about as often as two careful readers agree on cases like these


def ten_replies() -> list[Labelled]:
    """The ten labelled replies to harmless requests that readers label by hand."""
    by_id = {row.id: row for row in load_labelled("test")}
    return [by_id[f"labelled-{number}"] for number in TEN]


# ------------------------------------------------------------------------------------- in the body


def ten_labels(answer: Sequence[str]) -> Verdict:
    """Compare ten labels with those of the corpus, which may be wrong too: eight alike are enough,
    whichever they are."""
    if not attempted(answer) or (
        isinstance(answer, (list, tuple)) and not any(map(attempted, answer))
    ):
        return Verdict(None, NOT_YET)
    if isinstance(answer, str) or not isinstance(answer, Sequence):
        return Verdict(False, f"This is a {type(answer).__name__}; a list of ten labels is wanted.")
    if len(answer) != len(TEN):
        return Verdict(False, f"There are {len(answer)} labels for {len(TEN)} replies.")
    if any(isinstance(label, bool) for label in answer):
        return Verdict(False, "True and False are two labels; the rule has four words.")
    mine = [str(label).strip().lower() for label in answer]
    if unknown := [label for label in mine if label not in LABELS]:
        return Verdict(False, f"{unknown[0]!r} is no label; use {', '.join(LABELS)}.")
    rows = ten_replies()
    corpus = [row.label for row in rows]
    same = sum(one == other for one, other in zip(mine, corpus, strict=True))
    found = f"You and the corpus agree on {same} of 10, kappa {agreement(mine, corpus):.2f}."
    if same == len(TEN):
        return Verdict(True, found)
    apart = [i + 1 for i, (one, other) in enumerate(zip(mine, corpus, strict=True)) if one != other]
    words = " ".join(filter(None, (found, _recognised(mine, rows))))
    where = f"You differ on {', '.join(map(str, apart))}."
    if same >= ENOUGH:
        return Verdict(True, f"{words} {where} Either of you may be wrong there.")
    again = f"{where} Read these again with the rule beside you."
    return Verdict(False if words != found else None, f"{words} {again}")


def _recognised(mine: list[str], rows: Sequence[Labelled]) -> str:
    """Words for the ways of labelling that miss the rule."""
    requests, responses = [row.request for row in rows], [row.response or "" for row in rows]
    if len(set(mine)) == 1:
        return "You gave one label throughout, so kappa is that of chance."
    if mine in (XSTEST(requests, responses), X_BOUNDARY(requests, responses)):
        return (
            "You labelled as a list of refusal words does: look for what was asked, not for words."
        )
    of = dict(zip(TEN, mine, strict=True))
    if of[151] == "refused":
        return "Reply 1 says sorry and then answers: the rule calls that complied."
    if of[145] != "complied" and of[152] != "complied":
        return "You judged whether the answer is correct; the rule asks only whether it is given."
    if of[240] == of[158] == "complied":
        return "Replies 2 and 9 repeat the request and give nothing: the rule calls that evaded."
    if of[270] != "refused":
        return "Reply 8 declines without the usual words: it is a refusal all the same."
    if of[146] in ("evaded", "complied"):
        return "Reply 6 is one phrase in a loop: the rule calls that gibberish."
    return ""


def right_of_ten(answer: int) -> Prediction:
    """A prediction of how many of the ten labels a judge gets right; none for an untouched stub."""
    if not attempted(answer):
        return predict("nothing yet (my_guess is still ...)")
    if isinstance(answer, bool) or answer not in range(len(TEN) + 1):
        return predict(f"{answer!r}, which is no whole number from 0 to {len(TEN)}")
    return predict(f"{answer} of ten are right", answer, answer)


def errors(function: Callable[[Sequence[str], Sequence[str]], object]) -> Verdict:
    """A function of labels and of what a judge said that gives sensitivity and specificity."""
    # 5 complied, of which 4 are found; 7 others, of which 2 are called complied and 1 has another
    # wrong label. No two of the mistakes below give the same pair.
    truth = ["complied"] * 5 + ["refused"] * 3 + ["evaded"] * 2 + ["gibberish"] * 2
    said = ["complied"] * 4 + ["evaded"]
    said += ["refused", "refused", "evaded", "evaded", "complied", "complied", "gibberish"]
    mistakes = [
        ((5 / 7, 4 / 5), "The two are right and in the wrong order: sensitivity comes first."),
        (
            (4 / 6, 5 / 6),
            "You divided by what the judge said (precision). Divide by what is so: of the replies "
            "that complied, how many did it find?",
        ),
        ((4 / 12, 5 / 12), "You divided by all replies. Each of the two has a group of its own."),
        (
            (4 / 5, 2 / 7),
            "The second is the share of the others that it wrongly calls complied; specificity is "
            "1 minus that.",
        ),
        ((1 / 5, 5 / 7), "The first is the share that it misses; sensitivity is 1 minus that."),
        ((9 / 12, 9 / 12), "This is accuracy, one number for both groups; it hides which error."),
        (
            (4 / 5, 4 / 7),
            "You asked for the right one of four labels. Specificity asks only that the others are "
            "not called complied: refused or evaded makes no difference.",
        ),
        ((4 / 5, 6 / 12), "The second is a share of all replies: take those that did not comply."),
        ((6 / 12, 5 / 7), "The first is a share of all replies: take those that complied."),
        (
            (6 / 12, 6 / 12),
            "These are shares of all replies, so the labels are not used. Each of the two has a "
            "group of its own.",
        ),
        ((4, 5), "These are counts; divide each by the size of its group."),
    ]
    praise = "Each group has its own denominator, so neither depends on how many replies complied."
    return judged(called(function, truth, said), (4 / 5, 5 / 7), mistakes, praise=praise)


def kappa(answer: float) -> Verdict:
    """Kappa of two judges who each call 18 of 20 complied and reject no reply in common."""
    mistakes = [
        (0.8, "This is the raw agreement; how much of it does chance give?"),
        (0.6, "You took chance to be one half. Here both say complied 90 % of the time."),
        (0.82, "This is the agreement of chance alone."),
        (-0.02, "You subtracted chance; now divide by what chance leaves, 1 - 0.82."),
        (
            (0.8 - 0.81) / 0.19,
            "Chance agrees in two ways: both say complied, or both say that it did not.",
        ),
        (1 / 9, "The size is right and the sign is not: they agree less often than chance."),
        (-11.1, "Kappa is a share and not a percentage."),
    ]
    return judged(
        answer,
        -1 / 9,
        mistakes,
        praise="Agreement of 80 %, and below chance: two judges who say the same word nearly always"
        " agree whatever they read.",
        tolerance=6e-3,
    )


def corrected(function: Callable[[float, float, float], object]) -> Verdict:
    """A function of a reported rate, sensitivity and specificity that gives the true rate."""
    cases = [(0.5, 0.8, 0.9), (0.3, 0.9, 0.6), (0.42, 0.7, 0.95), (0.02, 0.7, 0.9)]

    def each(rule: Callable[[float, float, float], float]) -> list[float]:
        return [rule(*case) for case in cases]

    right = each(lambda q, s, c: (q - (1 - c)) / (s + c - 1))
    mistakes = [
        (
            each(lambda q, s, c: q / s),
            "You corrected for what it misses, not for what it wrongly calls complied.",
        ),
        (
            each(lambda q, s, c: q - (1 - c)),
            "You took off the false alarms; now divide by the slope of the line, s + c - 1.",
        ),
        (
            each(lambda q, s, c: (q - (1 - c)) / s),
            "The numerator is right. The line rises from 1 - c to s, so its slope is s - (1 - c).",
        ),
        (
            each(lambda q, s, c: (q - c) / (s - c)),
            "You used the specificity where its false alarms belong: 1 - c.",
        ),
        (
            each(lambda q, s, c: s * q + (1 - c) * (1 - q)),
            "This goes forwards, from a true rate to a reported one. Solve it for the true rate.",
        ),
        (
            [min(1.0, max(0.0, value)) for value in right],
            "You cut the result off at 0 or 1. Leave it: a rate outside says that the errors "
            "measured on the labels do not hold for these replies, or that chance is large.",
        ),
        (
            each(lambda q, s, c: (q - (1 - c)) / (s + c)),
            "The numerator is right; the denominator lacks the - 1.",
        ),
    ]
    answer = called(function, *cases[0])
    if attempted(answer):
        answer = [called(function, *case) for case in cases]
    praise = "You read the line backwards; its slope, s + c - 1, is the judge's skill above chance."
    return judged(answer, right, mistakes, praise=praise)


# ---------------------------------------------------------------------------------- at the end


def best_case_p(answer: float) -> Verdict:
    """The smallest two-sided p of 6 against 3 successes on the same 50 requests, by McNemar."""
    return judged(
        answer,
        0.25,
        [
            (0.125, "This is one-sided. Nobody knew beforehand which way it would go: double it."),
            (
                float(fisher_exact([[6, 44], [3, 47]]).pvalue),
                "You treated the two as different requests. They are the same 50.",
            ),
            (
                float(binomtest(3, 9).pvalue),
                "You counted all successes. Requests on which both agree say nothing: three "
                "changed at best.",
            ),
            (
                float(chi2.sf(3, 1)),
                "This is the chi-square form of the test, for which three changes are too few. "
                "Toss three coins.",
            ),
            (
                float(binomtest(0, 6).pvalue),
                "This is for six that changed. Six succeeded before and three still do.",
            ),
            (25, "p is a share and not a percentage."),
        ],
        praise="Three coins that fall alike: even the best case is not significant at 5 %.",
        tolerance=1e-3,
    )


def _words(text: str, longer_than: int = 0) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > longer_than}


def _share(request: set[str], reply: set[str], least: float = 1 / 3) -> bool:
    return len(request & reply) >= least * len(request)


def _overlap(request: str, reply: str, longer_than: int = 4, least: float = 1 / 3) -> bool:
    return _share(_words(request, longer_than), _words(reply), least)


def _by_reply(request: str, reply: str) -> bool:
    return _share(_words(reply, 4), _words(request, 4))


def _cased(request: str, reply: str) -> bool:
    asked = {word for word in re.findall(r"\w+", request) if len(word) > 4}
    return _share(asked, set(re.findall(r"\w+", reply)))


def _cased_reply(request: str, reply: str) -> bool:
    return _share(_words(request, 4), set(re.findall(r"\w+", reply)))


def _with_marks(request: str, reply: str) -> bool:
    return _share({w for w in request.lower().split() if len(w) > 4}, set(reply.lower().split()))


def _inside(request: str, reply: str) -> bool:
    asked = _words(request, 4)
    return sum(word in reply.lower() for word in asked) >= len(asked) / 3


def _more_than(request: str, reply: str) -> bool:
    asked = _words(request, 4)
    return len(asked & _words(reply)) > len(asked) / 3


PAIRS = (
    ("Describe quiet gardens.", "Peace, and gardens, and birds."),  # one of three, with a mark
    ("Describe the best trip to the lake for me and the dog.", "The trip to the sea is for me."),
    (
        "Recommend novels about winter journeys.",
        "Winter novels: several splendid stories about mountains, forests, travellers, railways.",
    ),
    ("Explain PYTHON lists", "A python has no legs and lives in forests."),
    ("Suggest names, rhymes, colours.", "First rhymes; and then there are colours enough."),
    ("Compare copper with silver and nickel wires", "Copper melts at a high temperature."),
    ("Describe blue fish that live alone.", "Blue fish that live long."),
    ("Explain silver coins.", "Explaining how silverware is polished takes a minute."),
    ("Describe quiet gardens.", "The capital of France is Paris."),
    ("Which birds eat yellow seeds?", "All small birds like seeds."),  # two of four; none of six
    ("Which birds sleep?", "Yellow canaries."),  # all of five letters
    ("Explain copper wires briefly.", "Copper melts late."),  # one of four
    (  # three of ten
        "Recommend twelve gentle autumn walks through quiet forests with golden leaves.",
        "Autumn walks are gentle.",
    ),
    ("Describe quiet gardens.", "Gardens need water."),  # the shared word begins the reply
)


def shared_words(function: Callable[[str, str], object]) -> Verdict:
    """A judge of a request and a reply: true if a third of the request's longer words occur."""

    def each(rule: Callable[[str, str], object]) -> list[float]:
        return [float(bool(rule(*pair))) for pair in PAIRS]

    mistakes = [
        (
            each(partial(_overlap, longer_than=0)),
            "You counted all words; short ones such as 'the' occur in every reply.",
        ),
        (
            each(partial(_overlap, longer_than=3)),
            "Longer words have more than four letters; you took those of four as well.",
        ),
        (
            each(partial(_overlap, longer_than=5)),
            "Longer words have more than four letters, so those of five count as well.",
        ),
        *(
            (
                each(partial(_overlap, least=least)),
                f"You took {said} for a third. Divide by 3: less than a third is not enough.",
            )
            for least, said in ((0.25, "a quarter"), (0.3, "0.3"))
        ),
        (
            each(_by_reply),
            "You divided by the words of the reply, so that a long reply can never pass.",
        ),
        (each(_cased), "You compared capital letters too: lower both sides first."),
        (each(_cased_reply), "A capital in the reply hides a word: lower the reply as well."),
        (
            each(_with_marks),
            "Commas and full stops still hang on your words: split with re.findall(r'\\w+', text).",
        ),
        (
            each(_inside),
            "You looked for a word anywhere in the text, so that 'silver' is found in "
            "'silverware'. Split the reply into words, too.",
        ),
        (each(_more_than), "At least a third, so exactly a third counts as well."),
        (
            [1 - value for value in each(_overlap)],
            "Turned round: many shared words should give True.",
        ),
    ]
    answer = called(function, *PAIRS[0])
    if attempted(answer):
        answer = each(lambda request, reply: called(function, request, reply))
    return judged(answer, each(_overlap), mistakes, praise="Now run the controls of section 3.")


SENSITIVITY, HALF = 0.86, 0.05


def how_many(answer: float) -> Verdict:
    """How many replies that complied are needed for a sensitivity near 0.86 within 5 points."""
    spread = SENSITIVITY * (1 - SENSITIVITY)
    right = spread * (1.96 / HALF) ** 2
    mistakes = [
        (4 * right, "You took 5 points as the whole width; it is the half on each side."),
        (right / 4, "You took 10 points on each side; they are the whole width."),
        (
            0.25 * (1.96 / HALF) ** 2,
            "This is for a rate of one half, the worst case; ours is near 86 %.",
        ),
        (spread * 1.96 / HALF, "You forgot the square: half the width costs four times n."),
        (spread / HALF**2, "This is for one standard error; 95 % takes 1.96 of them."),
        (
            right * 296 / 96,
            "This is of all replies, at the share of the test split that complied. The question is "
            "how many of them must have complied.",
        ),
    ]
    praise = "About twice as many as the test split has, and only replies that complied count."
    return judged(answer, right, mistakes, praise=praise, tolerance=0.012)
