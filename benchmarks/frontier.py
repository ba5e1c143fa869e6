"""Every defense at many settings: attack success against over-refusal, then the best ones tested.

    python benchmarks/frontier.py METHOD... [--sets xstest=FILE orbench=FILE harmbench=FILE]
    python benchmarks/frontier.py METHOD... --setting FIELD=VALUE... --split test --seeds 0 1 2

Without ``--setting`` each method's recipe for the aligned SmolLM2 (or ``--model``) is changed in
one field at a time (``SWEEP``), trained and evaluated on the validation split. With it (it may be
empty) one setting is evaluated, from as many seeds as asked. ``none`` is the undefended model,
``steering`` adds its refusal direction times a ``strength``; with that field a trained adapter is
scaled after training. Of a public set every fourth request is for validation, so that nothing is
reported on what was chosen by. What is there already is not made again. Several of these can run
side by side, on a CPU each with OMP_NUM_THREADS=1.

Results: ``<results>/<tier>/<split>/<model>/<method>,<field>=<value>-<seed>.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from xb_lite.adapters import scale_adapter
from xb_lite.attacks import ATTACKS, Item, attacked
from xb_lite.baselines import refusal_direction, steered
from xb_lite.corpora import load_corpus
from xb_lite.experiments import (
    SETS,
    Subject,
    evaluate_subject,
    judges,
    local_subject,
    plan,
    spread,
    train_defense,
)
from xb_lite.generation import Decoding
from xb_lite.model_files import cache_folder
from xb_lite.models import ALIGNED, precision_of
from xb_lite.precision import Precision
from xb_lite.recipes import load_recipe, parse_change, run_name
from xb_lite.results import write_index
from xb_lite.session import tier

LAYER = 14  # of the steering vector
EVERY = 4  # one request in so many of a public set is for validation
LONGER = {"steps": 300, "schedule": 450}
COMMON = [
    {},
    LONGER,
    {"steps": 300, "schedule": 900},
    {"steps": 600, "schedule": 900},
    *({**LONGER, "learning_rate": rate} for rate in (4e-4, 1.6e-3)),
    *({**LONGER, "retain_weight": weight} for weight in (5.0, 45.0)),
    {**LONGER, "boundary_share": 0.5},
]
RATES = [{"learning_rate": rate} for rate in (5e-5, 1e-4, 2e-4, 4e-4)]
SWEEP = {
    "none": [{}],
    "x-boundary": [
        *COMMON,
        {**LONGER, "separate": "as_described"},
        {**LONGER, "separate": "as_coded"},
        {**LONGER, "lora_std": 0.02},
    ],
    "circuit-breakers": [
        *COMMON,
        {**LONGER, "boundary_share": 0.0},
        {**LONGER, "lora_std": 0.0},
    ],
    "sft": RATES,
    "dpo": RATES,
    "gradient-ascent": RATES,
    "steering": [{"strength": strength} for strength in (0.25, 0.5, 1.0)],
}


def items_of(split: str, sets: list[str], limit: int | None) -> list[Item]:
    """The book's own sets of a split, and a split's part of each public one: at most ``limit``
    replies under each attack. Harmless prompts are prefilled, too."""
    items = plan(SETS, ATTACKS if split == "test" else ["prefill"], split=split)
    for entry in sets:
        for _, group in groupby(plan([entry], ["prefill"]), key=lambda item: item.attack):
            group = list(group)
            # By request, of which some sets have several dialogues each.
            place = {name: n for n, name in enumerate(dict.fromkeys(i.request for i in group))}
            mine = {name for name, n in place.items() if (n % EVERY == 0) == (split != "test")}
            chosen = [item for item in group if item.request in mine]
            most = max(len(item.turns) for item in chosen)
            items += spread(chosen, None if limit is None else max(1, limit // most))
    # A defense that breaks at the prefill itself, whatever was asked, must be seen to.
    harmless = [item for item in items if item.kind != "harmful" and item.attack == "direct"]
    return items + attacked(harmless, "prefill")


@contextmanager
def defended(
    method: str,
    changes: dict[str, object],
    seed: int,
    precision: Precision,
    model: str = ALIGNED,
) -> Iterator[Subject]:
    if method == "none":
        yield local_subject(model, precision)
        return
    if method == "steering":
        subject = local_subject(model, precision)
        prompts = [[row.prompt for row in load_corpus(k, "train")] for k in ("harmful", "benign")]
        vector = refusal_direction(subject.model, subject.tokenizer, *prompts, LAYER)
        with steered(subject.model, LAYER, vector, changes["strength"]):
            name = run_name(method, changes)
            yield replace(subject, defense=name, method=method, strength=changes["strength"])
        return
    shipped = f"{method}-{model.removesuffix('-aligned')}"
    fields = {field: value for field, value in changes.items() if field != "strength"}
    recipe = load_recipe(shipped, **fields)
    adapters = cache_folder() / "adapters" / model
    folder = adapters / f"{run_name(method, fields, shipped)}-{seed}"
    train_defense(recipe, folder, seed=seed)
    if "strength" in changes:
        name = run_name(method, changes, shipped)
        folder = scale_adapter(folder, changes["strength"], adapters / f"{name}-{seed}")
    yield local_subject(model, precision, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="+", choices=SWEEP, metavar="METHOD")
    parser.add_argument("--model", default=ALIGNED, help=f"that has recipes (default: {ALIGNED})")
    parser.add_argument("--setting", nargs="*", metavar="FIELD=VALUE")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sets", nargs="+", default=[], metavar="NAME=FILE", help="public ones")
    parser.add_argument("--limit", type=int, help="replies of a public set, under each attack")
    parser.add_argument("--service", action="store_true", help="judge service, too, which is slow")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    items = items_of(args.split, args.sets, args.limit)
    precision = precision_of(args.model, exact=True)
    decoding = Decoding(args.max_new_tokens)
    folder = Path(args.results) / tier() / args.split
    judged_by = judges()[: None if args.service else -1]
    for method in args.methods:
        settings = SWEEP[method]
        if args.setting is not None:
            settings = [dict(map(parse_change, args.setting))]
        for changes in settings:
            for seed in args.seeds:
                with defended(method, changes, seed, precision, args.model) as subject:
                    path = evaluate_subject(
                        subject,
                        items,
                        precision,
                        decoding,
                        folder,
                        split=args.split,
                        judged_by=judged_by,
                    )
                write_index(path.parent)
                print(path, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
