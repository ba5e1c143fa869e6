"""Replies to items, asked once and kept: in the cache, which git ignores, a batch at a time."""

from __future__ import annotations

import math
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

from tqdm.auto import tqdm

from xb_lite.corpora import KINDS
from xb_lite.data.items import Item
from xb_lite.dialogues import as_turns
from xb_lite.files import cache_folder, digest
from xb_lite.replies.side_by_side import side_by_side
from xb_lite.replies.types import Backend, Decoding, Reply, answer_of
from xb_lite.results.logs import Log, LogError

HALVES = re.compile("[\ud800-\udfff]")  # of characters
BATCH = 64  # items that are asked, or judged, and written together


def ask(
    backend: Backend, items: Sequence[Item], decoding: Decoding, *, subject: dict[str, str]
) -> list[list[Reply]]:
    """The replies to every item, turn by turn, out of the cache where they are in it.

    Args and errors as in ``evaluate``; nothing is judged or logged. Another process that asks the
    same subject is waited for: it makes some of the same replies.
    """
    named: dict[str, Item] = {}
    for item in items:
        check_item(item)
        if named.setdefault(item.id, item) != item:
            raise ValueError(f"two different items are named {item.id!r}: names must differ.")
    run = run_of(subject, decoding)
    with replies_in(reply_store(run), run, items, wait=True) as said:
        for item in items:
            check_row(said, item, is_reply)
        ask_into(backend, items, decoding, said)
        return [[Reply(**reply) for reply in said.rows[item.id]["replies"]] for item in items]


def run_of(subject: dict[str, str], decoding: Decoding) -> dict[str, object]:
    """What decides a reply beside its item: the cache keeps replies by it."""
    return {"subject": subject, "decoding": decoding.settings()}


def reply_store(run: dict[str, object]) -> Path:
    """Where the cache keeps the replies of a run (its subject and decoding); nobody else on the
    machine can look there."""
    folder = cache_folder() / "replies"
    with suppress(OSError):  # of which the log tells
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    return folder / f"{digest(run)[:16]}.jsonl"


@contextmanager
def replies_in(
    path: Path, run: dict[str, object], items: Sequence[Item], wait: bool = False
) -> Iterator[Log]:
    """The replies of a run that are kept in a file, open to take more; ``wait`` as of a ``Log``.

    Without those to what an item's id stood for before, if a file of prompts was edited or another
    has the same name. They stay in the file; the item is asked, and its row, which is the later
    one there, counts from then on.
    """
    with Log(path, run, wait=wait) as said:
        for item in items:
            if said.rows.get(item.id, {}).get("asked") != asked_of(item):
                said.rows.pop(item.id, None)
        yield said


def check_item(item: Item) -> None:
    if not isinstance(item, Item):
        raise ValueError(f"an item is an Item, see load_items; this is none: {item!r:.60}")
    for name in ("id", "set", "attack", "request"):
        if not is_text(getattr(item, name)):
            raise ValueError(f"{name} of item {item.id!r:.60} is not a text.")
    if item.kind not in KINDS:
        raise ValueError(f"item {item.id!r} is {item.kind!r:.60}, not one of {', '.join(KINDS)}.")
    turns = item.turns if isinstance(item.turns, tuple | list) else ()
    if not turns or not all(map(is_text, turns)):
        raise ValueError(f"item {item.id!r} has no turn, or one that is not a text.")
    for name in ("prefill", "context"):
        if getattr(item, name) != "" and not is_text(getattr(item, name)):
            raise ValueError(f"item {item.id!r} has a {name} that is no text.")


def is_text(value: object) -> bool:
    """Neither blank nor with half a character in it, as JSON can have."""
    return isinstance(value, str) and value.strip() and not HALVES.search(value)


def ask_into(backend: Backend, items: Sequence[Item], decoding: Decoding, said: Log) -> None:
    """Replies to items that have none yet, written as they come: of a server one by one, so that
    one that dies loses none that it gave; on this machine a batch at a time."""
    left = [item for item in items if item.id not in said.rows]
    _check_answerable(backend, left, decoding)
    bar = tqdm(
        total=len(items), initial=len(items) - len(left), desc="asking", delay=2, leave=False
    )
    with bar:
        began = time.perf_counter()
        for some, replies in _answered(backend, items, left, decoding):
            ended = time.perf_counter()
            seconds = round((ended - began) / len(some), 3)
            said.append(
                [
                    {"id": item.id, "asked": asked_of(item), "seconds": seconds, "replies": turns}
                    for item, turns in zip(some, replies, strict=True)
                ]
            )
            began = ended
            bar.update(len(some))


def _answered(
    backend: Backend, items: Sequence[Item], left: Sequence[Item], decoding: Decoding
) -> Iterator[tuple[list[Item], list[list[dict]]]]:
    """Some of what is ``left`` with its replies, again and again, until there are all."""
    missing = {item.id for item in left}

    def replies_to(some: list[Item], first: Item) -> list[list[dict]]:
        # A seed for each call, or each would draw the same numbers; by the item that comes first,
        # so that it is the same whatever is there already.
        seed = random.Random(f"{decoding.seed} {first.id}").getrandbits(31)
        return _replies(backend, some, replace(decoding, seed=seed))

    batched = [
        (batch[0], [item for item in batch if item.id in missing]) for batch in batches(items)
    ]
    if not (most := getattr(backend, "concurrency", None)):
        for first, some in batched:
            if some:
                yield some, replies_to(some, first)
        return

    def alone(item: Item) -> list[list[dict]]:
        return replies_to([item], item)

    for item, replies in side_by_side(deque(chain(*(some for _, some in batched))), alone, most):
        yield [item], replies


def _check_answerable(backend: Backend, items: Sequence[Item], decoding: Decoding) -> None:
    """Whether the backend can reply to all of it, before it is asked for hours."""
    if not hasattr(backend, "check"):
        return
    for batch in batches(items):
        turns = len(batch[0].turns)
        dialogues = [as_turns(item.turns, ["."] * (turns - 1)) for item in batch]
        backend.check(dialogues, turns * decoding.max_new_tokens, batch[0].prefill)


def batches(items: Sequence[Item]) -> Iterator[list[Item]]:
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
            as_turns(turns, [answer_of(reply.text) for reply in before])
            for turns, before in zip(scripts, played, strict=True)
        ]
        last = backend.reply(dialogues, decoding, prefill)
        played = [[*before, reply] for before, reply in zip(played, last, strict=True)]
    return [[asdict(reply) for reply in turns] for turns in played]


def check_row(log: Log, item: Item, is_one: Callable[[dict, int], bool]) -> None:
    """Raise a LogError where the log's row for an item is of something else, or is none.

    A benchmark's file may have changed under its ids.
    """
    row = log.rows.get(item.id)
    if row is None:
        return
    same = {"asked": asked_of(item), "set": item.set, "kind": item.kind, "attack": item.attack}
    if any(row.get(name, value) != value for name, value in same.items()):
        raise LogError(
            f"{log.path}: item {item.id!r} is not what it was when the run began; start anew."
        )
    if not is_one(row, len(item.turns)):
        raise LogError(
            f"{log.path}: the line of {item.id!r} is damaged: delete it, and it is made again."
        )


def is_reply(row: dict, turns: int) -> bool:
    fields = {"text": str, "prompt_tokens": int, "new_tokens": int, "finished": bool}
    return (
        {"asked", "seconds", "replies"} <= row.keys()
        and is_seconds(row["seconds"])
        and are(row["replies"], dict, turns)
        and all(is_a(r.get(name), kind) for r in row["replies"] for name, kind in fields.items())
        and all(isinstance(r.get("missing", ""), str) for r in row["replies"])
        and not any(HALVES.search(r["text"]) for r in row["replies"])
        and all(r["prompt_tokens"] >= 0 <= r["new_tokens"] for r in row["replies"])
    )


def are(values: object, kind: type, n: int) -> bool:
    return isinstance(values, list) and len(values) == n and all(is_a(v, kind) for v in values)


def is_a(value: object, kind: type) -> bool:
    """Where a number is wanted, neither a truth value nor one that no count is."""
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return isinstance(value, kind)


def is_seconds(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def asked_of(item: Item) -> str:
    """A digest of all that a model and a judge are given of an item."""
    context = [item.context] if item.context else []  # which judges read, too
    return digest([item.request, item.turns, item.prefill, *context])[:16]
