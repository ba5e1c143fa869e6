"""One attack and its placebo on one defense: success with its interval, budget and seconds.

    python -m xb_lite.reproduce.attacked best-of-n --adapter x-boundary --prompt ia

Asks harmful prompts of the test split. ``together.json`` beside this file is the manifest of all
attacks on all defenses: ``python -m xb_lite reproduce --manifest xb_lite/reproduce/together.json``.

Result: ``<results>/<tier>/attacks/<model>/<defense>/<attack>.json``, and beside it a line an item,
with labels and no texts, from which a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from xb_lite.attacks.catalog import ATTACKS, attack_named, needs_of
from xb_lite.attacks.run import label_of, rows_of, run
from xb_lite.data.items import items_digest, load_items, spread
from xb_lite.evaluation.runs import setting_of
from xb_lite.guard.fitting import detectors_named
from xb_lite.guard.stream import Guard
from xb_lite.intention.defenses import prompted
from xb_lite.judges.named import judges
from xb_lite.models.adapters import published_adapter
from xb_lite.models.cached import DEFAULT
from xb_lite.models.loading import ALIGNED, precision_of
from xb_lite.recipes import parse_change
from xb_lite.replies.subjects import local_subject
from xb_lite.replies.types import Decoding
from xb_lite.results.contract import provenance, write_result
from xb_lite.session import tier


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("attack", choices=ATTACKS, metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--model", default=ALIGNED, help=f"default: {ALIGNED}")
    parser.add_argument("--adapter", help="a folder, or one of the book's own by name")
    parser.add_argument("--prompt", help="a prompt defense on top: ia, self-reminder, …")
    parser.add_argument("--guess", default="circuit-breakers", help="adapter to subtract")
    parser.add_argument("--guard", nargs="+", default=["gibberish"], help="detectors")
    parser.add_argument("--items", type=int, default=20, help="harmful prompts (default: 20)")
    parser.add_argument("--tokens", type=int, default=48, help="of one reply (default: 48)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", dest="changes", help="of the budget"
    )
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    started, precision = datetime.now(UTC), precision_of(args.model)
    subject = local_subject(args.model, precision, _adapter(args.adapter))
    if args.prompt:
        subject = prompted(subject, args.prompt)
    items = spread(load_items("harmful", "test"), args.items)
    decoding, judged_by, rows = Decoding(args.tokens), judges(), []
    given: dict[str, object] = {}
    if "talker" in needs_of(args.attack):
        given["talker"] = local_subject(DEFAULT, precision).backend
    if "guess" in needs_of(args.attack):
        given["guess"] = _adapter(args.guess)
    if "guard" in needs_of(args.attack):
        given["guard"] = Guard(detectors_named(args.guard))
    folder = Path(args.results) / tier() / "attacks" / subject.name / subject.defense
    for placebo in (False, True):
        changes = dict(map(parse_change, args.changes))
        attack = attack_named(args.attack, placebo=placebo, **given, **changes)
        log = folder / f"{args.attack}{'-placebo' if placebo else ''}.jsonl"
        tried = run(attack, subject, items, judged_by, decoding, precision=precision, log=log)
        rows += rows_of(attack, tried)
        print(f"{label_of(attack)} on {subject.defense} is done", flush=True)
    path = folder / f"{args.attack}.json"
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
        },
    )
    for row in rows:
        value = f"{row['k']} of {row['n']}" if "k" in row else f"{row['mean']:.3g}"
        print(f"{row['attack']:<32}{row['metric']:<10}{row['judge'] or '':<20}{value}")
    print(path)


def _adapter(name: str | None) -> Path | None:
    if name is None or Path(name).is_dir():
        return Path(name) if name else None
    return published_adapter(name)


if __name__ == "__main__":
    main()
