"""The torch twins of the dot-product PEs' arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from bitwright.kernels import float_dots, half_dots, integer_dots, plane_dots
from bitwright.quant import InputError


def test_integers_wrap_at_the_accumulators_width() -> None:
    ends = np.array([False, True, True])
    acts, weights = np.array([[127], [127], [-128]]), np.array([[2], [1], [1]])
    assert integer_dots(acts, weights, ends, acc_bits=8).tolist() == [381 % 256, 128]
    assert integer_dots(acts, weights, ends).tolist() == [381, (1 << 32) - 128]


def test_floats_are_added_in_order() -> None:
    """1 + 2**-24 + 2**-24 stays 1 from the left, while 2**-24 + 2**-24 + 1 does not."""
    tiny = np.float32(2**-24)
    addends = np.array([1, tiny, tiny, tiny, tiny, 1], np.float32)
    ends = np.array([False, False, True] * 2)
    assert float_dots(addends, ends).view(np.float32).tolist() == [1.0, 1.0 + 2**-23]


def test_dot_products_of_all_lengths_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    addends = rng.standard_normal(500).astype(np.float32)
    ends = rng.random(500) < 0.1
    ends[-1] = True
    wanted, acc = [], np.float32(0)
    for value, end in zip(addends, ends, strict=True):
        acc += value
        if end:
            wanted.append(acc)
            acc = np.float32(0)
    assert float_dots(addends, ends).view(np.float32).tolist() == [float(y) for y in wanted]


def test_halves_saturate_and_round_every_sum() -> None:
    acts = np.array([60000, 1, 1, 2**-11], np.float32)
    weights = np.array([2, 1, 1, 1], np.float32)
    ends = np.array([False, True, False, True])
    # 65504 + 1 stays 65504; 1 + 2**-11 is a tie and goes to the even 1
    got = half_dots(acts, weights, ends).astype(np.uint16).view(np.float16)
    assert got.tolist() == [65504, 1]


def test_planes_count_common_ones() -> None:
    x, w = (np.array([row], np.uint32) for row in ([0b1110, 1 << 31], [0b0111, 1 << 31]))
    assert plane_dots([(x, w, np.array([-4]))], np.array([True])).tolist() == [(1 << 32) - 12]


def test_sums_are_exact_integers() -> None:
    rng = np.random.default_rng(0)
    acts, weights = rng.integers(-128, 128, (2, 100, 4))
    ends = np.arange(100) == 99
    exact = sum(Fraction(int(a)) * int(w) for a, w in zip(acts.flat, weights.flat, strict=True))
    assert integer_dots(acts, weights, ends).tolist() == [int(exact) % (1 << 32)]


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"acts holds 0\.5; integer dot products need integers"):
        integer_dots(np.array([[0.5]]), np.array([[1]]), np.array([True]))
    with pytest.raises(InputError, match=r"ends\[-1\] is 0; the last step must end its dot"):
        integer_dots(np.array([[1]]), np.array([[1]]), np.array([False]))
