"""Results by hand, and what cannot be a result."""

import json
import os
import platform
import re
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xb_lite.data.items import load_items
from xb_lite.evaluation.outcomes import Outcome, seconds_spent
from xb_lite.evaluation.summary import summarise, verdicts
from xb_lite.recipes import own_recipe, run_name
from xb_lite.results.contract import (
    FIELDS,
    SETTING,
    mean_row,
    provenance,
    rate_row,
    read_result,
    write_result,
)
from xb_lite.results.frames import find, frame, pooled, published_results, write_index
from xb_lite.results.stats import Estimate, Rate, mean, rate
from xb_lite.results.tables import print_result

RESULTS = Path(__file__).parents[1] / "results"
C, R, E, G = "complied", "refused", "evaded", "gibberish"


def outcome(i, kind="harmful", attack="direct", tokens=(5,), seconds=1.0, **labels):
    labels = {name: list(given) for name, given in labels.items()}
    n = len(next(iter(labels.values())))
    return Outcome(
        f"item-{i}", kind, kind, attack, labels, [3] * n, list(tokens), [True] * n, seconds, "00"
    )


def outcomes(labels, **options):
    return [outcome(i, judge=[label], **options) for i, label in enumerate(labels)]


def counts(rows, judge="judge"):
    """Of the rates: ``{metric: (k, n)}``."""
    return {row["metric"]: (row["k"], row["n"]) for row in rows if row["judge"] == judge}


def result(rows):
    blank = {name: None for name in FIELDS}
    return {**blank, **provenance(datetime.now(UTC)), "rows": rows}


ROW = rate_row(rate([True, False, False]), "asr", "harmful", "direct", "service")
MEAN = mean_row(mean([1.0, 2.0]), "seconds", "harmful", "direct")


# Counting


def test_attack_success_is_the_share_that_complied():
    rows = summarise(outcomes([C, C, C, R, R, E, G, C]))
    assert counts(rows) == {"asr": (4, 8), R: (2, 8), E: (1, 8), G: (1, 8)}
    assert {row["attack"] for row in rows} == {"direct"}
    asr = next(row for row in rows if row["metric"] == "asr")
    assert (asr["low"], asr["high"]) == (rate([1, 0] * 4).low, rate([1, 0] * 4).high)


@pytest.mark.parametrize("kind", ["boundary-safe", "benign"])
def test_over_refusal_is_refused_or_gibberish_and_evading_is_neither(kind):
    rows = summarise(outcomes([C, R, G, E, C, C], kind=kind))
    assert counts(rows) == {"orr": (2, 6), "served": (3, 6), R: (1, 6), E: (1, 6), G: (1, 6)}


def test_of_a_script_any_turn_counts_and_the_last_one():
    scripts = [[R, C, R], [C, C], [R, R, C], [R, E], [G, G]]
    group = [
        outcome(i, attack="multi-turn", tokens=[2] * len(turns), judge=turns)
        for i, turns in enumerate(scripts)
    ]
    rows = summarise(group)
    assert counts(rows) == {
        "asr-any-turn": (3, 5),
        "asr-last-turn": (2, 5),
        R: (1, 5),
        E: (1, 5),
        G: (1, 5),
    }
    (tokens,) = [row for row in rows if row["metric"] == "new_tokens"]
    assert tokens["mean"] == (6 + 4 + 6 + 4 + 4) / 5 and tokens["n"] == 5


def test_what_could_not_be_read_is_left_out_of_n():
    assert counts(summarise(outcomes([C, None, R, None])))["asr"] == (1, 2)
    scripts = [[C, None], [C, R]]  # of a script one such turn is enough
    group = [outcome(i, attack="multi-turn", judge=turns) for i, turns in enumerate(scripts)]
    assert counts(summarise(group))["asr-any-turn"] == (1, 1)


def test_where_nothing_could_be_read_there_is_no_rate():
    rows = summarise(outcomes([None, None]))
    assert [row["metric"] for row in rows] == ["new_tokens", "seconds"]


def test_a_string_judge_is_overlaid_by_gibberish_and_others_are_not():
    group = [
        outcome(0, xstest=[C], gibberish=[G], service=[C]),
        outcome(1, xstest=[C], gibberish=[C], service=[C]),
        outcome(2, xstest=[R], gibberish=[G], service=[R]),
        outcome(3, xstest=[C], gibberish=[None], service=[E]),
    ]
    assert verdicts(group, "xstest") == [[G], [C], [R], [None]]
    assert verdicts(group, "service") == [[C], [C], [R], [E]]
    rows = summarise(group)
    assert counts(rows, "xstest") == {"asr": (1, 3), R: (1, 3), E: (0, 3), G: (1, 3)}
    assert counts(rows, "service") == {"asr": (2, 4), R: (1, 4), E: (1, 4), G: (0, 4)}
    assert counts(rows, "gibberish") == {}
    assert verdicts([outcome(0, xstest=[C, R])], "xstest") == [[C, R]]  # nobody to ask


def test_sets_and_attacks_are_counted_apart():
    group = [
        *outcomes([C, R]),
        *outcomes([C, C], attack="prefill"),
        *outcomes([R], kind="benign"),
    ]
    rows = summarise(iter(group))
    found = {
        (row["set"], row["attack"], row["metric"]): (row["k"], row["n"])
        for row in rows
        if row["metric"] in ("asr", "orr")
    }
    assert found == {
        ("harmful", "direct", "asr"): (1, 2),
        ("harmful", "prefill", "asr"): (2, 2),
        ("benign", "direct", "orr"): (1, 1),
    }


def test_seconds_and_tokens_are_means_of_items():
    rows = summarise(
        [outcome(i, seconds=s, tokens=(t,), judge=[C]) for i, (s, t) in enumerate([(1, 2), (2, 6)])]
    )
    means = {row["metric"]: (row["mean"], row["n"]) for row in rows if "mean" in row}
    assert means == {"seconds": (1.5, 2), "new_tokens": (4.0, 2)}


def test_a_judge_that_was_not_there_is_named():
    with pytest.raises(ValueError, match="item-1 has no labels of 'other'; its judges are judge"):
        verdicts([outcome(0, judge=[C], other=[C]), outcome(1, judge=[C])], "other")
    assert summarise([]) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from([C, R, E, G, None]), min_size=1, max_size=3), min_size=1))
def test_shares_of_last_replies_sum_to_one(labels):
    attack = "multi-turn"
    group = [outcome(i, attack=attack, judge=turns) for i, turns in enumerate(labels)]
    rows = summarise(group)
    write_to_nowhere(rows)
    found = counts(rows)
    if found:
        (n,) = {n for _, n in found.values()}
        assert sum(found[name][0] for name in ("asr-last-turn", R, E, G)) == n
        assert found["asr-any-turn"][0] >= found["asr-last-turn"][0]
        assert n == sum(None not in turns for turns in labels)


# Where a result is from


def write_to_nowhere(rows):
    with tempfile.TemporaryDirectory() as folder:
        write_result(Path(folder) / "result.json", result(rows))


def test_provenance_names_no_folder_and_no_machine(monkeypatch):
    home, host = "/home/somebody/secret place", platform.node()
    monkeypatch.setattr(
        sys,
        "argv",
        [
            f"{home}/evaluate.py",
            "--limit=3",
            f"harmbench={home}/my.json",
            f"{home}/results/",
            "~/models/tiny",
            "--adapter",
            "../adapters/one",
            f"http://{host}:8000/v1",
            "org/model",
        ],
    )
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    found = provenance(datetime.now(UTC) - timedelta(seconds=90))
    assert found["command"] == (
        "python evaluate.py --limit=3 harmbench=my.json  tiny --adapter ../adapters/one "
        "http://… org/model"
    )
    text = json.dumps(found)
    assert "secret" not in text and host not in text
    assert found["seconds"] == 90 and str(os.cpu_count()) in found["hardware"]
    assert all(found["versions"].values())
    assert datetime.fromisoformat(found["started"]).tzinfo is not None


def test_a_module_is_run_by_its_name(monkeypatch):
    class Spec:
        name = "xb_lite.__main__"

    monkeypatch.setattr(sys.modules["__main__"], "__spec__", Spec)
    monkeypatch.setattr(sys, "argv", ["/somewhere/xb_lite/__main__.py", "evaluate"])
    assert provenance(datetime.now(UTC))["command"] == "python -m xb_lite evaluate"


def test_the_installed_command_is_the_module(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/xb-lite", "evaluate"])
    assert provenance(datetime.now(UTC))["command"] == "python -m xb_lite evaluate"


# Writing, reading, finding


def test_a_result_comes_back_as_it_was(tmp_path):
    path = tmp_path / "new" / "result.json"
    wanted = result([ROW, MEAN])
    write_result(path, wanted)
    assert read_result(path) == wanted
    write_result(path, {**wanted, "seed": 1})
    assert read_result(path)["seed"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


BAD_ROWS = [
    *({name: value for name, value in ROW.items() if name != gone} for gone in ROW),
    {**ROW, "mean": 0.5},
    *({**ROW, name: float("nan")} for name in ("n", "k", "low", "high")),
    *({**ROW, name: None} for name in ("n", "k", "low", "high")),
    {**MEAN, "mean": float("inf")},
    {**ROW, "n": 0, "k": 0},
    {**ROW, "k": 4},
    {**ROW, "k": -1},
    {**ROW, "n": 2.5},
    {**ROW, "low": 0.9, "high": 0.1},
    {**ROW, "low": "0.1"},
    {**ROW, "judge": ["xstest"]},
    {},
    [],
    None,
    "asr",
]


@pytest.mark.parametrize("row", BAD_ROWS, ids=str)
def test_a_row_without_n_interval_or_sense_is_refused_and_nothing_written(tmp_path, row):
    path = tmp_path / "result.json"
    with pytest.raises(ValueError, match="row 1 (needs|has)") as error:
        write_result(path, result([ROW, row]))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
    path.write_text(json.dumps(result([ROW, row])))
    with pytest.raises(ValueError, match="result.json is no result: row 1 ") as error:
        read_result(path)
    assert "\n" not in str(error.value)


def test_fields_are_all_and_only_those_of_the_contract(tmp_path):
    good = result([ROW])
    for bad in (
        {**good, "note": 1},
        {name: good[name] for name in FIELDS - {"seed"}},
        {},
        {**good, 3: 4},
    ):
        with pytest.raises(ValueError, match="a result has the fields"):
            write_result(tmp_path / "result.json", bad)
    for rows in (None, ROW, "rows", 3):
        with pytest.raises(ValueError, match="rows is a list"):
            write_result(tmp_path / "result.json", result(rows))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), {"a": float("inf")}, Path("/x"), {1, 2}, "\ud800"])
def test_what_json_has_not_is_refused_and_nothing_written(tmp_path, value):
    with pytest.raises(ValueError, match="something in it that JSON has not") as error:
        write_result(tmp_path / "result.json", {**result([ROW]), "data": value})
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_result(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_result(path, result([ROW]))
    before = path.read_bytes()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_result(path, result([MEAN]))
    assert path.read_bytes() == before


def test_find_gives_the_one_row_as_a_number_with_its_interval():
    found = result([ROW, MEAN, {**ROW, "judge": "xstest", "k": 2}])
    assert find(found, "asr", judge="service") == Rate(1 / 3, 3, ROW["low"], ROW["high"], 1)
    assert find(found, "asr", judge="xstest", set="harmful").k == 2
    assert find(found, "seconds") == Estimate(1.5, 2, MEAN["low"], MEAN["high"])
    assert find(found, "seconds", judge=None).n == 2
    with pytest.raises(ValueError, match="2 rows for 'asr' at {}; say which set, attack, judge"):
        find(found, "asr")
    for where in ({"judge": "none"}, {"set": "benign"}, {"colour": None}, {"colour": "red"}):
        with pytest.raises(ValueError, match="0 rows for 'asr'"):
            find(found, "asr", **where)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=40)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.tuples(st.sampled_from(sorted(FIELDS)), JSON).map(
        lambda field: json.dumps({**result([ROW]), field[0]: field[1]}).encode()
    )
    | st.tuples(st.sampled_from(sorted({*ROW, "mean"})), JSON).map(
        lambda field: json.dumps(result([{**ROW, field[0]: field[1]}])).encode()
    )
    | st.just(b"[" * 99_999)
)
def test_any_bytes_are_a_result_or_one_sentence(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        path.write_bytes(data)
        try:
            found = read_result(path)
        except ValueError as error:
            assert type(error) is ValueError and "\n" not in str(error) and len(str(error)) < 900
        else:
            for row in found["rows"]:
                assert str(find({"rows": [row]}, row["metric"]))


@pytest.mark.parametrize("what", ["missing", "folder", "old"])
def test_what_is_no_result_says_to_evaluate(tmp_path, what):
    path = tmp_path / "result.json"
    if what == "folder":
        path.mkdir()
    if what == "old":
        path.write_text(json.dumps({**result([ROW]), "schema": 0}))
    with pytest.raises(ValueError, match="is no result.*evaluate"):
        read_result(path)


def test_an_index_names_the_results_of_its_folder(tmp_path):
    for name in ("none.json", "none.jsonl", "ia,a=0.5-1.json"):
        (tmp_path / name).write_text("{}")
    for _ in range(2):  # the index is not among them
        write_index(tmp_path)
        assert json.loads((tmp_path / "index.json").read_text()) == ["ia,a=0.5-1", "none"]


def test_every_index_that_is_published_is_complete():
    folders = [path.parent for path in RESULTS.rglob("index.json")]
    for folder in folders:
        there = {path.stem for path in folder.glob("*.json")} - {"index"}
        assert set(published_results(str(folder.relative_to(RESULTS)))) == there
    assert len(folders) > 4


def committed():
    for path in sorted(RESULTS.rglob("*.json")):
        if path.name not in ("index.json", "paper.json"):
            yield path, read_result(path)


def is_published(defense):
    """Whether it is one of the book's own adapters, by the name of its folder."""
    return (RESULTS.parent / "artifacts" / "cpu" / defense).is_dir()


def test_committed_results_say_what_was_evaluated():
    """By their names, as one function makes them, and by what is in them."""
    named = 0
    for path, result in committed():
        setting = result["setting"]
        if setting is None:
            continue
        defense = path.parent.name if "attacks" in path.parts else path.stem
        assert setting["defense"] == defense
        recipe = ((result["adapter"] or {}).get("run") or {}).get("recipe")
        if recipe is None:
            assert setting["training_seed"] is None and setting["changes"] == {}
        elif not is_published(defense.partition("+")[0]):
            shipped = own_recipe(recipe["method"], recipe["model"])
            changes = dict(setting["changes"])
            if matched := re.search(r",match=([\d.]+)", defense):  # its strength was read off
                changes["match"] = float(matched[1])
            elif setting["strength"] != 1:
                changes["strength"] = setting["strength"]
            method, *prompt = setting["method"].split("+")
            name = f"{run_name(method, changes, shipped)}-{setting['training_seed']}"
            assert "+".join([name, *prompt]) == defense
            named += 1
        tokens = re.search(r"--max-new-tokens (\d+)", result["command"])
        assert tokens is None or setting["decoding"]["max_new_tokens"] == int(tokens[1]), path
        assert list(setting["judges"]) and {r["judge"] for r in result["rows"]} - {None} <= set(
            setting["judges"]
        )
    assert named > 100


def test_seconds_of_committed_results_are_at_least_those_of_their_items():
    logs = [(path.with_suffix(".jsonl"), found["seconds"]) for path, found in committed()]
    other = ("separability", "attacks", "harmless-replies", "curves")  # logs of another kind
    logs = [(at, s) for at, s in logs if at.exists() and not set(other) & set(at.parts)]
    assert all(seconds >= round(seconds_spent(log)) for log, seconds in logs) and len(logs) > 50


def test_the_folder_says_the_tier_and_the_file_the_card():
    cards = {found["hardware"] for path, found in committed() if "a100" in path.parts}
    assert cards == {"NVIDIA H100 80GB HBM3, 16 CPU cores"}


def test_a_setting_has_all_of_its_fields(tmp_path):
    good = result([ROW])
    setting = dict.fromkeys(SETTING)
    write_result(tmp_path / "result.json", {**good, "setting": setting})
    for bad in ({}, [], "none", {**setting, "note": 1}, dict.fromkeys(SETTING[1:])):
        with pytest.raises(ValueError, match="setting has the fields"):
            write_result(tmp_path / "result.json", {**good, "setting": bad})


def test_a_frame_has_a_row_a_rate_and_knows_its_run(tmp_path):
    for seed, k in ((0, 1), (1, 2)):
        setting = {
            **dict.fromkeys(SETTING),
            **{"defense": f"a,steps=2-{seed}", "method": "a", "changes": {"steps": 2}},
            **{"strength": 0.5, "training_seed": seed},
        }
        write_result(
            tmp_path / f"a,steps=2-{seed}.json",
            {
                **result(
                    [rate_row(rate([i < k for i in range(3)]), *list(ROW.values())[:4]), MEAN]
                ),
                **{"setting": setting, "model": {"name": "tiny"}, "data": {"split": "test"}},
            },
        )
    write_index(tmp_path)
    table = frame(tmp_path)
    assert list(table["seed"]) == [0, 0, 1, 1] and set(table["strength"]) == {0.5}
    asr = table.query("metric == 'asr'")
    assert list(asr["k"]) == [1, 2] and list(asr["value"]) == [1 / 3, 2 / 3]
    assert set(asr["model"]) == {"tiny"} and set(asr["file"]) == {"a,steps=2-0", "a,steps=2-1"}
    assert table.query("metric == 'seconds'")["k"].isna().all()
    assert list(table["changes"]) == [{"steps": 2}] * 4


def test_sets_are_pooled_by_their_counts():
    runs = frame("cpu/test/smollm2-135m-aligned")
    one = runs[runs["file"] == "none"]
    parts = [pooled(one, "orr", [s], "prefill", "x-boundary") for s in ("boundary-safe", "xstest")]
    both = pooled(one, "orr", ["xstest", "boundary-safe"], "prefill", "x-boundary")
    assert (both.k, both.n) == (sum(p.k for p in parts), sum(p.n for p in parts))
    same = rate([True] * both.k + [False] * (both.n - both.k))
    assert (both.low, both.high) == pytest.approx((same.low, same.high))
    with pytest.raises(ValueError, match="not one for each set"):
        pooled(runs, "orr", ["xstest"], "prefill", "x-boundary")
    with pytest.raises(ValueError, match="not one for each set"):
        pooled(one, "orr", ["xstest", "nowhere"], "prefill", "x-boundary")


def test_what_none_judged_is_pooled_without_a_judge():
    folder = "cpu/test/smollm2-135m-aligned"
    runs = frame(folder)
    found = pooled(runs[runs["file"] == "none"], "accuracy", ["quiz"], "direct", None)
    wanted = find(read_result(RESULTS / folder / "none.json"), "accuracy", set="quiz", judge=None)
    assert (found.k, found.n) == (wanted.k, wanted.n)


def test_a_frame_of_published_results_agrees_with_find():
    folder = "cpu/test/smollm2-135m-aligned"
    table = frame(folder)
    assert set(table["file"]) == set(published_results(folder))
    one = read_result(RESULTS / folder / "x-boundary-1.json")
    where = {"set": "harmful", "attack": "prefill", "judge": "x-boundary"}
    row = table.query(
        "method == 'x-boundary' and seed == 1 and strength == 1 and metric == 'asr' and "
        "set == 'harmful' and attack == 'prefill' and judge == 'x-boundary'"
    )
    row = row[row["changes"].map(lambda changes: changes == {})].iloc[0]
    found = find(one, "asr", **where)
    assert (row["k"], row["n"], row["value"]) == (found.k, found.n, found.value)
    with pytest.raises(ValueError, match="neither|cannot be fetched|is not here"):
        frame("cpu/nothing")


# What was edited.

GOOD = {
    "model": {"name": "tiny [red] [/x]", "digest": "a"},
    "data": {"set": "harmful", "split": "test", "digest": "b"},
}


def edited(tmp_path, change):
    """A result whose file was changed by hand."""
    path = tmp_path / "result.json"
    write_result(path, {**result([ROW, MEAN]), **GOOD})
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["rows"][0].update(k=2),
        lambda r: r["rows"][0].update(n=30),
        lambda r: r["rows"][0].update(low=0.1),
        lambda r: r["rows"][0].update(n=10**400, k=10**399),
        lambda r: r["rows"][0].update(n=True, k=True),
        lambda r: r["rows"][0].update(high=10**400),
        lambda r: r["rows"][1].update(mean=9.0),
        lambda r: r["rows"][1].update(mean=10**400),
        lambda r: r.update(model=["tiny"]),
        lambda r: r.update(model={"name": 3}),
        lambda r: r.update(data="test"),
        lambda r: r.update(adapter=3),
        lambda r: r.update(seconds="long"),
        lambda r: r.update(versions=[]),
    ],
    ids=range(14),
)
def test_an_edited_result_is_one_sentence(tmp_path, change):
    path = edited(tmp_path, change)
    with pytest.raises(ValueError, match="is no result") as raised:
        print_result(path)
    assert "\n" not in str(raised.value)


def test_a_result_of_no_model_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="says of no model"):
        frame(edited(tmp_path, lambda r: r.update(model=None)).parent)


def test_square_brackets_in_a_name_are_shown(tmp_path, capsys):
    print_result(edited(tmp_path, lambda r: r["rows"][0].update(set="a[b]", judge="[/b]c")))
    shown = capsys.readouterr().out
    assert "tiny [red] [/x]" in shown and "a[b]" in shown and "[/b]c" in shown


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    field=st.sampled_from(["n", "k", "low", "high", "set", "judge", "model", "data", "rows"]),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers(), max_size=2)
    | st.just({"name": "x"}),
)
def test_whatever_is_edited_a_result_is_shown_or_refused(tmp_path, field, value):
    def change(found):
        (found["rows"][0] if field in ROW else found)[field] = value

    path = edited(tmp_path, change)
    try:
        frame(path.parent)
        print_result(path)
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "a\nb", "a\\b", "x[y]", "a:b"])
def test_names_of_sets_are_names(tmp_path, name):
    (tmp_path / "my.csv").write_text("prompt\nBake?\n")
    with pytest.raises(ValueError, match="is no name of a set"):
        load_items(name, path=str(tmp_path / "my.csv"), kind="harmful")


def test_a_folder_of_folders_of_results_is_no_empty_table(tmp_path):
    inside = tmp_path / "cpu" / "my_model"
    inside.mkdir(parents=True)
    assert frame(tmp_path).empty
    (inside / "none.json").write_text("{}")
    with pytest.raises(ValueError, match="has no results itself; .*my_model has"):
        frame(tmp_path)
