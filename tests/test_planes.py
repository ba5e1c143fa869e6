"""Planes fitted on one split and judged on another, and areas with their intervals."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from xb_lite.boundary.planes import area, fit_plane
from xb_lite.boundary.probes import probe


def made_up(n=60, dim=12, gap=1.5, seed=0):
    dice = np.random.default_rng(seed)
    harmful = np.arange(2 * n) < n
    states = dice.normal(size=(2 * n, dim)) * np.linspace(0.5, 3, dim) + 5
    states[harmful, 0] += gap
    return states, harmful, [*range(n), *range(n)]


def test_the_plane_is_the_one_of_the_probe():
    states, harmful, pairs = made_up()
    kinds = np.where(harmful, "harmful", "boundary-safe")
    found = probe(states, kinds, pairs, repeats=5, draws=5)
    held_out = np.concatenate(
        [fit_plane(states, harmful).scores(states)[:, None], found.margins[:, None]], axis=1
    )
    assert np.corrcoef(held_out.T)[0, 1] > 0.95
    assert (found.margins[harmful] > 0).mean() > 0.6


def test_a_plane_does_not_depend_on_axes_or_origin():
    states, harmful, _ = made_up()
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
    here = fit_plane(states, harmful).scores(states)
    there = fit_plane(states @ turn + 7, harmful).scores(states @ turn + 7)
    np.testing.assert_allclose(here, there, atol=1e-8)
    assert np.isclose(np.linalg.norm(fit_plane(states, harmful).normal), 1)
    means = [states[side].mean(axis=0, keepdims=True) for side in (harmful, ~harmful)]
    one, other = (fit_plane(states, harmful).scores(m)[0] for m in means)
    assert one > 0 and np.isclose(one, -other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:-1]), "one label"),
        (lambda x, y: (x, np.ones_like(y)), "one kind only"),
        (lambda x, y: (np.where(x > 9, np.nan, x), y), "not finite"),
        (lambda x, y: (np.ones_like(x), y), "same mean"),
    ],
)
def test_what_has_no_plane_is_refused(change, message):
    states, harmful, _ = made_up()
    with pytest.raises(ValueError, match=message):
        fit_plane(*change(states, harmful))


def test_an_area_is_that_of_scikit_learn_with_ties():
    states, harmful, pairs = made_up()
    scores = np.round(states[:, 0], 0)
    found = area(scores, harmful, pairs)
    assert np.isclose(found.value, roc_auc_score(harmful, scores))
    assert found.low < found.value < found.high and found.n == 120
    assert found == area(scores, harmful, pairs)
    assert found != area(scores, harmful, pairs, seed=1)


def test_a_gain_is_paired_and_nothing_against_itself():
    states, harmful, pairs = made_up()
    scores = states[:, 0]
    same = area(scores, harmful, pairs, minus=scores)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    gain = area(scores, harmful, pairs, minus=states[:, 1])
    wanted = roc_auc_score(harmful, scores) - roc_auc_score(harmful, states[:, 1])
    assert np.isclose(gain.value, wanted)


def test_a_third_of_few_items_is_drawn_until_both_kinds_are_there():
    found = area(np.array([2.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False]), draws=20)
    assert (found.value, found.low, found.high) == (1, 1, 1)


@pytest.mark.parametrize("pairs", [None, [0, 0, 0], [0, 0, None], [1, 1, 0]])
def test_one_item_or_pair_of_a_kind_has_every_area_in_its_interval(pairs):
    scores, harmful = np.array([2.0, 1.0, 0.0]), np.array([True, True, False])
    found = area(scores, harmful, pairs)
    assert (found.value, found.n, found.low, found.high) == (1, 3, 0, 1)
    gain = area(scores, harmful, pairs, minus=-scores)
    assert (gain.value, gain.low, gain.high) == (1, -1, 1)


def test_areas_are_of_two_kinds_and_the_same_items():
    with pytest.raises(ValueError, match="same items"):
        area(np.zeros(3), np.array([True, False]))
    with pytest.raises(ValueError, match="one kind only"):
        area(np.zeros(2), np.array([True, True]))


def test_scores_that_are_not_finite_are_refused():
    harmful = [True, True, False]
    for scores, minus in (([1, np.nan, 0], None), ([1, 2, 0], [0, np.inf, 1])):
        with pytest.raises(ValueError, match="some scores are not finite"):
            area(np.array(scores), np.array(harmful), minus=minus)


def test_rounding_is_no_plane():
    states = np.tile([0.1, 0.2, 0.3], (30, 1))
    with pytest.raises(ValueError, match="the same mean"):
        fit_plane(states, np.arange(30) < 7)
