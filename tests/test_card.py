"""The script that is prepared for a GPU runs from end to end, here on a tiny model and a CPU."""

import json
import sys
from pathlib import Path

import pytest
from tiny import own_cache, tiny_model

from xb_lite.evaluation import runs
from xb_lite.judges.named import judges_named
from xb_lite.recipes import as_fields, load_recipe
from xb_lite.results.contract import read_result

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("random", [[], ["--random"]])
def test_training_evaluation_and_step_benchmark(tokenizer, tmp_path, monkeypatch, capsys, random):
    import card

    model = tmp_path / "Tiny-Qwen2.5"
    tiny_model(tokenizer, "qwen2", num_hidden_layers=4).save_pretrained(model)
    tokenizer.save_pretrained(model)
    sizes = {"model": str(model), "target_layers": [1, 2], "lora_layers": 3}
    recipe = load_recipe("x-boundary-qwen2.5-1.5b", **sizes, pairs=4)
    own = tmp_path / "own.json"
    own.write_text(json.dumps(as_fields(recipe)))
    monkeypatch.setenv("XB_LITE_CACHE", str(own_cache(tmp_path / "cache")))
    # They take longer than all the rest, and say nothing of a random model.
    monkeypatch.setattr(runs, "capability_rows", lambda *_: [])
    monkeypatch.setattr(runs, "judges", lambda: judges_named(["words"]))
    words = f"--recipe {own} --steps 3 --repeats 2 --limit 1 --results {tmp_path / 'results'}"
    monkeypatch.setattr(sys, "argv", ["card.py", *words.split(), *random])
    card.main()
    said = capsys.readouterr().out
    assert "evaluated: adapter.json" in said and "the plain loop takes" in said
    rows = read_result(tmp_path / "results" / "card-own.json")["rows"]
    found = {row["metric"]: row for row in rows}
    assert found.keys() == {"seconds-a-step", "memory-gb", "time-ratio"}
    assert found["seconds-a-step"]["n"] == found["time-ratio"]["n"] == 2


def test_a_random_model_has_the_sizes_of_the_recipe(tokenizer, tmp_path):
    import card
    from transformers import AutoConfig

    from xb_lite.scaling.shapes import Shape, from_config

    shape = Shape(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        attention_bias=True,
    )
    folder = card.random_model(shape, tmp_path / "random")
    assert from_config("it", AutoConfig.from_pretrained(folder).to_dict()) == shape
