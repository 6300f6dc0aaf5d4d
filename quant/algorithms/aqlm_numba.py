"""Jitted search over codes; plain arrays and ints only.

The readable twin, which gives the same codes, is `search_group_reference` in `aqlm.py`.
"""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def nearest(
    x: np.ndarray,  # float32 [points, g]
    columns: np.ndarray,  # float32 [g, entries]: the centroids, transposed
    halves: np.ndarray,  # float32 [entries]: half of each centroid's squared length
    labels: np.ndarray,  # uint16 [points], written
) -> None:
    """Nearest centroid of every point; the first in a tie."""
    g, entries = columns.shape
    score = np.empty(entries, np.float32)
    for point in range(len(x)):
        score[:] = halves
        for t in range(g):
            value = x[point, t]
            for c in range(entries):
                score[c] -= value * columns[t, c]
        best = 0
        for c in range(1, entries):
            if score[c] < score[best]:
                best = c
        labels[point] = best


@njit(cache=True, nogil=True)
def search_group(
    codes: np.ndarray,  # uint16 [n, codebooks]: of one input group, updated
    slopes: np.ndarray,  # float32 [n, g]: error of each row times the Gram matrix' columns here
    gram: np.ndarray,  # float32 [g, g]: the group's own block of the Gram matrix
    codebooks: np.ndarray,  # float32 [codebooks, entries, g]
    columns: np.ndarray,  # float32 [codebooks, g, entries]: the same, transposed
    squares: np.ndarray,  # float32 [codebooks, entries]: c^T gram c
    scales: np.ndarray,  # float32 [n]
    order: np.ndarray,  # int64 [codebooks]: in which codebooks are gone through
    beam: int,  # alternatives kept
    change: np.ndarray,  # float32 [n, g], written: of the group's weights
) -> None:
    """Choose a group's codes anew in every row, one codebook at a time, keeping the best `beam`.

    What a change d of the group's weights does to the loss is 2 d . slope + d^T gram d.
    """
    n, count = codes.shape
    entries, g = codebooks.shape[1], codebooks.shape[2]
    kept = np.zeros((beam, count), np.uint16)
    moved = np.zeros((beam, g), np.float32)
    next_kept = np.zeros((beam, count), np.uint16)
    next_moved = np.zeros((beam, g), np.float32)
    losses = np.empty(beam, np.float32)
    score = np.empty(entries, np.float32)
    base = np.empty(g, np.float32)
    for row in range(n):
        s = scales[row]
        alive = 1
        kept[0] = codes[row]
        moved[0] = 0
        for m in order:
            found = 0
            for b in range(alive):
                old = kept[b, m]
                for t in range(g):
                    base[t] = moved[b, t] - s * codebooks[m, old, t]
                fixed = np.float32(0)
                score[:] = s * s * squares[m]
                for t in range(g):
                    product = np.float32(0)
                    for u in range(g):
                        product += gram[t, u] * base[u]
                    fixed += base[t] * (2 * slopes[row, t] + product)
                    slope = 2 * s * (slopes[row, t] + product)
                    for c in range(entries):
                        score[c] += slope * columns[m, t, c]
                for _ in range(beam):
                    # The old code is looked at first and stays in a tie: no change by rounding.
                    best = np.int64(old)
                    for c in range(entries):
                        if score[c] < score[best]:
                            best = np.int64(c)
                    loss = fixed + score[best]
                    if score[best] == np.inf:
                        break
                    score[best] = np.inf
                    place = found if found < beam else beam
                    while place > 0 and losses[place - 1] > loss:
                        place -= 1
                    if place >= beam:
                        break
                    found = min(found + 1, beam)
                    for other in range(found - 1, place, -1):
                        losses[other] = losses[other - 1]
                        next_kept[other] = next_kept[other - 1]
                        next_moved[other] = next_moved[other - 1]
                    losses[place] = loss
                    next_kept[place] = kept[b]
                    next_kept[place, m] = best
                    for t in range(g):
                        next_moved[place, t] = base[t] + s * codebooks[m, best, t]
            alive = found
            kept[:alive] = next_kept[:alive]
            moved[:alive] = next_moved[:alive]
        codes[row] = kept[0]
        change[row] = moved[0]


@njit(cache=True, nogil=True)
def decode(
    codes: np.ndarray,  # uint16 [n, groups, codebooks]
    codebooks: np.ndarray,  # float32 [codebooks, entries, g]
    scales: np.ndarray,  # float32 [n]
    out: np.ndarray,  # float32 [n, groups * g], written
) -> None:
    """Sum of a group's codewords, first codebook first, times the row's scale."""
    n, groups, count = codes.shape
    g = codebooks.shape[2]
    for row in range(n):
        for group in range(groups):
            for t in range(g):
                total = codebooks[0, codes[row, group, 0], t]
                for m in range(1, count):
                    total += codebooks[m, codes[row, group, m], t]
                out[row, group * g + t] = total * scales[row]


@njit(cache=True, nogil=True)
def gather(
    slopes: np.ndarray,  # float32 [n, groups * g]
    codes: np.ndarray,  # uint16 [n, groups, codebooks]
    scales: np.ndarray,  # float32 [n]
    out: np.ndarray,  # float64 [codebooks, entries, g], written
) -> None:
    """Sum, over all places of a codeword, of scale * slope: the adjoint of `decode`."""
    n, groups, count = codes.shape
    g = out.shape[2]
    out[:] = 0
    for row in range(n):
        for group in range(groups):
            for m in range(count):
                code = codes[row, group, m]
                for t in range(g):
                    out[m, code, t] += scales[row] * slopes[row, group * g + t]


@njit(cache=True, nogil=True)
def look_up(
    codes: np.ndarray,  # uint16 [n, groups, codebooks]
    tables: np.ndarray,  # float32 [groups, codebooks, entries]
    scales: np.ndarray,  # float32 [n]
    out: np.ndarray,  # float32 [n], written
) -> None:
    """Sum of a row's table entries, times its scale."""
    n, groups, count = codes.shape
    for row in range(n):
        total = np.float32(0)
        for group in range(groups):
            for m in range(count):
                total += tables[group, m, codes[row, group, m]]
        out[row] = total * scales[row]
