"""Differences of two arms over seeds, and over seeds and items."""

import numpy as np
import pytest

from xb_lite.evaluation.seeds import finding, gap_over_seeds, gap_over_seeds_and_items
from xb_lite.results.stats import Estimate, mean_of_runs


def arm(rates):
    return [{f"item {i}": value for i, value in enumerate(row)} for row in rates]


ZERO = arm(np.zeros((3, 4)))


def test_the_unit_over_seeds_is_a_seed():
    ones = arm([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    assert gap_over_seeds(ones, ZERO) == mean_of_runs([0.25, 0.5, 0.75])


def test_the_order_of_items_does_not_matter():
    ones = arm(np.arange(12).reshape(3, 4) / 12)
    turned = [dict(reversed(rates.items())) for rates in ones]
    assert gap_over_seeds(ones, turned).value == 0
    found = gap_over_seeds_and_items(ones, turned)
    assert (found.low, found.high) == (0, 0)


def test_over_both_the_variance_is_that_of_seeds_and_of_items():
    draw = np.random.default_rng(0)
    of_seeds, of_items = draw.normal(0, 0.2, (40, 1)), draw.normal(0, 0.3, (1, 60))
    found = gap_over_seeds_and_items(arm(of_seeds + of_items), arm(np.zeros((40, 60))))
    spread = (of_seeds.var() / 40 + of_items.var() / 60) ** 0.5
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * spread, rel=0.05)
    wider = gap_over_seeds_and_items(arm(of_seeds + of_items), arm(np.zeros((40, 60))), level=0.99)
    assert wider.low < found.low < found.value == wider.value < found.high < wider.high


def test_of_one_seed_the_interval_is_over_items_alone():
    found = gap_over_seeds_and_items(arm([[1, 0] * 50]), arm([[0] * 100]))
    assert found.value == 0.5 and 0.09 < found.high - 0.5 < 0.11 and found.n == 100


def test_a_draw_can_be_made_again():
    ones = arm([[1, 0, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0]])
    assert gap_over_seeds_and_items(ones, ZERO) == gap_over_seeds_and_items(ones, ZERO)


@pytest.mark.parametrize(
    ("ones", "others"), [(ZERO, ZERO[:2]), ([], []), (ZERO, arm(np.zeros((3, 5))))]
)
def test_arms_of_other_seeds_or_items_are_not_compared(ones, others):
    for gap in (gap_over_seeds, gap_over_seeds_and_items):
        with pytest.raises(ValueError):
            gap(ones, others)


@pytest.mark.parametrize(
    ("at_95", "at_99", "said"),
    [
        ((-0.1, -0.02), (-0.12, -0.01), "present"),
        ((0.02, 0.1), (0.01, 0.12), "present"),
        ((-0.04, 0.03), (-0.06, 0.05), "absent"),
        ((-0.1, -0.02), (-0.12, 0.01), "open"),
        ((-0.05, 0.03), (-0.06, 0.05), "open"),
    ],
)
def test_what_may_be_said(at_95, at_99, said):
    assert finding(*(Estimate(0.0, 9, *ends) for ends in (at_95, at_99))) == said
