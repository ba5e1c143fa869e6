"""Strengths at which defenses let the same share of attacks through."""

import json
from dataclasses import replace

import pytest

from xb_lite.reproduce import matching
from xb_lite.reproduce.manifest import ManifestError, Plan, Setting, load_manifest, path_of
from xb_lite.reproduce.matching import at_matched_strength, crossing, success_by_strength

OF = Plan(name="strengths", folder="cpu/strengths", tier="cpu", split="validation")
SETTING = Setting(
    plan="test", model="smollm2-135m-aligned-360", method="x-boundary", match=0.2, seeds=[0]
)


@pytest.mark.parametrize(
    "rates, found",
    [
        ({0: 0.6, 0.5: 0.3, 1.0: 0.1}, 0.75),
        ({0: 0.6, 0.5: 0.2, 1.0: 0.1}, 0.5),
        ({0: 0.6, 0.5: 0.1, 1.0: 0.3, 1.5: 0.0}, 0.4),  # the first of two
        ({0: 0.6, 0.5: 0.5, 1.0: 0.4}, None),
        ({0: 0.1, 0.5: 0.05}, 0),
        ({}, None),
    ],
)
def test_where_it_falls_to_a_level(rates, found):
    assert crossing(rates, 0.2) == (None if found is None else pytest.approx(found))


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Results by path, of which the rates alone are read."""
    rates = {}
    monkeypatch.setattr(matching, "read_result", lambda path: rates[str(path)])

    def found(result, metric, **where):
        assert metric == "asr" and where == {
            "set": "harmful",
            "attack": "prefill",
            "judge": "service",
        }
        return type("R", (), {"value": result})

    monkeypatch.setattr(matching, "find", found)

    def write(success, of=SETTING):
        for strength, value in success.items():
            setting = replace(of, plan="strengths", match=None, strength=strength)
            if strength == 0:
                setting = Setting(plan="strengths", model=of.model)
            path = tmp_path / path_of(OF, setting, 0 if setting.trained else None)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
            rates[str(path)] = value
        return tmp_path

    return write


def test_it_is_read_off_the_results_of_the_same_seed(measured):
    folder = measured({0: 0.6, 0.5: 0.4, 0.75: 0.3, None: 0.15, 1.25: 0.1, 1.5: 0.1})
    rates = success_by_strength(OF, SETTING, 0, folder)
    assert rates == {0: 0.6, 0.5: 0.4, 0.75: 0.3, 1.0: 0.15}
    found = at_matched_strength(OF, SETTING, 0, folder)
    assert found == replace(SETTING, match=None, strength=0.92)


def test_strengths_above_the_first_crossing_are_not_needed(measured):
    folder = measured({0: 0.6, 0.5: 0.1})
    assert at_matched_strength(OF, SETTING, 0, folder).strength == 0.4


def test_one_that_does_not_get_there_is_at_its_strongest_and_it_says_so(measured):
    folder = measured({0: 0.6, 0.5: 0.5, 0.75: 0.5, None: 0.5, 1.25: 0.4, 1.5: 0.3})
    with pytest.warns(UserWarning, match="does not get to 20%: at strength 1.5 .* is 30%"):
        assert at_matched_strength(OF, SETTING, 0, folder).strength == 1.5


def test_what_is_needed_first_is_named(measured):
    folder = measured({0: 0.6, 0.5: 0.4})
    with pytest.raises(ManifestError, match="strength=0.75-0.json is needed first: .* strengths"):
        at_matched_strength(OF, SETTING, 0, folder)


def test_a_name_says_what_was_asked_for():
    assert SETTING.defense(0) == "x-boundary,match=0.2-0"
    assert replace(SETTING, changes={"steps": 7}).defense(0) == "x-boundary,steps=7,match=0.2-0"


def test_steering_is_scaled_too_and_has_no_seed(measured):
    steering = replace(SETTING, method="steering", seeds=())
    folder = measured({0: 0.6, 0.5: 0.4, 0.75: 0.3, 1.0: 0.1}, steering)
    assert steering.defense() == "steering,match=0.2"
    assert at_matched_strength(OF, steering, None, folder).defense() == "steering,strength=0.88"


def test_a_match_needs_something_that_is_scaled(tmp_path):
    path = tmp_path / "mine.json"
    of = {"p": {"folder": "cpu", "tier": "cpu"}}
    for setting in ({"method": "none"}, {"method": "x-boundary", "seeds": [0], "strength": 1.5}):
        setting = {"plan": "p", "model": "smollm2-135m", "match": 0.2, **setting}
        path.write_text(json.dumps({"plans": of, "settings": [setting]}))
        with pytest.raises(ManifestError, match="has a match, but nothing to scale to it"):
            load_manifest(path)
