"""``python -m xb_lite estimate``: what a recipe takes, printed before anything is fetched."""

from __future__ import annotations

import argparse

from xb_lite.recipes import Budget, load_recipe, parse_change, recipe_names
from xb_lite.scaling.cards import CARDS
from xb_lite.scaling.estimates import BOOK_MEAN, estimate_table
from xb_lite.scaling.shapes import ShapeError, shape_of

OFFICIAL_TOKENS = 1024  # of a published recipe's items, at most


def add_estimate(commands: argparse._SubParsersAction) -> None:
    """The command, among those of the package."""
    parser = commands.add_parser(
        "estimate",
        help="say what memory, time and disk training by a recipe takes",
        description="Estimates memory, time and disk from the recipe and the model's config; "
        "nothing is downloaded or trained. Memory is an upper bound: every item is taken to be as "
        "long as the recipe allows, unless --tokens says otherwise. Time is for items of the "
        "average length of the book's own or, for recipes with longer ones, of the maximum.",
    )
    parser.listed = lambda: {"recipes": recipe_names(), "cards": CARDS}
    parser.add_argument("recipe", help="a name from the list below, or a JSON file")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        dest="changes",
        help="change fields of the recipe, as in max_tokens=256",
    )
    parser.add_argument(
        "--cards", nargs="+", metavar="CARD", help="hardware from the list below (default: all)"
    )
    parser.add_argument(
        "--tokens", type=int, help="length of an item (default: the recipe's maximum)"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="how many, each on a card of its own (default: 1)"
    )
    parser.add_argument(
        "--sharded",
        action="store_true",
        help="split the weights among the processes (ZeRO-3, FSDP)",
    )
    parser.set_defaults(run=_estimate)


def _estimate(args: argparse.Namespace) -> None:
    recipe = load_recipe(args.recipe, **dict(map(parse_change, args.changes)))
    if wrong := [name for name in args.cards or () if name not in CARDS]:
        raise ValueError(f"there is no card {wrong[0]!r}; there are {', '.join(CARDS)}.")
    for name in ("tokens", "processes"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1.")
    if args.processes > 1 or args.sharded:
        _check_shared(recipe, args.processes, args.sharded)
    cards = [CARDS[name] for name in args.cards or CARDS]
    how = {
        "tokens": args.tokens,
        "mean": _mean(recipe, args.tokens),
        "processes": args.processes,
        "sharded": args.sharded,
    }
    print(estimate_table(recipe, shape_of(recipe.model), cards, **how))


def _check_shared(recipe: Budget, processes: int, sharded: bool) -> None:
    """Raise the TrainingError of a training that could not be shared so: it has no estimate."""
    from xb_lite.training.checks import check_shared_weights
    from xb_lite.training.lora import passes

    passes(recipe, processes)
    if sharded:
        check_shared_weights(recipe, "ZeRO-3 or FSDP")


def _mean(recipe: Budget, tokens: int | None = None) -> int | None:
    """Tokens of an item on average: of the book's own data, unless the recipe is for longer."""
    return None if tokens or recipe.max_tokens >= OFFICIAL_TOKENS else BOOK_MEAN


def before_fetching(recipe: Budget) -> str:
    """One line for those who are about to train: memory at most, and what will be fetched."""
    try:
        shape = shape_of(recipe.model)
    except ShapeError as error:
        return f"no estimate of memory: {error}"
    cards = [CARDS["cpu"], CARDS["a100-80gb"]]
    found = estimate_table(recipe, shape, cards, mean=_mean(recipe)).splitlines()
    return "\n".join(["at most, as `xb-lite estimate` says in full:", *found[1:4], found[-1]])
