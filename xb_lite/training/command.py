"""``python -m xb_lite train``: from the words of a command to an adapter."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import fields

from xb_lite.corpora import EDITIONS
from xb_lite.models.cached import DEFAULT
from xb_lite.recipes import RecipeError, load_recipe, parse_change, recipe_names
from xb_lite.recipes.kinds import Alignment
from xb_lite.scaling.command import before_fetching


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add ``train`` to the commands of the book."""
    parser = commands.add_parser(
        "train",
        help="train a defense by a recipe",
        description="Trains a defense and writes it as an adapter. A run that was stopped goes on "
        "where it was; a finished one is not repeated.",
    )
    parser.listed = _listed
    parser.add_argument("recipe", help="a name from the list below, or a JSON file")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    several = {"action": "extend", "nargs": "+"}  # once with many, or many times
    parser.add_argument(
        "--set",
        **several,
        default=[],
        metavar="FIELD=VALUE",
        dest="changes",
        help="change fields of the recipe, as in learning_rate=4e-4 or model=NAME; the JSON files "
        "in xb_lite/recipes show them",
    )
    parser.add_argument(
        "--edition",
        type=int,
        choices=EDITIONS,
        help="which edition of the book's own prompts the defense learns from (default: 2 for "
        f"{DEFAULT}-aligned-360, which was aligned on it, otherwise 1); an edition that is not the "
        "default becomes part of the folder's name",
    )
    parser.add_argument(
        "--data",
        **several,
        metavar="WHAT",
        help="train on other data than the book's own prompts. official: the files published with "
        "X-Boundary, downloaded and put together as its code does; after it NAME=FILE for copies "
        "of your own, and options (OPTION=VALUE)",
    )
    parser.add_argument(
        "--into", metavar="FOLDER", help="of the adapter (default: a folder in the cache)"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with an earlier run (default), or begin anew",
    )
    parser.set_defaults(run=_train)


def _listed() -> dict[str, Iterable[str]]:
    from xb_lite.training.official import TRAINING, Official

    return {
        "recipes": recipe_names(),
        "files of the official data": TRAINING,
        "its options": [option.name for option in fields(Official)],
    }


def _train(args: argparse.Namespace) -> None:
    """What was asked for, trained; prints what it takes before anything is fetched."""
    # Imported here: other commands need nothing heavy.
    from xb_lite.training.defense import adapter_folder, edition_for, train_defense
    from xb_lite.training.official import official_sets, parse_official

    changes = dict(map(parse_change, args.changes))
    recipe = load_recipe(args.recipe, **changes)
    sets = None
    if args.edition and (args.data or isinstance(recipe, Alignment)):
        what = "--data are others" if args.data else f"{recipe.method} has its own"
        raise RecipeError(f"--edition is of the prompts that defenses learn from; {what}.")
    if args.edition not in (None, edition_for(recipe.model)):
        changes["edition"] = args.edition
    if args.data:
        options, files = parse_official(args.data)
        changes["data"] = "+".join(e for e in args.data if e.partition("=")[0] not in files)
    into = args.into or adapter_folder(args.recipe, args.seed, changes)
    print(before_fetching(recipe), flush=True)
    if args.data:
        sets = official_sets(options, files)
    trained = train_defense(
        recipe, into, seed=args.seed, resume=args.resume, sets=sets, edition=args.edition
    )
    last = ", ".join(f"{k} {v:.3g}" for k, v in trained.curve[-1].items())
    print(f"{trained.folder}\n{last}")
