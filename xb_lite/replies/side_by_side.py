"""Jobs side by side in threads, each result as it comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def side_by_side(
    waiting: deque[Job], work: Callable[[Job], Result], most: int
) -> Iterator[tuple[Job, Result]]:
    """Each job with its result, in the order in which they end; the caller may append jobs on the
    way. At most ``most`` are under way at once.

    The first error is raised after all that ended before it was given.
    """
    done: SimpleQueue[tuple[Job, Result | None, Exception | None]] = SimpleQueue()

    def one(job: Job) -> None:
        try:
            done.put((job, work(job), None))
        except Exception as error:  # raised again where somebody waits for it
            done.put((job, None, error))

    under_way, failed = 0, None
    while (waiting or under_way) and failed is None:
        while waiting and under_way < most:
            # Daemons: neither Ctrl-C nor an error waits for what is under way.
            Thread(target=one, args=(waiting.popleft(),), daemon=True).start()
            under_way += 1
        job, result, failed = done.get()
        under_way -= 1
        if failed is None:
            yield job, result
    while failed is not None:
        try:
            job, result, error = done.get_nowait()
        except Empty:
            raise failed from None
        if error is None:
            yield job, result
