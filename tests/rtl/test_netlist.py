"""Netlists: read from Verilog and JSON, ordered, and refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitwright.quant import InputError
from bitwright.rtl import liberty, technology, yosys
from bitwright.rtl import netlist as netlists

NANGATE45 = technology.TECHNOLOGIES["nangate45"]
PORTS = "input clk, input a, input b, output y"
ADDER = """
module top(input clk, input [1:0] a, input b, output [1:0] y, output carry);
  wire [1:0] sum;
  wire c0;
  FA_X1 low (.A(a[0]), .B(b), .CI(y[0]), .S(sum[0]), .CO(c0));
  HA_X1 high (.A(a[1]), .B(c0), .S(sum[1]), .CO(carry));
  DFF_X1 \\r[1] (.CK(clk), .D(sum[1]), .Q(y[1]));
  DFF_X1 \\r[0] (.CK(clk), .D(sum[0]), .Q(y[0]));
endmodule
"""


def top(body: str, ports: str = PORTS) -> str:
    return f"module top({ports});\n{body}\nendmodule\n"


def with_cell(name: str, **ff: Any) -> technology.Technology:
    """Nangate45 and a flip-flop that differs from DFF_X1."""
    base = NANGATE45.cells["DFF_X1"]
    assert base.ff is not None
    pins = {**base.pins, "R": base.pins["D"]}
    cell = replace(base, name=name, pins=pins, ff=replace(base.ff, **ff))
    return replace(NANGATE45, name="more", cells={**NANGATE45.cells, name: cell})


def facts(netlist: netlists.Netlist) -> Any:
    return (
        netlist.top,
        netlist.nets,
        netlist.inputs,
        netlist.outputs,
        netlist.clock,
        [(i.name, i.cell.name, dict(i.pins)) for i in netlist.instances],
        netlist.levels,
    )


# ------------------------------------------------------------------ reading


def test_verilog_and_json_are_the_same_netlist(tmp_path: Path) -> None:
    script = "read_verilog adder.v\nwrite_json adder.json\n"
    _, files = yosys.run_yosys(script, {"adder.v": ADDER}, ["adder.json"])
    (tmp_path / "adder.v").write_text(ADDER)
    (tmp_path / "adder.json").write_text(files["adder.json"])
    verilog = netlists.read_netlist(tmp_path / "adder.v", NANGATE45)
    for other in (tmp_path / "adder.json", files["adder.json"], ADDER):
        assert facts(netlists.read_netlist(other, NANGATE45)) == facts(verilog)
    by_net = {name: number for number, name in enumerate(verilog.nets)}
    assert by_net.keys() == {
        *("1'b0", "1'b1", "clk", "a[0]", "a[1]", "b", "y[0]", "y[1]", "carry"),
        *("sum[0]", "sum[1]", "c0"),
    }
    assert verilog.nets[:2] == ("1'b0", "1'b1")
    assert verilog.clock == "clk"
    assert verilog.inputs == {"a": (by_net["a[0]"], by_net["a[1]"]), "b": (by_net["b"],)}
    assert verilog.outputs == {
        "y": (by_net["y[0]"], by_net["y[1]"]),
        "carry": (by_net["carry"],),
    }
    pins = {
        i.name: {pin: verilog.nets[net] for pin, net in i.pins.items()} for i in verilog.instances
    }
    assert pins == {
        "r[0]": {"CK": "clk", "D": "sum[0]", "Q": "y[0]"},
        "r[1]": {"CK": "clk", "D": "sum[1]", "Q": "y[1]"},
        "low": {"A": "a[0]", "B": "b", "CI": "y[0]", "S": "sum[0]", "CO": "c0"},
        "high": {"A": "a[1]", "B": "c0", "S": "sum[1]", "CO": "carry"},
    }
    # Flip-flops, then what follows from them, then what follows from that.
    order = [i.name for i in verilog.instances]
    assert (set(order[:2]), order[2:]) == ({"r[0]", "r[1]"}, ["low", "high"])
    assert [i.name for i in verilog.flip_flops] == order[:2]
    assert {i.name: i.where for i in verilog.instances} == {
        "low": "adder.v line 5",
        "high": "adder.v line 6",
        "r[1]": "adder.v line 7",
        "r[0]": "adder.v line 8",
    }


def test_sinks_are_the_pins_on_a_net_without_clocks() -> None:
    netlist = netlists.read_netlist(ADDER, NANGATE45)
    sinks = {
        netlist.nets[net]: {(instance.name, pin) for instance, pin in found}
        for net, found in enumerate(netlist.sinks)
    }
    assert sinks["c0"] == {("high", "B")}
    assert sinks["y[0]"] == {("low", "CI")}
    assert sinks["sum[1]"] == {("r[1]", "D")}
    assert sinks["clk"] == sinks["y[1]"] == sinks["carry"] == set()


def test_names_of_people_come_before_names_of_tools() -> None:
    body = "wire tmp7, total; assign total = tmp7;\n"
    body += "INV_X1 u (.A(a), .ZN(tmp7)); INV_X1 v (.A(tmp7), .ZN(y));"
    nets = netlists.read_netlist(top(body), NANGATE45).nets
    assert set(nets) == {"1'b0", "1'b1", "clk", "a", "b", "total", "y"}


def test_the_module_that_no_other_uses_is_taken() -> None:
    inverter = "INV_X1 u (.A(a), .ZN(y));"
    two = top(inverter) + "module late(input a, output y); INV_X1 v (.A(a), .ZN(y)); endmodule\n"
    assert netlists.read_netlist(two, NANGATE45, top="top").instances[0].name == "u"
    assert netlists.read_netlist(two, NANGATE45, top="late").instances[0].name == "v"
    with pytest.raises(InputError, match="^pair.v holds several modules, late, top; say which one"):
        netlists.read_netlist(two, NANGATE45, name="pair.v")
    # A model of a cell beside the netlist is no module of it.
    model = "module INV_X1(input A, output ZN); assign ZN = ~A; endmodule\n"
    assert netlists.read_netlist(top(inverter) + model, NANGATE45).top == "top"


# ------------------------------------------------------------------ levels and depth


@pytest.mark.parametrize(
    ("body", "levels", "depth"),
    [
        ("assign y = a;", 0, 0),
        ("INV_X1 u (.A(a), .ZN(y));", 1, 0),
        (
            "wire p, q; INV_X1 u (.A(q), .ZN(y)); INV_X1 v (.A(a), .ZN(p)); "
            "INV_X1 w (.A(p), .ZN(q));",
            3,
            0,
        ),
        ("DFF_X1 f (.CK(clk), .D(a), .Q(y));", 0, 1),
        (
            "wire p, q; DFF_X1 h (.CK(clk), .D(q), .Q(y)); DFF_X1 f (.CK(clk), .D(a), .Q(p)); "
            "DFF_X1 g (.CK(clk), .D(p), .Q(q));",
            0,
            3,
        ),
        # An accumulator: one register that feeds itself.
        ("wire s; XOR2_X1 x (.A(a), .B(y), .Z(s)); DFF_X1 f (.CK(clk), .D(s), .Q(y));", 1, 1),
        # Two inputs, the longer way counts: a is in g after two cycles, b in one.
        (
            "wire p, s; DFF_X1 f (.CK(clk), .D(a), .Q(p)); XOR2_X1 x (.A(p), .B(b), .Z(s)); "
            "DFF_X1 g (.CK(clk), .D(s), .Q(y));",
            1,
            2,
        ),
        # A ring that no input reaches is no part of the pipeline.
        (
            "wire p, q; DFF_X1 f (.CK(clk), .D(q), .Q(p)); INV_X1 i (.A(p), .ZN(q)); "
            "DFF_X1 g (.CK(clk), .D(a), .Q(y));",
            1,
            1,
        ),
    ],
)
def test_levels_and_depth_by_hand(body: str, levels: int, depth: int) -> None:
    netlist = netlists.read_netlist(top(body), NANGATE45)
    assert (netlist.levels, netlist.depth) == (levels, depth)


def test_a_computed_reset_comes_before_its_flip_flop_and_that_before_what_reads_it() -> None:
    tech = with_cell("DFFR", clear="!R")

    def cell(kind: str, **pins: int) -> dict[str, Any]:
        return {"type": kind, "attributes": {}, "connections": {p: [n] for p, n in pins.items()}}

    # Written backwards: each cell follows from the next one.
    cells = {
        "late": cell("INV_X1", A=7, ZN=8),
        "second": cell("DFFR", CK=2, D=3, R=6, Q=7),
        "between": cell("INV_X1", A=5, ZN=6),
        "first": cell("DFFR", CK=2, D=3, R=4, Q=5),
        "early": cell("INV_X1", A=3, ZN=4),
    }
    module = {
        "ports": {
            "clk": {"direction": "input", "bits": [2]},
            "a": {"direction": "input", "bits": [3]},
            "y": {"direction": "output", "bits": [8]},
        },
        "cells": cells,
        "netnames": {f"n{i}": {"hide_name": 0, "bits": [i]} for i in range(2, 9)},
    }
    netlist = netlists.read_netlist(json.dumps({"modules": {"top": module}}), tech)
    assert [i.name for i in netlist.instances] == list(cells)[::-1]
    assert netlist.levels == 3
    assert [i.where for i in netlist.instances] == [""] * 5


def test_a_clock_in_parentheses_is_a_rising_one() -> None:
    tech = with_cell("DFFP", clocked_on="(CK)")
    netlist = netlists.read_netlist(top("DFFP f (.CK(clk), .D(a), .R(b), .Q(y));"), tech)
    assert netlist.clock == "clk"
    assert [pin for pin in ("CK", "D", "R") if netlists.is_clock(tech.cells["DFFP"], pin)] == ["CK"]


# ------------------------------------------------------------------ refused


LATCHES = """
library (gates) {
  time_unit : "1ns"; capacitive_load_unit (1, ff); nom_voltage : 1;
  cell (INV) {
    area : 1; pin (A) { direction : input; capacitance : 1; }
    pin (Y) {
      direction : output; function : "!A";
      timing () {
        related_pin : "A"; timing_sense : negative_unate;
        cell_rise (scalar) { values ("1"); } cell_fall (scalar) { values ("1"); }
        rise_transition (scalar) { values ("1"); } fall_transition (scalar) { values ("1"); }
      }
    }
  }
  cell (DFF) {
    area : 2; ff (IQ, IQN) { clocked_on : "CK"; next_state : "D"; }
    pin (CK) { direction : input; capacitance : 1; clock : true; }
    pin (D) { direction : input; capacitance : 1; }
    pin (Q) { direction : output; function : "IQ"; }
  }
  cell (KEEP) {
    latch (IQ, IQN) { enable : "G"; data_in : "D"; } pin (G) { direction : input; }
    pin (D) { direction : input; } pin (Q) { direction : output; function : "IQ"; }
  }
  cell (SECRET) { dont_use : true; pin (Y) { direction : output; function : "1"; } }
}
"""


def refused(text: str | Path, tech: technology.Technology = NANGATE45, **how: Any) -> str:
    with pytest.raises(InputError) as error:
        netlists.read_netlist(text, tech, **how)
    message = str(error.value)
    assert "\n" not in message
    return message


REFUSED = [
    (
        "INV_X9 u (.A(a), .ZN(y));",
        "cell u of top (netlist.v line 2) is a INV_X9, which technology nangate45 does not "
        "describe; use the Liberty files that it was mapped with",
    ),
    (
        "INV_X1 u (.A(a), .ZN(y));\n\nNOR9 v (.A(a));",
        "cell v of top (netlist.v line 4) is a NOR9, which technology nangate45 does not "
        "describe; use the Liberty files that it was mapped with",
    ),
    (
        "wire p, q; INV_X1 u (.A(p), .ZN(q)); NAND2_X1 v (.A1(q), .A2(a), .ZN(p)); assign y = q;",
        "top has a combinational loop through net q (cell u (INV_X1, netlist.v line 2)) <- p (cell "
        "v (NAND2_X1, netlist.v line 2)); break it with a flip-flop",
    ),
    (
        "wire p; NAND2_X1 u (.A1(a), .A2(p), .ZN(p)); assign y = p;",
        "top has a combinational loop through net p (cell u (NAND2_X1, netlist.v line 2)); break "
        "it with a flip-flop",
    ),
    (
        "wire p; INV_X1 u (.A(p), .ZN(y));",
        "net p of top has no driver, and cell u (INV_X1, netlist.v line 2) reads it at pin A; "
        "connect it",
    ),
    (
        "INV_X1 u (.A(a), .ZN());",
        "net y of top has no driver, and output y shows it; connect it",
    ),
    (
        "INV_X1 u (.A(a), .ZN(y));\nINV_X1 v (.A(b), .ZN(y));",
        "net y of top has two drivers: cell v (INV_X1, netlist.v line 3) and cell u (INV_X1, "
        "netlist.v line 2)",
    ),
    (
        "INV_X1 u (.A(a), .ZN(b)); assign y = b;",
        "net b of top has two drivers: cell u (INV_X1, netlist.v line 2) and an input",
    ),
    (
        "INV_X1 u (.A(a), .ZN(1'b1)); assign y = b;",
        "net 1'b1 of top has two drivers: cell u (INV_X1, netlist.v line 2) and a constant",
    ),
    (
        "INV_X1 u (.A(), .ZN(y));",
        "cell u of top (netlist.v line 2): pin A of INV_X1 is not connected",
    ),
    (
        "INV_X1 u (.ZN(y));",
        "cell u of top (netlist.v line 2): pin A of INV_X1 is not connected",
    ),
    (
        "INV_X1 u (.A(a), .Z(y));",
        "cell u of top (netlist.v line 2): INV_X1 has no pin Z; it has A, ZN",
    ),
    (
        "INV_X1 u (a, y);",
        "cell u of top (netlist.v line 2): connect its pins by their names",
    ),
    (
        "INV_X1 u (.A(1'bx), .ZN(y));",
        "pin A of cell u (netlist.v line 2) is x in top; every pin of a netlist needs a net or 0 "
        "or 1",
    ),
    ("assign y = 1'bz;", "port y is z in top; every pin of a netlist needs a net or 0 or 1"),
    (
        "wire g; AND2_X1 u (.A1(clk), .A2(a), .ZN(g)); DFF_X1 f (.CK(g), .D(b), .Q(y));",
        "cell f (DFF_X1, netlist.v line 2) of top is clocked by net g, which is no input; gated "
        "and divided clocks are not simulated",
    ),
    (
        "DFF_X1 f (.CK(clk), .D(b), .Q(y)); DFF_X1 g (.CK(a), .D(b));",
        "cell g (DFF_X1, netlist.v line 2) of top is clocked by a, others by clk; one clock is "
        "simulated",
    ),
    (
        "wire n; DFF_X1 f (.CK(clk), .D(n), .Q(y)); NAND2_X1 g (.A1(clk), .A2(b), .ZN(n));",
        "cell g (NAND2_X1, netlist.v line 2) of top reads the clock clk at pin A1; gated clocks "
        "are not simulated",
    ),
    (
        "DFF_X1 f (.CK(clk), .D(clk), .Q(y));",
        "cell f (DFF_X1, netlist.v line 2) of top reads the clock clk at pin D; gated clocks are "
        "not simulated",
    ),
    (
        "DFF_X1 f (.CK(clk), .D(a)); assign y = clk;",
        "output y of top shows the clock clk; a clock that leaves the netlist is not simulated",
    ),
    (
        "sub s (.a(a), .y(y)); endmodule\nmodule sub(input a, output y); INV_X1 u (.A(a), .ZN(y));",
        "cell s of top (netlist.v line 2) is module sub; flatten the netlist first",
    ),
    (
        "INV_X1 u (.A(a), .ZN(y)",
        "netlist is not Verilog that Yosys reads (line 3): syntax error, unexpected "
        "TOK_ENDMODULE, expecting ')' or ','",
    ),
]


@pytest.mark.parametrize(("body", "message"), REFUSED)
def test_bad_netlists_say_what_is_wrong_and_where(body: str, message: str) -> None:
    assert refused(top(body)) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "reg q; always @* if (a) q = b; assign y = q;",
            r"cell \S+ of top \(netlist\.v line 2\) is a latch \(\$dlatch\); only flip-flops are "
            "simulated",
        ),
        (
            "assign y = a & b;",
            r"cell \S+ of top \(netlist\.v line 2\) is \$and, logic that is not mapped to cells; "
            "synthesise it first",
        ),
        (
            "reg q; always @(posedge clk) q <= a; assign y = q;",
            r"cell \S+ of top \(netlist\.v line 2\) is \$dff, logic that is not mapped to cells; "
            "synthesise it first",
        ),
    ],
)
def test_behaviour_is_not_a_netlist(body: str, message: str) -> None:
    """Cells that Yosys makes have names of its own, which change."""
    assert re.fullmatch(message, refused(top(body)))


def test_an_inout_port_is_refused() -> None:
    text = top("INV_X1 u (.A(a), .ZN(y));", "inout a, output y")
    assert refused(text) == ("port a of top is inout; inputs and outputs alone are simulated")


def test_a_falling_edge_is_refused() -> None:
    text = top("DFFN f (.CK(clk), .D(a), .R(b), .Q(y));")
    assert refused(text, with_cell("DFFN", clocked_on="!CK")) == (
        "cell f (DFFN, netlist.v line 2) of top is clocked on '!CK'; only rising edges are "
        "simulated, map with a flip-flop that has one"
    )


def test_a_loop_through_a_reset_is_one() -> None:
    text = top("wire n; DFFR f (.CK(clk), .D(a), .R(n), .Q(y)); INV_X1 u (.A(y), .ZN(n));")
    assert refused(text, with_cell("DFFR", clear="R")).startswith(
        "top has a combinational loop through net "
    )


def test_a_long_loop_is_cut_short() -> None:
    wires = "wire [5:0] n; assign y = n[0];\n"
    ring = "".join(f"INV_X1 u{i} (.A(n[{i}]), .ZN(n[{(i + 1) % 6}]));\n" for i in range(6))
    message = refused(top(wires + ring))
    assert message.endswith(" and 2 more; break it with a flip-flop")
    assert message.count("<-") == 3


def test_cells_that_the_liberty_has_but_that_cannot_be_simulated(tmp_path: Path) -> None:
    (tmp_path / "gates.lib").write_text(LATCHES)
    tech = liberty.read_liberty([tmp_path / "gates.lib"])
    assert refused(top("KEEP k (.G(a), .D(b), .Q(y));"), tech, name="kept.v") == (
        "cell k of top (kept.v line 2) is a latch (KEEP); only flip-flops are simulated"
    )
    assert refused(top("SECRET k (.Y(y));"), tech) == (
        "cell k of top (netlist.v line 2) is a SECRET, which technology gates describes as "
        "dont_use; use the Liberty files that it was mapped with"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "netlist holds no module"),
        ("// nothing here\n", "netlist holds no module"),
        ('{"modules": {}}', "netlist holds no module"),
        ("{}", "netlist is neither Verilog nor the JSON of Yosys (write_json)"),
        ("{ cut sho", "netlist is neither Verilog nor the JSON of Yosys (write_json)"),
        ('{"modules": 3}', "netlist is neither Verilog nor the JSON of Yosys (write_json)"),
        ('{"modules": {"t": {}}}', "netlist is neither Verilog nor the JSON of Yosys (write_json)"),
        (
            '{"modules": {"t": {"ports": {}, "cells": [], "netnames": {}}}}',
            "netlist is neither Verilog nor the JSON of Yosys (write_json)",
        ),
    ],
)
def test_texts_that_are_no_netlist(text: str, message: str) -> None:
    assert refused(text) == message


def test_a_module_that_is_not_there() -> None:
    text = top("INV_X1 u (.A(a), .ZN(y));")
    assert refused(text, top="cpu", name="chip") == "chip has no module 'cpu'; it has top"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.v").write_bytes(b"\xff\xfe\x00")
    assert refused(tmp_path / "binary.v") == (
        "binary.v cannot be read: it is not text; give a netlist as Verilog or Yosys JSON"
    )
    assert refused(tmp_path / "none.v") == (
        "none.v cannot be read: No such file or directory; give a netlist as Verilog or Yosys JSON"
    )
