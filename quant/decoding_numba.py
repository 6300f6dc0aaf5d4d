"""Jitted decoding of weight codes; plain arrays and ints only."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def decode(
    codes: np.ndarray,  # uint8 [n, k]
    tables: np.ndarray,  # float32 [choices, 2**bits]: value of each code under each selector
    selectors: np.ndarray,  # uint8 [n, groups]; all zero where the format has none
    zero_points: np.ndarray,  # uint8 [n, groups]; all zero where the format has none
    scales: np.ndarray,  # float32 [n, groups]; all one for unscaled values
    group_size: int,
    out: np.ndarray,  # float32 [n, k], written
) -> None:
    """out = (tables[selector, code] - zero point) * scale, one float32 rounding."""
    n, k = codes.shape
    for row in range(n):
        for group in range(scales.shape[1]):
            table = tables[selectors[row, group]]
            zero = np.float32(zero_points[row, group])
            scale = scales[row, group]
            for column in range(group * group_size, min((group + 1) * group_size, k)):
                out[row, column] = (table[codes[row, column]] - zero) * scale
