"""What a probe of the undefended model could part: known answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from xb_lite.reproduce import separability
from xb_lite.results.contract import read_result, write_result

RESULT = Path(__file__).parent.parent / "results/cpu/separability/smollm2-135m-aligned.json"

HARMFUL = np.repeat([True, False], [40, 60])


@pytest.fixture
def few_draws(monkeypatch):
    """Enough for an interval that need not be a committed one."""
    monkeypatch.setattr(separability, "DRAWS", 200)


def by_metric(found):
    return {row["metric"]: row for row in separability.rows_of("way", found, HARMFUL)}


def test_scores_that_part_the_kinds_miss_nothing_at_no_price(few_draws):
    rows = by_metric(np.where(HARMFUL, 2.0, 1.0) + np.linspace(0, 0.5, 100))
    assert rows["AUC"]["mean"] == pytest.approx(1) == rows["AUC"]["low"]
    assert rows["missed at 0.02"]["k"] == rows["missed at 0.5"]["k"] == 0
    assert rows["missed at 0.0"]["k"] == 40  # nothing is flagged at all


def test_scores_that_know_nothing_lie_on_the_diagonal(few_draws):
    rows = by_metric(np.random.default_rng(0).normal(size=100))
    assert rows["AUC"]["low"] < 0.5 < rows["AUC"]["high"]
    for share in (0.2, 0.5):
        assert rows[f"missed at {share}"]["k"] / 40 == pytest.approx(1 - share, abs=0.2)
    assert rows["missed at 1.0"]["k"] == 0


def test_the_probe_finds_a_direction_in_other_items_and_shuffled_labels_none(few_draws):
    dice = np.random.default_rng(0)
    train, test = (dice.normal(size=(100, 64)) for _ in range(2))
    for states in (train, test):
        states[HARMFUL, 3] += 4
    right = separability.scores(train, HARMFUL, test)
    wrong = separability.scores(train, dice.permutation(HARMFUL), test)
    assert by_metric(right)["AUC"]["mean"] > 0.9
    assert by_metric(wrong)["AUC"]["mean"] == pytest.approx(0.5, abs=0.3)


def test_only_prefilled_items_of_the_two_kinds_are_asked():
    items = separability.prefilled([], None)
    assert {(item.kind, item.attack) for item in items} == {
        ("harmful", "prefill"),
        ("boundary-safe", "prefill"),
    }


def test_rows_of_the_committed_scores_are_the_committed_rows_and_can_be_written(tmp_path):
    wanted = read_result(RESULT)
    lines = RESULT.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    harmful = np.array([item["set"] in ("harmful", "harmbench") for item in items])
    rows = [
        row
        for name in items[0].keys() - {"id", "set"}
        for row in separability.rows_of(name, np.array([item[name] for item in items]), harmful)
    ]
    write_result(tmp_path / "again.json", {**wanted, "rows": rows})
    assert sorted(rows, key=str) == sorted(read_result(RESULT)["rows"], key=str)
