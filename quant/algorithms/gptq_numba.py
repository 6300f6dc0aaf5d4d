"""Jitted column loops of GPTQ; plain arrays and ints only.

The definition is that of `gptq.py`, whose reference gives the same codes and errors bit for bit.
Every function quantises columns start .. stop - 1 of the rows first .. end - 1 (rows are
independent) and moves their errors to the columns up to last - 1, where the column block ends.
"""

import numpy as np
from numba import njit

from .olive_numba import _encode

_ZERO = np.float32(0.0)
#: Rows that take one column after the other together: their divisions overlap.
_TILE = 16


@njit(cache=True, nogil=True, error_model="numpy")
def _move(
    w: np.ndarray,  # float32 [n, k], written
    u: np.ndarray,  # float32 [k, k]
    row: int,
    j: int,
    last: int,
    value: np.float32,  # the dequantised weight
) -> np.float32:
    """The error of column j, once it is taken off the columns behind."""
    error = np.float32((w[row, j] - value) / u[j, j])
    # Slices are indexed from 0: with no index that could be negative the loop vectorises.
    behind, factors = w[row, j + 1 : last], u[j, j + 1 : last]
    for i in range(len(behind)):
        behind[i] -= error * factors[i]
    return error


@njit(cache=True, nogil=True, error_model="numpy")
def level_columns(
    first: int,
    end: int,
    start: int,
    stop: int,
    last: int,
    w: np.ndarray,  # float32 [n, k], written
    u: np.ndarray,  # float32 [k, k]
    group_of: np.ndarray,  # int64 [k]
    units: np.ndarray,  # float32 [n, groups]
    scales: np.ndarray,  # float32 [n, groups]
    selectors: np.ndarray,  # uint8 [n, groups]
    zero_points: np.ndarray,  # uint8 [n, groups], not used
    tables: np.ndarray,  # float32 [choices, 2**bits]
    zero_weights: np.ndarray,  # float32 [2**bits], not used
    thresholds: np.ndarray,  # float32 [choices, 2**x - 1], ascending, filled up with Inf
    grid_codes: np.ndarray,  # uint8 [choices, levels]
    multiply: bool,  # by the unit, instead of dividing
    codes: np.ndarray,  # uint8 [n, k], written
    errors: np.ndarray,  # float32 [n, k], written
) -> None:
    """Tables of levels: the code is looked up by the number of thresholds below the weight."""
    half = (thresholds.shape[1] + 1) // 2
    for top in range(first, end, _TILE):
        for j in range(start, stop):
            group = group_of[j]
            for row in range(top, min(top + _TILE, end)):
                selector = selectors[row, group]
                unit = units[row, group]
                x = w[row, j] * unit if multiply else w[row, j] / unit
                skipped = 0
                step = half
                while step > 8:
                    skipped += step if thresholds[selector, skipped + step - 1] < x else 0
                    step //= 2
                below = np.int32(0)
                for threshold in thresholds[selector, skipped : skipped + 2 * step - 1]:
                    below += np.int32(1) if threshold < x else np.int32(0)
                code = grid_codes[selector, skipped + below]
                codes[row, j] = code
                value = tables[selector, code] * scales[row, group]
                errors[row, j] = _move(w, u, row, j, last, value)


@njit(cache=True, nogil=True, error_model="numpy")
def integer_columns(
    first: int,
    end: int,
    start: int,
    stop: int,
    last: int,
    w: np.ndarray,  # float32 [n, k], written
    u: np.ndarray,  # float32 [k, k]
    group_of: np.ndarray,  # int64 [k]
    units: np.ndarray,  # float32 [n, groups]
    scales: np.ndarray,  # float32 [n, groups]
    selectors: np.ndarray,  # uint8 [n, groups], not used
    zero_points: np.ndarray,  # uint8 [n, groups], 0 for symmetric integers
    tables: np.ndarray,  # float32 [1, 2**bits]
    zero_weights: np.ndarray,  # float32 [2**bits]
    low: int,
    high: int,
    mask: int,
    halves: bool,  # the codes high + 1 and high + 2 are plus and minus one half
    codes: np.ndarray,  # uint8 [n, k], written
    errors: np.ndarray,  # float32 [n, k], written
) -> None:
    """Integers, rounded half to even and clipped to low .. high; dINT's halves next to zero."""
    lowest, highest = np.float32(low), np.float32(high)
    for top in range(first, end, _TILE):
        for j in range(start, stop):
            group = group_of[j]
            for row in range(top, min(top + _TILE, end)):
                zero = np.float32(zero_points[row, group])
                x = w[row, j] / units[row, group]
                q = min(max(np.rint(x) + zero, lowest), highest)
                code = int(q) & mask
                if halves and abs(x) > np.float32(0.25) and abs(x) < np.float32(0.75):
                    code = high + 1 if x > _ZERO else high + 2
                codes[row, j] = code
                value = (tables[0, code] - zero_weights[code] * zero) * scales[row, group]
                errors[row, j] = _move(w, u, row, j, last, value)


@njit(cache=True, nogil=True, error_model="numpy")
def pair_columns(
    first: int,
    end: int,
    start: int,  # even
    stop: int,  # even, or k
    last: int,
    w: np.ndarray,  # float32 [n, k], written
    u: np.ndarray,  # float32 [k, k]
    group_of: np.ndarray,  # int64 [k], the same for both of a pair
    units: np.ndarray,  # float32 [n, groups]
    scales: np.ndarray,  # float32 [n, groups]
    pairs: np.ndarray,  # float32 [16, 16]: value of a code beside its partner's
    abfloat: np.ndarray,  # float32 [7], ascending
    mids: np.ndarray,  # float32 [6]
    codes: np.ndarray,  # uint8 [n, k], written
    errors: np.ndarray,  # float32 [n, k], written
) -> None:
    """OliVe: both columns of a pair are coded before the error of either moves on."""
    values = np.empty(2, np.float32)
    code = np.empty(2, np.uint8)
    for row in range(first, end):
        for j in range(start, stop, 2):
            group = group_of[j]
            size = min(2, stop - j)
            code[1] = 0
            unit = units[row, group]
            _encode(w[row, j : j + size], unit, abfloat, mids, code[:size], values[:size])
            for i in range(size):
                codes[row, j + i] = code[i]
                value = pairs[code[i], code[1 - i]] * scales[row, group]
                errors[row, j + i] = _move(w, u, row, j + i, last, value)
