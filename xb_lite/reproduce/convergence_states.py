"""What the convergence study looks at while a model is trained: states of fixed dialogues.

``states``, at a few steps: how far spread the states of each kind are that no arm was trained on,
how far apart two samples of them, how coverable. ``separation``, every two steps and later every
twenty: margin, k-variance and their ratio of harmful and boundary-safe states, of training and of
held-out items, with shuffled labels and a random split as controls (06_convergence). ``success``,
every two steps at first: how many attacks of the validation split get through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from xb_lite.boundary.planes import fit_plane
from xb_lite.convergence.bounds import coverings, diameter
from xb_lite.convergence.margins import margin_ratio, random_halves, shuffled_labels
from xb_lite.convergence.transport import matching_costs
from xb_lite.corpora import KINDS
from xb_lite.data.items import attacked, load_items
from xb_lite.dialogues import Dialogue, as_dialogue, as_turns
from xb_lite.hidden import hidden_states
from xb_lite.judges.named import judges_named
from xb_lite.judges.strings import X_BOUNDARY
from xb_lite.models.precision import Precision
from xb_lite.replies.cache import ask
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding

# Prompts of each kind of the train split that are trained on, by edition, None: all. The others and
# the test split are held out.
TRAINED = {1: 36, 2: None}
HELD_OUT = 48  # items of each kind whose states are looked at
PARTS = ("training", "held-out")
K = 3  # of the k-variance; a sixteenth of the items
SPLITS = 200
HALVES = 20  # splits of a class into halves, for the ratio
BALLS = (1, 2, 4, 8, 16)
SIZES = (1, 2, 4, 8, 16)  # k, for the slope of the k-variance
STATES_AT = (0, 8, 20, 40)  # 8: shortly before the erase term falls
LAST_ALONE = 40  # of the controls
OFTEN_TO, OFTEN, LATER = 40, 2, 20  # steps between two looks at the separation
LOOKED_AT = 24  # of the items of a kind, for the separation
# Attacks: most fall silent within the first steps. Later every ``LATER`` steps, too.
SUCCESS_AT = (*range(2, 21, 2), 30, 40)
ASKED, SAID = 20, Decoding(32)

Dialogues = Mapping[str, list[Dialogue]]


def dialogues_of(
    subject: Subject, identity: dict[str, str], edition: int
) -> dict[str, dict[str, list]]:
    """Dialogues by part and kind, with the subject's own replies, without those that refuse: of
    what the arms are trained on, and of what nothing is trained on. Harmful and boundary-safe ones
    begin alike, by the prefill."""
    found: dict[str, dict[str, list]] = {part: {} for part in PARTS}
    for kind in KINDS:
        train, test = (load_items(kind, split, edition=edition) for split in ("train", "test"))
        last = TRAINED[edition] or len(train)
        # A few more than are kept: some are refused.
        parts = (train[:last][: 2 * HELD_OUT], (train[last:] + test)[: 2 * HELD_OUT])
        for part, items in zip(PARTS, parts, strict=True):
            some = items if kind == "benign" else attacked(items, "prefill")
            replies = ask(subject.backend, some, Decoding(), subject=identity)
            said = [
                as_turns(item.turns, [turns[-1].text])
                for item, turns in zip(some, replies, strict=True)
                if not X_BOUNDARY.refuses(turns[-1].text)
            ]
            found[part][kind] = said[:HELD_OUT]
    return found


def attacks_of(subject: Subject, precision: Precision, edition: int) -> Callable[[], dict]:
    """Asks the subject's model, as it is when called, harmful prompts of the validation split after
    the prefill: ``k`` of ``n`` are served by the service judge."""
    items = attacked(load_items("harmful", "validation", edition=edition)[:ASKED], "prefill")
    backend = LocalBackend(subject.model, subject.tokenizer, precision=precision)
    (judge,) = judges_named(["service"])

    def success() -> dict[str, int]:
        asked = [as_dialogue(item.turns[0]) for item in items]
        replies = backend.reply(asked, SAID, items[0].prefill)
        labels = judge([item.request for item in items], [reply.text for reply in replies])
        return {"k": labels.count("complied"), "n": len(items)}

    return success


@dataclass(frozen=True)
class Watch:
    """Looks at a model in training: called with a step and the model, it gives what is written
    down of that step, by name.

    ``layers`` are counted from 0; ``main`` says whether the separation is looked at, and the states
    are reduced at all of ``STATES_AT``; ``first`` whether those of the start, which are the same in
    all runs from B = 0, are. ``success`` counts the attacks that get through, see ``attacks_of``.
    """

    tokenizer: PreTrainedTokenizerBase
    dialogues: Mapping[str, Dialogues]
    layers: Sequence[int]
    steps: int
    precision: Precision
    main: bool
    first: bool
    success: Callable[[], dict]

    def __call__(self, step: int, model: nn.Module) -> dict[str, object]:
        full = step in (STATES_AT if self.main else (LAST_ALONE,)) and (step > 0 or self.first)
        found: dict[str, object] = {}
        later = step > OFTEN_TO and step % LATER == 0 or step == self.steps
        if step in SUCCESS_AT or later:
            found["success"] = self.success()
        often = self.main and (later or step <= OFTEN_TO and step % OFTEN == 0)
        if not (full or often):
            return found
        states = {
            part: _states(
                model,
                self.tokenizer,
                of if full else _looked_at(of),
                self.layers,
                self.precision,
            )
            for part, of in self.dialogues.items()
        }
        if full:
            found["states"] = reduced(states["held-out"], self.layers)
        if often:
            some = {part: _looked_at(of) for part, of in states.items()}
            found["separation"] = separations(some, self.layers)
        return found


def _looked_at(of: Mapping[str, Sequence]) -> dict[str, Sequence]:
    """What the separation is taken of: the first dialogues, or states, of two kinds."""
    return {kind: of[kind][:LOOKED_AT] for kind in KINDS[:2]}


@torch.no_grad()
def _states(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Dialogues,
    layers: Sequence[int],
    precision: Precision,
) -> dict[str, np.ndarray]:
    """The mean response state of each dialogue, ``[item, layer, dim]``, by kind."""
    with precision.autocast():
        return {
            kind: hidden_states(model, tokenizer, some, layers, "mean", "response", max_length=64)
            .double()
            .numpy()
            for kind, some in dialogues.items()
        }


def reduced(states: Mapping[str, np.ndarray], layers: Sequence[int]) -> dict[str, dict]:
    """How far spread, how far apart two samples of ``K`` are, how coverable, by ``kind layer``.
    Splits are the same in all runs, so they pair."""
    out: dict[str, dict[str, object]] = {}
    for kind, of_kind in states.items():
        for place, layer in enumerate(layers):
            sample = of_kind[:, place]
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
    return out


def separations(states: Mapping[str, Mapping[str, np.ndarray]], layers: Sequence[int]) -> dict:
    """Margin, k-variance and ratio of harmful against boundary-safe states, and radius of four
    balls over diameter of either, by ``part layer``; with the labels shuffled and with the harmful
    ones split at random as ``part layer, shuffled`` and ``part layer, random split``.

    The plane is that of ``fit_plane`` on the training items, the same for both parts; of a control
    it is fitted to the control's own labels.
    """
    out: dict[str, dict[str, float]] = {}
    for place, layer in enumerate(layers):
        planes = {}
        for part in PARTS:
            kinds = [states[part][kind][:, place] for kind in KINDS[:2]]
            features = np.concatenate(kinds)
            harmful = np.repeat([True, False], [len(some) for some in kinds])
            places, half = random_halves(harmful, True)
            cases = {
                "": (features, harmful),
                ", shuffled": (features, shuffled_labels(harmful)),
                ", random split": (features[places], half),
            }
            for case, (some, labels) in cases.items():
                if part == "training":
                    planes[case] = fit_plane(some, labels)
                scores = planes[case].scores(some)
                found = margin_ratio(np.where(labels, scores, -scores), some, labels, splits=HALVES)
                names = ("margin", "k_variance", "value", "low", "high", "n")
                out[f"{part} {layer}{case}"] = {n: _short(getattr(found, n)) for n in names}
            for kind, some in zip(KINDS[:2], kinds, strict=True):
                radius = coverings(some, 4)[-1].upper / diameter(some)
                out[f"{part} {layer}"][f"radius by diameter, {kind}"] = _short(radius)
    return out


def _short(number: float) -> float:
    return float(f"{number:.5g}")
