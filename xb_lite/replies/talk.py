"""A batch of dialogues under way on one key-value cache, turn by turn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from xb_lite.dialogues import Dialogue, render
from xb_lite.models.precision import Precision
from xb_lite.replies.types import Decoding, Reply

ROOM = 128  # tokens that a key-value buffer grows by
TAG_TOKENS = 16  # room for a template's tags around one turn, when batches are planned


class Talk:
    """A batch of dialogues under way: all tokens so far, which of them count, and their cache.

    Rows have equal length. What is padding, in front or between turns, is masked out and takes no
    position, so a row reads as if it stood alone. ``first`` is the place of the batch's first
    dialogue among all, and tells batches apart.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        precision: Precision | None,
        first: int,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.context = precision.autocast if precision else nullcontext
        self.first, self.turn = first, 0
        self._forget(0)

    def _forget(self, batch: int) -> None:
        self.ids: Int[Tensor, "batch token"] = torch.empty(batch, 0, dtype=torch.long)
        self.counts: Bool[Tensor, "batch token"] = torch.empty(batch, 0, dtype=torch.bool)
        self.cache = _roomy_cache(self.model)
        self.texts: list[str | None] = []

    def rows_for(self, dialogues: Sequence[Dialogue]) -> list[Int[Tensor, " token"]]:
        """The tokens that are new in each dialogue since the last turn; all of them, and the cache
        is given up, where the template changed what stood before (some trim replies) or the model
        has sliding windows."""
        # Any other layer counts padding as tokens: a window would end sooner behind a longer mate.
        plain = all(type(layer) is _RoomyLayer for layer in self.cache.layers)
        texts = [render(self.tokenizer, dialogue) for dialogue in dialogues]
        if (
            plain
            and self.texts
            and all(
                before is not None and text.startswith(before)
                for text, before in zip(texts, self.texts, strict=True)
            )
        ):
            rows = [
                token_ids(self.tokenizer, text.removeprefix(before))
                for text, before in zip(texts, self.texts, strict=True)
            ]
        else:
            self._forget(len(dialogues))
            rows = [token_ids(self.tokenizer, text) for text in texts]
        self.texts = texts
        return rows

    @torch.no_grad()
    def go_on(
        self, rows: Sequence[Int[Tensor, " token"]], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        """Append ``rows``, and then what the model says; a prefill is for a last turn."""
        if not len(self.ids):
            self._forget(len(rows))
        first_words = token_ids(self.tokenizer, prefill)
        rows = [torch.cat([row, first_words]) for row in rows]
        device = self.model.device
        self._append(
            nn.utils.rnn.pad_sequence(rows, True, padding_side="left"),
            nn.utils.rnn.pad_sequence(
                [torch.ones_like(row, dtype=torch.bool) for row in rows], True, padding_side="left"
            ),
        )
        with torch.random.fork_rng(), self.context(), neutral(self.model):
            # Else every batch would draw the same numbers.
            drawn = random.Random(f"{decoding.seed} {self.first} {self.turn}")
            torch.manual_seed(drawn.getrandbits(63))
            output = self.model.generate(
                self.ids.to(device),
                attention_mask=self.counts.long().to(device),
                past_key_values=self.cache,
                generation_config=self._config(decoding),
            )
        self.turn += 1
        self.cache = output.past_key_values
        new = output.sequences[:, self.ids.shape[1] :].cpu()
        prompt_tokens = self.counts.sum(dim=1).tolist()
        ends = torch.isin(new, torch.tensor(end_ids(self.model, self.tokenizer), dtype=torch.long))
        said = ends.cumsum(dim=1) == 0
        # The end-of-turn token comes again with the template's text of the next turn.
        self._append(new, said)
        replies = []
        for row, (ids, mine) in enumerate(zip(new, said, strict=True)):
            text = self._words(ids[mine], first_words)
            finished = not bool(mine.all())
            new_tokens = int(mine.sum()) + finished
            replies.append(Reply(prefill + text, prompt_tokens[row], new_tokens, finished))
            self._remember(row, ids[mine], text)
        return replies

    def _words(self, ids: Int[Tensor, " token"], before: Int[Tensor, " token"]) -> str:
        """What the tokens say behind those of the prefill: Llama's decoder, among others, leaves
        out the first space of a text."""
        known, whole = (
            self.tokenizer.decode(some, skip_special_tokens=True)
            for some in (before, torch.cat([before, ids]))
        )
        return whole[len(known) :]

    def _append(self, ids: Tensor, counts: Tensor) -> None:
        self.ids = torch.cat([self.ids, ids], dim=1)
        self.counts = torch.cat([self.counts, counts], dim=1)

    def _remember(self, row: int, ids: Tensor, text: str) -> None:
        if row < len(self.texts) and self.texts[row] is not None:
            same = self.tokenizer.decode(ids) == text  # else the reply has special tokens in it
            self.texts[row] = self.texts[row] + text if same else None

    def _config(self, decoding: Decoding) -> GenerationConfig:
        sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            do_sample=decoding.temperature > 0,
            return_dict_in_generate=True,
            **ends_and_pad(self.model, self.tokenizer),
            **(sampling if decoding.temperature > 0 else {}),
        )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a reply: the model's, of which some files name none, and the
    tokenizer's."""
    its = model.generation_config.eos_token_id
    found = {*(its if isinstance(its, list) else [its]), tokenizer.eos_token_id}
    return sorted(found - {None})


def ends_and_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """For a ``GenerationConfig``."""
    pad = tokenizer.pad_token_id
    return {
        "eos_token_id": end_ids(model, tokenizer) or None,
        "pad_token_id": tokenizer.eos_token_id if pad is None else pad,
    }


@contextmanager
def neutral(model: PreTrainedModel) -> Iterator[None]:
    """Within it a model generates as it is asked to: what else its own file says, as a repetition
    penalty, transformers would add to any config that leaves it open."""
    model = next(model.modules())  # itself, where something stands before it
    its = model.generation_config
    # Not empty: another thread may look for the ends.
    model.generation_config = GenerationConfig(eos_token_id=its.eos_token_id)
    try:
        yield
    finally:
        model.generation_config = its


class _RoomyLayer(DynamicLayer):
    """Keys and values in buffers with room to grow: the usual layer copies all of them a token."""

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [key_states.new_empty(0), value_states.new_empty(0)]
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        for i, (new, old) in enumerate(((key_states, self.keys), (value_states, self.values))):
            if self._buffers[i].dim() == 1 or self._buffers[i].shape[-2] < end:
                batch, heads, _, dim = new.shape
                self._buffers[i] = new.new_empty(batch, heads, end + ROOM, dim)
                if begin:
                    self._buffers[i][..., :begin, :] = old
            self._buffers[i][..., begin:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values


def _roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """The model's own kind of cache; what is not a plain layer of it (sliding windows) stays."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        _RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Int[Tensor, " token"]:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
