"""The FP16 multiply-accumulate PE in hardware: every realisation agrees, and faults are found."""

import numpy as np
import pytest

from bitwright.kernels import float_dots, half_dots
from bitwright.rtl import DESIGNS, synthesise, technology, verify

NAMES = ("fp16", "fp16acc16")


@pytest.mark.parametrize("name", NAMES)
def test_generator_follows_the_reference_in_every_cycle(name):
    rows = verify(name, level="quick", realisations=["reference", "model", "pyrtl"])
    assert [row.realisation for row in rows] == ["reference", "model", "pyrtl"]
    assert all(row.vectors > 0 and row.mismatches == 0 for row in rows)


@pytest.mark.slow
@pytest.mark.simulator
@pytest.mark.parametrize(
    ("name", "realisations"), [("fp16", ["cocotb", "verilog"]), ("fp16acc16", ["netlist"])]
)
def test_verilog_and_netlist_follow_the_model(name, realisations):
    rows = verify(name, level="quick", realisations=realisations)
    assert [row.realisation for row in rows] == realisations
    assert all(row.vectors > 5_000 for row in rows)
    assert [row.mismatches for row in rows] == [0] * len(rows)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_finite_and_reach_the_corners(name):
    design = DESIGNS[name]
    rng = np.random.default_rng(0)
    corners = design.corners("fp16")
    for stream in (corners, design.corners("fp16", compact=True), design.random("fp16", 500, rng)):
        for port in ("act", "weight"):
            assert (stream.ports[port] & 0x7FFF).max() == 0x7BFF
    # All pairs of the corners end a dot product.
    act, weight = (corners.ports[port][corners.ends].tolist() for port in ("act", "weight"))
    pairs = set(zip(act, weight, strict=True))
    assert len(set(act)) >= 48 and len(pairs) >= 48 * 48
    y, _ = design.model(corners)
    magnitude = y & (0x7FFFFFFF if name == "fp16" else 0x7FFF)
    if name == "fp16":
        assert magnitude.min() == 0 and 0x27800000 in magnitude  # 2**-48, the smallest
    else:
        assert magnitude.max() == 0x7BFF and 0x0001 in magnitude and 0x03FF in magnitude
    assert not (y == y.dtype.type(0x80000000 if name == "fp16" else 0x8000)).any()  # no -0


def test_blocks_have_their_registers():
    nangate = technology.resolve_technology("nangate45")
    for name, wanted in (("fp16", (30, 31, 61)), ("fp16acc16", (16, 16, 32))):
        blocks = DESIGNS[name].blocks()
        assert list(blocks) == ["multiply", "accumulate", "total"]
        tops = (f"{name}_multiply", f"{name}_accumulate", f"{name}_pe")
        found = [
            synthesise(text, top, nangate) for top, text in zip(tops, blocks.values(), strict=True)
        ]
        assert tuple(result.registers for result in found) == wanted
        parts = found[0].area_um2 + found[1].area_um2
        assert 0.9 * parts < found[2].area_um2 < 1.1 * parts


@pytest.mark.parametrize(("name", "function"), [("fp16", float_dots), ("fp16acc16", half_dots)])
def test_the_software_kernel_equals_the_model(name, function):
    design = DESIGNS[name]
    for stream in (design.corners("fp16"), design.random("fp16", 500, np.random.default_rng(1))):
        assert np.array_equal(design.kernel(function, stream), design.model(stream)[0])
