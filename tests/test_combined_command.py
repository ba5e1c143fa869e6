"""A defense, or two together, is asked the same items, and what comes out is written down."""

import torch
from tiny import tiny_model

from xb_lite.evaluation.outcomes import read_log
from xb_lite.judges.strings import XSTEST
from xb_lite.models.precision import Precision
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.subjects import Subject
from xb_lite.reproduce import combined
from xb_lite.results.contract import read_result
from xb_lite.results.frames import find

FP32 = Precision("cpu", torch.float32, None, "tests")


def test_as_many_of_each_kind_and_attack_and_no_wrapper_for_all():
    items = combined.asked(6)
    kinds = [(item.kind, item.attack) for item in items]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("harmful", "direct"): 6,
        ("harmful", "wrapper"): 6,
        ("boundary-safe", "direct"): 6,
        ("benign", "direct"): 6,
        ("harmful", "prefill"): 6,
        ("benign", "prefill"): 6,
    }
    assert len({item.id for item in items if item.attack == "direct"}) == 18
    wrapped = [item.id.split("+") for item in items if item.attack == "wrapper"]
    assert len({request for request, _ in wrapped}) == 6 and len({w for _, w in wrapped}) > 1


def test_the_command_writes_a_result_and_a_log(tokenizer, monkeypatch, tmp_path, capsys):
    model = tiny_model(tokenizer)
    subject = Subject("tiny", "a digest", LocalBackend(model, tokenizer), model, tokenizer)
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(combined, "local_subject", lambda *_: subject)
    monkeypatch.setattr(combined, "precision_of", lambda name: FP32)
    monkeypatch.setattr("xb_lite.evaluation.runs.judges", lambda: [XSTEST])
    monkeypatch.setattr(combined, "tier", lambda: "cpu")
    monkeypatch.setattr(combined, "DECODING", combined.Decoding(3))
    words = ["--limit", "2", "--prompt", "self-reminder", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["combined", *words])
    combined.main()
    path = tmp_path / "cpu/together/tiny/self-reminder.json"
    written = path.read_bytes()
    result = read_result(path)
    assert find(result, "asr", set="harmful", attack="prefill", judge="xstest").n == 2
    assert find(result, "served", set="benign", attack="prefill", judge="xstest").n == 2
    assert len(read_log(path.with_suffix(".jsonl"))) == 12
    combined.main()
    assert path.read_bytes() == written and str(path) in capsys.readouterr().out
