"""Multi-turn dialogues: ``LocalBackend.play`` against one dialogue and one turn at a time.

    python benchmarks/generation.py [--dialogues 64] [--plain 8] [--new-tokens 32]

``play`` takes all dialogues together and carries the cache from turn to turn. The plain way replies
to one dialogue at a time and reads its whole history again at each turn. That takes long, so only
``--plain`` dialogues, drawn with a fixed seed, go the plain way, and its time for all is scaled by
turns; half of them run before ``play`` and half after, so that a noisy machine disturbs both ways
alike. All dialogues have five turns and decoding is greedy. Prints times, turns a second, their
ratio, and on how many turns both ways say the same. Once a dialogue's replies differ, its later
turns have another history: so also at which turn dialogues part, and in how many of those the two
ways had read different numbers of tokens (a reply that is read again can be spelled by others).
"""

from __future__ import annotations

import argparse
import random
import time
from importlib.metadata import version
from itertools import islice
from statistics import mean

import torch

from xb_lite.corpora import load_scripts
from xb_lite.models.loading import load_model
from xb_lite.models.precision import choose_precision
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.types import Decoding, Reply

TURNS = 5


def five_turn_scripts(n: int) -> list[list[str]]:
    """The book's scripts of five turns; then an opening and the last four turns of another each."""
    scripts = sorted((script.turns for script in load_scripts()), key=len)
    whole = [turns for turns in scripts if len(turns) == TURNS]
    mixed = (
        [scripts[(i + step) % len(scripts)][0], *turns[1 - TURNS :]]
        for step in range(1, len(scripts))
        for i, turns in enumerate(scripts)
    )
    return [*whole[:n], *islice(mixed, max(0, n - len(whole)))]


def plain(backend: LocalBackend, script: list[str], decoding: Decoding) -> list[Reply]:
    dialogue, replies = [], []
    for turn in script:
        dialogue.append({"role": "user", "content": turn})
        replies += backend.reply([dialogue], decoding)
        dialogue.append({"role": "assistant", "content": replies[-1].text})
    return replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dialogues", type=int, default=64, help="of five turns each")
    parser.add_argument("--plain", type=int, default=8, help="how many also go the plain way")
    parser.add_argument("--new-tokens", type=int, default=32, help="at most so many a reply")
    parser.add_argument("--precision", choices=("fp32", "auto"), default="fp32")
    args = parser.parse_args()
    if not 2 <= args.plain <= args.dialogues:
        parser.error("--plain must be at least 2 (before and after) and at most --dialogues")

    scripts, decoding = five_turn_scripts(args.dialogues), Decoding(args.new_tokens)
    every, middle = range(len(scripts)), args.plain // 2
    drawn = random.Random(0).sample(every, args.plain)
    precision = choose_precision("cpu", exact=args.precision == "fp32")
    backend = LocalBackend(*load_model(precision=precision))
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "xb-lite"))
    print(f"{len(scripts)} dialogues of {TURNS} turns, {args.plain} of them the plain way too")
    print(f"{precision}\n{versions}, {torch.get_num_threads()} threads", flush=True)
    alone, rates = {}, []  # rates: turns a second
    with precision.autocast():
        backend.play([scripts[0][:2]], Decoding(2))  # what only the first run pays for
        for way, chosen in ("plain", drawn[:middle]), ("play", every), ("plain", drawn[middle:]):
            start = time.perf_counter()
            if way == "play":
                together = backend.play(scripts, decoding)
            else:
                alone |= {i: plain(backend, scripts[i], decoding) for i in chosen}
            turns, seconds = TURNS * len(chosen), time.perf_counter() - start
            rates.append(turns / seconds)
            print(f"{way:<5} {turns:4} turns {seconds:8.1f} s {rates[-1]:8.3f} turns/s", flush=True)

    before, play, after = rates
    rate = args.plain / (middle / before + (args.plain - middle) / after)
    n, full = TURNS * args.plain, TURNS * len(scripts)
    print(f"\n{full} turns: play {full / play:.1f} s, plain {full / rate:.1f} s, scaled from {n}")
    print(f"turns a second: play {play:.3f}, plain {rate:.3f}, ratio {play / rate:.1f}", end="")
    print(f" ({play / before:.1f} to the plain runs before, {play / after:.1f} after)")
    written = [[reply.new_tokens for i in some for reply in together[i]] for some in (alone, every)]
    print("tokens written a turn: {:.1f} where both ran, {:.1f} in all".format(*map(mean, written)))
    compare([together[i] for i in alone], list(alone.values()))


def compare(together: list[list[Reply]], alone: list[list[Reply]]) -> None:
    pairs = [list(zip(*both, strict=True)) for both in zip(together, alone, strict=True)]
    same = [[a.text == b.text for a, b in turns] for turns in pairs]
    equal, n = sum(map(sum, same)), TURNS * len(same)
    print(f"same reply text on {100 * equal / n:.1f} % of n = {n} turns ({equal})")
    parted = [(turns, t.index(False)) for turns, t in zip(pairs, same, strict=True) if not all(t)]
    at = [sum(turn == t for _, turn in parted) for t in range(TURNS)]
    print("dialogues that part at turn", ", ".join(f"{t + 1}: {n}" for t, n in enumerate(at)))
    spelled = sum(len({reply.prompt_tokens for reply in turns[t]}) > 1 for turns, t in parted)
    print(f"of these {len(parted)}, after different numbers of tokens: {spelled}")


if __name__ == "__main__":
    main()
