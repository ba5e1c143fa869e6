"""Small samples and laws with known answers, for the tests of transport and of bounds."""

from itertools import product

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from scipy.stats import binom

SEEDS = st.integers(0, 10**6)
unhurried = settings(max_examples=50, deadline=None)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def on_a_line(*places):
    return np.array(places, dtype=float)[:, None]


@st.composite
def samples(draw, count=2, size=None):
    """Samples of one space, of 1 to 8 items each or all of ``size``; items may repeat."""
    noise = np.random.default_rng(draw(SEEDS))
    dim = draw(st.integers(1, 4))
    sizes = [size or draw(st.integers(1, 8)) for _ in range(count)]
    return [noise.normal(size=(s, dim)).round(draw(st.integers(0, 6))) for s in sizes]


def two_point_law(k, p, length=1.0):
    """Two k-samples of a law on two points: the difference of two binomials, in units of 1 / k."""
    mass = binom.pmf(np.arange(k + 1), k, p)
    return length * sum(
        mass[i] * mass[j] * abs(i - j) / k for i, j in product(range(k + 1), repeat=2)
    )
