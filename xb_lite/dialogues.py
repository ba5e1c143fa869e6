"""Dialogues as tokens: what a chat template makes of them, and which token is whose.

A dialogue is a list of ``{"role", "content"}`` messages, the chat format of transformers. Tokens
and spans both come from the tokenizer's own chat template: one path for every family of models.
Derived in 01_hidden_states.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Dialogue = Sequence[dict[str, str]]
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Encoding:
    """One dialogue as tokens, each of which is exactly one of sink, prompt and response.

    ``input_ids``: ``[token]`` int64. ``prompt``: ``[token]`` bool, what the model is given: the
    template's tags, system and user messages. ``response``: ``[token]`` bool, what the assistant
    says, its end-of-turn token included. ``sink``: ``[token]`` bool, the first tokens, which draw
    attention whatever they are (attention sinks). ``n_cut``: tokens that were cut to fit.
    """

    input_ids: Int[Tensor, " token"]
    prompt: Bool[Tensor, " token"]
    response: Bool[Tensor, " token"]
    sink: Bool[Tensor, " token"]
    n_cut: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    def mask(self, which: str) -> Bool[Tensor, " token"]:
        """``"prompt"``, ``"response"``, ``"sink"``, or ``"all"`` (prompt and response)."""
        if which == "all":
            return ~self.sink
        if which not in ("prompt", "response", "sink"):
            raise ValueError(f"no mask {which!r}; there are 'prompt', 'response', 'sink', 'all'.")
        return getattr(self, which)


def as_dialogue(prompt: str, response: str | None = None, system: str | None = None) -> Dialogue:
    """A single-turn dialogue from its texts."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    return messages


def as_turns(turns: Sequence[str], replies: Sequence[str]) -> Dialogue:
    """A dialogue of several turns; where the last has no reply yet, it is open."""
    both = zip_longest(turns, replies)
    return [message for turn, reply in both for message in as_dialogue(turn, reply)]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    dialogue: Dialogue,
    max_length: int | None = None,
    sink_tokens: int = 1,
) -> Encoding:
    """Tokens and masks of one dialogue.

    A dialogue that ends with the user's turn gets the tag that asks the assistant to speak
    (the generation prompt); its response mask is empty up to there.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        dialogue: messages with roles system, user, assistant or tool.
        max_length: at most so many tokens. The template's own tokens are never cut; every message
            keeps its first ``c`` tokens, ``c`` as large as fits. After a last response that was cut
            its end-of-turn token goes as well. Warns when it cuts.
        sink_tokens: the first so many tokens are marked as sink and belong to no other mask;
            0 marks none.

    Raises:
        ValueError: the dialogue is malformed, the template refuses it (its reason is given) or
            rewrites a message, ``max_length`` is too small for the template's own tokens, or the
            tokenizer has no template or is a slow one.
    """
    check_dialogue(dialogue)
    text, spans = _locate(tokenizer, dialogue)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor(tokens["input_ids"], dtype=torch.long)
    offsets = tokens["offset_mapping"]
    owner = _owner(offsets, spans)
    keep = torch.ones(len(ids), dtype=torch.bool)
    if max_length is not None and len(ids) > max_length:
        keep = _fit(owner, dialogue, max_length)
    response = _response(tokenizer, ids, offsets, owner, spans, dialogue)
    ids, response = ids[keep], response[keep]
    n_cut = int((~keep).sum())
    if n_cut:
        warnings.warn(
            f"dialogue of {len(keep)} tokens cut to {len(ids)} (max_length={max_length}): the ends "
            "of its longest messages are missing, the template's tags are not.",
            stacklevel=2,
        )
    sink = torch.arange(len(ids)) < sink_tokens
    return Encoding(ids, ~response & ~sink, response & ~sink, sink, n_cut)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token to fill rows up with. Whoever reads such rows masks it, so that where a tokenizer
    names none any will do."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def check_dialogue(dialogue: Dialogue) -> None:
    """Raise a ValueError that names the first message that is not one."""
    if isinstance(dialogue, str) or not isinstance(dialogue, Sequence) or not dialogue:
        raise ValueError(
            "a dialogue is a non-empty list of {'role', 'content'} messages, "
            f"not {type(dialogue).__name__} {str(dialogue)[:40]!r}; see as_dialogue() for a string."
        )
    for i, message in enumerate(dialogue):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"message {i} needs the keys 'role' and 'content', it is {message!r}.")
        if message["role"] not in ROLES:
            raise ValueError(f"message {i} has role {message['role']!r}; roles are {ROLES}.")
        if not isinstance(message["content"], str):
            kind = type(message["content"]).__name__
            raise ValueError(f"the content of message {i} is {kind}, not a string.")


Span = tuple[int, int, int]  # message index, first and last-plus-one character in the text


def _locate(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue) -> tuple[str, list[Span]]:
    """The template's text and where in it each message's content stands, in order of the text.

    Templates do as they like with tags, default system prompts and the order of things. So the
    dialogue is rendered twice, once with a marker for every content; what stands between the
    markers is the template's own and is found again in the real text.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template: take one of an -Instruct model.")
    if not tokenizer.is_fast:
        raise ValueError("a fast tokenizer is needed (a slow one does not tell where tokens are).")
    markers = [f"\ue000{i}\ue001" for i in range(len(dialogue))]
    marked = [{**m, "content": marker} for m, marker in zip(dialogue, markers, strict=True)]
    text, skeleton = render(tokenizer, dialogue), render(tokenizer, marked)
    found = sorted((skeleton.find(marker), i) for i, marker in enumerate(markers))
    found = [(start, i) for start, i in found if start >= 0]
    if not found:
        raise ValueError(
            "the chat template leaves out every message; it may want their content in parts: take "
            "a model of texts alone."
        )
    spans, own_end, position = [], 0, 0
    for (start, i), following in zip(found, [*found[1:], (None, None)], strict=True):
        own = skeleton[own_end:start]
        own_end = start + len(markers[i])
        after = skeleton[own_end : following[0]]
        begin = position + len(own)
        end = _content_end(text, begin, dialogue[i]["content"], after, following[0] is None)
        if text[position:begin] != own or end is None:
            if thought := [k for k, m in enumerate(dialogue) if "</think>" in m["content"]]:
                raise ValueError(
                    f"message {thought[0]} ({dialogue[thought[0]]['role']}) has a thought in it, "
                    "which the chat template moves: give what comes after </think>."
                )
            raise ValueError(
                f"the chat template rewrites message {i} ({dialogue[i]['role']}), so its tokens "
                "cannot be told from the template's own."
            )
        spans.append((i, begin, end))
        position = end
    replies = {i for i, m in enumerate(dialogue) if m["role"] == "assistant" and m["content"]}
    if missing := replies - {i for i, _, _ in spans}:
        raise ValueError(f"the chat template leaves out message {min(missing)} (assistant).")
    return text, spans


def render(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue) -> str:
    """The chat template's text of a dialogue, with the generation prompt unless the assistant
    spoke last. Thinking is off: replies are to be short, and those of a training set stand where
    the model would begin them. Where the template can switch it off (Qwen3 and others), it does;
    where its generation prompt opens a thought (R1), that is left empty, before a reply that is
    there already, too.

    Raises:
        ValueError: the template refuses the dialogue; its reason is given.
    """
    text = _rendered(tokenizer, dialogue)
    if "<think>" not in str(tokenizer.chat_template):
        return text
    if dialogue[-1]["role"] != "assistant":
        before = _before_thought(text)
        return text if before is None else before + NO_THOUGHT
    before = _before_thought(_rendered(tokenizer, dialogue[:-1])) if len(dialogue) > 1 else None
    if before is None or not text.startswith(before):
        return text
    said = text[len(before) :]
    return text if said.lstrip().startswith("<think>") else before + NO_THOUGHT + said


NO_THOUGHT = "<think>\n\n</think>\n\n"


def opens_thought(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template's generation prompt opens a thought, and nothing switches that off."""
    return _before_thought(_rendered(tokenizer, as_dialogue("Name a river."))) is not None


def _before_thought(text: str) -> str | None:
    """What stands before a thought that the text ends with the beginning of; None without one."""
    before, opened, after = text.rpartition("<think>")
    return before if opened and not after.strip() else None


def _rendered(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(dialogue),
            tokenize=False,
            add_generation_prompt=dialogue[-1]["role"] != "assistant",
            enable_thinking=False,
        )
    except Exception as error:  # templates raise jinja's errors, and any other by accident
        raise ValueError(f"the chat template refuses this dialogue: {error}") from error


def _content_end(text: str, begin: int, content: str, after: str, last: bool) -> int | None:
    """Where the content that begins at ``begin`` ends; templates may strip it or drop a prefix."""
    for candidate in (content, content.strip()):
        end = begin + len(candidate)
        if text.startswith(candidate + after, begin) and (
            not last or end + len(after) == len(text)
        ):
            return end
    end = len(text) - len(after) if last else text.find(after, begin) if after else -1
    return end if begin <= end and text[begin:end] in content else None


def _owner(offsets: list[tuple[int, int]], spans: list[Span]) -> Int[Tensor, " token"]:
    """Message index of each token, -1 for the template's own; a token on the border is content."""
    owner = torch.full((len(offsets),), -1)
    for i, begin, end in spans:
        for token, (first, last) in enumerate(offsets):
            if first < end and last > begin:
                owner[token] = i
    return owner


def _response(
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    offsets: list[tuple[int, int]],
    owner: Tensor,
    spans: list[Span],
    dialogue: Dialogue,
) -> Bool[Tensor, " token"]:
    """Assistant contents, each with the special token that ends its turn."""
    spoken = {i: end for i, _, end in spans if dialogue[i]["role"] == "assistant"}
    response = torch.isin(owner, torch.tensor(list(spoken), dtype=torch.long))
    for end in spoken.values():
        following = next((t for t, (first, _) in enumerate(offsets) if first >= end), None)
        if following is not None and is_special(tokenizer, int(ids[following])):
            response[following] = True
    return response


def is_special(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether a token is special, also where it is so among the added tokens alone, as the end of
    turn of some families: what decoding leaves out then. To list thousands takes longer."""
    return token in tokenizer.all_special_ids or (
        tokenizer.decode([token]) != "" == tokenizer.decode([token], skip_special_tokens=True)
    )


def _fit(owner: Tensor, dialogue: Dialogue, max_length: int) -> Bool[Tensor, " token"]:
    """Which tokens stay: every message keeps its first c, the largest c that fits."""
    own = int((owner < 0).sum())
    if own >= max_length:
        raise ValueError(
            f"max_length={max_length} is too small: the chat template alone takes {own} tokens."
        )
    rank = torch.zeros_like(owner)  # place of a token within its message
    for i in owner.unique():
        rank[owner == i] = torch.arange(int((owner == i).sum()))
    rank[owner < 0] = -1
    # The c-th kept token of a message has rank c - 1; counts of ranks give the largest c at once.
    counts = torch.bincount(rank[owner >= 0])
    c = int((counts.cumsum(0) + own <= max_length).sum())
    keep = rank < c
    if dialogue[-1]["role"] == "assistant" and (owner == len(dialogue) - 1).any():
        final = owner == len(dialogue) - 1
        if not keep[final].all():
            keep[int(final.nonzero()[-1]) + 1 :] = False
    return keep
