"""OliVe: threshold, outliers and victims by hand, twins, properties."""

from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitwright.quant import olive_pair_values, quantize

_olive = import_module("bitwright.quant.algorithms.olive")  # not part of the face
olive, olive_reference, encode = _olive.olive, _olive.olive_reference, _olive._encode


def test_threshold_by_hand():
    # Mean 2, deviations -3 -1 1 3: variance 20 / 3 (divisor 4 - 1).
    assert _olive.threshold(np.array([-1, 1, 3, 5], np.float32)) == pytest.approx(
        2 + 3 * (20 / 3) ** 0.5
    )
    assert _olive.threshold(np.array([-7], np.float32)) == 7.0  # no deviation
    assert _olive.threshold(np.array([-4, -4], np.float32)) == 4.0


def encoded(*x):
    """Codes and values of a group with delta 1."""
    codes, values = encode(np.array(x, np.float32), np.float32(1))
    return codes.tolist(), values.tolist()


@pytest.mark.parametrize(
    ("x", "codes", "values"),
    [
        # normal pairs: half to even, clipped to +-7 up to the boundary 9.5
        ((0.5, 1.5), (0, 2), (0, 2)),
        ((-2.5, 7.6), (14, 7), (-2, 7)),
        ((9.5, -9.5), (7, 9), (7, -7)),
        # one outlier: its neighbour is the victim, code 8, value 0
        ((9.51, 3), (1, 8), (12, 0)),
        ((3, -9.51), (8, 9), (0, -12)),
        ((96, -7), (7, 8), (96, 0)),
        ((1000, 1), (7, 8), (96, 0)),  # beyond the last abfloat
        # two outliers: the smaller one is the victim, the second if both are alike
        ((20.5, -30), (8, 12), (0, -32)),
        ((-30, 20.5), (12, 8), (-32, 0)),
        ((16, -16), (2, 8), (16, 0)),
        # ties between abfloats go to the smaller one: 14 20 28 40 56 80
        ((14, 0), (1, 8), (12, 0)),
        ((-20, 0), (10, 8), (-16, 0)),
        ((28, 0), (3, 8), (24, 0)),
        ((40, 0), (4, 8), (32, 0)),
        ((56, 0), (5, 8), (48, 0)),
        ((80, 0), (6, 8), (64, 0)),
        # the last of an odd number has no partner: never an outlier
        ((1, 2, 50), (1, 2, 7), (1, 2, 7)),
        ((-50,), (9,), (-7,)),
    ],
)
def test_encoding_by_hand(x, codes, values):
    assert encoded(*x) == (list(codes), list(values))
    for i in range(0, len(x) - 1, 2):
        assert olive_pair_values(*codes[i : i + 2]) == values[i : i + 2]


def test_each_abfloat_survives():
    for code in range(1, 8):
        for sign in (0, 8):
            value = olive_pair_values(sign | code, 8)[0]
            assert encoded(0, value) == ([8, sign | code], [0, value])


def test_a_long_group_by_hand():
    # 126 weights +-1 and one pair (0.5, 64): mean 64.5/128, variance about 32.8, T about 17.7.
    # Every delta is at least 0.75 * T / 7 = 1.9, so the outlier is 64/1.9 = 34 steps or fewer.
    w = np.tile(np.float32([1, -1]), 64)
    w[6:8] = 0.5, 64
    qt = quantize(w[None], "olive4", 128, "int8")
    assert qt.codes[0, 6] == 8  # the victim
    victims = np.flatnonzero(qt.codes[0] == 8)
    assert victims.tolist() == [6]
    assert qt.dequantize()[0, 7] == pytest.approx(64, rel=0.2)
    assert qt.relative_mse(w[None]) < quantize(w[None], "int4-sym", 128).relative_mse(w[None])


def test_the_smallest_error_decides_in_exact_arithmetic():
    # The search, a second time, in fractions: no rounding but that of delta and x to float32.
    w = np.random.default_rng(3).standard_t(2, (12, 32)).astype(np.float32)
    rounded = olive(w, 32)
    for row, weights in enumerate(w):
        best = None
        for step in range(24, 49):
            delta = np.float32(_olive.threshold(weights) * step / 224)
            codes, values = encode(weights, delta)
            error = sum(
                (Fraction(float(weight)) - Fraction(float(value)) * Fraction(float(delta))) ** 2
                for weight, value in zip(weights, values, strict=True)
            )
            if best is None or error < best[0]:
                best = (error, delta, codes)
        assert best is not None
        assert rounded.deltas[row, 0] == best[1]
        assert np.array_equal(rounded.codes[row], best[2])


def _cases():
    rng = np.random.default_rng(7)
    normal = rng.normal(size=(5, 45))
    return {
        "normal": normal * 0.02,
        "heavy tails": rng.standard_t(2, (6, 64)),
        "outliers": normal * np.where(rng.random(normal.shape) < 0.1, 20, 1),
        "positive only": np.abs(normal),
        "quarters": rng.integers(-16, 17, (30, 8)) / 4,
        "one value": np.full((2, 9), -0.3),
        "sparse": normal * (rng.random(normal.shape) < 0.1),
        "zeros": np.zeros((2, 9)),
        "one column": normal[:, :1],
        "tiny": normal * 1e-30,
        "huge": normal * 1e37,
        "subnormal": rng.integers(-9, 10, (30, 6)) * 1.4e-45,
    }


CASES = _cases()


@pytest.mark.parametrize("case", CASES)
def test_the_twins_agree(case):
    w = CASES[case].astype(np.float32)
    for group_size in {2, 8, w.shape[1]}:
        reference, fast = olive_reference(w, group_size), olive(w, group_size)
        for field in reference._fields:
            left, right = getattr(reference, field), getattr(fast, field)
            assert left.dtype == right.dtype
            assert np.array_equal(left, right), (field, group_size)


@given(
    w=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 2), st.integers(1, 14)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True),
    ),
    half=st.integers(1, 8),
)
@settings(max_examples=150, deadline=None)
def test_the_twins_agree_on_anything(w, half):
    reference, fast = olive_reference(w, 2 * half), olive(w, 2 * half)
    for field in reference._fields:
        assert np.array_equal(getattr(reference, field), getattr(fast, field)), field


def test_threads_do_not_change_the_answer():
    w = np.random.default_rng(3).standard_t(3, (1031, 520)).astype(np.float32)
    whole = olive(w, 128)
    for row in (0, 514, 515, 516, 1030):
        alone = olive_reference(w[row : row + 1], 128)
        assert np.array_equal(whole.codes[row : row + 1], alone.codes)
        assert np.array_equal(whole.deltas[row : row + 1], alone.deltas)


@given(
    w=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-50, 50, width=32)),
    half=st.integers(1, 8),
)
@settings(max_examples=150, deadline=None)
def test_pairs_that_are_never_produced(w, half):
    group_size = min(2 * half, len(w))
    codes = olive(w[None], group_size).codes[0]
    if len(w) % 2:
        assert codes[-1] != 8  # nobody's victim
    for left, right in zip(codes[::2], codes[1::2], strict=False):
        assert (left == 8) + (right == 8) <= 1
        if 8 in (left, right):
            outlier = right if left == 8 else left
            assert outlier & 7  # magnitude code 0 is no outlier


def test_zeros_quantise_to_zeros():
    qt = quantize(np.zeros((2, 8)), "olive4", 4)
    assert not qt.codes.any() and not qt.scales().any() and not qt.dequantize().any()


def test_outliers_cost_int4_more_than_olive():
    # The paper's point: with outliers in the group INT4 loses the rest.
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 128))
    w[:, 17] *= 12
    assert quantize(w, "olive4").relative_mse(w.astype(np.float32)) < 0.25 * quantize(
        w, "int4-sym"
    ).relative_mse(w.astype(np.float32))
