"""OpenSTA beside our energies: what it is given, what is read from it, and equal bookkeeping."""

import shutil
from dataclasses import replace

import pytest

from bitwright.experiments import opensta
from bitwright.quant import InputError
from bitwright.rtl import netlist, resolve_technology, wire_load

needs_sta = pytest.mark.skipif(
    shutil.which("sta") is None, reason="skipped: no sta (apt-get install opensta)"
)

VERILOG = """\
module top(clk, a, y, z);
  input clk, a;
  output y, z;
  wire q, n;
  DFF_X1 r (.CK(clk), .D(n), .Q(q), .QN(unused));
  NAND2_X1 g (.A1(a), .A2(q), .ZN(n));
  NAND2_X1 h (.A1(q), .A2(1'b1), .ZN(y));
  assign z = n;
endmodule
"""

NETLIST = """\
module top (clk, {n}, {y});
  input clk;
  output {n};
  output {y};
  wire {q};
  wire {unused};
  wire {a};
  wire n1;
  ZBUF k0 (.A(clk), .Z(c0));
  DFF_X1 i0 (.CK(c0), .D({n}), .Q({q}), .QN({unused}));
  NAND2_X1 i1 (.A1({a}), .A2({q}), .ZN({n}));
  NAND2_X1 i2 (.A1({q}), .A2(n1), .ZN({y}));
  ZDFF z{a_number} (.CK(clk), .Q({a}));
  ZDFF z1 (.CK(clk), .Q(n1));
endmodule
"""

LOG = """\
power: internal i0/IQ (DFF_X1)
power:  cap = 0.0000
power:        when act/ns duty  energy    power
power: internal i0/Q (DFF_X1)
power:  ^ energy =  4.00e-15 * 1.00 =  4.00e-15
power:  v energy =  2.00e-15 * 1.00 =  2.00e-15
power:  CK -> Q       0.04 1.00  8.37e-15  3.21e-07 no pg_pin
power: switching NAND2_X1/ZN activity = 3.84e+07 volt = 1.10 5.571e-08
power: internal i12/ZN (NAND2_X1)
power:  ^ energy = -1.00e-15 * 0.50 = -0.50e-15
power:  v energy =  3.00e-15 * 0.50 =  1.50e-15
power:  A1 -> ZN A2   0.04 0.50  1.00e-15  4.00e-08 no pg_pin
power:  ^ energy =  4.00e-15 * 1.50 =  6.00e-15
power:  v energy =  6.00e-15 * 1.50 =  9.00e-15
power:  A2 -> ZN A1   0.04 1.50  1.50e-14  6.00e-07 no pg_pin
power: internal i13/D (DFF_X1)
power:  ^ energy =  1.00e-15 * 0.00 =  0.00e+00
power:  v energy =  3.00e-15 * 0.00 =  0.00e+00
power:  D -> D CK*Q  0.00 0.00  0.00e+00  0.00e+00 no pg_pin
"""


@pytest.fixture(scope="module")
def technology():
    return resolve_technology("nangate45")


@pytest.fixture(scope="module")
def net(technology):
    return netlist.read_netlist(VERILOG, technology)


def test_a_missing_tool_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert opensta.main(["--pe", "dint4"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: OpenSTA (sta) is not installed; apt-get install opensta\n"


def test_nets_from_outside_come_from_free_flip_flops(net):
    number = {name: i for i, name in enumerate(net.nets)}
    names = {name: f"n{number[name]}" for name in ("a", "q", "unused", "y")}
    drain = dict(net.instances[1].pins)["ZN"]
    names |= {"n": f"n{drain}", "a_number": number["a"]}
    verilog, pins = opensta.free_sources(net)
    expected = NETLIST.format(**names)
    # Ports stand in the order of the nets' numbers.
    assert sorted(verilog.splitlines()[1:]) == sorted(expected.splitlines()[1:])
    assert verilog.startswith("module top (clk, n")
    assert pins == {
        "i0/D": drain,
        "i0/Q": number["q"],
        "i0/QN": number["unused"],
        "i1/A1": number["a"],
        "i1/A2": number["q"],
        "i1/ZN": drain,
        "i2/A1": number["q"],
        "i2/A2": netlist.ONE,
        "i2/ZN": number["y"],
        f"z{number['a']}/Q": number["a"],
        "z1/Q": netlist.ONE,
    }


def test_an_output_without_a_net_is_refused(technology):
    open_output = netlist.read_netlist(VERILOG.replace("unused", ""), technology)
    with pytest.raises(InputError) as error:
        opensta.free_sources(open_output)
    assert str(error.value) == (
        "output QN of r (DFF_X1) has no net; OpenSTA counts its energy, power_model does not"
    )


def test_activity_and_duty_of_a_random_stream(net):
    stream = opensta.random_stream(net, 3000.0)
    number = {name: i for i, name in enumerate(net.nets)}
    assert stream.activity.cycles == opensta.CYCLES
    assert list(stream.duty[:2]) == [0, 1]
    # 12800 random bits: the standard error is 0.0044.
    assert stream.duty[number["a"]] == pytest.approx(0.5, abs=0.02)
    assert stream.rate[number["a"]] == pytest.approx(0.5, abs=0.02)
    # q' = ~(a q): two states of a Markov chain, at 1 in two of three cycles.
    assert stream.duty[number["q"]] == pytest.approx(2 / 3, abs=0.02)
    assert stream.duty[number["y"]] == pytest.approx(1 / 3, abs=0.02)
    assert stream.rate[number["q"]] == stream.rate[number["y"]]


def test_energies_in_liberty_are_halved_at_clock_pins(technology):
    cells = {name: technology.cells[name] for name in ("BUF_X1", "DFF_X1")}
    single = opensta.single_energies(replace(technology, cells=cells))
    text = opensta.energy_liberty(single)
    flip = single.cells["DFF_X1"]
    assert "  default_operating_conditions : typ;\n" in text
    assert "voltage : 1.1;\n" in text
    pins = text[text.index("cell (DFF_X1)") :].split("    pin (")[1:]
    for body, data, share in zip(
        pins,
        (flip.pins["D"], flip.pins["CK"], flip.outputs["Q"], flip.outputs["QN"]),
        (1, 0.5, 1, 1),
        strict=True,
    ):
        energy = f"{data.internal.fJ[0][0] * share:.9g}"
        line = (
            f'      internal_power () {{ rise_power (scalar) {{ values ("{energy}"); }} '
            f'fall_power (scalar) {{ values ("{energy}"); }} }}'
        )
        assert body.splitlines()[1] == line


def test_free_cells_take_thresholds_and_wires(technology):
    wires = replace(wire_load.wire_load(technology), um=(2.0, 5.0), slope_um=4.0, fF_per_um=0.25)
    first = "library (x) {\n  slew_lower_threshold_pct_rise : 30.00 ;\n  nom_voltage : 1;\n}\n"
    text = opensta.free_liberty(first, technology, wires)
    assert (
        "  slew_lower_threshold_pct_rise : 30.00;\n"
        '  wire_load ("wires") {\n'
        "    resistance : 0;\n"
        "    capacitance : 0.25;\n"
        "    slope : 4;\n"
        "    fanout_length (0, 0);\n"
        "    fanout_length (1, 2);\n"
        "    fanout_length (2, 5);\n"
        "  }\n"
        '  default_wire_load : "wires";\n'
    ) in text
    assert text.count("{") == text.count("}")


def test_a_toggle_is_a_rise_or_a_fall_of_one_arc():
    found = list(opensta.arc_energies(LOG))
    assert [(i, pin) for i, pin, _ in found] == [(0, "Q"), (12, "ZN"), (13, "D")]
    # NAND2: the arcs' means are 1 and 5 fJ, their weights 0.5 and 1.5.
    assert [joule * 1e15 for *_, joule in found] == pytest.approx([3, 4, 2])


@needs_sta
def test_the_same_tables_give_the_same_energies(technology):
    verilog = opensta.synthesised("dint4", technology)
    net = netlist.read_netlist(verilog, technology)
    rows = opensta.bookkeeping(opensta.random_stream(net, technology.clock_ps), technology)
    assert [row.component for row in rows] == [
        "switching",
        "inputs",
        "internal and clock",
        "leakage",
        "total",
    ]
    for row in rows:
        assert row.ours > 0
        assert row.ours == pytest.approx(row.theirs, rel=1e-5), row.component


@needs_sta
def test_energies_are_put_together_from_arcs(technology, net, tmp_path):
    """Files with one energy a pin stand for the full ones: slews do not matter."""
    path = tmp_path / "single.lib"
    path.write_text(opensta.energy_liberty(opensta.single_energies(technology)))
    stream = opensta.random_stream(net, technology.clock_ps)
    found = opensta.independent(stream, VERILOG, technology, [path])
    for row in found.full:
        assert row.ours > 0
        # OpenSTA writes three digits of an arc's energy.
        assert row.ours == pytest.approx(row.theirs, rel=5e-3), row.component
    shipped = {row.component: row.ours for row in found.shipped}
    full = {row.component: row.ours for row in found.full}
    assert shipped["switching"] == full["switching"]
    assert shipped["clock"] > 1.3 * full["clock"]  # clock pins are halved in the file
    assert found.theirs.internal == pytest.approx(
        found.theirs.internal_right + 2 * found.theirs.clock_pins_right, rel=5e-3
    )


@needs_sta
def test_its_errors_are_told(technology, net):
    stream = opensta.random_stream(net, technology.clock_ps)
    wires = wire_load.wire_load(technology)
    with pytest.raises(RuntimeError, match="^OpenSTA failed: "):
        opensta.sta_energy(stream, technology, ["library (broken) {"], wires)


def test_files_with_energies_for_each_supply_are_refused(technology, net, tmp_path):
    supplies = opensta.energy_liberty(opensta.single_energies(technology)).replace(
        "internal_power () {", "internal_power () { related_pg_pin : VDD;", 1
    )
    path = tmp_path / "supplies.lib"
    path.write_text(supplies)
    stream = opensta.random_stream(net, technology.clock_ps)
    with pytest.raises(InputError) as error:
        opensta.independent(stream, VERILOG, technology, [path])
    assert str(error.value) == (
        f"{path} has energies for each supply (related_pg_pin), which OpenSTA adds up in ways that "
        "its log does not tell; compare with nangate45 or sky130hd"
    )
