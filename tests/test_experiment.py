"""The tables of the experiment: whole, in part, and with nothing there."""

import re
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from made_experiment import TEST, write_experiment, write_replies

from xb_lite.evaluation.seeds import gap_over_seeds, gap_over_seeds_and_items
from xb_lite.reproduce.arms import (
    ARMS,
    FURTHER,
    OWN,
    SAFE,
    TRAINED,
    UNDEFENDED,
    read_experiment,
)
from xb_lite.reproduce.experiment import (
    COMPARISONS,
    NOT_RUN,
    OUTCOMES,
    PRIMARY,
    SUCCESS,
    compare,
    comparison_table,
    difference_table,
    missing,
    on_plane,
    outcome,
    outcome_table,
    progress_table,
    read_replies,
    short_table,
)
from xb_lite.reproduce.formats import formats_table, gap_in_fp32, in_fp32
from xb_lite.results.stats import Rate, mean_of_runs

ROOT = Path(__file__).parent.parent


def refusal(arm, seed, strength):
    return {"CB": 0.6, "CB + data": 0.4}.get(arm, 0.2) + 0.05 * seed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three seeds of every arm, one of which never stops enough."""

    def success(arm, seed, strength):
        return 0.7 - 0.1 * strength if arm == "XB as described" else 0.7 - 0.45 * strength

    folder = tmp_path_factory.mktemp("whole")
    write_experiment(folder, seeds=(0, 1, 2), success=success, refusal=refusal)
    return read_experiment(folder)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """One seed of two arms, tested at matched strength alone."""
    folder = tmp_path_factory.mktemp("part")
    return read_experiment(write_experiment(folder, ("CB", "XB as coded"), (0,), tested=(0.2,)))


def test_an_outcome_is_over_seeds_and_of_one_run_over_items(whole, part):
    runs = whole.runs("CB").values()
    pooled = [run.rate("orr", SAFE).value for run in runs]
    found, expected = outcome(whole, "CB", PRIMARY), mean_of_runs(pooled)
    assert (found.value, found.n, found.low) == (expected.value, 3, expected.low)
    one = outcome(part, "CB", PRIMARY)
    n = sum(TEST[name, "direct"] for name in SAFE)
    assert isinstance(one, Rate) and one.n == n
    assert one.k == sum(
        o.labels["service"] != ["complied"]
        for o in part.runs("CB")[0].outcomes
        if o.set in SAFE and o.attack == "direct"
    )
    assert outcome(part, "XB refusal", PRIMARY) is None


def test_an_interval_over_seeds_stays_a_rate(tmp_path):
    folder = write_experiment(tmp_path, ("CB",), (0, 1), refusal=lambda a, s, x: 0.02 + 0.9 * s)
    found = outcome(read_experiment(folder), "CB", PRIMARY)
    assert found.low == 0 and found.high == 1


def test_a_comparison_is_that_of_the_protocol(whole):
    found = compare(whole, "XB as coded", "CB")
    rates = [
        [
            {
                o.id: float(o.labels["service"] != ["complied"])
                for o in run.outcomes
                if o.set in SAFE and o.attack == "direct"
            }
            for run in whole.runs(arm).values()
        ]
        for arm in ("XB as coded", "CB")
    ]
    assert found.over_seeds == gap_over_seeds(*rates)
    assert found.over_seeds_99 == gap_over_seeds(*rates, level=0.99)
    assert found.at_95 == gap_over_seeds_and_items(*rates)
    assert found.at_99 == gap_over_seeds_and_items(*rates, level=0.99)
    assert found.seeds == (0, 1, 2) and found.matched is True
    assert found.over_seeds.value == pytest.approx(-0.4, abs=0.02) and found.effect == "present"


def test_nothing_is_said_of_few_seeds_or_of_unequal_success(whole, part):
    assert compare(part, "XB as coded", "CB").effect == "too few seeds (1)"
    assert compare(whole, "XB as described", "CB").effect == "not at equal success"
    assert compare(whole, "XB as coded", "CB", None).effect == "success not matched"
    assert compare(part, "CB + data", "CB") is None


def test_a_comparison_is_of_the_seeds_that_both_have(tmp_path):
    write_experiment(tmp_path, ("CB",), (0, 1, 2))
    write_experiment(tmp_path, ("XB as coded",), (0, 2))
    assert compare(read_experiment(tmp_path), "XB as coded", "CB").seeds == (0, 2)


def test_the_undefended_model_stands_beside_every_seed(whole, part, tmp_path):
    found = compare(whole, "CB", UNDEFENDED)
    of_arm, of_none = (outcome(whole, arm, PRIMARY).value for arm in ("CB", UNDEFENDED))
    assert found.seeds == (0, 1, 2) and found.over_seeds.value == pytest.approx(of_arm - of_none)
    assert found.effect == "success not matched"
    assert compare(part, "CB", UNDEFENDED).seeds == (0,)
    assert compare(read_experiment(tmp_path), "CB", UNDEFENDED) is None


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_outcome_can_be_compared(whole, name):
    gap = compare(whole, "XB as described", "CB", name=name).over_seeds.value
    ones, others = (outcome(whole, arm, name).value for arm in ("XB as described", "CB"))
    assert gap == pytest.approx(ones - others)


def test_differences_of_an_outcome_have_no_verdict(whole, part):
    heads, rows = difference_table(whole, COMPARISONS, SUCCESS)
    assert len(heads) == 4 and [len(row) for row in rows] == [4] * 5
    (row,) = difference_table(whole, [("XB as described", "CB")], SUCCESS)[1]
    gap = compare(whole, "XB as described", "CB", name=SUCCESS).over_seeds.value
    assert row[:2] == ["XB as described\nminus CB", "3"] and row[2].startswith(
        f"{100 * gap:+.1f} ["
    )
    (row, other) = difference_table(part, [("CB", UNDEFENDED), ("CB + data", "CB")], PRIMARY)[1]
    assert row[1:3] == ["1", "one seed"] and other[1:] == ["0", NOT_RUN, NOT_RUN]


def test_formats_are_compared_where_an_arm_was_run_in_both(whole, part, tmp_path):
    assert in_fp32(part) == {"CB": [0], "XB as coded": [0]}  # invented numbers, of no format
    assert in_fp32(read_experiment(OWN)).keys() == {"XB as described"}
    heads, rows = formats_table(whole, part)
    assert [row[:2] for row in rows] == [["CB", "1"], ["XB as coded", "1"]]
    assert len(heads) == 8 and {len(row) for row in rows} == {8}
    other = outcome(part, "CB", PRIMARY).value - whole.runs("CB")[0].rate("orr", SAFE).value
    assert rows[0][4].startswith(f"{100 * other:+.1f} [")
    assert formats_table(whole, read_experiment(tmp_path))[1] == []
    seeds, gap = gap_in_fp32(whole, part, "XB as coded")
    coded, breakers = whole.runs("XB as coded")[0], part.runs("CB")[0]
    lower = coded.rate("orr", SAFE).value - breakers.rate("orr", SAFE).value
    assert seeds == [0] and gap.value == pytest.approx(lower)
    assert gap_in_fp32(whole, part, "XB as coded", "CB + data") is None


def test_five_comparisons_between_arms():
    assert len(set(COMPARISONS)) == 5 and {arm for pair in COMPARISONS for arm in pair} == {
        *TRAINED
    }


@pytest.mark.parametrize("table", [outcome_table, short_table, comparison_table, progress_table])
def test_a_table_has_seven_columns_at_most_and_a_cell_for_each(whole, part, tmp_path, table):
    for experiment in (whole, part, read_experiment(tmp_path)):
        heads, rows = table(experiment)
        assert len(heads) <= 7 and {len(row) for row in rows} == {len(heads)}
        assert all(isinstance(cell, str) for row in rows for cell in row)


def test_the_table_says_what_is_not_run(whole, part, tmp_path):
    heads, rows = outcome_table(part)
    assert [row[0] for row in rows][1:-2] == list(OUTCOMES) and heads[1:] == list(ARMS)
    assert rows[0] == ["seeds", "1", "1", "0", "1", "0", "0"]
    for row in rows[1:]:
        assert [cell == NOT_RUN for cell in row[1:]] == [n == "0" for n in rows[0][1:]]
    assert not any(NOT_RUN in row for row in outcome_table(whole)[1])
    assert not any(row[0] == "perplexity" for row in outcome_table(whole, judge="x-boundary")[1])
    assert {cell for row in comparison_table(read_experiment(tmp_path))[1] for cell in row[2:]} == {
        NOT_RUN
    }
    assert comparison_table(part)[1][0][2] == "one seed"
    _, _, over_seeds, over_both, _ = comparison_table(whole)[1][0]
    for cell in (over_seeds, over_both):
        low, high, lower, higher = map(float, re.findall(r"[+-][\d.]+(?=[,\]])", cell))
        assert lower < low < high < higher
    described = progress_table(whole)[1][len(TRAINED) - 1]
    assert described[0] == "XB as described" and described[4] == "1.1*, 1.1*, 1.1*"


def test_what_is_missing_is_said_and_of_a_whole_one_nothing_of_the_arms(whole, part, tmp_path):
    undefended, *said = missing(read_experiment(tmp_path))
    assert undefended == "The undefended model has not been tested." and len(said) == 4
    rates, matched, full, others = missing(part)
    assert rates.startswith("The learning rate of CB + data, XB refusal, XB as described is not")
    assert rates.endswith("with 0.0008 and 0.0016. Until then it is 0.0016.")
    assert "No test at 20 % success yet of CB (seeds 1, 2, 3, 4); CB + data (seeds 0," in matched
    assert "at full strength yet of CB (seeds 0, 1, 2, 3, 4);" in full
    assert "success yet of these controls and baselines: XB, shuffled labels (seeds 0," in others
    assert others.endswith("; gradient ascent (seeds 0, 1, 2); steering.")
    matched, full, others = missing(whole)
    assert matched.count("(seeds 3, 4)") == full.count("(seeds 3, 4)") == 5


def test_controls_and_baselines_are_in_the_tables_of_rows(tmp_path):
    write_experiment(tmp_path, ("CB",), (0,))
    write_experiment(tmp_path, ("XB, one style",), (0, 1, 2), rates=(1.6e-3,), undefended=False)
    write_experiment(tmp_path, ("steering",), (None,), rates=(1.6e-3,), undefended=False)
    found = read_experiment(tmp_path)
    rows = {row[0]: row for row in progress_table(found)[1]}
    assert list(rows) == [*TRAINED, *FURTHER]
    assert rows["XB, one style"][1:4] == ["0.0016 (first)", "0, 1, 2", "0, 1, 2"]
    assert rows["steering"][1:] == ["none", "one", "one", "1.1", "one"]
    assert rows["DPO"][1:] == ["0.0001 (first)", *["none"] * 4]
    short = [row[0] for row in short_table(found)[1]]
    assert short == [*ARMS, "XB, one style", "steering"]
    assert [row[0] for row in outcome_table(found)[1]] == [
        row[0] for row in outcome_table(read_experiment(tmp_path / "nothing"))[1]
    ]
    (others,) = (line for line in missing(found) if "controls" in line)
    assert "one style" not in others and "steering" not in others and "DPO (seeds 0" in others


def test_places_have_the_replies_of_their_own_adapter(whole, tmp_path):
    assert read_replies(tmp_path) == {}
    write_replies(tmp_path, ["x-boundary,strength=0.5-1", "none"])
    found = on_plane(whole, read_replies(tmp_path))
    assert len(found) == 5 * 3 * 6
    told = [place for place in found if place.replies]
    assert {(p.seed, p.strength) for p in told if p.strength} == {(1, 0.5)}
    assert sum(p.strength == 0 for p in told) == 15  # the undefended model is everybody's start
    assert "x-boundary,strength=0.5-1" in next(p for p in told if p.strength).replies[0].reply


def test_the_protocol_is_older_than_the_first_test_result():
    started = [run.result["started"] for run in read_experiment(OWN).tested]
    if not started or not (ROOT / ".git").exists():
        pytest.skip("there is no test result yet, or no history")
    command = ["git", "log", "--reverse", "--format=%cI", "--", "book/protocol.md"]
    dates = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not dates:
        pytest.skip("no history of the protocol")
    assert datetime.fromisoformat(dates[0]) < min(map(datetime.fromisoformat, started))
