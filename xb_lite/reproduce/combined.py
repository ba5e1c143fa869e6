"""One defense, or two together, on the same items: attacks, harmless prompts, and tokens.

    python -m xb_lite.reproduce.combined --adapter x-boundary-360 --prompt ia

Asks harmful prompts of the test split plainly, after the prefill and in a wrapper each, and
boundary-safe and benign ones plainly; benign ones after the prefill too, since a defense that
breaks at the prefill itself must be seen to. What is finished is not run again.

Result: ``<results>/<tier>/together/<model>/<defense>.json``, and beside it a log with a line an
item, which says what failed on which item.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from xb_lite.data.items import Item, attacked, load_items, spread
from xb_lite.evaluation.runs import evaluate_subject
from xb_lite.intention.defenses import prompted
from xb_lite.models.adapters import published_adapter
from xb_lite.models.loading import ALIGNED_360, precision_of
from xb_lite.replies.subjects import local_subject
from xb_lite.replies.types import Decoding
from xb_lite.results.tables import print_result
from xb_lite.session import tier

DECODING = Decoding(32)


def asked(limit: int) -> list[Item]:
    """At most ``limit`` items of each kind and attack."""
    harmful = spread(load_items("harmful", "test"), limit)
    safe = spread(load_items("boundary-safe", "test"), limit)
    benign = spread(load_items("benign", "test"), limit)
    wrapped = spread(attacked(harmful, "wrapper"), limit)
    prefilled = attacked(harmful, "prefill") + attacked(benign, "prefill")
    return [*harmful, *wrapped, *safe, *benign, *prefilled]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", help="one of the book's own, by name")
    parser.add_argument("--prompt", help="a prompt defense on top: ia, self-reminder, …")
    parser.add_argument("--limit", type=int, default=20, help="of each kind (default: 20)")
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    precision = precision_of(ALIGNED_360)
    folder = published_adapter(args.adapter) if args.adapter else None
    subject = local_subject(ALIGNED_360, precision, folder)
    if args.prompt:
        subject = prompted(subject, args.prompt)
    path = evaluate_subject(
        subject,
        asked(args.limit),
        precision,
        DECODING,
        Path(args.results) / tier() / "together",
        capability=False,
    )
    print_result(path)


if __name__ == "__main__":
    main()
