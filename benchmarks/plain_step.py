"""One training step as a plain, well-written loop does it: the fair rival of the benchmark.

transformers and peft as anybody would use them: rows padded on the right to the longest of the
batch, one forward pass for all of them with ``output_hidden_states``, the reference states computed
once and kept, and the official loss over whole tensors. It has none of ``xb_lite``'s code; the
tests hold it to the official step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from official_step import Item
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence


class PlainStep:
    """The loss of ``items``, again and again; arguments as of ``official_step``."""

    def __init__(
        self,
        model: PeftModel,
        items: Sequence[Item],
        *,
        targets: Sequence[int] = (10, 20),
        schedule: float = 300,
        alpha: float = 10.0,
        window: int = 512,
        pad_id: int = 0,
    ) -> None:
        self.model, self.targets, self.window = model, list(targets), window
        self.schedule, self.alpha, self.pairs = schedule, alpha, len(items)
        device = next(model.parameters()).device
        change = [[*i.request[:window], *i.response[:window]] for i in items]
        keep = [list(i.retain)[: 2 * window] for i in items]
        rows = [torch.tensor(row) for row in (*change, *keep)]
        self.ids = pad_sequence(rows, True, pad_id).to(device)
        self.mask = pad_sequence([torch.ones_like(row) for row in rows], True).to(device)
        # What counts of a row to change: of a boundary-safe one its request alone.
        ends = [
            len(i.request[:window]) if i.boundary else len(c)
            for i, c in zip(items, change, strict=True)
        ]
        place = torch.arange(self.ids.shape[1], device=device)
        self.counted = (place < torch.tensor(ends, device=device)[:, None]).float()
        self.boundary = torch.tensor([i.boundary for i in items], device=device)
        with torch.no_grad(), model.disable_adapter():
            self.reference = self.states()

    def states(self) -> Tensor:
        """All hidden states ``[entry, row, token, dim]``."""
        found = self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,  # none is read; of a large vocabulary they would take long
        )
        return torch.stack(found.hidden_states)

    def __call__(self, step: int) -> Tensor:
        now, before, n = self.states(), self.reference, self.pairs
        kept = self.mask[n:, :, None]
        distance = (kept * (now[:, n:] - before[:, n:])).norm(dim=-1, dtype=torch.float32)
        retain = distance.sum() / (len(now) * n * 2 * self.window)
        ours = normalize(now[self.targets, :n].float(), dim=-1)
        theirs = normalize(before[self.targets, :n].float(), dim=-1)
        answers = normalize(before[self.targets, n:].float(), dim=-1) * kept
        centre = answers.sum(dim=2, keepdim=True) / kept.sum(dim=1, keepdim=True)
        other = torch.where(self.boundary[:, None, None], centre, theirs)
        cosine = torch.relu((ours * other).sum(dim=-1)) * self.counted
        change = cosine.sum() / (self.counted.sum() * len(self.targets))
        progress = min(max(step / self.schedule, 0.0), 1.0)
        return self.alpha * (progress * retain + (1 - progress) * change)
