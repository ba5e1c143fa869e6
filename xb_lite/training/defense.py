"""A defense trained by its recipe on the book's own prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import PartialState

from xb_lite.files import cache_folder
from xb_lite.models.loading import ALIGNED_360, precision_of
from xb_lite.recipes import Budget, run_name
from xb_lite.recipes.kinds import Alignment
from xb_lite.replies.subjects import local_subject
from xb_lite.replies.types import Decoding
from xb_lite.training.alignment import alignment_sets
from xb_lite.training.checks import check_fit, check_place, check_seed
from xb_lite.training.controls import check_edition
from xb_lite.training.lora import check_same
from xb_lite.training.official import OfficialSets
from xb_lite.training.run import Trained, identity, train
from xb_lite.training.sets import Sets, reference_sets


def train_defense(
    recipe: Budget,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    on_step: Callable[[dict[str, float]], None] | None = None,
    resume: bool = True,
    sets: Sets | OfficialSets | None = None,
    edition: int | None = None,
) -> Trained:
    """Train by a recipe on the book's own prompts, answered by the recipe's model.

    With ``sets``, from ``reference_sets`` of that model or ``official_sets``, on those; ``edition``
    is as there, without one ``edition_for`` the model. Other args and errors as in ``train``, and
    those of ``load_model`` and ``reference_sets``.
    """
    check_seed(seed)
    edition = edition or edition_for(recipe.model)
    if sets is None:
        check_edition(recipe, edition)
    exact, precision = precision_of(recipe.model, exact=True), precision_of(recipe.model)
    # All that can be known is checked before minutes of asking.
    check_place(recipe, Path(folder), resume)
    state = PartialState(cpu=exact.device == "cpu")  # it says which GPU is this process's
    subject = local_subject(recipe.model, exact)
    check_fit(recipe, subject.model)
    if resume:
        check_same(Path(folder), identity(recipe, seed, subject.digest, precision))
    # Of several processes one asks, and the others find its replies in the cache.
    if sets is None:
        with state.main_process_first():
            of = subject.identity(exact)
            if isinstance(recipe, Alignment):
                sets = alignment_sets(subject.backend, of)
            else:
                sets = reference_sets(subject.backend, Decoding(), of, edition=edition)
    return train(
        recipe,
        subject.model,
        subject.tokenizer,
        sets,
        folder,
        precision,
        seed=seed,
        model_digest=subject.digest,
        on_step=on_step,
        resume=resume,
    )


def edition_for(model: str) -> int:
    """The edition of the book's prompts from which a defense of a model learns if none is named:
    the second for the model that was aligned on it, as the protocol has it, else the first."""
    return 2 if model == ALIGNED_360 else 1


def adapter_folder(recipe: str, seed: int, changes: Mapping[str, object] | None = None) -> Path:
    """Where ``python -m xb_lite train`` puts an adapter: in the cache, by recipe, changes of its
    fields and seed."""
    # Not its stem: names of recipes have dots in them. And hub ids have slashes.
    name = Path(recipe).name.removesuffix(".json")
    name = (run_name(name, changes, recipe) if changes else name).replace("/", "_")
    return cache_folder() / "adapters" / f"{name}-{seed}"
