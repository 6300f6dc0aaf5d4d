"""Products of any-precision weights: planes of one stored tensor, as many as are asked for.

A weight of b bits is a row's table of 2**b values, indexed by the leading b planes (Any-Precision
LLM, Park et al., ICML 2024). Planes lie row by row, 64 columns to a word, which is a mask of 64
bytes: under each plane's mask the weight of its bit is added, so that b masked additions make 64
indices. Bit 4 i + j of a word is column 16 j + i: byte j of 16 words of 32 bits, which shifts bring
down, is the index of 16 neighbouring columns.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import prange

from . import simd
from .layouts import aligned, padded
from .simd import inlined, jit

RUN = 64  #: columns of a word of a plane
_TOKENS = 4  #: rows of activations that share decoded weights


def pack_any_planes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [n, k] of `bits` bits as planes int64 [bits, n, k/64], top bit first."""
    n, k = codes.shape
    wide = np.zeros((n, padded(k, RUN)), np.uint8)
    wide[:, :k] = codes
    runs = wide.shape[1] // RUN
    ordered = wide.reshape(n, runs, 4, 16).swapaxes(2, 3)
    out = aligned((bits, n, runs), np.int64)
    for plane in range(bits):
        ones = (ordered >> (bits - 1 - plane) & 1).reshape(n, runs * RUN)
        out[plane] = np.packbits(ones, axis=1, bitorder="little").view("<i8")
    return out


@inlined
def _four(value, table, index, bits):  # type: ignore[no-untyped-def]
    """The values of 64 columns, 16 at a time."""
    v0 = value(table, index, bits)
    index = simd.shr_i32(index, 8)
    if bits == 8:  # one after the other, or registers do not suffice
        index = simd.behind(index, v0)
    v1 = value(table, index, bits)
    index = simd.shr_i32(index, 8)
    if bits == 8:
        index = simd.behind(index, v1)
    v2 = value(table, index, bits)
    index = simd.shr_i32(index, 8)
    if bits == 8:
        index = simd.behind(index, v2)
    return v0, v1, v2, value(table, index, bits)


@inlined
def _few(table, index, bits):  # type: ignore[no-untyped-def]
    """Values of up to 4 bits: one look-up by the low four bits of an index."""
    return simd.lookup_floats(simd.load_f32(table, 0), index)


@inlined
def _pair(table, index, place):  # type: ignore[no-untyped-def]
    """Entries from `place` on, by the low five bits of an index."""
    low, high = simd.load_f32(table, 4 * place), simd.load_f32(table, 4 * place + 64)
    return simd.lookup_float_pairs(low, index, high)


@inlined
def _quad(table, index, place):  # type: ignore[no-untyped-def]
    low, high = _pair(table, index, place), _pair(table, index, place + 32)
    return simd.select_by_bit(index, 5, high, low)


@inlined
def _octet(table, index, place):  # type: ignore[no-untyped-def]
    low, high = _quad(table, index, place), _quad(table, index, place + 64)
    return simd.select_by_bit(index, 6, high, low)


@inlined
def _many(table, index, bits):  # type: ignore[no-untyped-def]
    """Values of 5 to 8 bits: look-ups in pieces of the table, between which upper bits choose."""
    if bits == 5:
        return _pair(table, index, 0)
    if bits == 6:
        return _quad(table, index, 0)
    if bits == 7:
        return _octet(table, index, 0)
    return simd.select_by_bit(index, 7, _octet(table, index, 128), _octet(table, index, 0))


@inlined
def _gathered(table, index, bits):  # type: ignore[no-untyped-def]
    """The same where there is no look-up in two vectors."""
    return simd.gather_floats(table, simd.and_i32(index, simd.splat_i32((1 << bits) - 1)))


@cache
def kernel(bits: int) -> Any:
    """The compiled product at `bits` bits: `product` below."""
    value = _few if bits <= 4 else _many if simd.WIDE else _gathered
    tokens = _TOKENS

    @inlined
    def indices(planes, row, run):  # type: ignore[no-untyped-def]
        index = simd.splat_i8(0)
        for plane in range(bits):
            mask = planes[plane, row, run]
            index = simd.add_where(index, mask, simd.splat_i8(1 << (bits - 1 - plane)))
        return simd.i8_as_i32(index)

    @inlined
    def added(sums, a, place, v):  # type: ignore[no-untyped-def]
        """Four products of 16 columns each."""
        s0 = simd.fma_f32(v[0], simd.load_f32(a, place), sums[0])
        s1 = simd.fma_f32(v[1], simd.load_f32(a, place + 64), sums[1])
        s2 = simd.fma_f32(v[2], simd.load_f32(a, place + 128), sums[2])
        s3 = simd.fma_f32(v[3], simd.load_f32(a, place + 192), sums[3])
        return s0, s1, s2, s3

    @inlined
    def total(sums, scratch):  # type: ignore[no-untyped-def]
        lanes = simd.add_f32(simd.add_f32(sums[0], sums[1]), simd.add_f32(sums[2], sums[3]))
        simd.store(scratch, 0, lanes)
        whole = np.float32(0)
        for i in range(16):
            whole += scratch[i]
        return whole

    @jit(parallel=True)
    def product(planes, tables, x, y):  # type: ignore[no-untyped-def]
        """y float32 [m, n]: planes int64 [at least bits, n, runs], tables float32 [n, 2**bits]
        (padded to 16), x float32 [m, 64 * runs], columns beyond k zero.

        A row of x has the same sums whatever the number of rows.
        """
        n, runs = planes.shape[1], planes.shape[2]
        zero = simd.splat_f32(np.float32(0))
        for row in prange(n):
            table = tables[row]
            scratch = np.empty(16, np.float32)
            m = x.shape[0] // tokens * tokens
            for first in range(0, m, tokens):
                s0 = s1 = s2 = s3 = (zero, zero, zero, zero)
                for run in range(runs):
                    v = _four(value, table, indices(planes, row, run), bits)
                    place = 4 * RUN * run
                    s0 = added(s0, x[first], place, v)
                    s1 = added(s1, x[first + 1], place, v)
                    s2 = added(s2, x[first + 2], place, v)
                    s3 = added(s3, x[first + 3], place, v)
                y[first, row] = total(s0, scratch)
                y[first + 1, row] = total(s1, scratch)
                y[first + 2, row] = total(s2, scratch)
                y[first + 3, row] = total(s3, scratch)
            for token in range(m, x.shape[0]):
                acts = x[token]
                sums = (zero, zero, zero, zero)
                for run in range(runs):
                    v = _four(value, table, indices(planes, row, run), bits)
                    sums = added(sums, acts, 4 * RUN * run, v)
                y[token, row] = total(sums, scratch)

    return product
