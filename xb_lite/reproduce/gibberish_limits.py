"""How much labelled gibberish the gibberish judge finds, and a limit on nats a byte beside it.

    python -m xb_lite.reproduce.gibberish_limits [--results results]

The limit is set on the labelled replies of the validation split, so that it calls at most 5 % of
the readable ones gibberish, and read off on those of the test split. Empty texts, odd characters
and loops count for both, as in the judge. Replies to harmful requests whose text is not kept are
left out. Other readable text is asked as well, for a limit that fits replies of one model may
fit nothing else: prompts that people wrote, and tables, code, verse and other languages. Three
minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from xb_lite.corpora import load_corpus, load_labelled, load_look_alikes
from xb_lite.files import digest
from xb_lite.judges.gibberish import Gibberish, plain_reason, text_losses
from xb_lite.models.cached import DEFAULT
from xb_lite.models.loading import load_model, model_digest, precision_of
from xb_lite.results.contract import mean_row, provenance, rate_row, write_result
from xb_lite.results.stats import Estimate, rate

ALARMS = 0.05  # of the readable replies of the validation split
LIMIT = "nats-a-byte"
SAME = 0.001


def limit_at(scores: Sequence[float], alarms: float = ALARMS) -> float:
    """A limit that no more than a share ``alarms`` of the readable texts' ``scores`` exceed, as low
    as that allows: halfway between two of them. Scores that differ by less than ``SAME`` count as
    one, since the batch in which a text is read moves its score by that much; many replies are the
    same refusal.

    Raises:
        ValueError: there are no scores, or ``alarms`` is not within 0 and 1.

    Example:
        >>> limit_at([1, 2, 3, 4], alarms=0.25)
        3.5
    """
    if not scores or not 0 <= alarms < 1:
        raise ValueError(f"{len(scores)} scores and {alarms} of them above: no limit does that.")
    last_below = sorted(scores, reverse=True)[math.floor(alarms * len(scores))]
    above = [score for score in scores if score > last_below + SAME and math.isfinite(score)]
    return (last_below + min(above)) / 2 if above else last_below + SAME


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    started, precision = datetime.now(UTC), precision_of(exact=True)
    model, tokenizer = load_model(precision=precision)
    judge = Gibberish(model, tokenizer, precision)

    labelled = {
        split: [row for row in load_labelled(split) if row.response is not None]
        for split in ("validation", "test")
    }
    sets = {split: [row.response for row in rows] for split, rows in labelled.items()}
    people = [
        row.prompt for kind in ("benign", "boundary-safe") for row in load_corpus(kind, "test")
    ]
    sets |= {"prompts": people, "look-alikes": [row.text for row in load_look_alikes()]}
    scores, called = {}, {}
    for name, texts in sets.items():
        nats = text_losses(model, tokenizer, texts)[1].tolist()
        odd = [plain_reason(text) is not None for text in texts]
        scores[name] = [math.inf if o else n for o, n in zip(odd, nats, strict=True)]
        called[name] = [reason is not None for reason in judge.reasons(texts)]
        print(f"{name}: {len(texts)} texts read", flush=True)

    junk = {name: [row.label == "gibberish" for row in rows] for name, rows in labelled.items()}
    junk |= {name: [False] * len(sets[name]) for name in ("prompts", "look-alikes")}
    known = zip(scores["validation"], junk["validation"], strict=True)
    readable = [score for score, is_junk in known if not is_junk]
    limit = limit_at(readable)
    rows = [mean_row(Estimate(limit, len(readable), limit, limit), LIMIT, "validation", "direct")]
    for name in sets:
        above = [score > limit for score in scores[name]]
        for by, found in ((judge.name, called[name]), (LIMIT, above)):
            for metric, wanted in (("found", True), ("false-alarm", False)):
                of = [f for f, j in zip(found, junk[name], strict=True) if j is wanted]
                if of:
                    rows.append(rate_row(rate(of), metric, name, "direct", by))
    write_result(
        Path(args.results) / "judges" / "gibberish.json",
        {
            "model": {"name": DEFAULT, "digest": model_digest(DEFAULT)},
            "adapter": None,
            "data": {"set": ", ".join(sets), "split": "test", "digest": digest(sets)},
            "setting": None,
            "seed": 0,
            "rows": rows,
            **provenance(started),
        },
    )
    for row in rows[1:]:
        print(f"{row['judge']:<12}{row['metric']:<12}{row['set']:<12}{row['k']:>4} of {row['n']}")


if __name__ == "__main__":
    main()
