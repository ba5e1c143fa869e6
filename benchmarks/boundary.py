"""Ten thousand states of 4,096 dimensions: every number of chapter 02, with its time and memory.

    python benchmarks/boundary.py [--items 10000] [--dim 4096] [--repeats 100] [--draws 1000]

Half the states are harmful and half boundary-safe, in twins; they are noise of falling variance,
as hidden states are, with a difference of means that a probe finds. Prints seconds of the clock and
of the processor (more of these with several threads, fewer on a busy machine), peak extra memory
and the numbers. The states themselves (164 MB in fp32) are not counted as extra.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from hidden_states import measured

from xb_lite.boundary.angles import principal_angles
from xb_lite.boundary.displacements import displacement
from xb_lite.boundary.probes import probe
from xb_lite.boundary.separability import separation


def twins(items: int, dim: int) -> tuple[np.ndarray, list[str], list[int]]:
    """States, kinds and pairs of ``items`` items, harmful ones first."""
    draw = np.random.default_rng(0)
    scale = (1 / np.sqrt(1 + np.arange(dim))).astype(np.float32)
    topics = draw.standard_normal((items // 2, dim), dtype=np.float32)
    states = np.concatenate([topics, topics])
    states += draw.standard_normal(states.shape, dtype=np.float32)
    states *= scale
    states[: items // 2] += 0.04 * scale * draw.standard_normal(dim, dtype=np.float32)
    kinds = ["harmful"] * (items // 2) + ["boundary-safe"] * (items // 2)
    return states, kinds, [*range(items // 2)] * 2


def report(name: str, seconds: float, peak: float, busy: float) -> None:
    print(f"{name:<18} {seconds:6.1f} s  {busy:6.1f} s of processor  {peak:6.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--draws", type=int, default=1000)
    args = parser.parse_args()

    states, kinds, pairs = twins(args.items, args.dim)
    moved = states * np.float32(1.1)
    sizes = {"repeats": args.repeats, "draws": args.draws}
    print(f"{len(states)} states of {args.dim} dimensions, {states.nbytes / 1e6:.0f} MB; {sizes}")
    analyses: dict[str, Callable] = {
        "probe": lambda: probe(states, kinds, pairs, **sizes),
        "separation": lambda: separation(states, kinds, pairs, **sizes),
        "principal angles": lambda: principal_angles(states, kinds, pairs, **sizes),
        "displacement": lambda: displacement(states, moved, kinds, pairs, **sizes),
    }
    found, costs = {}, []
    for name, work in analyses.items():
        busy = time.process_time()
        found[name], *cost = measured(work)
        costs.append([*cost, time.process_time() - busy])
        report(name, *costs[-1])
    seconds, peaks, busy = zip(*costs, strict=True)
    report("all", sum(seconds), max(peaks), sum(busy))
    result, apart = found["probe"], found["separation"]
    for name, number in {"accuracy": result.accuracy, "AUC": result.auc, **vars(apart)}.items():
        print(f"{name:<18} {number}; shuffled {number.shuffled}")


if __name__ == "__main__":
    main()
