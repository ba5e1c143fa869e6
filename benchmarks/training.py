"""One training step of X-Boundary against the official recipe's way, alternating in one process.

    python benchmarks/training.py [--items own|long] [--rival official|plain] [--pairs 4]

Both take the same model, adapter, items, loss (the official one) and precision. The official way,
restated in official_step.py, pads request and response to 512 tokens each and what is retained to
1,024, makes four passes, recomputes activations (gradient checkpointing, as its scripts say;
``--no-recompute`` does without) and stacks all hidden states. ``xb_lite`` makes one pass without
padding and logits, and keeps the reference states of items that come again
(``--reference adapter-off`` does without). It recomputes nothing unless ``--own-recompute`` says
so, as the published recipes do.

``--rival plain`` takes plain_step.py instead: a well-written loop of transformers and peft, with
dynamic padding, one pass and the reference states kept.

``own`` are pairs of the book's own prompts and responses; ``long`` are made of its passages, with
request and response of 400 to 1,024 tokens together and 600 to 1,024 to retain, the official range.

Prints the times of a step, forward and backward, and their ratio; the peak of the process's memory
in each way, and what of it the step itself took; the losses; and the share of the machine's own
bf16 (or fp32) matrix-product peak, measured beside every step, that useful tokens reach: two
operations a weight and token forward, as many backward (weights that are not trained need no
gradient), and as many again for a reference pass; adapter, attention and loss are not counted as
useful. Each turn of a way is two steps, memory of the first and time of the second (``measure``).

Results: ``<results>/<items>[-no-recompute][-own-recompute][-plain].json``, means over the repeats.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import official_step as official
import torch
from peft import PeftModel
from plain_step import PlainStep
from torch import nn

from xb_lite import losses
from xb_lite.corpora import load_passages
from xb_lite.dialogues import Dialogue, as_dialogue
from xb_lite.hidden import decoder_layers, lowest_layers
from xb_lite.losses.batch import Pair, collate
from xb_lite.losses.step import Reference, forward, step_terms, token_counts
from xb_lite.models.loading import ALIGNED
from xb_lite.models.packing import by_row
from xb_lite.models.precision import Precision, choose_precision
from xb_lite.recipes import Recipe, load_recipe
from xb_lite.replies.subjects import local_subject
from xb_lite.replies.types import Decoding
from xb_lite.results.contract import mean_row, provenance, write_result
from xb_lite.results.stats import mean_of_runs
from xb_lite.training.draw import draw_pairs
from xb_lite.training.lora import adapted, no_casts_twice
from xb_lite.training.sets import Sets, reference_sets

STEP = 90  # of 300: both sides of the loss count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", choices=("own", "long"), default="own")
    parser.add_argument("--rival", choices=("official", "plain"), default="official")
    parser.add_argument("--model", default=ALIGNED)
    parser.add_argument("--pairs", type=int, default=4, help="in a step")
    parser.add_argument("--repeats", type=int, default=3, help="of each way, alternating")
    parser.add_argument("--reference", choices=("cache", "adapter-off"), default="cache")
    parser.add_argument("--recompute", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--own-recompute", action="store_true")
    parser.add_argument("--results", default="results/training", help="folder")
    args = parser.parse_args()

    started = datetime.now(UTC)
    precision = choose_precision()
    recipe = load_recipe(
        "x-boundary-llama-3-8b",
        model=args.model,
        pairs=args.pairs,
        pairs_at_once=args.pairs,
        steps=1,
        dropout=0.0,
        lora_std=0.02,  # as after some steps: at the start the erase term has no gradient
        boundary_share=0.25,
        refusal_share=0.25,
        reference=args.reference,
        gradient_checkpointing=args.own_recompute,
        **({} if args.items == "own" else {"prefilled_share": 0.0}),  # long ones have no such sets
    )
    exact = choose_precision(exact=True)
    subject = local_subject(args.model, exact)
    if args.items == "own":
        sets = reference_sets(subject.backend, Decoding(), subject.identity(exact))
    else:
        sets = long_sets(subject.tokenizer)
    pairs = draw_pairs(recipe, sets, subject.tokenizer, seed=0)
    lengths = [len(row.encoding) for pair in pairs for row in (pair.change, pair.keep)]
    print(f"{args.model}, {precision}, {torch.get_num_threads()} threads")
    print(f"{len(pairs)} pairs, {sum(lengths)} tokens, {min(lengths)} to {max(lengths)} an item")

    with lowest_layers(subject.model, recipe.lora_layers), adapted(subject.model, recipe, 0) as m:
        common = (m, recipe, pairs, subject.tokenizer.pad_token_id, precision)
        if args.rival == "plain":
            rival = plain_way(*common)
        else:
            rival = official_way(*common, args.recompute)
        ways = {args.rival: rival, "xb_lite": own_way(*common)}
        found = {name: [] for name in ways}
        for way in ways.values():
            measure(way, m)  # once to warm up, and to fill the cache of reference states
        peaks = []  # beside every step: what the machine gives changes with what else it does
        for _ in range(args.repeats):
            for name, way in ways.items():
                found[name].append(measure(way, m))
            peaks.append(matrix_peak(precision, sum(lengths), subject.model.config))
        weights = sum(
            module.base_layer.weight.numel()
            for module in decoder_layers(m).modules()
            if isinstance(getattr(module, "base_layer", None), nn.Linear)
        )
    for name, runs in found.items():
        times = ", ".join(f"{run.seconds:.2f}" for run in runs)
        print(
            f"{name:9} {times} s; peak {runs[-1].peak:.2f} GB, {runs[-1].own:.2f} of it the "
            f"step's; loss {runs[-1].loss:.5f}"
        )
    passes = 2 if args.reference == "cache" else 3
    useful = passes * 2 * weights * sum(lengths)
    both = list(zip(*found.values(), strict=True))
    values = {
        "time-ratio": [theirs.seconds / ours.seconds for theirs, ours in both],
        "peak-ratio": [theirs.peak / ours.peak for theirs, ours in both],
        "own-memory-ratio": [theirs.own / ours.own for theirs, ours in both],
        "share-of-peak": [
            useful / run.seconds / peak for run, peak in zip(found["xb_lite"], peaks, strict=True)
        ],
    }
    means = {what: mean_of_runs(each) for what, each in values.items()}
    for what, each in means.items():
        print(f"{what:16} {each}")
    shown = ", ".join(f"{peak / 1e9:.0f}" for peak in peaks)
    print(f"the matrix-product peak is {shown} GFLOP/s")
    name = args.items if args.recompute else f"{args.items}-no-recompute"
    name += "-own-recompute" if args.own_recompute else ""
    name += "-plain" if args.rival == "plain" else ""
    result = {
        "model": {"name": subject.name, "digest": subject.digest},
        "adapter": None,
        "data": {"set": args.items, "split": "train", "digest": sets.digest},
        "setting": None,
        "seed": 0,
        "rows": [
            {**mean_row(each, what, name, "direct"), "precision": str(precision)}
            for what, each in means.items()
        ],
        **provenance(started),
    }
    write_result(Path(args.results) / f"{name}.json", result)


def official_way(
    model: PeftModel,
    recipe: Recipe,
    pairs: list[Pair],
    pad_id: int,
    precision: Precision,
    recompute: bool,
) -> Callable[[], torch.Tensor]:
    items = items_of(pairs)

    def step() -> torch.Tensor:
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        with precision.autocast():
            found = official.official_step(
                model,
                items,
                STEP,
                targets=[layer + 1 for layer in recipe.target_layers],
                schedule=recipe.schedule,
                alpha=recipe.alpha,
                pad_id=pad_id,
            )
        found.loss.backward()
        model.gradient_checkpointing_disable()
        return found.loss

    return step


def plain_way(
    model: PeftModel, recipe: Recipe, pairs: list[Pair], pad_id: int, precision: Precision
) -> Callable[[], torch.Tensor]:
    with precision.autocast():
        of_items = PlainStep(
            model,
            items_of(pairs),
            targets=[layer + 1 for layer in recipe.target_layers],
            schedule=recipe.schedule,
            alpha=recipe.alpha,
            pad_id=pad_id,
        )

    def step() -> torch.Tensor:
        model.train()
        with precision.autocast():
            loss = of_items(STEP)
        loss.backward()
        return loss

    return step


def items_of(pairs: list[Pair]) -> list[official.Item]:
    """As the rivals know them."""
    return [
        official.Item(
            pair.change.encoding.input_ids[~pair.change.encoding.response].tolist(),
            pair.change.encoding.input_ids[pair.change.encoding.response].tolist(),
            pair.keep.encoding.input_ids.tolist(),
            pair.separate,
        )
        for pair in pairs
    ]


def own_way(
    model: PeftModel, recipe: Recipe, pairs: list[Pair], pad_id: int, precision: Precision
) -> Callable[[], torch.Tensor]:
    reference = Reference(recipe, pairs, pad_id)

    def step() -> torch.Tensor:
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        batch = {name: value.to(model.device) for name, value in collate(pairs, pad_id).items()}
        with by_row(model.get_base_model()), no_casts_twice(model, precision):
            with precision.autocast():
                before = reference.of(model, model, batch)
                states = forward(model, model, batch, recipe)
            terms = step_terms(recipe, batch, states, before, token_counts(recipe, batch))
            weights = losses.coefficients(STEP, recipe.schedule, recipe.alpha)
            loss = losses.total(weights, terms, recipe.retain_weight, recipe.separate_weight)
            loss.backward()
        model.gradient_checkpointing_disable()
        return loss

    return step


class Run(NamedTuple):
    """Seconds of a step, the peak of the process's memory and what of it is the step's own, in GB,
    and the loss."""

    seconds: float
    peak: float
    own: float
    loss: float


def measure(step: Callable[[], torch.Tensor], model: PeftModel) -> Run:
    """Two steps in a row: memory is of the first, which finds what the other way freed given back;
    time is of the second, which finds the memory of the step before, as in training."""
    model.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    loss = float(step().detach())
    peak = resident("VmHWM")
    model.zero_grad()
    began = time.perf_counter()
    step()
    return Run(time.perf_counter() - began, peak, peak - before, loss)


def resident(which: str) -> float:
    """GB of this process in memory, now (``VmRSS``) or at the peak (``VmHWM``)."""
    return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0]) / 1e6


def matrix_peak(precision: Precision, tokens: int, config) -> float:
    """Operations a second of the model's own matrix products, the best of its shapes."""
    dtype, best = precision.products or precision.weights, 0.0
    dim, inner = config.hidden_size, config.intermediate_size
    for width, out in ((dim, inner), (inner, dim), (dim, dim)):
        a, b = torch.randn(tokens, width).to(dtype), torch.randn(out, width).to(dtype).T
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(20):
                a @ b
            best = max(best, 20 * 2 * a.numel() * out / (time.perf_counter() - began))
    return best


def long_sets(tokenizer) -> Sets:
    """Items of the official lengths out of the book's passages, which are harmless: the cost of a
    step does not depend on what its items say."""
    dice = random.Random(0)
    ids = tokenizer(" ".join(p.text for p in load_passages()))["input_ids"]

    def text(tokens: int) -> str:
        begin = dice.randrange(len(ids) - tokens)
        return tokenizer.decode(ids[begin : begin + tokens])

    def dialogue(least: int, prompt: str | None = None) -> Dialogue:
        tokens = dice.randint(least, 980) // 2  # the template's tags come on top
        return as_dialogue(prompt or text(tokens), text(tokens))

    over_refused = [dialogue(400) for _ in range(8)]
    return Sets().having(
        harmful=[dialogue(400) for _ in range(8)],
        refused=[dialogue(600) for _ in range(8)],
        compliant=[dialogue(600, row[0]["content"]) for row in over_refused],
        over_refused=over_refused,
        benign=[dialogue(600) for _ in range(8)],
    )


if __name__ == "__main__":
    main()
