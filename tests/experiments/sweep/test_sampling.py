"""Samplers: a grid by hand, one point a stratum, seeds, and what constraints leave."""

import math
from collections import Counter
from importlib import import_module

import pytest

from bitwright.experiments import sweep

sampling = import_module("bitwright.experiments.sweep.sampling")
grid_values, sample = sampling.grid_values, sampling.sample
Range = import_module("bitwright.experiments.sweep.spec").Range


def spec_of(**parts):
    return sweep.parse_sweep({"version": 1, "fixed": {"shape": "smollm2-135m"}, **parts})


def drawn(method, points, axes, seed=0):
    spec = spec_of(axes=axes, sampling={"method": method, "points": points}, seed=seed)
    return list(sample(spec))


def test_a_grid_by_hand():
    spec = spec_of(
        axes={"rows": [8, 16], "dram": ["hbm2"], "cols": {"from": 4, "to": 9, "step": 2}}
    )
    assert list(sample(spec)) == [
        (8, "hbm2", 4), (8, "hbm2", 6), (8, "hbm2", 8),
        (16, "hbm2", 4), (16, "hbm2", 6), (16, "hbm2", 8),
    ]  # fmt: skip


RANGES = [
    ("cols", Range(low=16, high=64, step=16), [16, 32, 48, 64]),
    ("cols", Range(low=16, high=63, step=16), [16, 32, 48]),
    ("cols", Range(low=3, high=3, step=1), [3]),
    ("cols", Range(low=16, high=64, scale="log2"), [16, 32, 64]),
    ("cols", Range(low=16, high=64, count=5, scale="log2"), [16, 23, 32, 45, 64]),
    ("cols", Range(low=1, high=3, count=9), [1, 2, 3]),  # rounded, each once
    ("clock_ps", Range(low=1, high=2, count=3), [1.0, 1.5, 2.0]),
    ("clock_ps", Range(low=1, high=2, count=1), [1.0]),
    ("voltage", Range(low=0.6, high=0.9, step=0.1), [0.6, 0.7, 0.8, 0.9]),
    ("clock_ps", Range(low=100, high=100_000, count=4, scale="log2"), [1e2, 1e3, 1e4, 1e5]),
]


@pytest.mark.parametrize(("name", "axis", "values"), RANGES, ids=[str(i) for i in range(10)])
def test_ranges_by_hand(name, axis, values):
    assert grid_values(name, axis) == pytest.approx(values, rel=1e-12)


def test_a_list_gives_its_points_and_the_rest_is_fixed():
    spec = spec_of(
        sampling={"method": "list"},
        fixed={"shape": "smollm2-135m", "rows": 4},
        points=[{"rows": 8}, {"cols": 8}, {"rows": 4, "cols": 8}],
    )
    planned = sweep.plan_sweep(spec)
    assert planned.names == ("rows", "cols")
    # The third is the second, written out.
    assert [(p["rows"], p["cols"]) for p in map(planned.point, range(2))] == [(8, 32), (4, 8)]
    assert len(planned) == 2 and planned.equal == 1


def test_random_points_are_where_they_may_be():
    axes = {
        "rows": {"from": 3, "to": 5},
        "clock_ps": {"from": 500.0, "to": 4000, "scale": "log2"},
        "dram": ["hbm2", "hbm3"],
        "cols": {"from": 8, "to": 24, "step": 8},
    }
    points = drawn("random", 3000, axes)
    rows, clocks, drams, cols = map(Counter, zip(*points, strict=True))
    assert set(rows) == {3, 4, 5} and set(drams) == {"hbm2", "hbm3"} and set(cols) == {8, 16, 24}
    # 3000 draws in thirds: a standard deviation is 26.
    assert all(abs(count - 1000) < 130 for count in (*rows.values(), *cols.values()))
    assert 500 <= min(clocks) and max(clocks) <= 4000
    # Even in the logarithm: half of the draws lie below the geometric mean.
    below = sum(count for clock, count in clocks.items() if clock < math.sqrt(500 * 4000))
    assert abs(below - 1500) < 140


@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize("scale", ["linear", "log2"])
def test_a_latin_hypercube_has_one_point_in_each_stratum_of_each_axis(count, scale):
    axes = {
        "clock_ps": {"from": 1000, "to": 3000, "scale": scale},
        "voltage": {"from": 0.5, "to": 1.5, "scale": scale},
    }
    spec = spec_of(
        axes=axes,
        sampling={"method": "latin-hypercube", "points": count},
        measure={"energy": True},
    )
    points = list(sample(spec))
    for column, axis in zip(zip(*points, strict=True), axes.values(), strict=True):
        low, high = axis["from"], axis["to"]
        if scale == "log2":
            places = [math.log(value / low) / math.log(high / low) for value in column]
        else:
            places = [(value - low) / (high - low) for value in column]
        assert sorted(int(place * count) for place in places) == list(range(count))


def test_a_latin_hypercube_shares_lists_and_whole_numbers_evenly():
    points = drawn("latin-hypercube", 60, {"dram": ["hbm2", "hbm3"], "rows": {"from": 1, "to": 6}})
    drams, rows = map(Counter, zip(*points, strict=True))
    assert drams == {"hbm2": 30, "hbm3": 30} and rows == dict.fromkeys(range(1, 7), 10)
    assert len(set(points)) == 12  # the axes are shuffled apart


@pytest.mark.parametrize("method", ["random", "latin-hypercube"])
def test_a_seed_gives_the_same_points_and_another_others(method):
    axes = {"rows": {"from": 1, "to": 500}, "cols": {"from": 1, "to": 500}}
    first = drawn(method, 40, axes)
    assert first == drawn(method, 40, axes)
    assert first != drawn(method, 40, axes, seed=1)
    # Another axis changes none of the others.
    more = drawn(method, 40, {**axes, "banks": [4, 8]})
    assert [point[:2] for point in more] == first
    assert [a for a, _ in first] != [b for _, b in first]


def test_constraints_on_settings_leave_points_out_before_they_run():
    axes = {"rows": [8, 16, 32], "cols": [8, 16, 32]}
    planned = sweep.plan_sweep(spec_of(axes=axes, constraints=["rows * cols <= 256", "rows >= 16"]))
    kept = [(p["rows"], p["cols"]) for p in map(planned.point, range(len(planned)))]
    assert kept == [(16, 8), (16, 16), (32, 8)] and planned.skipped == 6


def test_a_constraint_sees_defaults():
    """bitmod's array has 32 columns, fp16's 32 as well, dint4's 64 (`default_accelerator`)."""
    from bitwright.sim import default_accelerator

    axes = {"pe": ["bitmod", "dint4"], "recipe": ["dint4"]}
    wide = {pe: default_accelerator(pe).cols for pe in axes["pe"]}
    assert wide["bitmod"] != wide["dint4"]
    planned = sweep.plan_sweep(spec_of(axes=axes, constraints=[f"cols == {wide['dint4']}"]))
    assert [planned.point(0)["pe"], len(planned)] == ["dint4", 1]
