"""Jitted round-to-nearest; plain arrays and ints only.

The definitions are those of `rtn.py`, whose reference gives the same codes, scales, selectors and
zero points bit for bit. Each loop over a group runs over small scratch arrays, so that it
vectorises. `first` and `last` bound the rows a call works on: rows are independent.
"""

import numpy as np
from numba import njit

# Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 half to even, and vectorises.
_ROUNDER = np.float32(12582912.0)
_ZERO = np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def round_levels(
    w: np.ndarray,  # float32 [n, k]
    first: int,
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
    """Nearest level, and the grid with the smallest squared error."""
    k = w.shape[1]
    choices, levels = grids.shape
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
                        above = grids[choice, i + 1]
                        for j in range(size):
                            level[j] = above if x[j] > mid else level[j]
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


@njit(cache=True, nogil=True, error_model="numpy")
def round_int_sym(
    w: np.ndarray,  # float32 [n, k]
    first: int,
    last: int,
    group_size: int,
    bits: int,
    codes: np.ndarray,  # uint8 [n, k], written
    deltas: np.ndarray,  # float32 [n, groups], written
) -> None:
    """Symmetric integers, two's complement masked to `bits`."""
    k = w.shape[1]
    qmax = np.float32((1 << (bits - 1)) - 1)
    mask = (1 << bits) - 1
    for row in range(first, last):
        for group in range(deltas.shape[1]):
            start = group * group_size
            stop = min(start + group_size, k)
            absmax = _ZERO
            for j in range(start, stop):
                absmax = max(absmax, abs(w[row, j]))
            delta = absmax / qmax
            deltas[row, group] = delta
            if delta == 0:
                codes[row, start:stop] = 0
                continue
            for j in range(start, stop):
                q = (w[row, j] / delta + _ROUNDER) - _ROUNDER
                q = min(max(q, -qmax), qmax)
                codes[row, j] = np.int32(q) & mask


@njit(cache=True, nogil=True, error_model="numpy")
def round_int_asym(
    w: np.ndarray,  # float32 [n, k]
    first: int,
    last: int,
    group_size: int,
    top: int,  # the largest code
    codes: np.ndarray,  # uint8 [n, k], written
    deltas: np.ndarray,  # float32 [n, groups], written
    zero_points: np.ndarray,  # uint8 [n, groups], written
) -> None:
    """Integers 0 .. top around a zero point; the range always includes 0."""
    k = w.shape[1]
    qmax = np.float32(top)
    for row in range(first, last):
        for group in range(deltas.shape[1]):
            start = group * group_size
            stop = min(start + group_size, k)
            low = _ZERO
            high = _ZERO
            for j in range(start, stop):
                low = min(low, w[row, j])
                high = max(high, w[row, j])
            delta = (high - low) / qmax
            deltas[row, group] = delta
            if delta == 0:
                zero_points[row, group] = 0
                codes[row, start:stop] = 0
                continue
            zero = (-low / delta + _ROUNDER) - _ROUNDER
            zero = min(max(zero, _ZERO), qmax)
            zero_points[row, group] = np.int32(zero)
            for j in range(start, stop):
                q = ((w[row, j] / delta + _ROUNDER) - _ROUNDER) + zero
                codes[row, j] = np.int32(min(max(q, _ZERO), qmax))


@njit(cache=True, nogil=True, error_model="numpy")
def round_dint_asym(
    w: np.ndarray,  # float32 [n, k]
    first: int,
    last: int,
    group_size: int,
    bits: int,
    codes: np.ndarray,  # uint8 [n, k], written
    deltas: np.ndarray,  # float32 [n, groups], written
    zero_points: np.ndarray,  # uint8 [n, groups], written
) -> None:
    """Levels 0 .. 2**bits - 3 around a zero point, and the two specials next to zero."""
    k = w.shape[1]
    top = (1 << bits) - 3
    qmax = np.float32(top)
    for row in range(first, last):
        for group in range(deltas.shape[1]):
            start = group * group_size
            stop = min(start + group_size, k)
            low = _ZERO
            high = _ZERO
            for j in range(start, stop):
                low = min(low, w[row, j])
                high = max(high, w[row, j])
            delta = (high - low) / qmax
            deltas[row, group] = delta
            if delta == 0:
                zero_points[row, group] = 0
                codes[row, start:stop] = 0
                continue
            zero = (-low / delta + _ROUNDER) - _ROUNDER
            zero = min(max(zero, _ZERO), qmax)
            zero_points[row, group] = np.int32(zero)
            for j in range(start, stop):
                x = w[row, j] / delta
                q = min(max(((x + _ROUNDER) - _ROUNDER) + zero, _ZERO), qmax)
                near = abs(x) > np.float32(0.25) and abs(x) < np.float32(0.75)
                special = top + 1 if x > _ZERO else top + 2
                codes[row, j] = special if near else np.int32(q)


@njit(cache=True, nogil=True, error_model="numpy")
def round_absmean(
    w: np.ndarray,  # float32 [n, k]
    first: int,
    last: int,
    group_size: int,
    bits: int,  # 1: binary, 2: ternary
    codes: np.ndarray,  # uint8 [n, k], written
    deltas: np.ndarray,  # float32 [n, groups], written
) -> None:
    """Signs, or signs and zeros, with the mean magnitude as the scale."""
    k = w.shape[1]
    term = np.empty(group_size, np.float64)
    for row in range(first, last):
        for group in range(deltas.shape[1]):
            start = group * group_size
            size = min(group_size, k - start)
            for j in range(size):
                term[j] = np.float64(abs(w[row, start + j]))
            count = size
            while count > 1:
                half = (count + 1) // 2
                for j in range(count - half):
                    term[j] += term[j + half]
                count = half
            delta = np.float32(term[0] / np.float64(size))
            deltas[row, group] = delta
            if bits == 1:
                for j in range(size):
                    codes[row, start + j] = 1 if w[row, start + j] >= _ZERO else 0
                continue
            if delta == 0:
                codes[row, start : start + size] = 0
                continue
            for j in range(size):
                # +-1/2 rounds to 0, the even neighbour; -1 is the code 3.
                x = w[row, start + j] / delta
                plus = 1 if x > np.float32(0.5) else 0
                codes[row, start + j] = 3 if x < np.float32(-0.5) else plus


@njit(cache=True, nogil=True)
def _half(x: np.float32) -> np.float32:
    """The float16 nearest to x (ties to even), as a float32."""
    bits = np.float32(x).view(np.uint32)
    magnitude = np.uint32(bits & 0x7FFFFFFF)
    sign = bits & 0x80000000
    if magnitude >= 0x477FF000:  # 65520 and more round to infinity
        rounded = np.uint32(0x7F800000)
    elif magnitude < 0x38800000:  # below 2**-14: a multiple of 2**-24
        # float32 has that spacing from 0.5 to 1.
        tiny = (magnitude.view(np.float32) + np.float32(0.5)) - np.float32(0.5)
        rounded = np.float32(tiny).view(np.uint32)
    else:
        rounded = np.uint32((magnitude + 0xFFF + ((magnitude >> 13) & 1)) & 0xFFFFE000)
    return np.uint32(rounded | sign).view(np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def round_levels_fp16(
    w: np.ndarray,  # float32 [n, k], each a float16 value
    first: int,
    last: int,
    group_size: int,
    grids: np.ndarray,  # float32 [choices, levels], ascending, integers
    mids: np.ndarray,  # float32 [choices, levels - 1]
    grid_codes: np.ndarray,  # uint8 [choices, levels]
    absmaxes: np.ndarray,  # float32 [choices]
    delta_min: np.float32,
    delta_max: np.float32,
    least_start: np.float32,
    codes: np.ndarray,  # uint8 [n, k], written
    deltas: np.ndarray,  # float32 [n, groups], written
    selectors: np.ndarray,  # uint8 [n, groups], written
) -> None:
    """Nearest level with every operation rounded to float16, as the released quantiser does."""
    k = w.shape[1]
    choices, levels = grids.shape
    rank = np.empty(group_size, np.int32)
    square = np.empty(group_size, np.float32)
    for row in range(first, last):
        for group in range(deltas.shape[1]):
            start = group * group_size
            size = min(group_size, k - start)
            absmax = _ZERO
            for j in range(size):
                absmax = max(absmax, abs(w[row, start + j]))
                codes[row, start + j] = 0
            deltas[row, group] = min(max(_half(absmax / absmaxes[0]), delta_min), delta_max)
            selectors[row, group] = 0
            least = least_start
            for choice in range(choices):
                delta = min(max(_half(absmax / absmaxes[choice]), delta_min), delta_max)
                for j in range(size):
                    weight = w[row, start + j]
                    x = _half(weight / delta)
                    rank[j] = 0
                    for i in range(levels - 1):
                        rank[j] += 1 if x > mids[choice, i] else 0
                    error = _half(_half(grids[choice, rank[j]] * delta) - weight)
                    square[j] = _half(error * error)
                count = size
                while count > 1:
                    half = (count + 1) // 2
                    for j in range(count - half):
                        square[j] += square[j + half]
                    count = half
                mean = _half(square[0] / np.float32(size))
                if mean < least:
                    least = mean
                    deltas[row, group] = delta
                    selectors[row, group] = choice
                    for j in range(size):
                        codes[row, start + j] = grid_codes[choice, rank[j]]
