"""The heuristic and NSGA-II against all maps of a small problem."""

import sys
from importlib import import_module
from itertools import product

import numpy as np
import pytest

from bitwright.quant import InputError, resolve_recipe
from bitwright.sim import CostTable, MixedCosts, default_accelerator

fronts, heuristic, nsga, spaces = (
    import_module(f"bitwright.experiments.search.{name}")
    for name in ("fronts", "heuristic", "nsga", "space")
)
RECIPES = ("w3g64-bitmod", "w4g64-bitmod", "w8g64-int-sym-s8")


def space_of(seed, linears=3, arrays=1):
    """A made-up problem: more bits cost more and err less, each linear in its own way."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(10, 100, linears)
    bits = weights[:, None] * np.array([3, 4, 8])
    errors = (
        rng.random((linears, 1)) * np.array([1.0, 0.3, 0.01]) * rng.uniform(0.5, 1.5, (linears, 3))
    )
    costs = []
    for array in range(arrays):
        cycles = bits * rng.integers(1, 5, (linears, 1)) // (array + 1)
        table = CostTable(cycles, bits.copy(), bits * 0.5, 7, 8, 9.0)
        costs.append(
            MixedCosts(
                RECIPES, table, table, steps=3, tokens=4, clock_ps=1e9, area_mm2=1.0 + array,
                energy="made up", accelerator=default_accelerator("bitmod"), example=None,
            )
        )  # fmt: skip
    return spaces.Space(
        tuple(resolve_recipe(name) for name in RECIPES),
        tuple(f"0.{number}" for number in range(linears)),
        bits,
        int(weights.sum()),
        tuple(costs),
        np.sort(errors, axis=1)[:, ::-1],
    )


def all_candidates(space):
    choices = [range(len(space.recipes))] * len(space.linears) + [range(len(space.costs))]
    return np.array(list(product(*choices)))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("quantity", ["bits_per_weight", "latency_s"])
def test_each_step_of_the_heuristic_is_optimal_for_its_cost(seed, quantity):
    space = space_of(seed)
    everything = all_candidates(space)
    values = space.evaluate(everything)
    costs = spaces.cost_table(space, quantity, 0)
    path = heuristic.greedy_path(costs.astype(float), space.proxy)
    found = space.evaluate(np.column_stack([path, np.zeros(len(path), int)]))
    assert (np.diff(found[quantity]) < 0).all()
    for cost, error in zip(found[quantity], found["proxy"], strict=True):
        best = values["proxy"][values[quantity] <= cost * (1 + 1e-12)].min()
        assert error == pytest.approx(best, rel=1e-12)
    # From the least error of all to the least cost of all.
    assert found["proxy"][0] == pytest.approx(values["proxy"].min())
    assert found[quantity][-1] == pytest.approx(values[quantity].min())


def test_between_its_steps_the_heuristic_can_miss_the_best():
    # One linear, 4 and 2 bits on its hull; 3 bits lie above the hull's line but within a budget
    # of 3 they are the best there is.
    path = heuristic.greedy_path(np.array([[4.0, 3.0, 2.0]]), np.array([[0.0, 2.0, 2.5]]))
    assert path.tolist() == [[0], [2]]


@pytest.mark.parametrize("seed", range(3))
def test_nsga2_finds_the_whole_front(seed):
    space = space_of(seed, arrays=2)
    objectives = ["proxy", "bits_per_weight", "latency_s", "area_mm2"]
    everything = all_candidates(space)
    front = front_of(space, everything, objectives)
    found = nsga.nsga2(
        space, objectives, {}, space.uniform(), population=80, generations=60, seed=seed
    )
    assert front_of(space, found, objectives) == front


def front_of(space, candidates, objectives):
    values = space.evaluate(candidates)
    points = np.stack([values[name] for name in objectives], axis=1)
    return {tuple(point) for point in points[fronts.nondominated(points)].tolist()}


@pytest.mark.parametrize("seed", range(3))
def test_nsga2_holds_budgets(seed):
    space = space_of(seed)
    values = space.evaluate(all_candidates(space))
    budget = float(np.median(values["bits_per_weight"]))
    found = nsga.nsga2(
        space, ["proxy", "latency_s"], {"bits_per_weight": budget}, space.uniform(),
        population=40, generations=40, seed=seed,
    )  # fmt: skip
    here = space.evaluate(found)
    held = here["bits_per_weight"] <= budget
    allowed = values["bits_per_weight"] <= budget
    assert here["proxy"][held].min() == values["proxy"][allowed].min()


def test_equal_seeds_give_equal_generations():
    space = space_of(0, linears=21)
    runs = [
        nsga.nsga2(
            space, ["proxy", "bits_per_weight"], {}, space.uniform(),
            population=20, generations=10, seed=seed,
        )
        for seed in (3, 3, 4)
    ]  # fmt: skip
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_a_hundred_thousand_evaluations_take_seconds():
    import time

    space = space_of(0, linears=210)
    candidates = np.random.default_rng(0).integers(0, 3, (100_000, 211))
    candidates[:, -1] = 0
    start = time.process_time()
    found = space.evaluate(candidates)
    assert time.process_time() - start < 20
    assert len(found["latency_s"]) == 100_000


def test_without_pymoo_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymoo", None)
    with pytest.raises(InputError, match=r"not installed; .* pip install 'bitwright\[search\]'"):
        nsga.need_pymoo()


def test_budgets_that_cannot_be_held_are_refused_with_the_least():
    space = space_of(0)
    with pytest.raises(InputError) as caught:
        spaces.refuse_infeasible(space, {"bits_per_weight": 2.5})
    assert str(caught.value) == (
        "budget of 2.5 bits per weight cannot be held; the least that is possible with these "
        "formats and arrays is 3"
    )
    spaces.refuse_infeasible(space, {"bits_per_weight": 3.0})


@pytest.mark.parametrize("quantity", ["latency_s", "energy_per_token_uJ", "decode_latency_s"])
def test_the_least_that_is_told_is_the_least_of_all(quantity):
    space = space_of(1, arrays=2)
    least = float(space.evaluate(all_candidates(space))[quantity].min())
    spaces.refuse_infeasible(space, {quantity: least * 1.0000001})
    with pytest.raises(InputError, match="cannot be held"):
        spaces.refuse_infeasible(space, {quantity: least * 0.999})


def test_uniform_candidates_are_plain_recipes_and_others_come_back_from_their_name():
    from dataclasses import replace

    from bitwright.quant import LINEARS

    space = replace(space_of(0), linears=tuple(f"0.{name}" for name in LINEARS))
    assert space.recipe([1] * 7 + [0]) == resolve_recipe("w4g64-bitmod")
    recipe = space.recipe([2, 0, 1, 0, 2, 2, 0, 0])
    again = resolve_recipe(recipe.name)
    formats = [again.format_map.format_of(0, name) for name in LINEARS]
    assert formats == [
        "int8-sym",
        "bitmod3",
        "bitmod4",
        "bitmod3",
        "int8-sym",
        "int8-sym",
        "bitmod3",
    ]
    assert list(space.named_formats([2, 0, 1, 0, 2, 2, 0, 0]).values()) == formats


@pytest.mark.parametrize(
    ("formats", "message"),
    [(["bitmod3"], "2 to 36 formats"), (["fp4", "fp4"], "2 to 36"), (["fp4", "bitmod5"], "bitmod")],
    ids=["one", "twice", "unknown"],
)
def test_other_formats_are_refused(formats, message):
    with pytest.raises(InputError, match=message):
        spaces.uniform_recipes(formats, 64, "int8")


def test_arrays_are_all_combinations():
    base = default_accelerator("bitmod")
    made = spaces.arrays(base, {"rows": (16, 32), "dram": ("ddr4-bitmod", "hbm2")})
    assert [(one.rows, one.dram) for one in made] == [
        (16, "ddr4-bitmod"), (16, "hbm2"), (32, "ddr4-bitmod"), (32, "hbm2"),
    ]  # fmt: skip
    assert spaces.arrays(base, {}) == (base,)
