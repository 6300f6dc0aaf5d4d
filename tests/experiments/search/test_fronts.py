"""Fronts, worked by hand."""

import math
from importlib import import_module
from itertools import combinations

import numpy as np
import pytest

fronts = import_module("bitwright.experiments.search.fronts")


def test_hypervolume_by_hand():
    # Reference (10, 10); steps at x = 1, 2 and 5:
    # (2 - 1) * (10 - 8) + (5 - 2) * (10 - 4) + (10 - 5) * (10 - 1) = 2 + 18 + 45 = 65 of 100.
    points = np.array([[1.0, 8.0], [2.0, 4.0], [5.0, 1.0], [6.0, 4.0]])
    assert fronts.hypervolume(points, np.array([10.0, 10.0])) == pytest.approx(0.65)


def test_hypervolume_counts_nothing_beyond_the_reference():
    points = np.array([[1.0, 11.0], [12.0, 1.0]])
    assert fronts.hypervolume(points, np.array([10.0, 10.0])) == 0.0


def test_hypervolume_of_a_corner_is_the_rest_of_the_box():
    assert fronts.hypervolume(np.array([[1.0, 1.0, 1.0]]), np.full(3, 2.0)) == pytest.approx(1 / 8)


def test_knee_by_hand():
    # Logarithms base 2: (0, 4), (1, 1), (3, 0.5), (4, 0); scaled by 4: the chord is x + y = 1,
    # and the points lie 0, 1/2, 1/8 and 0 below it.
    points = 2.0 ** np.array([[3, 0.5], [0, 4], [4, 0], [1, 1]])
    assert fronts.knee(points) == 3


def test_knee_leaves_out_who_is_beaten():
    points = np.array([[1.0, 16.0], [2.0, 2.0], [16.0, 1.0], [3.0, 3.0]])
    assert fronts.knee(points) == 1
    assert fronts.knee(points[[3, 0, 2, 1]]) == 3


@pytest.mark.parametrize("seed", range(5))
def test_nondominated_is_its_definition(seed):
    points = np.random.default_rng(seed).integers(0, 6, (40, 3)).astype(float)
    expected = [
        i
        for i, p in enumerate(points)
        if not any((q <= p).all() and ((q < p).any() or j < i) for j, q in enumerate(points))
    ]
    assert fronts.nondominated(points).tolist() == expected


def test_gain_by_hand():
    uniform = [
        {"name": "a", "bits": 2.0, "perplexity": math.exp(4)},
        {"name": "b", "bits": 4.0, "perplexity": math.exp(2)},
        {"name": "beaten", "bits": 5.0, "perplexity": math.exp(3)},
    ]
    mixed = [
        {"name": "m", "bits": 3.0, "perplexity": math.exp(2.5)},
        {"name": "outside", "bits": 1.0, "perplexity": math.exp(5)},
    ]
    found = fronts.gain(uniform, mixed, "bits")
    # At 3 bits the uniform front has ln 3, at ln 2.5 it takes 3.5 bits.
    best = found["best_at_equal_cost"]
    assert best["uniform_perplexity"] == pytest.approx(math.exp(3))
    assert best["lower_by"] == pytest.approx(1 - math.exp(-0.5))
    cheapest = found["best_at_equal_perplexity"]
    assert cheapest["uniform_bits"] == pytest.approx(3.5)
    assert cheapest["lower_by"] == pytest.approx(0.5 / 3.5)
    assert len(found["at_equal_cost"]) == len(found["at_equal_perplexity"]) == 1


def test_gain_says_nothing_outside_the_uniform_range():
    uniform = [{"name": "a", "bits": 2.0, "perplexity": 9.0}]
    found = fronts.gain(uniform, [{"name": "m", "bits": 1.0, "perplexity": 8.0}], "bits")
    assert found["best_at_equal_cost"] is None
    assert found["best_at_equal_perplexity"] is None


def test_spread_is_even_in_the_logarithm_and_avoids_what_is_taken():
    values = 2.0 ** np.arange(9)
    assert fronts.spread(values, 3, []) == [2, 4, 6]
    assert fronts.spread(values, 3, [4]) == [2, 3, 6]
    assert fronts.spread(values[:2], 3, [0]) == [1]


def test_spread_never_chooses_twice():
    values = np.array([1.0, 1.0001, 1.0002, 100.0])
    for count in range(1, 5):
        chosen = fronts.spread(values, count, [])
        assert all(a != b for a, b in combinations(chosen, 2))


def test_the_knee_does_not_depend_on_the_units_spans():
    """Logarithms from 0 to 10 and from 0 to 1: as shares of them, C lies 1 - 0.4 - 0.1 below."""
    a, b, c, d = (0, 1), (1, 0.5), (4, 0.1), (10, 0)
    assert fronts.knee(np.exp([a, b, c, d])) == 2
    assert fronts.knee(np.exp([d, c, b, a])) == 1
