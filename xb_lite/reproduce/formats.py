"""The experiment in two number formats: what was run in which, and what that changes.

Most arms were run on a machine that multiplies matrices in bf16, the others in fp32 on one that
cannot. Two arms were run in both (plan ``experiment-exact``). Used in the report on X-Boundary and
circuit breakers.
"""

from __future__ import annotations

import numpy as np

from xb_lite.evaluation.seeds import gap_over_seeds_and_items
from xb_lite.reproduce.arms import LEVEL, TRAINED, Experiment, Run
from xb_lite.reproduce.experiment import PRIMARY, SUCCESS, points, rates_by_seed
from xb_lite.results.stats import Estimate

IN_BOTH = "experiment-exact"  # the plan


def in_bf16(run: Run) -> bool:
    """Whether any matrix product of its training or of its evaluation was in bf16."""
    adapter = run.result["adapter"] or {}
    said = (run.result["setting"]["precision"], adapter.get("run", {}).get("precision", ""))
    return any("products in bf16" in p or p.startswith("bf16") for p in said)


def in_fp32(experiment: Experiment) -> dict[str, list[int | None]]:
    """Of each arm that was tested at ``LEVEL`` the seeds that were run in fp32."""
    found = {
        arm: [seed for seed, run in experiment.runs(arm).items() if not in_bf16(run)]
        for arm in TRAINED
    }
    return {arm: seeds for arm, seeds in found.items() if seeds}


def gap_in_fp32(
    experiment: Experiment, exact: Experiment, arm: str, other: str = "CB"
) -> tuple[list[int | None], Estimate] | None:
    """Pooled over-refusal of an arm that was run in fp32 minus that of another in ``exact``: the
    seeds that both have, and the difference over seeds and items; None where they have none."""
    runs = [experiment.runs(arm, LEVEL), exact.runs(other, LEVEL)]
    seeds = [seed for seed in runs[0] if seed in runs[1]]
    if not seeds:
        return None
    return seeds, gap_over_seeds_and_items(*rates_by_seed(runs, seeds, PRIMARY))


def formats_table(experiment: Experiment, exact: Experiment) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: each arm that was run in both formats, with the same seeds and strengths; of
    over-refusal and prefilled success the rate in bf16, in fp32, and by how many points the second
    is higher, with a 95 % interval over seeds and items.

    Args:
        exact: of the runs in fp32.
    """
    rows = []
    for arm in TRAINED:
        runs = [of.runs(arm, LEVEL) for of in (experiment, exact)]
        seeds = [seed for seed in runs[0] if seed in runs[1]]
        if not seeds:
            continue
        cells = []
        for name in (PRIMARY, SUCCESS):
            half, single = rates_by_seed(runs, seeds, name)
            for rates in (half, single):
                share = np.mean([list(one.values()) for one in rates])
                cells.append(f"{100 * share:.1f}")
            cells.append(points(gap_over_seeds_and_items(single, half)))
        rows.append([arm, str(len(seeds)), *cells])
    heads = ["arm", "seeds", "over-refusal,\nbf16", "over-refusal,\nfp32", "points"]
    return [*heads, "ASR,\nbf16", "ASR,\nfp32", "points"], rows
