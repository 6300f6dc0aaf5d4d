"""Block formats: scales and elements by hand, and against plain definitions in fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitwright.quant import FORMATS, quantize

E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def floor_log2(x):
    """floor(log2(x)) of a positive fraction, by comparing."""
    exponent = 0
    while Fraction(2) ** (exponent + 1) <= x:
        exponent += 1
    while Fraction(2) ** exponent > x:
        exponent -= 1
    return exponent


def nearest_even(x, magnitudes):
    """Signed code index of the nearest magnitude, ties to the even code, saturating."""
    distance = [abs(abs(x) - Fraction(value)) for value in magnitudes]
    code = min(range(len(magnitudes)), key=lambda i: (distance[i], i % 2))
    return -code if x < 0 else code


def mx_definition(weights, name):
    """Scale exponent and signed codes of one block, in fractions."""
    magnitudes = E2M1 if name == "mxfp4" else [Fraction(i, 64) for i in range(128)]
    largest = max(abs(Fraction(float(w))) for w in weights)
    exponent = -127
    if largest:
        top = floor_log2(Fraction(max(magnitudes)))
        exponent = max(-127, floor_log2(largest) - top)
    scale = Fraction(2) ** exponent
    return exponent, [nearest_even(Fraction(float(w)) / scale, magnitudes) for w in weights]


def signed_codes(qt):
    """Codes as signed magnitudes: sign-magnitude for E2M1, two's complement for INT8."""
    codes = qt.codes.astype(int)
    if qt.format.bits == 8:
        return np.where(codes > 127, codes - 256, codes)
    return np.where(codes > 8, 8 - codes, codes)


@given(
    w=hnp.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=True)
        | st.integers(-64, 64).map(lambda i: i / 8),
    ),
    name=st.sampled_from(["mxfp4", "mxint8"]),
)
@settings(max_examples=200, deadline=None)
def test_mx_against_the_definition(w, name):
    qt = quantize(w[None], name)
    for block in range(qt.groups):
        columns = slice(32 * block, 32 * (block + 1))
        exponent, codes = mx_definition(w[columns], name)
        assert qt.group_scales[0, block] == exponent + 127
        assert signed_codes(qt)[0, columns].tolist() == codes
        assert not (qt.codes == qt.format.special_code).any()  # never produced


def test_mxfp4_by_hand():
    # max 7: X = 2**(2 - 2) = 1. Ties to even codes: 0.25 -> 0, 0.75 -> 1, 1.25 -> 1, 1.75 -> 2,
    # 2.5 -> 2, 3.5 -> 4, 5 -> 4. 7 saturates at 6, and minus zero is not produced.
    w = [7, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -5, -0.1]
    qt = quantize([w], "mxfp4")
    assert qt.group_scales.tolist() == [[127]]
    assert qt.values().tolist() == [[6, 0, 1, 1, 2, 2, 4, 4, 0, -1, -4, 0]]
    assert qt.codes.tolist() == [[7, 0, 2, 2, 4, 4, 6, 6, 0, 10, 14, 0]]


def test_mxint8_by_hand():
    # max 1.99: X = 1, steps of 1/64. 1.99 * 64 = 127.4 -> 127; 0.5/64 -> 0 and 1.5/64 -> 2 (even).
    w = [1.99, 1.0, 0.5 / 64, 1.5 / 64, -1.0, -1.999]
    qt = quantize([w], "mxint8")
    assert qt.group_scales.tolist() == [[127]]
    # -1.999 * 64 = -127.9 saturates at -127: -128 is never produced.
    assert qt.codes.tolist() == [[127, 64, 0, 2, 256 - 64, 256 - 127]]
    assert qt.dequantize()[0, :2].tolist() == [127 / 64, 1.0]


@pytest.mark.parametrize("exponent", [-149, -140, -126, -100, -3, 0, 5, 100, 127])
@pytest.mark.parametrize("name", ["mxfp4", "mxint8"])
def test_mx_scales_at_powers_of_two(name, exponent):
    # Just below, at and just above a power of two, down to subnormal numbers.
    emax = 2 if name == "mxfp4" else 0
    power = np.float32(2.0**exponent)
    for w in (np.nextafter(power, np.float32(0)), power, np.nextafter(power, np.float32(np.inf))):
        if w == 0:
            continue
        expected = max(-127, floor_log2(Fraction(float(w))) - emax)
        assert quantize([[w]], name).group_scales[0, 0] == expected + 127


@pytest.mark.parametrize("name", ["mxfp4", "mxint8", "nvfp4"])
def test_zeros(name):
    w = np.zeros((2, 70))
    w[1, 40] = 3.0
    qt = quantize(w, name)
    assert not qt.codes[0].any() and not qt.dequantize()[0].any()
    assert qt.dequantize()[1, 40] == pytest.approx(3.0, rel=0.02)
    assert not np.delete(qt.dequantize()[1], 40).any()
    zeros = quantize(np.zeros((1, 3)), name)
    assert not zeros.codes.any() and not zeros.dequantize().any()
    assert zeros.group_scales.tolist() == [[0]]


@pytest.mark.parametrize("name", ["mxfp4", "mxint8", "nvfp4"])
def test_largest_numbers_stay_finite(name):
    top = 3.4028234e38 if name != "nvfp4" else 2.0**127
    w = np.array([[top, -top, top / 3, 1.0]])
    qt = quantize(w, name)
    assert np.isfinite(qt.dequantize()).all()
    assert qt.dequantize()[0, 0] == -qt.dequantize()[0, 1]
    assert qt.dequantize()[0, 0] == pytest.approx(top, rel=0.26)  # saturation of E2M1


@pytest.mark.parametrize("name", ["mxfp4", "mxint8", "nvfp4"])
def test_a_short_last_block_is_a_block(name):
    size = FORMATS[name].block
    w = np.random.default_rng(0).normal(size=(3, 2 * size + 5))
    w[0, 0] = 6.0  # the largest of all, so that NVFP4's tensor scale is that of the parts
    whole = quantize(w, name)
    assert (whole.group_size, whole.groups) == (size, 3)
    last = np.zeros((4, 5))
    last[:3], last[3, 0] = w[:, 2 * size :], 6.0
    part = quantize(last, name)
    assert np.array_equal(whole.codes[:, 2 * size :], part.codes[:3])
    assert np.array_equal(whole.group_scales[:, 2:], part.group_scales[:3])
    assert quantize(w[:, :5], name).group_size == 5


def test_the_nvfp4_oracle():
    # A block of a tensor with max 12.4: G = 2688/12.4; block 3.1/6 * G = 112.0, an E4M3 number.
    x = [0.11, -0.42, 1.7, -0.03, 0.9, -2.2, 0.6, 0.05, -0.77, 1.01, 0.33, -1.5, 0, 0.24, -0.19]
    x += [3.1]
    qt = quantize([x + [12.4] + [0.0] * 15], "nvfp4")
    assert qt.tensor_scale is not None and qt.tensor_scale.shape == (1,)
    assert 1 / qt.tensor_scale[0] == pytest.approx(216.774, abs=1e-3)
    # 112 = 1.75 * 2**6: {1101, 110}; 448 is {1111, 110}.
    assert qt.group_scales.tolist() == [[0b1101110, 0b1111110]]
    values = [0, -1, 3, 0, 1.5, -4, 1, 0, -1.5, 2, 0.5, -3, 0, 0.5, -0.5, 6]
    assert qt.values()[0, :16].tolist() == values
    error = qt.dequantize()[0, :16] - np.float32(x)
    assert float(np.mean(error**2)) == pytest.approx(0.0063064, abs=1e-6)


def nvfp4_definition(w):
    """The reference's steps in torch, all float32: codes of scales, and values before scaling."""
    x = torch.from_numpy(w)
    largest = x.abs().max()
    encode = torch.tensor(448.0 * 6.0) / largest if largest else torch.tensor(1.0)
    blocks = x.reshape(len(w), -1, 16)
    amax = blocks.abs().amax(dim=-1, keepdim=True)
    scale = (amax / 6.0 * encode).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    factor = 1.0 / (scale.float() * (1.0 / encode))
    scaled = (blocks * factor).clamp(-6.0, 6.0).reshape(w.shape).numpy()
    values = np.array(
        [
            [math.copysign(E2M1[abs(nearest_even(Fraction(float(v)), E2M1))], v) for v in row]
            for row in scaled
        ]
    )
    return scale[..., 0].view(torch.uint8).numpy(), values


@pytest.mark.parametrize("spread", [1e-20, 0.02, 1.0, 1e20])
def test_nvfp4_against_the_reference_steps(spread):
    w = (np.random.default_rng(1).standard_t(4, (20, 96)) * spread).astype(np.float32)
    scales, values = nvfp4_definition(w)
    qt = quantize(w, "nvfp4")
    assert np.array_equal(qt.group_scales, scales)
    assert np.array_equal(qt.values(), values)


def test_a_block_whose_scale_rounds_to_zero_is_zero():
    # 1e-6 beside 1: 1e-6/6 * 2688 = 0.00045, below half of 2**-9 = 0.00098.
    w = np.zeros((1, 32))
    w[0, 0], w[0, 16] = 1.0, 1e-6
    qt = quantize(w, "nvfp4")
    assert qt.group_scales.tolist() == [[126, 0]]
    assert not qt.codes[0, 16:].any() and not qt.dequantize()[0, 16:].any()


@given(
    w=hnp.arrays(np.float32, (2, 40), elements=st.floats(-100, 100, width=32)),
    name=st.sampled_from(["mxfp4", "mxint8", "nvfp4"]),
)
@settings(max_examples=150, deadline=None)
def test_elements_are_nearest_under_the_stored_scale(w, name):
    if name == "nvfp4" and 0 < np.abs(w).max() < 1e-30:
        return
    qt = quantize(w, name)
    size = qt.group_size
    grid = np.array(qt.format.grid())
    for (row, column), weight in np.ndenumerate(w):
        scale = float(qt.scales()[row, column // size])
        if scale == 0 or scale < 2.0**-126:
            continue
        x = float(weight) / scale
        found = abs(x - float(qt.values()[row, column]))
        # NVFP4 multiplies by a rounded reciprocal: two float32 roundings.
        slack = abs(x) * 2.0**-22 if name == "nvfp4" else 0.0
        assert found <= np.abs(x - grid).min() + slack
