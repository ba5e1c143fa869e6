"""From a command to a result: plans, subjects, tables, published files."""

import copy
import functools
import io
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import saying, tiny_model, tiny_recipe, tiny_sets

from xb_lite import __main__
from xb_lite import files as own_files
from xb_lite.corpora import KINDS, load_corpus, load_passages, load_quiz
from xb_lite.data.items import ATTACKS, SETS, plan, spread
from xb_lite.data.public import BENCHMARKS
from xb_lite.dialogues import as_dialogue
from xb_lite.evaluation.outcomes import read_log
from xb_lite.evaluation.runs import evaluate_subject, setting_of
from xb_lite.intention.defenses import DEFENSES, Defended, by_prompt, prompted
from xb_lite.judges.named import JUDGES, judges, judges_named
from xb_lite.judges.strings import INTENTION_ANALYSIS, XSTEST
from xb_lite.models.adapters import AdapterError, read_run
from xb_lite.models.cached import DEFAULT, SPECS, ModelError
from xb_lite.models.loading import model_digest
from xb_lite.models.precision import Precision, choose_precision
from xb_lite.recipes import as_fields, load_recipe, recipe_names
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.subjects import Subject, local_subject
from xb_lite.replies.types import Decoding, Reply
from xb_lite.reproduce import displacement as moves
from xb_lite.results import contract as results
from xb_lite.results import tables
from xb_lite.results.contract import rate_row, read_result, write_result
from xb_lite.results.frames import find, published
from xb_lite.results.logs import LogError
from xb_lite.results.stats import rate
from xb_lite.training import defense
from xb_lite.training.defense import adapter_folder, train_defense
from xb_lite.training.run import Trained


def test_a_plan_has_every_set_and_the_harmful_ones_under_attack():
    items = plan(limit=4)
    counts = {}
    for item in items:
        counts[item.set, item.attack] = counts.get((item.set, item.attack), 0) + 1
    assert counts == {
        ("harmful", "direct"): 4,
        ("harmful", "prefill"): 4,
        ("harmful", "wrapper"): 12,
        ("multi-turn", "multi-turn"): 4,
        ("boundary-safe", "direct"): 4,
        ("benign", "direct"): 4,
    }
    assert len({item.id for item in items}) == len(items)


def test_a_limit_is_spread_over_the_set():
    whole = [item.id for item in plan(["benign"])]
    some = [item.id for item in plan(["benign"], limit=4)]
    assert some == [whole[0], whole[10], whole[20], whole[30]]
    assert [item.id for item in plan(["benign"], limit=1000)] == whole


def test_an_adapter_is_not_put_on_a_model_of_the_same_shapes():
    folder = own_files.own_file("artifacts/cpu/x-boundary/run.json").parent
    with pytest.raises(AdapterError, match="is of smollm2-135m-aligned, not of smollm2-135m"):
        local_subject("smollm2-135m", choose_precision(exact=True), folder)


def test_a_file_of_ones_own_is_asked_under_a_name_and_a_kind(tmp_path):
    (tmp_path / "my.csv").write_text("prompt\nBake?\nFry?\n")
    items = plan([f"mine:harmful={tmp_path}/my.csv"], ["prefill"], limit=1)
    assert [(i.set, i.kind, i.attack, i.request) for i in items] == [
        ("mine", "harmful", "direct", "Bake?"),
        ("mine", "harmful", "prefill", "Bake?"),
    ]
    for entry in (f"mine={tmp_path}/my.csv", "mine", "mine:harmful"):
        with pytest.raises(ValueError, match="in a command: --sets NAME:KIND=FILE"):
            plan([entry])


def test_folders_have_names_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.setattr("xb_lite.replies.subjects.load_defended", lambda *_: (None, None))
    monkeypatch.setattr("xb_lite.replies.subjects.model_digest", lambda _: "x")
    monkeypatch.setattr("xb_lite.replies.subjects.sha256_of", lambda _: "x")
    inside = tmp_path / "model" / "defense"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    subject = local_subject("..", choose_precision(), ".")
    assert (subject.name, subject.defense) == ("model", "defense")
    assert local_subject("org/model", choose_precision()).name == "model"
    with pytest.raises(ValueError, match="is named none, as a model without a defense.*rename it"):
        local_subject("..", choose_precision(), "mine/none/")


@given(st.integers(0, 60), st.none() | st.integers(1, 80))
def test_a_spread_is_even_and_in_order(count, limit):
    some = spread(range(count), limit)
    assert len(some) == min(count, limit or count)
    assert some == sorted(set(some)) and set(some) <= set(range(count))
    apart = [b - a for a, b in zip(some, [*some, count][1:], strict=True)]
    assert not apart or max(apart) - min(apart) <= 1
    assert some[:1] == list(range(count))[:1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sets", "nonsense"], "there is no set 'nonsense'"),
        (["--attacks", "nonsense"], "there is no attack 'nonsense'"),
        (["--limit", "0"], "the limit is 0"),
        (["--max-new-tokens", "0"], "max_new_tokens must be a whole number of at least 1"),
        (["a-model", "--server", "nonsense"], "base_url must look like"),
        (["--server", "http://127.0.0.1:1/v1"], "name one of them"),
        (["no/such/model/anywhere"], "neither"),
        (["--adapter", "nowhere"], "there is no adapter in nowhere"),
        (["--defense", "nonsense"], "there is no defense 'nonsense'"),
        (["--judge", "words", "nonsense"], "there is no judge 'nonsense'; there are words"),
        (["--judge", "words", "--judge", "words"], "the judge words is named 2 times"),
        (["--judge", "rubric"], "name one with --judge-model"),
        (
            ["--sets", "benign", "--judge", "llama-guard"],
            "replies to harmful requests are labelled",
        ),
        (["--judge-model", "m"], "m is the model of none of these judges: none has one"),
        (
            ["--judge", "harmbench", "llama-guard", "--judge-model", "m"],
            "of harmbench, llama-guard, say whose, as JUDGE=MODEL",
        ),
        (["--judge", "harmbench", "--judge-model", "rubric=m"], "none of these judges"),
        (["--judge", "harmbench", "--judge-model", "m", "n"], "one model; name it once"),
        (["--judge", "harmbench", "--judge-model", "harmbench="], "one model; name it once"),
        (["--judge", "harmbench", "--judge-server", "http://127.0.0.1:1/v1"], "only be asked with"),
        (["--judge-server", "http://127.0.0.1:1/v1"], "a server can only be asked with rubric"),
        (
            ["--judge", "rubric", "--judge-model", "m", "--judge-server", "nonsense"],
            "base_url must look like",
        ),
        (["--adapter", "mine", "--server", "http://127.0.0.1:1/v1"], "behind a server"),
    ],
)
def test_a_bad_command_says_so_in_one_sentence(arguments, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert __main__.main(["evaluate", *arguments]) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "listed"),
    [
        ("evaluate", [*KINDS, "multi-turn", *BENCHMARKS, *ATTACKS, *DEFENSES, *JUDGES]),
        ("train", recipe_names()),
        ("serve", DEFENSES),
        ("fetch", SPECS),
    ],
)
def test_help_lists_what_can_be_named(command, listed, capsys):
    with pytest.raises(SystemExit, match="0"):
        __main__.main([command, "--help"])
    shown = capsys.readouterr().out
    assert [name for name in listed if name not in shown] == []


def test_what_a_guard_cannot_hold_is_refused_before_anything_is_loaded(capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["serve", "--guard", "gibberish", "--hold", "0"])
    assert "--hold: 0 is below 1" in capsys.readouterr().err


def test_the_status_of_a_folder_that_is_not_there(capsys, tmp_path):
    assert __main__.main(["reproduce", "--status", "--results", str(tmp_path / "none")]) == 1
    assert "none: there is no such folder." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("misspelt", "says"),
    [("--limt", "did you mean --limit?"), ("--zzz", "unrecognized arguments: --zzz")],
)
def test_a_misspelt_option_is_answered_by_its_own_command(misspelt, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["evaluate", misspelt, "2"])
    error = capsys.readouterr().err
    assert says in error and "evaluate [-h]" in error


@pytest.mark.parametrize("given", [["--model", "./my_model"], ["--model=./my_model"]])
def test_who_gives_evaluate_a_model_as_an_option_is_told_how_to_give_it(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["evaluate", *given])
    error = capsys.readouterr().err
    assert "give the model by itself, without an option" in error and "did you mean" not in error


def test_every_option_has_a_help_text():
    (commands,) = (a for a in __main__._parser()._actions if a.dest == "command")
    for command in commands.choices.values():
        assert [action.dest for action in command._actions if not action.help] == []


def test_an_option_of_several_values_may_come_several_times(monkeypatch):
    asked = []
    monkeypatch.setattr("xb_lite.data.items.plan", lambda *given: asked.append(given) or [])
    monkeypatch.setattr("xb_lite.replies.subjects.local_subject", lambda *_: None)
    monkeypatch.setattr(
        "xb_lite.evaluation.runs.evaluate_subject", lambda *_, **o: asked.append(o["tasks"])
    )
    monkeypatch.setattr(tables, "print_result", lambda _: None)
    sets, attacks, tasks = (["--sets", "a"], ["--sets", "b", "c"]), ["--attacks"], ["--tasks", "t"]
    assert __main__.main(["evaluate", *sets[0], *attacks, *tasks, *sets[1], *tasks]) == 0
    assert asked[0][:2] == (["a", "b", "c"], []) and asked[1] == ["t", "t"]
    assert __main__.main(["evaluate"]) == 0
    assert asked[2][:2] == (SETS, ATTACKS) and asked[3] == []


def test_every_change_to_a_recipe_counts(capsys):
    train = ["train", "x-boundary-smollm2-135m", "--set", "steps=0", "--set", "rank=2"]
    assert __main__.main(train) == 1
    assert "steps is 0" in capsys.readouterr().err
    assert __main__.main(["train", "x-boundary-smollm2-135m", "--set", "name=x"]) == 1
    assert "has wrong fields: name (unknown)" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("xb_lite.data.items.plan", stop)
    assert __main__.main(["evaluate"]) == 130
    assert "goes on from here" in capsys.readouterr().err
    monkeypatch.setattr("xb_lite.grading.command.grade", stop)
    for command in (["evaluate", "--no-resume"], ["grade", "a.ipynb"]):
        assert __main__.main(command) == 130
        assert "the same command begins anew" in capsys.readouterr().err


def test_the_whole_command_on_the_default_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xb_lite.evaluation.capability.load_quiz", lambda split: QUIZ(split)[:2])
    monkeypatch.setattr(
        "xb_lite.evaluation.capability.load_passages", lambda split: PASSAGES(split)[:2]
    )
    command = ["evaluate", "--limit", "1", "--max-new-tokens", "4", "--sets", "harmful", "benign"]
    replies = tmp_path / "cache"
    monkeypatch.setattr("xb_lite.replies.cache.cache_folder", lambda: replies)
    assert __main__.main(command) == 0
    shown = capsys.readouterr().out
    assert "ASR" in shown and "95 %" in shown and "perplexity" in shown
    path = tmp_path / "my_results" / "cpu" / "smollm2-135m" / "none.json"
    first = read_result(path)
    assert find(first, "asr", set="harmful", attack="direct", judge="service").n == 1
    assert find(first, "accuracy").n == 2
    log = path.with_suffix(".jsonl").read_text()
    assert all("replies" not in json.loads(line) for line in log.splitlines())
    assert __main__.main(command) == 0  # nothing is made again
    assert read_result(path)["rows"] == first["rows"]
    assert path.with_suffix(".jsonl").read_text() == log


def test_a_defense_is_trained_and_evaluated_by_two_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xb_lite.training.defense.reference_sets", lambda *_, **__: tiny_sets())
    monkeypatch.setattr("xb_lite.evaluation.runs.capability_rows", lambda *_: [])
    monkeypatch.setattr("xb_lite.replies.cache.cache_folder", lambda: tmp_path / "cache")
    changes = ["model=smollm2-135m", "steps=1", "pairs=4", "pairs_at_once=4"]
    train = ["train", "x-boundary-smollm2-135m", "--into", "mine", "--set", *changes]
    assert __main__.main(train) == 0
    assert "erase 1" in capsys.readouterr().out
    evaluate = ["evaluate", "--adapter", "mine", "--sets", "benign", "--split", "validation"]
    assert __main__.main([*evaluate, "--limit", "1", "--max-new-tokens", "4"]) == 0
    result = read_result(tmp_path / "my_results" / "cpu" / "smollm2-135m" / "mine.json")
    assert result["adapter"]["run"]["recipe"]["steps"] == 1
    assert len(result["adapter"]["digest"]) == 64 and result["data"]["split"] == "validation"
    log = (tmp_path / "my_results" / "cpu" / "smollm2-135m" / "mine.jsonl").read_text()
    asked = json.loads(log.splitlines()[1])["id"]
    assert asked in {row.id for row in load_corpus("benign", "validation")}


class Polite:
    """A model behind a server that always says the same."""

    def reply(self, dialogues, decoding, prefill=""):
        return [Reply("No, I can't.", 1, 1, True) for _ in dialogues]


def evaluate_polite(items, folder, **options):
    subject, precision = Subject("polite", "polite", Polite()), choose_precision()
    return evaluate_subject(
        subject, items, precision, Decoding(), folder, judged_by=[XSTEST], **options
    )


def test_replies_are_judged_by_those_asked_to(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "xb_lite.evaluation.runs.judges", lambda *_: pytest.fail("the default ones")
    )
    path = evaluate_subject(
        Subject("polite", "polite", Polite()),
        plan(["harmful"], [], limit=2),
        choose_precision(),
        Decoding(),
        tmp_path,
        judged_by=[XSTEST, INTENTION_ANALYSIS],
    )
    rows = [row for row in read_result(path)["rows"] if row["metric"] == "asr"]
    assert {row["judge"] for row in rows} == {"xstest", "intention-analysis"}


def test_what_is_not_measured_does_not_change_where_a_subject_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    here, precision = Subject("polite", "polite", Polite(), model=object()), choose_precision()
    path = evaluate_subject(
        here,
        plan(["benign"], [], limit=1),
        precision,
        Decoding(),
        tmp_path,
        capability=False,
        judged_by=[XSTEST],
    )
    result = read_result(path)
    assert result["setting"]["precision"] == str(precision)
    assert "server" not in result["hardware"]
    assert not {"accuracy", "perplexity"} & {row["metric"] for row in result["rows"]}


def test_a_result_without_capability_is_not_one_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    row = rate_row(rate([True]), "accuracy", "quiz", "direct", None)
    monkeypatch.setattr("xb_lite.evaluation.runs.capability_rows", lambda *_: [row])
    here, precision = Subject("polite", "polite", Polite(), model=object()), choose_precision()
    items = plan(["benign"], [], limit=1)
    for capability, measured in ((False, False), (True, True), (False, True)):
        path = evaluate_subject(
            here,
            items,
            precision,
            Decoding(),
            tmp_path,
            capability=capability,
            judged_by=[XSTEST],
        )
        assert (row in read_result(path)["rows"]) == measured


# The tokenizer of the tests with a template that shows whole dialogues, as Llama Guard's does.
GUARD = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def judge_model(tokenizer):
    """Of a name a tiny model, made once, that says the name's answer."""
    answers = {"guard": "\n\nunsafe", "chat": "evaded"}

    @functools.cache
    def made(name, chat):
        own = copy.deepcopy(tokenizer)
        own.chat_template = {"guard": GUARD}.get(name, own.chat_template if chat else None)
        sizes = {"hidden_size": 576} if name == DEFAULT else {}
        return saying(tiny_model(own, **sizes), own, answers.get(name, "Yes")), own

    return made


@pytest.fixture
def judge_models(judge_model, monkeypatch):
    """Models of judges are tiny; gives what was loaded."""
    models = []

    def load(name, precision, *, chat=True):
        models.append(name)
        return judge_model(name, chat)

    monkeypatch.setattr("xb_lite.judges.named.load_model", load)
    return models


def test_judges_have_names(judge_models):
    words = ["xstest", "x-boundary", "intention-analysis", "gibberish"]

    def named(names, *models):
        del judge_models[:]
        return [judge.name for judge in judges_named(names, models)]

    assert [judge.name for judge in judges()] == [*words, "service"]
    assert judge_models == [DEFAULT]
    assert named(["service", "words"]) == ["service", *words]
    assert judge_models == [DEFAULT]
    assert named(["service"]) == ["service"]
    assert named(["harmbench"]) == ["harmbench-llama"]
    assert judge_models == ["cais/HarmBench-Llama-2-13b-cls"]
    models = ["org/chat", "harmbench=mine=2"]
    assert named(["llama-guard"], "guard") == ["llama-guard"]
    assert named(["rubric"], models[0]) == ["chat"]
    assert named(["harmbench"], "a=b") == ["harmbench-llama"] and judge_models == ["a=b"]
    chosen = ["llama-guard=guard", "rubric=org/chat", "harmbench=mine=2"]
    found = named(["rubric", "words", "harmbench", "llama-guard"], *chosen)
    assert found == ["chat", *words, "harmbench-llama", "llama-guard"]
    assert judge_models == ["org/chat", DEFAULT, "mine=2", "guard"]


def test_a_judge_of_another_model_is_another_judge(judge_models):
    sources = {
        judges_named([name], [model])[0].source
        for name in ("harmbench", "llama-guard", "rubric")
        for model in ("guard", "org/guard-2")
        if (name, model) != ("llama-guard", "org/guard-2")
    }
    assert len(sources) == 5


def test_a_rubric_is_asked_of_a_server(judge_models):
    url = "http://127.0.0.1:1/v1"
    (judge,) = judges_named(["rubric"], ["org/chat"], url)
    assert (judge.backend.base_url, judge.backend.model, judge.name) == (url, "org/chat", "chat")
    assert re.search("; org/chat at a server [0-9a-f]{8}$", judge.source) and judge_models == []
    (other,) = judges_named(["rubric"], ["org/chat"], "http://127.0.0.1:2/v1")
    assert other.source != judge.source and "127.0.0.1" not in judge.source


def test_a_command_chooses_its_judges(tmp_path, monkeypatch, capsys, judge_models):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    polite = Subject("polite", "polite", Polite())
    monkeypatch.setattr("xb_lite.replies.subjects.local_subject", lambda *_: polite)
    command = ["evaluate", "--sets", "harmful", "benign", "--limit", "2", "--attacks"]
    judges = ["--judge", "harmbench", "llama-guard", "--judge", "rubric"]
    chosen = ["llama-guard=guard", "rubric=chat"]
    assert __main__.main([*command, *judges, "--judge-model", *chosen]) == 0
    assert "harmbench" in capsys.readouterr().out
    assert judge_models == ["cais/HarmBench-Llama-2-13b-cls", "guard", "chat"]
    path = next((tmp_path / "my_results").rglob("none.json"))
    result = read_result(path)
    for judge, complied in (("harmbench-llama", 2), ("llama-guard", 2), ("chat", 0)):
        assert find(result, "asr", judge=judge).k == complied
    asked = {row["judge"] for row in result["rows"] if row["set"] == "benign"}
    assert asked == {"chat", None}
    # Another model is not taken for the one that began the log.
    chosen[1] = "rubric=org/chat"
    assert __main__.main([*command, *judges, "--judge-model", *chosen]) == 1
    assert "other settings" in capsys.readouterr().err


def test_a_classifier_may_have_no_chat_template(tokenizer, tmp_path):
    own = copy.deepcopy(tokenizer)
    own.chat_template = None
    tiny_model(own).save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    (judge,) = judges_named(["harmbench"], [str(tmp_path)])
    assert judge.tokenizer.chat_template is None
    with pytest.raises(ModelError, match="has no chat template"):
        judges_named(["rubric"], [str(tmp_path)])


def test_of_a_file_of_ones_own_the_plain_requests_alone_are_attacked(tmp_path):
    rows = [["Open it.", "Now say how."], ["Open the gate."]]
    for order in (rows, rows[::-1]):
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps({"prompt": turns}) + "\n" for turns in order))
        items = plan([f"mine:harmful={path}"], ["prefill"])
        assert [item.judged for item in items if item.attack == "prefill"] == ["Open the gate."]


def test_files_of_one_name_are_told_apart_before_a_model_is_loaded(tmp_path):
    for folder in "xy":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.csv").write_text("prompt\nHow is bread made?\n")
    with pytest.raises(ValueError, match="b:benign=.* are named as those of a set before it"):
        plan([f"a:harmful={tmp_path}/x/p.csv", f"b:benign={tmp_path}/y/p.csv"])


def test_the_log_beside_a_result_is_of_the_same_items(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    some = plan(["harmful"], [], limit=3)
    for items in (some, [*some, *plan(["benign"], [], limit=3)]):
        log = evaluate_polite(items, tmp_path).with_suffix(".jsonl")
        assert {outcome.id for outcome in read_log(log)} == {item.id for item in items}


def test_a_narrower_run_leaves_a_wider_log_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    items = plan(["harmful"], [], limit=3)
    path = evaluate_polite(items, tmp_path)
    before = path.read_bytes(), path.with_suffix(".jsonl").read_bytes()
    with monkeypatch.context() as nothing:
        nothing.setattr(Polite, "reply", lambda *_: pytest.fail("it was asked"))
        with pytest.raises(LogError, match="has 2 items more than are asked now: .*--no-resume"):
            evaluate_polite([items[0], *plan(["benign"], [])], tmp_path)
    assert before == (path.read_bytes(), path.with_suffix(".jsonl").read_bytes())
    evaluate_polite(items[:1], tmp_path, resume=False)
    assert [outcome.id for outcome in read_log(path.with_suffix(".jsonl"))] == [items[0].id]


def test_several_processes_find_what_is_wrong_with_a_log_before_they_ask(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    items = plan(["harmful"], [], limit=2)
    log = evaluate_polite(items, tmp_path).with_suffix(".jsonl")
    before = log.read_bytes()
    monkeypatch.setattr("xb_lite.evaluation.runs.processes", lambda: 2)
    monkeypatch.setattr(
        "xb_lite.evaluation.runs.ask_shared", lambda *_, **__: pytest.fail("it was asked")
    )
    with pytest.raises(LogError, match="has 1 items more than are asked now"):
        evaluate_polite(items[:1], tmp_path)
    monkeypatch.setattr(Subject, "identity", lambda *_: {"model": "other", "precision": "fp32"})
    with pytest.raises(LogError, match="is of a run with other settings"):
        evaluate_polite(items, tmp_path)
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"judged_by": [lambda requests, responses: []]}, "a judge has a name and a source"),
        ({"judged_by": [SimpleNamespace(name="mine")]}, "a judge has a name and a source"),
        ({"judged_by": XSTEST}, "judges come in a list"),
        ({"items": ["How is bread made?"]}, "an item is an Item"),
    ],
)
def test_what_is_no_item_or_judge_is_one_sentence(bad, says, tmp_path):
    how = {"items": plan(["harmful"], [], limit=1), "judged_by": [XSTEST], **bad}
    subject = Subject("polite", "polite", Polite())
    with pytest.raises(ValueError, match=says):
        evaluate_subject(
            subject, precision=choose_precision(), decoding=Decoding(), folder=tmp_path, **how
        )


def test_a_finished_result_is_not_written_again_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    items = plan(["harmful"], [], limit=2)
    path = evaluate_polite(items, tmp_path)
    marked = {**read_result(path), "seconds": 12345}
    write_result(path, marked)
    assert evaluate_polite(items, tmp_path) == path
    assert read_result(path) == marked
    evaluate_polite([*items, *plan(["benign"], [], limit=1)], tmp_path)  # more items
    assert read_result(path)["seconds"] < 12345
    for option in ({"more_rows": lambda: pytest.fail("it is finished")}, {"resume": False}):
        write_result(path, {**read_result(path), "seconds": 12345})
        more = [*items, *plan(["benign"], [], limit=1)]
        evaluate_polite(more, tmp_path, **option)
        assert (read_result(path)["seconds"] == 12345) == ("more_rows" in option)


def test_a_result_of_fewer_items_of_a_task_is_not_taken_for_one_of_all(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    measured = []
    monkeypatch.setattr("xb_lite.evaluation.runs.check_tasks", lambda tasks: None)
    monkeypatch.setattr(
        "xb_lite.evaluation.runs.harness_rows", lambda *found: measured.append(found[2:]) or []
    )
    subject = Subject("m", "m", Polite(), model=object())
    for limit in (2, 2, None):
        path = evaluate_subject(
            subject,
            plan(["harmful"], [], limit=2),
            choose_precision(),
            Decoding(),
            tmp_path,
            tasks=["gsm8k"],
            task_limit=limit,
            capability=False,
            judged_by=[XSTEST],
        )
    assert measured == [(["gsm8k"], 2), (["gsm8k"], None)]
    assert read_result(path)["setting"]["tasks"] == ["gsm8k"]


def test_seconds_are_those_of_all_attempts(tmp_path, monkeypatch):
    """A run that was stopped after it had asked everything counts what the asking took."""
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    items = plan(["harmful"], [], limit=3)
    path = evaluate_polite(items, tmp_path)
    log = path.with_suffix(".jsonl")
    head, *rows = log.read_text().splitlines(keepends=True)
    slow = [
        json.dumps({**json.loads(row), "seconds": 50.0, "judging": 20.0}) + "\n" for row in rows
    ]
    log.write_text("".join([head, *slow]))
    path.unlink()  # as a kill just before the result leaves it
    evaluate_polite(items, tmp_path)
    assert read_result(path)["seconds"] >= 3 * (50 + 20)


def test_a_result_says_what_was_evaluated(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    found = read_result(evaluate_polite(plan(["harmful"], [], limit=1), tmp_path))
    assert found["setting"] == {
        **{"defense": "none", "method": "none", "changes": {}, "strength": None},
        **{"training_seed": None, "decoding": Decoding().settings(), "tasks": []},
        **{"judges": {XSTEST.name: XSTEST.source}, "precision": "the server's"},
    }
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40}[+]?", found["commit"])
    recipe = as_fields(load_recipe("x-boundary-smollm2-135m", steps=300, schedule=450.0))
    adapter = {"run": {"recipe": recipe, "seed": 3, "strength": 0.5}, "digest": "d"}
    subject = Subject("m", "m", Polite(), defense="mine", adapter=adapter)
    exact = choose_precision(exact=True)
    setting = setting_of(prompted(subject, "ia"), exact, Decoding(), [XSTEST])
    assert setting["changes"] == {"steps": 300, "schedule": 450.0}
    assert (setting["method"], setting["defense"]) == ("x-boundary+ia", "mine+ia")
    assert (setting["strength"], setting["training_seed"]) == (0.5, 3)
    # An adapter from the hub comes without its run, and is a defense all the same.
    subject = replace(subject, adapter={"run": None, "digest": "d"})
    setting = setting_of(subject, exact, Decoding(), [XSTEST])
    assert (setting["method"], setting["strength"], setting["changes"]) == ("adapter", 1.0, {})
    assert setting["training_seed"] is None


@pytest.mark.parametrize(
    "fields", [{"method": "mine"}, {"separate_target": "mine"}, {"mine": 1}], ids=str
)
def test_an_adapter_by_a_recipe_that_cannot_be_read_is_evaluated(fields, tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    recipe = {**as_fields(load_recipe("x-boundary-smollm2-135m")), **fields}
    adapter = {"run": {"recipe": recipe, "seed": 3}, "digest": "d"}
    subject = Subject("m", "m", Polite(), defense="mine", adapter=adapter)
    items = plan(["harmful"], [], limit=1)
    found = read_result(
        evaluate_subject(
            subject, items, choose_precision(), Decoding(), tmp_path, judged_by=[XSTEST]
        )
    )
    assert found["setting"]["changes"] == {} and found["setting"]["method"] == recipe["method"]
    assert found["adapter"]["run"]["recipe"] == recipe


def test_a_server_has_a_precision_and_a_machine_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    polite = Subject("polite", "polite", Polite())
    one, other = (Precision("cpu", kind, None, "tests") for kind in (torch.float32, torch.float16))
    assert polite.identity(one) == polite.identity(other)
    here = replace(polite, model=object())
    assert here.identity(one) != here.identity(other)
    path = evaluate_polite(plan(["harmful"], [], limit=1), tmp_path)
    assert read_result(path)["hardware"].startswith("behind a server; judged on ")

    monkeypatch.setattr("xb_lite.replies.subjects.remote_subject", lambda *_: polite)
    monkeypatch.setattr("xb_lite.evaluation.runs.evaluate_subject", lambda *_, **__: path)
    command = ["evaluate", "polite", "--server", "http://127.0.0.1:1/v1", "--sets", "benign"]
    assert __main__.main([*command, "--limit", "1"]) == 0
    assert "1 items\n" in capsys.readouterr().out


def test_a_subject_behind_a_prompt_is_another_subject():
    polite = Subject("polite", "polite", Polite(), defense="x-boundary-0")
    guarded = prompted(polite, "self-reminder")
    assert guarded.defense == "x-boundary-0+self-reminder"
    assert prompted(Subject("polite", "polite", Polite()), "ia").defense == "ia"
    precision = choose_precision()
    assert guarded.identity(precision) != polite.identity(precision)
    with pytest.raises(ValueError, match="there are ia, ia-one-pass"):
        prompted(polite, "nonsense")
    with pytest.raises(ValueError, match="is behind self-reminder already"):
        prompted(guarded, "ia")


def test_replies_behind_another_version_of_an_own_defense_are_kept_apart(monkeypatch):
    found = []
    for version in ("mine, version 1", "mine, version 2"):
        mine = by_prompt(list)
        mine.source = version
        monkeypatch.setitem(DEFENSES, "ia-by-hand", mine)  # a name of one's own goes before a rule
        subject = prompted(Subject("polite", "polite", Polite()), "ia-by-hand")
        assert subject.backend.defense is mine and subject.analyst is None
        found.append(subject.identity(choose_precision()))
    assert found[0] != found[1]


@pytest.mark.parametrize("gives", [[Reply("Yes.", 1, 1, True)], [], ["Yes."], [["Yes."]], None])
def test_a_defense_that_gives_no_stages_is_named_before_anything_is_asked(gives):
    polite = Polite()
    polite.check = lambda *_: None
    with pytest.raises(TypeError, match="a Reply of each stage and the answer last"):
        Defended(polite, lambda *_: gives).check([as_dialogue("Why?")], 8)


def test_a_recipe_that_does_not_fit_is_refused_before_the_model_is_asked(capsys, unasked, loaded):
    changes = ["model=smollm2-135m", "lora_layers=99"]
    assert __main__.main(["train", "x-boundary-smollm2-135m", "--set", *changes]) == 1
    assert "lora_layers is 99; it must be at most 30" in capsys.readouterr().err


@pytest.fixture
def unasked(monkeypatch):
    monkeypatch.setattr(
        "xb_lite.training.defense.reference_sets", lambda *_, **__: pytest.fail("it was asked")
    )


@pytest.fixture
def loaded(default_model, monkeypatch):
    """The default model is there, and is not loaded again."""
    subject = Subject(DEFAULT, model_digest(), LocalBackend(*default_model), *default_model)
    monkeypatch.setattr("xb_lite.training.defense.local_subject", lambda *_: subject)


def trained_with(capsys, *arguments, recipe="x-boundary-smollm2-135m"):
    """What ``train`` says on the default model when it fails."""
    changes = ["model=smollm2-135m", *(a for a in arguments if "=" in a)]
    options = [a for a in arguments if "=" not in a]
    assert __main__.main(["train", recipe, *options, "--set", *changes]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


@pytest.mark.parametrize("place", ["file", "file/in/it", "/proc/nowhere"])
def test_a_folder_that_cannot_be_is_said_to_be_before_the_model_is_loaded(
    tmp_path, monkeypatch, capsys, place
):
    monkeypatch.setattr(
        "xb_lite.training.defense.local_subject", lambda *_: pytest.fail("it was loaded")
    )
    (tmp_path / "file").touch()
    said = trained_with(capsys, "--into", str(tmp_path / place))
    assert "nowhere cannot" in said or f"the folder {tmp_path / place} cannot be written to" in said


def test_a_package_that_is_missing_is_named_before_the_model_is_asked(
    tmp_path, monkeypatch, capsys, unasked, loaded
):
    monkeypatch.setitem(sys.modules, "trl", None)
    said = trained_with(capsys, "--into", str(tmp_path), recipe="dpo-smollm2-135m")
    assert "pip install 'xb-lite[baselines]'" in said


def test_processes_that_cannot_share_a_step_are_told_before_the_model_is_asked(
    tmp_path, monkeypatch, capsys, unasked, loaded
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "the number of processes (3)" in trained_with(capsys, "--into", str(tmp_path))


def test_a_folder_with_another_run_is_left_before_the_model_is_asked(
    tmp_path, capsys, unasked, loaded
):
    begun = tmp_path / "checkpoints" / "begun.json"
    begun.parent.mkdir()
    begun.write_text(json.dumps({"seed": 1, "recipe": {}}))
    said = trained_with(capsys, "--into", str(tmp_path))
    assert "has a run of another recipe, seed, model, precision in it" in said


def test_sets_that_are_given_are_trained_on(tmp_path, tokenizer, monkeypatch, unasked):
    model, sets = tiny_model(tokenizer, num_hidden_layers=4), tiny_sets()
    subject = Subject("tiny", "digest", LocalBackend(model, tokenizer), model, tokenizer)
    monkeypatch.setattr("xb_lite.training.defense.local_subject", lambda *_: subject)
    train_defense(tiny_recipe(steps=1), tmp_path, sets=sets)
    assert read_run(tmp_path)["run"]["sets"] == sets.digest


def test_an_error_of_the_system_is_one_line(monkeypatch, capsys):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("xb_lite.data.items.plan", full)
    assert __main__.main(["evaluate"]) == 1
    assert capsys.readouterr().err == "[Errno 28] No space left on device: 'somewhere'\n"


def test_a_process_has_its_gpu_before_the_model_is_loaded(tmp_path, monkeypatch):
    class Loaded(Exception):  # noqa: N818
        pass

    def load(*_):
        assert made
        raise Loaded

    made = []
    monkeypatch.setattr("xb_lite.training.defense.PartialState", lambda cpu: made.append(cpu))
    monkeypatch.setattr("xb_lite.training.defense.local_subject", load)
    with pytest.raises(Loaded):
        train_defense(load_recipe("x-boundary-smollm2-135m"), tmp_path)


QUIZ, PASSAGES = load_quiz, load_passages


def test_published_results_are_whole_and_shown():
    for name in ("cpu/smollm2-135m/none.json", "judges/service.json"):
        result = read_result(published(name))
        for number, row in enumerate(result["rows"]):
            results._check_row(row, number)
        assert "/" not in result["command"].replace("data/", "").replace("benchmarks/", "")
    table = tables.as_html(read_result(published("cpu/smollm2-135m/none.json")))
    assert ">ASR</td>" in table and ">harmful</td>" in table


def test_what_is_not_published_is_one_sentence(tmp_path, monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no route")

    monkeypatch.setattr(own_files.urllib.request, "urlopen", offline)
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="cannot be fetched .*no route"):
        published("cpu/nothing.json")
    kept = tmp_path / "results" / "cpu" / "nothing.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    assert published("cpu/nothing.json") == kept


def test_what_is_published_is_fetched_once(tmp_path, monkeypatch):
    urls = []

    def online(url, **_options):
        urls.append(url)
        return io.BytesIO(b"{}")

    monkeypatch.setattr(own_files.urllib.request, "urlopen", online)
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path))
    assert published("cpu/another.json") == published("cpu/another.json")
    assert len(urls) == 1 and urls[0].endswith("/main/results/cpu/another.json")


def test_moves_of_several_seeds_are_averaged_item_by_item():
    dice = np.random.default_rng(0)
    before = dice.normal(size=(12, 5)).astype(np.float32)
    after = {0: before * 1.5, 4: before * 2}
    kinds = ["harmful", "boundary-safe", "benign"] * 4
    found = moves.moved(before, after, kinds, [None] * 12)
    assert np.allclose(found[""].relative, 0.75, atol=1e-5)
    assert np.allclose(found[", seed 4"].relative, 1, atol=1e-5)
    rows = [
        *moves.relative_rows(found, 19, "direct"),
        *moves.times_rows(found, found, 19, "direct"),
    ]
    metrics = {row["metric"]: row["mean"] for row in rows}
    assert np.isclose(metrics["relative, layer 19, seed 0"], 0.5, atol=1e-5)
    assert np.isclose(metrics["times as far, layer 19"], 1)
    assert len(rows) == 2 * 3 * 3


@pytest.mark.parametrize("name", ["ia", "steering", "none", "x-boundry"])
def test_states_of_what_is_not_trained_are_not_said_to_have_moved_by_nothing(name, monkeypatch):
    monkeypatch.setattr(moves, "local_subject", lambda *_: pytest.fail("a model is loaded"))
    monkeypatch.setattr(sys, "argv", ["displacement", "x-boundary", name])
    with pytest.raises(ValueError, match=f"{name} is no trained defense; there are .*x-boundary"):
        moves.main()


def test_what_is_moved_is_held_out_and_in_one_order_under_both_attacks():
    items = moves.held_out()
    assert [item.id for item in items["prefill"]] == [f"{i.id}+prefill" for i in items["direct"]]
    trained_on = {row.prompt for kind in moves.KINDS for row in load_corpus(kind, "train")}
    assert not trained_on & {item.request for item in items["direct"]}
    assert len(moves.held_out(2)["direct"]) == 2 * 2 * 3


def test_adapters_of_recipes_with_dots_in_their_names_have_folders_of_their_own():
    folders = {
        adapter_folder(f"x-boundary-qwen2.5-coder-{size}{end}", 0).name
        for size in ("0.5b", "1.5b")
        for end in ("", ".json")
    }
    assert folders == {"x-boundary-qwen2.5-coder-0.5b-0", "x-boundary-qwen2.5-coder-1.5b-0"}


def test_a_changed_recipe_has_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    def trained(recipe, folder, **_):
        folders.append(folder.name)
        return Trained(folder, [{"loss": 1.0}])

    folders = []
    monkeypatch.setattr("xb_lite.training.defense.train_defense", trained)
    monkeypatch.setattr("xb_lite.training.command.before_fetching", lambda _: "")
    command = ["train", "circuit-breakers-smollm2-135m"]
    for changes in (
        [],
        ["--set", "learning_rate=1.6e-3"],
        ["--set", "learning_rate=0.0016", "steps=100"],  # that many as it is
        ["--set", "steps=2", "model=some/model"],
        ["--set", "model=some/model", "steps=2"],
    ):
        assert __main__.main([*command, *changes]) == 0
    assert folders == [
        "circuit-breakers-smollm2-135m-0",
        *["circuit-breakers-smollm2-135m,learning_rate=0.0016-0"] * 2,
        *["circuit-breakers-smollm2-135m,steps=2,model=some_model-0"] * 2,
    ]


def test_the_edition_is_the_models_own_or_in_the_name_of_the_folder(monkeypatch, capsys):
    def asked(*_, edition, **__):
        editions.append(edition)
        raise ValueError("asked for its sets")

    def trained(recipe, folder, **options):
        folders.append(folder.name)
        return train_defense(recipe, folder, **options)

    folders, editions = [], []
    monkeypatch.setattr(defense, "check_place", lambda *_: None)
    monkeypatch.setattr(defense, "check_fit", lambda *_: None)
    subject = SimpleNamespace(digest="", model=None, backend=None, identity=lambda _: {})
    monkeypatch.setattr(defense, "local_subject", lambda *_: subject)
    monkeypatch.setattr(defense, "reference_sets", asked)
    monkeypatch.setattr(defense, "train_defense", trained)
    monkeypatch.setattr("xb_lite.training.command.before_fetching", lambda _: "")
    first, second = "x-boundary-smollm2-135m", "x-boundary-smollm2-135m-aligned-360"
    for command in (
        [first],
        [second],
        [first, "--edition", "1"],
        [second, "--edition", "2"],
        [first, "--edition", "2"],
        [second, "--edition", "1", "--set", "steps=2"],
        [first, "--set", "model=smollm2-135m-aligned-360"],
    ):
        assert __main__.main(["train", *command]) == 1
        assert "asked for its sets" in capsys.readouterr().err
    assert editions == [1, 2, 1, 2, 2, 1, 2]
    assert folders == [
        *(f"{name}-0" for name in (first, second) * 2),
        f"{first},edition=2-0",
        f"{second},steps=2,edition=1-0",
        f"{first},model=smollm2-135m-aligned-360-0",
    ]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["alignment-smollm2-135m"], "alignment has its own"),
        (["x-boundary-smollm2-135m", "--data", "official"], "--data are others"),
    ],
)
def test_an_edition_that_nothing_learns_from_is_refused(command, says, capsys):
    assert __main__.main(["train", *command, "--edition", "2"]) == 1
    assert says in capsys.readouterr().err


def test_a_judge_that_cannot_be_had_says_what_to_do_about_a_judge(tmp_path):
    with pytest.raises(ModelError, match="a judge's model: .*; without a network, .*--judge-model"):
        judges_named(["harmbench"], [str(tmp_path / "none")])
