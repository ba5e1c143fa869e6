"""What the adapters of the experiment reply to three harmless prompts, at every strength.

    python -m xb_lite.reproduce.harmless_replies [--results results]

For the page element in which a reader moves the strength of a defense. Asked is every adapter that
plan ``strengths`` has results of, at its arm's learning rate, plainly and as that plan asks, so the
replies are in the cache where it ran. The prompts are boundary-safe and of the validation split;
to a harmful one nothing is shown. A run that was stopped goes on where it was.

Results: ``<results>/cpu/harmless-replies/<model>.json``, of each adapter the share of the prompts
that were served, and beside it a log with prompt, reply and the label of the service judge.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from xb_lite.data.items import Item, items_digest, load_items
from xb_lite.judges.named import judges_named
from xb_lite.models.loading import ALIGNED_360, model_digest, precision_of
from xb_lite.replies.cache import ask
from xb_lite.replies.types import Decoding, answer_of
from xb_lite.reproduce.arms import ARMS, Run, read_experiment
from xb_lite.reproduce.experiment import REPLIES
from xb_lite.reproduce.manifest import Setting, load_manifest
from xb_lite.reproduce.matching import PLAN
from xb_lite.reproduce.subjects import subject_of
from xb_lite.results.contract import provenance, rate_row, write_result
from xb_lite.results.logs import Log
from xb_lite.results.stats import rate

SPLIT = "validation"
PROMPTS = ("boundary-safe-127", "boundary-safe-364", "boundary-safe-458")
TOKENS = 32  # of a reply, as of the experiment


def chosen_items() -> list[Item]:
    """The three prompts."""
    by_id = {item.id: item for item in load_items("boundary-safe", SPLIT, edition=2)}
    return [by_id[name] for name in PROMPTS]


def chosen_runs(folder: str | Path) -> list[Run]:
    """The undefended model once, and every adapter at every strength that is there."""
    sweeps = [sweep for *_, sweep in read_experiment(folder).chosen_sweeps()]
    return list({run.defense: run for sweep in sweeps for run in sweep.values()}.values())


def setting_of_run(run: Run) -> Setting:
    """What the run was of, as the manifest would have it."""
    arm = ARMS[run.arm]
    said = run.result["setting"]["changes"]
    strength = None if run.strength in (0, 1) else run.strength
    seeds = () if run.seed is None else (run.seed,)
    changes = {**arm.changes, **{k: v for k, v in said.items() if k == "learning_rate"}}
    return Setting(
        plan=PLAN,
        model=run.result["model"]["name"],
        method=arm.method,
        changes=changes,
        strength=strength,
        seeds=seeds,
    )


def replies_of(run: Run, items: Sequence[Item]) -> list[str]:
    plan = load_manifest().plans[PLAN]
    setting = setting_of_run(run)
    precision = precision_of(setting.model, exact=plan.exact)
    with subject_of(setting, run.seed, precision, plan.edition) as subject:
        said = ask(subject.backend, items, Decoding(TOKENS), subject=subject.identity(precision))
    return [answer_of(turns[-1].text) for turns in said]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    started, items = datetime.now(UTC), chosen_items()
    runs = chosen_runs(args.results)
    if not runs:
        sys.exit(f"no adapter is there: python -m xb_lite reproduce --only {PLAN} comes first.")
    (judge,) = judges_named(["service"])
    path = (Path(args.results) / REPLIES.format(model=ALIGNED_360)).with_suffix(".json")
    asked = {"items": items_digest(items), "max_new_tokens": TOKENS, "judge": judge.source}
    rows = []
    with Log(path.with_suffix(".jsonl"), asked) as log:
        for run in runs:
            names = [f"{run.defense},{item.id}" for item in items]
            if not all(name in log.rows for name in names):
                texts = replies_of(run, items)
                labels = judge([item.judged for item in items], texts)
                log.append(
                    [
                        {
                            "id": name,
                            "defense": run.defense,
                            "prompt": item.request,
                            "reply": text,
                            "label": label,
                        }
                        for name, item, text, label in zip(names, items, texts, labels, strict=True)
                    ]
                )
            served = rate([log.rows[name]["label"] == "complied" for name in names])
            rows.append(
                rate_row(served, f"served, {run.defense}", "boundary-safe", "direct", "service")
            )
    write_result(
        path,
        {
            "model": {"name": ALIGNED_360, "digest": model_digest(ALIGNED_360)},
            "adapter": None,
            "data": {"set": "boundary-safe", "split": SPLIT, "digest": items_digest(items)},
            "setting": None,
            "seed": 0,
            "rows": rows,
            **provenance(started),
        },
    )
    print(path, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
