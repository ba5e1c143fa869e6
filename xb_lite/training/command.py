"""``python -m xb_lite train``: from the words of a command to an adapter."""

from __future__ import annotations

import argparse

from xb_lite.recipes import load_recipe, parse_change
from xb_lite.scaling.command import before_fetching
from xb_lite.training.defense import adapter_folder, train_defense
from xb_lite.training.official import official_sets, parse_official


def run(args: argparse.Namespace) -> None:
    """What was asked for, trained; prints what it takes before anything is fetched."""
    changes = dict(map(parse_change, args.changes))
    recipe = load_recipe(args.recipe, **changes)
    sets = None
    if args.data:
        options, files = parse_official(args.data)
        changes["data"] = "+".join(e for e in args.data if e.partition("=")[0] not in files)
    into = args.into or adapter_folder(args.recipe, args.seed, changes)
    print(before_fetching(recipe), flush=True)
    if args.data:
        sets = official_sets(options, files)
    trained = train_defense(recipe, into, seed=args.seed, resume=args.resume, sets=sets)
    last = ", ".join(f"{k} {v:.3g}" for k, v in trained.curve[-1].items())
    print(f"{trained.folder}\n{last}")
