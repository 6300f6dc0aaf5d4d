"""Exact products of binary and ternary weights by look-up of sums of activations.

All weights of 64 rows in the same few columns index one table, so the table is built once per row
of activations and a look-up is a byte shuffle:

- binary, four weights an index: entry b holds the sum of x[c] over the columns c whose bit is 1;
- ternary, "3 + 1": three weights are v = 9 w0 + 3 w1 + w2 in -13 .. 13; the index is |v|, entry
  |v| the sum for it, and one bit more says whether v < 0. That is TL2 of bitnet.cpp (Wang et al.,
  2024, arXiv 2410.16144): 5 bits for 3 weights.

Sums are int16, looked up as a table of low bytes and a table of high bytes, and added up in int16
until `_RUN` of them might overflow. Activations are int8, so a sum has at most 4 * 128 in
magnitude.
"""

import numpy as np
from numba import prange

from . import simd
from .layouts import LOOKUP_ROWS
from .simd import inlined, jit

#: Look-ups whose sum surely fits int16: 63 * 512 < 2**15; an even number of bytes of two look-ups.
_RUN = 62

#: |9 w0 + 3 w1 + w2| -> the three weights of the one with that positive number.
TRIPLES = np.array(
    [
        next(
            (a, b, c)
            for a in (-1, 0, 1)
            for b in (-1, 0, 1)
            for c in (-1, 0, 1)
            if 9 * a + 3 * b + c == v
        )
        for v in range(14)
    ],
    np.int16,
)


@jit()
def binary_tables(x, tables):  # type: ignore[no-untyped-def]
    """x int8 [m, 4 * indices] -> tables uint8 [m, indices, 2 (low, high byte), 16]."""
    for row in range(x.shape[0]):
        for index in range(tables.shape[1]):
            for entry in range(16):
                total = np.int16(0)
                for bit in range(4):
                    if entry >> bit & 1:
                        total += np.int16(x[row, 4 * index + bit])
                tables[row, index, 0, entry] = np.uint8(total & 255)
                tables[row, index, 1, entry] = np.uint8((total >> 8) & 255)


@jit()
def ternary_tables(x, triples, tables):  # type: ignore[no-untyped-def]
    """x int8 [m, 3 * indices] -> tables uint8 [m, indices, 2, 16]; entries 14 and 15 are unused."""
    for row in range(x.shape[0]):
        for index in range(tables.shape[1]):
            for entry in range(14):
                total = np.int16(0)
                for c in range(3):
                    total += triples[entry, c] * np.int16(x[row, 3 * index + c])
                tables[row, index, 0, entry] = np.uint8(total & 255)
                tables[row, index, 1, entry] = np.uint8((total >> 8) & 255)


@inlined
def _row(w, signs, tables, first, last, signed, out):  # type: ignore[no-untyped-def]
    """64 rows for one row of activations, indices first .. last (even numbers); out int32 [64]."""
    s0 = s1 = s2 = s3 = simd.splat_i32(0)
    for start in range(first, last, _RUN):
        low = high = simd.splat_i16(0)
        for index in range(start, min(start + _RUN, last), 2):
            both = simd.load_i8(w, 32 * index)
            for half in range(2):
                nibble = simd.and_i8(simd.shr_i8(both, 4 * half), simd.splat_i8(15))
                at = 32 * (index + half)
                small = simd.lookup_bytes(simd.repeat_16_bytes(tables, at), nibble)
                large = simd.lookup_bytes(simd.repeat_16_bytes(tables, at + 16), nibble)
                a, b = simd.join_low(small, large), simd.join_high(small, large)
                if signed:
                    a = simd.negate_where(a, np.int64(signs[index + half, 0]))
                    b = simd.negate_where(b, np.int64(signs[index + half, 1]))
                low, high = simd.add_i16(low, a), simd.add_i16(high, b)
        s0 = simd.add_i32(s0, simd.widen_low(low))
        s1 = simd.add_i32(s1, simd.widen_high(low))
        s2 = simd.add_i32(s2, simd.widen_low(high))
        s3 = simd.add_i32(s3, simd.widen_high(high))
    simd.store(out, 0, s0)
    simd.store(out, 64, s1)
    simd.store(out, 128, s2)
    simd.store(out, 192, s3)


@jit(parallel=True)
def lookup_sums(w, signs, tables, starts, signed, out):  # type: ignore[no-untyped-def]
    """out int32 [groups, m, 64 * row tiles]; rows of a tile in the order of `ORDER`.

    w uint8 [row tiles, indices/2, 64]; signs uint32 [row tiles, indices, 2], used if `signed`;
    tables uint8 [m, indices, 2, 16]; starts int64 [groups + 1], in indices, even.
    """
    for tile in prange(w.shape[0]):
        for row in range(tables.shape[0]):
            for group in range(starts.shape[0] - 1):
                _row(
                    w[tile], signs[tile], tables[row], starts[group], starts[group + 1], signed,
                    out[group, row, LOOKUP_ROWS * tile :],
                )  # fmt: skip


#: Row of a tile that each of the 64 sums belongs to: bytes are joined to words 8 of 16 at a time.
ORDER = np.array(
    [block + first + i for first in (0, 8) for block in range(0, 64, 16) for i in range(8)]
)


def pack_signs(negative: np.ndarray) -> np.ndarray:
    """Signs of triples, bool [n, indices], as uint32 [n/64, indices, 2] in the sums' order."""
    n, count = negative.shape
    tiles = -(-n // LOOKUP_ROWS)
    wide = np.zeros((tiles * LOOKUP_ROWS, count), np.uint8)
    wide[:n] = negative
    ordered = wide.reshape(tiles, LOOKUP_ROWS, count)[:, ORDER].transpose(0, 2, 1)
    packed = np.packbits(np.ascontiguousarray(ordered), axis=2, bitorder="little")
    return packed.view("<u4").astype(np.uint32).reshape(tiles, count, 2)
