"""What one step of training sees: pairs of an item to change and one to retain, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xb_lite.dialogues import Dialogue, Encoding


@dataclass(frozen=True)
class Row:
    """One item: its ``number`` in the run, its tokens and its words."""

    number: int
    encoding: Encoding
    dialogue: Dialogue = ()


@dataclass(frozen=True)
class Pair:
    """``change`` is harmful and to be erased, or with ``separate`` boundary-safe and to be
    separated; ``keep`` is to be retained, with ``boundary`` a boundary-safe prompt with its answer.
    """

    change: Row
    keep: Row
    boundary: bool
    separate: bool

    def __len__(self) -> int:
        return max(len(self.change.encoding), len(self.keep.encoding))


def collate(pairs: Sequence[Pair], pad_id: int) -> dict[str, Tensor]:
    """A batch: the rows to change and below them those to keep, padded on the right.

    Returns:
        ``input_ids``, ``attention_mask``, ``prompt``, ``response`` ``[2 * pair, token]``;
        ``separate`` ``[pair]``; ``numbers`` ``[2 * pair]``, the rows'.
    """
    rows = [pair.change for pair in pairs] + [pair.keep for pair in pairs]
    return {
        **padded(rows, pad_id),
        "separate": torch.tensor([pair.separate for pair in pairs]),
        "numbers": torch.tensor([row.number for row in rows]),
    }


def padded(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask``, ``prompt`` and ``response`` ``[row, token]`` of rows,
    padded on the right."""
    ids = [row.encoding.input_ids for row in rows]

    def pad(tensors: list[Tensor], value: int) -> Tensor:
        return pad_sequence(tensors, batch_first=True, padding_value=value)

    return {
        "input_ids": pad(ids, pad_id),
        "attention_mask": pad([torch.ones_like(row) for row in ids], 0),
        "prompt": pad([row.encoding.prompt for row in rows], False),
        "response": pad([row.encoding.response for row in rows], False),
    }
