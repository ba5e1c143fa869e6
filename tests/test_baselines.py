"""Each baseline moves what it should, by the same ways in and out as X-Boundary."""

import math
import os
import signal
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_sets
from torch import nn

from xb_lite.boundary.steering import refusal_direction, steered
from xb_lite.corpora import SHORT_REFUSAL
from xb_lite.dialogues import as_dialogue, encode
from xb_lite.hidden import watch_layers
from xb_lite.losses.batch import collate
from xb_lite.models.adapters import WEIGHTS, merged
from xb_lite.models.likelihood import response_log_probs, token_losses
from xb_lite.models.precision import Precision
from xb_lite.recipes import RecipeError, load_recipe
from xb_lite.training.baselines import REPLY, dpo, draw, sft
from xb_lite.training.lora import TrainingError, adapted
from xb_lite.training.run import train

EXACT = Precision("cpu", torch.float32, None, "tests")
METHODS = ("sft", "dpo", "gradient-ascent", "refusal-tuning")
FILES = {"refusal-tuning": "aligned-smollm2-135m"}
SETS = tiny_sets()
ANSWERS = [
    *SETS["compliant"],
    *SETS["compliant_prefilled"],
    *SETS["benign"],
    *SETS["benign_prefilled"],
]


pytestmark = pytest.mark.usefixtures("one_thread")


def small(method, **changes):
    sizes = {"lora_layers": 2, "rank": 4, "steps": 3, "pairs": 4, "pairs_at_once": 4}
    rates = {"learning_rate": 0.02, "max_tokens": 128}
    name = FILES.get(method, f"{method}-smollm2-135m")
    return load_recipe(name, **{**sizes, **rates, **changes})


def run(recipe, tokenizer, folder, **how):
    return train(recipe, tiny_model(tokenizer), tokenizer, SETS, folder, EXACT, **how)


def likelihoods(model, tokenizer):
    """Mean log-probability of a token: of the refusal and of the response to harmful requests, and
    of the responses to keep."""

    def mean(dialogues):
        return torch.cat(response_log_probs(model, tokenizer, dialogues)).mean()

    refused = [[*d[:-1], *REPLY] for d in SETS["harmful"]]
    return mean(refused), mean(SETS["harmful"]), mean(ANSWERS)


@pytest.mark.parametrize("method", METHODS)
def test_each_moves_what_it_should(tmp_path, tokenizer, method):
    model = tiny_model(tokenizer)
    refusal, harmful, keep = likelihoods(model, tokenizer)
    curve = train(small(method), model, tokenizer, SETS, tmp_path, EXACT).curve
    assert [row["step"] for row in curve] == [1, 2, 3]
    assert likelihoods(model, tokenizer) == (refusal, harmful, keep)  # it is as before
    assert "forward" not in vars(model)
    new_refusal, new_harmful, new_keep = likelihoods(merged(model, tmp_path), tokenizer)
    if method == "sft":
        assert new_refusal > refusal + 0.1 and new_keep > keep
    elif method == "dpo":
        assert new_refusal - new_harmful > refusal - harmful + 0.1
        assert curve[-1]["margin"] > curve[0]["margin"] == 0
        assert curve[0]["loss"] == pytest.approx(math.log(2))
    elif method == "refusal-tuning":
        assert new_refusal > refusal + 0.1
        assert curve[-1]["drift"] > 0 and abs(curve[0]["drift"]) < 1e-5
    else:
        assert new_keep - new_harmful > keep - harmful + 0.1
        assert curve[0]["loss"] == pytest.approx(curve[0]["keep"] - curve[0]["change"], abs=1e-4)


def test_drift_is_the_divergence_from_the_model_without_the_adapter(tmp_path, tokenizer):
    recipe = small("refusal-tuning", pairs=1, pairs_at_once=1, steps=1, lora_std=0.3)
    pair = draw(recipe, SETS, tokenizer, 0)[0]
    row, keep = pair.keep.encoding, tiny_model(tokenizer)

    def log_probs(model):
        return model(row.input_ids[None]).logits[0, :-1].log_softmax(-1)[row.response[1:]]

    with torch.no_grad():
        before = log_probs(keep)
        with adapted(keep, recipe, 0) as learning:
            now = log_probs(learning)
    by_hand = float((before.exp() * (before - now)).sum(-1).mean())
    drift = run(recipe, tokenizer, tmp_path).curve[0]["drift"]
    assert drift == pytest.approx(by_hand, rel=1e-4) and drift > 0.01


def test_dpo_keeps_answers_as_it_keeps_refusals(tmp_path, tokenizer):
    """Of an item to keep its own answer is preferred to the refusal."""
    kept = ANSWERS

    def margin(model):
        refused = [[*d[:-1], *REPLY] for d in kept]
        own, refusal = (response_log_probs(model, tokenizer, d) for d in (kept, refused))
        return sum(x.sum() for x in own) - sum(x.sum() for x in refusal)

    model = tiny_model(tokenizer)
    before = margin(model)
    run(small("dpo"), tokenizer, tmp_path)
    assert margin(merged(model, tmp_path)) > before


@pytest.mark.parametrize("method, build", [("sft", sft), ("dpo", dpo)])
def test_the_loss_is_that_of_trl(tmp_path, tokenizer, method, build):
    weight = {"sft": 1, "dpo": 0.5}[method]
    recipe = small(method, pairs=1, pairs_at_once=1, lora_std=0.3, weight=weight)
    pairs = draw(recipe, SETS, tokenizer, 0)
    with adapted(tiny_model(tokenizer), recipe, 0) as learning:
        trainer = build(recipe, learning, tokenizer, pairs, tmp_path, EXACT, 0)
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.current_gradient_accumulation_steps = 1
        count = (batch["labels"] != -100).sum() if method == "sft" else None
        found, wanted = (
            of.compute_loss(learning, dict(batch), num_items_in_batch=count)
            for of in (trainer, super(type(trainer), trainer))
        )
    assert found.requires_grad and found.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert abs(found.item() - math.log(2)) > 0.1  # the adapter is not as at LoRA's usual start


@pytest.mark.parametrize("method", METHODS)
def test_trl_trains_no_model_that_thinks(tokenizer, monkeypatch, method):
    """It renders dialogues otherwise than everything else here."""
    thinking = tokenizer.chat_template + "{% if add_generation_prompt %}<think>\n{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", thinking)
    if method in ("sft", "dpo"):
        with pytest.raises(RecipeError, match=f"{method} cannot train a model that thinks"):
            draw(small(method), SETS, tokenizer, 0)
    else:
        assert draw(small(method), SETS, tokenizer, 0)


@pytest.mark.parametrize("method", METHODS)
def test_neither_stopping_nor_smaller_passes_change_what_is_learned(tmp_path, tokenizer, method):
    recipe = small(method, steps=4)
    rows = []
    # With seed 0 sft has a gradient next to nothing, whose sign Adam makes a step of.
    whole = run(recipe, tokenizer, tmp_path / "whole", on_step=rows.append, seed=1)
    assert rows == whole.curve

    def interrupt(row):
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tokenizer, tmp_path / "parts", on_step=interrupt, seed=1)
    assert not (tmp_path / "parts" / WEIGHTS).exists()
    seen = []
    parts = run(recipe, tokenizer, tmp_path / "parts", on_step=seen.append, seed=1)
    assert 0 < len(seen) < 4
    assert parts.curve == whole.curve
    smaller = replace(recipe, pairs_at_once=2)
    curve = run(smaller, tokenizer, tmp_path / "small", seed=1).curve
    for row, wanted in zip(curve, whole.curve, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    a, b, c = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "parts", "small"))
    assert a.keys() == b.keys() == c.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name])
        assert torch.allclose(value, c[name], atol=1e-3)
    # A finished run is not made again.
    again = run(recipe, tokenizer, tmp_path / "whole", on_step=pytest.fail, seed=1)
    assert again.curve == whole.curve


def test_items_are_seen_in_the_order_drawn_and_as_everywhere_in_the_book(tmp_path, tokenizer):
    changes = {"refusal_share": 0.25, "multi_turn_share": 0.5}
    recipe = small("sft", pairs=2, pairs_at_once=1, **changes)
    pairs = draw(recipe, SETS, tokenizer, 0)
    with adapted(tiny_model(tokenizer), recipe, 0) as learning:
        trainer = sft(recipe, learning, tokenizer, pairs, tmp_path, EXACT, 0)
        batches = list(trainer.get_train_dataloader())
    rows = [row for pair in pairs for row in (pair.change, pair.keep)]
    assert sum(len(batch["input_ids"]) for batch in batches) == len(rows) == 2 * 2 * 3
    seen = [
        (ids[mask.bool()], labels[mask.bool()])
        for batch in batches
        for ids, labels, mask in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        )
    ]
    for row, (ids, labels) in zip(rows, seen, strict=True):
        assert torch.equal(ids, row.encoding.input_ids)
        # trl counts all after the last response begins: here the line break after its end, too.
        first = len(encode(tokenizer, row.dialogue[:-1]))
        assert (labels[:first] == -100).all() and torch.equal(labels[first:], ids[first:])
    assert {len(row.dialogue) > 2 for row in rows} == {True, False}


def test_a_harmful_item_comes_with_one_to_keep_in_the_shares_asked_for(tokenizer):
    recipe = small("gradient-ascent", steps=10, boundary_share=0.5, refusal_share=0.25)
    pairs = draw(recipe, SETS, tokenizer, 0)
    assert sum(pair.change.dialogue in SETS["harmful"] for pair in pairs) == 35
    assert sum(pair.change.dialogue in SETS["harmful_dialogues"] for pair in pairs) == 5
    for step in range(10):
        of_step = pairs[4 * step : 4 * step + 4]
        compliant = [*SETS["compliant"], *SETS["compliant_prefilled"]]
        assert sum(pair.keep.dialogue in compliant for pair in of_step) == 2
    for dialogues, wanted in (
        (SETS["refused"], 10),
        (SETS["compliant"], 10),
        (SETS["compliant_prefilled"], 10),
        (SETS["benign"], 4),
        (SETS["benign_prefilled"], 4),
        (SETS["benign_dialogues"], 1),
        (SETS["benign_dialogues_prefilled"], 1),
    ):
        assert sum(pair.keep.dialogue in dialogues for pair in pairs) == wanted
    # Where no harmful request was complied with there still are requests to refuse.
    pairs = draw(small("sft"), SETS.having(harmful=[]), tokenizer, 0)
    assert {pair.change.dialogue[-1]["content"] for pair in pairs} == {SHORT_REFUSAL}
    asked = [pair.change.dialogue[:-1] for pair in pairs]
    assert all(dialogue[:-1] in asked for dialogue in SETS["refused"])


@pytest.mark.parametrize("method", ["sft", "refusal-tuning"])
def test_methods_that_learn_refusals_see_no_harmful_response(tokenizer, method):
    recipe = small(method, steps=10, multi_turn_share=0.5)
    pairs = draw(recipe, SETS, tokenizer, 0)
    harmful = {d[-1]["content"] for d in (*SETS["harmful"], *SETS["harmful_dialogues"])}
    for pair in pairs:
        assert not harmful & {m["content"] for m in (*pair.change.dialogue, *pair.keep.dialogue)}
        row = pair.change.encoding
        assert tokenizer.decode(row.input_ids[row.response]) == f"{SHORT_REFUSAL}<|im_end|>"
    several = [pair.change.dialogue for pair in pairs if len(pair.change.dialogue) > 2]
    whole = [[*d[:-1], *REPLY] for d in SETS["harmful_dialogues"]]
    assert len(several) > 5 and all(dialogue in whole for dialogue in several)


def test_dpo_rejects_the_last_reply_of_a_dialogue(tmp_path, tokenizer):
    shares = {"boundary_share": 0, "multi_turn_share": 1}
    recipe = small("dpo", pairs=2, pairs_at_once=2, steps=1, **shares)
    pairs = draw(recipe, SETS, tokenizer, 0)
    with adapted(tiny_model(tokenizer), recipe, 0) as learning:
        trainer = dpo(recipe, learning, tokenizer, pairs, tmp_path, EXACT, 0)
        (batch,) = trainer.get_train_dataloader()
    chosen, rejected = [], []
    for pair in pairs:
        change, keep = pair.change.dialogue, pair.keep.dialogue
        assert change in SETS["harmful_dialogues"]
        assert keep in SETS["benign_dialogues"] + SETS["benign_dialogues_prefilled"]
        chosen += [[*change[:-1], *REPLY], keep]
        rejected += [change, [*keep[:-1], *REPLY]]
    for i, dialogue in enumerate([*chosen, *rejected]):
        seen = batch["attention_mask"][i].bool()
        ids = encode(tokenizer, dialogue).input_ids
        assert torch.equal(batch["input_ids"][i][seen], ids)
        begin = len(encode(tokenizer, dialogue[:-1]))
        assert batch["completion_mask"][i][seen].tolist() == [t >= begin for t in range(len(ids))]


def test_what_a_method_does_not_have_is_refused(tmp_path, tokenizer):
    for recipe, sets, words in (
        (small("sft", weight=2), SETS, "weight is 2; it must be 1"),
        (small("dpo", refusal_share=0.5), SETS, "refusal_share is 0.5; it must be 0"),
        (small("dpo", boundary_share=1), SETS.having(harmful=[]), "harmful set is empty"),
    ):
        with pytest.raises(RecipeError, match=words):
            train(recipe, tiny_model(tokenizer), tokenizer, sets, tmp_path, EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_that_leaves_no_room_for_a_response_is_refused(tokenizer, method):
    long = [as_dialogue("word " * 200, "yes"), *SETS["benign"][1:]]
    recipe = small(method, boundary_share=0, refusal_share=0, steps=6)
    with (
        pytest.raises(RecipeError, match="max_tokens is 128; it must be more"),
        pytest.warns(UserWarning, match="cut to 12"),
    ):
        draw(recipe, SETS.having(benign=long), tokenizer, 0)
    # A response that is too long is cut.
    long[0] = as_dialogue("yes", "word " * 200)
    with pytest.warns(UserWarning, match="cut to 12"):
        pairs = draw(recipe, SETS.having(benign=long), tokenizer, 0)
    assert 120 < max(map(len, pairs)) <= 128


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_without_trl_the_message_says_what_to_install(tmp_path, tokenizer, monkeypatch, method):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(TrainingError, match=r"pip install 'xb-lite\[baselines\]'"):
        run(small(method), tokenizer, tmp_path)


def test_trl_tells_nobody_of_a_run_and_writes_nothing_on_the_screen(
    tmp_path, tokenizer, monkeypatch, capfd
):
    from trl.trainer import base_trainer

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(
        base_trainer, "send_telemetry", lambda *_, **__: pytest.fail("told"), raising=False
    )
    run(small("sft", steps=1), tokenizer, tmp_path)
    printed = capfd.readouterr()
    assert "examples/s" not in printed.err and printed.out == ""


def test_a_loss_that_is_not_finite_ends_the_run_at_the_last_good_weights(tmp_path, tokenizer):
    with pytest.raises(TrainingError, match="loss of step 2 is not finite .*last_good"):
        run(small("sft", learning_rate=1e30), tokenizer, tmp_path)
    good = load_file(tmp_path / "last_good" / WEIGHTS)
    assert all(value.isfinite().all() for value in good.values())


def test_the_vocabulary_is_read_out_where_it_is_asked_for(tokenizer):
    changes = {"pairs": 2, "pairs_at_once": 2, "multi_turn_share": 0}
    model, recipe = tiny_model(tokenizer), small("gradient-ascent", **changes)
    pairs = draw(recipe, SETS, tokenizer, 0)[:2]
    batch = collate(pairs, tokenizer.pad_token_id)
    rows = [pair.change for pair in pairs] + [pair.keep for pair in pairs]
    wanted = response_log_probs(model, tokenizer, [row.dialogue for row in rows])
    losses = token_losses(model, model, batch, batch["response"])
    assert losses.shape == batch["response"].shape and (losses[~batch["response"]] == 0).all()
    for values, mask, own in zip(losses, batch["response"], wanted, strict=True):
        assert torch.allclose(-values[mask], own, atol=1e-4)
    assert model(batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape  # undone


# Steering


def test_refusal_direction_is_the_difference_of_the_means(tokenizer):
    model = tiny_model(tokenizer)
    harmful, harmless = ["bad", "a much worse thing than that"], ["good", "nice day", "some tea"]

    @torch.no_grad()
    def state(prompt):
        ids = encode(tokenizer, as_dialogue(prompt)).input_ids[None]
        return model(ids, output_hidden_states=True).hidden_states[1][0, -1]  # after layer 0

    wanted = sum(map(state, harmful)) / 2 - sum(map(state, harmless)) / 3
    found = refusal_direction(model, tokenizer, harmful, harmless, layer=0)
    assert found.shape == (32,) and found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="harmful and harmless"):
        refusal_direction(model, tokenizer, harmful, [], layer=0)


class TupleLayer(nn.Module):
    """A decoder layer as in families that return a tuple."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return (self.layer(*args, **kwargs), "more")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("as_tuple", [False, True])
def test_steering_adds_the_vector_at_every_token_and_is_undone(tokenizer, layer, as_tuple):
    model = tiny_model(tokenizer)
    if as_tuple:
        model.model.layers[1] = TupleLayer(model.model.layers[1])
    ids = torch.arange(3, 13).view(2, 5)
    vector = torch.randn(32)

    @torch.no_grad()
    def states():
        seen = {}
        with watch_layers(model, [layer], seen.__setitem__, stop=True):
            model(ids)
        return seen[layer]

    plain = states()
    with steered(model, layer, vector, strength=-2.5):
        assert torch.equal(states(), plain + -2.5 * vector)
        with steered(model, layer, vector, strength=2.5):
            assert torch.allclose(states(), plain, atol=1e-5)
    assert torch.equal(states(), plain)
    with pytest.raises(KeyError), steered(model, layer, vector):
        raise KeyError
    assert torch.equal(states(), plain)


def test_a_steered_model_says_something_else(tokenizer):
    model = tiny_model(tokenizer)
    ids = encode(tokenizer, as_dialogue("hello")).input_ids[None]

    def reply():
        return model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=2)[0].tolist()

    plain = reply()
    with steered(model, 0, torch.randn(32, generator=torch.manual_seed(1)), strength=20):
        assert reply() != plain
    assert reply() == plain


@pytest.mark.parametrize("layer, size", [(2, 32), (-1, 32), (0, 31), (0, 1)])
def test_steering_refuses_what_does_not_fit(tokenizer, layer, size):
    model = tiny_model(tokenizer)
    with (
        pytest.raises(ValueError, match="layers 0 to 1, of 32 dim"),
        steered(model, layer, torch.ones(size)),
    ):
        pass
