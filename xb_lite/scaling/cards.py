"""Machines by name: memory, and how many operations a second their makers state."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Card:
    """A GPU, or a CPU.

    Attributes:
        memory: GB that a program can use.
        half, single: operations a second in bf16 or fp16 and in fp32, in 1e12, as the makers of
            GPUs state them (dense); of the CPU measured by ``benchmarks/training.py``.
        bf16: whether it has it; fp16 is used else.
        share: of these, how much a training step reaches: of the CPU measured (``results/training``
            has it), of GPUs assumed, for no step was timed on one of them.
    """

    name: str
    title: str
    memory: float
    half: float
    single: float
    bf16: bool
    share: float

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    def formats(self, parameters: int | None) -> tuple[int, int]:
        """Bytes of a weight and of a number in a product, as ``models.choose_precision`` chooses
        them for a model of so many parameters; None where that is not told."""
        small = parameters is not None and 4 * parameters <= self.memory * 1e9 / 8
        if self.is_cpu or small:
            return 4, 2 if self.bf16 else 4
        return 2, 2


def _read() -> dict[str, Card]:
    rows = json.loads(Path(__file__).with_name("cards.json").read_text(encoding="utf-8"))
    return {row["name"]: Card(**row) for row in rows}


CARDS = _read()
