"""Exact integer products of packed weights and int8 activations, on four-way byte products.

y[m, n] = sum over groups g of fl32(I) * scale, where I[m, n, g] is the integer dot product of a
group and the float32 operations are those outside a PE (docs/numerics.md, "Outside the PE").

A weight is u - b, with a byte u >= 0 that its code stands for and a bias b of its row and group; an
activation is s - z, with an int8 s and a bias z of its row and group. Then

    I = sum s u - b sum s - z (sum u - K b)

with all sums in int32. What u is depends on the code in one of three ways (`Decode`):

- "code": u is the code;
- "table": u = table[code], for up to four bits;
- "masked": u = table[code] + (mask[code] AND extra), modulo 256, with a byte `extra` of its row and
  group: dINT's special values with a zero point, BitMoD's special values.
"""

from functools import cache
from typing import Any, Literal

import numpy as np
from numba import prange

from . import simd
from .layouts import ROWS
from .simd import inlined, jit

Decode = Literal["code", "table", "masked"]
#: Bytes between what is read and what is asked of the memory meanwhile. The processor asks by
#: itself, but stops at every page of 4 KiB.
AHEAD = 4096
DECODES: tuple[Decode, ...] = ("code", "table", "masked")


@inlined
def quad(tiles, at, j, bits):  # type: ignore[no-untyped-def]
    """Codes of 16 rows x 4 columns: quad j of the tile that starts `at` bytes in."""
    if bits == 8:
        return simd.load_i8(tiles, at + 64 * j)
    if bits == 1:
        return _field(tiles, at, j, 1)
    if bits == 2:
        return _field(tiles, at, j, 2)
    if bits == 3:
        return simd.or_i8(_field(tiles, at, j, 2), simd.shl_i8(_field(tiles, at + 128, j, 1), 2))
    low = _field(tiles, at, j, 4)
    if bits == 4:
        return low
    if bits == 5:
        return simd.or_i8(low, simd.shl_i8(_field(tiles, at + 256, j, 1), 4))
    high = simd.shl_i8(_field(tiles, at + 256, j, 2), 4)
    if bits == 7:
        high = simd.or_i8(high, simd.shl_i8(_field(tiles, at + 384, j, 1), 6))
    return simd.or_i8(low, high)


@inlined
def _field(tiles, at, j, width):  # type: ignore[no-untyped-def]
    quads = 8 // width
    vector = simd.load_i8(tiles, at + 64 * (j // quads))
    return simd.and_i8(simd.shr_i8(vector, width * (j % quads)), simd.splat_i8((1 << width) - 1))


@inlined
def in_place(tiles, at, j):  # type: ignore[no-untyped-def]
    """Two-bit codes of quad j where they lie, not shifted: 4**(j % 4) times what `quad` gives."""
    vector = simd.load_i8(tiles, at + 64 * (j // 4))
    return simd.and_i8(vector, simd.splat_i8(3 << 2 * (j % 4)))


@inlined
def unsigned(code, table, mask, extra, decode):  # type: ignore[no-untyped-def]
    """The byte u of 64 codes."""
    if decode == 0:
        return code
    u = simd.lookup_bytes(table, code)
    if decode == 1:
        return u
    return simd.add_i8(u, simd.and_i8(simd.lookup_bytes(mask, code), extra))


@inlined
def finished(  # type: ignore[no-untyped-def]
    total, s_sum, bias, z, u_sum, group, x_scale, w_scale, unit, y,
):  # fmt: skip
    """y plus one group, element by element; no fused operations: each rounding is defined."""
    total = simd.sub_i32(total, simd.mul_i32(bias, simd.splat_i32(s_sum)))
    if z != 0:  # symmetric activations need not read the sums of the weights
        total = simd.sub_i32(
            total, simd.mul_i32(simd.load_i32(u_sum, 64 * group), simd.splat_i32(z))
        )
    scale = simd.mul_f32(simd.mul_f32(simd.splat_f32(x_scale), w_scale), simd.splat_f32(unit))
    return simd.add_f32(y, simd.mul_f32(simd.to_f32(total), scale))


@inlined
def one_row(  # type: ignore[no-untyped-def]
    tiles, table, mask, extra, x, starts, s_sum, bias, z, u_sum, x_scale, w_scale, unit, y, bits,
    how,
):  # fmt: skip
    """One row of activations x [columns] and one tile of rows; extra uint8 [groups, 64]."""
    values, masks = simd.repeat_16_bytes(table, 0), simd.repeat_16_bytes(mask, 0)
    result = simd.splat_f32(np.float32(0))
    for group in range(starts.shape[0] - 1):
        simd.fetch(w_scale, 64 * group + AHEAD // 4)
        simd.fetch(bias, 32 * group + AHEAD // 8)
        total = other = third = fourth = simd.splat_i32(0)
        more = simd.load_i8(extra, 64 * group if how == 2 else 0)
        for column in range(starts[group], starts[group + 1], 32):
            at = (column >> 5) * (64 * bits)
            for line in range(bits):
                simd.fetch(tiles, at + 64 * line + AHEAD)
            if bits == 2 and how == 0:  # a shift less for each; the sums are shifted once
                for j in range(0, 8, 4):
                    at_x = column + 4 * j
                    u = in_place(tiles, at, j)
                    total = simd.dot_u8s8(total, u, simd.repeat_4_bytes(x, at_x))
                    u = in_place(tiles, at, j + 1)
                    other = simd.dot_u8s8(other, u, simd.repeat_4_bytes(x, at_x + 4))
                    u = in_place(tiles, at, j + 2)
                    third = simd.dot_u8s8(third, u, simd.repeat_4_bytes(x, at_x + 8))
                    u = in_place(tiles, at, j + 3)
                    fourth = simd.dot_u8s8(fourth, u, simd.repeat_4_bytes(x, at_x + 12))
                continue
            for j in range(0, 8, 2):
                u = unsigned(quad(tiles, at, j, bits), values, masks, more, how)
                total = simd.dot_u8s8(total, u, simd.repeat_4_bytes(x, column + 4 * j))
                u = unsigned(quad(tiles, at, j + 1, bits), values, masks, more, how)
                other = simd.dot_u8s8(other, u, simd.repeat_4_bytes(x, column + 4 * j + 4))
        b, ws = simd.load_short(bias, 32 * group), simd.load_f32(w_scale, 64 * group)
        if bits == 2 and how == 0:
            other = simd.sar_i32(other, 2)
            total = simd.add_i32(total, simd.sar_i32(third, 4))
            other = simd.add_i32(other, simd.sar_i32(fourth, 6))
        total = simd.add_i32(total, other)
        result = finished(
            total, s_sum[group], b, z[group], u_sum, group, x_scale[group], ws, unit, result
        )
    simd.store(y, 0, result)


@inlined
def four_rows(  # type: ignore[no-untyped-def]
    tiles, table, mask, extra, x, starts, s_sum, bias, z, u_sum, x_scale, w_scale, unit, y, bits,
    how,
):  # fmt: skip
    """Four rows of activations x [4, columns], for which a tile is unpacked once."""
    values, masks = simd.repeat_16_bytes(table, 0), simd.repeat_16_bytes(mask, 0)
    r0 = r1 = r2 = r3 = simd.splat_f32(np.float32(0))
    length = x.shape[1]
    for g in range(starts.shape[0] - 1):
        t0 = t1 = t2 = t3 = simd.splat_i32(0)
        more = simd.load_i8(extra, 64 * g if how == 2 else 0)
        for column in range(starts[g], starts[g + 1], 32):
            at = (column >> 5) * (64 * bits)
            for j in range(8):
                u = unsigned(quad(tiles, at, j, bits), values, masks, more, how)
                place = column + 4 * j
                t0 = simd.dot_u8s8(t0, u, simd.repeat_4_bytes(x, place))
                t1 = simd.dot_u8s8(t1, u, simd.repeat_4_bytes(x, place + length))
                t2 = simd.dot_u8s8(t2, u, simd.repeat_4_bytes(x, place + 2 * length))
                t3 = simd.dot_u8s8(t3, u, simd.repeat_4_bytes(x, place + 3 * length))
        b, ws = simd.load_short(bias, 32 * g), simd.load_f32(w_scale, 64 * g)
        r0 = finished(t0, s_sum[0, g], b, z[0, g], u_sum, g, x_scale[0, g], ws, unit, r0)
        r1 = finished(t1, s_sum[1, g], b, z[1, g], u_sum, g, x_scale[1, g], ws, unit, r1)
        r2 = finished(t2, s_sum[2, g], b, z[2, g], u_sum, g, x_scale[2, g], ws, unit, r2)
        r3 = finished(t3, s_sum[3, g], b, z[3, g], u_sum, g, x_scale[3, g], ws, unit, r3)
    step = y.strides[0]
    simd.store(y, 0, r0)
    simd.store(y, step, r1)
    simd.store(y, 2 * step, r2)
    simd.store(y, 3 * step, r3)


@cache
def kernel(bits: int, decode: Decode) -> Any:
    """The compiled product for codes of `bits` bits: `product` below.

    It closes over numbers only, so that numba can keep what it compiled.
    """
    how = DECODES.index(decode)

    @jit(parallel=True)
    def product(  # type: ignore[no-untyped-def]
        tiles, table, mask, extra, x, starts, s_sum, bias, z, u_sum, x_scale, w_scale, unit, y,
    ):  # fmt: skip
        """All of y, float32 [m, 16 * row tiles].

        tiles uint8 [row tiles, ...]; table and mask uint8 [16]; extra uint8 [row tiles, groups, 64]
        ([row tiles, 1, 64] where it is not used); x int8 [m, columns]; starts int64 [groups + 1];
        s_sum and z int32 [m, groups]; bias int16, u_sum (sum u - K b) int32, w_scale float32
        [row tiles, groups, 16]; x_scale float32 [m, groups]; unit float32.
        """
        m = x.shape[0]
        for tile in prange(tiles.shape[0]):
            w, e, b = tiles[tile], extra[tile], bias[tile]
            us, ws = u_sum[tile], w_scale[tile]
            for row in range(0, m - 3, 4):
                end = row + 4
                four_rows(
                    w, table, mask, e, x[row:end], starts, s_sum[row:end], b, z[row:end], us,
                    x_scale[row:end], ws, unit, y[row:end, ROWS * tile :], bits, how,
                )  # fmt: skip
            for row in range(m // 4 * 4, m):
                one_row(
                    w, table, mask, e, x[row], starts, s_sum[row], b, z[row], us, x_scale[row], ws,
                    unit, y[row, ROWS * tile :], bits, how,
                )  # fmt: skip

    return product
