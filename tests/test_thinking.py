"""A model that thinks is asked, prefilled, trained and judged after the thought."""

import pytest
import torch
from tiny import saying, tiny_model, tiny_recipe, tiny_sets

from xb_lite.dialogues import as_dialogue, as_turns, encode, opens_thought, render
from xb_lite.models.loading import load_model
from xb_lite.models.precision import Precision
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.types import Decoding
from xb_lite.training.draw import draw_pairs

FP32 = Precision("cpu", torch.float32, None, "tests")

# The parts of the published templates that matter: R1's opens a thought and drops those of earlier
# turns; Qwen3's can switch it off, and writes one before the last reply.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% set said = m.content %}{% set thought = '' %}"
    "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1] %}"
    "{% set said = said.split('</think>')[-1].lstrip() %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n{{ thought }}\n"
    "</think>\n\n{% endif %}{{ said }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ASKED = as_dialogue("Name a river.")


@pytest.fixture(params=[R1, QWEN3], ids=["r1", "qwen3"])
def thinker(request, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", request.param)
    return tokenizer


def test_a_reply_of_a_training_set_stands_where_the_model_would_begin_it(thinker):
    """The prompt that is trained on is the one that the model is asked with."""
    asked, said = render(thinker, ASKED), as_dialogue("Name a river.", "The Nile.")
    assert render(thinker, said).startswith(f"{asked}The Nile.") and "<think>" in asked
    encoding = encode(thinker, said)
    assert thinker.decode(encoding.input_ids[encoding.response]) == "The Nile.<|im_end|>"
    assert thinker.decode(encoding.input_ids[:-4]).startswith(asked.rstrip("\n"))


def test_the_thought_is_over_before_the_reply(thinker):
    text = render(thinker, ASKED)
    assert text.endswith("<think>\n\n</think>\n\n") and text.count("<think>") == 1
    turns = render(thinker, as_turns(["A?", "B?"], ["One.", "Two."]))
    assert turns.count("<think>") == 1 and turns.index("</think>") > turns.index("B?")


def test_a_prefill_stands_behind_the_thought(thinker):
    model = saying(tiny_model(thinker), thinker, " is the Nile.")
    (reply,) = LocalBackend(model, thinker).reply([ASKED], Decoding(12), prefill="Sure, here")
    assert reply.text == "Sure, here is the Nile."
    assert thinker.decode(model.seen[-1]).endswith("</think>\n\nSure, here")


def test_training_sees_the_prompt_of_the_evaluation(thinker):
    pairs = draw_pairs(tiny_recipe(), tiny_sets(), thinker, 0)
    for row in (pairs[0].change, pairs[0].keep):
        asked = render(thinker, row.dialogue[:-1])
        assert thinker.decode(row.encoding.input_ids).startswith(
            asked + row.dialogue[-1]["content"]
        )


def test_a_model_whose_thought_is_left_empty_says_so(tmp_path, tokenizer):
    tiny_model(tokenizer, hidden_size=16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(R1)
    with pytest.warns(UserWarning, match="thinks before it answers.*the thought is left empty"):
        _, found = load_model(tmp_path, FP32)
    assert opens_thought(found) and not opens_thought(tokenizer)


def test_a_thought_in_a_message_is_named(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", QWEN3)
    with pytest.raises(ValueError, match="message 1 .assistant. has a thought in it.*</think>"):
        encode(tokenizer, as_dialogue("A?", "<think>Hm.</think>The Nile."))


def test_other_templates_stay_as_they_are(tokenizer):
    dialogue = as_dialogue("What does <think> mean?", "It opens a thought.")
    said = tokenizer.apply_chat_template(dialogue, tokenize=False)
    assert render(tokenizer, dialogue) == said
