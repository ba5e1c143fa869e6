"""The second stage of Intention Analysis: on the kept key-value cache, and as a fresh second call.

    python benchmarks/intention.py [--items 64] [--batch 32] [--new-tokens 64] [--results FOLDER]

Both ways take the same batches of prompts in turn, in one process, greedy, with the intentions of
the first way, so that a noisy machine disturbs both alike. Timed is the model's own work on the
second stage: with the cache it reads the second prompt alone, in a fresh call all that was said.
In small batches that saves less, for there the writing takes most of the time.
Prints seconds, their ratio, and on how many items the answers are the same text; where they are
not, in how many cases the two ways had read different numbers of tokens (an intention that is read
again can be spelled by others). ``<results>/cache.json`` has the same; a ratio's interval is over
batches, which are its items.
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedModel

from xb_lite.corpora import KINDS, load_corpus
from xb_lite.data.items import spread
from xb_lite.dialogues import as_dialogue
from xb_lite.files import digest
from xb_lite.intention.prompts import second_stage
from xb_lite.intention.stages import two_stage
from xb_lite.models.cached import DEFAULT
from xb_lite.models.loading import load_model, model_digest
from xb_lite.models.precision import choose_precision
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.types import Decoding
from xb_lite.results.contract import mean_row, provenance, rate_row, write_result
from xb_lite.results.stats import mean_of_runs, rate


def timed(model: PreTrainedModel) -> list[float]:
    """The seconds of every call of ``model.generate`` from now on, as they are made."""
    seconds, generate = [], model.generate

    def measured(*args, **options):
        start = time.perf_counter()
        output = generate(*args, **options)
        seconds.append(time.perf_counter() - start)
        return output

    model.generate = measured
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=64, help="prompts of all kinds")
    parser.add_argument("--batch", type=int, default=32, help="prompts taken together")
    parser.add_argument("--new-tokens", type=int, default=64, help="at most so many a stage")
    parser.add_argument("--precision", choices=("fp32", "auto"), default="fp32")
    parser.add_argument("--results", default="results/intention", help="folder")
    args = parser.parse_args()
    started = datetime.now(UTC)
    if min(args.items, args.batch, args.new_tokens) < 1:
        parser.error("--items, --batch and --new-tokens must be at least 1")

    prompts = [row.prompt for kind in KINDS for row in load_corpus(kind, "test")]
    dialogues = [as_dialogue(prompt) for prompt in spread(prompts, args.items)]
    decoding = Decoding(args.new_tokens)
    precision = choose_precision("cpu", exact=args.precision == "fp32")
    backend = LocalBackend(*load_model(precision=precision))
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "xb-lite"))
    print(f"{len(dialogues)} prompts in batches of {args.batch}, {args.new_tokens} tokens a stage")
    print(f"{precision}\n{versions}, {torch.get_num_threads()} threads", flush=True)
    pairs, totals, ratios = [], {"first stage": 0.0, "kept cache": 0.0, "fresh call": 0.0}, []
    with precision.autocast():
        backend.reply(dialogues[:1], Decoding(2))  # what only the first run pays for
        seconds = timed(backend.model)
        for begin in range(0, len(dialogues), args.batch):
            batch = dialogues[begin : begin + args.batch]
            stages = two_stage(backend, batch, decoding, first=decoding)
            longer = [second_stage(d, i.text) for d, (i, _) in zip(batch, stages, strict=True)]
            fresh = backend.reply(longer, decoding)
            pairs += [(kept, new) for (_, kept), new in zip(stages, fresh, strict=True)]
            # A batch that does not fit into one would be more calls than these three.
            for what, took in zip(totals, seconds[-3:], strict=True):
                totals[what] += took
            once, kept, new = seconds[-3:]
            ratios.append((kept / new, (once + kept) / (once + new)))
            assert len(seconds) == 3 * (begin // args.batch + 1), "take a smaller --batch"
            print(*(f"{what} {took:6.2f} s" for what, took in totals.items()), sep=", ", flush=True)

    first, kept, new = totals.values()
    print(
        f"\nsecond stage: kept cache {kept:.1f} s, fresh call {new:.1f} s, ratio {kept / new:.2f}"
    )
    print(f"both stages: {first + kept:.1f} s and {first + new:.1f} s", end="")
    print(f", ratio {(first + kept) / (first + new):.2f}")
    same = sum(a.text == b.text for a, b in pairs)
    print(f"same answer on {100 * same / len(pairs):.1f} % of n = {len(pairs)} items ({same})")
    spelled = sum(a.text != b.text and a.prompt_tokens != b.prompt_tokens for a, b in pairs)
    print(f"of the other {len(pairs) - same}, after different numbers of tokens: {spelled}")

    second, both = (mean_of_runs(column) for column in zip(*ratios, strict=True))
    agreed = rate([a.text == b.text for a, b in pairs])
    rows = [
        mean_row(second, "ratio-second", "prompts", "direct"),
        mean_row(both, "ratio-both", "prompts", "direct"),
        rate_row(agreed, "same-answer", "prompts", "direct", None),
    ]
    result = {
        "model": {"name": DEFAULT, "digest": model_digest()},
        "adapter": None,
        "data": {"set": "prompts", "split": "test", "digest": digest(dialogues)},
        "setting": None,
        "seed": decoding.seed,
        "rows": rows,
        **provenance(started),
    }
    write_result(Path(args.results) / "cache.json", result)


if __name__ == "__main__":
    main()
