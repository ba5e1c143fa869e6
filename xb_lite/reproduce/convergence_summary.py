"""The convergence study's rows: steps to levels of the erase term, gradients, states, separation.

Each is over seeds; ``set`` is the arm, or the arm less the other, and ``attack`` says of which kind
and layer a number of states is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from xb_lite.convergence.transport import paired_difference
from xb_lite.reproduce.convergence_arms import MAIN
from xb_lite.reproduce.convergence_states import STATES_AT
from xb_lite.results.contract import mean_row, rate_row
from xb_lite.results.stats import mean_of_runs, rate

LEVELS = (0.9, 0.7, 0.5)  # of the erase term
SUCCESS = (0.4, 0.2)  # of attacks
# Arms without the separate term, and what they would be with it.
WITH_SEPARATE = {
    "none": "separate",
    "none, warm-up": "separate, warm-up",
    "push": "separate+push",
    "none, official retain": "separate, official retain",
    "push, official retain": "separate+push, official retain",
}
NO_ATTACK = "none"  # rows of results say of every number under which attack it was taken
MEASURES: dict[str, Callable[[Mapping], float]] = {
    "k-variance": lambda found: sum(found["costs"]) / len(found["costs"]),
    "k-variance by diameter": lambda found: (
        sum(found["costs"]) / len(found["costs"]) / found["diameter"]
    ),
    "radius of 4 balls": lambda found: found["radius"]["4"],
    "radius of 4 balls by diameter": lambda found: found["radius"]["4"] / found["diameter"],
}


def power_of_k(found: dict[str, object]) -> tuple[float, float]:
    """Slope and constant of the k-variance: the line through log cost against log k, and its value
    at k = 1."""
    sizes, costs = zip(*((int(k), cost) for k, cost in found["by k"].items()), strict=True)
    slope, at_one = np.polyfit(np.log(sizes), np.log(costs), 1)
    return float(slope), float(np.exp(at_one))


def curve_of(run: Mapping) -> Sequence[Mapping[str, float]]:
    """The terms of a run by step."""
    return run["curve"]


def success_of(run: Mapping) -> list[dict[str, float]]:
    """The share of attacks that get through, at the steps at which they were tried."""
    return [
        {"step": int(step), "success": found["k"] / found["n"]}
        for step, found in run.get("success", {}).items()
    ]


def steps_to(curve: Sequence[Mapping[str, float]], level: float, name: str = "erase") -> int | None:
    """The first step at which ``name`` is at most ``level``; None if it never is."""
    return next((int(row["step"]) for row in curve if row[name] <= level), None)


def by_arm_and_seed(runs: Sequence[Mapping]) -> dict[str, dict[int, Mapping]]:
    """Runs by their ``arm``, then their ``seed``."""
    found: dict[str, dict[int, Mapping]] = {}
    for run in runs:
        found.setdefault(run["arm"], {})[run["seed"]] = run
    return found


def summary_rows(runs: Sequence[dict]) -> list[dict]:
    """The book's numbers, each over seeds; ``set`` is the arm, or the arm less the other.

    A run that does not reach a level counts with its last step, so means of such arms are at least
    that, and differences too small rather than too large; ``reached`` says how many did.
    """
    # A run that ended before its states are looked at has none.
    by_arm = by_arm_and_seed([{"states": {}, **run} for run in runs])
    beside = {
        arm: list(dict.fromkeys(["separate", WITH_SEPARATE.get(arm, "separate")]))
        for arm in by_arm
        if arm != "separate"
    }
    rows = []
    for name, levels, curves in (("erase", LEVELS, curve_of), ("success", SUCCESS, success_of)):
        for level in levels:
            rows += arrivals(by_arm, curves, name, level, beside)
    for arm, of_arm in by_arm.items():
        for name in ("erase", "separate", "retain"):
            for step in (1, 2, 5):
                found = [
                    run["curve"][step - 1][f"{name} gradient"]
                    for run in of_arm.values()
                    if len(run["curve"]) >= step
                ]
                if found:
                    metric = f"{name} gradient at step {step}"
                    rows.append(mean_row(mean_of_runs(found), metric, arm, NO_ATTACK))
    return [*rows, *_state_rows(by_arm), *_separation_rows(by_arm)]


def arrivals(
    by_arm: Mapping[str, Mapping[int, Mapping]],
    curves: Callable[[Mapping], Sequence[Mapping[str, float]]],
    name: str,
    level: float,
    beside: Mapping[str, Sequence[str]],
) -> list[dict]:
    """Rows on which runs get ``name`` down to ``level``, after how many steps, and how many steps
    another arm saves.

    Args:
        by_arm: the runs, by arm and seed.
        curves: of a run; rows with ``step`` and ``name``. Arms with a run that has none are left
            out.
        beside: the arms that each is compared with, seed by seed.
    """
    rows, said = [], f"{name} {level}"
    took = {
        arm: {seed: steps_to(curves(run), level, name) for seed, run in of_arm.items()}
        for arm, of_arm in by_arm.items()
        if all(map(curves, of_arm.values()))
    }
    last = {
        arm: {seed: n or curves(by_arm[arm][seed])[-1]["step"] for seed, n in of_arm.items()}
        for arm, of_arm in took.items()
    }
    for arm, of_arm in took.items():
        count = rate([n is not None for n in of_arm.values()])
        rows.append(rate_row(count, f"reached {said}", arm, NO_ATTACK, None))
        steps = mean_of_runs(list(last[arm].values()))
        rows.append(mean_row(steps, f"steps to {said}", arm, NO_ATTACK))
        for other in beside.get(arm, ()):
            both = sorted(last[arm].keys() & last.get(other, {}).keys())
            if not both:
                continue
            less = f"{arm} less {other}"
            gained = mean_of_runs([last[arm][s] - last[other][s] for s in both])
            share = mean_of_runs([1 - last[other][s] / last[arm][s] for s in both])
            rows.append(mean_row(gained, f"steps saved to {said}", less, NO_ATTACK))
            rows.append(mean_row(share, f"share of steps saved to {said}", less, NO_ATTACK))
    return rows


def _state_rows(by_arm: dict[str, dict[int, dict]]) -> list[dict]:
    # That of arms from B = 0: it is the undefended model's, the same in all their runs.
    start = next(
        (
            run["states"]["0"]
            for arm in MAIN
            for run in by_arm.get(arm, {}).values()
            if "0" in run["states"]
        ),
        {},
    )
    rows = []
    for arm, of_arm in by_arm.items():
        for step in map(str, STATES_AT[1:]):
            for place, before in start.items():
                seen = [
                    run["states"][step][place] for run in of_arm.values() if step in run["states"]
                ]
                if not seen:
                    continue
                for metric, of in MEASURES.items():
                    change = mean_of_runs([of(found) / of(before) - 1 for found in seen])
                    rows.append(mean_row(change, f"{metric}, step {step}", arm, place))
                if "by k" in before and all("by k" in found for found in seen):
                    slope, constant = power_of_k(before)
                    lines = [power_of_k(found) for found in seen]
                    steeper = mean_of_runs([line[0] - slope for line in lines])
                    longer = mean_of_runs([line[1] / constant - 1 for line in lines])
                    rows.append(mean_row(steeper, f"slope, step {step}", arm, place))
                    rows.append(mean_row(longer, f"constant, step {step}", arm, place))
                paired = paired_difference(
                    np.mean([found["costs"] for found in seen], axis=0),
                    before["costs"],
                    before["k"],
                    before["n"],
                )
                name = f"{arm} less the start, step {step}"
                rows.append(mean_row(paired, "k-variance difference", name, place))
        for step in map(str, STATES_AT[1:]):
            other = by_arm.get("none", {})
            both = [s for s in of_arm if s in other and step in of_arm[s]["states"]]
            both = [s for s in both if step in other[s]["states"]]
            if arm == "none" or not both:
                continue
            for place, one in other[both[0]]["states"][step].items():
                here, there = (
                    np.mean([runs[s]["states"][step][place]["costs"] for s in both], axis=0)
                    for runs in (of_arm, other)
                )
                paired = paired_difference(here, there, one["k"], one["n"])
                name = f"{arm} less none, step {step}"
                rows.append(mean_row(paired, "k-variance difference", name, place))
    return rows


def _separation_rows(by_arm: dict[str, dict[int, dict]]) -> list[dict]:
    """Margin, k-variance and ratio after each step at which they were taken."""
    rows = []
    for arm, of_arm in by_arm.items():
        runs = [run["separation"] for run in of_arm.values() if "separation" in run]
        for step in runs[0] if runs else ():
            for place in runs[0][step]:
                seen = [run[step][place] for run in runs if step in run]
                for name, metric in (
                    ("margin", "margin"),
                    ("k_variance", "k-variance of halves"),
                    ("value", "margin by k-variance"),
                ):
                    found = mean_of_runs([one[name] for one in seen])
                    rows.append(mean_row(found, f"{metric}, step {step}", arm, place))
    return rows
