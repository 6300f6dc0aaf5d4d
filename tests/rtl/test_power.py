"""Energy of netlists: worked by hand on cells with round numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitwright.quant import InputError
from bitwright.rtl import activity, power, synthesise, technology, wire_load
from bitwright.rtl import netlist as netlists


def always(energy: float) -> technology.EnergyTable:
    return technology.EnergyTable((10.0,), (1.0,), ((energy,),))


def output(
    function: str, pin: str, internal: technology.EnergyTable | None
) -> technology.OutputPin:
    """Slews are 20 ps, whatever drives and loads: one point each."""
    tables: Any = ((20.0,),)
    sense = {pin: "non_unate"}
    points = ((10.0,), (1.0,))
    return technology.OutputPin(
        function, sense, None, *points, tables, tables, tables, tables, internal
    )


def round_technology(**changes: Any) -> technology.Technology:
    """2 V, so that 1/2 C V^2 is 2 fJ for each fF of C.

    INV: 3 fF at its input, 5 fJ a toggle, 100 nW. BUF: 4 fF, 6 fJ, and 0.25 fJ whenever its input
    toggles, 10 nW. DFF: D 1 fF and 0.5 fJ, CK 2 fF and 0.75 fJ an edge, Q 7 fJ, 1000 nW.
    """
    inv = technology.Cell(
        "INV", 1.0, 100.0, {"A": technology.InputPin(3.0)}, {"Y": output("!A", "A", always(5.0))}
    )
    buffer = technology.Cell(
        "BUF",
        1.0,
        10.0,
        {"A": technology.InputPin(4.0, internal=always(0.25))},
        {"Y": output("A", "A", always(6.0))},
    )
    inv = replace(inv, outputs={"Y": replace(inv.outputs["Y"], sense={"A": "negative_unate"})})
    buffer = replace(
        buffer, outputs={"Y": replace(buffer.outputs["Y"], sense={"A": "positive_unate"})}
    )
    dff = technology.Cell(
        "DFF",
        4.0,
        1000.0,
        {
            "CK": technology.InputPin(2.0, clock=True, internal=always(0.75)),
            "D": technology.InputPin(1.0, internal=always(0.5)),
        },
        {"Q": output("IQ", "CK", always(7.0))},
        technology.FlipFlop("CK", "D", ("IQ", "IQN")),
    )
    cells = {cell.name: cell for cell in (inv, buffer, dff)}
    return replace(technology.Technology("round", cells, 2.0, "made up", 1000.0), **changes)


#: 0.5 fF at one sink, 1 fF at two, 2 fF more for every other.
WIRES = technology.WireLoad("round", 0.5, (1.0, 2.0), 4.0, "made up")
TINY = """
module tiny(input clk, input d, output y, output z);
  DFF f (.CK(clk), .D(d), .Q(q));
  INV u (.A(q), .Y(y));
  INV v (.A(q), .Y(z));
endmodule
"""


def run_tiny(tech: technology.Technology, **how: Any) -> power.Energy:
    """d is 0 1 0 0 1 0: it toggles 4 times in 5 cycles; q, one later, 3 times, y and z with it."""
    netlist = netlists.read_netlist(TINY, tech)
    ran = activity.simulate(netlist, {"d": np.array([[0, 1, 0, 0, 1, 0]]).T})
    return power.power_model(netlist, **how).energy(ran, clock_ps=1000.0)


# ------------------------------------------------------------------ by hand


def test_a_flip_flop_that_drives_two_inverters() -> None:
    energy = run_tiny(round_technology(), wires=WIRES)
    d, q, y = 4 / 5, 3 / 5, 3 / 5  # toggles a cycle: of d; of q; of y, the same of z
    assert energy.components == pytest.approx(
        {
            # q: two pins and a wire to two sinks; y and z: a wire to the output, no pin.
            "switching": 2 * (q * (3 + 3 + 1) + 2 * y * 0.5),
            # Q; the two inverters; the D pin.
            "internal": 7 * q + 2 * 5 * y + 0.5 * d,
            # d: the D pin and a wire to one sink.
            "inputs": 2 * d * (1 + 0.5),
            # Two edges: the CK pin and a wire of its own, and the energy inside.
            "clock": 2 * (2 * (2 + 0.5) + 0.75),
            # nW times ns are 1e-18 J: 1e-3 fJ.
            "leakage": (1000 + 2 * 100) * 1e-3,
        },
        rel=1e-12,
    )
    assert energy.components["switching"] == pytest.approx(9.6)
    assert energy.components["clock"] == pytest.approx(11.5)
    assert energy.total_fJ == pytest.approx(9.6 + 10.6 + 2.4 + 11.5 + 1.2)
    assert energy.blocks == {power.UNNAMED: pytest.approx(energy.total_fJ)}


def test_without_wires_the_pins_remain() -> None:
    energy = run_tiny(round_technology(), wires=wire_load.NO_WIRES)
    assert energy.component("switching") == pytest.approx(2 * 3 / 5 * 6)
    assert energy.component("inputs") == pytest.approx(2 * 4 / 5 * 1)
    assert energy.component("clock") == pytest.approx(2 * (2 * 2 + 0.75))


def test_the_technology_s_own_wires_are_the_default() -> None:
    own = run_tiny(round_technology(wire_load=WIRES))
    assert own.components == run_tiny(round_technology(), wires=WIRES).components
    # One whose name is not shipped has none.
    none = run_tiny(round_technology())
    assert none.components == run_tiny(round_technology(), wires=wire_load.NO_WIRES).components


def test_a_load_outside_counts_on_every_output() -> None:
    plain = run_tiny(round_technology(), wires=WIRES)
    loaded = run_tiny(round_technology(), wires=WIRES, output_load_fF=10.0)
    more = loaded.component("switching") - plain.component("switching")
    assert more == pytest.approx(2 * 3 / 5 * 2 * 10)
    for name in ("internal", "inputs", "clock", "leakage"):
        assert loaded.component(name) == plain.component(name)


def test_energy_inside_follows_slew_and_load_to_the_edge_of_the_table() -> None:
    tech = round_technology()
    # Slew of q is 20 ps: between 10 (0 and 8 fJ at 0 and 8 fF) and 30 ps (2 and 10 fJ).
    table = technology.EnergyTable((10.0, 30.0), (0.0, 8.0), ((0.0, 8.0), (2.0, 10.0)))
    inv = tech.cells["INV"]
    inv = replace(inv, outputs={"Y": replace(inv.outputs["Y"], internal=table)})
    tech = replace(tech, cells={**tech.cells, "INV": inv})

    def inside(load: float) -> float:
        """Of the two inverters in a cycle in which they toggle."""
        energy = run_tiny(tech, wires=wire_load.NO_WIRES, output_load_fF=load)
        return (energy.component("internal") - 7 * 3 / 5 - 0.5 * 4 / 5) / (3 / 5) / 2

    assert inside(0.0) == pytest.approx(1.0)
    assert inside(4.0) == pytest.approx(5.0)
    assert inside(100.0) == pytest.approx(9.0)  # the last point, not beyond


@pytest.mark.parametrize(("slews", "expected"), [((30.0, 40.0), 2.0), ((5.0, 10.0), 4.0)])
def test_slews_beyond_the_table_count_as_its_edge(
    slews: tuple[float, float], expected: float
) -> None:
    """Q's slew is 20 ps."""
    tech = round_technology()
    table = technology.EnergyTable(slews, (0.0,), ((2.0,), (4.0,)))
    inv = tech.cells["INV"]
    inv = replace(inv, outputs={"Y": replace(inv.outputs["Y"], internal=table)})
    energy = run_tiny(replace(tech, cells={**tech.cells, "INV": inv}), wires=wire_load.NO_WIRES)
    inverters = energy.component("internal") - 7 * 3 / 5 - 0.5 * 4 / 5
    assert inverters == pytest.approx(2 * 3 / 5 * expected)


def test_slews_follow_the_netlist() -> None:
    """Energy inside a cell is looked up at the mean slew of its inputs."""
    tech = round_technology()
    table = technology.EnergyTable((0.0, 100.0), (0.0,), ((0.0,), (100.0,)))  # 1 fJ for each ps
    inv, buffer = tech.cells["INV"], tech.cells["BUF"]
    slow: Any = ((40.0,),)
    inv = replace(inv, outputs={"Y": replace(inv.outputs["Y"], internal=table)})
    inv = replace(inv, outputs={"Y": replace(inv.outputs["Y"], slew_fall_ps=slow)})
    buffer = replace(buffer, outputs={"Y": replace(buffer.outputs["Y"], internal=table)})
    tech = replace(tech, cells={**tech.cells, "INV": inv, "BUF": buffer})
    text = "module top(input a, output y, output p);\n"
    text += "INV u (.A(a), .Y(p)); BUF v (.A(p), .Y(y));\nendmodule\n"
    netlist = netlists.read_netlist(text, tech)
    model = power.power_model(netlist, wires=wire_load.NO_WIRES)
    internal = dict(zip(netlist.nets, model.toggle_fJ[0, 1], strict=True))
    # a arrives with the slew of a buffer that drives four: 20 ps. INV: (20 + 40) / 2.
    assert internal["p"] == pytest.approx(20 + 0.25)  # and what BUF takes at its input
    assert internal["y"] == pytest.approx(30)


# ------------------------------------------------------------------ supply and period


def test_dynamic_energy_goes_with_the_square_of_the_supply_and_leakage_with_it() -> None:
    plain = run_tiny(round_technology(), wires=WIRES).components
    for supply in (1.0, 3.0):
        scaled = run_tiny(round_technology(), wires=WIRES, voltage=supply).components
        for name in power.COMPONENTS:
            exponent = 1 if name == "leakage" else 2
            assert scaled[name] == pytest.approx(plain[name] * (supply / 2) ** exponent)


def test_leakage_goes_with_the_period_and_nothing_else_does() -> None:
    netlist = netlists.read_netlist(TINY, round_technology())
    ran = activity.simulate(netlist, {"d": np.array([[0, 1, 0, 0, 1, 0]]).T})
    model = power.power_model(netlist)
    slow, fast = model.energy(ran, 4000.0), model.energy(ran, 500.0)
    assert slow.component("leakage") == pytest.approx(8 * fast.component("leakage"))
    assert slow.component("leakage") == pytest.approx(1200 * 4000 * 1e-6)
    for name in power.COMPONENTS[:-1]:
        assert slow.component(name) == fast.component(name)


# ------------------------------------------------------------------ blocks

PIPELINE = """
module pipe(input clk, input d, input e, output y, output loose);
  wire [0:0] first2, n1, n2, shared;
  DFF f (.CK(clk), .D(n1), .Q(first2));
  INV a (.A(d), .Y(n1));
  INV b (.A(first2), .Y(n2));
  BUF c (.A(n2), .Y(shared));
  DFF \\g_reg (.CK(clk), .D(shared), .Q(second));
  INV h (.A(second), .Y(y));
  BUF k (.A(e), .Y(loose));
endmodule
"""


def pipeline() -> tuple[netlists.Netlist, activity.Activity]:
    netlist = netlists.read_netlist(PIPELINE, round_technology())
    rng = np.random.default_rng(0)
    streams = {name: rng.integers(2, size=(50, 100)) for name in ("d", "e")}
    return netlist, activity.simulate(netlist, streams)


def test_blocks_are_what_leads_to_their_registers() -> None:
    netlist, ran = pipeline()
    registers = {"in": ("first",), "out": ("second",), "unused": ("nothing",)}
    model = power.power_model(netlist, wires=wire_load.NO_WIRES, registers=registers)
    assert model.blocks == ("in", "out", power.UNNAMED)
    # a and f; b, c and g_reg; h and k.
    assert model.leakage_nW.tolist() == [100 + 1000, 100 + 10 + 1000, 100 + 10]
    assert model.clock_fJ.tolist() == [9.5, 9.5, 0]
    energy = model.energy(ran, 1000.0)
    per_net = dict(zip(netlist.nets, (ran.total / ran.cycles / ran.lanes).tolist(), strict=True))
    assert energy.fJ["in"] == pytest.approx(
        {
            "switching": 2 * (per_net["n1"] * 1 + per_net["first2"] * 3),
            "internal": per_net["n1"] * (5 + 0.5) + per_net["first2"] * 7,
            "inputs": 2 * per_net["d"] * 3,
            "clock": 9.5,
            "leakage": 1.1,
        }
    )
    assert energy.fJ[power.UNNAMED] == pytest.approx(
        {
            "switching": 0,
            "internal": per_net["y"] * 5 + per_net["loose"] * 6 + per_net["e"] * 0.25,
            "inputs": 2 * per_net["e"] * 4,
            "clock": 0,
            "leakage": 0.11,
        }
    )


def test_a_cell_before_two_blocks_belongs_to_the_first() -> None:
    text = """
module top(input clk, input d, output q, output z);
  INV u (.A(d), .Y(n));
  DFF f (.CK(clk), .D(n), .Q(q));
  BUF w (.A(n), .Y(m));
  DFF g (.CK(clk), .D(m), .Q(z));
endmodule
"""
    netlist = netlists.read_netlist(text, round_technology())
    for order, expected in ((("q", "z"), [1100, 1010]), (("z", "q"), [1110, 1000])):
        model = power.power_model(netlist, registers={name: (name,) for name in order})
        assert model.blocks == order
        assert model.leakage_nW.tolist() == expected


def test_blocks_and_components_add_up_to_the_total() -> None:
    netlist, ran = pipeline()
    whole = power.power_model(netlist, wires=WIRES).energy(ran, 1000.0)
    registers: Mapping[str, Sequence[str]] = {"in": ("first",), "out": ("second",)}
    parts = power.power_model(netlist, wires=WIRES, registers=registers).energy(ran, 1000.0)
    assert list(parts.fJ) == ["in", "out", power.UNNAMED]
    assert sum(parts.blocks.values()) == pytest.approx(whole.total_fJ)
    assert sum(parts.components.values()) == pytest.approx(parts.total_fJ)
    for name in power.COMPONENTS:
        assert parts.component(name) == pytest.approx(whole.component(name))
        assert whole.component(name) > 0


def test_words_average_to_the_dynamic_energy() -> None:
    netlist, ran = pipeline()
    energy = power.power_model(netlist, wires=WIRES).energy(ran, 1000.0)
    dynamic = energy.total_fJ - energy.component("leakage")
    assert energy.dynamic_fJ.shape == (2,)
    assert np.average(energy.dynamic_fJ, weights=[64, 36]) == pytest.approx(dynamic)
    # The second word is that of its 36 lanes alone.
    rng = np.random.default_rng(0)
    streams = {name: rng.integers(2, size=(50, 100))[:, 64:] for name in ("d", "e")}
    own = power.power_model(netlist, wires=WIRES).energy(
        activity.simulate(netlist, streams), 1000.0
    )
    assert own.dynamic_fJ.tolist() == [pytest.approx(energy.dynamic_fJ[1])]
    assert energy.dynamic_fJ[0] != pytest.approx(energy.dynamic_fJ[1], rel=1e-6)


# ------------------------------------------------------------------ errors


def test_a_technology_without_energies() -> None:
    why = "plain.lib holds no internal_power; give Liberty files that do"
    netlist = netlists.read_netlist(TINY, round_technology(no_power=why))
    with pytest.raises(InputError) as error:
        power.power_model(netlist)
    assert str(error.value) == why


def test_a_cell_without_energies() -> None:
    tech = round_technology()
    inv = tech.cells["INV"]
    inv = replace(inv, outputs={"Y": replace(inv.outputs["Y"], internal=None)})
    netlist = netlists.read_netlist(TINY, replace(tech, cells={**tech.cells, "INV": inv}))
    with pytest.raises(
        InputError,
        match=r"^cell INV of round has no power table \(internal_power\) for output Y; give "
        r"Liberty files with one, or mark the cell dont_use$",
    ):
        power.power_model(netlist)


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0"), (-0.9, "-0.9"), (float("nan"), "nan")])
def test_supplies_and_periods_that_are_none(value: float, shown: str) -> None:
    with pytest.raises(InputError, match=f"^voltage is {shown} V; above 0$"):
        run_tiny(round_technology(), voltage=value)
    netlist = netlists.read_netlist(TINY, round_technology())
    ran = activity.simulate(netlist, {"d": np.array([[0, 1, 0, 0, 1, 0]]).T})
    with pytest.raises(InputError, match=f"^clock_ps is {shown}; a period above 0 ps$"):
        power.power_model(netlist).energy(ran, value)


# ------------------------------------------------------------------ shipped technologies


@pytest.mark.parametrize(
    ("name", "inverter", "pin", "most"),
    [
        # 1/2 C V^2 of four inputs is 3.9 fJ at 1.1 V and 1.6 fF a pin, 11.4 at 1.8 V and 1.8 fF,
        # 0.5 at 0.7 V and 0.5 fF; the wire adds up to as much, and the inside of the cell less
        # than what it drives: below four times the pins'.
        ("nangate45", "INV_X1", "ZN", 16.0),
        ("sky130hd", "sky130_fd_sc_hd__inv_1", "Y", 50.0),
        ("asap7", "INVx1_ASAP7_75t_R", "Y", 2.5),
    ],
)
def test_an_inverter_that_drives_four(name: str, inverter: str, pin: str, most: float) -> None:
    tech = technology.TECHNOLOGIES[name]
    body = f"{inverter} drive (.A(a), .{pin}(p));\n"
    body += "".join(f"{inverter} u{i} (.A(p), .{pin}(y[{i}]));\n" for i in range(4))
    netlist = netlists.read_netlist(
        f"module top(input a, output [3:0] y);\n{body}\nendmodule\n", tech
    )
    model = power.power_model(netlist)
    net = netlist.nets.index("p")
    switching, internal, _ = model.toggle_fJ[:, :, net].sum(axis=0)
    cap = tech.cells[inverter].pins["A"].cap_fF
    pins = 4 * cap * tech.voltage**2 / 2
    assert pins < switching < 3 * pins
    assert 0 < internal < 2 * pins
    assert switching + internal < most


@pytest.mark.parametrize("name", list(technology.TECHNOLOGIES))
def test_a_shipped_technology_has_energy_for_a_design(name: str) -> None:
    tech = technology.TECHNOLOGIES[name]
    verilog = "module acc (input clk, input [7:0] a, output reg [11:0] y);"
    verilog += " always @(posedge clk) y <= y + a; endmodule"
    netlist = netlists.read_netlist(synthesise(verilog, "acc", tech).netlist, tech)
    rng = np.random.default_rng(0)
    busy = activity.simulate(netlist, {"a": rng.integers(256, size=(40, 64))})
    calm = activity.simulate(netlist, {"a": np.zeros((40, 64), np.uint64)})
    model = power.power_model(netlist)
    moving, still = model.energy(busy, tech.clock_ps), model.energy(calm, tech.clock_ps)
    assert all(value > 0 for value in moving.components.values())
    for part in ("switching", "internal", "inputs"):
        assert still.component(part) == 0
    for part in ("clock", "leakage"):
        assert still.component(part) == moving.component(part)


def test_registers_with_inverted_outputs_bear_the_names_behind_their_inverters() -> None:
    """ASAP7's flip-flops have QN alone: the register `acc` stands behind an inverter."""
    module = {
        "ports": {
            "clk": {"direction": "input", "bits": [2]},
            "d": {"direction": "input", "bits": [3]},
            "y": {"direction": "output", "bits": [6]},
        },
        "cells": {
            "flip": {
                "type": "DFFHQNx1_ASAP7_75t_R",
                "connections": {"CLK": [2], "D": [4], "QN": [5]},
            },
            "before": {"type": "INVx1_ASAP7_75t_R", "connections": {"A": [3], "Y": [4]}},
            "behind": {"type": "INVx1_ASAP7_75t_R", "connections": {"A": [5], "Y": [6]}},
        },
        "netnames": {
            name: {"hide_name": hidden, "bits": [bit]}
            for name, hidden, bit in (
                *(("clk", 0, 2), ("d", 0, 3), ("acc3", 0, 6)),
                *(("_1_", 1, 4), ("_2_", 1, 5)),
            )
        },
    }
    asap7 = technology.TECHNOLOGIES["asap7"]
    netlist = netlists.read_netlist(json.dumps({"modules": {"top": module}}), asap7)
    model = power.power_model(netlist, registers={"accumulate": ("acc",)})
    # The inverter behind the register leads to none.
    assert model.blocks == ("accumulate", "other")
    assert model.clock_fJ[0] > 0 and model.clock_fJ[1] == 0


# ------------------------------------------------------------------ wire loads


def test_lengths_by_fanout_and_beyond() -> None:
    assert [WIRES.length_um(fanout) for fanout in range(6)] == [0, 1, 2, 6, 10, 14]
    assert [WIRES.cap_fF(fanout) for fanout in range(4)] == [0, 0.5, 1, 3]
    assert WIRES.length_um(-1) == 0
    assert WIRES.card == "round, 0.5 fF/um, 1 um at one sink; made up"


def test_no_wires() -> None:
    assert [wire_load.NO_WIRES.cap_fF(fanout) for fanout in (0, 1, 2, 100)] == [0, 0, 0, 0]
    assert wire_load.NO_WIRES.card == "none: wires left out"


def test_shipped_technologies_have_wires_and_others_none() -> None:
    assert set(wire_load.WIRE_LOADS) == set(technology.TECHNOLOGIES)
    for name, load in wire_load.WIRE_LOADS.items():
        assert wire_load.wire_load(technology.TECHNOLOGIES[name]) is load
        lengths = [load.length_um(fanout) for fanout in range(20)]
        assert lengths == sorted(set(lengths))
        assert 0.1 < load.fF_per_um < 0.25
    assert wire_load.wire_load(round_technology()) is wire_load.NO_WIRES
    own = replace(technology.TECHNOLOGIES["asap7"], wire_load=WIRES)
    assert wire_load.wire_load(own) is WIRES
    assert wire_load.WIRE_LOADS["nangate45"].length_um(1) == 1.746
    assert wire_load.WIRE_LOADS["nangate45"].length_um(13) == 27.032 + 2 * 5.0
    # 0.331 of Nangate45's.
    assert wire_load.WIRE_LOADS["asap7"].length_um(1) == pytest.approx(0.331 * 1.746, abs=1e-4)
