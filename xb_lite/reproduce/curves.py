"""At which step the erase term falls, in the trainings of the experiment of ``book/protocol.md``.

    python -m xb_lite.reproduce.curves [--results results]

Reads the training curve of every adapter of the experiment, each arm at its own learning rate. An
adapter that is not in the cache is trained again, which takes some ten minutes.

Result: ``<results>/cpu/curves/<model>.json``, and beside it a line a run.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from xb_lite.files import write_whole
from xb_lite.models.adapter_files import read_run
from xb_lite.models.loading import ALIGNED_360, model_digest
from xb_lite.reproduce.arms import SEEDS, TRAINED, Experiment, read_experiment
from xb_lite.reproduce.convergence_summary import (
    LEVELS,
    arrivals,
    by_arm_and_seed,
    curve_of,
)
from xb_lite.reproduce.harmless_replies import setting_of_run
from xb_lite.reproduce.manifest import load_manifest
from xb_lite.reproduce.matching import PLAN
from xb_lite.reproduce.subjects import trained_adapter
from xb_lite.results.contract import provenance, write_result

TERMS = ("erase", "separate", "retain")
PLAIN, *OTHERS = TRAINED  # the others save steps beside it, or do not


def curves_of(experiment: Experiment) -> list[dict]:
    """Arm, seed and curve of every adapter that was scaled: a row a step, with its terms.

    Errors as of ``subject_of``.
    """
    edition = load_manifest().plans[PLAN].edition
    found = []
    for arm, seed, sweep in experiment.chosen_sweeps():
        setting = replace(setting_of_run(sweep[max(sweep)]), strength=None)
        trained = read_run(trained_adapter(setting, seed, edition))
        terms = [name for name in TERMS if name in trained["curve"][0]]
        rows = [
            {"step": row["step"], **{name: float(f"{row[name]:.5g}") for name in terms}}
            for row in trained["curve"]
        ]
        found.append({"arm": arm, "seed": seed, "data": trained["run"]["sets"], "curve": rows})
    return found


def summary_of(runs: Sequence[Mapping]) -> list[dict]:
    """Rows of ``arrivals`` for each level of the erase term."""
    by_arm, beside = by_arm_and_seed(runs), {PLAIN: OTHERS}
    return [row for level in LEVELS for row in arrivals(by_arm, curve_of, "erase", level, beside)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    started = datetime.now(UTC)
    warnings.filterwarnings("ignore", message="dialogue of .* tokens cut")
    runs = curves_of(read_experiment(args.results))
    if not runs:
        sys.exit(f"no adapter is there: python -m xb_lite reproduce --only {PLAN} comes first.")
    path = Path(args.results) / "cpu" / "curves" / f"{ALIGNED_360}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path.with_suffix(".jsonl"), "".join(json.dumps(run) + "\n" for run in runs))
    write_result(
        path,
        {
            "model": {"name": ALIGNED_360, "digest": model_digest(ALIGNED_360)},
            "adapter": None,
            "data": {
                "set": "harmful, boundary-safe, benign",
                "split": "train",
                "digest": runs[0]["data"],
            },
            "setting": None,
            "seed": list(SEEDS),
            "rows": summary_of(runs),
            **provenance(started),
        },
    )
    print(path)


if __name__ == "__main__":
    main()
