"""Does the separate term make the erase term fall sooner, and why? Short trainings in many arms.

    python benchmarks/convergence.py [--arms separate none ...] [--seeds 0 1 2 3 4] [--steps 40]

Every arm trains the aligned SmolLM2 by the recipe of X-Boundary, smaller, on the same items in the
same order; arms differ in what ``ARMS`` says and in nothing else. After every step the three terms
are written down, at some steps the gradient of each term, and at some the states of items that no
arm was trained on, reduced to a few numbers. A line a run goes into ``<results>/<tier>/convergence/
runs.jsonl``; what is there already is not made again. ``summary.json`` beside it has the numbers
that the book prints. About two minutes a run on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import grad

from xb_lite.convergence.bounds import coverings, diameter
from xb_lite.convergence.transport import matching_costs, paired_difference
from xb_lite.data.items import attacked, load_items
from xb_lite.dialogues import as_turns
from xb_lite.hidden import hidden_states, lowest_layers
from xb_lite.judges.strings import X_BOUNDARY
from xb_lite.losses.batch import Pair, collate
from xb_lite.losses.step import Reference, ReferenceStates, forward, masks, step_terms, token_counts
from xb_lite.losses.terms import Terms, centroid, coefficients
from xb_lite.models.loading import precision_of
from xb_lite.models.packing import by_row
from xb_lite.models.precision import Precision
from xb_lite.recipes import Recipe, as_fields, load_recipe
from xb_lite.replies.cache import ask
from xb_lite.replies.subjects import Subject, local_subject
from xb_lite.replies.types import Decoding
from xb_lite.results.contract import mean_row, provenance, rate_row, write_result
from xb_lite.results.stats import mean_of_runs, rate
from xb_lite.session import tier
from xb_lite.training.draw import draw_pairs
from xb_lite.training.lora import adapted, no_casts_twice
from xb_lite.training.sets import Sets, reference_sets

TRAINED = 36  # prompts of each kind of the train split; the others and the test split are held out
HELD_OUT = 48  # items of each kind whose states are looked at
K = 3  # of the k-variance; a sixteenth of the items
SPLITS = 200
BALLS = (1, 2, 4, 8, 16)
SIZES = (1, 2, 4, 8, 16)  # k, for the slope of the k-variance
STATES_AT = (0, 8, 20, 40)  # 8: shortly before the erase term falls
LAST_ALONE = 40  # of the controls
WARM_UP = 10  # steps to the full rate
CLIP = 1.0  # norm of the gradient; the default of transformers' Trainer
LEVELS = (0.9, 0.7, 0.5)  # of the erase term
NO_ATTACK = "none"  # rows of results say of every number under which attack it was taken
MEASURES = {
    "k-variance": lambda found: sum(found["costs"]) / len(found["costs"]),
    "k-variance by diameter": lambda found: (
        sum(found["costs"]) / len(found["costs"]) / found["diameter"]
    ),
    "radius of 4 balls": lambda found: found["radius"]["4"],
    "radius of 4 balls by diameter": lambda found: found["radius"]["4"] / found["diameter"],
}
PUSH = 0.02  # standard deviation of LoRA's B, as in the recipe of circuit breakers

# What an arm changes: fields of the recipe, and what the loop below knows.
ARMS: dict[str, dict[str, object]] = {
    "separate": {},
    "none": {"separate_weight": 0.0},
    "random": {"target": "random"},
    "other": {"target": "other"},
    "near": {"target": "near"},
    "push": {"separate_weight": 0.0, "lora_std": PUSH},
    "no-retain": {"separate_weight": 0.0, "retain_weight": 0.0},
    "separate+push": {"lora_std": PUSH},
    "none, warm-up": {"separate_weight": 0.0, "warm_up": WARM_UP},
    "separate, warm-up": {"warm_up": WARM_UP},
}
MAIN = ("separate", "none")


def base_recipe(steps: int) -> Recipe:
    """That of the book up to the lower of its two target layers, on short single-turn items. The
    reference is computed beside every step, so that at the start both states are the same to the
    last bit."""
    return load_recipe(
        "x-boundary-smollm2-135m",
        steps=steps,
        target_layers=[9],
        lora_layers=10,
        max_tokens=64,
        multi_turn_share=0.0,
        reference="adapter-off",
    )


def measured(step: int) -> bool:
    """Whether the gradient of each term is taken at this step."""
    return step <= 5 or step in (10, 15, 20, 30, 40)


def held_out(subject: Subject, identity: dict[str, str]) -> dict[str, list]:
    """Dialogues that nothing is trained on, with the undefended model's own replies. Harmful and
    boundary-safe ones begin alike, by the prefill."""
    found = {}
    for kind in ("harmful", "boundary-safe", "benign"):
        items = load_items(kind, "train")[TRAINED:] + load_items(kind, "test")
        if kind != "benign":
            items = attacked(items, "prefill")
        replies = ask(subject.backend, items, Decoding(), subject=identity)
        said = [
            as_turns(item.turns, [turns[-1].text])
            for item, turns in zip(items, replies, strict=True)
            if not X_BOUNDARY.refuses(turns[-1].text)
        ]
        found[kind] = said[:HELD_OUT]
    return found


@torch.no_grad()
def states_of(
    model: nn.Module,
    tokenizer: object,
    dialogues: dict[str, list],
    layers: Sequence[int],
    precision: Precision,
) -> dict[str, dict[str, object]]:
    """Of the mean response state of each dialogue, by kind and layer: how far spread, how far apart
    two samples of ``K`` are, how coverable. Splits are the same in all runs, so they pair."""
    out: dict[str, dict[str, object]] = {}
    for kind, some in dialogues.items():
        with precision.autocast():
            states = hidden_states(
                model, tokenizer, some, layers, "mean", "response", max_length=64
            )
        for place, layer in enumerate(layers):
            sample = states[:, place].double().numpy()
            k = min(K, (len(sample) - 1) // 2)
            costs = matching_costs(sample, k, SPLITS, seed=0)
            covers = coverings(sample, min(len(sample), max(BALLS)))
            centre = sample.mean(axis=0)
            spread = ((sample - centre) ** 2).sum(axis=1).mean() ** 0.5
            out[f"{kind} {layer}"] = {
                "n": len(sample),
                "k": k,
                "costs": [float(f"{c:.5g}") for c in costs],
                "by k": {
                    size: float(matching_costs(sample, size, SPLITS, seed=0).mean())
                    for size in SIZES
                    if 2 * size <= len(sample)
                },
                "radius": {c.clusters: c.upper for c in covers if c.clusters in BALLS},
                "diameter": diameter(sample),
                "spread": float(spread),
                "norm": float((centre**2).sum() ** 0.5),
            }
    return out


def power_of_k(found: dict[str, object]) -> tuple[float, float]:
    """Slope and constant of the k-variance: the line through log cost against log k, and its value
    at k = 1."""
    sizes, costs = zip(*((int(k), cost) for k, cost in found["by k"].items()), strict=True)
    slope, at_one = np.polyfit(np.log(sizes), np.log(costs), 1)
    return float(slope), float(np.exp(at_one))


def random_target(
    reference: ReferenceStates, recipe: Recipe, seed: int, mask: Tensor
) -> ReferenceStates:
    """The same reference with every centroid turned into one random direction, as long as it was
    and at an acute angle to it, so that the term has a slope."""
    turned = {}
    for layer in recipe.target_layers:
        old = reference.centroid[layer]
        direction = _direction(old, seed, layer)
        sign = torch.sign(old @ direction)[:, None]
        turned[layer] = sign * direction * old.norm(dim=-1, keepdim=True)
    return replace(reference, centroid=turned)


def _direction(like: Tensor, seed: int, layer: int) -> Tensor:
    """A random unit vector, the same in all steps of a run."""
    dice = torch.Generator().manual_seed(1000 * seed + layer)
    direction = torch.randn(like.shape[-1], generator=dice)
    return (direction / direction.norm()).to(like)


def near_target(
    reference: ReferenceStates, recipe: Recipe, seed: int, mask: Tensor
) -> ReferenceStates:
    """The same reference with every centroid turned about the mean direction of the states that are
    to leave it, into a random plane: as long, and as near to them, as it was."""
    turned, some = {}, mask.any(dim=1)
    for layer in recipe.target_layers:
        turned[layer] = reference.centroid[layer].clone()
        old = turned[layer][some]
        here = centroid(reference.change[layer][some], mask[some])
        here = nn.functional.normalize(here, dim=-1)
        direction = _direction(old, seed, layer)
        across = nn.functional.normalize(direction - (here @ direction)[:, None] * here, dim=-1)
        along = (here * old).sum(dim=-1, keepdim=True)
        rest = (old.pow(2).sum(dim=-1, keepdim=True) - along**2).clamp(min=0).sqrt()
        turned[layer][some] = along * here + rest * across
    return replace(reference, centroid=turned)


def other_target(
    reference: ReferenceStates, recipe: Recipe, seed: int, mask: Tensor
) -> ReferenceStates:
    """The same reference with every centroid that of the next item of the step: for a boundary-safe
    prompt, as pairs are drawn, a benign prompt's or a refused one's."""
    rolled = {layer: c.roll(1, dims=0) for layer, c in reference.centroid.items()}
    return replace(reference, centroid=rolled)


TARGETS = {"random": random_target, "other": other_target, "near": near_target}


def train_arm(
    subject: Subject,
    recipe: Recipe,
    changes: dict[str, object],
    seed: int,
    sets: Sets,
    dialogues: dict[str, list],
    precision: Precision,
    main_arm: bool,
) -> dict[str, object]:
    """One run: its curve, gradients and states."""
    changes = dict(changes)
    target, warm_up = changes.pop("target", None), int(changes.pop("warm_up", 0))
    recipe = replace(recipe, **changes)
    model, tokenizer = subject.model, subject.tokenizer
    pairs = draw_pairs(recipe, sets, tokenizer, seed)
    began = time.perf_counter()
    curve, states = [], {}
    looked_at = STATES_AT if main_arm else (LAST_ALONE,)
    if seed:
        looked_at = tuple(step for step in looked_at if step)  # the start is the same
    with (
        lowest_layers(model, recipe.lora_layers),
        adapted(model, recipe, seed) as learning,
        by_row(model),
        no_casts_twice(learning, precision),
    ):
        learned = [p for p in learning.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=recipe.learning_rate, weight_decay=0.0)
        reference = Reference(recipe, pairs, tokenizer.pad_token_id)
        for step in range(recipe.steps + 1):
            if step in looked_at:
                layers = [max(recipe.target_layers)]
                states[step] = states_of(learning, tokenizer, dialogues, layers, precision)
            if step == recipe.steps:
                break
            some: list[Pair] = pairs[step * recipe.pairs : (step + 1) * recipe.pairs]
            batch = collate(some, tokenizer.pad_token_id)
            with precision.autocast():
                before = reference.of(learning, learning, batch)
                if target is not None:
                    separated = masks(recipe, batch)["separate"]
                    before = TARGETS[target](before, recipe, seed, separated)
                now = forward(learning, learning, batch, recipe)
                terms = step_terms(recipe, batch, now, before, token_counts(recipe, batch))
            row = {"step": step + 1, **{n: t.item() for n, t in terms._asdict().items()}}
            row |= _gradients(terms, learned, recipe, step + 1)
            nn.utils.clip_grad_norm_(learned, CLIP)
            for group in optimizer.param_groups:
                share = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
                group["lr"] = recipe.learning_rate * share
            optimizer.step()
            curve.append({name: float(f"{value:.6g}") for name, value in row.items()})
    return {"curve": curve, "states": states, "seconds": round(time.perf_counter() - began)}


def _gradients(terms: Terms, learned: list[Tensor], recipe: Recipe, step: int) -> dict[str, float]:
    """Sets the gradient of the loss; at some steps says how long each term's own is, without its
    weight, and the cosine of those of erase and separate."""
    weights = coefficients(step, recipe.schedule, recipe.alpha)
    factors = Terms(
        weights.retain * recipe.retain_weight, weights.xb, weights.xb * recipe.separate_weight
    )
    found: dict[str, float] = {}
    if not measured(step):
        loss = sum(f * t for f, t in zip(factors, terms, strict=True))
        for value, slope in zip(learned, grad(loss, learned), strict=True):
            value.grad = slope
        return found
    slopes = {}
    for name, term in terms._asdict().items():
        parts = grad(term, learned, retain_graph=True, allow_unused=True)
        slopes[name] = [
            torch.zeros_like(v) if s is None else s for v, s in zip(learned, parts, strict=True)
        ]
        found[f"{name} gradient"] = _dot(slopes[name], slopes[name]) ** 0.5
    both = found["erase gradient"] * found["separate gradient"]
    found["cosine"] = _dot(slopes["erase"], slopes["separate"]) / both if both else 0.0
    for place, value in enumerate(learned):
        value.grad = sum(f * slopes[n][place] for f, n in zip(factors, Terms._fields, strict=True))
    return found


def _dot(one: list[Tensor], other: list[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)))


def read_runs(path: Path) -> list[dict]:
    """What is written, a run each."""
    if not path.exists():
        return []
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))


def steps_to(curve: Sequence[dict[str, float]], level: float) -> int | None:
    """The first step at which the erase term is at most ``level``; None if it never is."""
    return next((int(row["step"]) for row in curve if row["erase"] <= level), None)


def summary_rows(runs: Sequence[dict]) -> list[dict]:
    """The book's numbers, each over seeds; ``set`` is the arm, or the arm less the other.

    A run that does not reach a level counts with its last step, so means of such arms are at least
    that, and differences too small rather than too large; ``reached`` says how many did.
    """
    by_arm: dict[str, dict[int, dict]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    rows = []
    for level in LEVELS:
        took = {
            arm: {seed: steps_to(run["curve"], level) for seed, run in of_arm.items()}
            for arm, of_arm in by_arm.items()
        }
        last = {
            arm: {s: took[arm][s] or len(run["curve"]) for s, run in of_arm.items()}
            for arm, of_arm in by_arm.items()
        }
        for arm in by_arm:
            rows.append(
                rate_row(
                    rate([n is not None for n in took[arm].values()]),
                    f"reached erase {level}",
                    arm,
                    NO_ATTACK,
                    None,
                )
            )
            steps = mean_of_runs(list(last[arm].values()))
            rows.append(mean_row(steps, f"steps to erase {level}", arm, NO_ATTACK))
            both = sorted(last[arm].keys() & last.get("separate", {}).keys())
            if arm == "separate" or not both:
                continue
            name = f"{arm} less separate"
            gained = mean_of_runs([last[arm][s] - last["separate"][s] for s in both])
            share = mean_of_runs([1 - last["separate"][s] / last[arm][s] for s in both])
            rows.append(mean_row(gained, f"steps saved to erase {level}", name, NO_ATTACK))
            rows.append(mean_row(share, f"share of steps saved to erase {level}", name, NO_ATTACK))
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
    return [*rows, *_state_rows(by_arm)]


def _state_rows(by_arm: dict[str, dict[int, dict]]) -> list[dict]:
    start = next(
        (
            run["states"]["0"]
            for arm in MAIN
            for run in by_arm.get(arm, {}).values()
            if "0" in run["states"]
        ),
        None,
    )
    if start is None:
        return []
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
            for place, before in start.items():
                here, there = (
                    np.mean([runs[s]["states"][step][place]["costs"] for s in both], axis=0)
                    for runs in (of_arm, other)
                )
                paired = paired_difference(here, there, before["k"], before["n"])
                name = f"{arm} less none, step {step}"
                rows.append(mean_row(paired, "k-variance difference", name, place))
    return rows


def write_summary(
    path: Path, subject: Subject, recipe: Recipe, sets: Sets, began: datetime
) -> None:
    """``summary.json`` of all runs that are written."""
    runs = read_runs(path)
    write_result(
        path.with_name("summary.json"),
        {
            "model": {"name": subject.name, "digest": subject.digest},
            "adapter": {"run": {"recipe": as_fields(recipe)}, "digest": None},
            "data": {
                "set": "harmful, boundary-safe, benign",
                "split": "train; states of what was not trained on, and of test",
                "digest": sets.digest,
            },
            "setting": None,
            "seed": sorted({run["seed"] for run in runs}),
            "rows": summary_rows(runs),
            **provenance(began),
            "seconds": sum(run["seconds"] for run in runs),  # also of earlier calls
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    began = datetime.now(UTC)
    warnings.filterwarnings("ignore", message="dialogue of .* tokens cut")
    path = Path(args.results) / tier() / "convergence" / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    recipe = base_recipe(args.steps)
    exact, precision = precision_of(recipe.model, exact=True), precision_of(recipe.model)
    subject = local_subject(recipe.model, exact)
    identity = subject.identity(exact)
    sets = reference_sets(subject.backend, Decoding(), identity, limit=TRAINED)
    dialogues = held_out(subject, identity)
    print({kind: len(some) for kind, some in dialogues.items()}, flush=True)
    for run in read_runs(path):
        if run["data"] != sets.digest or len(run["curve"]) != args.steps:
            sys.exit(
                f"{path} has runs on other data or of other steps in it: move it away, and all are "
                "made anew."
            )
    for seed in args.seeds:
        for arm in args.arms:
            if (arm, seed) in [(run["arm"], run["seed"]) for run in read_runs(path)]:
                continue
            run = train_arm(
                subject, recipe, ARMS[arm], seed, sets, dialogues, precision, arm in MAIN
            )
            with path.open("a", encoding="utf-8") as lines:
                row = {"arm": arm, "seed": seed, "data": sets.digest, **run}
                lines.write(json.dumps(row) + "\n")
            falls = [round(row["erase"], 3) for row in run["curve"][4::5]]
            print(arm, seed, f"{run['seconds']} s", falls, flush=True)
    write_summary(path, subject, recipe, sets, began)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
