"""Defenses by prompt alone on one model: attack success, over-refusal, service, capability, cost.

    python benchmarks/prompt_defenses.py MODEL none ia [--sets harmful ...] [--limit 20]

Each defense is evaluated on the same items. Matrix products are in bf16 where the CPU is fast at
it, so that a reply can depend, in a near tie, on the others in its batch; ``--precision fp32`` is
slower and free of that. What is there already is not made again, and more items cost only what is
new. Beside the rows of every evaluation, ``restated`` is the share of answers that begin with the
intention, ``restated-only`` of those that also end within the limit.

Results: ``<results>/<tier>/<model>/<defense>.json``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from xb_lite.attacks import Item
from xb_lite.evaluation import ask
from xb_lite.experiments import (
    SETS,
    Subject,
    evaluate_subject,
    judges,
    local_subject,
    plan,
    prompted,
)
from xb_lite.generation import Decoding
from xb_lite.intention import DEFENSES, restates
from xb_lite.models import precision_of
from xb_lite.precision import Precision
from xb_lite.rates import rate
from xb_lite.results import rate_row, write_index
from xb_lite.session import tier


def restatements(
    subject: Subject, items: list[Item], decoding: Decoding, precision: Precision
) -> list[dict]:
    """Rows: which last replies begin with the intention, and which of them end within the limit, so
    that nothing but the restatement can be in them."""
    replies = ask(subject.backend, items, decoding, subject=subject.identity(precision))
    found: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for item, turns in zip(items, replies, strict=True):
        begins = restates(turns[-1].text)
        found.setdefault((item.set, item.attack), []).append(
            (begins, begins and turns[-1].finished)
        )
    return [
        rate_row(rate(column), metric, set_, attack, None)
        for (set_, attack), pairs in found.items()
        for metric, column in zip(
            ("restated", "restated-only"), zip(*pairs, strict=True), strict=True
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a name, a folder, a hub id")
    parser.add_argument("defenses", nargs="+", choices=("none", *DEFENSES), metavar="DEFENSE")
    parser.add_argument("--sets", nargs="+", default=SETS, help="corpora; NAME=FILE for a copy")
    parser.add_argument("--limit", type=int, help="so many items of each set")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--precision", choices=("fp32", "auto"), default="auto")
    parser.add_argument("--capability", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--results", default="results/intention", help="folder")
    args = parser.parse_args()
    items = plan(args.sets, limit=args.limit)
    precision = precision_of(args.model, exact=args.precision == "fp32")
    print(f"{len(items)} items, {precision}", flush=True)
    bare = local_subject(args.model, precision)
    judged_by = judges()
    decoding = Decoding(args.max_new_tokens)
    for name in args.defenses:
        subject = bare if name == "none" else prompted(bare, name)
        if not args.capability:
            subject = replace(subject, model=None, tokenizer=None)
        path = evaluate_subject(
            subject,
            items,
            precision,
            decoding,
            Path(args.results) / tier(),
            judged_by=judged_by,
            more_rows=partial(restatements, subject, items, decoding, precision),
        )
        write_index(path.parent)
        print(path, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
