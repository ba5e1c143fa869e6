"""Does the separate term make the erase term fall sooner, and why? Short trainings in many arms.

    python -m xb_lite.reproduce.convergence [--model NAME] [--layers 9 19] [--arms ARM ...]
        [--watched ARM ...] [--seeds 0 1 2 3 4] [--steps 40]

Every arm of ``convergence_arms`` trains the subject on the same items in the same order. After
every step the three terms are written down, at some steps the gradient of each term, the states of
dialogues and the attacks that get through (``convergence_states``). A line a run goes into
``<results>/<tier>/convergence/runs.jsonl``, of another subject than the aligned SmolLM2 into a
folder of its name there, of other than 40 steps into one of their number in that; what is there
already is not made again. ``summary.json`` beside it has the numbers that the book prints. About
two minutes a run on one CPU core with one target layer.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from xb_lite.files import locked, write_whole
from xb_lite.models.loading import ALIGNED, ALIGNMENTS, last_name, precision_of
from xb_lite.recipes import Recipe, as_fields
from xb_lite.replies.subjects import Subject, local_subject
from xb_lite.replies.types import Decoding
from xb_lite.reproduce.convergence_arms import ARMS, MAIN, base_recipe, train_arm
from xb_lite.reproduce.convergence_states import TRAINED, Watch, attacks_of, dialogues_of
from xb_lite.reproduce.convergence_summary import summary_rows
from xb_lite.results.contract import provenance, write_result
from xb_lite.session import tier
from xb_lite.training.defense import edition_for
from xb_lite.training.sets import Sets, reference_sets

STEPS = 40


def read_runs(path: Path) -> list[dict]:
    """What is written, a run each."""
    if not path.exists():
        return []
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


def check_same(path: Path, same: Callable[[dict], bool], other: str) -> None:
    """End the program where what is written is not the ``same``, but ``other``."""
    if not all(map(same, read_runs(path))):
        sys.exit(f"{path} has runs {other} in it: move it away, and all are made anew.")


def add_run(path: Path, run: dict) -> None:
    """Write a run beside the others; as a whole, for a line that a kill cut off would be in the way
    of all that follow."""
    with locked(path, "writing to"):  # another process may be at other arms
        lines = [json.dumps(each) + "\n" for each in [*read_runs(path), run]]
        write_whole(path, "".join(lines))


def folder_of(results: str, model: str, steps: int) -> Path:
    """Where the runs of a subject with so many steps lie."""
    folder = Path(results) / tier() / "convergence"
    if model != ALIGNED:
        folder /= last_name(model)
    return folder if steps == STEPS else folder / f"{steps}-steps"


def write_summary(
    path: Path, subject: Subject, recipe: Recipe, sets: Sets, began: datetime
) -> None:
    """``summary.json`` of all runs that are written."""
    runs = read_runs(path)
    write_result(
        path.with_name("summary.json"),
        {
            "model": {"name": subject.name, "digest": subject.digest},
            "adapter": {"run": {"recipe": as_fields(recipe)}, "digest": None},
            "data": {
                "set": "harmful, boundary-safe, benign",
                "split": "train; states of what was not trained on, and of test",
                "digest": sets.digest,
            },
            "setting": None,
            "seed": sorted({run["seed"] for run in runs}),
            "rows": summary_rows(runs),
            **provenance(began),
            "seconds": sum(run["seconds"] for run in runs),  # also of earlier calls
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=ALIGNED, choices=ALIGNMENTS)
    parser.add_argument("--layers", nargs="+", type=int, default=[9, 19], help="target layers")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM")
    parser.add_argument(
        "--watched",
        nargs="+",
        default=list(MAIN),
        choices=ARMS,
        metavar="ARM",
        help="whose states are looked at every two steps, which takes most of the time",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    began = datetime.now(UTC)
    warnings.filterwarnings("ignore", message="dialogue of .* tokens cut")
    layers = args.layers
    path = folder_of(args.results, args.model, args.steps) / "runs.jsonl"
    check_same(path, lambda run: run["layers"] == layers, "of other layers")
    recipe = base_recipe(args.model, args.steps, layers)
    exact, precision = precision_of(recipe.model, exact=True), precision_of(recipe.model)
    subject = local_subject(recipe.model, exact)
    identity = subject.identity(exact)
    edition = edition_for(recipe.model)
    limit = TRAINED[edition]
    sets = reference_sets(subject.backend, Decoding(), identity, limit=limit, edition=edition)
    dialogues = dialogues_of(subject, identity, edition)
    success = attacks_of(subject, precision, edition)
    for part, of_part in dialogues.items():
        print(part, {kind: len(some) for kind, some in of_part.items()}, flush=True)
    check_same(path, lambda run: run["data"] == sets.digest, "on other data")
    for seed in args.seeds:
        for arm in args.arms:
            if (arm, seed) in [(run["arm"], run["seed"]) for run in read_runs(path)]:
                continue
            look = Watch(
                subject.tokenizer,
                dialogues,
                recipe.target_layers,
                recipe.steps,
                precision,
                arm in args.watched,
                first=not seed,
                success=success,
            )
            run = train_arm(subject, recipe, ARMS[arm], seed, sets, precision, look)
            add_run(path, {"arm": arm, "seed": seed, "data": sets.digest, "layers": layers, **run})
            falls = [round(row["erase"], 3) for row in run["curve"][4::5]]
            print(arm, seed, f"{run['seconds']} s", falls, flush=True)
    write_summary(path, subject, recipe, sets, began)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
