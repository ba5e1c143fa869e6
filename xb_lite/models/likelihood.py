"""How likely a model finds a text: log-probabilities of the tokens of a response, in batches, and
the same with a gradient for training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xb_lite.dialogues import Dialogue, encode
from xb_lite.hidden import batches_by_length
from xb_lite.models import packing
from xb_lite.models.packing import end_to_end

BATCH_TOKENS = 4096


@torch.no_grad()
def response_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dialogues: Sequence[Dialogue],
    max_length: int | None = None,
) -> list[Float[Tensor, " token"]]:
    """Natural log-probability of every response token of each dialogue, given all before it.

    In the precision of the surrounding context; the logarithm is taken in fp32. The token that
    ends a turn counts. Dialogues are sorted by length and batched inside.

    Raises:
        ValueError: a dialogue is malformed (see ``encode``).
    """
    encodings = [encode(tokenizer, dialogue, max_length) for dialogue in dialogues]
    found: list[Tensor] = [torch.empty(0)] * len(encodings)
    with tqdm(total=len(encodings), desc="likelihoods", delay=2, leave=False) as bar:
        for batch in batches_by_length([len(e) for e in encodings], BATCH_TOKENS):
            rows = [encodings[i] for i in batch]
            # Padded in front, so that the responses stand at the end: only there is the large
            # vocabulary read out.
            ids = _pad([e.input_ids for e in rows]).to(model.device)
            counts = _pad([torch.ones(len(e), dtype=torch.long) for e in rows]).to(model.device)
            marks = _pad([e.response for e in rows])
            # The first column with a response; no dialogue needs to have one.
            tail = 1 + ids.shape[1] - max(1, int(marks.any(0).int().argmax()))
            logits = model(
                ids,
                attention_mask=counts,
                position_ids=(counts.cumsum(1) - 1).clamp(min=0),
                logits_to_keep=tail,
                use_cache=False,
            ).logits[:, :-1]
            for i, scores, own, mine in zip(
                batch, logits, ids[:, 1 - tail :], marks[:, 1 - tail :], strict=True
            ):
                mine = mine.to(model.device)
                log_probs = scores[mine].float().log_softmax(-1)
                found[i] = log_probs.gather(-1, own[mine, None])[:, 0].cpu()
            bar.update(len(batch))
    return found


def token_losses(
    model: nn.Module, peft_model: PeftModel, batch: dict[str, Tensor], counted: Bool[Tensor, "b t"]
) -> Float[Tensor, "b t"]:
    """Negative log-likelihood of the tokens of ``counted``, in nats; 0 at the others.

    The vocabulary, most of a small model's work, is read out for those tokens alone.

    Args:
        model: ``peft_model``, or what accelerate made of it.
        batch: ``input_ids`` and ``attention_mask``, padded on the right.
        counted: never the first token, which nothing stands before.
    """
    losses = cross_entropy(
        token_logits(model, peft_model, batch, counted),
        batch["input_ids"][counted],
        reduction="none",
    )
    return torch.zeros_like(counted, dtype=losses.dtype).masked_scatter(counted, losses)


def token_logits(
    model: nn.Module, peft_model: PeftModel, batch: dict[str, Tensor], counted: Bool[Tensor, "b t"]
) -> Float[Tensor, "n vocabulary"]:
    """What the model, with its gradient, predicts at the places of the tokens of ``counted``, in
    their order; arguments as in ``token_losses``."""
    before = pad(counted[:, 1:], (0, 1))  # a token is read out of the state before it
    real = batch["attention_mask"].bool()
    shared = 0
    if peft_model.config._attn_implementation == packing.NAME:  # no other attends to them
        shared = _shared(batch["input_ids"], real & ~before)
    own = real.clone()
    own[1:, :shared] = False
    read = before[own]  # of the rows laid end to end

    def only(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0][0, read],)

    handle = peft_model.get_output_embeddings().register_forward_pre_hook(only)
    try:
        output = model(**end_to_end(batch, shared), use_cache=False)
    finally:
        handle.remove()
    return output.logits.float()


def _shared(ids: Int[Tensor, "row token"], free: Bool[Tensor, "row token"]) -> int:
    """How many first tokens all of several rows have in common, up to the first that is not
    ``free`` to be left out of a row."""
    same = (ids == ids[:1]).all(dim=0) & free.all(dim=0)
    return int(same.long().cumprod(dim=0).sum()) if len(ids) > 1 else 0


def _pad(rows: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
