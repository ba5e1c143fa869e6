"""What attacks on a model's inside have in common: the model behind a defense, what it is asked
last, and how likely it is to begin as the attacker wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from xb_lite.data.items import Item
from xb_lite.dialogues import Dialogue, as_dialogue, render
from xb_lite.intention.defenses import Defended, last_prompts
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.subjects import Subject
from xb_lite.replies.talk import ends_and_pad, neutral
from xb_lite.replies.types import Decoding

TARGET = "Sure, here is"  # what attacks on an opening make likely


def backend_of(subject: Subject) -> LocalBackend:
    """What replies behind the prompt, if there is one.

    Raises:
        ValueError: it is no model on this machine.
    """
    inner = subject.backend.backend if isinstance(subject.backend, Defended) else subject.backend
    if not isinstance(inner, LocalBackend) or subject.model is None:
        raise ValueError("this attack needs the model's weights: give a model on this machine.")
    return inner


def numbers_of(subject: Subject) -> AbstractContextManager:
    """The context in which the subject computes."""
    precision = backend_of(subject).precision
    return precision.autocast() if precision else nullcontext()


def plain(items: Sequence[Item]) -> list[Dialogue]:
    """The items as dialogues.

    Raises:
        ValueError: one is a script, or under an attack already.
    """
    wrapped = (i for i in items if i.attack != "direct" or len(i.turns) > 1 or i.prefill)
    if wrong := next(wrapped, None):
        raise ValueError(f"{wrong.id} is {wrong.attack} already; plain requests are attacked.")
    return [as_dialogue(item.turns[0]) for item in items]


def last_asked(subject: Subject, dialogues: Sequence[Dialogue]) -> list[Dialogue | None]:
    """What the model itself is asked last about each dialogue, behind a prompt defense too; None
    where that refuses by itself."""
    if isinstance(subject.backend, Defended):
        return last_prompts(subject.backend.backend, dialogues, subject.backend.defense)
    return list(dialogues)


def token_ids(subject: Subject, dialogue: Dialogue) -> Int[Tensor, " token"]:
    """The prompt's tokens."""
    text = render(subject.tokenizer, dialogue)
    ids = subject.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    return ids.to(subject.model.device)


def places(subject: Subject, dialogue: Dialogue, words: str) -> Int[Tensor, " place"]:
    """Which tokens of the prompt have a part in the last occurrence of ``words``; none where the
    words are not in it as they stand."""
    text = render(subject.tokenizer, dialogue)
    begin = text.rfind(words)
    if begin < 0 or not words:
        return torch.empty(0, dtype=torch.long)
    offsets = subject.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    end = begin + len(words)
    found = [k for k, (a, b) in enumerate(offsets["offset_mapping"]) if a < end and b > begin]
    return torch.tensor(found, dtype=torch.long)


def opening_losses(
    model: PreTrainedModel, prompt: Float[Tensor, "batch token dim"], target: Int[Tensor, " t"]
) -> Float[Tensor, " batch"]:
    """Nats a token of ``target`` as the beginning of the reply to each prompt, which is given in
    embeddings; with its gradient."""
    embedded = model.get_input_embeddings()(target).expand(len(prompt), -1, -1)
    whole = torch.cat([prompt, embedded.to(prompt)], dim=1)
    logits = model(inputs_embeds=whole, use_cache=False, logits_to_keep=len(target) + 1).logits
    wanted = target.expand(len(prompt), -1)
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), wanted, reduction="none"
    )
    return losses.mean(dim=1)


def target_ids(subject: Subject) -> Int[Tensor, " token"]:
    found = subject.tokenizer(TARGET, add_special_tokens=False, return_tensors="pt")
    return found["input_ids"][0].to(subject.model.device)


@torch.no_grad()
def reply_to(subject: Subject, prompt: Float[Tensor, "token dim"], decoding: Decoding) -> str:
    """The greedy reply to a prompt in embeddings."""
    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        **ends_and_pad(subject.model, subject.tokenizer),
    )
    with neutral(subject.model):
        ids = subject.model.generate(
            inputs_embeds=prompt[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=prompt.device),
            generation_config=config,
        )
    return subject.tokenizer.decode(ids[0], skip_special_tokens=True)


@contextmanager
def no_weight_gradients(model: PreTrainedModel) -> Iterator[None]:
    """Within, gradients are of inputs alone."""
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for name, value in model.named_parameters():
            value.requires_grad_(flags[name])
