"""One evaluation by several processes: each asks its share, and one goes on with all replies.

The batches are those of one process, so every reply is what it would have been there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from xb_lite.data.items import Item
from xb_lite.files import digest
from xb_lite.replies.cache import ask_into, batches, replies_in, reply_store, run_of
from xb_lite.replies.types import Backend, Decoding
from xb_lite.results.logs import Log, LogError

# Shares take hours and are uneven; the default of 10 minutes (NCCL) or 30 (gloo) ends who waits.
LONGEST_WAIT = timedelta(days=2)


def processes() -> int:
    """How many a launcher (``accelerate launch``, ``torchrun``, Slurm) has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join_processes(cpu: bool) -> None:
    """Before a model is loaded: says which GPU is this process's, and how long it waits for the
    others."""
    if processes() > 1:
        PartialState(cpu=cpu, timeout=LONGEST_WAIT)


def ask_shared(
    backend: Backend, items: Sequence[Item], decoding: Decoding, *, subject: dict[str, str]
) -> bool:
    """Ask this process's share of the batches, and put all shares into the one cache of replies,
    with what several processes of an earlier call had asked when they were stopped.

    Returns:
        Whether this process is to go on: the first of several, or the only one. Nothing is asked
        where there is only one.

    Raises:
        LogError: the cache cannot be used. And what asking raises.
    """
    run = run_of(subject, decoding)
    store = reply_store(run)
    if processes() == 1:
        _take_in(run, items)
        return True
    state = PartialState()
    asked = digest([item.id for item in items])[:8]
    parts = [store.with_name(f"{store.stem}.{asked}.{n}.jsonl") for n in range(processes())]
    rank = state.process_index
    if rank == 0:
        _take_in(run, items, but=parts)
    state.wait_for_everyone()
    with replies_in(store, run, items, wait=True) as said:
        there = dict(said.rows)
    shares = list(batches(items))
    own = [item for batch in shares[rank :: processes()] for item in batch]
    with replies_in(parts[rank], run, own) as said:
        ask_into(backend, [item for item in own if item.id not in there], decoding, said)
    state.wait_for_everyone()
    if rank == 0:
        _merge(parts, shares, run)
    state.wait_for_everyone()
    return rank == 0


def _take_in(run: dict[str, object], items: Sequence[Item], but: Sequence[Path] = ()) -> None:
    """Shares of other numbers of processes, or of other items, unless somebody is writing there."""
    store = reply_store(run)
    for part in sorted({*store.parent.glob(f"{store.stem}.*.jsonl")} - {*but}):
        with (
            suppress(LogError),
            Log(part, run) as left,
            replies_in(store, run, items, wait=True) as said,
        ):
            said.append([row for name, row in left.rows.items() if name not in said.rows])
            _remove(part)


def _merge(parts: list[Path], shares: list[list[Item]], run: dict[str, object]) -> None:
    """In the order in which one process would have asked."""
    items = [item for batch in shares for item in batch]
    found: dict[str, dict] = {}
    for part in parts:
        with replies_in(part, run, items) as said:
            found |= said.rows
    with replies_in(reply_store(run), run, items, wait=True) as said:
        for batch in shares:
            new = [i.id for i in batch if i.id in found and i.id not in said.rows]
            said.append([found[name] for name in new])
    for part in parts:
        _remove(part)


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.lock").unlink(missing_ok=True)
