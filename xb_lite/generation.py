"""Replies of a chat model: to many dialogues at once, turn by turn, and to prefilled answers.

Multi-turn attacks are scripts of user turns between which the model's own replies become history,
as in ActorAttack and in the multi-round evaluation of the X-Boundary code.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from xb_lite.dialogues import Dialogue, as_dialogue, check_dialogue, encode, render
from xb_lite.hidden import batches_by_length
from xb_lite.precision import Precision

ROOM = 128  # tokens that a key-value buffer grows by
TAG_TOKENS = 16  # room for a template's tags around one turn, when batches are planned


@dataclass(frozen=True)
class Decoding:
    """How replies are drawn: greedy at ``temperature`` 0, else sampled from ``seed``.

    ``max_new_tokens`` bounds one reply, a prefill not counted. A sampled reply depends on what else
    is asked in its batch: the same call with the same ``seed`` repeats it.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"{self}: max_new_tokens must be at least 1, temperature at least 0, and top_p "
                "above 0 and at most 1."
            )


@dataclass(frozen=True)
class Reply:
    """One reply. ``text`` begins with the prefill, if there was one; ``finished`` is False where
    ``max_new_tokens`` cut it short; token counts are the backend's own."""

    text: str
    prompt_tokens: int
    new_tokens: int
    finished: bool


class Backend(Protocol):
    """What can reply: a model on this machine, or one behind a server."""

    def reply(
        self, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        """One reply to each dialogue, in their order; all begin with ``prefill``."""
        ...

    def play(self, scripts: Sequence[Sequence[str]], decoding: Decoding) -> list[list[Reply]]:
        """The replies to each script's user turns, earlier turns and replies being history."""
        ...


@dataclass(frozen=True)
class LocalBackend:
    """A transformers model on this machine, in ``precision``; without, in that of the surrounding
    context.

    ``batch_tokens`` bounds the tokens of one batch: prompts, replies and padding.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_tokens: int = 32768
    precision: Precision | None = None

    def reply(
        self, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        """One reply to each dialogue, in their order; sorted by length and batched inside.

        Args:
            dialogues: each ends with a user turn.
            decoding: the same for all.
            prefill: first words of every reply, put in the model's mouth (a prefill attack).

        Raises:
            ValueError: a dialogue is malformed or does not end with a user turn; its index is
                named, before anything is generated.
        """
        check_open(dialogues)
        begun = len(_ids(self.tokenizer, prefill))
        rows = [encode(self.tokenizer, dialogue).input_ids for dialogue in dialogues]
        replies: list[Reply | None] = [None] * len(rows)
        with tqdm(total=len(rows), desc="replies", delay=2, leave=False) as bar:
            for batch in self._batches([len(row) + begun for row in rows], 1, decoding):
                talk = _Talk(self.model, self.tokenizer, self.precision, batch[0])
                said = talk.go_on([rows[i] for i in batch], decoding, prefill)
                for i, reply in zip(batch, said, strict=True):
                    replies[i] = reply
                bar.update(len(batch))
        return replies

    def reply_twice(
        self,
        dialogues: Sequence[Dialogue],
        turn: str,
        first: Decoding,
        decoding: Decoding,
        prefill: str = "",
    ) -> list[list[Reply]]:
        """A reply to each dialogue, and one to what the user says then, on the same key-value
        cache: a batch goes through both turns before the next one begins.

        Greedy, the second replies are those of ``reply`` to the longer dialogues, but where a first
        reply is spelled by other tokens when it is read again.

        Args:
            dialogues: each ends with a user turn.
            turn: what the user says after the first reply, the same in every dialogue.
            first: of the first replies.
            decoding: of the second replies.
            prefill: first words of every second reply.

        Returns:
            First and second reply for each dialogue, in their order.

        Raises:
            ValueError: a dialogue is malformed or does not end with a user turn (its index is
                named), or ``turn`` is not a text; before anything is generated.
        """
        check_open(dialogues)
        if not isinstance(turn, str) or not turn.strip():
            raise ValueError(f"the second turn is not a text: {turn!r:.60}")
        most = max(first, decoding, key=lambda either: either.max_new_tokens)
        extra = len(_ids(self.tokenizer, turn + prefill))
        lengths = [len(_ids(self.tokenizer, render(self.tokenizer, d))) + extra for d in dialogues]
        replies: list[list[Reply]] = [[] for _ in dialogues]
        with tqdm(total=len(replies), desc="replies", delay=2, leave=False) as bar:
            for batch in self._batches(lengths, 2, most):
                talk = _Talk(self.model, self.tokenizer, self.precision, batch[0])
                asked = [dialogues[i] for i in batch]
                said = talk.go_on(talk.rows_for(asked), first)
                longer = [
                    [*dialogue, {"role": "assistant", "content": reply.text}, *as_dialogue(turn)]
                    for dialogue, reply in zip(asked, said, strict=True)
                ]
                then = talk.go_on(talk.rows_for(longer), decoding, prefill)
                for i, *both in zip(batch, said, then, strict=True):
                    replies[i] = both
                bar.update(len(batch))
        return replies

    def play(self, scripts: Sequence[Sequence[str]], decoding: Decoding) -> list[list[Reply]]:
        """The replies to each script's user turns, earlier turns and replies being history.

        The dialogues of a batch advance together, and the key-value cache is carried from turn to
        turn wherever the template only appends to what stood before and no layer has a window.

        Raises:
            ValueError: a script is empty or has a turn that is not a string; its index is named.
        """
        check_scripts(scripts)
        played: list[list[Reply]] = [[] for _ in scripts]
        with tqdm(total=sum(map(len, scripts)), desc="turns", delay=2, leave=False) as bar:
            for batch in self._script_batches(scripts, decoding):
                talk = _Talk(self.model, self.tokenizer, self.precision, batch[0])
                dialogues: list[list[dict[str, str]]] = [[] for _ in batch]
                for turns in zip(*(scripts[i] for i in batch), strict=True):
                    for dialogue, turn in zip(dialogues, turns, strict=True):
                        dialogue.append({"role": "user", "content": turn})
                    said = talk.go_on(talk.rows_for(dialogues), decoding)
                    for i, dialogue, reply in zip(batch, dialogues, said, strict=True):
                        dialogue.append({"role": "assistant", "content": reply.text})
                        played[i].append(reply)
                    bar.update(len(batch))
        return played

    def _batches(
        self, lengths: Sequence[int], turns: int, decoding: Decoding
    ) -> Iterator[list[int]]:
        room = turns * (decoding.max_new_tokens + TAG_TOKENS)
        return batches_by_length([length + room for length in lengths], self.batch_tokens)

    def _script_batches(
        self, scripts: Sequence[Sequence[str]], decoding: Decoding
    ) -> Iterator[list[int]]:
        """Batches of scripts with equally many turns, so that all of a batch end together."""
        for n_turns in sorted({len(script) for script in scripts}):
            group = [i for i, script in enumerate(scripts) if len(script) == n_turns]
            lengths = [len(_ids(self.tokenizer, " ".join(scripts[i]))) for i in group]
            for batch in self._batches(lengths, n_turns, decoding):
                yield [group[k] for k in batch]


class _Talk:
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
                _ids(self.tokenizer, text.removeprefix(before))
                for text, before in zip(texts, self.texts, strict=True)
            ]
        else:
            self._forget(len(dialogues))
            rows = [_ids(self.tokenizer, text) for text in texts]
        self.texts = texts
        return rows

    @torch.no_grad()
    def go_on(
        self, rows: Sequence[Int[Tensor, " token"]], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        """Append ``rows``, and then what the model says; a prefill is for a last turn."""
        if not len(self.ids):
            self._forget(len(rows))
        first_words = _ids(self.tokenizer, prefill)
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


def check_open(dialogues: Sequence[Dialogue]) -> None:
    """Raise a ValueError that names the first dialogue that does not wait for a reply."""
    for i, dialogue in enumerate(dialogues):
        try:
            check_dialogue(dialogue)
        except ValueError as error:
            raise ValueError(f"dialogue {i}: {error}") from error
        if dialogue[-1]["role"] == "assistant":
            raise ValueError(f"dialogue {i} ends with the assistant's turn; there is none to make.")


def check_scripts(scripts: Sequence[Sequence[str]]) -> None:
    """Raise a ValueError that names the first script that is not a list of user turns."""
    for i, script in enumerate(scripts):
        if isinstance(script, str) or not script:
            raise ValueError(f"script {i} is not a non-empty list of user turns: {script!r:.60}")
        for turn in script:
            if not isinstance(turn, str) or not turn.strip():
                raise ValueError(f"script {i} has a turn that is not a text: {turn!r:.60}")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Int[Tensor, " token"]:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)
