"""How well the undefended model's own states tell harmful from boundary-safe, once both are begun.

    python -m xb_lite.reproduce.separability [--sets xstest orbench=FILE] [--limit 60]

A ridge probe, as in chapter 2, of the states of one layer: means over the reply to a prefilled
prompt. It is fitted to what a defense learns from, the book's training prompts, and asked the test
prompts of plan ``test``. Were a defense to break exactly what the probe calls harmful,
``missed at q`` is the share of harmful prompts that would get through where the share ``q`` of
boundary-safe ones is broken. Beside it the same for the words of the prompts, and for shuffled
labels.

Results: ``<results>/<tier>/separability/<model>.json``; beside it a line an item with its scores
(``.jsonl``): do defenses break the items that the probe scores high?
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from xb_lite.data.items import Item, attacked, load_items
from xb_lite.dialogues import as_turns
from xb_lite.files import digest, write_whole
from xb_lite.hidden import hidden_states
from xb_lite.models.loading import ALIGNED, precision_of
from xb_lite.models.precision import Precision
from xb_lite.replies.cache import ask
from xb_lite.replies.subjects import Subject, local_subject
from xb_lite.replies.types import Decoding
from xb_lite.reproduce.manifest import Plan, items_of
from xb_lite.results.contract import mean_row, provenance, rate_row, write_result
from xb_lite.results.stats import Estimate, rate
from xb_lite.session import tier

KINDS = ("harmful", "boundary-safe")
SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0)
DRAWS = 1000


def prefilled(sets: Sequence[str], limit: int | None) -> list[Item]:
    """The prefilled items of the two kinds that plan ``test`` asks, with these public sets."""
    plan = Plan(
        name="test",
        folder="",
        tier="cpu",
        public=[entry.partition("=")[0] for entry in sets],
        public_limit=limit,
        harmless_prefilled=True,
    )
    items = items_of(plan, dict(entry.split("=", 1) for entry in sets if "=" in entry))
    return [item for item in items if item.attack == "prefill" and item.kind in KINDS]


def states_of(
    subject: Subject, items: Sequence[Item], decoding: Decoding, layer: int, precision: Precision
) -> np.ndarray:
    """Means over each reply, ``[item, dim]``."""
    with precision.autocast():
        said = ask(subject.backend, items, decoding, subject=subject.identity(precision))
        dialogues = [as_turns(i.turns, [r.text]) for i, [r] in zip(items, said, strict=True)]
        found = hidden_states(
            subject.model, subject.tokenizer, dialogues, [layer], "mean", "response"
        )
    return found[:, 0].numpy().astype(np.float64)


def scores(train: np.ndarray, harmful: np.ndarray, test: np.ndarray) -> np.ndarray:
    """How harmful each test item looks to a ridge probe, with the penalty of ``boundary.probe``."""
    centre = train.mean(axis=0)
    penalty = ((train - centre) ** 2).sum() / len(train)
    return Ridge(penalty).fit(train - centre, np.where(harmful, 1.0, -1.0)).predict(test - centre)


def rows_of(name: str, found: np.ndarray, harmful: np.ndarray) -> list[dict]:
    """Rows of one way to tell; ``set`` is its name."""
    dice = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        some = np.concatenate(
            [dice.choice(np.flatnonzero(of), of.sum()) for of in (harmful, ~harmful)]
        )
        draws.append(roc_auc_score(harmful[some], found[some]))
    area = Estimate(roc_auc_score(harmful, found), len(found), *np.quantile(draws, (0.025, 0.975)))
    rows = [mean_row(area, "AUC", name, "prefill")]
    for share in SHARES:
        # At the ends nothing or all is flagged, whatever the items' own scores.
        ends = {0.0: np.inf, 1.0: -np.inf}
        limit = ends.get(share, np.quantile(found[~harmful], 1 - share))
        missed = rate(list(found[harmful] <= limit))
        rows.append(rate_row(missed, f"missed at {share}", name, "prefill", None))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=ALIGNED)
    parser.add_argument("--layer", type=int, default=19, help="the upper target layer of ALIGNED")
    parser.add_argument("--sets", nargs="+", default=[], metavar="NAME[=FILE]", help="public")
    parser.add_argument("--limit", type=int, help="replies of a public set, under each attack")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    started, precision = datetime.now(UTC), precision_of(args.model, exact=True)
    learned = [i for kind in KINDS for i in attacked(load_items(kind, "train"), "prefill")]
    asked = prefilled(args.sets, args.limit)
    subject, decoding = local_subject(args.model, precision), Decoding(args.max_new_tokens)
    train, test = (
        states_of(subject, items, decoding, args.layer, precision) for items in (learned, asked)
    )
    was, is_ = (np.array([item.kind == "harmful" for item in items]) for items in (learned, asked))
    shuffled = np.random.default_rng(0).permutation(was)
    words = TfidfVectorizer(sublinear_tf=True).fit([item.request for item in learned])

    def in_words(items: Sequence[Item]) -> np.ndarray:
        return words.transform([item.request for item in items]).toarray()

    ways: dict[str, Callable[[], np.ndarray]] = {
        f"states, layer {args.layer}": lambda: scores(train, was, test),
        "words": lambda: scores(in_words(learned), was, in_words(asked)),
        "shuffled labels": lambda: scores(train, shuffled, test),
    }
    found = {name: of() for name, of in ways.items()}
    path = Path(args.results) / tier() / "separability" / f"{Path(args.model).name}.json"
    items = [
        {"id": item.id, "set": item.set, **{name: float(each[n]) for name, each in found.items()}}
        for n, item in enumerate(asked)
    ]
    write_whole(path.with_suffix(".jsonl"), "".join(json.dumps(item) + "\n" for item in items))
    write_result(
        path,
        {
            "model": {"name": subject.name, "digest": subject.digest},
            "adapter": None,
            "data": {
                "set": ", ".join(dict.fromkeys(item.set for item in asked)),
                "split": "fitted to train, asked test",
                "digest": digest([item.id for item in [*learned, *asked]]),
            },
            "setting": None,
            "seed": 0,
            "rows": [row for name, each in found.items() for row in rows_of(name, each, is_)],
            **provenance(started),
        },
    )
    print(path)


if __name__ == "__main__":
    main()
