"""What a check says, and predictions that are written down before the cell that tests them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

NOT_YET = "Not attempted yet."
NO_RETURN = "Not attempted yet: this is None. Does your function end with a `return`?"
CLOSE = 0.02  # relative: what is this near may have been rounded

# The book's colors on its pages; elsewhere those of the page, light or dark.
LOOK = (
    "margin:0.4em 0;padding:0.4em 0.9em;background:transparent;"
    "color:var(--pst-color-text-base, inherit);"
    "border-left:3px solid var(--pst-color-primary, currentColor)"
)


@dataclass(frozen=True)
class Verdict:
    """``right`` is None where nothing was tried. Shown as one line in a notebook and a terminal."""

    right: bool | None
    text: str

    def __str__(self) -> str:
        return f"{ {True: 'Right.', False: 'Not yet.', None: ''}[self.right] } {self.text}".strip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f'<p class="verdict" style="{LOOK}">{escape(str(self))}</p>'


def attempted(answer: object) -> bool:
    """Whether a stub was filled in: it is, or gives, something else than ``...``."""
    return answer is not ... and answer is not None


def unattempted(answer: object) -> Verdict:
    """The verdict where ``attempted`` is false; a function that only prints gives None."""
    return Verdict(None, NO_RETURN if answer is None else NOT_YET)


def judged(
    answer: object,
    right: object,
    mistakes: Iterable[tuple[object, str]] = (),
    *,
    praise: str = "",
    tolerance: float = 1e-4,
    otherwise: str = "The shape is right and the values are not; open the first hint.",
) -> Verdict:
    """Compare a number, a sequence or a tensor with the right one and with known mistakes.

    Args:
        answer: the reader's, or ``...``.
        right: what it should be.
        mistakes: wrong answers that are recognised, each with the words for it.
        praise: said of a right answer.
        tolerance: relative, of every element.
        otherwise: said of a wrong answer of the right shape that is not among the mistakes.

    Example:
        >>> judged(3.0, 2.0, [(3.0, "You added the bias.")])
        Not yet. You added the bias.
    """
    if not attempted(answer):
        return unattempted(answer)
    if hasattr(answer, "values") and hasattr(answer, "indices") and isinstance(answer, tuple):
        return Verdict(
            False,
            "Along a dimension torch gives two tensors, the values and their places: take "
            "`.values` or `.indices`.",
        )
    wanted = _as_tensor(right)
    try:
        found = _as_tensor(answer)
    except (TypeError, ValueError, RuntimeError):
        return Verdict(False, f"This is a {type(answer).__name__}; numbers are wanted.")
    if found.shape == wanted.shape and torch.isnan(found).any() and not torch.isnan(wanted).any():
        return Verdict(False, "There are NaNs in it: somewhere 0 is divided by 0.")
    if _close(found, wanted, tolerance):
        return Verdict(True, praise)
    for wrong, words in mistakes:
        if _close(found, _as_tensor(wrong), tolerance):
            return Verdict(False, words)
    if found.shape != wanted.shape:
        return Verdict(
            False,
            f"The shape is {list(found.shape)}; it should be {list(wanted.shape)}"
            + ("." if wanted.ndim else ", a single number."),
        )
    if _close(found, -wanted, tolerance):
        return Verdict(False, "The size is right and the sign is not.")
    if torch.allclose(found, wanted, rtol=CLOSE, atol=0):
        return Verdict(
            False,
            f"Nearly: all is within {CLOSE:.0%} of what is expected. If you rounded, write it in "
            "full, as 1 / 3; if not, open the first hint.",
        )
    return Verdict(False, otherwise)


def called(function: Callable | object, *arguments: object) -> object:
    """What the reader's function gives; ``...`` where it is an untouched stub.

    Raises:
        Exception: whatever the reader's function raises, which the page shows.
    """
    return function(*arguments) if callable(function) else function


def in_place(found: object, *tensors: tuple[Tensor, Tensor]) -> bool:
    """Whether an attempt changed one of the tensors that it was given: each with a copy of what it
    was before."""
    return attempted(found) and not all(torch.equal(given, was) for given, was in tensors)


def _as_tensor(value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().double().cpu()
    return torch.as_tensor(value, dtype=torch.float64)


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class Prediction:
    """What was written down before a cell was run; ``outcome`` says how it went."""

    text: str
    low: float | None = None
    high: float | None = None

    def outcome(self, value: float, text: str = "") -> Verdict:
        """Compare what came out with the predicted range; without a range both are shown."""
        said = f"You predicted: {self.text}. It came out as {value:.3g}" + (
            f" ({text})." if text else "."
        )
        if self.low is None and self.high is None:
            return Verdict(None, said)
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        held = low <= value <= high
        return Verdict(None, f"{said} Your prediction {'held' if held else 'did not hold'}.")


def predict(text: str, low: float | None = None, high: float | None = None) -> Prediction:
    """Write a prediction down before the cell that tests it.

    Args:
        text: in words.
        low, high: the range of the number that it is about, if it is about one.

    Example:
        >>> guess = predict("half are refused", 0.4, 0.6)
        >>> guess.outcome(0.2, "1 of 5")
        You predicted: half are refused. It came out as 0.2 (1 of 5). Your prediction did not hold.
    """
    return Prediction(text, low, high)
