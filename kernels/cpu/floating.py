"""Products of packed weight-only codes and float32 activations.

y[m, n] = sum over groups g of s[n, g] * sum over k in g of x[m, k] * v[n, k], where the value v of
a code depends on it in one of these ways (`Decode`):

| | value | for |
| --- | --- | --- |
| "table" | table[code] | up to 4 bits |
| "gather" | table[code] + mask[code] * extra | 5 to 8 bits |

(What integers can stand for goes to `fixed_point.py`, which is faster.)

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
"""

from functools import cache
from typing import Any, Literal

import numpy as np
from numba import prange

from . import simd
from .integer import AHEAD, quad
from .layouts import ROWS
from .simd import inlined, jit

Decode = Literal["table", "gather"]
DECODES: tuple[Decode, ...] = ("table", "gather")


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


@inlined
def _values(word, column, table, tables, masks, extra, how):  # type: ignore[no-untyped-def]
    """Values of 16 rows in one of the four columns of a quad."""
    index = simd.shr_i32(word, 8 * column)
    if how == 0:
        return simd.lookup_floats(table, index)
    index = simd.and_i32(index, simd.splat_i32(255))
    low = simd.gather_floats(tables, index)
    return simd.fma_f32(simd.gather_floats(masks, index), extra, low)


@inlined
def _quad(sums, tiles, at, j, x, place, table, tables, masks, extra, bits, how):  # type: ignore[no-untyped-def]
    """The four sums of 16 rows plus quad j, columns 4 j .. 4 j + 3, of a tile."""
    a, b, c, d = sums
    word = simd.i8_as_i32(quad(tiles, at, j, bits))
    place += 16 * j
    v = _values(word, 0, table, tables, masks, extra, how)
    a = simd.fma_f32(v, simd.repeat_float(x, place), a)
    v = _values(word, 1, table, tables, masks, extra, how)
    b = simd.fma_f32(v, simd.repeat_float(x, place + 4), b)
    v = _values(word, 2, table, tables, masks, extra, how)
    c = simd.fma_f32(v, simd.repeat_float(x, place + 8), c)
    v = _values(word, 3, table, tables, masks, extra, how)
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
    table = simd.load_f32(tables, 0)
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
            s = _quad(s, tiles, at, 0, x, p, table, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 1, x, p, table, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 2, x, p, table, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 3, x, p, table, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 4, x, p, table, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 5, x, p, table, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 6, x, p, table, tables, masks, more, bits, how)
            s = _quad(s, tiles, at, 7, x, p, table, tables, masks, more, bits, how)
        result = _with_group(result, s, simd.load_f32(scale, 64 * group))
    simd.store(y, 0, result)


@inlined
def _decode_tile(tiles, tables, masks, extra, starts, scale, out, bits, how):  # type: ignore[no-untyped-def]
    """Values times scales of a tile of rows: out float32 [columns, at least 16]."""
    table = simd.load_f32(tables, 0)
    step = out.strides[0]
    for group in range(starts.shape[0] - 1):
        more = simd.load_f32(extra, 64 * min(group, extra.shape[0] - 1))
        s = simd.load_f32(scale, 64 * group)
        for column in range(starts[group], starts[group + 1], 32):
            at = (column >> 5) * (64 * bits)
            for j in range(8):
                word = simd.i8_as_i32(quad(tiles, at, j, bits))
                for c in range(4):
                    v = _values(word, c, table, tables, masks, more, how)
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
