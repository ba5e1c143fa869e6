"""Evaluations and trainings that are killed at random moments, against those that are not.

    python benchmarks/kills.py [--kills 50] [--rounds 10] [--seed 0]

Each round kills a run several times (SIGKILL), lets it end, and compares all that it left with what
a run that was never killed left: results, logs, replies, weights, curves, and which files there
are. Only what is measured in seconds may differ, and of an evaluation when it began. The models are
tiny and random. Counted are kills that met a process alive.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny import tiny_model, tiny_recipe, tiny_sets

from xb_lite.data.items import plan
from xb_lite.evaluation import outcomes
from xb_lite.evaluation.runs import evaluate_subject
from xb_lite.judges.strings import REFUSAL_JUDGES
from xb_lite.models.loading import load_model
from xb_lite.models.precision import Precision
from xb_lite.replies import cache
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding
from xb_lite.training import lora
from xb_lite.training.run import train

EXACT = Precision("cpu", torch.float32, None, "kills")
MEASURED = ("seconds", "judging", "started")


def evaluating(model, tokenizer, folder: Path) -> None:
    os.environ["XB_LITE_CACHE"] = str(folder / "cache")
    backend = LocalBackend(model, tokenizer, precision=EXACT)
    subject = Subject("tiny", "a digest", backend)  # without it, capability takes most of the time
    items = plan(limit=6)
    evaluate_subject(subject, items, EXACT, Decoding(6), folder, judged_by=list(REFUSAL_JUDGES))


def training(model, tokenizer, folder: Path) -> None:
    recipe = tiny_recipe(steps=12, dropout=0.1, lora_std=0.1)
    train(recipe, model, tokenizer, tiny_sets(), folder / "adapter", EXACT)


def started(run: Callable[[], None]) -> int:
    """The process that runs it: a copy of this one, which has all loaded."""
    process = os.fork()
    if process:
        return process
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def left_in(folder: Path) -> dict[str, object]:
    """What is in a folder by the place of each file, without what was measured in seconds."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def _content(path: Path) -> object:
    data = path.read_bytes()
    if path.suffix not in (".json", ".jsonl"):
        return hashlib.sha256(data).hexdigest()
    # A line each, or one object over all lines; of the latter the order of keys counts, too.
    texts = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
    return [json.dumps(_timeless(json.loads(text))) for text in texts]


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        value = {k: _timeless(v) for k, v in value.items() if k not in MEASURED}
        return value if value.get("metric") != "seconds" else None
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def killed(
    run: Callable[[Path], None], root: Path, kills: int, rounds: int, draw: random.Random
) -> tuple[int, int, int]:
    """Kills that met a process alive, rounds, and rounds that left something else."""
    whole = root / "whole"
    whole.mkdir()
    began = time.monotonic()
    if ended(started(lambda: run(whole))):
        raise RuntimeError("the run that is not killed fails")
    seconds, wanted = time.monotonic() - began, left_in(whole)
    met = differ = number = 0
    while met < kills:
        folder = root / f"round {number}"
        folder.mkdir()
        number += 1
        each = max(1, kills // rounds)
        for _ in range(each):
            process = started(lambda folder=folder: run(folder))
            time.sleep(draw.uniform(0, 1.5 * seconds / each))
            os.kill(process, signal.SIGKILL)
            met += ended(process) == -signal.SIGKILL
        found = None if ended(started(lambda folder=folder: run(folder))) else left_in(folder)
        if found != wanted:
            differ += 1
            found = found or {}
            names = {name for name in {**wanted, **found} if found.get(name) != wanted.get(name)}
            print(f"  round {number}: {sorted(names)[:5]}", flush=True)
    return met, number, differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each kind (default: 50)")
    parser.add_argument("--rounds", type=int, default=10, help="that they are shared by, about")
    parser.add_argument("--only", choices=("evaluating", "training"), help="default: both")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # others would not be there in a copy of the process
    cache.BATCH = outcomes.BATCH = 4
    lora.SAVE_EVERY = 2
    _, tokenizer = load_model(precision=EXACT)
    models = {
        evaluating: tiny_model(tokenizer, hidden_size=16),
        training: tiny_model(tokenizer, num_hidden_layers=4),
    }
    differences = 0
    for run, model in models.items():
        if args.only not in (None, run.__name__):
            continue
        draw = random.Random(f"{args.seed} {run.__name__}")
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            met, rounds, differ = killed(
                lambda folder, run=run, model=model: run(model, tokenizer, folder),
                Path(root),
                args.kills,
                args.rounds,
                draw,
            )
        differences += differ
        print(
            f"{run.__name__:<11}{met} kills in {rounds} rounds: {differ} differ "
            f"({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
