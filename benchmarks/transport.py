"""Exact transport at the sizes of the book: seconds, and how far the sliced estimate is from it.

    python benchmarks/transport.py [--rounds 5] [--resamplings 200] [--dim 576]

Two laws: one Gaussian, and ten tight Gaussian clusters of unequal weight. Times the exact distance
of 512 and 512 items by both solvers and of 512 and 500, then ``k_variance`` at k = 256 of 1024
items; prints the sliced estimate, its error against the exact value and its time, of two samples
of one law and of one shifted, at growing dimension.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from ot import emd2
from scipy.spatial.distance import cdist

from xb_lite.convergence.transport import k_variance, sliced_estimate, wasserstein1

SIZE = 512


def gaussian(draw: np.random.Generator, n: int, dim: int) -> np.ndarray:
    return draw.normal(size=(n, dim))


def clusters(draw: np.random.Generator, n: int, dim: int) -> np.ndarray:
    centres = 3 * np.random.default_rng(0).normal(size=(10, dim))
    weights = np.arange(1, 11) / 55
    return centres[draw.choice(10, size=n, p=weights)] + 0.1 * draw.normal(size=(n, dim))


LAWS = {"gaussian": gaussian, "clusters": clusters}


def timed(work: Callable[[], object], rounds: int) -> tuple[object, float]:
    """Result and median seconds of ``work``."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each timing; the median counts")
    parser.add_argument("--resamplings", type=int, default=200)
    parser.add_argument("--dim", type=int, default=576, help="that of the default model")
    args = parser.parse_args()
    draw = np.random.default_rng(1)

    print(f"exact, {args.dim} dimensions, median of {args.rounds}")
    for name, law in LAWS.items():
        one, other = law(draw, SIZE, args.dim), law(draw, SIZE, args.dim)
        value, seconds = timed(partial(wasserstein1, one, other), args.rounds)
        by_pot, pot_seconds = timed(lambda a=one, b=other: emd2([], [], cdist(a, b)), args.rounds)
        _, unequal = timed(partial(wasserstein1, one, other[:-12]), args.rounds)
        print(
            f"{name:<9} {SIZE} and {SIZE} {seconds:.3f} s, by POT {pot_seconds:.3f} s (relative "
            f"difference {abs(by_pot / value - 1):.0e}), {SIZE} and {SIZE - 12} {unequal:.3f} s"
        )

    print(f"\nk-variance, k = 256, {args.resamplings} resamplings of 1024 items, {args.dim} dim")
    for name, law in LAWS.items():
        sample = law(draw, 1024, args.dim)
        found, seconds = timed(partial(k_variance, sample, 256, args.resamplings), 1)
        print(f"{name:<9} {seconds:6.1f} s  {found}")

    print(f"\nsliced estimate against exact, {SIZE} and {SIZE} items, 100 directions")
    for name, law in LAWS.items():
        for shift in (0.0, 3.0):
            for dim in (1, 2, 8, 64, args.dim):
                one, other = law(draw, SIZE, dim), law(draw, SIZE, dim) + shift / np.sqrt(dim)
                exact = wasserstein1(one, other)
                sliced, seconds = timed(partial(sliced_estimate, one, other), args.rounds)
                print(
                    f"{name:<9} shift {shift:g}, {dim:>3} dim: exact {exact:7.3f}, sliced "
                    f"{sliced:6.3f}, off {sliced / exact - 1:+5.0%}, {seconds:.3f} s"
                )


if __name__ == "__main__":
    main()
