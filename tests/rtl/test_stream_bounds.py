"""Idle, typical and worst streams: what must hold between them, and the search for the worst."""

from typing import Any

import numpy as np
import pytest

from bitwright.quant import quantize
from bitwright.rtl import resolve_technology, stream_bounds, tile_energy

FORMATS = {"dint4": ("dint4-sym", 64, None), "bitmod": ("bitmod4", 64, "int8"), "fp16": None}


def tile(pe: str) -> tile_energy.TileHardware:
    return tile_energy.TileHardware(pe, resolve_technology("nangate45"))


def weights_of(pe: str) -> Any:
    how: Any = FORMATS[pe]
    return lambda w: w if how is None else quantize(w, *how)


@pytest.mark.parametrize("pe", list(FORMATS))
def test_idle_is_below_random_data_and_that_below_the_worst(pe: str) -> None:
    bounds = stream_bounds.measure_bounds(tile(pe), weights_of(pe), pairs=64)
    typical = bounds.typical
    assert bounds.idle_pj < typical.active_pj
    assert bounds.pe_idle_pj < bounds.pe_typical_pj < bounds.worst_pj
    assert bounds.pe_typical_pj < typical.active_pj
    assert bounds.pe_idle_pj < bounds.idle_pj and bounds.pe_leakage_pj < bounds.leakage_pj
    assert bounds.idle_pj == typical.stalled_pj
    assert (typical.source, typical.half_width <= 0.02) == ("random data", True)
    document = bounds.to_dict()
    assert document["search"] == "highest of 64 pairs tried"
    assert document["typical"]["pj_per_mac"] == typical.pj_per_mac


def test_the_parts_of_the_pe_are_what_stands_alone() -> None:
    typical = stream_bounds.random_data(tile("dint4"), weights_of("dint4"))
    parts = {name: sum(values.values()) for name, values in typical.breakdown.items()}
    assert {name for name in parts if name.startswith("PE ")} == {"PE multiply", "PE accumulate"}
    alone = parts["PE multiply"] + parts["PE accumulate"]
    assert stream_bounds.pe_alone_pj(typical) == pytest.approx(alone)


def test_patterns_that_do_not_change_cost_the_clock_alone() -> None:
    """Zeros and zeros: nothing accumulates, and no net moves."""
    hardware = tile("dint4")
    ports = stream_bounds._data_ports(hardware)
    assert ports == {"act0": 8, "code0": 4}
    pairs = np.zeros((2, 2, 12), bool)
    pairs[1, 1] = True
    still, moving = stream_bounds._energies_fj(hardware, ports, pairs)
    assert still == pytest.approx(hardware.parts["PE"].power.clock_fJ.sum())
    assert moving > 1.5 * still


def test_a_pair_s_energy_is_its_own() -> None:
    """One word a pair: beside other pairs it is what it is alone."""
    hardware = tile("dint4")
    ports = stream_bounds._data_ports(hardware)
    pairs = stream_bounds._first_pairs(20, ports, np.random.default_rng(1))
    together = stream_bounds._energies_fj(hardware, ports, pairs)
    alone = [stream_bounds._energies_fj(hardware, ports, pairs[i : i + 1])[0] for i in range(20)]
    assert together.tolist() == pytest.approx(alone)
    assert len(set(alone)) > 10


def test_first_pairs_hold_the_extremes() -> None:
    ports = {"a": 3, "b": 2}
    pairs = stream_bounds._first_pairs(8, ports, np.random.default_rng(0))
    assert not pairs[0, 0].any() and pairs[0, 1].all()
    assert (pairs[5, 0] == ~pairs[5, 1]).all()
    assert (pairs[6, 0] ^ pairs[6, 1]).tolist() == [False, False, True, False, True]
    assert not pairs[7, 0].any() and pairs[7, 1].any()


def test_breeding_finds_more_than_random_pairs() -> None:
    hardware = tile("dint4")
    ports = stream_bounds._data_ports(hardware)
    first = stream_bounds._first_pairs(512, ports, np.random.default_rng(0))
    assert (
        stream_bounds.worst_pair_fj(hardware)
        > stream_bounds._energies_fj(hardware, ports, first).max()
    )


def test_the_seed_decides() -> None:
    hardware = tile("dint4")
    found = [stream_bounds.worst_pair_fj(hardware, seed=seed, pairs=64) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_control_of_the_bit_serial_pe_runs() -> None:
    """A group ends every eight cycles, a new one begins behind it."""
    control = stream_bounds._control(tile("bitmod"))
    load, clear = control["load"][:, 0], control["clear"][:, 0]
    ends = np.flatnonzero(load)
    assert np.diff(ends).tolist() == [8] * (len(ends) - 1) and len(ends) >= 4
    assert clear[ends[:-1] + 1].all() and clear[ends[1] + 2 : ends[2] + 1].sum() == 0
    assert (control["first"][ends[:-1] + 1] == 1).all()


def test_signs_of_a_format_stay_and_planes_go_round() -> None:
    hardware = tile("btc")
    ports = stream_bounds._data_ports(hardware)
    assert ports and not any(port.endswith("_signed") or port == "shift" for port in ports)
    control = stream_bounds._control(hardware)
    assert (control["x_signed"] == 1).all() and (control["w_signed"] == 1).all()
    assert control["shift"][:9, 0].tolist() == [*range(8), 0]
    assert control["negative"][:9, 0].tolist() == [0] * 7 + [1, 0]
