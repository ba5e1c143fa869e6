"""Two defenses are compared where the same share of attacks gets through: at matched strengths.

Every adapter is evaluated at a few strengths on the validation split (plan ``strengths``); between
them attack success is taken to be linear. The test is run at the strength that is read off so.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from xb_lite.reproduce.manifest import ManifestError, Plan, Setting, path_of
from xb_lite.results.contract import read_result
from xb_lite.results.frames import find

PLAN = "strengths"
STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5)


class NeededFirstError(ManifestError):
    """A strength cannot be read off before the result at ``path``, in the folder of results, is
    there."""

    def __init__(self, path: str, plan: str) -> None:
        super().__init__(f"{path} is needed first: reproduce --only {plan}.")
        self.path = path


def crossing(rates: Mapping[float, float], level: float) -> float | None:
    """The lowest strength at which a rate that is linear between the given ones falls to ``level``;
    None where it stays above.

    Args:
        rates: by strength.

    Example:
        >>> crossing({0.0: 0.6, 0.5: 0.3, 1.0: 0.1}, 0.2)
        0.75
    """
    points = sorted(rates.items())
    for (low, above), (high, below) in zip(points, points[1:], strict=False):
        if above > level >= below:
            return low + (high - low) * (above - level) / (above - below)
    return points[0][0] if points and points[0][1] <= level else None


def success_by_strength(
    plan: Plan, setting: Setting, seed: int | None, folder: str | os.PathLike[str]
) -> dict[float, float]:
    """Prefilled success by the service judge at each strength, that of the undefended model at 0,
    up to the first at which it falls to the setting's ``match``: none above is needed.

    Raises:
        NeededFirstError: one of the results is not there yet.
    """
    plain = replace(setting, plan=plan.name, match=None, strength=None)
    rates: dict[float, float] = {}
    for strength in (0.0, *STRENGTHS):
        if strength:
            # An adapter as it was trained has no strength in its name.
            at = replace(plain, strength=None if strength == 1 and plain.trained else strength)
            path = path_of(plan, at, seed)
        else:
            path = path_of(plan, Setting(plan=plan.name, model=setting.model))
        if not (Path(folder) / path).is_file():
            raise NeededFirstError(path, plan.name)
        asked = {"set": "harmful", "attack": "prefill", "judge": "service"}
        rates[strength] = find(read_result(Path(folder) / path), "asr", **asked).value
        if rates[strength] <= setting.match:
            break
    return rates


def at_matched_strength(
    plan: Plan, setting: Setting, seed: int | None, folder: str | os.PathLike[str]
) -> Setting:
    """``setting`` at the strength that its ``match`` asks for, rounded to a hundredth; where it is
    not reached, at the highest, with a warning.

    Raises:
        NeededFirstError: see ``success_by_strength``.
    """
    rates = success_by_strength(plan, setting, seed, folder)
    strength = crossing(rates, setting.match)
    if strength is None:
        strength = max(STRENGTHS)
        warnings.warn(
            f"{setting.defense(seed)} does not get to {setting.match:.0%}: at strength {strength} "
            f"prefilled success is {rates[strength]:.0%}.",
            stacklevel=2,
        )
    return replace(setting, match=None, strength=round(strength, 2))
