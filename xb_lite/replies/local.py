"""Replies of a chat model: to many dialogues at once, turn by turn, and to prefilled answers.

Multi-turn attacks are scripts of user turns between which the model's own replies become history,
as in ActorAttack and in the multi-round evaluation of the X-Boundary code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xb_lite.dialogues import Dialogue, as_dialogue, encode, render
from xb_lite.hidden import batches_by_length
from xb_lite.models.precision import Precision
from xb_lite.replies.talk import TAG_TOKENS, Talk, token_ids
from xb_lite.replies.types import Decoding, Reply, answer_of, check_open, check_scripts


class TooLongError(ValueError):
    """A dialogue of ``read`` tokens, its prefill among them, after which up to ``room`` would
    follow; the model takes ``most`` in all."""

    def __init__(self, dialogue: Dialogue, read: int, room: int, most: int) -> None:
        super().__init__(
            f"a dialogue has {read:,} tokens ({dialogue[-1]['content']!r:.40}), and up to {room:,} "
            f"would follow; the model takes {most:,}: leave out the set with it, or lower "
            "max_new_tokens."
        )
        self.read, self.most = read, most


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
        begun = len(token_ids(self.tokenizer, prefill))
        rows = [encode(self.tokenizer, dialogue).input_ids for dialogue in dialogues]
        replies: list[Reply | None] = [None] * len(rows)
        with tqdm(total=len(rows), desc="replies", delay=2, leave=False) as bar:
            for batch in self._batches([len(row) + begun for row in rows], 1, decoding):
                talk = Talk(self.model, self.tokenizer, self.precision, batch[0])
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
        extra = len(token_ids(self.tokenizer, turn + prefill))
        lengths = [
            len(token_ids(self.tokenizer, render(self.tokenizer, d))) + extra for d in dialogues
        ]
        replies: list[list[Reply]] = [[] for _ in dialogues]
        with tqdm(total=len(replies), desc="replies", delay=2, leave=False) as bar:
            for batch in self._batches(lengths, 2, most):
                talk = Talk(self.model, self.tokenizer, self.precision, batch[0])
                asked = [dialogues[i] for i in batch]
                said = talk.go_on(talk.rows_for(asked), first)
                longer = [
                    [
                        *dialogue,
                        {"role": "assistant", "content": answer_of(reply.text)},
                        *as_dialogue(turn),
                    ]
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
                talk = Talk(self.model, self.tokenizer, self.precision, batch[0])
                dialogues: list[list[dict[str, str]]] = [[] for _ in batch]
                for turns in zip(*(scripts[i] for i in batch), strict=True):
                    for dialogue, turn in zip(dialogues, turns, strict=True):
                        dialogue.append({"role": "user", "content": turn})
                    said = talk.go_on(talk.rows_for(dialogues), decoding)
                    for i, dialogue, reply in zip(batch, dialogues, said, strict=True):
                        dialogue.append({"role": "assistant", "content": answer_of(reply.text)})
                        played[i].append(reply)
                    bar.update(len(batch))
        return played

    def check(self, dialogues: Sequence[Dialogue], room: int, prefill: str = "") -> None:
        """Whether each of these dialogues, its prefill and ``room`` tokens more fit into the model.

        Raises:
            TooLongError: one does not.
            ValueError: the template refuses one.
        """
        most = context_of(self.model)
        begun = len(token_ids(self.tokenizer, prefill))
        for dialogue in dialogues if most else ():
            read = len(token_ids(self.tokenizer, render(self.tokenizer, dialogue))) + begun
            if read + room > most:
                raise TooLongError(dialogue, read, room, most)

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
            lengths = [len(token_ids(self.tokenizer, " ".join(scripts[i]))) for i in group]
            for batch in self._batches(lengths, n_turns, decoding):
                yield [group[k] for k in batch]


def context_of(model: PreTrainedModel) -> int | None:
    """How many tokens the model takes in all, where its config says so."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most if type(most) is int and most > 0 else None
