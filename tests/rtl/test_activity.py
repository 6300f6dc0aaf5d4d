"""Toggles: by hand, exhaustively for every cell, and against the plain twin."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.quant import InputError
from bitwright.rtl import activity, synthesise, technology
from bitwright.rtl import netlist as netlists

NANGATE45 = technology.TECHNOLOGIES["nangate45"]
MAC = """
module mac(input clk, input rst, input signed [3:0] a, input signed [3:0] b,
           output signed [9:0] y, output odd);
  reg signed [3:0] ra, rb;
  reg signed [9:0] total;
  always @(posedge clk) begin
    ra <= a; rb <= b; total <= rst ? 0 : total + ra * rb;
  end
  assign y = total;
  assign odd = ^total;
endmodule
"""


def make_netlist(
    cells: Sequence[tuple[str, Mapping[str, Any]]],
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
    tech: technology.Technology = NANGATE45,
) -> netlists.Netlist:
    """A netlist from pins and nets; net 2 is the clock, "0" and "1" are constants."""
    ports = {
        **{p: {"direction": "input", "bits": list(bits)} for p, bits in inputs.items()},
        **{p: {"direction": "output", "bits": list(bits)} for p, bits in outputs.items()},
    }
    if any(tech.cells[kind].ff for kind, _ in cells):
        ports["clk"] = {"direction": "input", "bits": [2]}
    nets = {b for port in ports.values() for b in port["bits"]} | {
        net for _, pins in cells for net in pins.values()
    }
    module = {
        "ports": ports,
        "cells": {
            f"u{i}": {"type": kind, "connections": {pin: [net] for pin, net in pins.items()}}
            for i, (kind, pins) in enumerate(cells)
        },
        "netnames": {
            f"n{net}": {"hide_name": 0, "bits": [net]} for net in nets if isinstance(net, int)
        },
    }
    return netlists.read_netlist(json.dumps({"modules": {"top": module}}), tech)


def toggles(netlist: netlists.Netlist, activity: activity.Activity) -> dict[str, int]:
    return dict(zip(netlist.nets, activity.total.tolist(), strict=True))


def random_streams(
    netlist: netlists.Netlist, cycles: int, lanes: int, seed: int = 0
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        port: rng.integers(1 << len(nets), size=(cycles, lanes)).astype(np.uint64)
        for port, nets in netlist.inputs.items()
    }


def same_as_reference(
    netlist: netlists.Netlist, streams: Mapping[str, np.ndarray], warmup: int = 1
) -> activity.Activity:
    fast = activity.simulate(netlist, streams, warmup=warmup, record=list(netlist.outputs))
    slow, outputs = activity.simulate_reference(netlist, streams, warmup=warmup)
    assert fast.total.tolist() == slow
    assert {port: values.tolist() for port, values in fast.outputs.items()} == outputs
    return fast


# ------------------------------------------------------------------ exhaustive


@pytest.mark.parametrize("name", list(technology.TECHNOLOGIES))
def test_every_cell_over_every_pair_of_patterns(name: str) -> None:
    """A lane is an ordered pair; the meaning of a function is what Python makes of it."""
    tech = technology.TECHNOLOGIES[name]
    kinds = [cell for cell in tech.cells.values() if cell.ff is None and cell.pins]
    cells, inputs, outputs, net = [], {}, {}, 3
    for cell in kinds:
        pins = list(range(net, net + len(cell.pins)))
        out = list(range(pins[-1] + 1, pins[-1] + 1 + len(cell.outputs)))
        net = out[-1] + 1
        inputs[f"i_{cell.name}"], outputs[f"o_{cell.name}"] = pins, out
        connections = zip([*cell.pins, *cell.outputs], [*pins, *out], strict=True)
        cells.append((cell.name, dict(connections)))
    netlist = make_netlist(cells, inputs, outputs, tech)
    widest = max(len(cell.pins) for cell in kinds)
    pair = np.arange(4**widest, dtype=np.uint64)
    streams = {}
    for cell in kinds:
        count = np.uint64(len(cell.pins))
        mask = np.uint64((1 << len(cell.pins)) - 1)
        streams[f"i_{cell.name}"] = np.stack([pair & mask, pair >> count & mask])
    ran = activity.simulate(netlist, streams, record=list(outputs))
    counted = toggles(netlist, ran)
    for cell in kinds:
        patterns = streams[f"i_{cell.name}"].astype(np.int64)
        assert len(set(zip(*patterns.tolist(), strict=True))) == 4 ** len(cell.pins)
        values = {pin: patterns >> i & 1 for i, pin in enumerate(cell.pins)}
        for i, (pin, output) in enumerate(cell.outputs.items()):
            expected = eval(output.function.translate(_PYTHON), {}, values) & 1
            expected = np.broadcast_to(expected, patterns.shape)
            seen = ran.outputs[f"o_{cell.name}"].astype(np.int64) >> i & 1
            assert (seen == expected).all(), (cell.name, pin)
            own = f"n{outputs[f'o_{cell.name}'][i]}"
            assert counted[own] == (expected[0] ^ expected[1]).sum(), (cell.name, pin)
    assert len(kinds) >= 40


# ------------------------------------------------------------------ by hand


def counter() -> netlists.Netlist:
    """Two bits that count where `en` (n3) is 1: n4 and n5, carry n6, next values n7 and n8."""
    return make_netlist(
        [
            ("DFF_X1", {"CK": 2, "D": 8, "Q": 5, "QN": 10}),
            ("XOR2_X1", {"A": 5, "B": 6, "Z": 8}),
            ("AND2_X1", {"A1": 4, "A2": 3, "ZN": 6}),
            ("XOR2_X1", {"A": 4, "B": 3, "Z": 7}),
            ("DFF_X1", {"CK": 2, "D": 7, "Q": 4}),
            ("INV_X1", {"A": "1", "ZN": 9}),
        ],
        {"en": [3]},
        {"q": [4, 5], "stuck": [9]},
    )


def test_a_counter_by_hand() -> None:
    # cycle        0  1  2  3  4  5
    # en           1  1  1  0  1  1
    # n4  (q0)     0  1  0  1  1  0
    # n5  (q1)     0  0  1  1  1  0
    # n6  carry    0  1  0  0  1  0
    # n7  next q0  1  0  1  1  0  1
    # n8  next q1  0  1  1  1  0  0
    netlist = counter()
    en = np.array([[1, 1, 1, 0, 1, 1]]).T
    ran = activity.simulate(netlist, {"en": en}, record=["q", "stuck"])
    assert (ran.cycles, ran.lanes, ran.clock_edges) == (5, 1, 10)
    assert ran.outputs["q"].tolist() == [[0], [1], [2], [3], [3], [0]]
    assert ran.outputs["stuck"].tolist() == [[0]] * 6
    assert toggles(netlist, ran) == {
        **{"n3": 2, "n4": 4, "n5": 2, "n6": 4, "n7": 4, "n8": 2, "n9": 0, "n10": 2},
        **{"1'b0": 0, "1'b1": 0, "n2": 0},  # the clock's edges stand in clock_edges
    }
    # From cycle 3 on: what changes between the columns 2 and 3, 3 and 4, 4 and 5.
    late = activity.simulate(netlist, {"en": en}, warmup=3)
    assert (late.cycles, late.clock_edges) == (3, 6)
    counted = toggles(netlist, late)
    assert [counted[f"n{i}"] for i in range(3, 11)] == [2, 2, 1, 2, 2, 1, 0, 1]


def test_lanes_are_independent_streams() -> None:
    netlist = counter()
    en = np.array([[1, 1, 1, 0, 1, 1], [0] * 6, [1, 0, 0, 0, 0, 0]]).T
    ran = activity.simulate(netlist, {"en": en}, record=["q"])
    assert ran.outputs["q"].T.tolist() == [[0, 1, 2, 3, 3, 0], [0] * 6, [0, 1, 1, 1, 1, 1]]
    # The third lane: en and q0 change once; the carry never, next q0 stays 1.
    counted = toggles(netlist, ran)
    assert [counted[f"n{i}"] for i in range(3, 9)] == [2 + 1, 4 + 1, 2, 4, 4, 2]


# ------------------------------------------------------------------ clear and preset


def async_technology() -> technology.Technology:
    """An inverter and flip-flops that are cleared by RN = 0 and preset by S = 1."""

    def output(function: str) -> technology.OutputPin:
        return technology.OutputPin(function, {}, None, (), (), (), (), (), ())

    dff = NANGATE45.cells["DFF_X1"]
    assert dff.ff is not None
    pins = {
        "CK": technology.InputPin(1.0, True),
        "D": technology.InputPin(1.0),
        "RN": technology.InputPin(1.0),
        "S": technology.InputPin(1.0),
    }
    outputs = {"Q": output("IQ"), "QN": output("IQN")}
    both = technology.Cell(
        "DFFRS", 1.0, 0.0, pins, outputs, replace(dff.ff, clear="!RN", preset="S")
    )
    clear = replace(both, name="DFFR", ff=replace(dff.ff, clear="RN'"))
    preset = replace(both, name="DFFS", ff=replace(dff.ff, preset="S !RN"))
    cells = {cell.name: cell for cell in (both, clear, preset)}
    return technology.Technology("async", {**NANGATE45.cells, **cells}, 1.0, "here", 1000.0)


def test_clear_and_preset_by_hand() -> None:
    pins = {"CK": 2, "D": 3, "RN": 4, "S": 5, "Q": 6, "QN": 7}
    inputs = {"d": [3], "rn": [4], "s": [5]}
    netlist = make_netlist([("DFFRS", pins)], inputs, {"q": [6], "qn": [7]}, async_technology())
    # cycle  0  1  2  3  4  5  6  7  8
    d = [1, 0, 1, 0, 1, 1, 1, 0, 0]
    rn = [1, 1, 1, 0, 1, 0, 1, 0, 1]
    s = [0, 0, 1, 1, 0, 0, 1, 1, 0]
    # 1: D of cycle 0. 2: preset at once, though D was 0. 3: clear wins over preset. 4: clear held
    # through the edge. 5: cleared at once. 6: preset. 7: clear wins. 8: 0 was kept.
    q = [0, 1, 1, 0, 0, 0, 1, 0, 0]
    streams = {p: np.array([v]).T for p, v in (("d", d), ("rn", rn), ("s", s))}
    ran = same_as_reference(netlist, streams)
    assert ran.outputs["q"].ravel().tolist() == q
    assert ran.outputs["qn"].ravel().tolist() == [1 - bit for bit in q]
    counted = toggles(netlist, ran)
    assert (counted["n6"], counted["n7"]) == (4, 4)


def test_a_cleared_flip_flop_ignores_the_clock() -> None:
    """What is clear at the edge stays 0 behind it, whatever D was; preset likewise."""
    tech = async_technology()
    clear = make_netlist(
        [("DFFR", {"CK": 2, "D": 3, "RN": 4, "S": "0", "Q": 5})],
        {"d": [3], "rn": [4]},
        {"q": [5]},
        tech,
    )
    d, rn = [1, 1, 1, 1, 0], [1, 0, 1, 1, 1]
    streams = {"d": np.array([d]).T, "rn": np.array([rn]).T}
    ran = same_as_reference(clear, streams)
    assert ran.outputs["q"].ravel().tolist() == [0, 0, 0, 1, 1]
    preset = make_netlist(
        [("DFFS", {"CK": 2, "D": 3, "RN": "0", "S": 4, "Q": 5})],
        {"d": [3], "s": [4]},
        {"q": [5]},
        tech,
    )
    d, s = [0, 0, 0, 0], [0, 1, 0, 0]
    streams = {"d": np.array([d]).T, "s": np.array([s]).T}
    ran = same_as_reference(preset, streams)
    assert ran.outputs["q"].ravel().tolist() == [0, 1, 1, 0]


def test_a_reset_that_another_flip_flop_and_a_gate_compute() -> None:
    # Cells written against their order: what reads Q, then the flip-flop, then its reset.
    netlist = make_netlist(
        [
            ("INV_X1", {"A": 7, "ZN": 8}),
            ("DFFRS", {"CK": 2, "D": 3, "RN": 6, "S": "0", "Q": 7}),
            ("NAND2_X1", {"A1": 5, "A2": 4, "ZN": 6}),
            ("DFF_X1", {"CK": 2, "D": 3, "Q": 5}),
        ],
        {"d": [3], "go": [4]},
        {"q": [7], "n": [8]},
        async_technology(),
    )
    # Cleared where go and last cycle's d are 1.
    d, go = [1, 1, 1, 0, 1], [0, 0, 1, 0, 0]
    ran = same_as_reference(netlist, {"d": np.array([d]).T, "go": np.array([go]).T})
    assert ran.outputs["q"].ravel().tolist() == [0, 1, 0, 0, 0]
    assert ran.outputs["n"].ravel().tolist() == [1, 0, 1, 1, 1]
    same_as_reference(netlist, random_streams(netlist, 40, 70))


# ------------------------------------------------------------------ twins


@pytest.fixture(scope="module")
def mac() -> netlists.Netlist:
    return netlists.read_netlist(synthesise(MAC, "mac", NANGATE45).netlist, NANGATE45)


@pytest.mark.parametrize("warmup", [1, 7])
@pytest.mark.parametrize("lanes", [1, 63, 64, 65, 130, 600])
def test_equals_the_reference(mac: netlists.Netlist, lanes: int, warmup: int) -> None:
    streams = random_streams(mac, 12, lanes, seed=lanes)
    ran = same_as_reference(mac, streams, warmup)
    assert (ran.cycles, ran.lanes) == (12 - warmup, lanes)
    assert ran.toggles.shape == (len(mac.nets), -(-lanes // 64))
    assert ran.clock_edges == 2 * (12 - warmup) * lanes
    assert (ran.total > 0).sum() > 50


def test_the_design_computes_what_it_says(mac: netlists.Netlist) -> None:
    streams = random_streams(mac, 30, 5)
    ran = activity.simulate(mac, streams, record=["y", "odd"])
    signed = {port: (values.astype(np.int64) ^ 8) - 8 for port, values in streams.items()}
    total, ra, rb = (np.zeros(5, np.int64) for _ in range(3))
    for cycle in range(30):
        assert ran.outputs["y"][cycle].tolist() == (total & 1023).tolist()
        odd = [int(value).bit_count() % 2 for value in total & 1023]
        assert ran.outputs["odd"][cycle].tolist() == odd
        total = np.where(streams["rst"][cycle] == 1, 0, total + ra * rb)
        ra, rb = signed["a"][cycle], signed["b"][cycle]


@pytest.mark.parametrize("name", ["sky130hd", "asap7"])
def test_equals_the_reference_on_other_technologies(name: str) -> None:
    tech = technology.TECHNOLOGIES[name]
    netlist = netlists.read_netlist(synthesise(MAC, "mac", tech).netlist, tech)
    same_as_reference(netlist, random_streams(netlist, 10, 70))


_PYTHON = str.maketrans("!+*", "~|&")  # Liberty operators; none of the functions lacks one
_KINDS = ("INV_X1", "NAND2_X1", "NOR3_X1", "XOR2_X1", "MUX2_X1", "AOI21_X1", "OAI22_X1", "FA_X1")


@st.composite
def random_netlists(draw: st.DrawFn) -> netlists.Netlist:
    """Up to 30 cells in no order, with flip-flops (some cleared and preset) that may feed back."""
    tech = async_technology()
    width = draw(st.integers(1, 5))
    flips = draw(st.lists(st.sampled_from(("DFF_X1", "DFFRS", "DFFR")), max_size=6))
    kinds = draw(st.lists(st.sampled_from(_KINDS), max_size=24))
    state = list(range(3 + width, 3 + width + 2 * len(flips)))
    known: list[Any] = [*range(3, 3 + width), *state, "0", "1"]
    free = 3 + width + len(state)
    cells = []
    for kind in kinds:
        cell = tech.cells[kind]
        pins = {pin: draw(st.sampled_from(known)) for pin in cell.pins}
        for pin in cell.outputs:
            pins[pin] = free
            free += 1
        cells.append((kind, pins))
        known += [pins[pin] for pin in cell.outputs]
    for i, kind in enumerate(flips):
        pins = {"CK": 2, "D": draw(st.sampled_from(known))}
        for pin in ("RN", "S") if kind != "DFF_X1" else ():
            # Resets of inputs and of earlier flip-flops, which cannot close a loop.
            pins[pin] = draw(st.sampled_from([*range(3, 3 + width), *state[: 2 * i], "0", "1"]))
        cells.append((kind, {**pins, "Q": state[2 * i], "QN": state[2 * i + 1]}))
    shown = [net for net in known if isinstance(net, int)][-64:]
    order = draw(st.permutations(cells))
    return make_netlist(order, {"x": range(3, 3 + width)}, {"y": shown}, tech)


@settings(max_examples=30, deadline=None)
@given(netlist=random_netlists(), seed=st.integers(0, 99), lanes=st.sampled_from((1, 9, 66)))
def test_random_netlists_equal_the_reference(
    netlist: netlists.Netlist, seed: int, lanes: int
) -> None:
    same_as_reference(netlist, random_streams(netlist, netlist.depth + 5, lanes, seed), warmup=2)


# ------------------------------------------------------------------ lanes and words


def test_words_add_up_and_are_those_of_their_lanes(mac: netlists.Netlist) -> None:
    streams = random_streams(mac, 9, 600)
    whole = activity.simulate(mac, streams)
    assert whole.toggles.sum(axis=1).tolist() == whole.total.tolist()
    for word in range(10):
        part = {port: values[:, 64 * word : 64 * word + 64] for port, values in streams.items()}
        own = activity.simulate(mac, part)
        assert own.lanes == (64 if word < 9 else 24)
        assert whole.toggles[:, word].tolist() == own.total.tolist()


def test_lanes_beyond_the_last_do_not_count() -> None:
    """An inverter of 0 is 1 everywhere; what toggles is what lanes there are."""
    netlist = counter()
    for lanes in (1, 63, 65, 513):
        ran = activity.simulate(netlist, {"en": np.ones((5, lanes), np.uint64)})
        assert toggles(netlist, ran)["n4"] == 4 * lanes  # counts in every lane, every cycle


def test_one_lane_is_the_same_in_all(mac: netlists.Netlist) -> None:
    streams = random_streams(mac, 9, 70)
    one = {**streams, "rst": streams["rst"][:, :1]}
    all_lanes = {**streams, "rst": np.repeat(one["rst"], 70, axis=1)}
    ran = same_as_reference(mac, one)
    assert ran.lanes == 70
    assert ran.toggles.tolist() == activity.simulate(mac, all_lanes).toggles.tolist()


def test_ports_left_out_are_zero(mac: netlists.Netlist) -> None:
    streams = random_streams(mac, 9, 5)
    zero = {**streams, "b": np.zeros((9, 5), np.uint64)}
    del streams["b"]
    assert (
        activity.simulate(mac, streams).total.tolist()
        == activity.simulate(mac, zero).total.tolist()
    )


def wide_port() -> netlists.Netlist:
    """70 bits, each through an inverter; 64 of them are shown."""
    cells = [("INV_X1", {"A": 3 + i, "ZN": 100 + i}) for i in range(70)]
    outputs = {"y": range(106, 170), "wide": range(100, 170)}
    return make_netlist(cells, {"x": range(3, 73)}, outputs)


def test_bits_of_ports_wider_than_a_word() -> None:
    netlist = wide_port()
    bits = np.random.default_rng(0).integers(2, size=(6, 67, 70)).astype(bool)
    ran = activity.simulate(netlist, {"x": bits}, record=["y"])
    changes = (bits[1:] != bits[:-1]).sum(axis=(0, 1))
    counted = toggles(netlist, ran)
    assert [counted[f"n{100 + i}"] for i in range(70)] == changes.tolist()
    assert [counted[f"n{3 + i}"] for i in range(70)] == changes.tolist()
    weights = 1 << np.arange(64, dtype=np.uint64)
    assert (ran.outputs["y"] == (~bits[:, :, 6:] * weights).sum(axis=-1)).all()
    slow, _ = activity.simulate_reference(netlist, {"x": bits})
    assert slow == ran.total.tolist()


def test_bits_equal_words(mac: netlists.Netlist) -> None:
    streams = random_streams(mac, 9, 70)
    bits = (streams["a"][:, :, None] >> np.arange(4, dtype=np.uint64)) & np.uint64(1)
    ran = same_as_reference(mac, {**streams, "a": bits.astype(bool)})
    assert ran.toggles.tolist() == activity.simulate(mac, streams).toggles.tolist()


# ------------------------------------------------------------------ errors


def refused(netlist: netlists.Netlist, streams: Mapping[str, np.ndarray], **how: Any) -> str:
    with pytest.raises(InputError) as error:
        activity.simulate(netlist, streams, **how)
    return str(error.value)


def test_streams_that_do_not_fit(mac: netlists.Netlist) -> None:
    good = random_streams(mac, 9, 5)
    assert refused(mac, {**good, "c": good["a"]}) == "mac has no input 'c'; it has rst, a, b"
    assert refused(mac, {"clk": good["rst"]}) == "mac has no input 'clk'; it has rst, a, b"
    assert refused(mac, {}) == "no stream was given for mac; give at least one input"
    assert refused(mac, {**good, "b": good["b"][:8]}) == (
        "stream of b has 8 cycles and 5 lanes; others have 9 and 5"
    )
    assert refused(mac, {**good, "b": good["b"][:, :4]}) == (
        "stream of b has 9 cycles and 4 lanes; others have 9 and 5"
    )
    assert refused(mac, {**good, "b": good["b"] + np.uint64(16)}).endswith(
        ", which does not fit its 4 bits"
    )
    assert refused(mac, {**good, "rst": np.full((9, 5), 2)}) == (
        "stream of rst holds 2, which does not fit its 1 bits"
    )
    signed = np.ones((9, 5), np.int64)
    signed[3, 2] = -3
    assert refused(mac, {**good, "a": signed}) == (
        "stream of a holds -3, which does not fit its 4 bits"
    )
    assert refused(mac, {**good, "a": np.zeros((9, 5, 3), bool)}) == (
        "stream of a has the shape (9, 5, 3); its 4 bits need [cycles, lanes, 4]"
    )
    assert refused(mac, {**good, "a": np.full((9, 5, 4), 2)}) == (
        "stream of a holds 2, which does not fit one bit"
    )
    assert refused(wide_port(), {"x": np.zeros((9, 5), np.uint64)}) == (
        "stream of x has the shape (9, 5); its 70 bits need [cycles, lanes, 70]"
    )


def test_warm_up_and_pipeline_need_cycles(mac: netlists.Netlist) -> None:
    assert mac.depth == 2
    five = random_streams(mac, 5, 1)
    assert refused(mac, five, warmup=0) == (
        "warmup is 0; at least 1, the cycle in which the nets settle"
    )
    assert refused(mac, five, warmup=5) == (
        "the stream has 5 cycles, too few for mac, whose pipeline is full after 2, behind a "
        "warm-up of 5; give a longer stream"
    )
    assert activity.simulate(mac, five, warmup=4).cycles == 1
    two = random_streams(mac, 2, 1)
    assert refused(mac, two) == (
        "the stream has 2 cycles, too few for mac, whose pipeline is full after 2, behind a "
        "warm-up of 1; give a longer stream"
    )
    with pytest.raises(InputError, match="^the stream has 2 cycles, too few for mac, whose "):
        activity.simulate_reference(mac, two)


def test_outputs_that_cannot_be_recorded(mac: netlists.Netlist) -> None:
    five = random_streams(mac, 5, 1)
    assert refused(mac, five, record=["z"]) == "mac has no output 'z'; it has y, odd"
    bits = np.zeros((5, 1, 70), bool)
    assert refused(wide_port(), {"x": bits}, record=["wide"]) == (
        "output wide of top has more than 64 bits to record"
    )


# ------------------------------------------------------------------ glitches


def test_a_glitch_by_hand() -> None:
    """a beside itself two inverters later: their XOR is 0, but for two units after every change."""
    netlist = make_netlist(
        [
            ("INV_X1", {"A": 3, "ZN": 4}),
            ("INV_X1", {"A": 4, "ZN": 5}),
            ("XOR2_X1", {"A": 3, "B": 5, "Z": 6}),
        ],
        {"a": [3]},
        {"y": [6]},
    )
    a = np.array([[0, 1, 0, 0, 1]], np.uint64).T
    settled = activity.simulate(netlist, {"a": a})
    moving = activity.simulate(netlist, {"a": a}, unit_delay=True, record=["y"])
    assert toggles(netlist, settled)["n6"] == 0
    assert toggles(netlist, moving) == {**toggles(netlist, settled), "n6": 2 * 3}
    assert moving.outputs["y"].tolist() == [[0]] * 5


@settings(max_examples=30, deadline=None)
@given(netlist=random_netlists(), seed=st.integers(0, 99), lanes=st.sampled_from((1, 9, 66)))
def test_glitches_come_in_pairs_and_change_no_result(
    netlist: netlists.Netlist, seed: int, lanes: int
) -> None:
    streams = random_streams(netlist, 12, lanes, seed)
    outputs = list(netlist.outputs)
    settled = activity.simulate(netlist, streams, record=outputs)
    moving = activity.simulate(netlist, streams, record=outputs, unit_delay=True)
    for port in outputs:
        assert (settled.outputs[port] == moving.outputs[port]).all()
    more = moving.toggles - settled.toggles
    assert (more >= 0).all() and (more % 2 == 0).all()
