"""What the book measured: a few plans, and the settings that were evaluated by each.

A plan says what is asked, how replies are drawn and who judges them; a setting is a model with a
defense. ``manifest.json`` has them all, and every path follows from them by ``path_of``. Results
that no plan can describe, as of a convergence study, are named with the script that makes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from xb_lite.data.items import ATTACKS, SETS, Item, attacked, plan, spread
from xb_lite.recipes import METHODS, own_recipe, run_name

MANIFEST = Path(__file__).with_name("manifest.json")
TIERS = ("cpu", "gpu", "a100", "multi")  # gpu: one card that was at hand
LARGE = ("a100", "multi")  # one card of 80 GB, and several
EVERY = 4  # one request in so many of a public set is for validation


class ManifestError(ValueError):
    """The manifest has something in it that cannot be followed; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked of every setting of it, and how.

    Attributes:
        name: in the manifest.
        folder: of its results.
        tier: one of ``TIERS``: where it is run. What is in ``LARGE`` was not run here: it is a
            plan for those who have the cards, and counts as missing only where it is asked for.
        edition: of the book's own sets, of which the defenses learn and by which they are measured;
            of the second they learn with the written answers.
        split: of the book's own sets, and of the public ones in ``public``.
        sets, attacks, limit: as in ``data.plan``.
        public: public sets of which one request in ``EVERY`` is for validation and the others for
            the test, so that nothing is reported on what was chosen by; each plainly and, if
            harmful, prefilled.
        public_limit: at most so many replies of each of ``public``, under each attack.
        as_published: of public sets, as in ``data.load_items``; the first results were not.
        harmless_prefilled: harmless prompts are asked with the prefill, too: a defense that breaks
            at the prefill itself, whatever was asked, must be seen to.
        max_new_tokens, judges: of the replies; names as in ``judges_named``.
        exact: fp32, so that a reply does not depend on its batch; else the machine's fastest.
        capability: quiz and passages are measured.
        tasks: of lm-evaluation-harness, measured as well.
        restated: rows for answers that begin with the intention.
        by_target: rows of attack success a target besides those a dialogue.
        by_style: rows of the book's scripts by their style besides those of all.
        digest: of the items, as results have it.
        open: its results are still being made, and some may be missing.
    """

    name: str
    folder: str
    tier: str
    edition: int = 1
    split: str = "test"
    sets: Sequence[str] = SETS
    attacks: Sequence[str] = ATTACKS
    limit: int | None = None
    public: Sequence[str] = ()
    public_limit: int | None = None
    as_published: bool = True
    harmless_prefilled: bool = False
    max_new_tokens: int = 64
    judges: Sequence[str] = ("words", "service")
    exact: bool = True
    capability: bool = True
    tasks: Sequence[str] = ()
    restated: bool = False
    by_target: bool = False
    by_style: bool = False
    digest: str | None = None
    open: bool = False


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model with a defense, evaluated by a plan.

    Attributes:
        plan: its name.
        model: for ``load_model``.
        method: ``none``, ``steering``, one of ``recipes.METHODS``, or of ``intention.DEFENSES``.
        changes: of the recipe that comes with the package for the method and model.
        strength: of a trained adapter or of steering; None for an adapter as it was trained.
        match: in place of a strength, the share of prefilled attacks on validation items that gets
            through at it (see ``matching``).
        prompt: a prompt defense in front of a trained one, of ``intention.DEFENSES``.
        seeds: of the training; none for what is not trained.
        data: what it is trained on: the book's own prompts, or ``"official"``.
    """

    plan: str
    model: str
    method: str = "none"
    changes: Mapping[str, object] = field(default_factory=dict)
    strength: float | None = None
    match: float | None = None
    prompt: str | None = None
    seeds: Sequence[int] = ()
    data: str | None = None

    @property
    def recipe(self) -> str | None:
        """The recipe that it is trained by, before its changes; None for what is not trained."""
        return own_recipe(self.method, self.model) if self.trained else None

    @property
    def trained(self) -> bool:
        return self.method in METHODS

    @property
    def scaled(self) -> bool:
        """Whether it has a strength: an adapter, or a direction that is added."""
        return self.trained or self.method == "steering"

    def defense(self, seed: int | None = None) -> str:
        """The defense's name in paths and results, e.g. ``"x-boundary,steps=300,strength=0.5-2"``.

        Raises:
            RecipeError: there is no recipe for the method and model.
        """
        if not self.scaled:
            return self.method
        changes = dict(self.changes)
        for name in ("strength", "match"):
            if (value := getattr(self, name)) is not None:
                changes[name] = value
        name = run_name(self.method, changes, self.recipe)
        name = name if seed is None else f"{name}-{seed}"
        return f"{name}+{self.prompt}" if self.prompt else name


@dataclass(frozen=True, kw_only=True)
class Script:
    """A result that a module or a script makes, with the words of its command, in which
    ``{results}`` stands for the folder of results. ``open`` as of a plan."""

    path: str
    command: Sequence[str]
    tier: str = "cpu"
    open: bool = False


@dataclass(frozen=True)
class Manifest:
    """Plans by name, settings and scripts, in the order in which they are made."""

    plans: Mapping[str, Plan]
    settings: Sequence[Setting]
    scripts: Sequence[Script]


def load_manifest(path: str | os.PathLike[str] = MANIFEST) -> Manifest:
    """The book's manifest, or one from a file of your own.

    Raises:
        ManifestError: the file is not there or no manifest, a plan or setting has a field that is
            missing or unknown, a setting's plan is not there, or two settings have one path.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        plans = {name: Plan(name=name, **fields) for name, fields in found["plans"].items()}
        settings = [Setting(**fields) for fields in found["settings"]]
        scripts = [Script(**fields) for fields in found.get("scripts", [])]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ManifestError(f"{path} is no manifest: {error}") from error
    manifest = Manifest(plans, settings, scripts)
    seen: set[str] = set()
    for setting in settings:
        if setting.data not in (None, "official"):
            raise ManifestError(f"{path}: data is {setting.data!r}; it is official, or not there.")
        if setting.plan not in plans:
            raise ManifestError(f"{path}: there is no plan {setting.plan!r}.")
        if setting.match is not None and (setting.strength is not None or not setting.scaled):
            raise ManifestError(f"{path}: {setting} has a match, but nothing to scale to it.")
        if setting.prompt and not setting.trained:
            raise ManifestError(f"{path}: {setting} has a prompt, but nothing trained behind it.")
        if setting.trained != bool(setting.seeds):
            raise ManifestError(f"{path}: {setting} needs seeds if it is trained, and only then.")
        for seed in setting.seeds or (None,):
            name = path_of(plans[setting.plan], setting, seed)
            if name in seen:
                raise ManifestError(f"{path}: two settings have the path {name}.")
            seen.add(name)
    return manifest


def path_of(plan: Plan, setting: Setting, seed: int | None = None) -> str:
    """Where a result lies in ``results/``: the one place that says so.

    Example:
        >>> plan = Plan(name="test", folder="cpu/test", tier="cpu")
        >>> path_of(plan, Setting(plan="test", model="smollm2-135m", method="ia"))
        'cpu/test/smollm2-135m/ia.json'
    """
    return f"{plan.folder}/{Path(setting.model).name}/{setting.defense(seed)}.json"


def items_of(of: Plan, files: Mapping[str, str] | None = None) -> list[Item]:
    """All items of a plan.

    Args:
        files: your copies of public sets, by name; others are fetched.

    Raises:
        BenchmarkError: a public set cannot be had.
    """
    copies = {name: f"{name}={path}" for name, path in (files or {}).items()}
    names = [copies.get(name, name) for name in of.sets]
    items = plan(names, of.attacks, of.limit, of.split, of.edition, of.as_published)
    for name in of.public:
        asked = plan([copies.get(name, name)], ["prefill"], as_published=of.as_published)
        for _, group in groupby(asked, key=lambda item: item.attack):
            items += _part(list(group), of)
    if of.harmless_prefilled:
        harmless = [item for item in items if item.kind != "harmful" and item.attack == "direct"]
        items += attacked(harmless, "prefill")
    return items


def _part(group: list[Item], of: Plan) -> list[Item]:
    """The plan's split of a public set's items under one attack."""
    # By request, of which some sets have several dialogues each.
    place = {name: n for n, name in enumerate(dict.fromkeys(item.request for item in group))}
    chosen = [i for i in group if (place[i.request] % EVERY == 0) == (of.split != "test")]
    most = max(len(item.turns) for item in chosen)
    return spread(chosen, None if of.public_limit is None else max(1, of.public_limit // most))
