"""Hadamard matrices, and the orthonormal matrices made of them.

A Hadamard matrix has entries +-1 and orthogonal rows: H @ H.T = order * I. Divided by the root of
its order it is the rotation that spreads one large entry most evenly, which is why quantisers
rotate with it (QuIP#, Tseng et al. 2024; QuaRot, Ashkboos et al., arXiv 2404.00456).

Three constructions, and all Kronecker products of theirs:

- Sylvester (1867): [[1, 1], [1, -1]], and by repeated products every power of two;
- Paley I (1933): order q + 1, q a prime congruent 3 mod 4;
- Paley II (1933): order 2 * (q + 1), q a prime congruent 1 mod 4.

Paley's constructions also hold for prime powers q; these are left out, so the first multiples of 4
that cannot be built are 52, 92, 100, 116, 156 and 172. (QuaRot's code has tables of known matrices
instead and multiplies them with powers of two.)
"""

import math
from functools import cache, reduce

import numpy as np
from jaxtyping import Float64, Int8

from bitwright.quant import InputError


def hadamard(order: int) -> Int8[np.ndarray, "order order"]:
    """A Hadamard matrix of that order, always the same one.

    It is the Kronecker product of the matrices of its factors, the smallest first, with as many
    factors 2 as possible: a power of two gives Sylvester's matrix in its natural order, 48 gives
    2 x 2 x 12. The first row is all ones where no factor is of Paley's second kind. Powers of two
    and Paley II matrices are symmetric; Paley I matrices are I plus a skew matrix.

    Raises:
        InputError: The order is below 1, or the constructions of this module do not reach it.

    >>> hadamard(4)
    array([[ 1,  1,  1,  1],
           [ 1, -1,  1, -1],
           [ 1,  1, -1, -1],
           [ 1, -1, -1,  1]], dtype=int8)
    """
    _check_positive(order)
    factors = _factors(order)
    if factors is None:
        raise InputError(
            f"no Hadamard matrix of order {order} can be built from powers of two and Paley's "
            f"constructions over primes; the nearest orders that can be are {_nearest(order)}"
        )
    return reduce(np.kron, map(_factor_matrix, factors), np.ones((1, 1), np.int8))


def block_order(order: int) -> int:
    """The largest order that `hadamard` builds and that divides `order`.

    >>> block_order(576), block_order(52), block_order(15)
    (576, 4, 1)
    """
    _check_positive(order)
    divisors = (order // count for count in range(1, order + 1) if order % count == 0)
    return next(divisor for divisor in divisors if _factors(divisor) is not None)


def orthogonal(order: int, seed: int) -> Float64[np.ndarray, "order order"]:
    """An orthonormal matrix: a Hadamard matrix with random signs, diag(signs) @ H / sqrt(order).

    Where `hadamard(order)` does not exist it is block-diagonal, made of blocks of the largest
    Hadamard order that divides `order` (`block_order`), each with its own signs. Such a matrix
    mixes only within a block, so an outlier is lowered by the root of the block order and no more.

    All entries outside the zero blocks have the same magnitude a = 1 / sqrt(block order) as rounded
    in float64, so the rows are orthogonal exactly. With the unit roundoff u = 2**-53, the rounded
    root and the rounded quotient put a**2 * (block order) between ((1 - u) / (1 + u))**2 and
    ((1 + u) / (1 - u))**2: the squared length of a row is within 5 * u of 1.

    Args:
        order: 1 or any even number.
        seed: Of numpy's default generator, which draws the signs.

    Raises:
        InputError: The order is below 1, or odd and not 1.
    """
    block = block_order(order)
    if block == 1 and order != 1:
        nearest = max(order - 1, order + 1, key=block_order)
        blocks = block_order(nearest)
        raise InputError(
            f"order {order} is odd, so it cannot be divided into Hadamard matrices; the nearest "
            f"usable order is {nearest}" + ("" if blocks == nearest else f", in blocks of {blocks}")
        )
    magnitude = 1 / math.sqrt(block)
    signs = np.random.default_rng(seed).choice([-magnitude, magnitude], order)
    # (block, row in the block, block, column in the block)
    result = np.zeros((order // block, block, order // block, block))
    matrix = hadamard(block)
    for index, chosen in enumerate(signs.reshape(-1, block, 1)):
        result[index, :, index] = chosen * matrix
    return result.reshape(order, order)


def _check_positive(order: int) -> None:
    if order < 1:
        raise InputError(f"order {order} of a Hadamard matrix must be at least 1")


@cache
def _factors(order: int) -> tuple[int, ...] | None:
    """Orders that one construction each gives, ascending; None if `order` is no product of such."""
    if order == 1:
        return ()
    for factor in range(2, order + 1, 2):
        if order % factor == 0 and _is_built(factor):
            rest = _factors(order // factor)
            if rest is not None:
                return factor, *rest
    return None


def _is_built(order: int) -> bool:
    """Whether one construction alone gives an even order."""
    return order == 2 or _paley_one(order) or _paley_two(order)


def _paley_one(order: int) -> bool:
    return order % 4 == 0 and _is_prime(order - 1)


def _paley_two(order: int) -> bool:
    return order % 4 == 0 and (order // 2 - 1) % 4 == 1 and _is_prime(order // 2 - 1)


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % divisor for divisor in range(2, math.isqrt(q) + 1))


def _nearest(order: int) -> str:
    """The orders next to one that cannot be built, as "48 and 56"."""
    below = next(n for n in range(order - 1, 0, -1) if _factors(n) is not None)
    # A power of two is reached at the latest, before order has doubled.
    above = next(n for n in range(order + 1, 2 * order) if _factors(n) is not None)
    return f"{below} and {above}"


def _factor_matrix(order: int) -> Int8[np.ndarray, "order order"]:
    pair = np.array([[1, 1], [1, -1]], np.int8)
    if order == 2:
        return pair
    if _paley_one(order):
        matrix = _bordered(order - 1)
        matrix[1:, 0] = -1
        return matrix + np.eye(order, dtype=np.int8)
    conference = _bordered(order // 2 - 1)
    turned = np.array([[1, -1], [-1, -1]], np.int8)
    # pair and turned anticommute up to transposition, pair @ turned.T + turned @ pair.T = 0, so
    # the mixed terms of H @ H.T vanish.
    return np.kron(conference, pair) + np.kron(np.eye(order // 2, dtype=np.int8), turned)


def _bordered(q: int) -> Int8[np.ndarray, "order order"]:
    """Jacobsthal's matrix chi(j - i) mod the prime q, bordered by ones, with 0 in the corner.

    chi(x) is 0 for x = 0, 1 for another square mod q and -1 for a non-square.
    """
    chi = np.full(q, -1, np.int8)
    chi[np.arange(q) ** 2 % q] = 1
    chi[0] = 0
    matrix = np.ones((q + 1, q + 1), np.int8)
    matrix[0, 0] = 0
    # Window s of the doubled period starts at chi(s), and row i starts at chi(-i) = chi(q - i).
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([chi, chi]), q)
    matrix[1:, 1:] = windows[q:0:-1]
    return matrix
