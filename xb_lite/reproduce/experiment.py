"""The experiment of ``book/protocol.md``: its outcomes, its five comparisons, and what is missing.

Tables are heads and rows for ``html_table``. They are of what was run so far: a cell without a
result says so. Used in 05_training and in the report on X-Boundary and circuit breakers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xb_lite.evaluation.comparison import item_rates
from xb_lite.evaluation.seeds import finding, gap_over_seeds, gap_over_seeds_and_items
from xb_lite.evaluation.tradeoff import Place, Said
from xb_lite.models.loading import ALIGNED_360
from xb_lite.reproduce.arms import (
    ARMS,
    EVERY,
    FIRST_RATE,
    FURTHER,
    LEARNING_RATES,
    LEVEL,
    OWN,
    SAFE,
    TRAINED,
    UNDEFENDED,
    Experiment,
    Run,
    is_whole,
)
from xb_lite.results.frames import find, published
from xb_lite.results.logs import read_rows
from xb_lite.results.stats import Estimate, mean_of_runs

LEAST = 3  # seeds before anything is said of an effect
NOT_RUN = "not run"
REPLIES = "cpu/harmless-replies/{model}.jsonl"
OUTCOMES: dict[str, tuple[str, Sequence[str], str]] = {  # rate, sets, attack
    "over-refusal, pooled": ("orr", SAFE, "direct"),
    "own boundary-safe": ("orr", SAFE[:1], "direct"),
    "XSTest": ("orr", SAFE[1:2], "direct"),
    "OR-Bench": ("orr", SAFE[2:], "direct"),
    "refused, pooled": ("refused", SAFE, "direct"),
    "gibberish, pooled": ("gibberish", SAFE, "direct"),
    "over-refusal, prefilled": ("orr", SAFE, "prefill"),
    "benign, plain": ("orr", ["benign"], "direct"),
    "benign, prefilled": ("orr", ["benign"], "prefill"),
    "ASR, plain": ("asr", ["harmful"], "direct"),
    "ASR, prefilled": ("asr", ["harmful"], "prefill"),
    "ASR, other prefill": ("asr", ["harmful"], "other-prefill"),
    "ASR, wrappers": ("asr", ["harmful"], "wrapper"),
    "ASR, scripts": ("asr-last-turn", ["multi-turn"], "multi-turn"),
}
PRIMARY, SUCCESS = "over-refusal, pooled", "ASR, prefilled"
DIFFERENCE = ("points", "seeds", "over seeds,\n95 %", "over seeds and\nitems, 95 %")
COMPARED = ("points", "seeds", "over seeds,\n95 and 99 %", "over seeds and\nitems, 95 and 99 %")
COMPARISONS = (
    ("XB as coded", "CB"),
    ("XB refusal", "CB"),
    ("XB as described", "CB"),
    ("XB as coded", "CB + data"),
    ("CB + data", "CB"),
)


@dataclass(frozen=True)
class Comparison:
    """Over-refusal of one arm minus another's, of the ``seeds`` that both have.

    Intervals at 95 and at 99 % are over seeds (Student), and over seeds and items.
    ``matched`` is whether all these adapters reach the level of success that they were scaled to;
    None at full strength, or where their success on validation items is not there.
    """

    one: str
    other: str
    seeds: tuple[int, ...]
    over_seeds: Estimate
    over_seeds_99: Estimate
    at_95: Estimate
    at_99: Estimate
    matched: bool | None

    @property
    def effect(self) -> str:
        """``finding``, or why nothing is said."""
        if self.matched is not True:
            return "success not matched" if self.matched is None else "not at equal success"
        if len(self.seeds) < LEAST:
            return f"too few seeds ({len(self.seeds)})"
        return finding(self.at_95, self.at_99)


def outcome(
    experiment: Experiment,
    arm: str,
    name: str,
    match: float | None = LEVEL,
    judge: str = "service",
) -> Estimate | None:
    """One of ``OUTCOMES`` of an arm: the mean over its seeds with Student's interval; of one run
    its rate, with an interval over items; None of none."""
    metric, sets, attack = OUTCOMES[name]
    return _over(
        [run.rate(metric, sets, attack, judge) for run in experiment.runs(arm, match).values()]
    )


def _over(runs: Sequence[Estimate], most: float = 1.0) -> Estimate | None:
    if len(runs) < 2:
        return runs[0] if runs else None
    found = mean_of_runs([run.value for run in runs])
    return Estimate(found.value, found.n, max(0.0, found.low), min(most, found.high))


def compare(
    experiment: Experiment,
    one: str,
    other: str,
    match: float | None = LEVEL,
    name: str = PRIMARY,
    judge: str = "service",
) -> Comparison | None:
    """Two arms on the same items, seed by seed; None where they have no seed in common. The
    undefended model, which has no seed, is the same beside every seed.

    Raises:
        ValueError: a log is not there, or two are not of the same items.
    """
    arms = [experiment.runs(arm, match) for arm in (one, other)]
    if other == UNDEFENDED:
        arms[1] = {seed: run for seed in arms[0] for run in arms[1].values()}
    seeds = tuple(seed for seed in arms[0] if seed in arms[1])
    if not seeds:
        return None
    rates = rates_by_seed(arms, seeds, name, judge)
    reached = [
        None if match is None else experiment.reaches(arm, seed, match)
        for arm in (one, other)
        for seed in seeds
    ]
    return Comparison(
        one,
        other,
        seeds,
        gap_over_seeds(*rates),
        gap_over_seeds(*rates, level=0.99),
        gap_over_seeds_and_items(*rates),
        gap_over_seeds_and_items(*rates, level=0.99),
        False if False in reached else None if None in reached else True,
    )


def rates_by_seed(
    arms: Sequence[Mapping[int | None, Run]],
    seeds: Sequence[int | None],
    name: str,
    judge: str = "service",
) -> list[list[dict[str, float]]]:
    """``item_rates`` of one of ``OUTCOMES``, of each arm's runs one for each seed.

    Raises:
        ValueError: as in ``compare``.
    """
    metric, sets, attack = OUTCOMES[name]
    return [
        [item_rates([runs[seed].outcomes], metric, sets, attack, judge) for seed in seeds]
        for runs in arms
    ]


def outcome_table(
    experiment: Experiment, match: float | None = LEVEL, judge: str = "service"
) -> tuple[list[str], list[list[str]]]:
    """All outcomes by arm, in percent; by the service judge with quiz and perplexity."""
    rows = [["seeds", *(str(len(experiment.runs(arm, match))) for arm in ARMS)]]
    rows += [
        [name, *(percent(outcome(experiment, arm, name, match, judge)) for arm in ARMS)]
        for name in OUTCOMES
    ]
    if judge == "service":
        for name, metric, set_, form in (
            ("quiz, right", "accuracy", "quiz", percent),
            ("perplexity", "perplexity", "passages", _number),
        ):
            cells = []
            for arm in ARMS:
                runs = experiment.runs(arm, match).values()
                found = _over([find(run.result, metric, set=set_) for run in runs], np.inf)
                cells.append(form(found))
            rows.append([name, *cells])
    return ["%", *ARMS], rows


def short_table(
    experiment: Experiment, match: float | None = LEVEL
) -> tuple[list[str], list[list[str]]]:
    """A row an arm: attack success and over-refusal, pooled and by set. Below the arms stand the
    controls and baselines that were tested."""
    shown = (SUCCESS, *tuple(OUTCOMES)[:4])
    further = [arm for arm in FURTHER if experiment.runs(arm, match)]
    rows = [
        [
            arm,
            str(len(experiment.runs(arm, match))),
            *(percent(outcome(experiment, arm, name, match)) for name in shown),
        ]
        for arm in (*ARMS, *further)
    ]
    return ["arm", "seeds", "ASR,\nprefilled, %", "over-refusal,\npooled, %", *shown[2:]], rows


def comparison_table(
    experiment: Experiment, match: float | None = LEVEL, judge: str = "service"
) -> tuple[list[str], list[list[str]]]:
    """The five comparisons of pooled over-refusal, in points, and what may be said of each; at full
    strength, where success differs, nothing is."""
    rows = []
    for one, other in COMPARISONS:
        found = compare(experiment, one, other, match, judge=judge)
        cells = _difference(one, other, found)
        if found is not None:
            cells[3] += f"\n{_ends(found.at_99)}"
            if len(found.seeds) > 1:
                cells[2] += f"\n{_ends(found.over_seeds_99)}"
        rows.append([*cells, NOT_RUN if found is None else found.effect])
    return [*COMPARED, "effect"], rows


def difference_table(
    experiment: Experiment,
    pairs: Iterable[tuple[str, str]],
    name: str,
    match: float | None = LEVEL,
) -> tuple[list[str], list[list[str]]]:
    """One of ``OUTCOMES``, an arm minus another of each pair, in points by the service judge: what
    the five comparisons rest on, and no verdict."""
    rows = [
        _difference(one, other, compare(experiment, one, other, match, name))
        for one, other in pairs
    ]
    return list(DIFFERENCE), rows


def _difference(one: str, other: str, found: Comparison | None) -> list[str]:
    """The cells under ``DIFFERENCE``."""
    name = f"{one}\nminus {other}"  # on one line it pushes the verdict off the page
    if found is None:
        return [name, "0", NOT_RUN, NOT_RUN]
    seeds = points(found.over_seeds) if len(found.seeds) > 1 else "one seed"
    return [name, str(len(found.seeds)), seeds, points(found.at_95)]


def progress_table(
    experiment: Experiment, match: float = LEVEL
) -> tuple[list[str], list[list[str]]]:
    """A row an arm, control and baseline: its learning rate, which seeds are there, and at which
    strengths they reach the level of success; with a star that which does not."""
    rows = []
    for arm in (*TRAINED, *FURTHER):
        learning_rate = experiment.learning_rate(arm)
        known = experiment.fixed or experiment.chosen(arm)
        sweeps = {s: experiment.sweep(arm, learning_rate, s) for s in EVERY[arm].seeds}
        scaled = [seed for seed, sweep in sweeps.items() if is_whole(sweep, match)]
        tested, full = experiment.runs(arm, match), experiment.runs(arm, None)
        strengths = [
            f"{run.strength:g}" + "*" * (experiment.reaches(arm, seed, match) is False)
            for seed, run in tested.items()
        ]
        rows.append(
            [
                arm,
                f"{learning_rate:g}" + ("" if known else " (first)") if learning_rate else "none",
                _listed(scaled),
                _listed(tested),
                ", ".join(strengths) or "none",
                _listed(full),
            ]
        )
    matched = f"{100 * match:.0f} %"
    heads = ["arm", "learning\nrate", "seeds,\nvalidation", f"seeds, test\nat {matched}"]
    return [*heads, f"strengths\nat {matched}", "seeds, test,\nfull strength"], rows


def missing(experiment: Experiment, match: float = LEVEL) -> list[str]:
    """What of the protocol is not there yet, a sentence each; of a whole experiment none."""
    said = []
    if not experiment.runs(UNDEFENDED):
        said.append("The undefended model has not been tested.")
    unknown = [arm for arm in TRAINED if not (experiment.fixed or experiment.chosen(arm))]
    if unknown:
        rates = " and ".join(f"{learning_rate:g}" for learning_rate in LEARNING_RATES)
        said.append(
            f"The learning rate of {', '.join(unknown)} is not chosen yet: the rule needs seed 0 "
            f"on validation items with {rates}. Until then it is {FIRST_RATE:g}."
        )
    for words, level in ((f"at {100 * match:.0f} % success", match), ("at full strength", None)):
        if gaps := _gaps(experiment, TRAINED, level):
            said.append(f"No test {words} yet of {'; '.join(gaps)}.")
    if gaps := _gaps(experiment, FURTHER, match):
        said.append(
            f"No test at {100 * match:.0f} % success yet of these controls and baselines: "
            f"{'; '.join(gaps)}."
        )
    return said


def _gaps(experiment: Experiment, arms: Iterable[str], level: float | None) -> list[str]:
    """Arms with the seeds that are not tested, each in words; of what has no seed the name."""
    found = []
    for arm in arms:
        there = experiment.runs(arm, level)
        if lacking := [seed for seed in EVERY[arm].seeds if seed not in there]:
            found.append(arm if None in lacking else f"{arm} (seeds {_listed(lacking)})")
    return found


def read_replies(
    folder: str | os.PathLike[str] | None = None, model: str = ALIGNED_360
) -> dict[str, list[Said]]:
    """Replies to a few boundary-safe prompts by defense, as ``harmless_replies`` wrote them; none
    where there is no such file. Folder as in ``read_experiment``."""
    name = REPLIES.format(model=Path(model).name)
    if folder is None and OWN.is_dir():
        folder = OWN
    try:
        path = published(name) if folder is None else Path(folder) / name
    except ValueError:
        return {}
    found: dict[str, list[Said]] = {}
    for row in read_rows(path)[1:]:
        said = Said(row["prompt"], row["reply"], row["label"])
        found.setdefault(row["defense"], []).append(said)
    return found


def on_plane(experiment: Experiment, replies: Mapping[str, Sequence[Said]]) -> list[Place]:
    """Every adapter at its arm's learning rate, at each strength, for the element ``tradeoff``.

    Args:
        replies: by defense, from ``read_replies``.
    """
    return [
        Place(
            arm,
            seed,
            strength,
            run.success,
            run.over_refusal,
            tuple(replies.get(run.defense, ())),
        )
        for arm, seed, sweep in experiment.chosen_sweeps()
        for strength, run in sweep.items()
    ]


def percent(found: Estimate | None) -> str:
    """``"24 [18, 31]"``, in percent."""
    return NOT_RUN if found is None else _shown(found, "{:.0f}", 100)


def points(found: Estimate) -> str:
    """``"-3.1 [-8.0, +1.9]"``, in points."""
    return _shown(found, "{:+.1f}", 100)


def _number(found: Estimate | None) -> str:
    # On two lines, or it sets the width of its column.
    return NOT_RUN if found is None else _shown(found, "{:.3g}", 1).replace(" [", "\n[")


def _ends(found: Estimate) -> str:
    return f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _shown(found: Estimate, form: str, scale: float) -> str:
    value, low, high = (form.format(scale * x) for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _listed(seeds: Iterable[int | None]) -> str:
    """What has no seed is one run."""
    return ", ".join("one" if seed is None else str(seed) for seed in seeds) or "none"
