"""The first cell of every notebook: where am I, how much may I compute, with which model.

``XB_PROFILE`` sets how much a notebook does: ``smoke`` (CI), ``quick`` (a reader, from under one to
about ten minutes a chapter on two CPU cores; the default) or ``full``. ``XB_MODEL`` sets the model
that the chapters work on: a name, a folder or a hub id for ``load_model``.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeVar

import torch
import transformers

from xb_lite.figures import use_style
from xb_lite.models.cached import DEFAULT
from xb_lite.models.loading import ALIGNED, precision_of, without_place
from xb_lite.models.precision import Precision

PROFILES = ("smoke", "quick", "full")
# Ungated, and small enough for the machine's memory with gradients.
MODELS = {
    "cpu": DEFAULT,
    "t4": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "a100": "Qwen/Qwen2.5-7B-Instruct",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """What ``start`` found. ``tier`` is ``cpu``, ``t4`` or ``a100``, the columns of the tables;
    ``model`` is the name of the reader's model, and ``precision`` its precision."""

    profile: str
    tier: str
    model: str
    precision: Precision

    @property
    def aligned(self) -> str:
        """The model that refuses plain harmful requests: of the default model a version that was
        taught to, of any other itself."""
        return ALIGNED if self.model == DEFAULT else self.model

    @property
    def is_default(self) -> bool:
        """Whether the book's own results are of the reader's model."""
        return self.model == DEFAULT

    def pick(self, *, smoke: T, quick: T, full: T | None = None) -> T:
        """The value for the current profile; ``full`` is as ``quick`` where it is not given."""
        values = {"smoke": smoke, "quick": quick, "full": quick if full is None else full}
        return values[self.profile]

    def __str__(self) -> str:
        versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "xb-lite"))
        return (
            f"profile {self.profile}, tier {self.tier}, {without_place(self.model)}\n"
            f"{self.precision}\n"
            f"Python {platform.python_version()}, {versions}"
        )


def start(model: str | None = None) -> Session:
    """Set the figure style, choose profile, model and precision, and print them.

    Args:
        model: for ``load_model``; default: ``XB_MODEL``, else that of the machine's tier
            (``MODELS``).

    Raises:
        ValueError: ``XB_PROFILE`` is not a profile.
    """
    profile = os.environ.get("XB_PROFILE", "quick")
    if profile not in PROFILES:
        raise ValueError(f"XB_PROFILE is {profile!r}; it must be one of {', '.join(PROFILES)}.")
    use_style()
    transformers.utils.logging.disable_progress_bar()  # loading takes a second here
    here = tier()
    name = model or os.environ.get("XB_MODEL") or MODELS[here]
    session = Session(profile, here, name, precision_of(name))
    print(session)
    if not session.is_default:
        print(f"The text is about {DEFAULT}: XB_MODEL={DEFAULT} keeps it here, too.")
    return session


def tier() -> str:
    """``"cpu"``, ``"t4"`` or ``"a100"``, by what is on this machine."""
    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory
    return "t4" if memory < 24e9 else "a100"
