"""Energy of the logic: the formula by hand, and its meeting with a simulation's cycles."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from bitwright.quant import FORMATS
from bitwright.sim import (
    Gemm,
    LogicEnergy,
    Operand,
    ProductEnergy,
    Workload,
    default_accelerator,
    logic,
    simulate,
    simulate_generation,
    simulate_model,
)

CHEAP = ProductEnergy(2.0, 1.0, 0.5, edge_pj=0.25, breakdown={"PE": 1.5, "wires": 0.5})
DEAR = ProductEnergy(4.0, 3.0, 1.5, edge_pj=0.75, skipped_pj=2.5, breakdown={"PE": 4.0})
ENERGY = LogicEnergy(
    products={"cheap": CHEAP, "dear": DEAR},
    leakage_uw=10.0,
    technology="paper",
    voltage=1.0,
    clock_ps=1000.0,
    wires="none",
    netlists={"PE": "0" * 12},
    source="by hand",
)


def test_the_formula_by_hand():
    """10 cycles on 4 PEs: 6 busy, 20 of the 24 PE cycles used, 3 stops; 16 PE cycles wait."""
    pj = logic.product_energies(ENERGY, ["cheap"])
    (energy,) = logic.logic_uj(
        pj, pes=4, cycles=[10], busy=[6], used=np.array([20.0]), stops=np.array([3.0])
    )
    # 20 * 2 + 4 * 1 + 16 * 0.5 + 4 * 3 * 0.25 pJ
    assert energy == pytest.approx(55e-6)


def test_leaving_out_cheap_cycles_saves_what_they_cost():
    """100 PE cycles of 4 pJ on average, 40 of which cost 2.5: without them 400 - 100 pJ remain."""
    pj = logic.product_energies(ENERGY, ["dear"])
    (fixed,) = logic.logic_uj(pj, pes=1, cycles=[100], busy=[100], used=np.array([100.0]))
    (skipped,) = logic.logic_uj(
        pj, pes=1, cycles=[60], busy=[60], used=np.array([60.0]), skipped=np.array([40.0])
    )
    assert fixed == pytest.approx(400e-6) and skipped == pytest.approx(300e-6)


def test_products_that_were_not_measured_have_the_mean():
    mean = ENERGY.of("unknown")
    assert (mean.active_pj, mean.unused_pj, mean.stalled_pj) == (3.0, 2.0, 1.0)
    assert mean.skipped_pj == 2.5  # of those that have one
    assert ENERGY.of("dear") is DEAR


def test_factors_multiply_everything():
    both = replace(ENERGY, post_layout=1.5, scale=0.5)
    plain = logic.product_energies(ENERGY, ["cheap", "dear"])
    scaled = logic.product_energies(both, ["cheap", "dear"])
    for name, values in plain.items():
        assert scaled[name].tolist() == (0.75 * values).tolist()


def one_product(m: int, n: int, k: int, **more):
    """A product called "cheap" on 8 x 8 INT8 PEs, with and without energy."""
    workload = Workload("one", "rows", None, None, (Gemm("cheap", m, n, k),), "a test")
    array = replace(default_accelerator("int8"), rows=8, cols=8)
    block = Operand(1, FORMATS["int8-sym"])
    return simulate(workload, array, **{"block": block, "logic": ENERGY, **more}), array


def test_a_full_array_has_no_unused_cycles():
    result, array = one_product(16, 24, 64)
    (row,) = result.layers
    used = 16 * 24 * 64
    assert row.busy_cycles * 64 == used
    waiting = (row.cycles - row.busy_cycles) * 64
    assert row.logic_uj == pytest.approx((used * 2.0 + waiting * 0.5) * 1e-6)
    assert result.logic_uj == row.logic_uj
    assert result.logic_parts_uj == pytest.approx({"PE": used * 1.5e-6, "wires": used * 0.5e-6})
    assert result.total_uj == pytest.approx(
        result.logic_uj + result.sram_uj + result.dram_uj + result.leakage_uj
    )


def test_rows_without_a_token_cost_less_than_those_with_one():
    """One token on eight rows: an eighth of the busy PE cycles is used."""
    result, array = one_product(1, 8, 64)
    (row,) = result.layers
    busy, waiting = row.busy_cycles * 64, (row.cycles - row.busy_cycles) * 64
    used = 8 * 64
    expected = used * 2.0 + (busy - used) * 1.0 + waiting * 0.5
    assert row.logic_uj == pytest.approx(expected * 1e-6)


def test_steps_that_a_port_stretches_stop_and_go():
    """16-bit weights through a port for 8: every step waits once, and starts and stops."""
    result, array = one_product(8, 8, 64, block=Operand(1))
    (row,) = result.layers
    assert row.busy_cycles == row.port_cycles == 64
    waiting = (row.cycles - row.busy_cycles) * 64
    expected = 64 * 64 * 2.0 + waiting * 0.5 + 64 * 64 * 0.25
    assert row.logic_uj == pytest.approx(expected * 1e-6)


def test_leakage_is_that_of_the_measured_tile():
    result, array = one_product(8, 8, 8)
    assert result.logic_leakage_uj == pytest.approx(
        64 * 10.0 * result.latency_s, rel=1e-9
    )  # uW * s


def test_without_energies_there_is_no_total():
    result = simulate_model("opt-1.3b", "bitmod3", "decode")
    assert result.logic_uj is None and result.total_uj is None
    assert all(row.logic_uj is None for row in result.layers)


def test_skipped_terms_lower_the_energy_of_block_products_alone():
    shares = {name: Fraction(3, 4) for name in ("ffn.down", "ffn.up")}
    wide = replace(default_accelerator("bitmod"), activation_lane_bits=16)
    energy = replace(ENERGY, products={"ffn.down": DEAR, "ffn.up": DEAR, "attn.q": DEAR})
    fixed, skipped = (
        simulate_model("opt-1.3b", "bitmod3", accelerator=wide, logic=energy, term_shares=given)
        for given in (None, shares)
    )
    for before, after in zip(fixed.layers, skipped.layers, strict=True):
        saved = before.logic_uj - after.logic_uj
        if before.name in shares:
            pes = wide.rows * wide.cols
            dropped = before.macs * 2 / wide.lanes / 4
            waits = (before.cycles - before.busy_cycles) - (after.cycles - after.busy_cycles)
            unused = pes * before.busy_cycles - before.macs * 2 / wide.lanes
            fewer = unused - (pes * after.busy_cycles - before.macs * 2 / wide.lanes * 3 / 4)
            assert saved == pytest.approx(
                (dropped * 2.5 + fewer * 3.0 + pes * waits * 1.5) * 1e-6, rel=1e-6
            )
            assert saved > 0
        else:
            assert saved == pytest.approx(0, abs=1e-6 * before.logic_uj)


def test_the_array_waits_while_the_vector_unit_works():
    result = simulate_model("opt-1.3b", "bitmod3", "decode", logic=ENERGY)
    pes = 32 * 32
    for row in result.vector:
        assert row.logic_uj == pytest.approx(row.cycles * pes * 1.0e-6)  # mean of 0.5 and 1.5 pJ
    both = sum(row.logic_uj for row in result.layers) + sum(row.logic_uj for row in result.vector)
    assert result.logic_uj == pytest.approx(both)


def test_generations_add_their_steps_up():
    from bitwright.sim import SHAPES

    shape = replace(SHAPES["opt-1.3b"], layers=2)
    fast, slow = (
        simulate_generation(shape, "bitmod3", prompt=9, generate=4, logic=ENERGY, stepwise=steps)
        for steps in (False, True)
    )
    assert fast.energy_uj["logic"] == pytest.approx(slow.energy_uj["logic"])
    assert fast.energy_per_token_uj is not None
    parts = [fast.energy_uj[name] for name in ("logic", "sram", "dram", "leakage")]
    assert fast.energy_uj["total"] == pytest.approx(sum(part or 0.0 for part in parts))
