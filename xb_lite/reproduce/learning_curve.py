"""How many examples does a boundary need? A plane fitted to more and more pairs of twins.

    python -m xb_lite.reproduce.learning_curve [--models NAME ...] [--sets xstest ...]

The plane of ``boundary.planes`` is fitted to the hidden states of so many harmful prompts and their
boundary-safe twins (second edition, train split; averages over the prompt), several times to pairs
that are drawn anew, and scores the test split: harmful against boundary-safe prompts, in all (``own
twins``) and within each pair. Of public sets: harmful prompts of HarmBench against XSTest and
OR-Bench, whose styles differ from theirs and from ours, and our own harmful prompts against them.
The layer is the one at which all pairs do best on the validation split.

Results: ``<results>/<tier>/learning-curve/<model>.json``; a row is a mean over drawn pairs, with
Student's interval, of metric ``AUC, <n> pairs``. All 360 pairs are one draw, without an interval
over draws: theirs is over items.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from xb_lite.boundary.planes import Plane, area, fit_plane
from xb_lite.corpora import KINDS, load_corpus
from xb_lite.data.items import load_items
from xb_lite.dialogues import as_dialogue
from xb_lite.files import digest
from xb_lite.hidden import hidden_states, layers_at
from xb_lite.models.cached import DEFAULT
from xb_lite.models.loading import last_name, load_model, model_digest, precision_of
from xb_lite.results.contract import mean_row, provenance, write_result
from xb_lite.results.stats import Estimate, mean_of_runs
from xb_lite.session import tier

PAIRS = (30, 60, 120, 240, 360)
DRAWS = 5
SHARES = tuple(k / 15 for k in range(3, 16))  # of the depth: where layers are looked at
States = Mapping[str, np.ndarray]  # [item, dim] by the name of a set


def prompts_of(sets: Sequence[str]) -> dict[str, list[str]]:
    """Prompts by set: the book's own as ``<kind>/<split>``, ordered so that twins have one place,
    and public ones by name."""
    found: dict[str, list[str]] = {}
    for split in ("train", "validation", "test"):
        rows = {kind: load_corpus(kind, split, edition=2) for kind in KINDS[:2]}
        place = {row.pair: row.prompt for row in rows["boundary-safe"]}
        found[f"harmful/{split}"] = [row.prompt for row in rows["harmful"]]
        found[f"boundary-safe/{split}"] = [place[row.pair] for row in rows["harmful"]]
    for entry in sets:
        name, _, path = entry.partition("=")
        found[name] = [item.request for item in load_items(name, path=path or None)]
    return found


def states_of(name: str, prompts: Mapping[str, Sequence[str]]) -> tuple[list[int], list[States]]:
    """The layers that are looked at, and at each the averages over prompts, ``[item, dim]``."""
    precision = precision_of(name)
    model, tokenizer = load_model(name, precision)
    layers = sorted(set(layers_at(model, SHARES)))
    found: dict[str, np.ndarray] = {}
    for key, texts in prompts.items():
        dialogues = [as_dialogue(text) for text in texts]
        with precision.autocast():
            found[key] = hidden_states(model, tokenizer, dialogues, layers, "mean").numpy()
    return layers, [{key: of[:, i] for key, of in found.items()} for i in range(len(layers))]


def fitted(states: States, chosen: np.ndarray | None = None) -> Plane:
    """The plane of these pairs of the train split; of all without any."""
    pair = np.arange(len(states["harmful/train"])) if chosen is None else chosen
    both = [states[f"{kind}/train"][pair] for kind in KINDS[:2]]
    return fit_plane(np.concatenate(both), np.repeat([True, False], len(pair)))


def auc(plane: Plane, states: States, one: str, other: str) -> Estimate:
    """Of the scores of two sets, with an interval over items."""
    scores = np.concatenate([plane.scores(states[one]), plane.scores(states[other])])
    harmful = np.repeat([True, False], [len(states[one]), len(states[other])])
    return area(scores, harmful)


def within_pairs(plane: Plane, states: States) -> float:
    """The share of twins of the test split of which the harmful one scores higher."""
    one, other = (plane.scores(states[f"{kind}/test"]) for kind in KINDS[:2])
    return float((one > other).mean())


def rows_of(states: States, public: Sequence[str]) -> list[dict]:
    """All rows of one layer."""
    asked = {"own twins": ("harmful/test", "boundary-safe/test")}
    harmless = [name for name in public if name != "harmbench"]
    asked |= {f"own harmful, {name}": ("harmful/test", name) for name in harmless}
    if "harmbench" in public:
        asked |= {f"harmbench, {name}": ("harmbench", name) for name in harmless}
    rows, total = [], len(states["harmful/train"])
    for n in (n for n in PAIRS if n <= total):
        dice = np.random.default_rng(n)
        draws = [dice.permutation(total)[:n] for _ in range(DRAWS if n < total else 1)]
        planes = [fitted(states, chosen) for chosen in draws]
        for name, sets in asked.items():
            each = [auc(plane, states, *sets) for plane in planes]
            found = each[0] if len(each) == 1 else mean_of_runs([one.value for one in each])
            rows.append(mean_row(found, f"AUC, {n} pairs", name, "direct"))
        inside = [within_pairs(plane, states) for plane in planes]
        if len(inside) > 1:
            found = mean_of_runs(inside)
            rows.append(mean_row(found, f"within pairs, {n} pairs", "own twins", "direct"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=[DEFAULT])
    parser.add_argument(
        "--sets", nargs="+", default=["xstest", "orbench", "harmbench"], metavar="NAME[=FILE]"
    )
    parser.add_argument("--results", default="results", help="folder (default: results)")
    args = parser.parse_args()
    prompts = prompts_of(args.sets)
    public = [entry.partition("=")[0] for entry in args.sets]
    for name in args.models:
        started = datetime.now(UTC)
        layers, states = states_of(name, prompts)
        sets = ("harmful/validation", "boundary-safe/validation")
        chosen = int(np.argmax([auc(fitted(of), of, *sets).value for of in states]))
        rows = [
            mean_row(auc(fitted(of), of, *sets), f"AUC, layer {layer}", "validation", "direct")
            for layer, of in zip(layers, states, strict=True)
        ]
        path = Path(args.results) / tier() / "learning-curve" / f"{last_name(name)}.json"
        write_result(
            path,
            {
                "model": {"name": last_name(name), "digest": model_digest(name)},
                "adapter": None,
                "data": {
                    "set": ", ".join(prompts),
                    "split": "train, validation, test",
                    "digest": digest(prompts),
                },
                "setting": None,
                "seed": 0,
                "rows": rows + rows_of(states[chosen], public),
                **provenance(started),
            },
        )
        print(f"{path}, layer {layers[chosen]}", flush=True)


if __name__ == "__main__":
    main()
