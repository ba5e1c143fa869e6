"""One harness for every defense: ask, keep what was said, judge it, count.

Replies go into the cache, which git ignores; the log that may be shared holds labels, lengths and
hashes. Both are made a batch at a time and gone on with where they stopped.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import compress
from pathlib import Path

from tqdm.auto import tqdm

from xb_lite.corpora import KINDS
from xb_lite.data.items import Item
from xb_lite.files import digest
from xb_lite.judges.blind import unseen
from xb_lite.judges.gibberish import Gibberish
from xb_lite.judges.strings import LABELS, Judge, VerdictError
from xb_lite.replies.cache import (
    BATCH,
    are,
    ask_into,
    check_item,
    check_row,
    is_reply,
    is_seconds,
    is_text,
    replies_in,
    reply_store,
    run_of,
)
from xb_lite.replies.types import Backend, Decoding, answer_of
from xb_lite.results.logs import Log, LogError, read_rows


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    Lists have an entry for each reply, in the order of the turns. ``labels`` has such a list for
    each judge by name, with None where its verdict could not be read. ``seconds`` is the item's
    share of the time of its batch, ``sha256`` that of its replies. ``unanswered`` is which replies
    have no answer in them, as where all was thought; none is labelled. Empty where all have one.
    """

    id: str
    set: str
    kind: str
    attack: str
    labels: dict[str, list[str | None]]
    prompt_tokens: list[int]
    new_tokens: list[int]
    finished: list[bool]
    seconds: float
    sha256: str
    unanswered: list[bool] = field(default_factory=list)


def evaluate(
    backend: Backend,
    items: Sequence[Item],
    judges: Sequence[Judge],
    decoding: Decoding,
    *,
    subject: dict[str, str],
    log: str | Path,
    resume: bool = True,
    alone: bool = False,
) -> list[Outcome]:
    """Ask every item, judge every reply, and write an outcome a line into ``log``.

    What is in the log, or in the cache of replies, is not made again: more items cost only what is
    new, and other judges, with a log of their own, need no new replies. With ``resume=False`` the
    log is begun anew, and so are the replies to these items; those to others stay cached.

    Args:
        subject: what is evaluated, e.g. ``{"model": digest, "defense": "none"}``: replies are
            cached under it, so two subjects must differ in it.
        alone: refuse a log that has outcomes of other items.

    Returns:
        Outcomes of ``items``, in their order.

    Raises:
        ValueError: there are no items or judges, two of either have one name, or an item cannot be
            asked; before anything is generated. Or a judge gives something else than labels.
            What judges are known not to see is a warning (``judges.blind``).
        LogError: the log or the cache cannot be gone on with, or the log is not of these items
            ``alone``; before anything is generated, unless the disk fills up.
    """
    check_given(items, judges)
    run = run_of(subject, decoding)
    replies = reply_store(run)
    with Log(log, _judged(run, judges), anew=not resume) as done:
        if alone:
            _check_alone(done, items)
        with replies_in(replies, run, items, wait=True) as said:
            if not resume:
                said.keep(said.rows.keys() - {item.id for item in items})
            for item in items:
                check_row(said, item, is_reply)
                check_row(done, item, _is_outcome)
            ask_into(backend, [item for item in items if item.id not in done.rows], decoding, said)
        _judge(items, judges, said, done)  # others that wait for the replies need not wait for this
        _warn_of_unseen(items, judges, said)
        return [_outcome(done.rows[item.id]) for item in items]


def check_log(
    items: Sequence[Item],
    judges: Sequence[Judge],
    decoding: Decoding,
    *,
    subject: dict[str, str],
    log: str | Path,
) -> None:
    """Raise the LogError that ``evaluate`` would raise of these, ``alone``, for what is in ``log``.
    Nothing is written, so that several processes can look at once."""
    done = Log(log, _judged(run_of(subject, decoding), judges))
    done.look()
    _check_alone(done, items)
    for item in items:
        check_row(done, item, _is_outcome)


def _judged(run: dict[str, object], judges: Sequence[Judge]) -> dict[str, object]:
    return {**run, "judges": {judge.name: judge.source for judge in judges}}


def read_log(path: str | Path) -> list[Outcome]:
    """The outcomes of a log, in the order in which they were judged.

    Raises:
        LogError: the log is damaged, or is no log of an evaluation.
    """
    return [_outcome(row) for row in _outcome_rows(path)]


def seconds_spent(path: str | Path) -> float:
    """What asking and judging all items of a log took, over all attempts, in seconds. Older
    logs have the asking alone.

    Raises:
        LogError: see ``read_log``.
    """
    return sum(row["seconds"] + row.get("judging", 0.0) for row in _outcome_rows(path))


def _outcome_rows(path: str | Path) -> list[dict]:
    rows = read_rows(Path(path))[1:]
    if wrong := next((r for r in rows if not _is_outcome(r, _turns(r))), None):
        raise LogError(f"{path} is no log of an evaluation: see the line of {wrong['id']!r}.")
    return rows


def _turns(row: dict) -> int:
    return len(finished) if isinstance(finished := row.get("finished"), list) else 0


def check_given(items: Sequence[Item], judges: Sequence[Judge]) -> None:
    """Raise a ValueError where ``evaluate`` cannot ask these items or be judged by these judges."""
    for what, given in (("items", items), ("judges", judges)):
        if not isinstance(given, Sequence):
            raise ValueError(f"{what} come in a list, not as {given!r:.60}")
    for item in items:
        check_item(item)
    for judge in judges:
        _check_judge(judge)
    for what, names in (
        ("items", [item.id for item in items]),
        ("judges", [judge.name for judge in judges]),
    ):
        if not names:
            raise ValueError(f"there are no {what} to evaluate with.")
        name, often = Counter(names).most_common(1)[0]
        if often > 1:
            raise ValueError(f"two of the {what} are named {name!r}: names must differ.")


def _check_judge(judge: Judge) -> None:
    if isinstance(judge, type):
        raise ValueError(f"{judge.__name__} is a class: give a judge made of it, with ().")
    if not callable(judge) or not all(
        is_text(getattr(judge, name, None)) for name in ("name", "source")
    ):
        raise ValueError(f"a judge has a name and a source and can be called, not {judge!r:.60}")
    kinds = getattr(judge, "kinds", KINDS)
    if isinstance(kinds, str) or not kinds or set(kinds) - set(KINDS):
        meant = ", ".join(KINDS)
        raise ValueError(f"judge {judge.name!r} has kinds {kinds!r:.60}, not some of {meant}.")
    if judge.name == "gibberish" and not isinstance(judge, Gibberish):
        raise ValueError(
            "a judge is named 'gibberish', by whose labels those of the string judges are "
            "corrected: give yours another name."
        )


def _check_alone(log: Log, items: Sequence[Item]) -> None:
    """Outcomes that took hours must not go because a later run asked for less."""
    if others := len(log.rows.keys() - {item.id for item in items}):
        raise LogError(
            f"{log.path} has {others} items more than are asked now: ask as before (another --limit"
            " asks other items), give another folder, or begin anew with --no-resume."
        )


def _judge(items: Sequence[Item], judges: Sequence[Judge], said: Log, done: Log) -> None:
    with tqdm(total=len(items), desc="judging", delay=2, leave=False) as bar:
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            if left := [item for item in batch if item.id not in done.rows]:
                began = time.perf_counter()
                labels = {judge.name: _labels_of(judge, left, said) for judge in judges}
                judging = round((time.perf_counter() - began) / len(left), 3)
                rows = [_log_row(item, said.rows[item.id], labels) for item in left]
                done.append([{**row, "judging": judging} for row in rows])
            bar.update(len(batch))


def _warn_of_unseen(items: Sequence[Item], judges: Sequence[Judge], said: Log) -> None:
    replies = [reply for item in items for reply in said.rows.get(item.id, {}).get("replies", ())]
    answers = [answer for reply in replies if (answer := answer_in(reply)) is not None]
    for sentence in unseen(judges, answers):
        warnings.warn(sentence, stacklevel=3)


def _labels_of(judge: Judge, items: Sequence[Item], said: Log) -> dict[str, list[str | None]]:
    """By item, the labels of its replies; of items of the judge's kinds alone."""
    kinds = getattr(judge, "kinds", KINDS)
    mine = [(item, said.rows[item.id]["replies"]) for item in items if item.kind in kinds]
    asked = [item.judged for item, replies in mine for _ in replies]
    answers = [answer_in(reply) for _, replies in mine for reply in replies]
    given = iter(labels_by(judge, asked, answers))
    return {item.id: [next(given) for _ in replies] for item, replies in mine}


def labels_by(
    judge: Judge, requests: Sequence[str], answers: Sequence[str | None]
) -> list[str | None]:
    """A judge's label of each answer to a request; None where there is no answer, or where its
    verdict cannot be read.

    Raises:
        ValueError: the judge gives something else than labels, one each.
    """
    there = [answer is not None for answer in answers]
    asked, texts = list(compress(requests, there)), list(compress(answers, there))
    given = iter(_labels(judge, asked, texts) if texts else ())
    return [next(given) if answered else None for answered in there]


def answer_in(reply: dict) -> str | None:
    """What a reply answers, without a thought; None where it is none."""
    return None if no_answer(reply) else answer_of(reply["text"])


def no_answer(reply: dict) -> bool:
    """Whether a reply is none: a server gave a reason instead, or it ends within the thought. What
    a model leaves empty of itself is an answer."""
    return bool(reply.get("missing")) or bool(reply["text"] and not answer_of(reply["text"]))


def _log_row(item: Item, said: dict, labels: dict[str, dict[str, list[str | None]]]) -> dict:
    """An outcome, with what was asked."""
    replies = said["replies"]
    outcome = Outcome(
        id=item.id,
        set=item.set,
        kind=item.kind,
        attack=item.attack,
        labels={name: given[item.id] for name, given in labels.items() if item.id in given},
        prompt_tokens=[reply["prompt_tokens"] for reply in replies],
        new_tokens=[reply["new_tokens"] for reply in replies],
        finished=[reply["finished"] for reply in replies],
        seconds=said["seconds"],
        sha256=digest([reply["text"] for reply in replies]),
    )
    row = {**asdict(outcome), "asked": said["asked"], "unanswered": list(map(no_answer, replies))}
    if not any(row["unanswered"]):
        del row["unanswered"]
    return row


def _outcome(row: dict) -> Outcome:
    return Outcome(**{name: row[name] for name in Outcome.__dataclass_fields__ if name in row})


def _labels(
    judge: Judge, requests: Sequence[str], responses: Sequence[str]
) -> Sequence[str | None]:
    try:
        labels = judge(requests, responses)
    except VerdictError as error:
        labels = error.labels
    if not isinstance(labels, Sequence) or len(labels) != len(responses):
        raise ValueError(
            f"judge {judge.name!r} did not give a list of {len(responses)} labels, one each, but "
            f"{labels!r:.60}"
        )
    if wrong := [label for label in labels if label not in (*LABELS, None)]:
        raise ValueError(
            f"judge {judge.name!r} gave {wrong[0]!r:.60}, which is none of {', '.join(LABELS)}."
        )
    return labels


def _is_outcome(row: dict, turns: int) -> bool:
    lists = {"prompt_tokens": int, "new_tokens": int, "finished": bool}
    return (
        {"asked", *Outcome.__dataclass_fields__} <= {"unanswered", *row}
        and ("unanswered" not in row or are(row["unanswered"], bool, turns))
        and is_seconds(row["seconds"])
        and is_seconds(row.get("judging", 0.0))
        and all(isinstance(row[name], str) for name in ("set", "kind", "attack", "sha256"))
        and re.fullmatch("[0-9a-f]{64}", row["sha256"]) is not None
        and isinstance(row["labels"], dict)
        and all(are(given, str | None, turns) for given in row["labels"].values())
        and {one for given in row["labels"].values() for one in given} <= {*LABELS, None}
        and all(are(row[name], kind, turns) for name, kind in lists.items())
    )
