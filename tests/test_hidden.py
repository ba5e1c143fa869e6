"""Hidden states equal those of transformers, whatever the family, the padding and the batch."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from xb_lite import hidden
from xb_lite.dialogues import as_dialogue, encode
from xb_lite.hidden import (
    batches_by_length,
    decoder_layers,
    hidden_states,
    layers_at,
    watch_layers,
)

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 49152,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
FAMILIES = ["llama", "qwen2", "mistral", "gemma2", "gpt2", "phi"]
PROMPTS = [
    "Hi",
    "Name three rivers of Europe, please.",
    "Why is the sky blue? " * 6,
    "Add 2 and 3.",
]
DIALOGUES = [as_dialogue(prompt, "An answer." * (i + 1)) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture(params=FAMILIES)
def tiny(request):
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **TINY)
    return AutoModelForCausalLM.from_config(config).eval()


def reference(model, tokenizer, dialogues, padding_side="right"):
    """transformers' own hidden states of all dialogues in one padded batch, and their lengths."""
    rows = [encode(tokenizer, dialogue).input_ids for dialogue in dialogues]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=padding_side)
    mask = nn.utils.rnn.pad_sequence(
        [torch.ones_like(row) for row in rows], batch_first=True, padding_side=padding_side
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    return out.hidden_states, [len(row) for row in rows]


def n_hooks(model):
    """Forward hooks on the decoder layers; transformers leaves some of its own there."""
    return sum(len(layer._forward_hooks) for layer in decoder_layers(model))


def relative(found, wanted):
    return ((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max()


def test_exactly_those_of_transformers_in_the_same_batch(tiny, tokenizer):
    layers = [0, 2, 1]
    found = hidden_states(
        tiny, tokenizer, DIALOGUES, layers, pool=None, over="all", sink_tokens=0, batch_tokens=10**6
    )
    order = sorted(range(4), key=lambda i: -len(found[i]))
    wanted, lengths = reference(tiny, tokenizer, [DIALOGUES[i] for i in order])
    for row, i in enumerate(order):
        for place, layer in enumerate(layers):
            assert torch.equal(found[i][:, place], wanted[layer + 1][row, : lengths[row]])


def test_last_layer_is_the_state_before_the_final_norm(tiny, tokenizer):
    found = hidden_states(tiny, tokenizer, DIALOGUES[:1], [3], pool=None, over="all", sink_tokens=0)
    base = tiny.base_model
    norm = next(m for n, m in base.named_children() if n in ("norm", "ln_f", "final_layernorm"))
    wanted, _ = reference(tiny, tokenizer, DIALOGUES[:1])
    assert torch.equal(norm(found[0][:, 0]), wanted[-1][0])


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_padding_side_and_batch_do_not_matter(tiny, tokenizer, padding_side, pool):
    own = copy.deepcopy(tokenizer)
    own.padding_side = padding_side
    arguments = {"layers": [1, 2], "pool": pool, "over": "response"}
    alone = torch.cat([hidden_states(tiny, own, [d], **arguments) for d in DIALOGUES])
    for batch_tokens in (1, 100, 10**6):
        together = hidden_states(tiny, own, DIALOGUES, batch_tokens=batch_tokens, **arguments)
        assert relative(together, alone) < 1e-4
    backwards = hidden_states(tiny, own, DIALOGUES[::-1], **arguments).flip(0)
    assert relative(backwards, alone) < 1e-4


def test_a_tokenizer_needs_no_token_to_pad_with(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.pad_token = None
    model = tiny_model(tokenizer)
    found, wanted = (hidden_states(model, each, DIALOGUES, [1]) for each in (own, tokenizer))
    assert torch.equal(found, wanted)


def test_equal_to_left_padded_transformers(tiny, tokenizer):
    wanted, lengths = reference(tiny, tokenizer, DIALOGUES, padding_side="left")
    found = hidden_states(tiny, tokenizer, DIALOGUES, [2], pool="last", over="all")
    assert relative(found[:, 0], wanted[3][:, -1]) < 1e-4


def test_pools_over_the_mask(tiny, tokenizer):
    asked = [[*dialogue, *as_dialogue("And why?")] for dialogue in DIALOGUES]
    every = hidden_states(tiny, tokenizer, asked, [1, 2], pool=None, over="all", sink_tokens=0)
    for over in ("prompt", "response", "all", "sink"):
        masks = [encode(tokenizer, d).mask(over) for d in asked]
        last = hidden_states(tiny, tokenizer, asked, [1, 2], pool="last", over=over)
        mean = hidden_states(tiny, tokenizer, asked, [1, 2], pool="mean", over=over)
        kept = hidden_states(tiny, tokenizer, asked, [1, 2], pool=None, over=over)
        for i, mask in enumerate(masks):
            assert torch.allclose(kept[i], every[i][mask], atol=1e-5)
            assert torch.allclose(last[i], every[i][mask][-1], atol=1e-5)
            assert torch.allclose(mean[i], every[i][mask].mean(0), atol=1e-5)


def test_the_prompt_of_an_answered_dialogue_is_that_of_the_open_one(tiny, tokenizer):
    """Behind the response ChatML has a newline, which is given to nobody."""
    assert encode(tokenizer, DIALOGUES[0]).prompt[-1]
    earlier = as_dialogue("A river?", "The Rhine.")
    for before in ([], earlier):
        answered = [[*before, *dialogue] for dialogue in DIALOGUES]
        for pool in ("last", "mean"):
            found, wanted = (
                hidden_states(tiny, tokenizer, dialogues, [1, 2], pool)
                for dialogues in (answered, [dialogue[:-1] for dialogue in answered])
            )
            assert relative(found, wanted) < 1e-4


def test_nothing_above_the_highest_layer_is_computed(tiny, tokenizer):
    calls = []
    for i, layer in enumerate(decoder_layers(tiny)):
        layer.register_forward_pre_hook(lambda *_, i=i: calls.append(i))
    tiny.get_output_embeddings().register_forward_pre_hook(lambda *_: calls.append("head"))
    hidden_states(tiny, tokenizer, DIALOGUES, [0, 2], batch_tokens=10**6)
    assert calls == [0, 1, 2]


def test_model_is_whole_again_afterwards(tiny, tokenizer):
    before, _ = reference(tiny, tokenizer, DIALOGUES)
    hooks = n_hooks(tiny)
    hidden_states(tiny, tokenizer, DIALOGUES, [0])
    after, _ = reference(tiny, tokenizer, DIALOGUES)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert n_hooks(tiny) == hooks


def test_error_inside_leaves_no_hook(tiny):
    with pytest.raises(RuntimeError, match="stop"), watch_layers(tiny, [1], lambda *_: None):
        raise RuntimeError("stop")
    assert n_hooks(tiny) == 0


class TupleLayer(nn.Module):
    """A decoder layer of the older kind, which returns (state, ...)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, state, *args, **kwargs):
        return (self.layer(state, *args, **kwargs), None)


def test_layers_that_return_tuples_give_the_same(tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY)).eval()
    wanted = hidden_states(model, tokenizer, DIALOGUES, [0, 1])
    model.model.layers[1] = TupleLayer(model.model.layers[1])
    assert torch.equal(hidden_states(model, tokenizer, DIALOGUES, [0, 1]), wanted)


def test_masks_are_where_the_state_is(tokenizer, monkeypatch):
    """Layers of a large model lie on several GPUs; here the second lies on no device at all."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY)).eval()
    model.model.layers[1].register_forward_hook(lambda _module, _inputs, state: state.to("meta"))
    seen = []

    def last(state, mask):
        seen.append((state.device.type, mask.device.type))
        return [torch.zeros(TINY["hidden_size"])] * len(state)

    monkeypatch.setattr(hidden, "_last", last)
    hidden_states(model, tokenizer, DIALOGUES, [0, 1], batch_tokens=10**6)
    assert seen == [("cpu", "cpu"), ("meta", "meta")]


def test_works_on_a_peft_model_and_sees_the_adapter(tiny, tokenizer):
    wanted = hidden_states(tiny, tokenizer, DIALOGUES, [1, 2])
    lora = get_peft_model(tiny, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    lora.eval()
    assert relative(hidden_states(lora, tokenizer, DIALOGUES, [1, 2]), wanted) > 1e-3
    with lora.disable_adapter():
        assert torch.equal(hidden_states(lora, tokenizer, DIALOGUES, [1, 2]), wanted)


def test_gradients_flow_from_watched_layers(tiny, tokenizer):
    seen = {}
    ids = encode(tokenizer, DIALOGUES[0]).input_ids[None]
    with watch_layers(tiny, [0, 2], seen.__setitem__):
        tiny(input_ids=ids)
    seen[2].sum().backward()
    gradients = [next(layer.parameters()).grad is not None for layer in decoder_layers(tiny)]
    assert gradients == [True, True, True, False]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"layers": [4]}, r"layers \[4\] .* 0 to 3"),
        ({"layers": [-1]}, r"layers \[-1\]"),
        ({"layers": []}, r"layers \[\]"),
        ({"layers": [0], "pool": "max"}, "not 'max'"),
        ({"layers": [0], "over": "answer"}, "dialogue 0: no mask 'answer'"),
        ({"layers": [0], "dialogues": [DIALOGUES[0], []]}, "dialogue 1: a dialogue is a non-empty"),
        (
            {"layers": [0], "dialogues": [DIALOGUES[0], as_dialogue("Hi")], "over": "response"},
            "dialogue 1: it has no response token",
        ),
    ],
)
def test_bad_input_is_named_before_any_forward_pass(tokenizer, arguments, complaint):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **TINY))
    model.forward = None
    with pytest.raises(ValueError, match=complaint):
        hidden_states(model, tokenizer, **{"dialogues": DIALOGUES, **arguments})


def test_no_dialogues_give_an_empty_tensor(tiny, tokenizer):
    assert hidden_states(tiny, tokenizer, [], [0, 1]).shape == (0, 2, 32)


def test_batches_cover_all_within_the_budget():
    lengths = [5, 30, 7, 7, 100, 1]
    batches = list(batches_by_length(lengths, 40))
    assert sorted(sum(batches, [])) == list(range(6))
    assert all(len(b) * max(lengths[i] for i in b) <= 40 for b in batches if len(b) > 1)
    assert batches[0] == [4]


def test_default_model_agrees_with_transformers(default_model):
    model, tokenizer = default_model
    found = hidden_states(model, tokenizer, DIALOGUES, [9, 19], pool="last", over="all")
    wanted, lengths = reference(model, tokenizer, DIALOGUES)
    for place, layer in enumerate((9, 19)):
        last = torch.stack([wanted[layer + 1][i, n - 1] for i, n in enumerate(lengths)])
        assert relative(found[:, place], last) < 1e-4


def test_layers_at_shares_of_the_depth(tokenizer):
    model = tiny_model(tokenizer, num_hidden_layers=6)
    assert layers_at(model, [1 / 6, 1 / 3, 0.5, 1.0]) == [0, 1, 2, 5]
    assert layers_at(model, [0.01]) == [0]
    with pytest.raises(ValueError, match="above 0 and at most 1, not 0"):
        layers_at(model, [0.0])


def test_a_layer_that_is_not_there_leaves_no_hook(tokenizer):
    model = tiny_model(tokenizer, num_hidden_layers=2)
    for layers in ([0, 7], []):
        watched = hidden.watch_layers(model, layers, print)
        with pytest.raises(ValueError, match="decoder layers 0 to 1"), watched:
            pass
    assert not any(module._forward_hooks for module in model.modules())
