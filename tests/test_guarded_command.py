"""What the guard catches and costs is measured and written down, part by part."""

import pytest
import torch
from tiny import tiny_model

from xb_lite.guard.stream import Guard
from xb_lite.models.precision import Precision
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.subjects import Subject
from xb_lite.reproduce import guarded
from xb_lite.results.contract import read_result

FP32 = Precision("cpu", torch.float32, None, "tests")


class Pipe:
    """Flags tables."""

    name, window = "pipe", 9

    def __call__(self, request, said):
        return self.name if "|" in said else None


class Judge:
    name, source = "service", "a test"

    def __call__(self, requests, responses):
        return ["complied" if k % 2 else "gibberish" for k in range(len(responses))]


@pytest.fixture
def measure(tokenizer, monkeypatch, tmp_path):
    model = tiny_model(tokenizer)
    subject = Subject("tiny", "a digest", LocalBackend(model, tokenizer), model, tokenizer)
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(guarded, "local_subject", lambda *_: subject)
    monkeypatch.setattr(guarded, "precision_of", lambda name: FP32)
    monkeypatch.setattr(guarded, "model_digest", lambda name: "a digest")
    monkeypatch.setattr(guarded, "judges_named", lambda names: [Judge()])
    monkeypatch.setattr(guarded, "detectors_named", lambda names: [Pipe()])
    monkeypatch.setattr(guarded, "tier", lambda: "cpu")
    monkeypatch.setattr(guarded, "DECODING", guarded.Decoding(4))

    def run(*words):
        monkeypatch.setattr("sys.argv", ["guarded", *words, "--results", str(tmp_path)])
        guarded.main()
        (path,) = tmp_path.glob("cpu/guard/*/*.json")
        return read_result(path), path.stem

    return run


def test_false_alarms_are_counted_by_form(measure):
    result, part = measure("look-alikes")
    rows = {row["attack"]: row for row in result["rows"]}
    assert part == "look-alikes" and {row["judge"] for row in rows.values()} == {"pipe@9"}
    assert rows["all"]["n"] == 60 and rows["table"]["n"] == 10
    assert rows["table"]["k"] >= 5 and rows["language"]["k"] == 0


def test_replies_are_told_apart_by_what_the_judge_says(measure):
    result, part = measure("replies", "--limit", "4")
    assert part == "none"
    ended = [row for row in result["rows"] if row["metric"].startswith("ended")]
    assert {(row["set"], row["attack"]) for row in ended} == {
        ("harmful", "prefill"),
        ("boundary-safe", "direct"),
        ("benign", "direct"),
        ("boundary-safe", "prefill"),
        ("benign", "prefill"),
    }
    assert {row["metric"] for row in ended} == {"ended, gibberish", "ended, complied"}
    assert sum(row["n"] for row in ended) == 4 + 2 * (4 + 4)
    seconds = {row["attack"] for row in result["rows"] if row["metric"] == "seconds a token"}
    assert seconds == {"guard", "model"}


def test_what_was_shown_before_an_end_is_counted():
    assert guarded.watched(Pipe(), "", "x" * 64 + "|") == (True, 16, pytest.approx(0, abs=1))
    assert guarded.watched(Pipe(), "", "|")[:2] == (True, 0)
    assert guarded.watched(Pipe(), "", "x" * 40)[:2] == (False, 10)


def test_all_streams_come_whole(measure, monkeypatch):
    monkeypatch.setattr(guarded, "STREAMS", 8)
    result, part = measure("streams")
    whole = {row["judge"]: row for row in result["rows"] if row["metric"] == "whole"}
    assert part == "streams" and set(whole) == {"none", "pipe@9"}
    assert all((row["k"], row["n"]) == (8, 8) for row in whole.values())
    (row,) = [row for row in guarded.stream_rows(Guard([Pipe()]), "x") if "k" in row]
    assert row["k"] == 8
