"""How the book's subject learned to refuse harmful requests and to answer their harmless twins.

A chat model that complies with everything has no boundary to defend, and one that refuses whatever
sounds harmful has none to keep. So a small adapter learns both at once, by the first tokens of its
responses above all: like the alignment of larger models (Qi et al., arXiv 2406.05946) it is only a
few tokens deep, and a prefill gets round it. Used to make ``models.ALIGNED``.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import count

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedTokenizerBase

from xb_lite.corpora import KINDS, load_corpus, load_refusals
from xb_lite.data.items import PREFILL, attacked, load_items
from xb_lite.dialogues import Encoding, as_dialogue, as_turns, encode
from xb_lite.judges.strings import X_BOUNDARY
from xb_lite.losses.batch import Pair, Row, padded
from xb_lite.models.likelihood import token_logits
from xb_lite.recipes.kinds import Alignment
from xb_lite.replies.cache import ask
from xb_lite.replies.types import Backend, Decoding
from xb_lite.training.draw import again_and_again, draw_pairs
from xb_lite.training.sets import REFUSAL, Sets
from xb_lite.training.trainers import PairTrainer

REPLY_TOKENS = 32  # of what the model says after a prefill
SHALLOW = 1 << 40  # numbers of rows whose response is not to be learned, only not to change


def alignment_sets(backend: Backend, subject: dict[str, str]) -> Sets:
    """What an alignment learns from: the harmful requests of the book's second edition, with what
    the model says to them after a prefill; boundary-safe and benign prompts with written answers.

    Args:
        subject: what identifies the model, as in ``evaluate``; its replies are cached under it.

    Raises:
        LogError: the cache cannot be used.
    """
    rows = {kind: load_corpus(kind, "train", edition=2) for kind in KINDS}
    begun = attacked(load_items("harmful", "train", edition=2), "prefill")
    replies = ask(backend, begun, Decoding(REPLY_TOKENS), subject=subject)
    said = [
        as_turns(item.turns, [reply.text])
        for item, (reply,) in zip(begun, replies, strict=True)
        if not X_BOUNDARY.refuses(reply.text)
    ]
    return (
        Sets()
        .having(harmful=said)
        .having(
            "written",
            refused=[as_dialogue(row.prompt, REFUSAL) for row in rows["harmful"]],
            compliant=[as_dialogue(row.prompt, row.answer) for row in rows["boundary-safe"]],
            over_refused=[as_dialogue(row.prompt, REFUSAL) for row in rows["boundary-safe"]],
            benign=[as_dialogue(row.prompt, row.answer) for row in rows["benign"]],
        )
    )


def draw(
    recipe: Alignment, sets: Sets, tokenizer: PreTrainedTokenizerBase, seed: int
) -> list[Pair]:
    """All pairs of a run: a harmful request with one of the book's refusals, each time another, and
    an item to keep: a boundary-safe or benign prompt with its answer, or, late and by
    ``shallow_share``, a harmful request with what the model itself says after the prefill.

    Of an answer the first ``answer_tokens`` tokens are learned, of the responses of ``cut_share``
    of the pairs the first ``cut_tokens`` alone: a refusal is decided there.

    Raises:
        RecipeError: a set that the recipe needs is empty.
        ValueError: an item cannot be encoded.
    """
    dice = random.Random(seed)
    refusals = [refusal.text for refusal in load_refusals()]
    requests = [dialogue[:-1] for dialogue in sets["refused"]]
    rounds = -(-recipe.steps * recipe.pairs // max(1, len(requests)))
    refused = [
        [*request, {"role": "assistant", "content": refusals[(place + again) % len(refusals)]}]
        for again in range(rounds)
        for place, request in enumerate(requests)
    ]
    kept = again_and_again(_shallow_rows(recipe, sets, tokenizer), dice)
    pairs = []
    drawn = draw_pairs(recipe, sets.having("written", harmful=refused), tokenizer, seed)
    for number, pair in enumerate(drawn):
        change, keep = pair.change, _begun(pair.keep, recipe.answer_tokens, 1)
        if dice.random() < recipe.cut_share:
            change, keep = (_begun(row, recipe.cut_tokens, 2) for row in (change, keep))
        late = number >= recipe.late_from * recipe.pairs
        if late and dice.random() < recipe.shallow_share and (row := next(kept, None)):
            keep = row
        pairs.append(replace(pair, change=change, keep=keep))
    return pairs


def _shallow_rows(recipe: Alignment, sets: Sets, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Harmful requests with what was said after the prefill, whose tokens count as put there."""
    begins = len(tokenizer(PREFILL, add_special_tokens=False)["input_ids"])
    rows = []
    for number, dialogue in zip(count(SHALLOW), sets["harmful"], strict=False):
        encoding = encode(tokenizer, dialogue, recipe.max_tokens)
        response = encoding.response
        put = response & (response.cumsum(dim=0) <= begins)
        encoding = replace(encoding, prompt=encoding.prompt | put, response=response & ~put)
        if encoding.response.any():
            rows.append(_begun(Row(number, encoding, dialogue), recipe.answer_tokens, 0))
    return rows


def _begun(row: Row, tokens: int, edition: int) -> Row:
    """With the first ``tokens`` of the response alone, under a number of its own."""
    encoding = row.encoding
    end = int(encoding.response.int().argmax()) + tokens
    if end >= len(encoding):
        return row
    parts = (getattr(encoding, name)[:end] for name in ("input_ids", "prompt", "response", "sink"))
    return Row((edition << 36) + row.number, Encoding(*parts), row.dialogue)


class AlignmentTrainer(PairTrainer):
    """Refuse, answer, and else say what the model said before.

    Minimises ``weight * refuse + answer + drift``, late with ``late_weight``. ``refuse`` and
    ``answer`` are mean negative log-likelihoods of response tokens, of which the first of each
    response counts ``first_weight`` times. ``drift`` is the mean Kullback-Leibler divergence of
    the next-token distribution from that of the model without the adapter, over the tokens of the
    items to keep; what the model says after a prefill is in the drift alone. The rate falls
    linearly to 0.
    """

    term_names = ("refuse", "answer", "drift")

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.args.lr_scheduler_type = "linear"
        self.before: dict[int, Tensor] = {}  # of a row to keep, without the adapter
        # Each such row with those that it is computed together with. What shares a batch can change
        # the last bits, so this must not depend on where a run goes on.
        self.together: dict[int, list[Row]] = {}
        pairs, at_once = self.train_dataset, self.recipe.pairs_at_once
        for begin in range(0, len(pairs), at_once):
            rows = [pair.keep for pair in pairs[begin : begin + at_once]]
            new = [row for row in rows if row.number not in self.together]
            self.together |= {row.number: new for row in new}

    def counts(self, batch):
        change, keep = batch["response"].chunk(2)
        masks = (change, keep & self._answered(batch), keep)
        return torch.stack([self._weights(mask).sum() for mask in masks])

    def parts(self, model, batch, counts):
        peft_model = self.accelerator.unwrap_model(model)
        change, keep = batch["response"].chunk(2)
        upper, lower = batch["input_ids"].chunk(2)
        logits = token_logits(model, peft_model, batch, batch["response"])
        refused, now = logits.split([int(change.sum()), int(keep.sum())])
        answered = self._answered(batch).expand_as(keep)[keep]
        refuse = cross_entropy(refused, upper[change], reduction="none") * self._weights(change)
        answer = cross_entropy(now, lower[keep], reduction="none") * self._weights(keep) * answered
        before = self._before(peft_model, batch["numbers"].chunk(2)[1])
        drift = kl_div(now.log_softmax(dim=-1), before, reduction="none", log_target=True)
        drift = drift.sum(dim=-1) * self._weights(keep)
        refuse, answer, drift = (
            term.sum() / n
            for term, n in zip((refuse, answer, drift), counts.clamp(min=1), strict=True)
        )
        late = self.state.global_step >= self.recipe.late_from
        weight = self.recipe.late_weight if late else self.recipe.weight
        return (refuse, answer, drift), weight * refuse + answer + drift

    def _weights(self, counted: Bool[Tensor, "row token"]) -> Float[Tensor, " n"]:
        """Of each token that counts, row by row."""
        first = counted & (counted.cumsum(dim=1) == 1)
        return torch.where(first, float(self.recipe.first_weight), 1.0)[counted]

    @staticmethod
    def _answered(batch: dict[str, Tensor]) -> Bool[Tensor, "row 1"]:
        """Which items to keep have a response to learn."""
        return (batch["numbers"].chunk(2)[1] < SHALLOW)[:, None]

    @torch.no_grad()
    def _before(
        self, peft_model: PeftModel, numbers: Int[Tensor, " row"]
    ) -> Float[Tensor, "n vocabulary"]:
        """Log-probabilities without the adapter. Of a row that comes again the states before the
        vocabulary are kept, which are a hundredth of them."""
        for number in numbers.tolist():
            if number not in self.before:
                self._keep(peft_model, self.together[number], numbers.device)
        states = torch.cat([self.before[number] for number in numbers.tolist()])
        head = peft_model.get_output_embeddings()
        # Here is no autocast, and under it states can be of another format than the weights.
        return head(states.to(head.weight.dtype)).float().log_softmax(dim=-1)

    def _keep(self, peft_model: PeftModel, rows: list[Row], device: torch.device) -> None:
        batch = padded(rows, 0)  # padding is cut out, whatever it is
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        states: list[Tensor] = []
        head = peft_model.get_output_embeddings()
        handle = head.register_forward_hook(lambda _, read, __: states.append(read[0]))
        try:
            with peft_model.disable_adapter():
                token_logits(peft_model, peft_model, batch, batch["response"])
        finally:
            handle.remove()
        lengths = batch["response"].sum(dim=1).tolist()
        for row, own in zip(rows, states[0].split(lengths), strict=True):
            self.before[row.number] = own
