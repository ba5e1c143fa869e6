"""The estimate of `xb-lite estimate` against a measured training run, on the CPU.

    python benchmarks/estimate.py [--recipe x-boundary-smollm2-135m --tokens 192]

Without a recipe it measures all of ``SETTINGS``. A process of its own loads the recipe's model and
trains for ``--steps`` steps on items that all have ``--tokens`` tokens, made of the book's
passages, which are harmless; its peak is the largest resident memory that the operating system saw
(``ru_maxrss``). The steps are as the recipe says.

Results: ``<results>/<recipe>-<tokens>.json``: measured and estimated memory in GB, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

SETTINGS = (
    ("x-boundary-smollm2-135m", 192),
    ("x-boundary-smollm2-135m", 192, "gradient_checkpointing=true"),
    ("x-boundary-smollm2-135m", 384),
    ("x-boundary-qwen2.5-coder-0.5b", 96),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", help="default: all of SETTINGS")
    parser.add_argument("--tokens", type=int, default=192, help="of every item")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", dest="changes")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--results", default="results/estimate", help="folder")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measured(args)))
    elif args.recipe:
        compare(args)
    else:
        for recipe, tokens, *changes in SETTINGS:
            setting = {"recipe": recipe, "tokens": tokens, "changes": changes}
            compare(argparse.Namespace(**{**vars(args), **setting}))


def recipe_of(args):
    from xb_lite.recipes import load_recipe, parse_change

    changes = dict(map(parse_change, args.changes))
    fixed = {"prefilled_share": 0.0, "multi_turn_share": 0.0, "steps": args.steps}
    return load_recipe(args.recipe, **{**fixed, "max_tokens": args.tokens, **changes})


def compare(args) -> None:
    from xb_lite.models.loading import model_digest
    from xb_lite.results.contract import mean_row, provenance, write_result
    from xb_lite.results.frames import write_index
    from xb_lite.results.stats import mean_of_runs
    from xb_lite.scaling.estimates import estimate
    from xb_lite.scaling.shapes import shape_of

    started = datetime.now(UTC)
    recipe = recipe_of(args)
    wanted = estimate(recipe, shape_of(recipe.model))
    runs = []
    for _ in range(args.repeats):
        command = [sys.executable, __file__, "--inside", "--recipe", args.recipe]
        command += ["--tokens", str(args.tokens), "--steps", str(args.steps)]
        command += ["--set", *args.changes] if args.changes else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"measured {runs[-1]['peak']:.2f} GB, estimated {wanted.memory / 1e9:.2f} GB")
    values = {
        "measured-gb": [run["peak"] for run in runs],
        "estimate-by-measured": [wanted.memory / 1e9 / run["peak"] for run in runs],
        "seconds-a-step": [run["seconds"] for run in runs],
    }
    rows = [
        mean_row(mean_of_runs(each), what, "passages", "direct") for what, each in values.items()
    ]
    result = {
        "model": {"name": recipe.model, "digest": model_digest(recipe.model)},
        "adapter": None,
        "data": {"set": "passages", "split": "train", "digest": f"{args.tokens} tokens an item"},
        "setting": None,
        "seed": 0,
        "rows": rows,
        **provenance(started),
    }
    changed = ",".join(["", *args.changes])
    write_result(Path(args.results) / f"{args.recipe}-{args.tokens}{changed}.json", result)
    write_index(Path(args.results))


def measured(args) -> dict[str, float]:
    """Within a process of its own: GB at the peak, and seconds of each step."""
    from xb_lite.models.loading import load_model, precision_of
    from xb_lite.training.run import train

    recipe = recipe_of(args)
    precision = precision_of(recipe.model)
    model, tokenizer = load_model(recipe.model, precision)
    after_loading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    times = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as folder:
        train(
            recipe,
            model,
            tokenizer,
            sets_of(tokenizer, args.tokens, recipe.steps * recipe.pairs),
            folder,
            precision,
            on_step=lambda _: times.append(time.perf_counter()),
        )
    seconds = [b - a for a, b in zip(times, times[1:], strict=False)]
    return {
        "loaded": after_loading,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "seconds": sum(seconds[1:]) / max(1, len(seconds) - 1),
    }


def sets_of(tokenizer, tokens: int, count: int):
    """Sets whose items are all cut to ``tokens`` tokens."""
    from xb_lite.corpora import load_passages
    from xb_lite.dialogues import as_dialogue
    from xb_lite.training.sets import Sets

    dice = random.Random(0)
    ids = tokenizer(" ".join(p.text for p in load_passages()))["input_ids"]

    def text(length: int) -> str:
        begin = dice.randrange(len(ids) - length)
        return tokenizer.decode(ids[begin : begin + length])

    def dialogues(prompts=None):
        made = prompts or [text(tokens // 2) for _ in range(count)]
        return [as_dialogue(prompt, text(tokens)) for prompt in made]

    over_refused = dialogues()
    prompts = [row[0]["content"] for row in over_refused]
    return Sets().having(
        harmful=dialogues(),
        refused=dialogues(),
        compliant=dialogues(prompts),
        over_refused=over_refused,
        benign=dialogues(),
    )


if __name__ == "__main__":
    main()
