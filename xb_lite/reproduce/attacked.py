"""Attacks and their placebos on one defense: success with its interval, budget and seconds.

    python -m xb_lite.reproduce.attacked openings best-of-n --adapter x-boundary-360 --prompt ia

Asks harmful prompts of the test split. What is finished is not run again; where that is of other
items, replies or budgets, it is an error. ``together.json`` beside this file is the manifest of
what chapter 8 reports:
``python -m xb_lite reproduce --manifest xb_lite/reproduce/together.json``.

Result: ``<results>/<tier>/attacks/<model>/<defense>/<attack>.json``, and beside it a line an item,
with labels and no texts, from which a run that was stopped goes on. The ``seconds`` of the result
are those before it was stopped, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from xb_lite.attacks.catalog import ATTACKS, attack_named, needs_of, settings_of
from xb_lite.attacks.running import label_of, rows_of, run, seconds_spent
from xb_lite.data.items import Item, items_digest, load_items, spread
from xb_lite.evaluation.runs import setting_of
from xb_lite.guard.fitting import detectors_named
from xb_lite.guard.stream import Guard
from xb_lite.intention.defenses import prompted
from xb_lite.judges.named import judges
from xb_lite.judges.strings import Judge
from xb_lite.models.adapters import published_adapter
from xb_lite.models.cached import DEFAULT
from xb_lite.models.loading import ALIGNED_360, precision_of
from xb_lite.models.precision import Precision
from xb_lite.recipes import parse_change
from xb_lite.replies.subjects import Subject, local_subject
from xb_lite.replies.types import Decoding
from xb_lite.results.contract import provenance, read_result, write_result
from xb_lite.session import tier

GUESS = "circuit-breakers-360"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "attacks", nargs="+", choices=ATTACKS, metavar="ATTACK", help=", ".join(ATTACKS)
    )
    parser.add_argument("--model", default=ALIGNED_360, help=f"default: {ALIGNED_360}")
    parser.add_argument("--adapter", help="a folder, or one of the book's own by name")
    parser.add_argument("--prompt", help="a prompt defense on top: ia, self-reminder, …")
    parser.add_argument("--guess", default=GUESS, help=f"adapter to subtract (default: {GUESS})")
    parser.add_argument("--guard", nargs="+", default=["gibberish"], help="detectors")
    parser.add_argument("--items", type=int, default=20, help="harmful prompts (default: 20)")
    parser.add_argument("--tokens", type=int, default=32, help="of one reply (default: 32)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", dest="changes", help="of the budget"
    )
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    given_changes = dict(map(parse_change, args.changes))
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in given_changes.items()}
    settings = {name: settings_of(name, **changes) for name in args.attacks}
    items = spread(load_items("harmful", "test"), args.items)
    decoding = Decoding(args.tokens)
    precision = precision_of(args.model)
    subject = local_subject(args.model, precision, _adapter(args.adapter))
    if args.prompt:
        subject = prompted(subject, args.prompt)
    folder = Path(args.results) / tier() / "attacks" / subject.name / subject.defense
    # What is needed besides, as it stands in the budget of a result.
    besides = {
        "guess": {"guess": Path(args.guess).resolve().name},
        "guard": {"detectors": ", ".join(args.guard)},
    }
    left = [name for name in args.attacks if not (folder / f"{name}.json").exists()]
    for name in args.attacks:
        if name not in left:
            told = dict(settings[name])
            for need in needs_of(name):
                told |= besides.get(need, {})
            _check_same(folder / f"{name}.json", items, decoding, told)
            print(f"{folder / name}.json is there already")
    judged_by = judges() if left else []
    given: dict[str, object] = {}
    needed = {need for name in left for need in needs_of(name)}
    if "talker" in needed:
        given["talker"] = local_subject(DEFAULT, precision).backend
    if "guess" in needed:
        given["guess"] = _adapter(args.guess)
    if "guard" in needed:
        given["guard"] = Guard(detectors_named(args.guard))
    for name in left:
        _attack(name, subject, items, decoding, precision, judged_by, {**given, **changes}, folder)


def _check_same(
    path: Path, items: Sequence[Item], decoding: Decoding, settings: Mapping[str, object]
) -> None:
    """Raise a ValueError where a finished result is of other items, replies or budgets."""
    there = read_result(path)
    said = (there["data"]["digest"], there["setting"]["decoding"]["max_new_tokens"])
    budget = next(row["budget"] for row in there["rows"] if "budget" in row)
    asked = json.loads(json.dumps(settings))
    same = all(budget.get(name) == value for name, value in asked.items())
    if not same or said != (items_digest(items), decoding.max_new_tokens):
        raise ValueError(
            f"{path} is there already, of other --items, --tokens, --guess, --guard or --set: "
            "delete it and its logs, or give another folder of --results."
        )


def _attack(
    name: str,
    subject: Subject,
    items: Sequence[Item],
    decoding: Decoding,
    precision: Precision,
    judged_by: Sequence[Judge],
    given: Mapping[str, object],
    folder: Path,
) -> None:
    """Run one attack and its placebo, write the result and print it."""
    started, rows, spent = datetime.now(UTC), [], 0.0
    for placebo in (False, True):
        attack = attack_named(name, placebo=placebo, **given)
        log = folder / f"{name}{'-placebo' if placebo else ''}.jsonl"
        tried = run(attack, subject, items, judged_by, decoding, precision=precision, log=log)
        rows += rows_of(attack, tried)
        spent += seconds_spent(tried)
        print(f"{label_of(attack)} on {subject.defense} is done", flush=True)
    path = folder / f"{name}.json"
    write_result(
        path,
        {
            "model": {"name": subject.name, "digest": subject.digest},
            "adapter": subject.adapter,
            "data": {"set": "harmful", "split": "test", "digest": items_digest(items)},
            "setting": setting_of(subject, precision, decoding, judged_by),
            "seed": 0,
            "rows": rows,
            **provenance(started),
            "seconds": round(spent),
        },
    )
    for row in rows:
        value = f"{row['k']} of {row['n']}" if "k" in row else f"{row['mean']:.3g}"
        print(f"{row['attack']:<32}{row['metric']:<10}{row['judge'] or '':<20}{value}")
    print(path, flush=True)


def _adapter(name: str | None) -> Path | None:
    if name is None or Path(name).is_dir():
        return Path(name) if name else None
    return published_adapter(name)


if __name__ == "__main__":
    main()
