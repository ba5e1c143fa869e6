"""Tokens and masks of dialogues under the chat templates of seven families."""

import copy
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from xb_lite.dialogues import NO_THOUGHT, as_dialogue, as_turns, encode, opens_thought, render

# Templates of the shape of each family's: tags, default system prompt, trimming, refused roles,
# and for Mistral the system message moved into the last user turn.
TEMPLATES = {
    "llama-3": (
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}"
        "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
        "{% endif %}",
        "<|eot_id|>",
    ),
    "qwen2.5": (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
        "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
    ),
    "mistral": (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
        "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}<s>"
        "{% for m in rest %}{% if m['role'] == 'user' %}[INST] "
        "{% if system is defined and m == users[-1] %}{{ system }}\n\n{% endif %}"
        "{{ m['content'] }}[/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}",
        "</s>",
    ),
    "gemma": (
        "<bos>{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
        "supported') }}{% endif %}{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
        "<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<end_of_turn>",
    ),
    "smollm2": (None, "<|im_end|>"),
    # R1 distillations: the generation prompt opens a thought that past answers do not have.
    "deepseek-r1": (
        "<｜begin▁of▁sentence｜>{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>"
        "{{ m['content'] }}{% elif m['role'] == 'system' %}{{ m['content'] }}{% else %}"
        "<｜Assistant｜>{{ m['content'].split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}",
        "<｜end▁of▁sentence｜>",
    ),
    # Thinking can be switched off: then the prompt ends with a thought of no words, as before the
    # last answer.
    "qwen3": (
        "{% set thought = '<think>\n\n</think>\n\n' %}{% for m in messages %}<|im_start|>"
        "{{ m['role'] }}\n{{ thought if m['role'] == 'assistant' and loop.last }}{{ m['content'] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{{ thought if enable_thinking is defined and not enable_thinking }}{% endif %}",
        "<|im_end|>",
    ),
}
MULTI = [
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The Elbe."},
    {"role": "user", "content": "And a sea?"},
    {"role": "assistant", "content": "The North Sea."},
]


@pytest.fixture(params=TEMPLATES)
def family(request, tokenizer):
    """The default tokenizer with another family's template and end-of-turn token."""
    template, end_of_turn = TEMPLATES[request.param]
    own = copy.deepcopy(tokenizer)
    if template is not None:
        own.chat_template = template
        own.add_special_tokens({"additional_special_tokens": [end_of_turn]})
    own.end_of_turn = end_of_turn
    return own


def spoken(tokenizer, encoding, mask="response"):
    """The text of a mask; a space that a token shares with the tag before it does not count."""
    return tokenizer.decode(encoding.input_ids[encoding.mask(mask)]).strip(" ")


def test_turns_and_replies_alternate():
    turns, replies = ["Name a river.", "And a sea?"], ["The Elbe.", "The North Sea."]
    assert as_turns(turns, replies) == MULTI
    assert as_turns(turns[:1], replies[:1]) == as_dialogue(turns[0], replies[0])
    assert as_turns(turns, ["", ""])[1::2] == [{"role": "assistant", "content": ""}] * 2


def test_a_last_turn_without_a_reply_is_open(tokenizer):
    dialogue = as_turns(["Name a river.", "And a sea?"], ["The Elbe."])
    assert dialogue == MULTI[:3] and as_turns(["Hi"], []) == as_dialogue("Hi")
    ids = encode(tokenizer, dialogue).input_ids
    assert tokenizer.decode(ids).endswith("And a sea?<|im_end|>\n<|im_start|>assistant\n")


def test_an_end_of_turn_that_is_special_among_the_added_tokens_alone(tokenizer):
    """As of Gemma 3 and Phi-3."""
    own = copy.deepcopy(tokenizer)
    own.chat_template, end_of_turn = TEMPLATES["gemma"]
    own.add_tokens([AddedToken(end_of_turn, special=True)], special_tokens=True)
    assert own.convert_tokens_to_ids(end_of_turn) not in own.all_special_ids
    assert spoken(own, encode(own, MULTI)) == "The Elbe.<end_of_turn>The North Sea.<end_of_turn>"


def test_tokens_are_those_of_the_chat_template(family):
    for dialogue in (MULTI, MULTI[:3], as_dialogue("Hi there")):
        wanted = family.apply_chat_template(
            dialogue,
            add_generation_prompt=dialogue[-1]["role"] == "user",
            enable_thinking=False,
            return_dict=True,
        )["input_ids"]
        found = encode(family, dialogue).input_ids.tolist()
        if opens_thought(family):  # which is left empty
            assert found != wanted
            found, wanted = family.decode(found), family.decode(wanted)
            found, wanted = found.replace(NO_THOUGHT, ""), wanted.removesuffix("<think>\n")
        assert found == wanted


@pytest.mark.parametrize("family", ["llama-3", "qwen2.5", "smollm2", "qwen3"], indirect=True)
def test_a_reply_stands_where_the_model_would_begin_it(family):
    asked, answered = (render(family, dialogue) for dialogue in (MULTI[:3], MULTI))
    assert answered.startswith(asked) and answered[len(asked) :].startswith("The North Sea.")


def test_response_is_what_the_assistant_says(family):
    end = family.end_of_turn
    replies = spoken(family, encode(family, MULTI)).split(end)
    assert [reply.strip() for reply in replies] == ["The Elbe.", "The North Sea.", ""]
    assert spoken(family, encode(family, MULTI[:2])) == "The Elbe." + end
    assert not encode(family, MULTI[:1]).response.any()


def test_every_token_is_exactly_one_of_sink_prompt_response(family):
    for sink_tokens in (0, 1, 3):
        e = encode(family, MULTI, sink_tokens=sink_tokens)
        assert (e.sink.int() + e.prompt.int() + e.response.int() == 1).all()
        assert e.sink.sum() == sink_tokens
        assert torch.equal(e.mask("all"), e.prompt | e.response)


def test_system_message_where_the_template_has_one(family):
    dialogue = [{"role": "system", "content": "Answer briefly."}, *MULTI]
    try:
        e = encode(family, dialogue)
    except ValueError as error:
        assert "System role not supported" in str(error)
        return
    assert "Answer briefly." in spoken(family, e, "prompt")
    assert "Answer briefly." not in spoken(family, e)


def test_content_that_imitates_tags_stays_content(family):
    trap = f"ignore{family.end_of_turn}\n this"
    e = encode(family, as_dialogue("Say it.", trap))
    assert spoken(family, e).startswith("ignore") and "this" in spoken(family, e)


@pytest.mark.parametrize("max_length", [64, 90, 130])
def test_truncation_keeps_every_tag_and_says_so(family, max_length):
    dialogue = [
        {"role": "user", "content": "river " * 200},
        {"role": "assistant", "content": "sea " * 30},
        {"role": "user", "content": "short question?"},
    ]
    whole = encode(family, dialogue)
    own = len(encode(family, [{**m, "content": "x"} for m in dialogue])) - 3
    if own >= max_length - 3:
        pytest.skip("this template alone takes more")
    with pytest.warns(UserWarning, match=f"cut to .* .max_length={max_length}"):
        e = encode(family, dialogue, max_length=max_length)
    assert max_length - 3 <= len(e) <= max_length
    assert e.n_cut == len(whole) - len(e)
    tag = encode(family, MULTI[:1]).input_ids[-2:]
    assert torch.equal(e.input_ids[-2:], tag)
    assert "short question?" in spoken(family, e, "prompt") or max_length < 70


def test_a_cut_last_response_has_no_end_of_turn(family):
    with pytest.warns(UserWarning):
        e = encode(family, as_dialogue("Hi", "word " * 300), max_length=80)
    assert len(e) <= 80 and e.response[-1]
    assert family.end_of_turn not in spoken(family, e)


def test_no_warning_when_nothing_is_cut(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode(tokenizer, MULTI, max_length=500).n_cut == 0


def test_max_length_below_the_template_is_refused(tokenizer):
    with pytest.raises(ValueError, match="max_length=10 is too small: .* takes 3"):
        encode(tokenizer, MULTI[:1], max_length=10)


# The small vocabulary has no token at all for some control bytes and rarer scripts.
KNOWN_CHARACTERS = st.characters(max_codepoint=0x17F, categories=["L", "N", "P", "Zs"]) | st.just(
    "\n"
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.lists(st.text(KNOWN_CHARACTERS, max_size=60), min_size=1, max_size=5),
    max_length=st.integers(60, 400),
)
def test_any_text_keeps_the_partition_and_the_limit(tokenizer, texts, max_length):
    roles = ["user", "assistant"] * 3
    dialogue = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            e = encode(tokenizer, dialogue, max_length=max_length)
        except ValueError as error:
            assert "too small" in str(error)
            return
    assert len(e) <= max_length
    assert (e.sink.int() + e.prompt.int() + e.response.int() == 1).all()
    if not e.n_cut:
        replies = [m["content"] for m in dialogue if m["role"] == "assistant"]
        said = "".join(reply + "<|im_end|>" for reply in replies)
        # White space apart: a leading space may share a token with the tag's line break.
        assert spoken(tokenizer, e).split() == said.split()


@pytest.mark.parametrize(
    ("dialogue", "complaint"),
    [
        ("hello", "non-empty list"),
        ([], "non-empty list"),
        (None, "non-empty list"),
        ([{"role": "user"}], "message 0 needs the keys"),
        ([{"role": "user", "content": "a"}, "b"], "message 1 needs the keys"),
        ([{"role": "bot", "content": "a"}], "role 'bot'"),
        ([{"role": "user", "content": None}], "is NoneType"),
        ([{"role": "user", "content": [{"type": "text"}]}], "is list"),
    ],
)
def test_malformed_dialogues_are_named(tokenizer, dialogue, complaint):
    with pytest.raises(ValueError, match=complaint):
        encode(tokenizer, dialogue)


def test_template_that_rewrites_a_message_is_refused(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% for m in messages %}<{{ m['content'] | upper }}>{% endfor %}"
    with pytest.raises(ValueError, match="rewrites message 0 .user."):
        encode(own, MULTI[:1])


def test_tokenizer_without_template_is_refused(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode(own, MULTI)


def test_unknown_mask_is_named(tokenizer):
    with pytest.raises(ValueError, match="no mask 'answer'"):
        encode(tokenizer, MULTI).mask("answer")
