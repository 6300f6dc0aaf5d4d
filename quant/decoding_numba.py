"""Jitted decoding of weight codes; plain arrays and ints only."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def decode(
    codes: np.ndarray,  # uint8 [n, k]
    tables: np.ndarray,  # float32 [choices, 2**bits]: value of each code under each selector
    zero_weights: np.ndarray,  # float32 [2**bits]: 0 or 1, times the zero point taken off a code
    selectors: np.ndarray,  # uint8 [n, groups]; all zero where the format has none
    zero_points: np.ndarray,  # uint8 [n, groups]; all zero where the format has none
    scales: np.ndarray,  # float32 [n, groups]; all one for unscaled values
    group_size: int,
    out: np.ndarray,  # float32 [n, k], written
) -> None:
    """out = (tables[selector, code] - zero_weights[code] * zero point) * scale, rounded once."""
    n, k = codes.shape
    for row in range(n):
        for group in range(scales.shape[1]):
            table = tables[selectors[row, group]]
            zero = np.float32(zero_points[row, group])
            scale = scales[row, group]
            for column in range(group * group_size, min((group + 1) * group_size, k)):
                code = codes[row, column]
                out[row, column] = (table[code] - zero_weights[code] * zero) * scale


@njit(cache=True, nogil=True)
def decode_pairs(
    codes: np.ndarray,  # uint8 [n, k]
    table: np.ndarray,  # float32 [2**bits, 2**bits]: value of a code beside its partner's
    scales: np.ndarray,  # float32 [n, groups]; all one for unscaled values
    group_size: int,  # even, or k
    out: np.ndarray,  # float32 [n, k], written
) -> None:
    """out = table[code, partner] * scale; columns 2j and 2j+1 are partners, a last one has 0."""
    n, k = codes.shape
    for row in range(n):
        for column in range(k):
            other = column ^ 1
            partner = codes[row, other] if other < k else 0
            scale = scales[row, column // group_size]
            out[row, column] = table[codes[row, column], partner] * scale
