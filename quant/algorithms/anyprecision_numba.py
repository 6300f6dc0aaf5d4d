"""Jitted clustering of sorted rows; plain arrays and ints only.

The definitions, and readable twins that give the same borders, are in `anyprecision.py`.
"""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, inline="always")
def _cost(sums, a, b):  # type: ignore[no-untyped-def]
    """Weighted squared error of the sorted values a .. b - 1 around their weighted mean."""
    weight = sums[0, b] - sums[0, a]
    if weight <= 0.0:
        return 0.0
    first = sums[1, b] - sums[1, a]
    return max(0.0, (sums[2, b] - sums[2, a]) - first * first / weight)


@njit(cache=True, nogil=True)
def seed_borders(
    sums: np.ndarray,  # float64 [3, k + 1]: prefix sums of weight, weight * x, weight * x**2
    borders: np.ndarray,  # int32 [clusters + 1], written: cluster c has values borders[c] ..
) -> None:
    """Borders of the clusters of least squared error, by dynamic programming.

    best[j] is the least error of the first j values in the clusters so far. The last border of an
    optimum moves right as j does, so that j between two solved ones only looks between theirs.
    """
    k = sums.shape[1] - 1
    clusters = len(borders) - 1
    cuts = np.zeros((clusters, k + 1), np.int32)
    best = np.empty(k + 1)
    for j in range(k + 1):
        best[j] = _cost(sums, 0, j)
    top = 1
    while 2 * top <= k:
        top *= 2
    for cluster in range(1, clusters):
        now = np.zeros(k + 1)
        cut = cuts[cluster]
        step = top
        while step >= 1:
            for j in range(step, k + 1, 2 * step):
                low = cut[j - step]
                high = cut[j + step] if j + step <= k else j
                least = np.inf
                for i in range(low, min(high, j) + 1):
                    total = best[i] + _cost(sums, i, j)
                    if total < least:
                        least = total
                        cut[j] = i
                now[j] = least
            step //= 2
        best = now
    borders[clusters] = k
    for cluster in range(clusters - 1, -1, -1):
        borders[cluster] = cuts[cluster, borders[cluster + 1]]


@njit(cache=True, nogil=True)
def split(
    sums: np.ndarray,  # float64 [3, k + 1], as above
    borders: np.ndarray,  # int32 [clusters + 1]
    children: np.ndarray,  # int32 [2 * clusters + 1], written
) -> None:
    """Cut every cluster in two where the squared error is least; the first such place.

    What no cut improves keeps all in the left child.
    """
    for cluster in range(len(borders) - 1):
        a, b = borders[cluster], borders[cluster + 1]
        children[2 * cluster] = a
        children[2 * cluster + 1] = b
        least = _cost(sums, a, b)
        for i in range(a + 1, b):
            total = _cost(sums, a, i) + _cost(sums, i, b)
            if total < least:
                least = total
                children[2 * cluster + 1] = i
    children[len(children) - 1] = borders[len(borders) - 1]


@njit(cache=True, nogil=True)
def cluster_rows(
    sums: np.ndarray,  # float64 [rows, 3, k + 1]
    seed_bits: int,
    parent: int,
    borders: np.ndarray,  # int32 [rows, widths, 2**parent + 1], written as far as a width goes
) -> None:
    """Borders of all widths of all rows."""
    for row in range(len(sums)):
        seed_borders(sums[row], borders[row, 0, : (1 << seed_bits) + 1])
        for width in range(1, parent - seed_bits + 1):
            count = 1 << (seed_bits + width)
            above = borders[row, width - 1, : count // 2 + 1]
            split(sums[row], above, borders[row, width, : count + 1])
