"""Products of any-precision weights: planes of one stored tensor, as many as are asked for.

A weight of b bits is a row's table of 2**b values, indexed by the leading b planes (Any-Precision
LLM, Park et al., ICML 2024). Planes lie row by row: bit t of 32-bit word i of a run of 512 columns
is column 16 t + i, so that shifting 16 words gives the bits of 16 neighbouring columns.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import prange

from . import simd
from .layouts import aligned, padded
from .simd import inlined, jit

RUN = 512  #: columns of one vector of a plane


def pack_any_planes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [n, k] of `bits` bits as planes uint32 [bits, n, k/512, 16], top bit first."""
    n, k = codes.shape
    wide = np.zeros((n, padded(k, RUN)), np.uint8)
    wide[:, :k] = codes
    runs = wide.reshape(n, -1, 32, 16)
    out = aligned((bits, n, runs.shape[1], 16), np.uint32)
    place = np.arange(32, dtype=np.uint32)[:, None]
    for plane in range(bits):
        ones = (runs >> (bits - 1 - plane) & 1).astype(np.uint32)
        out[plane] = (ones << place).sum(axis=2, dtype=np.uint32)
    return out


@inlined
def _plane(planes, plane, bits, stride, at):  # type: ignore[no-untyped-def]
    return simd.load_i32(planes, min(plane, bits - 1) * stride + at)


@inlined
def _bit(word, t, place):  # type: ignore[no-untyped-def]
    """Bit t of each word, moved to `place`."""
    return simd.shl_i32(simd.and_i32(simd.shr_i32(word, t), simd.splat_i32(1)), place)


@cache
def kernel(bits: int) -> Any:
    """The compiled product at `bits` bits: `product` below."""

    @jit(parallel=True)
    def product(planes, tables, x, y):  # type: ignore[no-untyped-def]
        """y float32 [m, n]: planes uint32 [at least bits, n, runs, 16], tables float32 [n, 2**bits]
        (padded to 16), x float32 [m, 512 * runs], columns beyond k zero.
        """
        n, runs = planes.shape[1], planes.shape[2]
        stride = n * runs * 64
        for row in prange(n):
            values = tables[row]
            table = simd.load_f32(values, 0)
            sums = np.empty(16, np.float32)
            for token in range(x.shape[0]):
                total = other = simd.splat_f32(np.float32(0))
                acts = x[token]
                for run in range(runs):
                    at = (row * runs + run) * 64
                    # Planes that are not asked for are never used: no load is left of them.
                    w0 = _plane(planes, 0, bits, stride, at)
                    w1 = _plane(planes, 1, bits, stride, at)
                    w2 = _plane(planes, 2, bits, stride, at)
                    w3 = _plane(planes, 3, bits, stride, at)
                    w4 = _plane(planes, 4, bits, stride, at)
                    w5 = _plane(planes, 5, bits, stride, at)
                    w6 = _plane(planes, 6, bits, stride, at)
                    w7 = _plane(planes, 7, bits, stride, at)
                    for t in range(32):
                        index = _bit(w0, t, bits - 1)
                        if bits > 1:
                            index = simd.or_i32(index, _bit(w1, t, bits - 2))
                        if bits > 2:
                            index = simd.or_i32(index, _bit(w2, t, bits - 3))
                        if bits > 3:
                            index = simd.or_i32(index, _bit(w3, t, bits - 4))
                        if bits > 4:
                            index = simd.or_i32(index, _bit(w4, t, bits - 5))
                        if bits > 5:
                            index = simd.or_i32(index, _bit(w5, t, bits - 6))
                        if bits > 6:
                            index = simd.or_i32(index, _bit(w6, t, bits - 7))
                        if bits > 7:
                            index = simd.or_i32(index, _bit(w7, t, bits - 8))
                        if bits <= 4:
                            v = simd.lookup_floats(table, index)
                        else:
                            v = simd.gather_floats(values, index)
                        a = simd.load_f32(acts, 4 * (RUN * run + 16 * t))
                        if t & 1:
                            other = simd.fma_f32(v, a, other)
                        else:
                            total = simd.fma_f32(v, a, total)
                simd.store(sums, 0, simd.add_f32(total, other))
                whole = np.float32(0)
                for i in range(16):
                    whole += sums[i]
                y[token, row] = whole

    return product
