"""The first cell of every notebook: where am I, how much may I compute, and in what numbers.

``XB_PROFILE`` sets how much a notebook does: ``smoke`` (CI), ``quick`` (a reader, about two minutes
a chapter on two CPU cores; the default) or ``full``.
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
from xb_lite.models.loading import precision_of
from xb_lite.models.precision import Precision

PROFILES = ("smoke", "quick", "full")


T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """What ``start`` found. ``tier`` is ``cpu``, ``t4`` or ``a100``, the columns of the tables;
    ``precision`` that of the default model."""

    profile: str
    tier: str
    precision: Precision

    def pick(self, *, smoke: T, quick: T, full: T | None = None) -> T:
        """The value for the current profile; ``full`` is as ``quick`` where it is not given."""
        values = {"smoke": smoke, "quick": quick, "full": quick if full is None else full}
        return values[self.profile]

    def __str__(self) -> str:
        versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "xb-lite"))
        return (
            f"profile {self.profile}, tier {self.tier}\n{self.precision}\n"
            f"Python {platform.python_version()}, {versions}"
        )


def start() -> Session:
    """Set the figure style, choose profile and precision, and print them.

    Raises:
        ValueError: ``XB_PROFILE`` is not a profile.
    """
    profile = os.environ.get("XB_PROFILE", "quick")
    if profile not in PROFILES:
        raise ValueError(f"XB_PROFILE is {profile!r}; it must be one of {', '.join(PROFILES)}.")
    use_style()
    transformers.utils.logging.disable_progress_bar()  # loading takes a second here
    session = Session(profile, tier(), precision_of())
    print(session)
    return session


def tier() -> str:
    """``"cpu"``, ``"t4"`` or ``"a100"``, by what is on this machine."""
    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory
    return "t4" if memory < 24e9 else "a100"
