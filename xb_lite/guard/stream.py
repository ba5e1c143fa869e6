"""A guard that reads a reply while it is said, and ends it with a refusal when something is wrong.

It holds back the newest tokens until they were read; what was shown before cannot be taken back.
The filter of the X-Boundary demo (R1_X_Boundary_demo.py) reads every 200 tokens, but neither a last
piece that is shorter nor a reply that is; it fails on an empty text; and it flags tables and long
decimals. Each of these is a test here. Derived in 08_together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from xb_lite.corpora import SHORT_REFUSAL

A_TOKEN = 32  # characters; a server may tell more than a token at once, which is then cut in words


class Detector(Protocol):
    """Reads a reply as far as it is said: ``detector(request, said)`` is why it must not go on, in
    a word, or None. ``said`` grows from call to call, and its end is what nobody has read yet."""

    name: str

    def __call__(self, request: str, said: str) -> str | None: ...


@dataclass(frozen=True)
class Guard:
    """Detectors, and what they may cost: at most ``hold`` tokens are held back.

    Raises:
        ValueError: there is no detector, or ``hold`` is below 1.

    Example:
        >>> watch = Guard([detector], hold=2).watch("Name a river.")  # doctest: +SKIP
        >>> [watch.feed(token) for token in ["The", " Elbe", "."]]  # doctest: +SKIP
        ['', 'The Elbe', '']
        >>> watch.end()  # doctest: +SKIP
        '.'
    """

    detectors: Sequence[Detector]
    hold: int = 16
    refusal: str = SHORT_REFUSAL

    def __post_init__(self) -> None:
        if not self.detectors or self.hold < 1:
            raise ValueError(
                f"a guard needs a detector, and holds back at least 1 token: {len(self.detectors)} "
                f"detectors, hold {self.hold}."
            )

    def watch(self, request: str) -> Watch:
        """A new reply to ``request``, of which nothing is said yet."""
        return Watch(self, request)

    def over(self, request: str, reply: str) -> tuple[str, str | None]:
        """A whole reply that nobody has seen yet: itself, or in its place the refusal, and why."""
        watch = self.watch(request)
        watch.feed(reply)
        watch.end()
        return (self.refusal if watch.reason else reply), watch.reason


@dataclass
class Watch:
    """One reply under way: ``shown`` so far, ``tokens`` heard, and the ``reason`` why it was ended
    (None while nothing is wrong). After a reason nothing more is read or shown."""

    guard: Guard
    request: str
    said: str = ""
    shown: str = ""
    tokens: int = 0
    reason: str | None = None
    _held: list[str] = field(default_factory=list)

    def feed(self, piece: str) -> str:
        """``piece`` is said: what may be shown now, the refusal if something is wrong."""
        return self.check() if self.add(piece) else ""

    def add(self, piece: str) -> bool:
        """Hold ``piece``, one token or more, back; True when it is time to ``check``. One by one,
        so that a server need not read in the thread in which it hears."""
        if self.reason:
            return False
        parts = _tokens(piece)
        self._held += parts
        self.tokens += len(parts)
        return len(self._held) >= self.guard.hold

    def check(self) -> str:
        """Read what is held back, ``hold`` tokens at a time, and show it."""
        return self._read(whole=False)

    def end(self) -> str:
        """The reply is over: its rest is read, however short it is, and shown."""
        return self._read(whole=True)

    def _read(self, whole: bool) -> str:
        shown = ""
        while not self.reason and (len(self._held) >= self.guard.hold or (whole and self._held)):
            part = "".join(self._held[: self.guard.hold])
            del self._held[: self.guard.hold]
            self.said += part
            found = (detector(self.request, self.said) for detector in self.guard.detectors)
            self.reason = next(filter(None, found), None)
            if self.reason:
                self._held.clear()
                part = f"\n\n{self.guard.refusal}" if self.shown + shown else self.guard.refusal
            shown += part
        self.shown += shown
        return shown


def _tokens(piece: str) -> list[str]:
    if len(piece) <= A_TOKEN:
        return [piece]
    return re.findall(rf"\s{{0,{A_TOKEN}}}\S{{1,{A_TOKEN}}}|\s{{1,{A_TOKEN}}}", piece)
