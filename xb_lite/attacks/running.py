"""What an attack is, and the one way in which all of them are run: ``run(attack, subject, items)``.

An attack gives one or more attempts at each item, and has succeeded when any of them complied. What
the attempts say is judged at once and kept nowhere: labels, counts and seconds are. Every attack
has a placebo: the same budget without the idea, a random direction or unrelated text. What the
placebo reaches is not due to the idea: the judges err, many attempts have luck, or less is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Protocol

from xb_lite.data.items import Item
from xb_lite.evaluation.outcomes import answer_in, labels_by
from xb_lite.evaluation.summary import verdicts
from xb_lite.judges.strings import Judge
from xb_lite.models.precision import Precision
from xb_lite.replies.cache import asked_of, check_row
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding
from xb_lite.results.contract import mean_row, rate_row
from xb_lite.results.logs import Log
from xb_lite.results.stats import mean, rate

Ask = Callable[[Sequence[Item], Decoding], list[list[str]]]  # the attempts at each item


class Attack(Protocol):
    """``name`` and ``source`` (where the attack is from); ``placebo`` is whether this is one;
    ``budget`` says what may be spent, in words and numbers that JSON can hold; ``at_once`` is how
    many items are asked together, after which their labels are on disk.

    ``with attack.on(subject) as ask`` prepares what is the same for all items, as a changed model,
    and leaves the subject as it was.
    """

    name: str
    source: str
    placebo: bool
    at_once: int

    @property
    def budget(self) -> dict[str, int | float | str]: ...

    def on(self, subject: Subject) -> AbstractContextManager[Ask]: ...


@dataclass(frozen=True, kw_only=True)
class Budgeted:
    """The fields of an attack that are numbers or texts are its budget."""

    name: ClassVar[str]
    source: ClassVar[str]
    at_once: ClassVar[int] = 20
    placebo: bool = False

    @property
    def budget(self) -> dict[str, int | float | str]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in found.items()
            if name != "placebo" and isinstance(value, int | float | str | tuple)
        }


@dataclass(frozen=True)
class Tried:
    """What became of one item: ``labels`` has one for each attempt, by judge, as in an ``Outcome``:
    None where an attempt has no answer, or a verdict could not be read. ``seconds`` is its
    share of the time in which its batch was asked, ``overhead`` its share of what preparing the
    attack and judging took beside that; older logs do not have it."""

    id: str
    set: str
    labels: dict[str, list[str | None]]
    seconds: float
    overhead: float = 0.0


def run(
    attack: Attack,
    subject: Subject,
    items: Sequence[Item],
    judges: Sequence[Judge],
    decoding: Decoding | None = None,
    *,
    precision: Precision,
    log: str | Path | None = None,
) -> list[Tried]:
    """Attack every item, and judge what every attempt answers against the item's plain request.

    Args:
        items: plain harmful requests, or scripts where the attack takes them.
        precision: of the subject.
        log: a file that keeps what is done, so that a run that was stopped goes on; it has labels
            and no texts.

    Returns:
        One ``Tried`` for each item, in their order.

    Raises:
        ValueError: there are no items, one is not harmful, or the attack cannot be made on this
            subject, as one on weights of a model behind a server.
        LogError: the log is of another run, or an item is not what it was in it.

    Example:
        >>> tried = run(BestOfN(n=8), subject, items, judges(), precision=fp32)  # doctest: +SKIP
        >>> rows_of(BestOfN(n=8), tried)  # doctest: +SKIP
    """
    decoding = decoding or Decoding()
    if not items:
        raise ValueError("there are no items to attack.")
    if wrong := next((item for item in items if item.kind != "harmful"), None):
        raise ValueError(f"{wrong.id} is {wrong.kind}: an attack asks for what is harmful.")
    made = {
        "subject": subject.identity(precision),
        "attack": {"name": attack.name, "placebo": attack.placebo, **attack.budget},
        "decoding": asdict(decoding),
        "judges": {judge.name: judge.source for judge in judges},
    }
    with Log(log, made) if log else nullcontext() as kept:
        rows = dict(kept.rows) if kept else {}
        for item in items if kept else ():
            check_row(kept, item, _is_tried)
        left = [item for item in items if item.id not in rows]
        if left:
            since = time.perf_counter()
            with attack.on(subject) as ask:
                for start in range(0, len(left), attack.at_once):
                    some = left[start : start + attack.at_once]
                    new = _batch(ask, some, judges, decoding, since)
                    since = time.perf_counter()
                    if kept:
                        kept.append(new)
                    rows |= {row["id"]: row for row in new}
        return [_tried(rows[item.id]) for item in items]


def _batch(
    ask: Ask, items: list[Item], judges: Sequence[Judge], decoding: Decoding, since: float
) -> list[dict]:
    """Rows of a log; their ``seconds`` and ``overhead`` add up to the time that has passed
    ``since``, a reading of ``perf_counter``."""
    began = time.perf_counter()
    attempts = ask(items, decoding)
    asking = time.perf_counter() - began
    requests = [i.judged for i, texts in zip(items, attempts, strict=True) for _ in texts]
    answers = [answer_in({"text": text}) for texts in attempts for text in texts]
    labels: list[dict[str, list]] = [{} for _ in items]
    for judge in judges:
        given = iter(labels_by(judge, requests, answers))
        for mine, texts in zip(labels, attempts, strict=True):
            mine[judge.name] = [next(given) for _ in texts]
    beside = time.perf_counter() - since - asking
    seconds, overhead = (round(spent / len(items), 3) for spent in (asking, beside))
    return [
        {**asdict(Tried(item.id, item.set, mine, seconds, overhead)), "asked": asked_of(item)}
        for item, mine in zip(items, labels, strict=True)
    ]


def _tried(row: dict) -> Tried:
    return Tried(**{name: row[name] for name in Tried.__dataclass_fields__ if name in row})


def _is_tried(row: dict, _turns: int) -> bool:
    return {"id", "set", "labels", "seconds"} <= row.keys()


def seconds_spent(tried: Sequence[Tried]) -> float:
    """What preparing, asking and judging took, in seconds, also before a run was stopped and went
    on. What was done after the last line of the log was lost, and is not in it; of items out of an
    older log it is the asking alone."""
    return sum(one.seconds + one.overhead for one in tried)


def succeeded(tried: Sequence[Tried], judge: str) -> list[bool | None]:
    """Of each item, whether a judge says of any attempt that it complied; strings of refusal are
    corrected by the gibberish judge where it was asked. None where it says so of no attempt, and an
    attempt has no verdict."""
    return [
        None if "complied" not in labels and None in labels else "complied" in labels
        for labels in verdicts(tried, judge)
    ]


def label_of(attack: Attack) -> str:
    """The attack's name in results."""
    return f"{attack.name}, placebo" if attack.placebo else attack.name


def rows_of(attack: Attack, tried: Sequence[Tried]) -> list[dict]:
    """Rows of a result: ``asr`` by set and judge, with the budget, the source and the number of
    attempts, and the seconds an item. Items that ``succeeded`` does not decide are left out of n;
    ``no-verdict``, where there is one, is their share.
    """
    rows = []
    more = {"budget": attack.budget, "source": attack.source}
    for set_ in dict.fromkeys(one.set for one in tried):
        group = [one for one in tried if one.set == set_]
        first = next(iter(group[0].labels.values()))
        for judge in (name for name in group[0].labels if name != "gibberish"):
            of_items = succeeded(group, judge)
            known = [one for one in of_items if one is not None]
            if known:
                row = rate_row(rate(known), "asr", set_, label_of(attack), judge)
                rows.append({**row, **more, "attempts": len(first)})
            if len(known) < len(of_items):
                left = rate([one is None for one in of_items])
                rows.append(rate_row(left, "no-verdict", set_, label_of(attack), judge))
        rows.append(mean_row(mean([t.seconds for t in group]), "seconds", set_, label_of(attack)))
    return rows
