"""Products of packed weight-only codes and float32 activations.

y[m, n] = sum over groups g of s[n, g] * sum over k in g of x[m, k] * v[n, k], where the value v of
a code depends on it in one of these ways (`Decode`):

| | value | for |
| --- | --- | --- |
| "table" | table[code] | up to 4 bits |
| "shifted" | table[code] + extra | up to 4 bits with a zero point |
| "masked" | table[code] + mask[code] * extra | up to 4 bits with special values of a group |
| "code" | code + extra | integers of any width |
| "pairs" | table[code] + extra | 1 and 2 bits |
| "gather" | table[code] + mask[code] * extra | 5 to 8 bits |

`extra` is a number of a row and group. All values are small multiples of a power of two, so they
are exact in float32. Sixteen rows are summed side by side, each in four chains (columns 4 j + c for
every c) of fused multiply-adds, whatever the number of activations.

**Error.** With u = 2**-24, a chain of at most ceil(K/4) fused operations, the sum of the four, the
product with the scale and the sum over G groups round each term at most ceil(K/4) + G + 3 times, so
that the computed y differs from the exact sum of x v s by at most

    1.01 (ceil(K/4) + G + 3) u * sum_k |x v s|        (K columns of the longest group)

while 1.01 covers higher orders as long as the first factor times u stays below 0.01 (Higham,
Accuracy and Stability of Numerical Algorithms, section 3.1). Against `dequantize()`, whose weights
are v s rounded once, one more u comes on top; `error_bound` is that.

**Pairs.** Where four bits hold two codes (or four of one bit), they index a table of sums of
activations times values that is built once per row of activations; `extra` is applied once per
group, to the sum of its activations. A term is then rounded at most twice in its table, ceil(K/8) +
2 times on the way to the group's sum, and those of `extra` at most K + 1 times; K + G + 4 covers
all, and the magnitudes are those of table and `extra` apart: `pairs_bound`.
"""

from functools import cache
from typing import Any, Literal

import numpy as np
from numba import prange

from bitwright.quant import QuantizedTensor

from . import simd
from .integer import AHEAD, quad
from .layouts import ROWS
from .simd import inlined, jit

Decode = Literal["table", "shifted", "masked", "code", "gather", "pairs"]
DECODES: tuple[Decode, ...] = ("table", "shifted", "masked", "code", "gather")
#: Look-ups of a vector: the nibbles of its 32-bit words.
LOOKUPS = 8


def error_bound(x: np.ndarray, w: np.ndarray, group_size: int) -> np.ndarray:
    """How far y may lie from x @ w.T, float64 [m, n]; see above.

    Args:
        x: Activations [m, k].
        w: `dequantize()` of the weights [n, k].
        group_size: Columns of a group.
    """
    k = w.shape[1]
    size = min(group_size, k)
    count = -(-size // 4) + -(-k // size) + 4
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(w.astype(np.float64)).T
    # A product below float32's normal range loses up to half its smallest step instead.
    return 1.01 * count * 2.0**-24 * magnitude + k * 2.0**-149


def pairs_bound(x: np.ndarray, w: QuantizedTensor) -> np.ndarray:
    """How far y may lie from x @ w.T for decode "pairs", float64 [m, n]; see above."""
    size = min(w.group_size, w.k)
    codes = np.abs(np.array(w.format.code_values()))[w.codes]
    if w.zero_points is not None:
        codes = codes + np.repeat(w.zero_points, size, axis=1)[:, : w.k]
    scales = np.repeat(w.scales(), size, axis=1)[:, : w.k]
    magnitude = np.abs(x.astype(np.float64)) @ (codes * scales.astype(np.float64)).T
    return 1.01 * (size + w.groups + 4) * 2.0**-24 * magnitude + w.k * 2.0**-149


@inlined
def _values(word, column, table, mask, tables, masks, extra, how):  # type: ignore[no-untyped-def]
    """Values of 16 rows in one of the four columns of a quad."""
    index = simd.shr_i32(word, 8 * column)
    if how == 3:
        return simd.add_f32(simd.to_f32(simd.and_i32(index, simd.splat_i32(255))), extra)
    if how == 4:
        index = simd.and_i32(index, simd.splat_i32(255))
        low = simd.gather_floats(tables, index)
        return simd.fma_f32(simd.gather_floats(masks, index), extra, low)
    value = simd.lookup_floats(table, index)
    if how == 1:
        return simd.add_f32(value, extra)
    if how == 2:
        return simd.fma_f32(simd.lookup_floats(mask, index), extra, value)
    return value


@inlined
def _quad(sums, tiles, at, j, x, place, table, mask, tables, masks, extra, bits, how):  # type: ignore[no-untyped-def]
    """The four sums of 16 rows plus quad j, columns 4 j .. 4 j + 3, of a tile."""
    a, b, c, d = sums
    word = simd.i8_as_i32(quad(tiles, at, j, bits))
    place += 16 * j
    v = _values(word, 0, table, mask, tables, masks, extra, how)
    a = simd.fma_f32(v, simd.repeat_float(x, place), a)
    v = _values(word, 1, table, mask, tables, masks, extra, how)
    b = simd.fma_f32(v, simd.repeat_float(x, place + 4), b)
    v = _values(word, 2, table, mask, tables, masks, extra, how)
    c = simd.fma_f32(v, simd.repeat_float(x, place + 8), c)
    v = _values(word, 3, table, mask, tables, masks, extra, how)
    d = simd.fma_f32(v, simd.repeat_float(x, place + 12), d)
    return a, b, c, d


@inlined
def _with_group(result, sums, scale):  # type: ignore[no-untyped-def]
    a, b, c, d = sums
    total = simd.add_f32(simd.add_f32(a, b), simd.add_f32(c, d))
    return simd.add_f32(result, simd.mul_f32(total, scale))


@inlined
def _one(tiles, tables, masks, extra, x, starts, scale, y, bits, how):  # type: ignore[no-untyped-def]
    """One row of activations x [columns] and one tile of rows."""
    table, mask = simd.load_f32(tables, 0), simd.load_f32(masks, 0)
    none = result = simd.splat_f32(np.float32(0))
    for group in range(starts.shape[0] - 1):
        simd.fetch(scale, 64 * group + AHEAD // 4)
        s = (none, none, none, none)
        more = simd.load_f32(extra, 64 * min(group, extra.shape[0] - 1))
        for column in range(starts[group], starts[group + 1], 32):
            at = (column >> 5) * (64 * bits)
            for line in range(bits):
                simd.fetch(tiles, at + 64 * line + AHEAD)
            p = 4 * column
            # Written out: LLVM does not unroll so large a loop, and j must be a constant.
            s = _quad(s, tiles, at, 0, x, p, table, mask, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 1, x, p, table, mask, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 2, x, p, table, mask, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 3, x, p, table, mask, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 4, x, p, table, mask, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 5, x, p, table, mask, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 6, x, p, table, mask, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 7, x, p, table, mask, tables, masks, more, bits, how)
        result = _with_group(result, s, simd.load_f32(scale, 64 * group))
    simd.store(y, 0, result)


@inlined
def _decode_tile(tiles, tables, masks, extra, starts, scale, out, bits, how):  # type: ignore[no-untyped-def]
    """Values times scales of a tile of rows: out float32 [columns, at least 16]."""
    table, mask = simd.load_f32(tables, 0), simd.load_f32(masks, 0)
    step = out.strides[0]
    for group in range(starts.shape[0] - 1):
        more = simd.load_f32(extra, 64 * min(group, extra.shape[0] - 1))
        s = simd.load_f32(scale, 64 * group)
        for column in range(starts[group], starts[group + 1], 32):
            at = (column >> 5) * (64 * bits)
            for j in range(8):
                word = simd.i8_as_i32(quad(tiles, at, j, bits))
                for c in range(4):
                    v = _values(word, c, table, mask, tables, masks, more, how)
                    simd.store(out, (column + 4 * j + c) * step, simd.mul_f32(v, s))


@cache
def kernel(bits: int, decode: Decode) -> Any:
    """The compiled product for codes of `bits` bits: `product` below.

    It closes over numbers only, so that numba can keep what it compiled.
    """
    how = DECODES.index(decode)

    @jit(parallel=True)
    def product(tiles, table, mask, extra, x, starts, scale, y):  # type: ignore[no-untyped-def]
        """All of y, float32 [m, 16 * row tiles].

        tiles uint8 [row tiles, ...]; table and mask float32 [256]; extra float32
        [row tiles, groups, 16], or [row tiles, 1, 16] for all groups; x float32 [m, columns];
        starts int64 [groups + 1]; scale float32 [row tiles, groups, 16].
        """
        for tile in prange(tiles.shape[0]):
            for row in range(x.shape[0]):
                _one(
                    tiles[tile], table, mask, extra[tile], x[row], starts, scale[tile],
                    y[row, ROWS * tile :], bits, how,
                )  # fmt: skip

    return product


@jit()
def pair_tables(x, starts, table, bits, tables, sums):  # type: ignore[no-untyped-def]
    """Sums of activations by what four bits of a word of a tile say.

    x float32 [m, columns]; starts int64 [groups + 1]; table float32 [at least 2**bits], the values;
    tables float32 [m, vectors, 8, 16], written: nibble t of the words of a vector is byte t // 2,
    half t % 2, so that its codes are of the columns 4 quad + t // 2 of 4 / bits neighbouring quads;
    sums float32 [m, groups], written: of the activations of each group.
    """
    each = 4 // bits  # codes of a nibble
    columns = 32 // bits  # of a vector
    mask = (1 << bits) - 1
    for row in range(x.shape[0]):
        for vector in range(tables.shape[1]):
            for t in range(LOOKUPS):
                first = vector * columns + 4 * each * (t % 2) + t // 2
                for entry in range(16):
                    total = np.float32(0)
                    for i in range(each):
                        value = table[(entry >> (bits * i)) & mask]
                        total += x[row, first + 4 * i] * value
                    tables[row, vector, t, entry] = total
        for group in range(starts.shape[0] - 1):
            total = np.float32(0)
            for column in range(starts[group], starts[group + 1]):
                total += x[row, column]
            sums[row, group] = total


@inlined
def _nibble(total, tables, at, word, t):  # type: ignore[no-untyped-def]
    entry = simd.load_f32(tables, 64 * (LOOKUPS * at + t))
    return simd.add_f32(total, simd.lookup_floats(entry, simd.shr_i32(word, 4 * t)))


@jit(parallel=True)
def pairs_product(tiles, tables, sums, extra, starts, scale, bits, y):  # type: ignore[no-untyped-def]
    """All of y, float32 [m, 16 * row tiles], by look-up of pairs.

    tiles uint8 [row tiles, ...]; tables and sums as `pair_tables` writes them; extra and scale
    float32 [row tiles, groups, 16], extra also [row tiles, 1, 16] for all groups.
    """
    columns = 32 // bits
    for tile in prange(tiles.shape[0]):
        w, more, s = tiles[tile], extra[tile], scale[tile]
        for row in range(tables.shape[0]):
            entries = tables[row]
            result = simd.splat_f32(np.float32(0))
            for group in range(starts.shape[0] - 1):
                a = b = c = d = simd.splat_f32(np.float32(0))
                for at in range(starts[group] // columns, starts[group + 1] // columns):
                    simd.fetch(w, 64 * at + AHEAD)
                    word = simd.load_i32(w, 64 * at)
                    a = _nibble(a, entries, at, word, 0)
                    b = _nibble(b, entries, at, word, 1)
                    c = _nibble(c, entries, at, word, 2)
                    d = _nibble(d, entries, at, word, 3)
                    a = _nibble(a, entries, at, word, 4)
                    b = _nibble(b, entries, at, word, 5)
                    c = _nibble(c, entries, at, word, 6)
                    d = _nibble(d, entries, at, word, 7)
                shift = simd.load_f32(more, 64 * min(group, more.shape[0] - 1))
                shift = simd.mul_f32(shift, simd.splat_f32(sums[row, group]))
                total = simd.add_f32(simd.add_f32(a, b), simd.add_f32(c, d))
                total = simd.mul_f32(simd.add_f32(total, shift), simd.load_f32(s, 64 * group))
                result = simd.add_f32(result, total)
            simd.store(y[row, ROWS * tile :], 0, result)


@cache
def panel_kernel(bits: int, decode: Decode) -> Any:
    """Decodes tiles to float32 weights: `decode_panel` below."""
    how = DECODES.index(decode)

    @jit(parallel=True)
    def decode_panel(tiles, table, mask, extra, starts, scale, out):  # type: ignore[no-untyped-def]
        """out float32 [columns, 16 * row tiles]: transposed weights, each rounded once."""
        for tile in prange(tiles.shape[0]):
            _decode_tile(
                tiles[tile], table, mask, extra[tile], starts, scale[tile], out[:, ROWS * tile :],
                bits, how,
            )  # fmt: skip

    return decode_panel
