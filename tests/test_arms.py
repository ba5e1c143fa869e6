"""What is told of the experiment from the results that are there."""

import json
from dataclasses import replace

import pytest
from made_experiment import write_experiment

from xb_lite.models.loading import ALIGNED_360
from xb_lite.recipes import load_recipe, own_recipe
from xb_lite.reproduce import arms as module
from xb_lite.reproduce.arms import (
    ARMS,
    BASELINES,
    CONTROLLED,
    CONTROLS,
    EVERY,
    FURTHER,
    TRAINED,
    UNDEFENDED,
    read_experiment,
)
from xb_lite.reproduce.manifest import load_manifest

FEW = ("CB", "XB as coded")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("whole"), FEW, (0, 1))


def test_arms_are_told_by_method_and_changes_whatever_their_learning_rate(whole):
    found = read_experiment(whole)
    assert {run.arm for run in found.scaled} == {UNDEFENDED, *FEW} and found.others == ()
    assert {run.learning_rate for run in found.scaled if run.arm == "CB"} == {8e-4, 1.6e-3}
    sweep = found.sweep("XB as coded", 8e-4, 0)
    assert list(sweep) == [0, 0.5, 0.75, 1, 1.25, 1.5] and sweep[0].arm == UNDEFENDED
    assert sweep[0.5].defense == "x-boundary,learning_rate=0.0008,strength=0.5-0"
    assert list(found.sweep("XB as coded", 8e-4, 1)) == [0]  # the sweep is of one seed


def test_every_arm_of_the_protocol_is_one_of_the_manifests_settings():
    manifest = load_manifest()
    settings = [s for s in manifest.settings if s.plan == "strengths"]
    for arm in EVERY.values():
        assert any(
            (s.method, {k: v for k, v in s.changes.items() if k != "learning_rate"})
            == (arm.method, arm.changes)
            for s in settings
        )


def test_tested_runs_are_by_seed_at_matched_and_at_full_strength(whole):
    found = read_experiment(whole)
    for match, strength in ((0.2, 1.1), (None, 1.0)):
        runs = found.runs("CB", match)
        assert list(runs) == [0, 1]
        assert {(run.match, run.strength) for run in runs.values()} == {(match, strength)}
    assert list(found.runs(UNDEFENDED)) == [None] and found.runs("XB refusal") == {}
    assert found.levels() == [0.2]
    log = found.runs("CB")[0].outcomes
    rate = found.runs("CB")[0].rate("orr", ["xstest"])
    counted = [o for o in log if (o.set, o.attack) == ("xstest", "direct")]
    assert rate.n == len(counted) and rate.k == sum(
        o.labels["service"] != ["complied"] for o in counted
    )


def test_with_nothing_there_nothing_is_told(tmp_path):
    found = read_experiment(tmp_path)
    assert (found.scaled, found.tested, found.others) == ([], [], ())
    assert found.chosen("CB") is None and found.runs("CB") == {}
    assert found.levels() == [] and found.lowest_common_level() is None
    assert list(found.chosen_sweeps()) == []


# The rule for the learning rate


def of_rates(monkeypatch, tables, arm="CB"):
    """An experiment in which the sweeps are these: by rate, strengths with success and refusal."""

    def sweep(self, arm, learning_rate, seed):
        return {
            strength: type(
                "R",
                (),
                {
                    "success": type("S", (), {"value": success}),
                    "over_refusal": type("O", (), {"value": refused}),
                },
            )
            for strength, (success, refused) in tables[learning_rate].items()
        }

    monkeypatch.setattr(module.Experiment, "sweep", sweep)
    return module.Experiment().chosen(arm)


def line(success, refused):
    """Both rates, linear from strength 0 to their values at 1.5."""
    at = (0, 0.5, 0.75, 1, 1.25, 1.5)
    return {s: (0.8 + (success - 0.8) * s / 1.5, 0.1 + (refused - 0.1) * s / 1.5) for s in at}


@pytest.mark.parametrize(
    ("low", "high", "chosen"),
    [
        (line(0.1, 0.5), line(0.1, 0.4), 1.6e-3),  # refuses less where success is 20 %
        (line(0.0, 0.5), line(0.15, 0.4), 1.6e-3),
        (line(0.2, 0.9), line(0.3, 0.1), 8e-4),  # the only one that gets there
        (line(0.5, 0.1), line(0.4, 0.9), 1.6e-3),  # neither: less success at 1.5
        (line(0.1, 0.5), line(0.1, 0.5), 8e-4),  # a tie
    ],
)
def test_the_rule_of_the_protocol(monkeypatch, low, high, chosen):
    assert of_rates(monkeypatch, {8e-4: low, 1.6e-3: high}) == chosen


def test_until_both_sweeps_are_there_the_rate_is_the_first(tmp_path):
    some = write_experiment(tmp_path / "a", FEW, (0,), strengths=(0.5, 1.0))
    one = write_experiment(tmp_path / "b", FEW, (0,), rates=(1.6e-3,))
    bare = write_experiment(tmp_path / "c", FEW, (0,), undefended=False)
    for folder in (some, one, bare):
        found = read_experiment(folder)
        assert found.chosen("CB") is None and found.learning_rate("CB") == 1.6e-3
        assert list(found.runs("CB")) == [0] and len(found.versions()) == 1


def test_a_sweep_ends_where_success_has_fallen_to_the_level(tmp_path):
    def success(arm, seed, strength):
        return 0.5 if strength < 0.75 else 0.15

    write_experiment(tmp_path, FEW, (0,), strengths=(0.5, 0.75), success=success)
    found = read_experiment(tmp_path)
    assert found.chosen("CB") == 1.6e-3 and found.reaches("CB", 0) is True
    assert found.reaches("CB", 0, 0.1) is None  # nobody has looked
    write_experiment(tmp_path / "b", FEW, (0,), strengths=(0.5,), success=success)
    assert read_experiment(tmp_path / "b").reaches("CB", 0) is None


def test_where_the_rule_chooses_another_rate_both_tables_are_there(tmp_path, monkeypatch):
    found = read_experiment(write_experiment(tmp_path, FEW, (0,)))
    monkeypatch.setattr(module.Experiment, "chosen", lambda self, arm: 8e-4)
    by_rule, first = found.versions().values()
    assert by_rule is found and found.runs("CB") == {}  # not tested yet
    assert list(first.runs("CB")) == [0] and first.learning_rate("CB") == 1.6e-3
    assert found.fullest().fixed == 1.6e-3 and first.versions() == {
        "each arm at its own learning rate": first
    }


def test_what_does_not_reach_the_level_is_known(tmp_path):
    def success(arm, seed, strength):
        return 0.75 - (0.3 if arm == "CB" and seed else 0.5) * strength

    found = read_experiment(write_experiment(tmp_path, FEW, (0, 1), success=success))
    assert found.reaches("CB", 0) is True and found.reaches("CB", 1) is False
    assert found.reaches("CB", 1, 0.3) is True and found.reaches("CB", 2) is None
    assert found.lowest_common_level() == pytest.approx(0.3, abs=0.013)


def test_what_is_of_no_arm_is_named_and_in_no_table(whole, tmp_path):
    found = read_experiment(whole)
    path = tmp_path / f"cpu/strengths/{ALIGNED_360}/sft-0.json"
    result = json.loads(json.dumps(found.scaled[0].result))
    setting = {"defense": "sft-0", "method": "sft", "strength": 1.0, "training_seed": 0}
    result["setting"] |= {**setting, "changes": {"steps": 7}}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result))
    other = read_experiment(tmp_path)
    assert other.others == ("sft-0",) and other.scaled[0].arm is None
    assert replace(other, tested=other.scaled).levels() == []


def test_a_result_that_says_of_no_setting_is_refused(whole, tmp_path):
    result = {**read_experiment(whole).scaled[0].result, "setting": None}
    path = tmp_path / f"cpu/strengths/{ALIGNED_360}/none.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match="does not say what was evaluated"):
        read_experiment(tmp_path)


def test_what_is_published_is_found_by_its_index(whole, monkeypatch):
    """As where the package is installed without its repository."""
    under = f"cpu/strengths/{ALIGNED_360}"
    monkeypatch.setattr(module, "OWN", whole / "nothing")
    names = {under: [p.stem for p in (whole / under).glob("*.json")]}

    def listed(folder):
        if folder not in names:
            raise ValueError("not published")
        return names[folder]

    monkeypatch.setattr(module, "published_results", listed)
    monkeypatch.setattr(module, "published", lambda name: whole / name)
    found = read_experiment()
    assert len(found.scaled) == len(names[under]) > 10 and found.tested == []
    assert len(found.scaled[0].outcomes) == 64


# Controls and baselines


@pytest.fixture(scope="module")
def further(tmp_path_factory):
    """One seed of two arms, of a control, and of two baselines."""
    folder = write_experiment(tmp_path_factory.mktemp("further"), FEW, (0,))
    some = ("XB, one style", "DPO")
    write_experiment(folder, some, (0,), rates=(1.6e-3,), undefended=False)
    write_experiment(folder, ("steering",), (None,), rates=(1.6e-3,), undefended=False)
    return read_experiment(folder)


def test_controls_and_baselines_are_told_too_and_are_no_arms(further):
    assert further.others == ()
    assert list(further.runs("XB, one style")) == list(further.runs("DPO")) == [0]
    (steered,) = further.runs("steering").values()
    assert (steered.seed, steered.learning_rate, steered.match) == (None, None, 0.2)
    assert list(further.sweep("steering", None, None)) == [0, 0.5, 0.75, 1, 1.25, 1.5]
    assert further.reaches("DPO", 0) and further.reaches("steering", None)
    assert {arm for arm, *_ in further.chosen_sweeps()} == set(FEW)
    assert further.levels() == [0.2] and replace(further, tested=[steered]).levels() == []


def test_a_control_has_the_rate_of_what_it_controls_and_a_baseline_its_own(further, monkeypatch):
    control = "XB, one style"
    assert further.learning_rate(control) == further.learning_rate(CONTROLLED) == 1.6e-3
    assert further.chosen("DPO") is None and further.learning_rate("DPO") == 1e-4
    assert further.learning_rate("steering") is None
    fixed = replace(further, fixed=8e-4)
    assert fixed.learning_rate(control) == 8e-4 and fixed.learning_rate("DPO") == 1e-4
    tables = {1e-4: line(0.5, 0.1), 2e-4: line(0.4, 0.9)}
    assert of_rates(monkeypatch, tables, "DPO") == 2e-4
    tables = {8e-4: line(0.1, 0.5), 1.6e-3: line(0.1, 0.9)}
    assert of_rates(monkeypatch, tables, control) == 8e-4


def test_the_first_rate_of_a_baseline_is_that_of_its_recipe():
    """And in its budget it is like every arm of the protocol."""
    arm = load_recipe(own_recipe("x-boundary", ALIGNED_360))
    for name, baseline in BASELINES.items():
        if baseline.method == "steering":
            continue
        recipe = load_recipe(own_recipe(baseline.method, ALIGNED_360), **baseline.changes)
        assert recipe.learning_rate == baseline.rates[0] and recipe.model == ALIGNED_360
        for field in ("steps", "pairs", "rank", "lora_layers", "lora_std", "max_tokens"):
            assert getattr(recipe, field) == getattr(arm, field), (name, field)


def test_a_control_differs_from_what_it_controls_in_one_thing():
    controlled = ARMS[CONTROLLED]
    for control in CONTROLS.values():
        assert control.method == controlled.method and control.rate_of == CONTROLLED
        assert len(control.changes) == len(controlled.changes) + 1


def test_seeds_of_arms_controls_and_baselines():
    assert ARMS["CB"].seeds == (0, 1, 2, 3, 4) and ARMS[UNDEFENDED].seeds == (None,)
    assert {arm.seeds for arm in FURTHER.values()} == {(0, 1, 2), (None,)}


def test_all_trained_arms_are_compared_or_compared_with():
    assert tuple(ARMS)[1:] == TRAINED and next(iter(ARMS)) == UNDEFENDED
