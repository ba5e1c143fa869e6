"""What a defense must not cost: answers to questions, and the likelihood of ordinary text.

Both are read off a model's probabilities of given answers, after whatever it was asked: behind a
defense by prompt, after the defense's own last prompt (``intention.last_prompts``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xb_lite.corpora import Passage, Question, load_passages, load_quiz
from xb_lite.dialogues import Dialogue, as_dialogue, encode
from xb_lite.intention.defenses import Defended, last_prompts
from xb_lite.models.likelihood import response_log_probs
from xb_lite.replies.subjects import Subject
from xb_lite.results.contract import mean_row, rate_row
from xb_lite.results.stats import Estimate, mean, rate


def quiz(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    asked: Sequence[Dialogue | None] | None = None,
) -> list[bool]:
    """For each question, whether its right option is the likeliest reply, per character.

    As ``acc_norm`` of lm-evaluation-harness, since options differ in length and a sum of
    log-probabilities favors the short; but the token that ends the reply counts, too.

    Args:
        asked: what stands before the options of each question; default: the question. To one with
            None there is no reply, and so no right one.

    Raises:
        ValueError: there is not one of ``asked`` for each question.
    """
    asked = [as_dialogue(q.question) for q in questions] if asked is None else asked
    both = list(zip(questions, asked, strict=True))
    pairs = [(before, option) for q, before in both if before for option in q.options]
    sums = iter([float(p.sum()) for p in _answer_log_probs(model, tokenizer, pairs)])
    right = []
    for question, before in both:
        scores = [next(sums) / len(option) for option in question.options if before]
        # Of scores that are no numbers argmax takes the first, which is right one time in four.
        known = bool(scores) and not np.isnan(scores).any()
        right.append(bool(known and np.argmax(scores) == question.answer))
    return right


def passage_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[Passage],
    asked: Sequence[Dialogue | None] | None = None,
) -> list[float]:
    """Mean negative log-probability of a token (nats) of each passage, as an answer to its request
    or to ``asked`` as in ``quiz``; passages with None are left out.

    The exponential of their mean is the perplexity.

    Raises:
        ValueError: there is not one of ``asked`` for each passage.
    """
    asked = [as_dialogue(passage.request) for passage in passages] if asked is None else asked
    both = zip(asked, passages, strict=True)
    pairs = [(before, passage.text) for before, passage in both if before]
    return [-float(p.mean()) for p in _answer_log_probs(model, tokenizer, pairs)]


def _answer_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[Dialogue, str]],
) -> list[Float[Tensor, " token"]]:
    """Log-probabilities of the tokens of each answer; what the assistant said before has none."""
    dialogues = [[*before, *as_dialogue("", answer)[1:]] for before, answer in pairs]
    found = response_log_probs(model, tokenizer, dialogues)
    said = [
        int(encode(tokenizer, before).response.sum()) if _assistant_spoke(before) else 0
        for before, _ in pairs
    ]
    return [log_probs[n:] for n, log_probs in zip(said, found, strict=True)]


def _assistant_spoke(dialogue: Dialogue) -> bool:
    return any(message["role"] == "assistant" for message in dialogue)


def capability_rows(subject: Subject, split: str) -> list[dict]:
    """Quiz accuracy and perplexity on the passages of one split; none behind a server.

    Behind a defense by prompt both are read after its last prompt; passages that it refuses have no
    perplexity. Neither have those whose loss is not finite, as of a ruined model; n counts the
    others.
    """
    if subject.model is None:
        return []
    questions, passages = load_quiz(split), load_passages(split)
    right = quiz(
        subject.model,
        subject.tokenizer,
        questions,
        _asked(subject, [question.question for question in questions]),
    )
    rows = [rate_row(rate(right), "accuracy", "quiz", "direct", None)]
    losses = passage_losses(
        subject.model,
        subject.tokenizer,
        passages,
        _asked(subject, [passage.request for passage in passages]),
    )
    if losses := [loss for loss in losses if math.isfinite(loss)]:
        found = mean(losses)
        perplexity, low, high = (math.exp(x) for x in (found.value, found.low, found.high))
        shown = Estimate(perplexity, found.n, low, high)
        rows.append(mean_row(shown, "perplexity", "passages", "direct"))
    return rows


def _asked(subject: Subject, queries: Sequence[str]) -> list[Dialogue | None]:
    """What the model itself is asked last, where a subject is asked these."""
    dialogues = [as_dialogue(query) for query in queries]
    if isinstance(subject.backend, Defended):
        return last_prompts(subject.backend.backend, dialogues, subject.backend.defense)
    return dialogues
