"""Tasks of lm-evaluation-harness as rows. What needs it is skipped where it is not installed."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xb_lite.dialogues import as_dialogue
from xb_lite.evaluation.harness import _rows, check_tasks, harness_rows
from xb_lite.models.likelihood import response_log_probs
from xb_lite.results.stats import rate

ITEMS = [
    {"question": "What is the capital of France?", "options": ["Rome", "Paris"], "answer": 1},
    {"question": "Which color has a clear sky?", "options": ["Blue", "Red"], "answer": 0},
    {"question": "What do cows drink?", "options": ["Granite", "Water from rivers"], "answer": 1},
    # Labelled wrong on purpose, so that the rate is neither 0 nor 1.
    {"question": "What is two plus two?", "options": ["Four", "Bicycle"], "answer": 1},
]
TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "metadata": {"version": 1},
}
CHOICE = TASK | {
    "task": "xb_choice",
    "output_type": "multiple_choice",
    "doc_to_choice": "options",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "f1"}],
}
REPLY = TASK | {
    "task": "xb_reply",
    "output_type": "generate_until",
    "doc_to_target": "{{options[answer]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}],
}


def sample(filter_="none", **metrics):
    return {"filter": filter_, "metrics": list(metrics), **metrics}


@pytest.fixture
def task_files(tmp_path):
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    source = {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")}
    folder = tmp_path / "tasks"
    folder.mkdir()
    for config in (CHOICE, REPLY):  # JSON is YAML
        text = json.dumps(config | {"dataset_kwargs": source})
        (folder / f"{config['task']}.yaml").write_text(text)
    group = {"group": "xb_both", "task": ["xb_choice", "xb_reply"]}
    (folder / "xb_both.yaml").write_text(json.dumps(group))
    return str(folder)


def test_a_missing_harness_is_one_sentence_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'xb-lite\[harness\]'"):
        harness_rows(None, None, ["hellaswag"])


def test_one_metric_of_right_and_wrong_is_the_accuracy():
    samples = [sample(acc=value) for value in (1.0, 0, True, np.float64(0))]
    interval = rate([True, False, True, False])
    assert _rows("quiz", samples, {"acc,none": 0.5}) == [
        {
            **{"metric": "accuracy", "set": "quiz", "attack": "direct", "judge": None},
            **{"n": 4, "k": 2, "low": interval.low, "high": interval.high},
        }
    ]


def test_several_are_told_apart_by_their_names_in_the_harness():
    samples = [
        sample(name, exact_match=k, acc_norm=1) for name in ("strict", "none") for k in (0, 1)
    ]
    totals = {
        f"{m},{f}": v
        for m, v in (("exact_match", 0.5), ("acc_norm", 1))
        for f in ("strict", "none")
    }
    names = ["exact_match,strict", "acc_norm,strict", "exact_match", "acc_norm"]
    assert [row["metric"] for row in _rows("quiz", samples, totals)] == [
        f"accuracy-{name}" for name in names
    ]


def test_a_mean_keeps_its_name_and_what_is_no_mean_has_no_row():
    samples = [
        # Here acc is a share of probability, as in truthfulqa_mc2.
        sample(acc=value, bleu=("a", "b"), perplexity=-1.0, f1=1, inst_acc=[True, False])
        for value in (0.25, 0.75)
    ]
    totals = {"acc,none": 0.5, "bleu,none": 3.0, "perplexity,none": 2.7, "f1,none": 1.0}
    rows = _rows("quiz", samples, totals)
    assert [(row["metric"], row["mean"], row["n"]) for row in rows] == [
        ("acc", 0.5, 2),
        ("f1", 1, 2),
    ]
    with pytest.warns(UserWarning, match="quiz has no metric"):
        assert _rows("quiz", [sample(bleu=("a", "b"))], {"bleu,none": 3.0}) == []


def test_wrong_names_and_limits_are_told_before_any_work():
    pytest.importorskip("lm_eval")
    with pytest.raises(ValueError, match="no tasks with these names: no_such, nor_this;"):
        harness_rows(None, None, ["hellaswag", "no_such", "nor_this"])
    for tasks, limit in (([], None), (["hellaswag"], 0)):
        with pytest.raises(ValueError, match="nothing would be measured"):
            harness_rows(None, None, tasks, limit)


def entry(**config):
    return SimpleNamespace(cfg=config, tags=set())


def test_what_runs_the_code_of_a_model_is_refused_before_any_work_unless_it_is_allowed(monkeypatch):
    """Alone, or in a group or tag; with a stand-in for the harness."""
    index = {
        "code": entry(task="code", unsafe_code=True),
        "quiz": entry(task="quiz"),
        "both": entry(group="both", task=["quiz", {"group": "inner", "task": [{"task": "code"}]}]),
        "tagged": SimpleNamespace(cfg=None, tags={"quiz", "code"}),
        "quizzes": entry(group="quizzes", task=["quiz", {"task": "made here"}]),
    }
    manager = SimpleNamespace(all_tasks=list(index), task_index=index)
    tasks = SimpleNamespace(TaskManager=lambda include_path: manager)
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(tasks=tasks))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    for name in ("code", "both", "tagged"):
        with pytest.raises(ValueError, match=f"^{name}: the code that .* HF_ALLOW_CODE_EVAL=1"):
            check_tasks(["quiz", name])
    assert check_tasks(["quiz", "quizzes"]) is manager
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert check_tasks(list(index)) is manager


def test_humaneval_of_the_harness_is_such_a_task(monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(ValueError, match="^humaneval: the code"):
        harness_rows(None, None, ["mmlu", "gsm8k", "humaneval"])


def test_a_group_of_own_tasks_gives_rows_for_each(default_model, task_files):
    pytest.importorskip("lm_eval")
    rows = harness_rows(*default_model, ["xb_both"], include_path=task_files)
    found = {(row["set"], row["metric"]): row for row in rows}
    assert all(row["n"] == len(ITEMS) and row["low"] <= row["k"] / 4 <= row["high"] for row in rows)
    assert set(found) == {
        ("xb_choice", "accuracy-acc"),
        ("xb_choice", "accuracy-acc_norm"),
        ("xb_reply", "accuracy"),
    }
    # The harness does not count the token that ends the turn.
    for metric, per in (("accuracy-acc", lambda option: 1), ("accuracy-acc_norm", len)):
        right = 0
        for item in ITEMS:
            dialogues = [as_dialogue(item["question"], option) for option in item["options"]]
            sums = [float(p[:-1].sum()) for p in response_log_probs(*default_model, dialogues)]
            scores = [x / per(option) for x, option in zip(sums, item["options"], strict=True)]
            right += int(np.argmax(scores)) == item["answer"]
        assert found["xb_choice", metric]["k"] == right


def test_autocast_around_the_call_and_the_limit_hold(default_model, task_files):
    pytest.importorskip("lm_eval")
    model, tokenizer = default_model
    seen = []
    hook = model.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows = harness_rows(model, tokenizer, ["xb_choice"], 1, task_files)
    finally:
        hook.remove()
    assert {row["n"] for row in rows} == {1}
    assert seen and all(seen)
