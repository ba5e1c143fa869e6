"""How a subject learns to refuse: what is drawn, and what the terms are."""

import signal
from collections import Counter

import pytest
import torch
from tiny import tiny_model, tiny_sets
from torch.nn.functional import kl_div

from xb_lite.corpora import load_corpus, load_refusals
from xb_lite.data.items import PREFILL
from xb_lite.dialogues import as_dialogue
from xb_lite.losses.batch import collate
from xb_lite.models.adapter_files import read_adapter
from xb_lite.models.packing import by_row
from xb_lite.models.precision import Precision, choose_precision
from xb_lite.recipes import RecipeError, load_recipe
from xb_lite.replies.types import Reply
from xb_lite.training.alignment import SHALLOW, AlignmentTrainer, alignment_sets, draw
from xb_lite.training.lora import adapted
from xb_lite.training.run import train

EXACT = choose_precision(exact=True)
NAME = "alignment-smollm2-135m"
SETS = tiny_sets(harmful=12, boundary=9, benign=8).having(
    harmful=[as_dialogue(f"bad {i}", f"{PREFILL} is how, number {i} of them.") for i in range(12)]
)
REFUSALS = {refusal.text for refusal in load_refusals()}


def recipe(**changes):
    sizes = {"first_layer": 1, "lora_layers": 4, "rank": 4, "steps": 6}
    sizes |= {"pairs": 8, "pairs_at_once": 4, "late_from": 3, "max_tokens": 128}
    return load_recipe(NAME, **{**sizes, **changes})


def said(row):
    return row.dialogue[-1]["content"]


def test_every_request_comes_with_a_refusal_each_time_another(tokenizer):
    pairs = draw(recipe(steps=12), SETS, tokenizer, 0)
    assert len(pairs) == 96 and {said(pair.change) for pair in pairs} <= REFUSALS
    by_request = {}
    for pair in pairs:
        by_request.setdefault(pair.change.dialogue[0]["content"], []).append(said(pair.change))
    assert len(by_request) == 12
    assert all(len(set(texts)) == len(texts) == 8 for texts in by_request.values())


def test_only_late_are_there_items_whose_response_is_not_learned(tokenizer):
    pairs = draw(recipe(steps=40, late_from=20, shallow_share=0.5), SETS, tokenizer, 0)
    shallow = [pair.keep.number >= SHALLOW for pair in pairs]
    assert not any(shallow[:160]) and 50 < sum(shallow[160:]) < 110
    for pair in pairs[160:]:
        if pair.keep.number >= SHALLOW:
            row = pair.keep.encoding
            # What was put into its mouth is no response.
            before = tokenizer.decode(row.input_ids[: int(row.response.int().argmax())])
            assert before.endswith(PREFILL) and row.prompt[row.response.int().argmax() - 1]


def test_of_most_pairs_the_first_tokens_of_the_responses_are_learned(tokenizer):
    drawn = draw(recipe(steps=40, shallow_share=0, answer_tokens=5), SETS, tokenizer, 0)
    lengths = Counter(int(pair.change.encoding.response.sum()) for pair in drawn)
    assert 0.6 < lengths[2] / len(drawn) < 0.9
    assert max(int(pair.keep.encoding.response.sum()) for pair in drawn) == 5
    # The end of a cut response is the end of its row.
    assert all(pair.keep.encoding.response[-1] for pair in drawn)


def test_rows_of_different_lengths_have_different_numbers(tokenizer):
    """The states without the adapter are kept by number."""
    seen = {}
    for pair in draw(recipe(steps=60, shallow_share=0.3), SETS, tokenizer, 0):
        row = pair.keep
        ids = row.encoding.input_ids.tolist()
        assert seen.setdefault(row.number, ids) == ids


@pytest.mark.parametrize("late", [False, True])
def test_terms_are_what_they_say(tokenizer, tmp_path, late):
    """Against log-probabilities of whole rows, one after the other."""
    how = recipe(lora_std=0.3, shallow_share=0.5, late_from=0 if late else 6)
    model = tiny_model(tokenizer, num_hidden_layers=4)
    pairs = draw(how, SETS, tokenizer, 1)[:4]
    assert any(p.keep.number >= SHALLOW for p in pairs) == late
    batch = collate(pairs, tokenizer.pad_token_id)
    with by_row(model), adapted(model, how, 0) as learning:
        trainer = AlignmentTrainer(how, learning, tokenizer, pairs, tmp_path, EXACT, 0)
        counts = trainer.counts(batch)
        for _ in range(2):  # the second time from what was kept
            (refuse, answer, drift), loss = trainer.parts(learning, batch, counts)
    weight = how.late_weight if late else how.weight
    assert loss.item() == pytest.approx((weight * refuse + answer + drift).item())
    sums = torch.zeros(3)
    with adapted(model, how, 0) as learning, torch.no_grad():
        for pair in pairs:
            for place, row in enumerate((pair.change, pair.keep)):
                ids, response = row.encoding.input_ids[None], row.encoding.response
                now = learning(ids).logits[0, :-1].log_softmax(-1)[response[1:]]
                with learning.disable_adapter():
                    before = learning(ids).logits[0, :-1].log_softmax(-1)[response[1:]]
                weights = torch.ones(len(now))
                weights[0] = how.first_weight
                own = -now.gather(1, row.encoding.input_ids[response][:, None])[:, 0]
                if place == 0:
                    sums[0] += (own * weights).sum()
                else:
                    sums[1] += (own * weights).sum() * (row.number < SHALLOW)
                    each = kl_div(now, before, reduction="none", log_target=True).sum(-1)
                    sums[2] += (each * weights).sum()
    wanted = sums / counts.clamp(min=1)
    assert torch.allclose(torch.stack([refuse, answer, drift]), wanted, atol=1e-4)


def test_it_is_trained_above_its_first_layer_alone(tokenizer, tmp_path):
    model = tiny_model(tokenizer, num_hidden_layers=4)
    done = train(recipe(), model, tokenizer, SETS, tmp_path, EXACT)
    assert [row["step"] for row in done.curve] == [1, 2, 3, 4, 5, 6]
    layers = {name.split("layers.")[1][0] for name in read_adapter(tmp_path).weights}
    assert layers == {"1", "2", "3"}


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tokenizer, tmp_path, one_thread):
    """In products of bf16, where what shares a batch changes the last bits."""
    mixed = Precision("cpu", torch.float32, torch.bfloat16, "tests")
    how = recipe(steps=8, late_from=2)

    def go(folder, **options):
        model = tiny_model(tokenizer, num_hidden_layers=4)
        return train(how, model, tokenizer, SETS, folder, mixed, **options)

    def interrupt(row):
        if row["step"] == 4:
            signal.raise_signal(signal.SIGINT)

    whole = go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "parts", on_step=interrupt)
    assert go(tmp_path / "parts").curve == whole.curve


def test_weights_of_16_bits_are_trained_as_well(tokenizer, tmp_path):
    """A GPU's format; the drift reads the vocabulary out outside of autocast."""
    model = tiny_model(tokenizer, num_hidden_layers=4).bfloat16()
    half = Precision("cpu", torch.bfloat16, None, "tests")
    done = train(recipe(steps=2), model, tokenizer, SETS, tmp_path, half)
    # LoRA changes nothing yet; the reference differs by the rounding of bf16 alone.
    assert done.curve[0]["drift"] < 0.01 * done.curve[0]["answer"]


def test_the_books_sets_are_its_prompts_and_what_is_said_after_the_prefill(monkeypatch, tmp_path):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path))

    class Fake:
        def reply(self, dialogues, decoding, prefill=""):
            assert prefill == PREFILL and decoding.max_new_tokens == 32
            ends = (" is how.", " I cannot say more, sorry.")
            return [Reply(prefill + ends[i % 2], 3, 3, True) for i in range(len(dialogues))]

    found = alignment_sets(Fake(), {"model": "fake"})
    harmful = load_corpus("harmful", "train", edition=2)
    assert [d[0]["content"] for d in found["refused"]] == [row.prompt for row in harmful]
    assert {said[-1]["content"] for said in found["harmful"]} == {f"{PREFILL} is how."}
    answers = [row.answer for row in load_corpus("benign", "train", edition=2)]
    assert [d[-1]["content"] for d in found["benign"]] == answers
    assert len(found["compliant"]) == len(found["over_refused"]) == 360


def test_fields_that_cannot_be_are_named():
    for change, words in (
        ({"first_layer": 4}, "first_layer is 4; it must be a whole number below lora_layers, 4"),
        ({"cut_share": 1.5}, "cut_share is 1.5; it must be from 0 to 1"),
        ({"late_weight": 0}, "late_weight is 0; it must be a number above 0"),
        ({"answer_tokens": 0}, "answer_tokens is 0; it must be a whole number, at least 1"),
    ):
        with pytest.raises(RecipeError, match=words):
            recipe(**change)


def test_without_items_it_says_which_are_missing(tokenizer):
    with pytest.raises(RecipeError, match="benign set is empty"):
        draw(recipe(), SETS.having(benign=[]), tokenizer, 0)
