"""Replies in batches and over turns are those of one dialogue at a time."""

import copy

import pytest
import torch
from tiny import tiny_model
from tokenizers import decoders
from transformers import GenerationConfig

from xb_lite.dialogues import as_dialogue, render
from xb_lite.replies.local import LocalBackend, TooLongError
from xb_lite.replies.talk import token_ids
from xb_lite.replies.types import Decoding

SHORT = Decoding(max_new_tokens=8)
PROMPTS = ["Hi.", "Name three rivers of Europe, please.", "Why is the sky blue? " * 4]
SCRIPTS = [
    ["Name a river.", "And a sea?", "Which is longer?"],
    ["Hello there, how are you doing on this fine day?", "Good.", "Bye."],
    ["What is two plus three?", "And four?"],
]


@pytest.fixture(scope="module")
def backend(tokenizer):
    """A small random model in fp32, in which a batch can be compared exactly."""
    return LocalBackend(tiny_model(tokenizer, hidden_size=64, num_hidden_layers=3), tokenizer)


def one_at_a_time(backend, script, decoding):
    """Every turn with a fresh prefill of the whole dialogue."""
    dialogue, replies = [], []
    for turn in script:
        dialogue.append({"role": "user", "content": turn})
        replies += backend.reply([dialogue], decoding)
        dialogue.append({"role": "assistant", "content": replies[-1].text})
    return replies


def test_a_batch_says_what_each_dialogue_alone_would(backend):
    dialogues = [as_dialogue(prompt) for prompt in PROMPTS]
    together = backend.reply(dialogues, SHORT)
    assert together == [backend.reply([dialogue], SHORT)[0] for dialogue in dialogues]
    assert len({reply.text for reply in together}) > 1


def test_order_and_batch_size_do_not_matter(backend):
    dialogues = [as_dialogue(prompt) for prompt in PROMPTS]
    small = LocalBackend(backend.model, backend.tokenizer, batch_tokens=1)
    assert small.reply(dialogues[::-1], SHORT)[::-1] == backend.reply(dialogues, SHORT)


def test_turns_are_those_of_a_fresh_prefill(default_model):
    # A real model: what a random one says is often spelled by other tokens when read again.
    backend, few = LocalBackend(*default_model), Decoding(max_new_tokens=5)
    for script, replies in zip(SCRIPTS, backend.play(SCRIPTS, few), strict=True):
        assert replies == one_at_a_time(backend, script, few)


def test_scripts_of_different_length_play_side_by_side(backend):
    scripts = [SCRIPTS[0], SCRIPTS[1][:1], SCRIPTS[2]]
    played = backend.play(scripts, SHORT)
    assert [len(replies) for replies in played] == [3, 1, 2]
    assert played == [backend.play([script], SHORT)[0] for script in scripts]


def test_scripts_of_a_model_with_sliding_windows_play_side_by_side(tokenizer):
    model = tiny_model(tokenizer, "mistral", hidden_size=64, sliding_window=16)
    backend, longer = LocalBackend(model, tokenizer), Decoding(max_new_tokens=12)
    scripts = [SCRIPTS[0], SCRIPTS[1], [f"{SCRIPTS[2][0]} " * 3, *SCRIPTS[2][1:], "Why?"]]
    together = backend.play(scripts, longer)
    assert together == [backend.play([script], longer)[0] for script in scripts]


def test_later_turns_read_only_what_is_new(backend):
    lengths = []

    def count(_module, _args, options):
        lengths.append(options["input_ids"].shape[1])

    handle = backend.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        whole = backend.play(SCRIPTS[:1], SHORT)[0]
    finally:
        handle.remove()
    prefills = [length for length in lengths if length > 1]
    assert len(prefills) == 3
    # The second and third prefill are one turn with its tags and the last token said, not all.
    assert all(length < 20 for length in prefills[1:])
    assert whole[2].prompt_tokens > 60


def test_a_template_that_trims_replies_still_gives_the_same(backend, tokenizer):
    trimming = copy.deepcopy(tokenizer)
    trimming.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n {% endif %}"
    )
    own = LocalBackend(backend.model, trimming)
    for script, replies in zip(SCRIPTS, own.play(SCRIPTS, SHORT), strict=True):
        assert replies == one_at_a_time(own, script, SHORT)


def test_prefill_begins_the_reply(backend):
    (reply,) = backend.reply([as_dialogue("Name a river.")], SHORT, prefill="Sure, here")
    assert reply.text.startswith("Sure, here") and len(reply.text) > len("Sure, here")
    # And it is read: the model goes on with it.
    (plain,) = backend.reply([as_dialogue("Name a river.")], SHORT)
    begun = backend.tokenizer("Sure, here", add_special_tokens=False)["input_ids"]
    assert reply.prompt_tokens == plain.prompt_tokens + len(begun)


def test_a_space_behind_the_prefill_stays_whatever_the_decoder(default_model):
    model, tokenizer = default_model
    like_llama = copy.deepcopy(tokenizer)
    like_llama.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]
    )
    assert like_llama.decode(tokenizer(" plan")["input_ids"]) == "plan"
    asked, short = [as_dialogue("Name a river."), as_dialogue("Hi.")], Decoding(max_new_tokens=4)
    replies = LocalBackend(model, tokenizer).reply(asked, short, "Sure, here")
    assert any(reply.text.startswith("Sure, here ") for reply in replies)
    assert LocalBackend(model, like_llama).reply(asked, short, "Sure, here") == replies


@pytest.mark.parametrize("prefill", ["", "Sure, here"])
def test_a_second_turn_on_the_cache_is_that_of_a_longer_dialogue(default_model, prefill):
    backend, first = LocalBackend(*default_model), Decoding(max_new_tokens=3)
    history = as_dialogue("Hello there.", "Hi.", system="Be brief.")
    dialogues = [as_dialogue(PROMPTS[2]), [*history, *as_dialogue(PROMPTS[1])]]
    said = backend.reply(dialogues, first)
    longer = [
        [*dialogue, {"role": "assistant", "content": reply.text}, *as_dialogue("Why?")]
        for dialogue, reply in zip(dialogues, said, strict=True)
    ]
    then = backend.reply(longer, SHORT, prefill)
    twice = backend.reply_twice(dialogues, "Why?", first, SHORT, prefill)
    assert twice == [list(both) for both in zip(said, then, strict=True)]


def test_second_turns_keep_their_order_in_batches_of_one(backend):
    dialogues = [as_dialogue(prompt) for prompt in PROMPTS]
    small = LocalBackend(backend.model, backend.tokenizer, batch_tokens=1)
    together = backend.reply_twice(dialogues, "Why?", SHORT, SHORT)
    assert small.reply_twice(dialogues[::-1], "Why?", SHORT, SHORT)[::-1] == together
    assert len({second.text for _, second in together}) > 1
    assert backend.reply_twice([], "Why?", SHORT, SHORT) == []


@pytest.mark.parametrize("turn", [None, "  "])
def test_a_second_turn_is_a_text(turn):
    nothing = LocalBackend(None, None)
    with pytest.raises(ValueError, match="the second turn is not a text"):
        nothing.reply_twice([as_dialogue("a")], turn, SHORT, SHORT)
    with pytest.raises(ValueError, match="dialogue 0 ends with the assistant's turn"):
        nothing.reply_twice([as_dialogue("a", "b")], "Why?", SHORT, SHORT)


def test_sampling_is_repeatable_by_its_seed(backend):
    def said(seed):
        warm = Decoding(max_new_tokens=8, temperature=1.5, seed=seed)
        return [r.text for replies in backend.play(SCRIPTS, warm) for r in replies]

    state = torch.get_rng_state()
    assert said(1) == said(1) != said(2)
    assert torch.equal(state, torch.get_rng_state())


def test_every_batch_draws_numbers_of_its_own(backend):
    small = LocalBackend(backend.model, backend.tokenizer, batch_tokens=1)
    warm = Decoding(max_new_tokens=8, temperature=1.0)
    replies = small.reply([as_dialogue("Name a river.")] * 6, warm)
    assert len({reply.text for reply in replies}) == 6
    assert replies == small.reply([as_dialogue("Name a river.")] * 6, warm)


def test_default_model_ends_its_turn(default_model):
    backend = LocalBackend(*default_model)
    replies = backend.reply([as_dialogue("What is 12+30?")], Decoding(max_new_tokens=30))
    assert replies[0].finished and replies[0].new_tokens < 30
    assert "<|im_end|>" not in replies[0].text
    cut = backend.reply([as_dialogue("What is 12+30?")], Decoding(max_new_tokens=2))[0]
    assert not cut.finished and cut.new_tokens == 2


def test_what_a_models_file_says_of_decoding_does_not_count(backend, monkeypatch):
    dialogues = [as_dialogue(prompt) for prompt in PROMPTS]
    plain = backend.reply(dialogues, SHORT)
    said = backend.tokenizer(plain[0].text)["input_ids"]
    asks = GenerationConfig(
        eos_token_id=2, repetition_penalty=5.0, no_repeat_ngram_size=1, suppress_tokens=said
    )
    monkeypatch.setattr(backend.model, "generation_config", asks)
    assert backend.reply(dialogues, SHORT) == plain
    assert backend.model.generation_config is asks


@pytest.mark.parametrize("ends", [None, 5, [5, 7]])
def test_the_tokenizers_end_ends_a_reply_whatever_the_models_file_names(
    default_model, monkeypatch, ends
):
    backend = LocalBackend(*default_model)
    monkeypatch.setattr(backend.model.generation_config, "eos_token_id", ends)
    (reply,) = backend.reply([as_dialogue("What is 12+30?")], Decoding(max_new_tokens=30))
    assert reply.finished and reply.new_tokens < 30


@pytest.mark.parametrize(
    ("dialogues", "complaint"),
    [
        ([as_dialogue("a"), []], "dialogue 1: a dialogue is a non-empty list"),
        ([as_dialogue("a", "b")], "dialogue 0 ends with the assistant's turn"),
        (["hello"], "dialogue 0: a dialogue is a non-empty list"),
    ],
)
def test_malformed_dialogues_are_named(backend, dialogues, complaint):
    with pytest.raises(ValueError, match=complaint):
        backend.reply(dialogues, SHORT)


@pytest.mark.parametrize("script", [[], "one long turn", [None], ["fine", "  "]])
def test_malformed_scripts_are_named(backend, script):
    with pytest.raises(ValueError, match="script 1 "):
        backend.play([["fine"], script], SHORT)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_new_tokens": bad} for bad in (0, -1, 1.5, "9", True, None, 10**400)),
        *({"temperature": bad} for bad in (-1.0, "1", True, None, float("nan"), float("inf"))),
        *({"top_p": bad} for bad in (0.0, 1.1, "1", None, float("nan"))),
        *({"seed": bad} for bad in (1.5, "0", None, 2**64)),
    ],
    ids=str,
)
def test_impossible_decoding_is_refused(wrong):
    with pytest.raises(ValueError, match="max_new_tokens must be a whole number of at least 1"):
        Decoding(**wrong)


def test_a_whole_number_is_a_temperature(backend):
    assert Decoding(temperature=5) == Decoding(temperature=5.0)
    (reply,) = backend.reply([as_dialogue("Hi.")], Decoding(4, temperature=5))
    assert reply.new_tokens <= 4


def test_what_does_not_fit_into_the_model_is_known_before(backend, monkeypatch):
    text, prefill = render(backend.tokenizer, as_dialogue(PROMPTS[1])), "Sure, here"
    read = sum(len(token_ids(backend.tokenizer, some)) for some in (text, prefill))
    monkeypatch.setattr(backend.model.config, "max_position_embeddings", read + 8)
    dialogues = [as_dialogue(prompt) for prompt in PROMPTS[:2]]
    backend.check(dialogues, 8, prefill)
    words = rf"{read} tokens \('Name three.*up to 9 would"
    with pytest.raises(TooLongError, match=words) as caught:
        backend.check(dialogues, 9, prefill)
    assert (caught.value.read, caught.value.most) == (read, read + 8)
    backend.check(dialogues, 9)  # without the prefill


def test_nothing_in_nothing_out(backend):
    assert backend.reply([], SHORT) == [] and backend.play([], SHORT) == []
