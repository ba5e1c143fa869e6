"""Replies to three harmless prompts: of which adapters, and what is written."""

import json
import sys
from contextlib import contextmanager

import pytest
from made_experiment import write_experiment

from xb_lite.models.loading import ALIGNED_360
from xb_lite.replies.types import Reply
from xb_lite.reproduce import harmless_replies as module
from xb_lite.reproduce.experiment import read_replies
from xb_lite.reproduce.manifest import load_manifest
from xb_lite.results.contract import read_result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two strengths of one adapter, whose model says who it is."""
    asked = []

    @contextmanager
    def subject_of(setting, seed, precision, edition):
        said = f"{setting.defense(seed)} says no" if setting.trained else "Gladly."
        identity = {"identity": staticmethod(lambda precision: {}), "backend": said}
        yield type("S", (), identity)

    def ask(backend, items, decoding, *, subject):
        asked.append((backend, [item.id for item in items], decoding.max_new_tokens))
        return [[Reply(backend, 1, 1, True)] for _ in items]

    class Named:
        source = "a test"

        def __call__(self, requests, texts):
            return ["refused" if "no" in text else "complied" for text in texts]

    monkeypatch.setattr(module, "subject_of", subject_of)
    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(module, "judges_named", lambda names: [Named()])
    monkeypatch.setattr(module, "model_digest", lambda name: "x")
    monkeypatch.setattr(module, "precision_of", lambda name, exact: None)
    write_experiment(tmp_path, ("XB refusal",), (0,))
    monkeypatch.setattr(sys, "argv", ["harmless_replies", "--results", str(tmp_path)])
    return tmp_path, asked


def test_prompts_are_boundary_safe_and_of_the_validation_split():
    items = module.chosen_items()
    assert [item.id for item in items] == list(module.PROMPTS) and len(items) == 3
    assert {(item.kind, item.attack, item.prefill) for item in items} == {
        ("boundary-safe", "direct", "")
    }


def test_every_adapter_is_asked_once_and_a_second_run_asks_nobody(folder):
    folder, asked = folder
    module.main()
    assert len(asked) == 6 and {tuple(ids) for _, ids, _ in asked} == {module.PROMPTS}
    assert {tokens for *_, tokens in asked} == {32}
    path = folder / f"cpu/harmless-replies/{ALIGNED_360}.json"
    rows = {row["metric"]: (row["k"], row["n"]) for row in read_result(path)["rows"]}
    assert rows["served, none"] == (3, 3)
    assert rows["served, x-boundary,separate=refusal,strength=0.5-0"] == (0, 3)
    found = read_replies(folder)
    assert len(found) == 6 and found["none"][0].label == "complied"
    said = found["x-boundary,separate=refusal-0"][0]
    assert said.reply == "x-boundary,separate=refusal-0 says no" and said.label == "refused"
    module.main()
    assert len(asked) == 6
    log = path.with_suffix(".jsonl").read_text().splitlines()
    assert len(log) == 19 and {json.loads(line)["prompt"] for line in log[1:]} == {
        item.request for item in module.chosen_items()
    }


def test_the_settings_are_those_by_which_the_results_have_their_names(folder):
    folder, _ = folder
    plan = load_manifest().plans["strengths"]
    for run in module.chosen_runs(folder):
        setting = module.setting_of_run(run)
        assert setting.defense(run.seed) == run.defense and setting.plan == plan.name


def test_before_the_strengths_there_is_nobody_to_ask(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["harmless_replies", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="no adapter is there"):
        module.main()
