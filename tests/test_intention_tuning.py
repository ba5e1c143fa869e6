"""An adapter learns both stages of Intention Analysis from benign requests, and nothing else."""

import json
import re

import pytest
import torch
from tiny import tiny_model, tiny_sets

from xb_lite.corpora import load_corpus
from xb_lite.dialogues import Dialogue
from xb_lite.intention.examples import benign
from xb_lite.intention.prompts import STAGE_2, first_stage, restates
from xb_lite.models.adapters import merged
from xb_lite.models.likelihood import response_log_probs
from xb_lite.models.precision import Precision
from xb_lite.recipes import RecipeError, load_recipe
from xb_lite.training.intention_tuning import draw
from xb_lite.training.run import train

EXACT = Precision("cpu", torch.float32, None, "tests")
SETS = tiny_sets()

pytestmark = pytest.mark.usefixtures("one_thread")


def small(**changes):
    sizes = {"lora_layers": 2, "rank": 4, "steps": 3, "pairs": 4, "pairs_at_once": 4}
    few = {"learning_rate": 0.02, "max_tokens": 256}
    return load_recipe("intention-tuning-qwen2.5-coder-0.5b", **{**sizes, **few, **changes})


def text_of(dialogues: list[Dialogue]) -> str:
    return json.dumps(dialogues)


def test_every_benign_training_prompt_has_an_intention_and_nothing_held_out_has():
    rows = load_corpus("benign", "train", edition=2)
    assert len(benign()) == len(rows) == 360
    for row, dialogue in zip(rows, benign(), strict=True):
        asked, stated, answer, given = dialogue
        assert [asked] == first_stage([{"role": "user", "content": row.prompt}])
        assert restates(stated["content"]) and len(stated["content"].split()) < 45
        assert (answer["content"], given["content"]) == (STAGE_2, row.answer)
    held_out = {
        row.prompt for split in ("validation", "test") for row in load_corpus("benign", split, 2)
    }
    assert not any(prompt in text_of(benign()) for prompt in held_out)
    stated = [dialogue[1]["content"] for dialogue in benign()]
    assert len(set(stated)) == len(stated)
    # A verdict would be the same for all.
    assert not any(re.search(r"\b(un)?(harm|safe|benign|innocent)", text) for text in stated)


def test_only_benign_requests_are_trained_on_and_both_replies_are_learned(tokenizer):
    pairs = draw(small(), SETS, tokenizer, 0)
    kept = [dialogue[-1]["content"] for dialogue in SETS["benign"]]
    for pair in pairs:
        assert pair.change.dialogue in benign() and pair.keep.dialogue[-1]["content"] in kept
    whole = next(pair.change for pair in pairs if not pair.change.encoding.n_cut)
    said = tokenizer.decode(whole.encoding.input_ids[whole.encoding.response])
    assert said.startswith(whole.dialogue[1]["content"])
    assert whole.dialogue[3]["content"] in said and STAGE_2 not in said


def test_a_share_of_dialogues_is_refused_for_the_intention_would_not_be_learned(
    tmp_path, tokenizer
):
    recipe = small(multi_turn_share=0.25)
    with pytest.raises(RecipeError, match="multi_turn_share is 0.25; it must be 0"):
        train(recipe, tiny_model(tokenizer), tokenizer, SETS, tmp_path / "a", EXACT)
    assert not (tmp_path / "a").exists()


def test_it_learns_the_stages_and_keeps_what_was_said_before(tmp_path, tokenizer):
    made = train(small(steps=6), tiny_model(tokenizer), tokenizer, SETS, tmp_path / "a", EXACT)
    first, last = made.curve[0], made.curve[-1]
    assert abs(first["drift"]) < 1e-5 < last["drift"]
    before = tiny_model(tokenizer)
    after = merged(tiny_model(tokenizer), made.folder)
    one, two = (
        torch.cat(response_log_probs(model, tokenizer, benign()[:8])).mean()
        for model in (before, after)
    )
    assert two > one + 0.1
