"""Every dot-product PE in hardware: all realisations agree, vectors are legal, faults are found."""

import re

import numpy as np
import pytest

from bitwright import kernels
from bitwright.commands.verify import _kernel
from bitwright.quant import InputError
from bitwright.rtl import DESIGNS, find_design, pe, pe_synthesis, prove, verification, verify
from bitwright.sim import dot

DOT_DESIGNS = {n: design for n, design in DESIGNS.items() if isinstance(design, pe.DotDesign)}
DOTS = list(DOT_DESIGNS)


@pytest.mark.slow
@pytest.mark.simulator
@pytest.mark.parametrize("name", DOTS)
def test_all_realisations_agree(name):
    rows = verify(name, level="quick", kernel=_kernel(name))
    assert {row.realisation for row in rows} == set(verification.level_realisations("quick"))
    assert [row for row in rows if row.mismatches] == []
    assert all(row.vectors == sum(row.kinds.values()) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOTS)
def test_decoders_and_netlist_are_proved(name):
    rows = prove(name, timeout_s=500)
    assert [row for row in rows if row.mismatches or not row.finished] == []


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("asymmetric", [False, True])
def test_every_width_of_dint_follows_its_definition_in_pyrtl(bits, asymmetric):
    design = pe.DintDesign(pe.DintPE(bits=bits, asymmetric=asymmetric))
    trace = verification.recorded(design, design.corners(design.modes[0], compact=True))
    assert verification.PyrtlSimulation(design).mismatches(trace) == 0


@pytest.mark.parametrize("stages", dot.STAGES)
@pytest.mark.parametrize("name", ["int8", "dint4-asym", "mxfp4", "lut"])
def test_every_number_of_register_levels_follows_the_reference(name, stages):
    design = pe_synthesis.pipelined(DESIGNS[name], stages)
    stream = design.random(design.modes[0], 30, np.random.default_rng(stages))
    trace = verification.recorded(design, stream)
    assert verification.PyrtlSimulation(design).mismatches(trace) == 0
    assert design.top.endswith(f"_s{stages}")


@pytest.mark.parametrize("name", DOTS)
def test_vectors_are_legal_and_every_dot_product_ends(name):
    design = DESIGNS[name]
    rng = np.random.default_rng(0)
    mode = design.modes[0]
    for stream in (design.corners(mode, compact=True), design.random(mode, 200, rng)):
        assert stream.ends[-1]
        for port, (low, high) in design.unit.limits.items():
            assert low <= stream.ports[port].min() and stream.ports[port].max() <= high
        for port, bits in design.unit.ports.items():
            assert int(stream.ports[port].max()) < 1 << bits


@pytest.mark.parametrize(
    ("name", "ports"),
    [
        ("int8", ["act0", "code0"]),
        ("int4x8", ["act0", "code0"]),
        ("dint4", ["act0", "code0"]),
        ("dint4-asym", ["act0", "code0", "zero"]),
        ("ant", ["act0", "code0", "act_type", "weight_type"]),
        ("olive", ["act0", "act1", "code0", "code1"]),
    ],
)
def test_corners_hold_every_input_of_a_lane(name, ports):
    stream = DESIGNS[name].corners(DESIGNS[name].modes[0])
    combinations = set(zip(*(stream.ports[port].tolist() for port in ports), strict=True))
    unit = DESIGNS[name].unit
    sizes = [
        high - low + 1
        for low, high in (unit.limits.get(p, (0, (1 << unit.ports[p]) - 1)) for p in ports)
    ]
    assert len(combinations) == np.prod(sizes)


@pytest.mark.parametrize("name", ["int8", "dint4-dot16", "btc"])
def test_long_dot_products_wrap_both_ways(name):
    design = DESIGNS[name]
    stream = design.overflow(design.modes[0])
    total, _ = design.unit.partials({p: stream.ports[p] for p in design.unit.ports})
    ends = np.flatnonzero(stream.ends)
    down, up = total[: ends[0] + 1].sum(), total[ends[0] + 1 :].sum()
    assert down < -(1 << 31) and up >= 1 << 31
    y, _ = design.model(stream)
    assert y.tolist() == [down % (1 << 32), up % (1 << 32)]


@pytest.mark.simulator
def test_a_wrong_gate_is_found():
    design = DESIGNS["int4"]
    text = design.verilog()
    gate = re.search(r"\w+ & \(code0\[1\]\)", text)
    wrong = text[: gate.start()] + gate[0].replace("&", "|") + text[gate.end() :]
    (row,) = verify("int4", level="quick", realisations=["verilog"], verilog=wrong)
    assert row.mismatches > 0


@pytest.mark.parametrize("name", [n for n, d in DOT_DESIGNS.items() if "act0" in d.unit.ports])
def test_kernels_take_numbers_from_the_formats(name):
    """The software kernel decodes by `quant`'s tables, the model by the PE's own rule."""
    design = DESIGNS[name]
    stream = design.random(design.modes[0], 50, np.random.default_rng(1))
    got = design.kernel(_kernel(name), stream)
    assert np.array_equal(got, design.model(stream)[0])
    assert _kernel(name) in (kernels.integer_dots, kernels.float_dots)


@pytest.mark.parametrize(
    ("name", "top"),
    [
        ("dint6-asym", "dint6_asym_l1_acc32_s2"),
        ("dint3-dot8", "dint3_dot8_l8_acc32_s2"),
        ("int2x4", "int2x4_l1_acc32_s2"),
        ("btc-k64-w3a5", "btc_k64_w3a5_l64_acc32_s2"),
        ("fp16xint2", "fp16xint2_l1_acc32_s2"),
        ("ant5", "ant5_l1_acc32_s2"),
        ("olive-dot8", "olive_dot8_l8_acc32_s2"),
        ("ternary-dot4", "ternary_dot4_l4_acc32_s2"),
    ],
)
def test_other_shapes_have_names(name, top):
    design = find_design(name)
    assert (design.name, design.top) == (name, top)
    trace = verification.recorded(
        design, design.random(design.modes[0], 20, np.random.default_rng(0))
    )
    assert verification.PyrtlSimulation(design).mismatches(trace) == 0


def test_a_width_that_cannot_be_built_is_refused_by_name():
    with pytest.raises(InputError, match=r"bits \(=9\) of a dINT weight must be in 3 \.\. 8"):
        find_design("dint9")


@pytest.mark.slow
@pytest.mark.simulator
def test_the_hardware_wraps_after_more_than_a_million_steps():
    (row,) = verify("dint4", level="standard", realisations=["verilog"], vectors=100)
    assert (row.kinds["overflow"], row.mismatches) == (2, 0)
