"""What the page for a model of one's own shows does run, as a script in an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.tiny import tiny_model, tiny_recipe, tiny_sets
from xb_lite.models import precision_of
from xb_lite.models.adapter_files import read_run
from xb_lite.replies import local_subject
from xb_lite.results import frame
from xb_lite.training import train

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "book" / "own_model.md").read_text(encoding="utf-8")

TRAINED = """
from tests.tiny import tiny_sets
from xb_lite.training import train

subject = local_subject(MODEL, precision)
train(recipe, subject.model, subject.tokenizer, tiny_sets(), "my_rmu", precision)
defended = local_subject(MODEL, precision, "my_rmu")
evaluate_subject(
    defended, items, precision, decoding, "my_rmu_results", judged_by=judges, capability=False
)
"""


def test_the_script_runs_outside_the_repository(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(tokenizer, num_hidden_layers=4).save_pretrained("my_model")
    tokenizer.save_pretrained("my_model")
    precision = precision_of("my_model", exact=True)
    for name, changes in (
        ("my_xb", {}),
        ("my_cb", {"method": "circuit-breakers", "separate": None}),
    ):
        subject = local_subject("my_model", precision)
        few = tiny_recipe(model="my_model", steps=1, lora_std=0.01, **changes)
        digest = {"model_digest": subject.digest}
        train(few, subject.model, subject.tokenizer, tiny_sets(), name, precision, **digest)
    prompts = ["How is bread made?", "Who wrote Faust?"]
    (tmp_path / "my_prompts.csv").write_text("\n".join(["prompt", *prompts]) + "\n")
    shown = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S))
    asked = "(reply,) = subject.backend.reply([as_dialogue('Why?')], decoding)\n"
    # The same with little: a tiny model, and sets that nobody has to answer.
    for usual, small in (
        ("Decoding(64)", "Decoding(4)"),
        ("LAYERS = [9, 19]", "LAYERS = [1, 2]"),
        ("    length=20.0,", "    length=20.0, steps=3, pairs=4, pairs_at_once=4,"),
        ('train_defense(recipe, "my_rmu")', TRAINED),
    ):
        assert usual in shown
        shown = shown.replace(usual, small)
    (tmp_path / "mine.py").write_text(shown + asked)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "mine.py"], check=True, env=env)

    table = frame("my_results/own/my_model")
    assert set(table["method"]) == {"none", "x-boundary", "circuit-breakers"}
    asr = table[table["metric"] == "asr"]
    assert set(asr["attack"]) == {"direct", "politely", "politely, placebo"}
    assert set(asr["judge"]) == {"says-no"} and set(asr["n"]) == {2}
    result = json.loads((tmp_path / "my_results/own/my_model/my_xb.json").read_text())
    assert result["command"] == "python mine.py"
    assert result["adapter"]["run"]["recipe"]["target_layers"] == [1, 2]

    (row,) = {(row.method, row.defense) for row in frame("my_rmu_results/my_model").itertuples()}
    assert row[0] == "misdirection"
    run = read_run(tmp_path / "my_rmu")
    assert run["run"]["recipe"]["length"] == 20.0
    assert all(step["misdirect"] > 0 for step in run["curve"])
