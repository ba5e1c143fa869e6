"""The manifest: what it names is committed and the reverse, and what is missing is made once."""

import ast
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from xb_lite.corpora import KINDS
from xb_lite.data.items import PREFILL, attacked, plan
from xb_lite.files import digest
from xb_lite.judges.classifiers import harmbench
from xb_lite.judges.service import Service
from xb_lite.judges.strings import REFUSAL_JUDGES, XSTEST
from xb_lite.models.cached import ModelError
from xb_lite.recipes import load_recipe
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Reply
from xb_lite.reproduce import runner, status, subjects
from xb_lite.reproduce.manifest import (
    LARGE,
    ManifestError,
    Plan,
    Setting,
    items_of,
    load_manifest,
    path_of,
)
from xb_lite.reproduce.matching import NeededFirstError
from xb_lite.reproduce.runner import progress, reproduce
from xb_lite.reproduce.status import tasks_of
from xb_lite.results.contract import read_result

pytestmark = pytest.mark.usefixtures("made_up_sets")

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
TOGETHER = ROOT / "xb_lite" / "reproduce" / "together.json"  # chapter 8's
TYPED = {"paper.json"}  # what the papers report, typed from them
OWN = (*KINDS, "multi-turn")
TWICE = [{"plan": "a", "model": "m"}, {"plan": "a", "model": "m"}]


@pytest.fixture(scope="module")
def book():
    return load_manifest()


def test_committed_results_are_in_the_manifests_and_the_reverse(book):
    tasks = [t for one in (book, load_manifest(TOGETHER)) for t in tasks_of(one, RESULTS)]
    missing = {
        task.path for task in tasks if task.state == "missing" and (task.plan or task.script).open
    }
    assert [(task.path, task.why) for task in tasks if task.state != "done"] == [
        (path, "") for path in sorted(missing, key=[task.path for task in tasks].index)
    ]
    there = {
        path.relative_to(RESULTS).as_posix()
        for path in RESULTS.rglob("*.json")
        if path.name != "index.json"
    }
    assert there - TYPED == {task.path for task in tasks} - missing
    done = len(tasks) - len(missing)
    assert progress(tasks).startswith(f"{done} of {len(tasks)} done, {len(missing)} missing")


def test_what_is_for_large_machines_is_missing_only_where_it_is_asked_for(book):
    whole = {plan.name for plan in book.plans.values() if plan.tier in LARGE}
    assert {"published", "published-multi-turn", "published-seeds"} <= whole
    assert not any(task.tier in LARGE for task in tasks_of(book, RESULTS))
    for tier in LARGE:
        asked = tasks_of(book, RESULTS, tier=tier)
        assert asked and {task.tier for task in asked} == {tier}
    named = tasks_of(book, RESULTS, ["published-thinking"])
    assert [task.state for task in named] == ["missing", "missing"]
    for setting in book.settings:
        if book.plans[setting.plan].tier in LARGE and setting.trained:
            recipe = load_recipe(setting.recipe)
            assert recipe.model == setting.model and setting.data == "official"


def test_what_is_there_of_a_large_machine_counts(book, tmp_path):
    path = tmp_path / "a100/published/Meta-Llama-3-8B-Instruct/none.json"
    path.parent.mkdir(parents=True)
    path.write_text("no result yet")
    found = [task for task in tasks_of(book, tmp_path) if task.tier in LARGE]
    assert [(task.path, task.state) for task in found] == [
        ("a100/published/Meta-Llama-3-8B-Instruct/none.json", "stale")
    ]


def test_every_path_that_a_page_reads_is_in_the_manifest(book):
    paths = {task.path for task in tasks_of(book, RESULTS)}
    folders = {str(Path(path).parent) for path in paths}
    read, whole = set(), set()
    for page in [*(ROOT / "notebooks").rglob("*.ipynb"), *(ROOT / "book" / "tools").glob("*.py")]:
        text = page.read_text(encoding="utf-8")
        if page.suffix == ".ipynb":
            cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
            text = "\n".join("".join(cell["source"]) for cell in cells)
        whole |= set(re.findall(r'published\(\s*"([^"{}]+)"\s*\)', text))
        read |= set(
            re.findall(r'(?:published_results|results_in|frame)\(\s*"([^"{}]+)"\s*\)', text)
        )
    assert whole and {p for p in whole if p.endswith(".json")} - TYPED <= paths
    logs = {str(Path(path).parent) for path in whole if path.endswith(".jsonl")}
    assert logs <= folders and read <= folders  # a script has its log beside what it makes


def test_every_setting_has_its_recipe_and_every_script_is_there(book):
    for setting in book.settings:
        if setting.trained:
            load_recipe(setting.recipe, **setting.changes)
    for script in book.scripts:
        name = script.command[0]
        path = name if name.endswith(".py") else name.replace(".", "/") + ".py"
        ast.parse((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("{", "is no manifest"),
        ({"plans": {}, "settings": [{"plan": "a", "model": "m"}]}, "there is no plan 'a'"),
        ({"plans": {"a": {"folder": "x", "tier": "cpu", "colour": 1}}, "settings": []}, "colour"),
        (
            {
                "plans": {"a": {"folder": "x", "tier": "cpu"}},
                "settings": [{"plan": "a", "model": "m"}] * 2,
            },
            "two settings have the path x/m/none.json",
        ),
        (
            {
                "plans": {"a": {"folder": "x", "tier": "cpu"}},
                "settings": [{"plan": "a", "model": "smollm2-135m", "method": "x-boundary"}],
            },
            "needs seeds",
        ),
        (
            {
                "plans": {"a": {"folder": "x", "tier": "cpu"}},
                "settings": [{"plan": "a", "model": "m", "method": "ia", "prompt": "ia"}],
            },
            "nothing trained behind it",
        ),
    ],
)
def test_a_manifest_that_cannot_be_followed_is_refused(tmp_path, said, wrong):
    path = tmp_path / "mine.json"
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(ManifestError, match=wrong):
        load_manifest(path)


# Items of a plan


@pytest.fixture
def public(tmp_path):
    """A set as in the official code's files: 21 requests, or as many dialogues of 3 turns."""

    def write(name, multi_turn=False):
        rows = [
            {"id": i, "behavior": "b", "default_target": f"aim {i}", "queries": ["a", "b", f"c{i}"]}
            if multi_turn
            else {"behavior": "b", "messages": [{"role": "user", "content": f"{name} {i}?"}]}
            for i in range(21)
        ]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"data": rows}))
        return name, str(path)

    return write


def asked(split, files, limit=None):
    attacks = ["prefill", "wrapper"] if split == "test" else ["prefill"]
    of = Plan(
        name="p",
        folder="f",
        tier="cpu",
        split=split,
        attacks=attacks,
        public=list(files),
        public_limit=limit,
        harmless_prefilled=True,
    )
    return items_of(of, files)


def of_public(split, files, limit=None):
    return [item for item in asked(split, files, limit) if item.set not in OWN]


def test_every_fourth_item_of_a_public_set_is_for_validation(public):
    files = dict([public("xstest"), public("harmbench"), public("actorattack", multi_turn=True)])
    validation, test = (of_public(split, files) for split in ("validation", "test"))
    whole = plan([f"{name}={path}" for name, path in files.items()], ["prefill"])
    whole += attacked([item for item in whole if item.set == "xstest"], "prefill")
    assert len(whole) == 5 * 21 and len(validation) == 5 * 6
    assert {item.id for item in [*validation, *test]} == {item.id for item in whole}
    assert len(validation) + len(test) == len(whole)
    # Nor is a request tested under one attack on which another chose.
    requests = [{(item.set, item.request) for item in items} for items in (validation, test)]
    assert not requests[0] & requests[1]
    places = [int(item.request.split()[1].rstrip("?")) for item in validation]
    assert places == 5 * [0, 4, 8, 12, 16, 20]


def test_a_limit_is_of_replies_under_each_attack(public):
    files = dict([public("harmbench"), public("actorattack", multi_turn=True), public("oktest")])
    for limit, wanted in (
        (10, [10, 10, 9, 10, 10]),
        (6, [6, 6, 6, 6, 6]),
        (1, [1, 1, 3, 1, 1]),
        (99, [15, 15, 45, 15, 15]),
    ):
        items = of_public("test", files, limit)
        replies = {}
        for item in items:
            replies.setdefault((item.set, item.attack), []).extend(item.turns)
        assert list(replies) == [
            ("harmbench", "direct"),
            ("harmbench", "prefill"),
            ("actorattack", "multi-turn"),
            ("oktest", "direct"),
            ("oktest", "prefill"),
        ]
        assert [len(turns) for turns in replies.values()] == wanted


def test_the_books_own_sets_are_those_of_the_split(public):
    for split, attacks in (("test", {"prefill", "wrapper"}), ("validation", {"prefill"})):
        items = asked(split, dict([public("oktest")]), 1)
        own = plan(attacks=sorted(attacks), split=split)
        assert items[: len(own)] == own
        assert {item.attack for item in own} == {"direct", "multi-turn", *attacks}
        plain = [item for item in own if item.set in ("boundary-safe", "benign")]
        begun = ["oktest", *(item.set for item in plain), "oktest"]
        assert [item.set for item in items[len(own) :]] == begun


def test_every_request_asked_plainly_is_asked_after_the_prefill_once(public):
    """Whether a prompt is harmless or not: a defense could break at the prefill itself."""
    files = dict([public("harmbench"), public("oktest"), public("actorattack", multi_turn=True)])
    for split, limit in (("test", None), ("validation", 3)):
        items = asked(split, files, limit)
        assert len({item.id for item in items}) == len(items)
        plain, begun = (
            [item for item in items if item.attack == attack] for attack in ("direct", "prefill")
        )
        assert {item.kind for item in plain} == {"harmful", "boundary-safe", "benign"}
        assert sorted(begun, key=str) == sorted(attacked(plain, "prefill"), key=str)
        assert all(item.prefill == (PREFILL if item in begun else "") for item in items)


# Subjects


def test_a_strength_scales_what_the_other_fields_trained(monkeypatch, tmp_path):
    """One training serves all strengths, and each has a name of its own."""
    trained, scaled = [], []
    monkeypatch.setattr(subjects, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(
        subjects,
        "train_defense",
        lambda recipe, folder, seed, edition: trained.append((recipe, folder)),
    )
    monkeypatch.setattr(subjects, "scale_adapter", lambda *found: scaled.append(found) or found[-1])
    monkeypatch.setattr(subjects, "local_subject", lambda *found: found[-1])
    for strength, end in ((None, ""), (0.75, ",strength=0.75")):
        setting = Setting(
            plan="p",
            model="smollm2-135m-aligned",
            method="x-boundary",
            changes={"steps": 7},
            strength=strength,
            seeds=[3],
        )
        with subjects.subject_of(setting, 3, None) as folder:
            assert folder.name == f"x-boundary,steps=7{end}-3"
            of = Plan(name="p", folder="cpu/test", tier="cpu")
            assert path_of(of, setting, 3) == f"cpu/test/{setting.model}/{folder.name}.json"
    assert len(scaled) == 1 and trained[0] == trained[1]
    assert trained[0][0].steps == 7 and scaled[0][:2] == (trained[0][1], 0.75)


def test_a_prompt_stands_before_what_is_trained_and_is_known_before_it_is(monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(subjects, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(subjects, "train_defense", lambda _, folder, **__: trained.append(folder))
    behind = partial(Subject, "m", "d", None)
    monkeypatch.setattr(subjects, "local_subject", lambda *of: behind(defense=of[-1].name))
    setting = Setting(
        plan="p", model="smollm2-135m-aligned", method="x-boundary", prompt="ia", seeds=[3]
    )
    with subjects.subject_of(setting, 3, None) as subject:
        of = Plan(name="p", folder="cpu/test", tier="cpu")
        assert path_of(of, setting, 3) == f"cpu/test/{setting.model}/{subject.defense}.json"
    assert (subject.defense, subject.prompt) == ("x-boundary-3+ia", "ia")
    assert [folder.name for folder in trained] == ["x-boundary-3"]
    with (
        pytest.raises(ValueError, match="no-such"),
        subjects.subject_of(replace(setting, prompt="no-such"), 3, None),
    ):
        pass
    assert len(trained) == 1


def test_two_workers_do_not_train_one_adapter_at_once(monkeypatch, tmp_path):
    """Each would delete the other's checkpoints."""
    running, most = [], []

    def train(recipe, folder, **_):
        running.append(folder)
        most.append(len(running))
        time.sleep(0.1)
        running.pop()

    monkeypatch.setattr(subjects, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(subjects, "train_defense", train)
    monkeypatch.setattr(subjects, "scale_adapter", lambda *found: found[-1])
    settings = [
        Setting(plan="p", model="smollm2-135m-aligned", method="x-boundary", strength=s, seeds=[0])
        for s in (0.5, 0.75)
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda setting: subjects.trained_adapter(setting, 0), settings))
    assert most == [1, 1]


# Making what is missing, on a subject that says one thing


class Polite:
    """Refuses; and is killed at one batch, if it is told which."""

    killed_at = None
    batches = 0

    def reply(self, dialogues, decoding, prefill=""):
        Polite.batches += 1
        if Polite.batches == Polite.killed_at:
            raise KeyboardInterrupt
        return [Reply("No, I can't.", 1, 1, True) for _ in dialogues]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A manifest of two small results, and what makes them."""

    @contextmanager
    def subject_of(setting, seed, precision, edition):
        yield Subject(setting.model, "d", Polite(), defense=setting.defense(seed))

    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runner, "subject_of", subject_of)
    monkeypatch.setattr(runner, "judges_named", lambda _: [XSTEST])
    monkeypatch.setattr(status, "_judges", lambda _: {"xstest"})
    monkeypatch.setattr(status, "model_digest", lambda _: "d")
    runner._judges.cache_clear()
    Polite.batches, Polite.killed_at = 0, None
    of = {"folder": "cpu", "tier": "cpu", "sets": ["harmful"], "attacks": [], "limit": 3}
    settings = [{"plan": "few", "model": name} for name in ("one", "two")]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"plans": {"few": of}, "settings": settings}))
    yield path
    runner._judges.cache_clear()


def rows_in(folder):
    found = {}
    for path in sorted(folder.rglob("*.json")):
        if path.name != "index.json":
            rows = read_result(path)["rows"]
            found[path.name, path.parent.name] = [r for r in rows if r["metric"] != "seconds"]
    return found


def test_what_is_missing_is_made_and_what_is_there_is_not_made_again(mine, tmp_path, capsys):
    folder = tmp_path / "results"
    assert [task.state for task in tasks_of(load_manifest(mine), folder)] == ["missing"] * 2
    tasks = reproduce(folder, manifest=mine)
    assert [task.state for task in tasks] == ["done"] * 2
    shown = capsys.readouterr().out
    assert "0 of 2 done, 2 missing, about 1.0 h left; now cpu/one/none.json" in shown
    assert "1 of 2 done, 1 missing" in shown
    assert json.loads((folder / "cpu" / "one" / "index.json").read_text()) == ["none"]
    made = Polite.batches
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    reproduce(folder, manifest=mine)
    (folder / "cpu" / "two" / "none.json").unlink()
    assert [task.state for task in tasks_of(load_manifest(mine), folder)] == ["done", "missing"]
    reproduce(folder, manifest=mine, only=["cpu/two/*"])
    assert Polite.batches == made  # the log and the cache had it
    assert (folder / "cpu" / "one" / "none.json").read_bytes() == before[
        folder / "cpu" / "one" / "none.json"
    ]


def test_a_copy_of_a_public_set_is_looked_at_before_anything_is_made(mine, tmp_path):
    for files, says in (
        ({"xs-test": __file__}, "there is no public set 'xs-test'; there are"),
        ({"xstest": str(tmp_path / "none.csv")}, "none.csv, your copy of xstest, is not there"),
    ):
        with pytest.raises(ValueError, match=says):
            reproduce(tmp_path / "results", manifest=mine, files=files)
    assert not (tmp_path / "results").exists()


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(mine, tmp_path):
    reproduce(tmp_path / "whole", manifest=mine)
    for at in (1, 2, 1, 1, 2):
        Polite.batches, Polite.killed_at = 0, at
        for path in (tmp_path / "cache" / "replies").glob("*"):
            path.unlink()
        try:
            reproduce(tmp_path / "killed", manifest=mine)
        except KeyboardInterrupt:
            continue
    Polite.killed_at = None
    reproduce(tmp_path / "killed", manifest=mine)
    assert rows_in(tmp_path / "killed") == rows_in(tmp_path / "whole") != {}


def test_what_another_worker_holds_is_left_to_it(mine, tmp_path):
    folder = tmp_path / "results"
    with runner._lock(folder, "cpu/one/none.json"):
        tasks = reproduce(folder, manifest=mine)
    assert [task.state for task in tasks] == ["missing", "done"]


def test_what_needs_a_result_in_another_workers_hands_waits_and_the_others_are_made(
    mine, tmp_path, capsys, monkeypatch
):
    folder, made = tmp_path / "results", []
    names = [f"cpu/{name}.json" for name in ("strength", "matched", "other")]

    def make(task, folder, files, plans):
        if task.path == names[1] and not (folder / names[0]).exists():
            raise NeededFirstError(names[0], "strengths")
        made.append(task.path)
        path = folder / task.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")

    monkeypatch.setattr(runner, "_make", make)
    monkeypatch.setattr(status, "read_result", lambda path: {"seconds": 1})
    scripts = [{"path": name, "command": ["m"]} for name in names]
    mine.write_text(json.dumps({"plans": {}, "settings": [], "scripts": scripts}))
    with runner._lock(folder, names[0]):
        tasks = reproduce(folder, manifest=mine)
    assert made == [names[2]] and [task.state for task in tasks] == ["missing", "missing", "done"]
    assert f"1 wait for what is not there yet: {names[1]} for {names[0]}" in capsys.readouterr().out
    with pytest.raises(ManifestError, match="needed first: reproduce --only strengths"):
        reproduce(folder, manifest=mine, only=[names[1]])
    # In any order: what waits is tried again when something else was made.
    mine.write_text(json.dumps({"plans": {}, "settings": [], "scripts": scripts[::-1]}))
    assert {task.state for task in reproduce(folder, manifest=mine)} == {"done"}
    assert made == [names[2], names[0], names[1]]


def test_a_script_that_did_not_write_its_result_is_an_error(mine, tmp_path, monkeypatch):
    """As one does that writes into the folder of a GPU's tier."""
    (tmp_path / "made.py").write_text(
        "import pathlib, sys\npath = pathlib.Path(sys.argv[1])\n"
        "path.parent.mkdir(parents=True)\npath.write_text('{}')\n"
    )
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    script = {"path": "cpu/mine.json", "command": ["made.py", "{results}/t4/mine.json"]}
    mine.write_text(json.dumps({"plans": {}, "settings": [], "scripts": [script]}))
    with pytest.raises(ValueError, match="made.py ended without writing cpu/mine.json"):
        reproduce(tmp_path / "results", manifest=mine)
    script["command"][1] = "{results}/cpu/mine.json"
    mine.write_text(json.dumps({"plans": {}, "settings": [], "scripts": [script]}))
    reproduce(tmp_path / "results", manifest=mine)
    assert (tmp_path / "results" / "cpu" / "mine.json").is_file()


def test_a_file_of_another_setting_is_stale_and_left(mine, tmp_path):
    folder = tmp_path / "results"
    reproduce(folder, manifest=mine)
    other = json.loads(mine.read_text())
    other["plans"]["few"]["max_new_tokens"] = 8
    other["plans"]["few"]["digest"] = digest("other items")
    mine.write_text(json.dumps(other))
    first, second = tasks_of(load_manifest(mine), folder)
    assert first.state == second.state == "stale"
    assert "reply: 64 in the file, 8 in the manifest" in first.why
    assert "2 stale" in progress([first, second])
    made = Polite.batches
    reproduce(folder, manifest=mine)
    assert Polite.batches == made
    result = folder / first.path
    for field in ("model", "data"):  # a file that was edited by hand
        result.write_text(json.dumps({**json.loads(result.read_text()), field: None}))
        (again, _) = tasks_of(load_manifest(mine), folder)
        assert again.state == "stale" and "says of no model and data" in again.why
    for path in (folder / "cpu").rglob("none.json*"):
        path.unlink()
    with pytest.raises(ValueError, match="a public set is another edition, or a corpus"):
        reproduce(folder, manifest=mine)


def test_a_result_is_known_by_the_names_of_its_judges(book):
    """Of every plan: else all that it has made is stale."""
    llama = SimpleNamespace(config=SimpleNamespace(model_type="llama"))  # as JUDGE_MODELS has
    called = {
        "words": {*(judge.name for judge in REFUSAL_JUDGES), "gibberish"},
        "service": {Service.name},
        "harmbench": {harmbench(llama, None).name},
    }
    for of in book.plans.values():
        assert status._judges(of.judges) == set.union(*(called[name] for name in of.judges))


def test_only_what_is_meant(book):
    assert {task.tier for task in tasks_of(book, RESULTS, tier="gpu")} == {"gpu"}
    only = tasks_of(book, RESULTS, ["ablations", "judges/*"])
    assert len(only) == 5 and {task.path.split("/")[0] for task in only} == {"intention", "judges"}
    with pytest.raises(ValueError, match="nothing is meant by 'nope': give a path, or a plan"):
        tasks_of(book, RESULTS, ["nope"])


def test_no_model_is_needed_to_say_what_is_there(book, monkeypatch):
    def load(*_, **__):
        raise ModelError("none")

    monkeypatch.setattr("xb_lite.models.loading.load_model", load)
    assert tasks_of(book, RESULTS)
