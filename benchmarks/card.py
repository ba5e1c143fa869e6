"""Fifteen minutes on a GPU: 60 steps of a recipe, its evaluation, and the step benchmark.

    python benchmarks/card.py [--recipe x-boundary-qwen2.5-1.5b] [--random]

Prepared for a card with 80 GB; run it whenever one is at hand. It prints and writes

- the peak of the card's memory and the seconds of a step in 60 steps, beside the estimate's;
- the result of an evaluation with replies of at most 32 tokens;
- a step against the plain loop (plain_step.py), alternating, on items of 400 to 1,024 tokens.

``--random`` takes a model of the same sizes with random weights, for a machine that cannot fetch
one: times and memory are the same, and what is evaluated is the path alone.

Results: ``<results>/card-<recipe>.json``, in results/a100/card if no folder is named.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp

import torch
from training import long_sets, own_way, plain_way
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from xb_lite.data.items import plan
from xb_lite.evaluation.runs import evaluate_subject
from xb_lite.hidden import lowest_layers
from xb_lite.models.cached import DEFAULT, SPECS, cached_model
from xb_lite.models.loading import load_model, precision_of
from xb_lite.recipes import Recipe, load_recipe
from xb_lite.replies.subjects import local_subject
from xb_lite.replies.types import Decoding
from xb_lite.results.contract import mean_row, provenance, write_result
from xb_lite.results.stats import mean_of_runs
from xb_lite.scaling.cards import CARDS
from xb_lite.scaling.estimates import estimate
from xb_lite.scaling.shapes import Shape, shape_of
from xb_lite.training.draw import draw_pairs
from xb_lite.training.lora import adapted
from xb_lite.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="x-boundary-qwen2.5-1.5b")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=10, help="of the step benchmark")
    parser.add_argument("--limit", type=int, default=40, help="items of each set")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--results", default="results/a100/card", help="folder")
    args = parser.parse_args()
    started = datetime.now(UTC)
    recipe = load_recipe(
        args.recipe,
        steps=args.steps,
        schedule=args.steps * 1.5,
        max_tokens=1024,
        prefilled_share=0.0,
        multi_turn_share=0.0,
    )
    asked, shape = recipe.model, shape_of(recipe.model)
    folder = Path(mkdtemp())
    name = random_model(shape, folder / "random") if args.random else asked
    recipe = replace(recipe, model=str(name))  # of which the adapter says that it is
    precision = precision_of(name)
    model, tokenizer = load_model(name, precision)
    rows, memory = trained(recipe, model, tokenizer, precision, folder / "adapter")
    wanted = estimate(recipe, shape, CARDS["a100-80gb"])
    print(f"memory {memory:.1f} GB, estimated {(wanted.memory - wanted.base) / 1e9:.1f} GB")
    rows += compared(recipe, model, tokenizer, precision, args.repeats)
    del model
    subject = local_subject(str(name), precision, folder / "adapter")
    items = plan(limit=args.limit)
    result = evaluate_subject(subject, items, precision, Decoding(32), folder / "results")
    print(f"evaluated: {result.name}, {len(items)} items")
    write_result(
        Path(args.results) / f"card-{Path(args.recipe).stem}.json",
        {
            "model": {"name": asked, "digest": "random" if args.random else subject.digest},
            "adapter": None,
            "data": {"set": "passages", "split": "train", "digest": "long"},
            "setting": None,
            "seed": 0,
            "rows": rows,
            **provenance(started),
        },
    )


def trained(recipe: Recipe, model, tokenizer, precision, folder: Path) -> tuple[list[dict], float]:
    """Rows of the seconds of a step and of the memory at the peak, and that in GB."""
    if on_gpu := model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = [time.perf_counter()]
    train(
        recipe,
        model,
        tokenizer,
        long_sets(tokenizer),
        folder,
        precision,
        on_step=lambda _: times.append(time.perf_counter()),
    )
    seconds = [b - a for a, b in zip(times[1:], times[2:], strict=False)]
    memory = torch.cuda.max_memory_reserved() / 1e9 if on_gpu else 0.0
    found = {"seconds-a-step": mean_of_runs(seconds), "memory-gb": mean_of_runs([memory])}
    print(f"{found['seconds-a-step']} s a step")
    return [mean_row(each, what, "long", "direct") for what, each in found.items()], memory


def compared(recipe: Recipe, model, tokenizer, precision, repeats: int) -> list[dict]:
    """Rows of the ratio of the plain loop's time to ours, step by step."""
    sizes = {name: getattr(recipe, name) for name in ("model", "target_layers", "lora_layers")}
    own = load_recipe(
        "x-boundary-llama-3-8b",
        **sizes,
        pairs=recipe.pairs_at_once,
        pairs_at_once=recipe.pairs_at_once,
        steps=1,
        dropout=0.0,
        lora_std=0.02,
        boundary_share=0.25,
        refusal_share=0.25,
        prefilled_share=0.0,
        reference="cache",
        gradient_checkpointing=False,
    )
    pairs = draw_pairs(own, long_sets(tokenizer), tokenizer, seed=0)
    ratios = []
    with lowest_layers(model, own.lora_layers), adapted(model, own, 0) as learning:
        common = (learning, own, pairs, tokenizer.pad_token_id, precision)
        ways = [plain_way(*common), own_way(*common)]
        for number in range(repeats + 1):
            theirs, ours = (seconds_of(way, learning) for way in ways)
            if number:  # the first is to warm up
                ratios.append(theirs / ours)
    found = mean_of_runs(ratios)
    print(f"the plain loop takes {found} times as long")
    return [mean_row(found, "time-ratio", "long-plain", "direct")]


def seconds_of(way, model) -> float:
    model.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def random_model(shape: Shape, folder: Path) -> Path:
    """A folder with a model of these sizes and the default model's tokenizer."""
    kind = Qwen2Config if shape.attention_bias else LlamaConfig
    sizes = {k: v for k, v in vars(shape).items() if k not in ("attention_bias", "head_dim")}
    AutoModelForCausalLM.from_config(kind(**sizes), dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(cached_model(SPECS[DEFAULT]))).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
