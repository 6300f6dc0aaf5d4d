"""The table of SRAM banks, its interpolation and its limits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.quant import InputError
from bitwright.sim import sram


def test_a_tabulated_bank_comes_back_unchanged():
    bank = sram(65536, 64)  # data/sram.csv: 28,itrs-hp,1r1w,65536,64,...
    assert (bank.read_pj, bank.write_pj, bank.leak_mw) == (11.5993, 10.4192, 42.6437)
    assert (bank.area_mm2, bank.access_ns, bank.cycle_ns) == (0.200237, 0.537069, 0.338671)
    assert bank.source == "CACTI 7, 28 nm itrs-hp 1r1w"
    other = sram(1024, 256, node_nm=22, ports="1rw")
    assert (other.read_pj, other.write_pj) == (2.22869, 2.61818)


def test_widths_are_interpolated_on_logarithms():
    # 96 lies log2(96 / 64) = 0.585 of the way from 64 (11.5993 pJ) to 128 (17.3052 pJ).
    bank = sram(65536, 96)
    assert bank.read_pj == pytest.approx(11.5993**0.4150375 * 17.3052**0.5849625, rel=1e-6)
    assert bank.source.endswith("log-log interpolation")


def test_both_sizes_are_interpolated():
    part_c, part_w = math.log2(96 / 64), math.log2(48 / 32)
    corners = {(c, w): sram(c * 1024, w).leak_mw for c in (64, 128) for w in (32, 64)}
    expected = 1.0
    for (capacity, width), value in corners.items():
        expected *= value ** (
            (part_c if capacity == 128 else 1 - part_c) * (part_w if width == 64 else 1 - part_w)
        )
    assert sram(96 * 1024, 48).leak_mw == pytest.approx(expected, rel=1e-12)


@given(st.integers(32, 2048))
def test_an_interpolated_width_lies_between_its_neighbours(width):
    below = 1 << width.bit_length() - 1
    ends = sorted(sram(65536, w).read_pj for w in (below, min(2 * below, 2048)))
    assert ends[0] * (1 - 1e-12) <= sram(65536, width).read_pj <= ends[1] * (1 + 1e-12)


@pytest.mark.parametrize(
    ("capacity", "width", "message"),
    [
        (65536, 24, "SRAM width of 24 bits in a bank of 65536 bytes .* 32 to 2048 bits"),
        (65536, 4096, "32 to 2048 bits; nothing is extrapolated"),
        (512, 32, "SRAM bank of 512 bytes .* has 1024 to 4194304 bytes"),
        (8 << 20, 64, "1024 to 4194304 bytes"),
        (1024, 512, "SRAM width of 512 bits in a bank of 1024 bytes .* 32 to 256 bits"),
        (1536, 512, "32 to 256 bits"),  # the smaller neighbour has no wider bank
    ],
)
def test_nothing_is_extrapolated(capacity, width, message):
    with pytest.raises(InputError, match=message):
        sram(capacity, width)


@pytest.mark.parametrize("process", [{"node_nm": 7}, {"cell": "lstp"}, {"ports": "2rw"}])
def test_an_unknown_process_is_told_what_there_is(process):
    with pytest.raises(InputError, match=r"no SRAM data for .*there is \[22, 28, 32, 45, 65\] nm"):
        sram(65536, 64, **process)
