"""One harness for every defense: ask, keep what was said, judge it, count.

Replies go into the cache, which git ignores; the log that may be shared holds labels, lengths and
hashes. Both are made a batch at a time and gone on with where they stopped.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from xb_lite.attacks import Item
from xb_lite.corpora import KINDS
from xb_lite.dialogues import as_turns
from xb_lite.generation import Backend, Decoding, Reply
from xb_lite.judges import LABELS, Judge, VerdictError
from xb_lite.log import Log, LogError, read_rows
from xb_lite.model_files import cache_folder

BATCH = 64  # items that are asked, or judged, and written together


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    Lists have an entry for each reply, in the order of the turns. ``labels`` has such a list for
    each judge by name, with None where its verdict could not be read. ``seconds`` is the item's
    share of the time of its batch, ``sha256`` that of its replies.
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
        LogError: the log or the cache cannot be gone on with, or the log is not of these items
            ``alone``; before anything is generated, unless the disk fills up.
    """
    _check(items, judges)
    run = {"subject": subject, "decoding": asdict(decoding)}
    replies = reply_store(run)
    judged = {**run, "judges": {judge.name: judge.source for judge in judges}}
    with Log(log, judged, anew=not resume) as done:
        if alone:
            _check_alone(done, items)
        with Log(replies, run, wait=True) as said:
            if not resume:
                said.keep(said.rows.keys() - {item.id for item in items})
            for item in items:
                _take_up(said, item, _is_reply)
                _take_up(done, item, _is_outcome)
            _ask(backend, [item for item in items if item.id not in done.rows], decoding, said)
        _judge(items, judges, said, done)  # others that wait for the replies need not wait for this
        return [_outcome(done.rows[item.id]) for item in items]


def ask(
    backend: Backend, items: Sequence[Item], decoding: Decoding, *, subject: dict[str, str]
) -> list[list[Reply]]:
    """The replies to every item, turn by turn, out of the cache where they are in it.

    Args and errors as in ``evaluate``; nothing is judged or logged. Another process that asks the
    same subject is waited for: it makes some of the same replies.
    """
    for item in items:
        _check_item(item)
    run = {"subject": subject, "decoding": asdict(decoding)}
    with Log(reply_store(run), run, wait=True) as said:
        for item in items:
            _take_up(said, item, _is_reply)
        _ask(backend, items, decoding, said)
        return [[Reply(**reply) for reply in said.rows[item.id]["replies"]] for item in items]


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
    if wrong := next((r for r in rows if not _is_outcome(r, len(r.get("finished", ())))), None):
        raise LogError(f"{path} is no log of an evaluation: see the line of {wrong['id']!r}.")
    return rows


def reply_store(run: dict[str, object]) -> Path:
    """Where the cache keeps the replies of a run (its subject and decoding)."""
    return cache_folder() / "replies" / f"{digest(run)[:16]}.jsonl"


def digest(what: object) -> str:
    """SHA-256 of what JSON can hold: how runs, items and labels are told apart."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _check(items: Sequence[Item], judges: Sequence[Judge]) -> None:
    for item in items:
        _check_item(item)
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


def _check_item(item: Item) -> None:
    if not isinstance(item, Item):
        raise ValueError(f"an item is an Item, see load_items; this is none: {item!r:.60}")
    for name in ("id", "set", "attack", "request"):
        if not _is_text(getattr(item, name)):
            raise ValueError(f"{name} of item {item.id!r:.60} is not a text.")
    if item.kind not in KINDS:
        raise ValueError(f"item {item.id!r} is {item.kind!r:.60}, not one of {', '.join(KINDS)}.")
    turns = item.turns if isinstance(item.turns, tuple | list) else ()
    if not turns or not all(map(_is_text, turns)):
        raise ValueError(f"item {item.id!r} has no turn, or one that is not a text.")
    if item.prefill != "" and not _is_text(item.prefill):
        raise ValueError(f"item {item.id!r} has a prefill that is no text.")


def _check_judge(judge: Judge) -> None:
    if not callable(judge) or not all(
        _is_text(getattr(judge, name, None)) for name in ("name", "source")
    ):
        raise ValueError(f"a judge has a name and a source and can be called, not {judge!r:.60}")


def _check_alone(log: Log, items: Sequence[Item]) -> None:
    """Outcomes that took hours must not go because a later run asked for less."""
    if others := len(log.rows.keys() - {item.id for item in items}):
        raise LogError(
            f"{log.path} has {others} items more than are asked now: ask them as well, give another"
            " folder, or begin anew with --no-resume."
        )


def _is_text(value: object) -> bool:
    """Neither blank nor with half a character in it, as JSON can have."""
    return isinstance(value, str) and value.strip() and not re.search("[\ud800-\udfff]", value)


def _ask(backend: Backend, items: Sequence[Item], decoding: Decoding, said: Log) -> None:
    with tqdm(total=len(items), desc="asking", delay=2, leave=False) as bar:
        for batch in _batches(items):
            if left := [item for item in batch if item.id not in said.rows]:
                began = time.perf_counter()
                replies = _replies(backend, left, decoding)
                seconds = round((time.perf_counter() - began) / len(left), 3)
                rows = [
                    {"id": item.id, "asked": _asked(item), "seconds": seconds, "replies": turns}
                    for item, turns in zip(left, replies, strict=True)
                ]
                said.append(rows)
            bar.update(len(batch))


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items that can be asked together, similar lengths side by side; the same ones every time."""
    by_way: dict[tuple[int, str], list[Item]] = {}
    for item in items:
        by_way.setdefault((len(item.turns), item.prefill), []).append(item)
    for group in by_way.values():
        group = sorted(group, key=lambda item: (sum(map(len, item.turns)), item.id))
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]


def _replies(backend: Backend, items: Sequence[Item], decoding: Decoding) -> list[list[dict]]:
    scripts, prefill = [item.turns for item in items], items[0].prefill
    several = len(scripts[0]) > 1
    if several and not prefill:
        played = backend.play(scripts, decoding)
    else:
        played = [[] for _ in items]
        if several:
            played = backend.play([turns[:-1] for turns in scripts], decoding)
        dialogues = [
            as_turns(turns, [reply.text for reply in before])
            for turns, before in zip(scripts, played, strict=True)
        ]
        last = backend.reply(dialogues, decoding, prefill)
        played = [[*before, reply] for before, reply in zip(played, last, strict=True)]
    return [[asdict(reply) for reply in turns] for turns in played]


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


def _labels_of(judge: Judge, items: Sequence[Item], said: Log) -> dict[str, list[str | None]]:
    """By item, the labels of its replies; of items of the judge's kinds alone."""
    kinds = getattr(judge, "kinds", KINDS)
    mine = [(item, said.rows[item.id]["replies"]) for item in items if item.kind in kinds]
    asked = [item.request for item, replies in mine for _ in replies]
    texts = [reply["text"] for _, replies in mine for reply in replies]
    given = iter(_labels(judge, asked, texts) if texts else ())
    return {item.id: [next(given) for _ in replies] for item, replies in mine}


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
    return {**asdict(outcome), "asked": said["asked"]}


def _outcome(row: dict) -> Outcome:
    return Outcome(**{name: row[name] for name in Outcome.__dataclass_fields__})


def _labels(
    judge: Judge, requests: Sequence[str], responses: Sequence[str]
) -> Sequence[str | None]:
    try:
        labels = judge(requests, responses)
    except VerdictError as error:
        labels = error.labels
    if not isinstance(labels, Sequence) or len(labels) != len(responses):
        raise ValueError(f"judge {judge.name!r} did not give {len(responses)} labels, one each.")
    if wrong := [label for label in labels if label not in (*LABELS, None)]:
        raise ValueError(
            f"judge {judge.name!r} gave {wrong[0]!r:.60}, which is none of {', '.join(LABELS)}."
        )
    return labels


def _take_up(log: Log, item: Item, is_one: Callable[[dict, int], bool]) -> None:
    """Raise a LogError where the log's row for an item is of something else, or is none.

    A benchmark's file may have changed under its ids.
    """
    row = log.rows.get(item.id)
    if row is None:
        return
    same = {"asked": _asked(item), "set": item.set, "kind": item.kind, "attack": item.attack}
    if any(row.get(name, value) != value for name, value in same.items()):
        raise LogError(
            f"{log.path}: item {item.id!r} is not what it was when the run began; start anew."
        )
    if not is_one(row, len(item.turns)):
        raise LogError(
            f"{log.path}: the line of {item.id!r} is damaged: delete it, and it is made again."
        )


def _is_reply(row: dict, turns: int) -> bool:
    fields = {"text": str, "prompt_tokens": int, "new_tokens": int, "finished": bool}
    return (
        {"asked", "seconds", "replies"} <= row.keys()
        and isinstance(row["seconds"], float)
        and _are(row["replies"], dict, turns)
        and all(
            isinstance(r.get(name), kind) for r in row["replies"] for name, kind in fields.items()
        )
    )


def _is_outcome(row: dict, turns: int) -> bool:
    lists = {"prompt_tokens": int, "new_tokens": int, "finished": bool}
    return (
        {"asked", *Outcome.__dataclass_fields__} <= row.keys()
        and isinstance(row["seconds"], float)
        and isinstance(row.get("judging", 0.0), float)
        and isinstance(row["sha256"], str)
        and isinstance(row["labels"], dict)
        and all(_are(given, str | None, turns) for given in row["labels"].values())
        and all(_are(row[name], kind, turns) for name, kind in lists.items())
    )


def _are(values: object, kind: type, n: int) -> bool:
    return (
        isinstance(values, list) and len(values) == n and all(isinstance(v, kind) for v in values)
    )


def _asked(item: Item) -> str:
    return digest([item.request, item.turns, item.prefill])[:16]
