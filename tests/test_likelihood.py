"""Log-probabilities of responses equal those of one dialogue at a time, computed plainly."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

from xb_lite.dialogues import as_dialogue, encode
from xb_lite.models import likelihood
from xb_lite.models.likelihood import response_log_probs


def turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


DIALOGUES = [
    as_dialogue("Hi", "Yes."),
    as_dialogue("Why is the sky blue? " * 9, "Light of short waves is scattered more. " * 4),
    turns("Name a river.", "The Rhine.", "And a sea?", "The North Sea, into which it flows."),
    as_dialogue("Add 2 and 3.", "", system="Be brief."),
    turns("One", "Two", "Three", "Four", "Five", "Six" * 20),
]


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2"])
def tiny(request, tokenizer):
    """A small random model in fp32."""
    return tiny_model(tokenizer, request.param)


@torch.no_grad()
def plainly(model, tokenizer, dialogue):
    """One forward pass over the dialogue alone, all logits, no padding."""
    encoding = encode(tokenizer, dialogue)
    log_probs = model(encoding.input_ids[None]).logits[0].double().log_softmax(-1)
    places = encoding.response.nonzero()[:, 0].tolist()
    return torch.tensor([log_probs[t - 1, encoding.input_ids[t]] for t in places])


def close(found, wanted):
    return all(torch.allclose(a, b.float(), atol=1e-4) for a, b in zip(found, wanted, strict=True))


def test_equal_to_a_plain_computation_of_each_alone(tiny, tokenizer):
    wanted = [plainly(tiny, tokenizer, dialogue) for dialogue in DIALOGUES]
    found = response_log_probs(tiny, tokenizer, DIALOGUES)
    assert close(found, wanted) and len({len(w) for w in wanted}) > 3
    assert all(f.dtype == torch.float32 and (f < 0).all() for f in found)


def test_batches_and_their_order_do_not_matter(tiny, tokenizer, monkeypatch):
    together = response_log_probs(tiny, tokenizer, DIALOGUES)
    assert close(response_log_probs(tiny, tokenizer, DIALOGUES[::-1])[::-1], together)
    for tokens in (1, 200):
        monkeypatch.setattr(likelihood, "BATCH_TOKENS", tokens)
        assert close(response_log_probs(tiny, tokenizer, DIALOGUES), together)


def test_all_turns_of_the_assistant_count_and_the_ends_of_turns(tiny, tokenizer):
    (found,) = response_log_probs(tiny, tokenizer, DIALOGUES[2:3])
    replies = [m["content"] for m in DIALOGUES[2] if m["role"] == "assistant"]
    tokens = [len(tokenizer(reply)["input_ids"]) for reply in replies]
    assert len(found) == sum(tokens) + 2
    # What is said later does not change what was said before.
    (first,) = response_log_probs(tiny, tokenizer, [DIALOGUES[2][:2]])
    assert torch.allclose(found[: tokens[0] + 1], first, atol=1e-4)
    # Of an empty response, the end of the turn is what is left.
    assert [len(f) for f in response_log_probs(tiny, tokenizer, DIALOGUES[3:4])] == [1]


def test_an_adapter_counts_and_can_be_switched_off(tokenizer, tiny):
    if tiny.config.model_type != "llama":
        pytest.skip("its layers have other names")
    plain = response_log_probs(tiny, tokenizer, DIALOGUES)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = get_peft_model(tiny, lora).eval()
    try:
        found = response_log_probs(wrapped, tokenizer, DIALOGUES)
        assert close(found, [plainly(wrapped, tokenizer, d) for d in DIALOGUES])
        assert not close(found, plain)
        with wrapped.disable_adapter():
            assert close(response_log_probs(wrapped, tokenizer, DIALOGUES), plain)
    finally:
        wrapped.unload()


def test_without_a_response_there_is_nothing_to_count(tiny, tokenizer):
    question = as_dialogue("Why?")
    assert [len(f) for f in response_log_probs(tiny, tokenizer, [question])] == [0]
    found = response_log_probs(tiny, tokenizer, [question, DIALOGUES[0]])
    assert len(found[0]) == 0 and close(found[1:], [plainly(tiny, tokenizer, DIALOGUES[0])])
    assert response_log_probs(tiny, tokenizer, []) == []


def test_a_long_response_is_cut_where_it_is_told(tiny, tokenizer):
    with pytest.warns(UserWarning, match="max_length=40"):
        (cut,) = response_log_probs(tiny, tokenizer, DIALOGUES[1:2], max_length=40)
    assert 0 < len(cut) < 40


@pytest.mark.parametrize("bad", ["Hello", [], [{"role": "user"}], [{"role": "x", "content": ""}]])
def test_a_malformed_dialogue_is_refused(tiny, tokenizer, bad):
    with pytest.raises(ValueError):
        response_log_probs(tiny, tokenizer, [DIALOGUES[0], bad])
