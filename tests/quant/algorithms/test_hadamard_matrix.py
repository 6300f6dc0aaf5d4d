"""Hadamard matrices: H @ H.T in integers, first rows by hand, and the rounding of the rotations."""

import re
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import InputError

_module = import_module("bitwright.quant.algorithms.hadamard_matrix")  # not part of the face
hadamard, orthogonal, block_order = _module.hadamard, _module.orthogonal, _module.block_order

#: Multiples of 4 up to 200 that need a prime power or another construction: 52 = 2 * (25 + 1),
#: 92 (91 = 7 * 13 and 45 are no primes), 100 = 2 * (49 + 1), 116 (115, 57), 156 (155, 77),
#: 172 (171, 85), 184 (183, 91, and 2 * 92), 188 (187, 93).
NOT_BUILT = {52, 92, 100, 116, 156, 172, 184, 188}


def rows_times_all(h, rows):
    """rows of H times H.T, exact: float32 holds all integers up to 2**24, and |sums| <= order."""
    assert len(h) < 1 << 24
    return h[rows].astype(np.float32) @ h.T.astype(np.float32)


@pytest.mark.parametrize("order", [1, 2, *sorted(set(range(4, 201, 4)) - NOT_BUILT)])
def test_rows_are_orthogonal(order):
    h = hadamard(order)
    assert h.shape == (order, order) and h.dtype == np.int8
    assert np.array_equal(np.abs(h), np.ones_like(h))
    product = h.astype(np.int64) @ h.T.astype(np.int64)
    assert np.array_equal(product, order * np.eye(order, dtype=np.int64))


@pytest.mark.parametrize("order", [576, 1536, 2048])
def test_rows_of_hidden_sizes_are_orthogonal(order):
    h = hadamard(order)
    assert set(np.unique(h)) == {-1, 1}
    assert np.array_equal(rows_times_all(h, slice(None)), order * np.eye(order, dtype=np.float32))


@pytest.mark.parametrize("order", [4096, 5120, 5504, 11008, 14336])
def test_some_rows_of_a_large_order_are_orthogonal_to_all(order):
    h = hadamard(order)
    rows = np.array([0, 1, 2, order // 2, *np.random.default_rng(0).choice(order, 12), order - 1])
    expected = order * (rows[:, None] == np.arange(order)).astype(np.float32)
    assert np.array_equal(rows_times_all(h, rows), expected)


@pytest.mark.parametrize(
    ("order", "factors"),
    [
        (1, ()),
        (2, (2,)),
        (4, (2, 2)),  # not Paley I over 3: twos come first
        (12, (12,)),  # 11
        (20, (20,)),  # 19
        (24, (2, 12)),
        (28, (28,)),  # 27 is no prime; 28 = 2 * (13 + 1)
        (36, (36,)),  # 35 is no prime; 36 = 2 * (17 + 1)
        (44, (44,)),  # 43
        (48, (2, 2, 12)),
        (60, (60,)),  # 59
        (144, (2, 2, 36)),  # not 12 * 12
        (5120, (2,) * 8 + (20,)),
        (11008, (2, 5504)),  # 11008 = 2**8 * 43, and 5503 is the first prime 2**k * 43 - 1
        (14336, (2,) * 9 + (28,)),
    ],
)
def test_factors_by_hand(order, factors):
    assert _module._factors(order) == factors


def signs(text):
    return [1 if letter == "+" else -1 for letter in text.replace(" ", "")]


def test_order_8_by_hand():
    # Row i, column j: the parity of the bits that i and j share.
    expected = [[(-1) ** (i & j).bit_count() for j in range(8)] for i in range(8)]
    assert hadamard(8).tolist() == expected


def test_order_12_by_hand():
    # Squares mod 11 are 1 3 4 5 9: chi(0) .. chi(10) = 0 + - + + + - - - + -, and the 0 becomes +.
    h = hadamard(12)
    assert h[0].tolist() == signs("+ +++++++++++")
    assert h[1].tolist() == signs("- ++-+++---+-")
    assert h[2].tolist() == signs("- -++-+++---+")  # the same, one step to the right


def test_order_28_by_hand():
    # Squares mod 13 are 1 3 4 9 10 12: chi(0) .. chi(12) = 0 + - + + - - - - + + - +.
    # Of the conference matrix, + becomes ++ over +-, - becomes -- over -+, 0 becomes +- over --.
    h = hadamard(28)
    assert h[0].tolist() == signs("+-" + "++" * 13)
    assert h[1].tolist() == signs("--" + "+-" * 13)
    assert h[2].tolist() == signs("++ +- ++ -- ++ ++ -- -- -- -- ++ ++ -- ++")
    assert h[3].tolist() == signs("+- -- +- -+ +- +- -+ -+ -+ -+ +- +- -+ +-")


@pytest.mark.parametrize("order", [1, 2, 4, 64, 28, 36, 576])
def test_powers_of_two_and_the_second_kind_are_symmetric(order):
    assert np.array_equal(hadamard(order), hadamard(order).T)


@pytest.mark.parametrize("order", [12, 20, 44, 60])
def test_the_first_kind_is_the_identity_plus_a_skew_matrix(order):
    h = hadamard(order)
    assert np.array_equal(h + h.T, 2 * np.eye(order, dtype=np.int8))


@pytest.mark.parametrize("order", sorted(NOT_BUILT))
def test_orders_out_of_reach(order):
    with pytest.raises(InputError, match=f"^no Hadamard matrix of order {order} can be built"):
        hadamard(order)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (
            52,
            "no Hadamard matrix of order 52 can be built from powers of two and Paley's "
            "constructions over primes; the nearest orders that can be are 48 and 56",
        ),
        (
            3,
            "no Hadamard matrix of order 3 can be built from powers of two and Paley's "
            "constructions over primes; the nearest orders that can be are 2 and 4",
        ),
        (0, "order 0 of a Hadamard matrix must be at least 1"),
        (-4, "order -4 of a Hadamard matrix must be at least 1"),
    ],
)
def test_errors_of_matrices(order, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        hadamard(order)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (
            15,
            "order 15 is odd, so it cannot be divided into Hadamard matrices; the nearest usable "
            "order is 16",
        ),
        (
            51,
            "order 51 is odd, so it cannot be divided into Hadamard matrices; the nearest usable "
            "order is 52, in blocks of 4",
        ),
        (0, "order 0 of a Hadamard matrix must be at least 1"),
    ],
)
def test_errors_of_rotations(order, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        orthogonal(order, 0)


@pytest.mark.parametrize(
    ("order", "block"),
    [
        (1, 1),
        (2, 2),
        (6, 2),
        (52, 4),  # 13 blocks
        (100, 20),
        (172, 4),
        (184, 8),
        (576, 576),
        (344, 8),  # 172 is not built, 43 is odd
        (15, 1),
    ],
)
def test_block_orders(order, block):
    assert block_order(order) == block


@pytest.mark.parametrize("order", [1, 2, 6, 12, 16, 52, 100, 184, 576])
def test_rotations_are_orthonormal(order):
    """As `orthogonal` derives: exactly orthogonal rows whose squared length is within 5u of 1."""
    rotation, block = orthogonal(order, 3), block_order(order)
    assert rotation.shape == (order, order) and rotation.dtype == np.float64
    pattern = np.kron(np.eye(order // block), np.ones((block, block)))
    magnitude = rotation.max()
    assert np.array_equal(np.abs(rotation), magnitude * pattern)
    ones = np.sign(rotation)  # its products are small integers, exact in float64
    assert np.array_equal(ones @ ones.T, block * np.eye(order))
    assert abs(block * Fraction(magnitude) ** 2 - 1) <= 5 * Fraction(1, 2**53)


@pytest.mark.parametrize("order", [16, 36, 52])
def test_rotations_are_hadamard_matrices_with_signed_rows(order):
    block = block_order(order)
    plain = np.kron(np.eye(order // block), hadamard(block))
    flips = np.sign(orthogonal(order, 5))[plain != 0] * plain[plain != 0]
    rows = flips.reshape(order, block)
    assert np.array_equal(rows, np.repeat(rows[:, :1], block, axis=1))
    assert {-1, 1} == set(rows[:, 0])  # signs of both kinds


def test_blocks_have_their_own_signs():
    rotation = orthogonal(52, 0)
    blocks = {rotation[i : i + 4, i : i + 4].tobytes() for i in range(0, 52, 4)}
    assert len(blocks) > 1


@pytest.mark.parametrize("order", [16, 52, 576])
def test_the_seed_decides(order):
    assert orthogonal(order, 7).tobytes() == orthogonal(order, 7).tobytes()
    assert orthogonal(order, 7).tobytes() != orthogonal(order, 8).tobytes()


def test_a_unit_vector_spreads_evenly():
    # Row j of the rotation is e_j rotated: all magnitudes are 1 / sqrt(64).
    assert np.array_equal(np.abs(orthogonal(64, 1)), np.full((64, 64), 0.125))
