"""Toggles of every net against Verilator's, which reads the netlist by itself."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from bitwright.quant import InputError
from bitwright.rtl import activity, find_design, saif, synthesise, technology
from bitwright.rtl import netlist as netlists

NANGATE45 = technology.TECHNOLOGIES["nangate45"]
SAIF = r"""
(SAIFILE
(SAIFVERSION "2.0")
(DURATION 12)
(INSTANCE TOP
 (NET
  (clk (T0 6) (T1 6) (TZ 0) (TX 0) (TB 0) (TC 11))
  (a (T0 2) (T1 10) (TZ 0) (TX 0) (TB 0) (TC 9))
 )
 (INSTANCE mac
  (NET
   (a (T0 2) (T1 10) (TZ 0) (TX 0) (TB 0) (TC 3))
   (sum\[0\] (T0 8) (T1 4) (TZ 0) (TX 0) (TB 0) (TC 2))
   (sum\[1\] (T0 12) (T1 0) (TZ 0) (TX 0) (TB 0) (TC 0))
  )
  (INSTANCE u1
   (NET
    (a (T0 1) (T1 11) (TZ 0) (TX 0) (TB 0) (TC 7))
   )
  )
 )
))
"""


def test_one_instance_of_a_file_is_read() -> None:
    assert saif.read_saif(SAIF, "mac") == {"a": 3, "sum[0]": 2, "sum[1]": 0}
    assert saif.read_saif(SAIF, "u1") == {"a": 7}
    assert saif.read_saif(SAIF, "TOP") == {"clk": 11, "a": 9}
    assert saif.read_saif(SAIF, "none") == {}


def streams_of(netlist: netlists.Netlist, cycles: int, lanes: int) -> dict[str, np.ndarray]:
    """Random, and sometimes held: a reset that is rare, data that stays."""
    rng = np.random.default_rng(1)
    streams = {}
    for port, nets in netlist.inputs.items():
        values = rng.integers(1 << len(nets), size=(cycles, lanes))
        rare = port in ("rst", "clear", "load", "last")
        keep = rng.random((cycles, lanes)) < 0.3
        for cycle in range(1, cycles):
            values[cycle] = np.where(keep[cycle], values[cycle - 1], values[cycle])
        streams[port] = np.where(rng.random(values.shape) < 0.8, 0, values) if rare else values
    return {port: values.astype(np.uint64) for port, values in streams.items()}


def compare(
    netlist: netlists.Netlist, verilog: str, streams: Mapping[str, np.ndarray], warmup: int
) -> tuple[int, int]:
    """Numbers of nets that Verilator counted and of those that moved, all of them equal."""
    lanes = max(values.shape[1] for values in streams.values())
    ran = activity.simulate(netlist, streams, warmup=warmup)
    expected: dict[str, int] = {}
    for lane in range(lanes):
        for net, count in saif.saif_toggles(netlist, verilog, streams, lane, warmup).items():
            expected[net] = expected.get(net, 0) + count
    counted = dict(zip(netlist.nets, ran.total.tolist(), strict=True))
    compared = [net for net in netlist.nets[2:] if net != netlist.clock]
    missing = [net for net in compared if net not in expected]
    assert not missing, f"{len(missing)} of {len(compared)} nets are not in the SAIF: {missing[:5]}"
    differ = {n: (counted[n], expected[n]) for n in compared if counted[n] != expected[n]}
    assert not differ, (
        f"{len(differ)} of {len(compared)} nets differ, such as {[*differ.items()][:5]}"
    )
    return len(compared), sum(counted[net] > 0 for net in compared)


@pytest.mark.simulator
@pytest.mark.slow
@pytest.mark.parametrize(
    ("pe", "name", "at_least"),
    [
        ("dint4", "nangate45", 400),
        ("bitmod", "nangate45", 1000),
        ("btc", "nangate45", 400),
        ("dint4", "asap7", 400),  # flip-flops whose only output is inverted
    ],
)
def test_toggles_of_every_net_of_a_pe(pe: str, name: str, at_least: int) -> None:
    tech = technology.TECHNOLOGIES[name]
    verilog = find_design(pe).blocks()["total"]
    module = re.findall(r"^\s*module\s+(\w+)", verilog, re.MULTILINE)[-1]
    result = synthesise(verilog, module, tech, 3000.0)
    netlist = netlists.read_netlist(result.netlist, tech, name=result.top)
    streams = streams_of(netlist, 60, 3)
    compared, moved = compare(netlist, result.netlist, streams, warmup=netlist.depth + 1)
    assert compared > at_least, f"{compared} nets were compared"
    assert moved > 0.9 * compared, f"{moved} of {compared} nets moved"


def async_technology() -> technology.Technology:
    """Nangate45 and a flip-flop with clear and preset."""
    dff = NANGATE45.cells["DFF_X1"]
    assert dff.ff is not None
    pins = {**dff.pins, "RN": technology.InputPin(1.0), "S": technology.InputPin(1.0)}
    cell = replace(dff, name="DFFRS", pins=pins, ff=replace(dff.ff, clear="!RN", preset="S"))
    return replace(NANGATE45, name="async", cells={**NANGATE45.cells, "DFFRS": cell})


RESET = """
module cleared(input clk, input [1:0] d, input rn, input set, output [2:0] q, output n);
  wire r, before;
  INV_X1 late (.A(q[1]), .ZN(n));
  DFFRS one (.CK(clk), .D(d[1]), .RN(r), .S(1'b0), .Q(q[1]));
  NAND2_X1 reset (.A1(q[2]), .A2(before), .ZN(r));
  DFF_X1 two (.CK(clk), .D(d[0]), .Q(q[2]));
  DFF_X1 three (.CK(clk), .D(q[2]), .Q(before));
  DFFRS zero (.CK(clk), .D(d[0]), .RN(rn), .S(set), .Q(q[0]));
endmodule
"""


@pytest.mark.simulator
@pytest.mark.slow
def test_clear_and_preset_against_verilator() -> None:
    netlist = netlists.read_netlist(RESET, async_technology())
    rng = np.random.default_rng(0)
    streams = {"d": rng.integers(4, size=(200, 3)), "rn": rng.integers(2, size=(200, 3))}
    # No preset on when clear ends: the Verilog model waits for an edge, a cell would not.
    was_clear = np.roll(streams["rn"], 1, axis=0)
    streams["set"] = rng.integers(2, size=(200, 3)) & streams["rn"] & was_clear
    compared, moved = compare(netlist, RESET, streams, warmup=3)
    assert (compared, moved) == (10, 10), f"{compared} nets were compared, {moved} moved"


@pytest.mark.simulator
def test_what_the_driver_cannot_run() -> None:
    text = "module top(input tick, input a, output y);\n"
    text += "DFF_X1 f (.CK(tick), .D(a), .Q(y));\nendmodule\n"
    netlist = netlists.read_netlist(text, NANGATE45)
    with pytest.raises(InputError, match="^the clock of top is tick; name it clk$"):
        saif.saif_toggles(netlist, text, {"a": np.zeros((4, 1), np.uint64)})
    text = "module top(input [64:0] a, output y); INV_X1 f (.A(a[64]), .ZN(y)); endmodule\n"
    netlist = netlists.read_netlist(text, NANGATE45)
    with pytest.raises(InputError, match="^input a of top has more than 64 bits$"):
        saif.saif_toggles(netlist, text, {"a": np.zeros((4, 1, 65), bool)})
