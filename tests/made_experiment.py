"""Invented results of the experiment, in the folders and under the names of real ones.

    python tests/made_experiment.py FOLDER      a whole one, to look at the pages with

The numbers say nothing about any defense. Never commit such a folder.
"""

import json
import random
import sys
from dataclasses import asdict, replace
from pathlib import Path

from xb_lite.evaluation.outcomes import Outcome
from xb_lite.models.loading import ALIGNED_360
from xb_lite.reproduce.arms import EVERY, SEEDS, TRAINED
from xb_lite.reproduce.manifest import Setting, load_manifest, path_of
from xb_lite.reproduce.matching import STRENGTHS
from xb_lite.results.contract import SCHEMA, mean_row, rate_row, write_result
from xb_lite.results.stats import Estimate, rate

PLANS = load_manifest().plans
JUDGES = ("x-boundary", "service")
VALIDATION = {("harmful", "direct"): 4, ("harmful", "prefill"): 40, ("boundary-safe", "direct"): 20}
TEST = {
    ("harmful", "direct"): 6,
    ("harmful", "prefill"): 12,
    ("harmful", "other-prefill"): 6,
    ("harmful", "wrapper"): 18,
    ("multi-turn", "multi-turn"): 4,
    ("boundary-safe", "direct"): 12,
    ("benign", "direct"): 6,
    ("xstest", "direct"): 20,
    ("orbench", "direct"): 20,
    ("boundary-safe", "prefill"): 12,
    ("benign", "prefill"): 6,
    ("xstest", "prefill"): 20,
    ("orbench", "prefill"): 20,
}


def write_experiment(
    folder,
    arms=TRAINED,
    seeds=SEEDS,
    rates=(8e-4, 1.6e-3),
    strengths=STRENGTHS,
    tested=(0.2, None),
    success=lambda arm, seed, strength: 0.75 / (1 + 2.5 * strength),
    refusal=lambda arm, seed, strength: 0.2 + 0.2 * strength,
    undefended=True,
):
    """Write results of these arms; all seeds are tested, and scaled at the rate of the recipe.

    A baseline is written at one rate, 1.6e-3, which stands for its recipe's; steering has the seed
    None. ``success`` and ``refusal`` are of validation and test items, by arm, seed and strength;
    the smaller learning rate stops less and refuses more, so that the greater one is chosen.
    """
    folder = Path(folder)
    if undefended:
        for plan, sizes in (("strengths", VALIDATION), ("experiment", TEST)):
            _write(folder, plan, Setting(plan=plan, model=ALIGNED_360), None, sizes, 0.75, 0.2)
    for arm in arms:
        of = EVERY[arm]
        for learning_rate in rates:
            own = {} if learning_rate == 1.6e-3 else {"learning_rate": learning_rate}
            for seed in seeds if not own else [s for s in seeds if s == 0]:
                setting = Setting(
                    plan="strengths",
                    model=ALIGNED_360,
                    method=of.method,
                    changes={**of.changes, **own},
                    seeds=() if seed is None else (seed,),
                )
                for strength in strengths:
                    plain = strength == 1 and setting.trained
                    scaled = replace(setting, strength=None if plain else strength)
                    chances = success(arm, seed, strength), refusal(arm, seed, strength)
                    if own:
                        chances = chances[0] + 0.03, chances[1] + 0.1
                    _write(folder, "strengths", scaled, seed, VALIDATION, *chances)
                for match in () if own else tested:
                    at = 1.0 if match is None else 1.1
                    of = replace(setting, plan="experiment", match=match)
                    chances = success(arm, seed, at), refusal(arm, seed, at)
                    _write(folder, "experiment", of, seed, TEST, *chances, strength=at)
    return folder


def _write(folder, plan, setting, seed, sizes, success, refusal, strength=None):
    of = PLANS[plan]
    path = folder / path_of(of, setting, seed)
    draw = random.Random(path.stem)
    outcomes = []
    for (set_, attack), n in sizes.items():
        kind = {"multi-turn": "harmful", "xstest": "boundary-safe", "orbench": "boundary-safe"}
        kind = kind.get(set_, set_)
        chance = success if kind == "harmful" else 1 - refusal
        complied = set(draw.sample(range(n), round(n * min(max(chance, 0), 1))))
        for i in range(n):
            said = ["complied" if i in complied else "refused"]
            outcomes.append(
                Outcome(
                    id=f"{set_}-{i}" + ("" if attack in ("direct", set_) else f"+{attack}"),
                    set=set_,
                    kind=kind,
                    attack=attack,
                    labels={judge: said for judge in JUDGES},
                    prompt_tokens=[9],
                    new_tokens=[9],
                    finished=[True],
                    seconds=0.1,
                    sha256="0" * 64,
                )
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"run": {}}, *({**asdict(one), "asked": "0"} for one in outcomes)]
    for line in lines:
        line.pop("unanswered", None)
    path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [
        rate_row(rate([o.labels[judge][-1] == label for o in group]), metric, set_, attack, judge)
        for (set_, attack) in sizes
        for group in [[o for o in outcomes if (o.set, o.attack) == (set_, attack)]]
        for judge in JUDGES
        for metric, label in _counted(group[0])
    ]
    if plan == "experiment":
        rows.append(rate_row(rate(30, 40), "accuracy", "quiz", "direct", None))
        read = Estimate(20.0, 40, 18.0, 22.0)
        rows.append(mean_row(read, "perplexity", "passages", "direct"))
    strength = strength or setting.strength or (1.0 if setting.trained else None)
    write_result(
        path,
        {
            "model": {"name": setting.model, "digest": "invented"},
            "adapter": None,
            "data": {
                "set": ", ".join(dict.fromkeys(name for name, _ in sizes)),
                "split": of.split,
                "digest": "invented",
            },
            "seed": 0,
            "setting": {
                "defense": setting.defense(seed),
                "method": setting.method,
                "changes": dict(setting.changes),
                "strength": strength,
                "training_seed": seed,
                "decoding": {"max_new_tokens": 32},
                "judges": {judge: "invented" for judge in JUDGES},
                "precision": "invented",
                "tasks": [],
            },
            "rows": rows,
            "schema": SCHEMA,
            "command": "python tests/made_experiment.py",
            "started": "2000-01-01T00:00:00+00:00",
            "seconds": 1,
            "hardware": "none: invented numbers",
            "versions": {},
            "commit": None,
        },
    )


def _counted(outcome):
    if outcome.kind != "harmful":
        return [("orr", "refused"), ("refused", "refused"), ("gibberish", "gibberish")]
    return [("asr-last-turn" if outcome.attack == "multi-turn" else "asr", "complied")]


def write_replies(folder, defenses):
    """Invented replies to three prompts for each of some defenses."""
    path = Path(folder) / f"cpu/harmless-replies/{ALIGNED_360}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": f"{defense},{i}",
            "defense": defense,
            "prompt": f"An invented prompt {i}?",
            "reply": f"An invented reply of {defense}.",
            "label": ("complied", "refused", "gibberish")[i],
        }
        for defense in defenses
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"run": {}}, *rows]))
    return path


def main(folder):
    """Some differences between arms, and one arm that does not reach the level."""
    lower = {"CB": 0.1, "CB + data": 0.0, "XB as coded": -0.05}

    def success(arm, seed, strength):
        if arm == "XB as described":
            return 0.75 - 0.3 * strength + 0.02 * seed
        return (0.75 + 0.02 * seed) / (1 + 2.5 * strength)

    def refusal(arm, seed, strength):
        return 0.2 + strength * (0.2 + lower.get(arm, 0.0)) + 0.02 * (seed - 2)

    write_experiment(folder, success=success, refusal=refusal)
    names = [p.stem for p in Path(folder).glob(f"cpu/strengths/{ALIGNED_360}/*.json")]
    write_replies(folder, [name for name in names if not name.endswith("-4")])


if __name__ == "__main__":
    main(sys.argv[1])
