"""Jitted OliVe quantiser; plain arrays and ints only.

The definition is that of `olive.py`, whose reference gives the same codes and scales bit for bit.
`first` and `last` bound the rows a call works on: rows are independent.
"""

import numpy as np
from numba import njit

_ZERO = np.float32(0.0)
_BOUNDARY = np.float32(9.5)


@njit(cache=True, nogil=True)
def _fold(terms: np.ndarray, count: int) -> np.float64:
    """Sum of the first `count` terms by halving; `terms` is overwritten."""
    while count > 1:
        half = (count + 1) // 2
        for j in range(count - half):
            terms[j] += terms[j + half]
        count = half
    return terms[0]


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(
    w: np.ndarray,  # float32 [size]
    delta: np.float32,
    abfloat: np.ndarray,  # float32 [7], ascending
    mids: np.ndarray,  # float32 [6]
    codes: np.ndarray,  # uint8 [size], written
    values: np.ndarray,  # float32 [size], written
) -> None:
    """Codes and values of one group under one delta."""
    size = len(w)
    for j in range(0, size, 2):
        outlier = -1
        if j + 1 < size:
            left, right = abs(w[j] / delta), abs(w[j + 1] / delta)
            if left > _BOUNDARY or right > _BOUNDARY:
                outlier = j + 1 if abs(w[j + 1]) > abs(w[j]) else j
        for i in range(j, min(j + 2, size)):
            x = w[i] / delta
            if outlier < 0:
                value = np.float32(min(max(np.rint(x), np.float32(-7)), np.float32(7)))
                values[i] = value
                codes[i] = np.int32(value) & 15
            elif i != outlier:
                values[i] = _ZERO
                codes[i] = 8
            else:
                rank = 0
                for mid in mids:
                    rank += 1 if abs(x) > mid else 0
                values[i] = abfloat[rank] if x > _ZERO else -abfloat[rank]
                codes[i] = rank + (1 if x > _ZERO else 9)


@njit(cache=True, nogil=True, error_model="numpy")
def round_olive(
    w: np.ndarray,  # float32 [n, k]
    first: int,
    last: int,
    group_size: int,
    first_step: int,
    last_step: int,
    abfloat: np.ndarray,  # float32 [7], ascending
    mids: np.ndarray,  # float32 [6]
    codes: np.ndarray,  # uint8 [n, k], written
    deltas: np.ndarray,  # float32 [n, groups], written
) -> None:
    """Outlier-victim pairs, with the largest normal value that has the smallest squared error."""
    k = w.shape[1]
    term = np.empty(group_size, np.float64)
    value = np.empty(group_size, np.float32)
    code = np.empty(group_size, np.uint8)
    for row in range(first, last):
        for group in range(deltas.shape[1]):
            start = group * group_size
            size = min(group_size, k - start)
            weights = w[row, start : start + size]
            for j in range(size):
                term[j] = np.float64(weights[j])
            mean = _fold(term, size) / np.float64(size)
            for j in range(size):
                deviation = np.float64(weights[j]) - mean
                term[j] = deviation * deviation
            variance = _fold(term, size) / np.float64(max(1, size - 1))
            threshold = abs(mean) + 3.0 * np.sqrt(variance)
            least = np.inf
            best = _ZERO
            for step in range(first_step, last_step + 1):
                delta = np.float32(threshold * step / 224.0)
                if delta == 0:
                    continue
                _encode(weights, delta, abfloat, mids, code[:size], value[:size])
                wide = np.float64(delta)
                for j in range(size):
                    error = np.float64(weights[j]) - np.float64(value[j]) * wide
                    term[j] = error * error
                total = _fold(term, size)
                if total < least:
                    least = total
                    best = delta
            deltas[row, group] = best
            if best == 0:
                codes[row, start : start + size] = 0
                continue
            _encode(weights, best, abfloat, mids, codes[row, start : start + size], value[:size])
