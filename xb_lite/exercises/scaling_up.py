"""Checks for the exercises of chapter 9."""

from __future__ import annotations

import math
from collections.abc import Callable

from xb_lite.exercises.verdicts import NOT_YET, Verdict, attempted, called, judged

LAYER = {"q_proj": (64, 64), "k_proj": (64, 16), "gate_proj": (64, 160), "down_proj": (160, 64)}
COUNT, RANK = 3, 4


def adapter_size(answer: Callable | object) -> Verdict:
    """The reader's ``adapter_size(layer, layers, rank)``: numbers in LoRA's two matrices, on every
    linear map ``(in, out)`` of so many layers."""
    found = called(answer, dict(LAYER), COUNT, RANK)
    maps = LAYER.values()
    right = COUNT * RANK * sum(a + b for a, b in maps)
    return judged(
        found,
        right,
        [
            (COUNT * sum(a * b for a, b in maps), "These are the weights that LoRA leaves alone."),
            (
                COUNT * RANK * sum(a * b for a, b in maps),
                "A is rank × in, B is out × rank: add.",
            ),
            (COUNT * RANK * sum(a for a, _ in maps), "Only A is counted; B is out × rank."),
            (COUNT * RANK * sum(b for _, b in maps), "Only B is counted; A is rank × in."),
            (right / COUNT, "This is one layer; LoRA is on several."),
            (right / RANK, "The rank is missing."),
            (right * RANK, "The rank stands in A once and in B once, not squared."),
            (2 * right, "Everything is counted twice."),
            (
                COUNT * RANK * sum(LAYER["q_proj"] + LAYER["k_proj"]),
                "LoRA is on all linear maps here, not on those of attention alone.",
            ),
        ],
        praise="By the book's recipes 0.3 % of the 8B model and 2.4 % of the smallest: why its "
        "optimiser costs next to nothing.",
    )


def largest_pass(answer: Callable | object) -> Verdict:
    """The reader's ``largest_pass(memory, pairs, limit)``: the largest divisor of ``pairs`` whose
    ``memory(divisor)`` is within ``limit``, 0 if there is none."""

    def memory(pairs: int) -> float:
        return 20 + 3.0 * pairs

    cases = [(16, 44), (16, 38), (16, 100), (12, 40), (16, 20)]
    found = [called(answer, memory, *case) for case in cases]
    if not all(attempted(one) for one in found):
        return Verdict(None, NOT_YET)

    def each(rule: Callable[[int, float], object]) -> list:
        return [rule(pairs, limit) for pairs, limit in cases]

    def divisors(pairs: int) -> list[int]:
        return [n for n in range(1, pairs + 1) if pairs % n == 0]

    def fits(pairs: int, limit: float) -> list[int]:
        return [n for n in divisors(pairs) if memory(n) <= limit]

    right = each(lambda pairs, limit: max(fits(pairs, limit), default=0))
    below = each(lambda p, limit: max((n for n in divisors(p) if memory(n) < limit), default=0))
    any_number = each(
        lambda p, limit: max((n for n in range(1, p + 1) if memory(n) <= limit), default=0)
    )
    known = [
        (below, "A pass that takes exactly the limit fits."),
        (any_number, "It must divide the pairs of a step, or the last pass is a smaller one."),
        (each(lambda p, limit: min(fits(p, limit), default=0)), "This is the smallest that fits."),
        (each(lambda p, limit: p), "The limit is not looked at."),
        (each(lambda p, limit: max(fits(p, limit), default=1)), "Where nothing fits, say 0."),
        (each(lambda p, limit: p // max(fits(p, limit), default=p)), "This counts the passes."),
        (
            each(lambda p, limit: max(map(memory, fits(p, limit)), default=0)),
            "This is the memory; the number of pairs is wanted.",
        ),
    ]
    return judged(
        found, right, known, praise="The gradient of a step is the same, however it is cut."
    )


PARTS = {"weights": 16.0, "adapter": 0.5, "activations": 18.0, "base": 0.8}


def per_card(answer: Callable | object) -> Verdict:
    """The reader's ``per_card(parts, cards)``: GB on each card where the weights alone are shared
    (``PARTS``, in GB)."""
    cards = 4
    found = called(answer, dict(PARTS), cards)
    whole = sum(PARTS.values())
    others = whole - PARTS["weights"]
    return judged(
        found,
        PARTS["weights"] / cards + others,
        [
            (whole, "This is without sharing."),
            (whole / cards, "Activations and the process itself are on every card whole."),
            (PARTS["weights"] / cards, "The other parts are there as well."),
            (
                PARTS["weights"] + others / cards,
                "The weights are what is shared, and the rest is not.",
            ),
            (whole - PARTS["weights"], "The weights are shared, not gone."),
            (PARTS["weights"] * cards + others, "Each card has a part of the weights, not all."),
            (
                (PARTS["weights"] + PARTS["activations"]) / cards
                + PARTS["adapter"]
                + PARTS["base"],
                "Each card has items of its own, so its activations are whole.",
            ),
        ],
        praise="Sharing weights helps where weights are the large part, and not before.",
    )


def bill(answer: Callable | object) -> Verdict:
    """The reader's ``bill(step, steps, price, cards, efficiency)``: the price of a run, of
    ``steps`` steps that take ``step`` seconds on one card; ``price`` is of a card and hour, and
    ``cards`` cards are ``cards * efficiency`` times as fast as one."""
    step, steps, price, cards, efficiency = 9.0, 200, 2.0, 4, 0.8
    found = called(answer, step, steps, price, cards, efficiency)
    hours = step * steps / 3600
    right = hours / (cards * efficiency) * cards * price
    return judged(
        found,
        right,
        [
            (hours * price, "The loss of efficiency is paid for as well."),
            (hours * price / (cards * efficiency), "All cards are paid for, not one."),
            (hours * price * cards, "Four cards also take less time."),
            (hours * price * efficiency, "Less efficiency makes it dearer, not cheaper."),
            (hours * price / cards / efficiency * cards * cards, "Cards are counted twice."),
            (3600 * right, "The price is of an hour, and these are seconds."),
            (60 * right, "The price is of an hour, and these are minutes."),
            (hours / (cards * efficiency), "These are the hours; multiply by what they cost."),
        ],
        praise="More cards buy time, not money: with perfect efficiency the bill stays the same.",
    )


SHARES = ((0.1429, 3000), (0.0323, 3000), (0.1176, 3000), (0.0, 3000))


def boundary_size(answer: Callable | object) -> Verdict:
    """The reader's ``boundary_size(share, harmful)``: how many boundary-safe prompts are ``share``
    of all items beside so many harmful ones, rounded."""
    found = [called(answer, *case) for case in SHARES]
    if not all(attempted(one) for one in found):
        return Verdict(None, NOT_YET)

    def each(rule: Callable[[float, int], float]) -> list[float]:
        return [rule(share, harmful) for share, harmful in SHARES]

    return judged(
        found,
        each(lambda s, n: round(n * s / (1 - s))),
        [
            (each(lambda s, n: round(n * s)), "This is a share of the harmful items, not of all."),
            (each(lambda s, n: n * s), "This is a share of the harmful items, and not rounded."),
            (each(lambda s, n: n * s / (1 - s)), "Round it: half a prompt cannot be taken."),
            (each(lambda s, n: math.floor(n * s / (1 - s))), "Round to the nearest, not down."),
            (each(lambda s, n: math.ceil(n * s / (1 - s))), "Round to the nearest, not up."),
            (each(lambda s, n: round(n * s / (1 + s))), "Of all items 1 - share are harmful."),
            (each(lambda s, n: round(n / (1 - s))), "This is the number of all items."),
            (each(lambda s, n: round(n * (1 - s))), "The share is of the boundary-safe ones."),
        ],
        praise="500, 100 and 400: the published sizes for Llama-3, Qwen2.5 and R1-Distill.",
    )
