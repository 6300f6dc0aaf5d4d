"""Mixed formats: table sums are exactly what whole simulations count."""

from dataclasses import replace

import numpy as np
import pytest

from bitwright.quant import LINEARS, FormatMap, InputError, resolve_recipe
from bitwright.sim import (
    SHAPES,
    LogicEnergy,
    ModelShape,
    Operand,
    ProductEnergy,
    decode,
    default_accelerator,
    mixed_costs,
    prefill,
    simulate,
    simulate_generation,
    simulate_model,
)

SMALL = replace(SHAPES["smollm2-135m"], name="small", layers=3)
RECIPES = ("w3g64-bitmod", "w4g64-bitmod", "w8g64-int-sym-s8")
FORMATS = ("bitmod3", "bitmod4", "int8-sym")
LINEAR_COUNT = 3 * len(LINEARS)
RUN = {"prompt": 20, "generate": 5}


@pytest.fixture(scope="module")
def costs():
    return mixed_costs(SMALL, RECIPES, **RUN)


def recipe_of(numbers):
    step = FormatMap.of(FORMATS, numbers)
    return resolve_recipe(f"{RECIPES[numbers[0]]}+{step.written()}")


def random_map(seed):
    return np.random.default_rng(seed).integers(0, 3, LINEAR_COUNT).tolist()


@pytest.mark.parametrize("number", range(3), ids=FORMATS)
def test_a_uniform_map_costs_what_the_recipe_costs(costs, number):
    whole = simulate_generation(SMALL, RECIPES[number], **RUN)
    (found,) = [{k: v[0] for k, v in costs.of([[number] * LINEAR_COUNT]).items()}]
    assert found["cycles"] == whole.cycles
    assert found["dram_bytes"] == whole.dram_bytes
    assert found["latency_s"] == whole.latency_s
    assert found["decode_latency_s"] == pytest.approx(whole.tpot_s, rel=1e-12)
    parts = whole.energy_uj
    spent = parts["sram"] + parts["dram"] + parts["leakage"]
    assert found["energy_uJ"] == pytest.approx(spent, rel=1e-12)
    assert found["energy_per_token_uJ"] == pytest.approx(spent / RUN["generate"], rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_mixed_map_costs_what_every_step_run_whole_costs(costs, seed):
    numbers = random_map(seed)
    whole = simulate_generation(SMALL, recipe_of(numbers), stepwise=True, **RUN)
    found = costs.of([numbers])
    assert found["cycles"].tolist() == [whole.cycles]
    assert found["dram_bytes"].tolist() == [whole.dram_bytes]
    parts = whole.energy_uj
    spent = parts["sram"] + parts["dram"] + parts["leakage"]
    assert found["energy_uJ"][0] == pytest.approx(spent, rel=1e-12)


def test_many_maps_are_evaluated_as_one_by_one(costs):
    maps = [random_map(seed) for seed in range(20)]
    together = costs.of(maps)
    for number, one in enumerate(maps):
        alone = costs.of([one])
        assert {k: v[number] for k, v in together.items()} == {k: v[0] for k, v in alone.items()}


def test_a_mixed_pass_has_a_row_for_each_format_of_a_product():
    numbers = [0] * LINEAR_COUNT
    numbers[0], numbers[1 + 2 * len(LINEARS)] = 2, 1  # layer 0's attn.q, layer 2's attn.k
    result = simulate_model(SMALL, recipe_of(numbers), "decode", context=9)
    counts = {row.name: row.count for row in result.layers}
    assert (counts["attn.q int8-sym"], counts["attn.q bitmod3"]) == (1, 2)
    assert (counts["attn.k bitmod3"], counts["attn.k bitmod4"]) == (2, 1)
    assert counts["attn.o bitmod3"] == 3
    # By hand from three uniform runs: 19 repetitions of BitMoD-3, one of each other format.
    runs = [simulate_model(SMALL, recipe, "decode", context=9) for recipe in RECIPES]
    once = [{row.name: row.cycles // row.count for row in run.layers} for run in runs]
    by_hand = runs[0].cycles
    by_hand += once[2]["attn.q"] - once[0]["attn.q"] + once[1]["attn.k"] - once[0]["attn.k"]
    assert result.cycles == by_hand


def test_energy_of_logic_is_that_of_each_format():
    logic = [_logic(active) for active in (1.0, 2.0, 3.0)]
    table = mixed_costs(SMALL, RECIPES, logic=logic, **RUN)
    for number, recipe in enumerate(RECIPES):
        whole = simulate_generation(SMALL, recipe, logic=logic[number], **RUN)
        found = table.of([[number] * LINEAR_COUNT])["energy_uJ"][0]
        assert found == pytest.approx(whole.energy_uj["total"], rel=1e-12)
    low, middle, high = (table.of([[n] * LINEAR_COUNT])["energy_uJ"][0] for n in range(3))
    mixed = table.of([random_map(0)])["energy_uJ"][0]
    assert min(low, middle, high) < mixed < max(low, middle, high)
    assert table.energy == "logic, SRAM, DRAM and leakage"


def _logic(active):
    rows = {name: ProductEnergy(active, 0.5, 0.25) for name in LINEARS}
    return LogicEnergy(rows, 1.0, "made up", 1.0, 1000.0, "none", {}, "test")


def test_repetitions_that_do_not_add_up_are_refused():
    work = prefill(SMALL, 4)
    with pytest.raises(InputError, match="mixed has 1 . 1 repetitions of attn.q, which has 3"):
        simulate(
            work,
            default_accelerator("bitmod"),
            block=Operand(2),
            mixed={"attn.q": [(1, Operand(1)), (1, Operand(2))]},
        )


def test_one_logic_energy_for_several_formats_is_refused():
    with pytest.raises(InputError, match="logic is that of one format"):
        simulate_model(SMALL, recipe_of(random_map(1)), logic=_logic(1.0))


def test_a_map_for_other_layers_is_refused():
    with pytest.raises(InputError, match="has 21 digits; the model has 2 layers.* 14 are needed"):
        simulate_model(replace(SMALL, layers=2), recipe_of(random_map(1)))


def test_other_blocks_are_refused():
    shape = ModelShape("plain", 2, 8, 4, 2, 3, 16, 100, gated=False)
    with pytest.raises(InputError, match="plain has the linears attn.q, .*ffn.up, ffn.down; form"):
        mixed_costs(shape, RECIPES, **RUN)
    with pytest.raises(InputError, match="plain: a map of formats is for blocks of"):
        simulate_model(decode(shape, 4), recipe_of(random_map(1)))


def test_maps_of_another_size_are_refused(costs):
    with pytest.raises(InputError, match="a map has 2 numbers; 21 linears need one each"):
        costs.of([[0, 1]])
    with pytest.raises(InputError, match="must be 0 to 2"):
        costs.of([[3] * LINEAR_COUNT])
    with pytest.raises(InputError, match="prompt 1, generate 1, batch 1; at least 1, 2 and 1"):
        mixed_costs(SMALL, RECIPES, prompt=1, generate=1)
