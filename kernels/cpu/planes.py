"""Exact products of bit planes by AND and popcount: the Binary-TensorCore PE's arithmetic.

I[m, n, g] = sum over planes i of x and j of w of 2**i * wx[i] * ww[j] * popcount(X_i AND W_j), with
plane weights ww (2**j, negative for the top plane of two's complement; +1 and -1 for the two sign
planes of ternary weights) and wx (1, or -1 for a top plane). Sums are modulo 2**64, of which the
accumulator keeps 32 bits. As in ABQ-LLM (Zeng et al., AAAI 2025, section 3.3); zero points and
scales are applied as in `integer.py`.
"""

import numpy as np
from numba import prange

from . import simd
from .layouts import PLANE_ROWS
from .simd import inlined, jit


@inlined
def _tile(w, x, first, last, x_signed, weights, out):  # type: ignore[no-untyped-def]
    """Sums of 8 rows for one row of activations: w [words, q, 8], x [words, p], out int64 [8]."""
    p, q = x.shape[1], w.shape[1]
    total = simd.splat_i64(0)
    for j in range(q):
        plane_total = simd.splat_i64(0)
        top = simd.splat_i64(0)
        for word in range(first, last):
            plane = simd.load_i64(w, 64 * (word * q + j))
            at = 8 * word * p
            for i in range(p - 1):
                ones = simd.popcount_i64(simd.and_i64(plane, simd.repeat_8_bytes(x, at + 8 * i)))
                plane_total = simd.add_i64(plane_total, simd.shl_i64(ones, i))
            both = simd.and_i64(plane, simd.repeat_8_bytes(x, at + 8 * (p - 1)))
            top = simd.add_i64(top, simd.popcount_i64(both))
        top = simd.shl_i64(top, p - 1)
        if x_signed:
            plane_total = simd.sub_i64(plane_total, top)
        else:
            plane_total = simd.add_i64(plane_total, top)
        total = simd.add_i64(total, simd.mul_i64(plane_total, simd.splat_i64(weights[j])))
    simd.store(out, 0, total)


@jit(parallel=True)
def plane_sums(w, x, starts, x_signed, weights, out):  # type: ignore[no-untyped-def]
    """out int32 [groups, m, 8 * row tiles].

    w uint64 [row tiles, words, q, 8]; x uint64 [m, words, p]; starts int64 [groups + 1], in words;
    weights int64 [q].
    """
    for tile in prange(w.shape[0]):
        sums = np.empty(PLANE_ROWS, np.int64)
        for row in range(x.shape[0]):
            for group in range(starts.shape[0] - 1):
                _tile(w[tile], x[row], starts[group], starts[group + 1], x_signed, weights, sums)
                for i in range(PLANE_ROWS):
                    out[group, row, PLANE_ROWS * tile + i] = np.int32(sums[i])
