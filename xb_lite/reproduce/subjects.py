"""The subject of a setting: trained, scaled, steered or prompted, with what is there already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from xb_lite.boundary.steering import refusal_direction, steered
from xb_lite.corpora import load_corpus
from xb_lite.files import cache_folder, locked
from xb_lite.intention.defenses import defense_named, prompted
from xb_lite.models.adapters import scale_adapter
from xb_lite.models.precision import Precision
from xb_lite.recipes import load_recipe
from xb_lite.replies.subjects import Subject, local_subject
from xb_lite.reproduce.manifest import Setting
from xb_lite.training.defense import train_defense
from xb_lite.training.official import Official, official_sets

LAYER = 14  # of the steering vector


@contextmanager
def subject_of(
    setting: Setting, seed: int | None, precision: Precision, edition: int = 1
) -> Iterator[Subject]:
    """A setting's subject; within the context alone if it is steered. What it learns from is of the
    ``edition`` of the book's prompts.

    An adapter that was trained or scaled before is taken from the cache.

    Raises:
        RecipeError: there is no recipe for the method and model.
        ValueError: there is no such prompt defense. And the errors of ``train``.
    """
    if setting.method == "none":
        yield local_subject(setting.model, precision)
    elif setting.method == "steering":
        subject = local_subject(setting.model, precision)
        prompts = [
            [row.prompt for row in load_corpus(kind, "train", edition)]
            for kind in ("harmful", "benign")
        ]
        vector = refusal_direction(subject.model, subject.tokenizer, *prompts, LAYER)
        with steered(subject.model, LAYER, vector, setting.strength):
            yield replace(
                subject,
                defense=setting.defense(),
                method="steering",
                strength=setting.strength,
            )
    elif setting.trained:
        if setting.prompt:
            defense_named(setting.prompt)  # known before minutes of training
        subject = local_subject(setting.model, precision, trained_adapter(setting, seed, edition))
        yield prompted(subject, setting.prompt) if setting.prompt else subject
    else:
        yield prompted(local_subject(setting.model, precision), setting.method)


def trained_adapter(setting: Setting, seed: int, edition: int = 1) -> Path:
    """The folder of a setting's adapter: in the cache, from which it is taken if it was trained or
    scaled before. Errors as of ``subject_of``."""
    adapters = cache_folder() / "adapters" / setting.model
    data = {}
    if setting.data:  # in an order of the seed's: the official one is the same for all
        adapters /= setting.data
        data = {"sets": official_sets(Official(order="seeded"))}
    setting = replace(setting, prompt=None)
    whole = replace(setting, strength=None)
    folder = adapters / whole.defense(seed)
    recipe = load_recipe(setting.recipe, **setting.changes)
    # Settings that differ in strength have one adapter, and another worker may be at its training.
    with locked(folder, "training"):
        train_defense(recipe, folder, seed=seed, edition=edition, **data)
        if setting.strength is None:
            return folder
        return scale_adapter(folder, setting.strength, adapters / setting.defense(seed))
