"""Hidden states at two middle layers: ``xb_lite.hidden`` against the plain way.

    python benchmarks/hidden_states.py [--dialogues 256] [--rounds 3] [--precision fp32]

The plain way is what most code does: batches in the order given, padded to their longest dialogue,
``output_hidden_states=True``, then keep two layers. Both run in one process on the same model and
dialogues, in turns, so that a noisy machine disturbs both alike. Prints times, peak extra memory,
their ratios, and how far the results differ.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import random
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import torch
from torch import Tensor, nn

from xb_lite.corpora import KINDS, load_corpus
from xb_lite.dialogues import Dialogue, as_dialogue, encode
from xb_lite.hidden import hidden_states
from xb_lite.models.loading import load_model
from xb_lite.models.precision import choose_precision

LAYERS = [9, 19]


def mixed_dialogues(n: int) -> list[Dialogue]:
    """Dialogues of one to eight of the book's prompts each: about 40 to 220 tokens."""
    draw = random.Random(0)
    prompts = [row.prompt for kind in KINDS for row in load_corpus(kind)]
    return [as_dialogue(" ".join(draw.sample(prompts, draw.randint(1, 8)))) for _ in range(n)]


@torch.no_grad()
def plain(model: nn.Module, tokenizer, dialogues: list[Dialogue], batch: int) -> Tensor:
    kept = []
    for start in range(0, len(dialogues), batch):
        rows = [encode(tokenizer, d).input_ids for d in dialogues[start : start + batch]]
        ids = nn.utils.rnn.pad_sequence(rows, True, tokenizer.pad_token_id)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True, 0)
        out = model(ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
        last = mask.sum(1) - 1
        states = [out.hidden_states[layer + 1][range(len(rows)), last] for layer in LAYERS]
        kept.append(torch.stack(states, dim=1).float())
    return torch.cat(kept)


def measured(work: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """Result, seconds and peak extra memory in MB of ``work``."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone: give freed memory back first
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    process, peak, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return result, seconds, peak[0] / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dialogues", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="batch of the plain way")
    parser.add_argument("--precision", choices=("fp32", "auto"), default="fp32")
    args = parser.parse_args()

    precision = choose_precision("cpu", exact=args.precision == "fp32")
    model, tokenizer = load_model(precision=precision)
    dialogues = mixed_dialogues(args.dialogues)
    lengths = sorted(len(encode(tokenizer, d)) for d in dialogues)
    print(f"{len(dialogues)} dialogues of {lengths[0]} to {lengths[-1]} tokens, layers {LAYERS}")
    print(precision)
    ways = {
        "plain": lambda: plain(model, tokenizer, dialogues, args.batch),
        "xb_lite": lambda: hidden_states(model, tokenizer, dialogues, LAYERS),
    }
    results, seconds, memory = {}, {way: [] for way in ways}, {way: [] for way in ways}
    with precision.autocast():
        for turn in range(args.rounds):
            for way, work in ways.items():
                results[way], took, peak = measured(work)
                seconds[way].append(took)
                memory[way].append(peak)
                print(f"round {turn + 1}  {way:<8} {took:7.1f} s  {peak:7.0f} MB", flush=True)
    time_ratio = statistics.median(seconds["xb_lite"]) / statistics.median(seconds["plain"])
    memory_ratio = statistics.median(memory["xb_lite"]) / statistics.median(memory["plain"])
    off = (results["xb_lite"] - results["plain"]).norm(dim=-1) / results["plain"].norm(dim=-1)
    print(f"\nxb_lite / plain, medians of {args.rounds}:")
    print(f"time {time_ratio:.2f}, peak extra memory {memory_ratio:.2f}")
    print(f"largest relative difference of a state: {off.max():.1e}")


if __name__ == "__main__":
    main()
