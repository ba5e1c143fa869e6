"""How far defenses move the held-out items of each kind, over seeds.

    python -m xb_lite.reproduce.displacement x-boundary sft,learning_rate=4e-4 --seeds 0 1 2

Trains what is not trained yet, by the recipes for the aligned SmolLM2.
Prompts are those of the validation and test splits; their responses are the undefended model's
before alignment, which answers them all, once as it begins by itself and once after the prefill,
and are read by the reference and the defended model alike. States are means over the response.

Results: ``<results>/<tier>/displacement/<model>/<defense>.json``, with the mean over items of the
relative move (``relative, layer <l>``, by kind and attack), each item's averaged over the seeds
first, and by seed; and, of two defenses, how many times as far the first moves them as the second
(``<first>-over-<second>.json``, metric ``times as far, layer <l>``). Intervals are over items.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from xb_lite.boundary.displacements import Displacement, displacement, times_as_far
from xb_lite.corpora import KINDS, load_corpus
from xb_lite.data.items import Item, attacked, load_items
from xb_lite.dialogues import Dialogue, as_turns
from xb_lite.files import digest
from xb_lite.hidden import hidden_states
from xb_lite.models.cached import DEFAULT
from xb_lite.models.loading import ALIGNED, precision_of
from xb_lite.models.precision import Precision
from xb_lite.recipes import METHODS, parse_change
from xb_lite.replies.cache import ask
from xb_lite.replies.subjects import Subject, local_subject
from xb_lite.replies.types import Decoding
from xb_lite.reproduce.manifest import Setting
from xb_lite.reproduce.subjects import subject_of
from xb_lite.results.contract import mean_row, provenance, write_result
from xb_lite.results.stats import mean
from xb_lite.session import tier

LAYERS = (4, 9, 14, 19, 24, 29)
SPLITS = ("validation", "test")
ATTACKS = ("direct", "prefill")
DECODING = Decoding(48)


def held_out(limit: int | None = None) -> dict[str, list[Item]]:
    """The items by attack, kind after kind, in one order."""
    plain = [item for kind in KINDS for split in SPLITS for item in load_items(kind, split)[:limit]]
    return {"direct": plain, "prefill": attacked(plain, "prefill")}


def answered(items: Sequence[Item], subject: Subject, precision: Precision) -> list[Dialogue]:
    """Every item with the subject's reply."""
    with precision.autocast():
        said = ask(subject.backend, items, DECODING, subject=subject.identity(precision))
    return [as_turns(item.turns, [reply.text]) for item, [reply] in zip(items, said, strict=True)]


def states(subject: Subject, dialogues: Sequence[Dialogue], precision: Precision) -> np.ndarray:
    """Means over the response, ``[item, layer, dim]``."""
    with precision.autocast():
        found = hidden_states(
            subject.model, subject.tokenizer, dialogues, LAYERS, pool="mean", over="response"
        )
    return found.numpy()


Moves = dict[str, Displacement]  # by seed, and with "" each item's mean over the seeds


def moved(
    before: np.ndarray, after: dict[int, np.ndarray], kinds: Sequence[str], pairs: Sequence
) -> Moves:
    """Of one layer, from the states by seed."""
    each = {
        f", seed {seed}": displacement(before, states, kinds, pairs, repeats=1)
        for seed, states in after.items()
    }
    first, *_ = each.values()
    return {"": replace(first, relative=np.mean([d.relative for d in each.values()], 0)), **each}


def relative_rows(moves: Moves, layer: int, attack: str) -> list[dict]:
    return [
        mean_row(
            mean(of.relative[of.kinds == kind]), f"relative, layer {layer}{seed}", kind, attack
        )
        for seed, of in moves.items()
        for kind in KINDS
    ]


def trained(name: str, seeds: Sequence[int]) -> Setting:
    """A defense by method and changes, e.g. ``x-boundary,prefilled_share=0.0``.

    Raises:
        ValueError: it is not trained, so its states are not moved; or a change has no value.
    """
    method, *fields = name.split(",")
    if method not in METHODS:
        raise ValueError(f"{method} is no trained defense; there are {', '.join(METHODS)}.")
    changes = dict(map(parse_change, fields))
    return Setting(plan="", model=ALIGNED, method=method, changes=changes, seeds=seeds)


def times_rows(one: Moves, other: Moves, layer: int, attack: str) -> list[dict]:
    rows = []
    for seed, of in one.items():
        for kind in KINDS:
            times = times_as_far(of, other[seed], kind)
            rows.append(mean_row(times, f"times as far, layer {layer}{seed}", kind, attack))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("defenses", nargs="+", metavar="METHOD[,FIELD=VALUE...]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, help="items of each kind and split")
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    settings = {name: trained(name, args.seeds) for name in args.defenses}
    started, precision = datetime.now(UTC), precision_of(ALIGNED)
    prompts = {p.id: p for kind in KINDS for split in SPLITS for p in load_corpus(kind, split)}
    items = held_out(args.limit)
    kinds = [item.kind for item in items["direct"]]
    pairs = [prompts[item.id].pair for item in items["direct"]]
    talker = local_subject(DEFAULT, precision)
    dialogues = {attack: answered(items[attack], talker, precision) for attack in ATTACKS}
    reference = local_subject(ALIGNED, precision)
    before = {attack: states(reference, dialogues[attack], precision) for attack in ATTACKS}

    def write(name: str, rows: list[dict]) -> None:
        path = Path(args.results) / tier() / "displacement" / ALIGNED / f"{name}.json"
        write_result(
            path,
            {
                "model": {"name": ALIGNED, "digest": reference.digest},
                "adapter": None,
                "data": {
                    "set": ", ".join(KINDS),
                    "split": "+".join(SPLITS),
                    "digest": digest(list(dialogues.values())),
                },
                "setting": None,
                "seed": args.seeds,
                "rows": rows,
                **provenance(started),
            },
        )
        print(path, flush=True)

    found: dict[str, dict[tuple[str, int], Moves]] = {}
    for name, setting in settings.items():
        after: dict[str, dict[int, np.ndarray]] = {attack: {} for attack in ATTACKS}
        for seed in args.seeds:
            with subject_of(setting, seed, precision) as subject:
                for attack in ATTACKS:
                    after[attack][seed] = states(subject, dialogues[attack], precision)
        found[name] = {
            (attack, layer): moved(
                before[attack][:, i],
                {seed: of[:, i] for seed, of in after[attack].items()},
                kinds,
                pairs,
            )
            for attack in ATTACKS
            for i, layer in enumerate(LAYERS)
        }
        rows = [
            relative_rows(moves, layer, attack) for (attack, layer), moves in found[name].items()
        ]
        write(name, sum(rows, []))
    if len(args.defenses) == 2:
        one, other = args.defenses
        rows = [
            times_rows(moves, found[other][attack, layer], layer, attack)
            for (attack, layer), moves in found[one].items()
        ]
        write(f"{one}-over-{other}", sum(rows, []))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
