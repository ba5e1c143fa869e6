"""Checks of the exercises of 07_intention_analysis.

Each takes an answer, or the reader's function, and gives a ``Verdict``. Functions are called on
small made-up texts and dialogues in which no two mistakes give the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from xb_lite.dialogues import Dialogue, as_dialogue
from xb_lite.exercises.verdicts import NOT_YET, Verdict, attempted, called, judged, unattempted
from xb_lite.intention.prompts import FENCE, STAGE_1, STAGE_2, first_stage, second_stage

# An intention and an answer, and with how many words of the first the second begins.
COPIES = (
    ("The aim is to learn", "The aim is to learn", 5),
    ("The aim is to learn it", "The aim is to teach it", 4),
    ("The aim is to learn", "I cannot help with that", 0),
    ("The aim is to learn", "The goal is to learn", 1),
    ("The aim is to learn a lot", "The aim", 2),
    ("To learn the aim", "the aim is To learn", 0),
)


def copied(answer: Callable | object) -> Verdict:
    """The reader's ``copied(intention, answer)``: with how many of the intention's first words the
    answer begins."""

    def each(count: Callable[[list[str], list[str]], object]) -> list[object]:
        return [count(one.split(), other.split()) for one, other, _ in COPIES]

    def run(one: Sequence[str], other: Sequence[str]) -> int:
        same = [a == b for a, b in zip(one, other, strict=False)]
        return (same + [False]).index(False)

    if not attempted(answer):
        return unattempted(answer)
    found = [called(answer, one, other) for one, other, _ in COPIES]
    if not all(map(attempted, found)):
        return Verdict(None, NOT_YET)
    return judged(
        found,
        [n for *_, n in COPIES],
        [
            (
                each(lambda a, b: len(set(a) & set(b))),
                "You count shared words anywhere; any two sentences share some. Compare from the "
                "start, word by word.",
            ),
            (
                each(lambda a, b: sum(x == y for x, y in zip(a, b, strict=False))),
                "It goes on after the first difference; stop there.",
            ),
            (
                each(lambda a, b: run(" ".join(a), " ".join(b))),
                "These are characters; split the texts into words first.",
            ),
            (each(lambda a, b: run(a, b) / len(a)), "This is a share; give the number of words."),
            (each(lambda a, b: run(a, b) / len(b)), "This is a share; give the number of words."),
            (each(lambda a, b: run(a, b) + 1), "One too many: the word that differs counts."),
            (each(lambda a, b: a == b), "This says whether all is copied; give how many words."),
            (each(lambda a, b: run(a, b) > 0), "This says whether any is; give how many words."),
            (
                each(lambda a, b: run(a[::-1], b[::-1])),
                "You compare from the end; a copy starts at the beginning.",
            ),
            (each(lambda a, b: len(b)), "This is the length of the answer."),
        ],
        praise="A long common beginning is a copy; single shared words are not.",
    )


def tokens_read(answer: object) -> Verdict:
    """Tokens to read of two fresh calls, and with the cache kept: a first prompt of 120 tokens, an
    intention of 40, a second message of 30 and an answer of 25."""
    return judged(
        answer,
        (310, 150),
        [
            ((310, 190), "The intention is in the cache already: the model wrote it."),
            ((150, 150), "A fresh second call sends the first prompt and the intention again."),
            ((310, 310), "With the cache kept, what was read is not read again."),
            ((335, 175), "The answer is written, not read."),
            ((375, 215), "What is written, intention and answer, is not read when it is written."),
            ((190, 30), "The first call reads its prompt, too."),
            ((270, 150), "The fresh second call reads the intention as well."),
            ((150, 310), "The numbers are right, in the other order: first two fresh calls."),
            (
                (350, 190),
                "The intention is read once by the second call; writing it is not reading.",
            ),
            (310, "Two numbers are wanted: fresh calls, and the cache kept."),
        ],
        praise="The cache saves the second reading of the long first prompt. A server without it "
        "bills for both.",
    )


def second_context(answer: Callable | object) -> Verdict:
    """The reader's ``second_context(dialogue, intention)``, what stage two is asked."""
    if not attempted(answer):
        return unattempted(answer)
    query, said = "Why is the sky blue?", "The intention is to learn."
    before = [{"role": "system", "content": "Be brief."}, *as_dialogue("Hello.", "Hello.")]
    dialogue = [*before, *as_dialogue(query)]
    given = [dict(message) for message in dialogue]
    found = called(answer, given, said)
    if not attempted(found):
        return unattempted(found)
    if given != dialogue:
        return Verdict(
            False,
            "Your function changes the dialogue that it was given, in place: the next turn of the "
            "user would begin with your prompts. Build a new list.",
        )
    right = second_stage(dialogue, said)
    if found == right:
        return Verdict(
            True, "One dialogue: history, fenced query, intention, and the request to answer."
        )
    first, intention, last = first_stage(dialogue), right[-2], right[-1]
    flat = "\n".join(message["content"] for message in right)
    wrong: list[tuple[object, str]] = [
        (
            [last],
            "The whole first stage is missing: the model is told to answer a query that it "
            "cannot see.",
        ),
        ([*first, last], "The intention is missing between the two user messages."),
        ([*first, intention], "The request to answer is missing: the assistant spoke last."),
        (
            [*dialogue, intention, last],
            "The query stands alone; the first prompt and the fence around it are missing.",
        ),
        (
            [*before, *as_dialogue(STAGE_1 + query), intention, last],
            "The fence of three single quotes around the query is missing.",
        ),
        (
            [*first, {"role": "user", "content": said}, last],
            "The intention has the role user; the assistant said it.",
        ),
        (
            [*first, {"role": "system", "content": said}, last],
            "The intention has the role system; the assistant said it. (As a note, it is one of "
            "the variants of section 7.)",
        ),
        (right[len(before) :], "The history before the query is missing."),
        ([*first, last, intention], "The intention stands after the request to answer."),
        (flat, "You joined all to one text; each message keeps its role."),
        (as_dialogue(flat), "You joined all to one message; the model said a part of it."),
        (
            [*before, *as_dialogue(STAGE_1 + FENCE[0] + query + FENCE[1] + STAGE_2)],
            "Both requests are in one message: that is one pass, and without an intention.",
        ),
    ]
    for mistake, words in wrong:
        if found == mistake:
            return Verdict(False, words)
    if not isinstance(found, list):
        return Verdict(False, f"This is a {type(found).__name__}; a list of messages is wanted.")
    return Verdict(False, "These are not the messages of stage two; open the first hint.")


def tagged(dialogue: Dialogue) -> str:
    """A small chat template: each message between its tags, and the tag that asks for a reply."""
    turns = [f"<{message['role']}>{message['content']}</end>" for message in dialogue]
    return "".join([*turns, "<assistant>"])


def by_role(dialogue: Dialogue) -> str:
    """The template of the exercise, with its bug."""
    messages = {message["role"]: message["content"] for message in dialogue}
    return tagged([{"role": role, "content": text} for role, text in messages.items()])


def repaired(answer: Callable | object) -> Verdict:
    """The reader's ``repaired(dialogue)``: the template without the bug of ``by_role``."""
    if not attempted(answer):
        return unattempted(answer)
    once = [{"role": "system", "content": "Be brief."}, *as_dialogue("Hello.")]
    staged = second_stage(once, "The intention is to greet.")
    short = [dict(message, content=message["content"][:9]) for message in staged]
    found = [called(answer, [dict(m) for m in dialogue]) for dialogue in (once, short)]
    if not all(map(attempted, found)):
        return Verdict(None, NOT_YET)

    def each(template: Callable[[Dialogue], object]) -> list[object]:
        return [template(dialogue) for dialogue in (once, short)]

    def kept(choose: Callable[[Dialogue], Dialogue]) -> list[object]:
        return each(lambda dialogue: tagged(choose(dialogue)))

    if found == each(tagged):
        return Verdict(True, "Every message stands in its place, whoever said it.")
    wrong: list[tuple[list[object], str]] = [
        (
            each(by_role),
            "This has the bug: a dict has one place for each role, so the second user message "
            "overwrites the first, and the query is gone.",
        ),
        (kept(lambda d: d[-1:]), "Only the last message is left: the first stage is gone."),
        (kept(lambda d: d[:-1] or d), "The last message is missing."),
        (
            kept(lambda d: [m for m in d if m["role"] != "system"]),
            "The system message is missing.",
        ),
        (
            kept(lambda d: [m for m in d if m["role"] == "user"]),
            "Only the user's messages are left: the intention is gone.",
        ),
        (kept(lambda d: d[::-1]), "The messages stand in the reverse order."),
        (
            kept(lambda d: sorted(d, key=lambda m: m["role"])),
            "The messages are sorted by role; they keep the order of the dialogue.",
        ),
        (
            each(lambda d: tagged(d).removesuffix("<assistant>")),
            "The last tag, <assistant>, is missing: the model would go on for the user.",
        ),
        (
            each(lambda d: "".join(m["content"] for m in d)),
            "The tags are missing: nobody can tell who said what.",
        ),
        (
            each(lambda d: "\n".join(tagged(d).replace("</end>", "</end>\n").splitlines())),
            "There are line breaks between the messages; the template has none.",
        ),
    ]
    for mistake, words in wrong:
        if found == mistake:
            return Verdict(False, words)
    if not all(isinstance(text, str) for text in found):
        return Verdict(False, f"This is a {type(found[0]).__name__}; one text is wanted.")
    return Verdict(False, "This is not the text of all messages; open the first hint.")


SAFETY = re.compile(
    r"\b((un|il|ir|in|im)?(harm(?!on)|safe|ethic|legal|responsib|secur|moral)"
    r"|mislead|danger|refus|hurt|crim(e|inal)|violen|abus|malic|illicit|unlawful)",
    re.I,
)
NEVER = re.compile(
    r"\b(refuse|decline|(never|do not|don't)\s+answer)"
    r"(\s*([.,;:!]|$)|\s+(everything|anything|anyone|anybody|whatever|(all|every|any)\s+(request|quer|question)))",
    re.I,
)
LIMITED = re.compile(
    r"\b(if|when|unless)\b|\b(request|query|queries|question)s?\s+(that|which|about|for|on)\b",
    re.I,
)


def _answers_nobody(text: str) -> bool:
    """Whether a sentence forbids answers, and not only to some requests."""
    sentences = re.split(r"(?<=[.!?;:])", text)
    return any(NEVER.search(one) and not LIMITED.search(one) for one in sentences)


def reminder(mine: object, control: object) -> Verdict:
    """The reader's reminder and its control, each the words before and after the query."""
    if not attempted(mine) or not attempted(control):
        return Verdict(None, NOT_YET)
    for name, pair in (("reminder", mine), ("control", control)):
        if isinstance(pair, str):
            return Verdict(False, f"The {name} is one text; give two, before and after the query.")
        if (
            not isinstance(pair, Sequence)
            or len(pair) != 2
            or not all(isinstance(text, str) for text in pair)
        ):
            return Verdict(False, f"The {name} is not a pair of texts, before and after the query.")
        if any(brace in text for text in pair for brace in "{}"):
            return Verdict(False, "There is a place for the query in it; the query is put between.")
    words, others = ([len(text.split()) for text in pair] for pair in (mine, control))
    if not sum(words):
        return Verdict(False, "The reminder is empty, which is no defense.")
    if list(mine) == list(control):
        return Verdict(False, "Reminder and control are the same; nothing could differ.")
    if _answers_nobody(" ".join(mine)):
        return Verdict(
            False,
            "It tells the model to answer nobody. No attack succeeds then, and no one is served.",
        )
    if not SAFETY.search(" ".join(mine)):
        return Verdict(False, "The reminder says nothing of safety; what would it remind of?")
    if SAFETY.search(" ".join(control)):
        return Verdict(
            False, "The control speaks of safety too; then it differs from the reminder too little."
        )
    if not sum(others):
        return Verdict(
            False,
            "The control is empty. Then content and length both differ, and you could not tell "
            "which of the two did it.",
        )
    if words != others:
        return Verdict(
            False,
            f"The reminder has {words[0]} and {words[1]} words before and after the query, the "
            f"control {others[0]} and {others[1]}; make them equal.",
        )
    return Verdict(True, "They differ in what they say and not in length. Now ask with both.")
