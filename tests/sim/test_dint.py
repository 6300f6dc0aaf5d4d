"""dINT: the code tables, written out."""

import numpy as np
import pytest

from bitwright.quant import FORMATS
from bitwright.sim import dint

SYMMETRIC = {
    3: [0, 2, 4, 1, 0, -1, -4, -2],
    4: [0, 2, 4, 6, 8, 10, 12, 1, 0, -1, -12, -10, -8, -6, -4, -2],
}


@pytest.mark.parametrize("bits", SYMMETRIC)
def test_symmetric_codes_in_half_units(bits: int) -> None:
    pe = dint.DintPE(bits=bits)
    assert [pe.decode_weight(code, 0) for code in range(1 << bits)] == SYMMETRIC[bits]


@pytest.mark.parametrize("bits", range(3, 9))
def test_symmetric_decoder_is_the_format(bits: int) -> None:
    pe, values = dint.DintPE(bits=bits), FORMATS[f"dint{bits}-sym"].code_values()
    assert [pe.decode_weight(c, 0) / 2 for c in range(1 << bits)] == list(values)


@pytest.mark.parametrize("bits", range(3, 9))
def test_asymmetric_decoder_less_the_correction_is_the_format(bits: int) -> None:
    """Every code under every zero point: 2q - 2z for a level, +-1 for a special value."""
    pe = dint.DintPE(bits=bits, asymmetric=True)
    top = (1 << bits) - 1
    for zero in range(pe.largest_zero + 1):
        got = [pe.decode_weight(code, zero) - 2 * zero for code in range(1 << bits)]
        assert got == [*(2 * (q - zero) for q in range(top - 1)), 1, -1]


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("asymmetric", [False, True])
def test_decoded_weights_have_the_documented_width(bits: int, asymmetric: bool) -> None:
    pe = dint.DintPE(bits=bits, asymmetric=asymmetric)
    table = pe.weight_table()[: pe.largest_zero + 1] if asymmetric else pe.weight_table()
    half = 1 << pe.value_bits - 1
    assert -half <= table.min() and table.max() < half
    assert pe.value_bits == bits + (2 if asymmetric else 1)


def test_every_code_times_every_activation() -> None:
    pe = dint.DintPE()
    act, code = (a.reshape(-1) for a in np.meshgrid(np.arange(256), np.arange(16)))
    total, _ = pe.partials({"act0": act, "code0": code})
    values = np.array(FORMATS["dint4-sym"].code_values())[code]
    assert np.array_equal(total, act.astype(np.uint8).view(np.int8) * values * 2)
