"""Rows laid end to end: the states and gradients of rows that are padded."""

import pytest
import torch
from tiny import tiny_model
from torch.nn.utils.rnn import pad_sequence

from xb_lite.hidden import watch_layers, without_head
from xb_lite.models import packing as padding_free
from xb_lite.models.packing import as_rows, by_row, end_to_end

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = [5, 12, 1, 9]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    rows = [torch.randint(4, 40, (length,)) for length in LENGTHS]
    masks = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=3),
        "attention_mask": pad_sequence(masks, batch_first=True),
    }


def states_of(model, batch, laid):
    """Of the last layer, ``[row, token, dim]``, and what a loss of it says of the first weights."""
    seen = []
    inputs = end_to_end(batch) if laid else batch
    last = len(model.model.layers) - 1
    with watch_layers(model, [last], lambda _, state: seen.append(state), stop=False):
        model(**inputs, use_cache=False)
    (state,) = seen
    if laid:
        state = as_rows(state, inputs["row_lengths"], batch["input_ids"].shape[1])
    real = batch["attention_mask"].bool()
    weights = model.model.layers[0].mlp.up_proj.weight
    (gradient,) = torch.autograd.grad(state[real].float().square().mean(), weights)
    return state[real], gradient


@pytest.mark.parametrize("attention", ["eager", "sdpa", "by_row"])
@pytest.mark.parametrize("short", [0, 384])
@pytest.mark.parametrize("autocast", [False, True])
def test_states_and_gradients_are_those_of_padded_rows(
    tokenizer, batch, attention, short, autocast, monkeypatch
):
    monkeypatch.setattr(padding_free, "IN_FP32", short)
    model = tiny_model(tokenizer, num_key_value_heads=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = states_of(model, batch, laid=False)
        if attention == "by_row":
            with by_row(model):
                found = states_of(model, batch, laid=True)
                plain = states_of(model, batch, laid=False)
            torch.testing.assert_close(plain, wanted)
        else:
            model.set_attn_implementation(attention)
            found = states_of(model, batch, laid=True)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() <= (0.1 if autocast else 1e-5) * theirs.norm()
    assert model.config._attn_implementation == ("sdpa" if attention == "by_row" else attention)


def test_no_row_sees_further_than_the_models_window(tokenizer, batch):
    found = {}
    for window in (7, None):
        model = tiny_model(tokenizer, kind="mistral", sliding_window=window)
        wanted, _ = states_of(model, batch, laid=False)
        with by_row(model):
            found[window], _ = states_of(model, batch, laid=True)
        torch.testing.assert_close(found[window], wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[7], found[None], atol=1e-2)


def test_the_head_is_left_out_and_put_back(tokenizer, batch):
    model = tiny_model(tokenizer)
    head = model.get_output_embeddings()
    with without_head(model):
        assert model(**batch).logits.shape[-1] == model.config.hidden_size
    assert model.get_output_embeddings() is head
    assert model(**batch).logits.shape[-1] == head.weight.shape[0]


@pytest.mark.parametrize("window", [None, 6])
def test_tokens_that_all_rows_begin_with_can_stand_there_once(tokenizer, batch, window):
    """Their states, and the gradient that comes to them from every row, are as before."""
    sizes = {"kind": "mistral", "sliding_window": window} if window else {}
    model = tiny_model(tokenizer, **sizes)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    first = torch.tensor([7, 8, 9]).expand(len(ids), 3)
    batch = {
        "input_ids": torch.cat([first, ids], dim=1),
        "attention_mask": torch.cat([torch.ones_like(first), mask], dim=1),
    }
    real = batch["attention_mask"].bool()
    own = real.clone()
    own[1:, :3] = False
    weights = model.model.layers[0].mlp.up_proj.weight
    found = []
    for shared, counted in ((0, own[real]), (3, ...)):
        inputs = end_to_end(batch, shared)
        with by_row(model):
            states = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[-1]
        kept = states[0][counted]
        (gradient,) = torch.autograd.grad(kept.float().square().mean(), weights)
        found.append((kept, gradient))
    assert inputs["input_ids"].numel() == int(own.sum()) == sum(inputs["row_lengths"])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
