"""Jitted round-to-nearest; plain arrays and ints only.

The definitions are those of `rtn.py`, whose reference gives the same codes, scales, selectors and
zero points bit for bit. All loops over a group run on small scratch arrays so that they vectorise.
"""

import numpy as np
from numba import njit

# Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 half to even, and vectorises.
_ROUNDER = np.float32(12582912.0)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def round_levels(
    w: np.ndarray,  # float32 [n, k]
    first: int,  # rows first .. last - 1 are done
    last: int,
    group_size: int,
    grids: np.ndarray,  # float32 [choices, levels], ascending
    mids: np.ndarray,  # float32 [choices, levels - 1]
    grid_codes: np.ndarray,  # uint8 [choices, levels]
    absmaxes: np.ndarray,  # float32 [choices]
    codes: np.ndarray,  # uint8 [n, k], written
    deltas: np.ndarray,  # float32 [n, groups], written
    selectors: np.ndarray,  # uint8 [n, groups], written
) -> None:
    """Nearest level, and the special value with the smallest squared error."""
    k = w.shape[1]
    choices, levels = grids.shape
    steps = np.zeros((choices, levels - 1), np.float32)
    for choice in range(choices):
        for i in range(levels - 1):
            steps[choice, i] = grids[choice, i + 1] - grids[choice, i]
    x = np.empty(group_size, np.float32)
    level = np.empty(group_size, np.float32)
    square = np.empty(group_size, np.float64)
    rank = np.empty(group_size, np.int32)
    for row in range(first, last):
        for group in range(deltas.shape[1]):
            start = group * group_size
            size = min(group_size, k - start)
            weights = w[row, start : start + size]
            absmax = _ZERO
            for j in range(size):
                absmax = max(absmax, abs(weights[j]))
            best = 0
            if choices > 1:
                least = np.inf
                for choice in range(choices):
                    delta = absmax / absmaxes[choice]
                    if delta == 0:
                        continue
                    for j in range(size):
                        x[j] = weights[j] / delta
                        level[j] = grids[choice, 0]
                    for i in range(levels - 1):
                        mid = mids[choice, i]
                        step = steps[choice, i]
                        for j in range(size):
                            level[j] += step if x[j] > mid else _ZERO
                    wide = np.float64(delta)
                    for j in range(size):
                        error = np.float64(weights[j]) - np.float64(level[j]) * wide
                        square[j] = error * error
                    count = size
                    while count > 1:
                        half = (count + 1) // 2
                        for j in range(count - half):
                            square[j] += square[j + half]
                        count = half
                    if square[0] < least:
                        least = square[0]
                        best = choice
            delta = absmax / absmaxes[best]
            deltas[row, group] = delta
            selectors[row, group] = best
            if delta == 0:
                selectors[row, group] = 0
                for j in range(size):
                    codes[row, start + j] = 0
                continue
            for j in range(size):
                x[j] = weights[j] / delta
                rank[j] = 0
            for i in range(levels - 1):
                mid = mids[best, i]
                for j in range(size):
                    rank[j] += 1 if x[j] > mid else 0
            for j in range(size):
                codes[row, start + j] = grid_codes[best, rank[j]]
