"""The table of where it breaks says which attack is weak, and the manifest has every run of it."""

import importlib
import json
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model

from xb_lite.attacks import table
from xb_lite.attacks.catalog import ATTACKS, settings_of
from xb_lite.attacks.running import Budgeted
from xb_lite.attacks.table import where_it_breaks
from xb_lite.data.items import load_items, spread
from xb_lite.files import write_whole
from xb_lite.judges.strings import XSTEST
from xb_lite.models.loading import ALIGNED_360
from xb_lite.models.precision import Precision
from xb_lite.recipes import parse_change
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding, Reply
from xb_lite.reproduce import attacked, combined, guarded
from xb_lite.reproduce.manifest import load_manifest
from xb_lite.results import frames
from xb_lite.results.contract import provenance, read_result, write_result
from xb_lite.results.frames import write_index
from xb_lite.results.stats import wilson

FP32 = Precision("cpu", torch.float32, None, "tests")


def result(folder, defense, attack, counts, budget=None):
    row = {"metric": "asr", "set": "harmful", "judge": "service", "n": 20, "source": "s"}
    rows = []
    for name, k in zip((attack, f"{attack}, placebo"), counts, strict=True):
        low, high = wilson(k, 20)
        rows.append(
            {
                **row,
                "attack": name,
                "k": k,
                "low": low,
                "high": high,
                "budget": budget or {"n": 8, "seed": 0},
            }
        )
        rows.append(
            {"metric": "seconds", "set": "harmful", "attack": name, "judge": None, "n": 20}
            | {"mean": 1.5, "low": 1.0, "high": 2.0}
        )
    setting = dict.fromkeys(
        ("changes", "strength", "training_seed", "decoding", "judges", "precision", "tasks")
    )
    write_result(
        folder / defense / f"{attack}.json",
        {
            "model": {"name": "m", "digest": "d"},
            "adapter": None,
            "data": {"set": "harmful", "split": "test", "digest": "d"},
            "setting": {**setting, "defense": defense, "method": "none"},
            "seed": 0,
            "rows": rows,
            **provenance(datetime.now(UTC)),
        },
    )


def test_the_table_says_where_it_breaks_and_which_attack_is_weak(tmp_path):
    result(tmp_path, "none", "strong", (19, 1))
    result(tmp_path, "x-boundary", "strong", (4, 0))
    result(tmp_path, "x-boundary", "untried", (4, 0), {"n": 9})
    result(tmp_path, "none", "weak", (10, 10))
    heads, rows = where_it_breaks(tmp_path)
    assert heads == ["attack, budget", "none", "x-boundary"]
    by_name = {row[0]: row[1:] for row in rows}
    assert set(by_name) == {
        "strong\nn 8",
        "weak\nweak here\nn 8",
        "untried\nundefended: not tried\nn 9",
    }
    none, defended = by_name["strong\nn 8"]
    assert none.split("\n") == ["19 of 20", "[76, 99] %", "placebo 1", "1.5 s"]
    assert defended.startswith("4 of 20\n[8, 42] %")
    assert by_name["weak\nweak here\nn 8"][1] == ""
    assert where_it_breaks(tmp_path, defenses=["x-boundary"])[0] == ["attack, budget", "x-boundary"]
    with pytest.raises(ValueError, match="no result of an attack"):
        where_it_breaks(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no labels of 'servise'; it has service"):
        where_it_breaks(tmp_path, judge="servise")
    with pytest.raises(ValueError, match="nothing on x-bondary; it has none, x-boundary"):
        where_it_breaks(tmp_path, defenses=["none", "x-bondary"])


def test_the_book_s_own_results_are_read_by_name(tmp_path, monkeypatch):
    result(tmp_path, "none", "strong", (19, 1))
    result(tmp_path, "x-boundary", "strong", (4, 0))
    for defense in ("none", "x-boundary"):
        write_index(tmp_path / defense)
    monkeypatch.setattr(table, "published", lambda name: tmp_path.parent / name)
    monkeypatch.setattr(frames, "published", lambda name: tmp_path.parent / name)
    monkeypatch.chdir(tmp_path / "none")
    heads, rows = where_it_breaks(tmp_path.name, defenses=["none", "x-boundary"])
    assert heads == ["attack, budget", "none", "x-boundary"] and len(rows) == 1


def test_the_undefended_model_stands_in_the_heads_where_it_is_no_column(tmp_path, monkeypatch):
    result(tmp_path, "none", "strong", (19, 1))
    result(tmp_path, "none", "another", (19, 1))
    result(tmp_path, "x-boundary", "strong", (4, 0))
    on_disk = where_it_breaks(tmp_path, defenses=["x-boundary"])
    for defense in ("none", "x-boundary"):
        write_index(tmp_path / defense)
    monkeypatch.setattr(table, "published", lambda name: tmp_path.parent / name)
    monkeypatch.setattr(frames, "published", lambda name: tmp_path.parent / name)
    monkeypatch.chdir(tmp_path / "none")
    assert where_it_breaks(tmp_path.name, defenses=["x-boundary"]) == on_disk
    assert len(on_disk[1]) == 1 and "not tried" not in on_disk[1][0][0]


def test_budgets_that_differ_are_not_shown_as_one(tmp_path):
    result(tmp_path, "none", "a", (19, 1))
    result(tmp_path, "ia", "a", (19, 1), {"n": 100})
    assert where_it_breaks(tmp_path)[1][0][0] == "a\nbudgets differ"
    assert "differ" not in where_it_breaks(tmp_path, defenses=["none"])[1][0][0]


def test_the_manifest_has_what_chapter_8_reports():
    scripts = load_manifest(Path(attacked.__file__).with_name("together.json")).scripts
    assert len(scripts) == len({s.path for s in scripts})
    tried = {}
    for script in scripts:
        module, *words = script.command
        what = words.pop(0) if not words[0].startswith("--") else None
        defense = _defense(words)
        if module == attacked.__name__:
            tried.setdefault(defense, {})[what] = words
            assert script.path == f"cpu/attacks/{ALIGNED_360}/{defense}/{what}.json"
        elif module == combined.__name__:
            assert script.path == f"cpu/together/{ALIGNED_360}/{defense}.json"
        else:
            assert module == guarded.__name__
            assert script.path.endswith(f"/{defense if what == 'replies' else what}.json")
    # An attack on a defense says something beside what it does to the undefended model alone.
    assert len(tried) == 5 and all(set(attacks) == set(ATTACKS) for attacks in tried.values())
    for defense, attacks in tried.items():
        for name, words in attacks.items():
            of_none = tried["none"][name]
            assert _budget(words) == _budget(of_none)
            # Fewer requests where an answer takes two stages; they are among the others.
            assert _items(words) == _items(of_none) or (_items(words) == 10 and "--prompt" in words)
            if name == "subtracted-guess":  # of another defense than the one that is attacked
                guess = words[words.index("--guess") + 1] if "--guess" in words else attacked.GUESS
                assert guess != defense


def _defense(words):
    options = dict(zip(words, words[1:], strict=False))
    return "+".join(filter(None, map(options.get, ("--adapter", "--prompt")))) or "none"


def _budget(words):
    return [words[k : k + 2] for k, word in enumerate(words) if word == "--set"]


def _items(words):
    return int(words[words.index("--items") + 1]) if "--items" in words else 20


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs the command on a subject, with judges, into the test's own folder."""

    def command(words, subject, judges):
        of_command = {
            "local_subject": lambda name, precision, adapter=None: subject,
            "precision_of": lambda name: FP32,
            "judges": judges,
            "tier": lambda: "cpu",
        }
        for name, mine in of_command.items():
            monkeypatch.setattr(attacked, name, mine)
        monkeypatch.setattr("sys.argv", ["attacked", *words, "--results", str(tmp_path)])
        attacked.main()

    return command


def test_what_is_finished_is_not_run_again(command, tmp_path, capsys):
    def none(*_):
        raise AssertionError("judges are loaded for nothing")

    class Rude:
        def reply(self, dialogues, decoding, prefill=""):
            return [Reply("No.", 1, 1, True) for _ in dialogues]

    subject = Subject("m", "d", Rude())
    words = ["openings", "--items", "2", "--tokens", "3"]
    command(words, subject, lambda: [XSTEST])
    before = (tmp_path / "cpu/attacks/m/none/openings.json").read_bytes()
    command(words, subject, none)
    assert "openings.json is there already" in capsys.readouterr().out
    for other in (["--items", "3"], ["--tokens", "4"], ["--set", 'openings=["1."]']):
        with pytest.raises(ValueError, match="there already, of other --items, --tokens, --guess"):
            command([*words, *other], subject, none)
    assert (tmp_path / "cpu/attacks/m/none/openings.json").read_bytes() == before


@pytest.mark.parametrize(
    "words, other",
    [
        (["chunk-boundary", "--set", "readings=2"], ["--guard", "probe"]),
        (["subtracted-guess", "--guess", "x-boundary-360"], ["--guess", "circuit-breakers-360"]),
    ],
)
def test_a_result_of_another_guard_or_guess_is_not_taken_for_this_one(
    command, tmp_path, capsys, words, other
):
    own = Path(attacked.__file__).parents[2] / "results/cpu/attacks"
    made = own / ALIGNED_360 / "circuit-breakers-360" / f"{words[0]}.json"
    there = tmp_path / "cpu/attacks/m/none" / made.name
    write_whole(there, made.read_bytes())
    subject = Subject("m", "d", None)
    command(words, subject, None)
    assert f"{made.name} is there already" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there already, of other .*--guess, --guard"):
        command([*words, *other], subject, None)
    assert there.read_bytes() == made.read_bytes()


def test_a_wrong_budget_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(attacked, "local_subject", lambda *_: pytest.fail("it was loaded"))
    monkeypatch.setattr("sys.argv", ["attacked", "best-of-n", "openings", "--set", "n=2"])
    with pytest.raises(ValueError, match="the budget of openings has no n; it has openings"):
        attacked.main()


def test_the_committed_results_are_those_that_the_manifest_s_commands_ask_for():
    root = Path(attacked.__file__).parents[2] / "results"
    checked = 0
    for script in load_manifest(Path(attacked.__file__).with_name("together.json")).scripts:
        module, name, *words = script.command
        if module == attacked.__name__:
            pairs = [parse_change(w) for _, w in _budget(words)]
            changes = {k: tuple(v) if isinstance(v, list) else v for k, v in pairs}
            items = spread(load_items("harmful", "test"), _items(words))
            settings = settings_of(name, **changes)
            attacked._check_same(root / script.path, items, Decoding(32), settings)
            checked += 1
    assert checked == 5 * len(ATTACKS)


def test_the_command_writes_a_result_for_the_table(tokenizer, command, tmp_path, capsys):
    model = tiny_model(tokenizer)
    subject = Subject("tiny", "a digest", LocalBackend(model, tokenizer), model, tokenizer)
    words = ["--items", "2", "--tokens", "3", "--set", "n=2", "--prompt", "self-reminder"]
    for _ in range(2):  # the second time out of the log
        command(["best-of-n", *words], subject, lambda: [XSTEST])
    path = tmp_path / "cpu/attacks/tiny/self-reminder/best-of-n.json"
    result = read_result(path)
    asr = [row for row in result["rows"] if row["metric"] == "asr"]
    assert [row["attack"] for row in asr] == ["best of N", "best of N, placebo"]
    assert asr[0]["budget"] == {"n": 2, "noise": 0.3, "seed": 0, "temperature": 1.0}
    assert {path.stem for path in path.parent.glob("*.jsonl")} == {"best-of-n", "best-of-n-placebo"}
    heads, rows = where_it_breaks(tmp_path / "cpu/attacks/tiny", "xstest")
    assert heads == ["attack, budget", "self-reminder"]
    assert rows[0][0].startswith("best of N\nundefended: not tried\n")
    assert rows[0][1].startswith("2 of 2\n")
    assert "best of N, placebo" in capsys.readouterr().out


class Slow(Budgeted):
    """Takes 100 s of a clock to prepare, and 10 s to ask an item; in the second item of a stopped
    placebo Ctrl-C comes."""

    name, source, at_once = "slow", "a test", 1
    stopped = False

    def __init__(self, clock, placebo):
        object.__setattr__(self, "clock", clock)
        object.__setattr__(self, "placebo", placebo)

    @property
    def budget(self):
        return {}

    @contextmanager
    def on(self, subject):
        self.clock.now += 100
        asked = []

        def ask(items, decoding):
            self.clock.now += 10
            asked.extend(items)
            if self.stopped and self.placebo and len(asked) == 2:
                raise KeyboardInterrupt
            return [["Sorry"] for _ in items]

        yield ask


@pytest.mark.parametrize(("older", "seconds"), [(False, 122 + 111 + 111), (True, 30 + 111)])
def test_seconds_are_also_those_before_a_run_was_stopped(
    older, seconds, command, monkeypatch, tmp_path
):
    clock = SimpleNamespace(now=0.0)
    running = importlib.import_module("xb_lite.attacks.running")
    monkeypatch.setattr(running, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(attacked, "attack_named", lambda name, placebo: Slow(clock, placebo))

    class Judge:
        name, source = "slow", "a test"

        def __call__(self, requests, responses):
            clock.now += 1
            return XSTEST(requests, responses)

    given = ["best-of-n", "--items", "2"], Subject("m", "d", None), lambda: [Judge()]
    monkeypatch.setattr(Slow, "stopped", True)
    with pytest.raises(KeyboardInterrupt):
        command(*given)
    folder = tmp_path / "cpu/attacks/m/none"
    logs = {path: path.read_text() for path in folder.glob("*.jsonl")}
    assert sorted(text.count("\n") for text in logs.values()) == [2, 3]
    if older:  # as it was written before the overhead was kept
        for path, text in logs.items():
            rows = [json.loads(line) for line in text.splitlines()]
            assert all(row.pop("overhead") for row in rows[1:])
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(Slow, "stopped", False)
    command(*given)
    found = read_result(folder / "best-of-n.json")
    assert found["seconds"] == seconds
    assert [row["mean"] for row in found["rows"] if row["metric"] == "seconds"] == [10, 10]
