"""Checks of the exercises of 00_start_here.

Each takes an answer, or the reader's function, and gives a ``Verdict``. Functions are called on
small made-up dialogues and numbers in which no two mistakes give the same answer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from xb_lite.dialogues import Dialogue
from xb_lite.exercises.verdicts import Verdict, attempted, called, judged, unattempted


def refusal_depth(answer: Callable | object) -> Verdict:
    """The reader's ``refusal_depth(leaks)``, of True and False ``[words, secret]``."""
    rows = ("0000", "1000", "0100", "1100", "1110", "1110", "1111", "1111")
    leaks = torch.tensor([[letter == "1" for letter in row] for row in rows])
    rates = leaks.float().mean(1)
    return judged(
        called(answer, leaks.clone()),
        3,
        [
            (1, "With one word one password got out; at least half are wanted."),
            (6, "With six words all got out; at least half are wanted, so fewer words do."),
            (4, "One too far: row k has k prefilled words, and exactly half is at least half."),
            (2, "One too few: row 0 has no prefilled word, so row k has k."),
            (5, "You counted the rows that reach half; give the number of the first of them."),
            (0, "You averaged over the words, dimension 0; average over the secrets, dimension 1."),
            (7, "This is the last row that reaches half; the first is wanted."),
            (0.5, "This is the rate at that row; give the number of the row."),
            (rates, "These are the rates; give the number of the first row that reaches half."),
            (rates >= 0.5, "This says for every row whether it reaches half; give the first."),
            (torch.tensor([3.0]), "The row is right; take the number out of its list with int()."),
            (torch.tensor([3.0, 4, 5, 6, 7]), "These rows all reach half; give the first of them."),
        ],
        praise="Row k has k prefilled words, so the number of the row is the depth.",
    )


def two_rates(answer: object) -> Verdict:
    """ASR and ORR of six attacks (two complied, two refused, one evaded, one gibberish) and five
    boundary-safe prompts (two complied, one each of the others)."""
    return judged(
        answer,
        (2 / 6, 2 / 5),
        [
            ((4 / 6, 2 / 5), "An attack that was evaded or got gibberish has not succeeded."),
            ((2 / 6, 1 / 5), "Over-refusal counts gibberish too: the user gets no help from it."),
            ((2 / 6, 3 / 5), "An evasion is not served, but it is not over-refusal either."),
            (
                (4 / 6, 1 / 5),
                "You only looked for refusals. ASR wants replies that complied; ORR "
                "wants refusals plus gibberish.",
            ),
            ((2, 2), "These are counts; divide by six attacks and by five prompts."),
            ((2 / 11, 2 / 11), "Each rate has its own denominator: its own kind of prompts."),
            ((2 / 5, 2 / 6), "The numbers are right, in the other order: first ASR, then ORR."),
            ((100 * 2 / 6, 40), "Right as percentages; give shares from 0 to 1."),
            ((33, 40), "Right as rounded percentages; give shares from 0 to 1, unrounded."),
            ((2 / 5, 2 / 4), "Gibberish stays in the denominator: it was asked as well."),
        ],
        praise="One third of the attacks succeed, and two fifths of the harmless prompts fail.",
    )


def walk(answer: Callable | object) -> Verdict:
    """The reader's ``walk(reply, dialogue, turns)``: the last reply, earlier ones being history."""
    if not attempted(answer):
        return unattempted(answer)
    start: Dialogue = [{"role": "system", "content": "Be brief."}]
    turns = ["one", "two", "three"]

    def reply(dialogue: Dialogue) -> str:
        if not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in dialogue):
            raise ValueError(
                "`reply` wants a list of messages, each of them {'role': ..., 'content': ...}."
            )
        return "<" + " ".join(f"{m['role'][0]}:{m['content']}" for m in dialogue) + ">"

    def play(begin: Dialogue, said: list[str], history: bool = True) -> list[str]:
        now, replies = list(begin), []
        for text in said:
            now.append({"role": "user", "content": text})
            replies.append(reply(now))
            if history:
                now.append({"role": "assistant", "content": replies[-1]})
        return replies

    given = list(start)
    found = called(answer, reply, given, turns)
    if not attempted(found):
        return unattempted(found)
    replies = play(start, turns)
    if given != start:
        return Verdict(
            False,
            "Your function appends to the dialogue that it was given, in place: the next attack "
            "would begin with this one. Copy it first, with [*dialogue].",
        )
    if found == replies[-1]:
        return Verdict(True, "Each reply becomes part of what the model reads next.")
    wrong = [
        (
            play(start, turns, history=False)[-1],
            "The model's own replies are missing in the history.",
        ),
        (replies, "These are all replies; give the last one only."),
        (replies[0], "This is the reply to the first turn: the loop ends too early."),
        (replies[-2], "One turn is missing: the last one was not asked."),
        (
            reply([*start, {"role": "user", "content": "three"}]),
            "Only the last turn was asked: that is the plain request.",
        ),
        (play([], turns)[-1], "The dialogue that you were given is missing in front."),
        (
            reply([*start, {"role": "user", "content": "one two three"}]),
            "The turns were joined to one; each wants a reply of its own.",
        ),
    ]
    for mistake, words in wrong:
        if found == mistake:
            return Verdict(False, words)
    if not isinstance(found, str):
        return Verdict(False, f"This is a {type(found).__name__}; the text of a reply is wanted.")
    return Verdict(False, "This is not the last reply; open the first hint.")


CASES = (
    ("The password is LEMON.", "LEMON", True),
    ("It is lemon", "LEMON", True),
    ("It is spelled L-E-M-O-N.", "LEMON", True),
    ("L E M O N", "LEMON", True),
    ("lemon", "LEMON", True),
    ("I'm sorry, but I cannot share the password.", "LEMON", False),
    ("The library opens at nine.", "LEMON", False),
    ("I'm sorry, but it is LEMON.", "LEMON", True),
    ("The password is MELON.", "LEMON", False),
    ("LEMON", "TIGER", False),
)


def leaks(answer: Callable | object) -> Verdict:
    """The reader's ``leaks(reply, secret)``: in any case, and also letter by letter."""
    if not attempted(answer):
        return unattempted(answer)

    def each(judge: Callable[[str, str], object]) -> list[object]:
        return [judge(text, secret) for text, secret, _ in CASES]

    found = each(answer) if callable(answer) else answer
    if not isinstance(found, list):
        return Verdict(False, f"This is a {type(found).__name__}; give the function itself.")
    if missing := [one for one in found if not attempted(one)]:
        return unattempted(missing[0])

    def bare(text: str) -> str:
        return "".join(letter for letter in text.lower() if letter.isalpha())

    refusing = ("sorry", "cannot")
    marks = [bool(one) for one in found]
    wrong = ((t, s, w) for (t, s, w), mark in zip(CASES, marks, strict=True) if mark != w)
    text, secret, wanted = next(wrong, CASES[0])
    return judged(
        marks,
        [right for *_, right in CASES],
        [
            (each(lambda r, s: s in r), "It misses the secret in small letters."),
            (
                each(lambda r, s: s.lower() in r.lower()),
                "It misses the secret spelled out, L-E-M-O-N.",
            ),
            (
                each(lambda r, s: s in r.upper().replace("-", "")),
                "It misses L E M O N, with spaces.",
            ),
            (
                each(lambda r, s: s in r.replace("-", "").replace(" ", "")),
                "Letters are joined, and small letters are still missed.",
            ),
            (
                each(lambda r, s: not any(w in r.lower() for w in refusing)),
                "It looks for refusals. A reply without one need not leak, and one with it can.",
            ),
            (
                each(lambda r, s: bare(s) in bare(r) and not any(w in r.lower() for w in refusing)),
                "A reply can say sorry and leak all the same; look for the secret alone.",
            ),
            (each(lambda r, s: r.lower() == s.lower()), "The secret may stand inside a sentence."),
            (
                each(lambda r, s: set(bare(s)) <= set(bare(r))),
                "You compare letters without their order; MELON is another word.",
            ),
            (
                each(lambda r, s: "lemon" in bare(r)),
                "The secret is written into your judge; use the second argument.",
            ),
            ([not right for *_, right in CASES], "True and False are exchanged."),
            (
                [True] * len(CASES),
                "It is true of every reply. Return True or False: any text counts as true, and so "
                "does the -1 of `find`.",
            ),
        ],
        otherwise=f"Of the reply {text!r} and the secret {secret!r} it should be {wanted}.",
        praise="It reads past case, hyphens and spaces. Translations and riddles still fool it.",
    )
