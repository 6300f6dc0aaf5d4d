"""Products of packed weight-only codes and float32 activations, by exact integer sums.

Each group of activations becomes integers q times a power of two, the *step*, fine enough for 22 to
23 bits beside the largest of them, and q becomes three signed bytes, its *limbs*:

    x = step (65536 l2 + 256 l1 + l0) + e,        |e| <= step / 2

A weight is s (u - b) with an unsigned byte u, as in `integer.py`. So

    y = sum over groups of s step (65536 T2 + 256 T1 + T0),        Ti = sum li u - b sum li

where the sums of li u are exact, on four-way byte products: three of them do what twelve fused
multiply-adds and as many conversions of weights would do in float32. Every row of activations has
the same bits whatever their number; `reference.reference_fixed` defines them.

**Error.** Rounding activations errs by at most step / 2 times the sum of |w| in each group. The
sums of li u and b li stay below 2**24 in groups of at most 514 columns (514 * 128 * 255 < 2**24),
and the Ti are exact. Two fused operations combine them, one multiplies with the scales, G sums
follow: each term li (u - b) is rounded at most G + 3 times, and once more because `dequantize()`
rounds s v. In longer groups a conversion and a fused operation round each Ti besides, in proportion
to li (u + |b|). `error_bound` adds these up, with u = 2**-24 and the factor 1.01 of `floating.py`.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import prange

from bitwright.kernels import integers, reference
from bitwright.quant import QuantizedTensor

from . import simd
from .integer import AHEAD, DECODES, Decode, in_place, quad, unsigned
from .layouts import ROWS
from .simd import inlined, jit

#: Groups up to so many columns have exact sums in float32 as well.
EXACT_COLUMNS = (1 << 24) // (128 * 255)


def error_bound(x: np.ndarray, w: QuantizedTensor) -> np.ndarray:
    """How far y may lie from x @ w.T, float64 [m, n]; see above.

    Args:
        x: Activations float32 [m, k], finite.
        w: Weights [n, k].
    """
    size = min(w.group_size, w.k)
    limbs, steps = reference.reference_limbs(x, size)
    places = np.array([1.0, 256.0, 65536.0])[:, None, None]
    wide = np.repeat(steps, size, axis=1)[:, : w.k]
    magnitude = (np.abs(limbs) * places).sum(0) * wide
    values = np.abs(w.dequantize().astype(np.float64))
    rounds = 1.01 * 2.0**-24
    bound = wide / 2 @ values.T + rounds * (w.groups + 4) * (magnitude @ values.T)
    if size > EXACT_COLUMNS:
        # u and |b| are at most 255 units, whatever the format.
        scales = np.repeat(w.scales().astype(np.float64), size, axis=1)[:, : w.k]
        bound += rounds * 2 * 510 * integers.unit_of(w.format) * (magnitude @ scales.T)
    return bound + w.k * 2.0**-149


@jit()
def to_limbs(bits, starts, limbs, sums, steps):  # type: ignore[no-untyped-def]
    """Activations in fixed point.

    bits int32 [m, columns], those of float32 numbers; starts int64 [groups + 1]; written: limbs
    int8 [m, 3, columns], sums float32 [m, 3, groups] of each group's limbs, steps float32
    [m, groups], NaN where a number of the group is not finite.
    """
    x = bits.view(np.float32)
    for row in range(x.shape[0]):
        for group in range(starts.shape[0] - 1):
            first, last = starts[group], starts[group + 1]
            largest = np.int32(0)  # numbers without their signs are ordered as their bits
            for column in range(first, last):
                largest = max(largest, bits[row, column] & np.int32(0x7FFFFFFF))
            if largest >= 0x7F800000:
                steps[row, group] = np.nan
                continue
            # 127 * 65536 + 127 * 256 + 127 times the step is the largest number of three limbs.
            exponent = (largest >> 23) - 149
            exponent += (largest & 0x7FFFFF) > 2 * 0x7F7F7F - 0x800000
            step = np.float32(2.0) ** np.float32(max(exponent, -120))
            many = np.float32(1) / step
            s0 = s1 = s2 = np.int32(0)
            for column in range(first, last):
                q = np.int32(np.rint(x[row, column] * many))
                low = ((q + 128) & 255) - 128
                q = (q - low) >> 8
                middle = ((q + 128) & 255) - 128
                high = (q - middle) >> 8
                limbs[row, 0, column] = low
                limbs[row, 1, column] = middle
                limbs[row, 2, column] = high
                s0 += low
                s1 += middle
                s2 += high
            sums[row, 0, group], sums[row, 1, group], sums[row, 2, group] = s0, s1, s2
            steps[row, group] = step


@inlined
def _added(totals, u, x, place, length):  # type: ignore[no-untyped-def]
    """The sums of 16 rows for three limbs, plus u of four columns."""
    low, middle, high = totals
    low = simd.dot_u8s8(low, u, simd.repeat_4_bytes(x, place))
    middle = simd.dot_u8s8(middle, u, simd.repeat_4_bytes(x, place + length))
    high = simd.dot_u8s8(high, u, simd.repeat_4_bytes(x, place + 2 * length))
    return low, middle, high


@inlined
def _shifted(first, second, by):  # type: ignore[no-untyped-def]
    """Sums of codes that lay `by` bits high, and of codes that lay four bits higher."""
    a, b, c = first
    d, e, f = second
    return (
        simd.add_i32(simd.sar_i32(a, by), simd.sar_i32(d, by + 4)),
        simd.add_i32(simd.sar_i32(b, by), simd.sar_i32(e, by + 4)),
        simd.add_i32(simd.sar_i32(c, by), simd.sar_i32(f, by + 4)),
    )


@inlined
def less_bias(even, odd, bias, limb_sum):  # type: ignore[no-untyped-def]
    total = simd.to_f32(simd.add_i32(even, odd))
    return simd.fma_f32(bias, simd.splat_f32(-limb_sum), total)


@inlined
def _one(tiles, table, mask, extra, x, starts, sums, bias, steps, scale, y, bits, how):  # type: ignore[no-untyped-def]
    """One row of activations, limbs x [3, columns], and one tile of rows."""
    values, masks = simd.repeat_16_bytes(table, 0), simd.repeat_16_bytes(mask, 0)
    result, place = simd.splat_f32(np.float32(0)), simd.splat_f32(np.float32(256))
    zero, length = simd.splat_i32(0), x.shape[1]
    for group in range(starts.shape[0] - 1):
        simd.fetch(scale, 64 * group + AHEAD // 4)
        simd.fetch(bias, 32 * group + AHEAD // 8)
        # Several chains each: a product waits for the one before it.
        even = odd = third = fourth = (zero, zero, zero)
        more = simd.load_i8(extra, 64 * group if how == 2 else 0)
        for column in range(starts[group], starts[group + 1], 32):
            at = (column >> 5) * (64 * bits)
            for line in range(bits):
                simd.fetch(tiles, at + 64 * line + AHEAD)
            if bits == 2 and how == 0:  # a shift less for each; the sums are shifted once
                for j in range(0, 8, 4):
                    p = column + 4 * j
                    even = _added(even, in_place(tiles, at, j), x, p, length)
                    odd = _added(odd, in_place(tiles, at, j + 1), x, p + 4, length)
                    third = _added(third, in_place(tiles, at, j + 2), x, p + 8, length)
                    fourth = _added(fourth, in_place(tiles, at, j + 3), x, p + 12, length)
                continue
            for j in range(0, 8, 2):
                u = unsigned(quad(tiles, at, j, bits), values, masks, more, how)
                even = _added(even, u, x, column + 4 * j, length)
                u = unsigned(quad(tiles, at, j + 1, bits), values, masks, more, how)
                odd = _added(odd, u, x, column + 4 * j + 4, length)
        if bits == 2 and how == 0:
            even, odd = _shifted(even, third, 0), _shifted(odd, fourth, 2)
        b = simd.to_f32(simd.load_short(bias, 32 * group))
        low = less_bias(even[0], odd[0], b, sums[0, group])
        middle = less_bias(even[1], odd[1], b, sums[1, group])
        high = less_bias(even[2], odd[2], b, sums[2, group])
        total = simd.fma_f32(simd.fma_f32(high, place, middle), place, low)
        factor = simd.mul_f32(simd.load_f32(scale, 64 * group), simd.splat_f32(steps[group]))
        result = simd.add_f32(result, simd.mul_f32(total, factor))
    simd.store(y, 0, result)


@inlined
def _decode_tile(tiles, table, mask, extra, starts, bias, scale, unit, out, bits, how):  # type: ignore[no-untyped-def]
    """Values times scales of a tile of rows: out float32 [columns, at least 16]."""
    values, masks = simd.repeat_16_bytes(table, 0), simd.repeat_16_bytes(mask, 0)
    step = out.strides[0]
    for group in range(starts.shape[0] - 1):
        more = simd.load_i8(extra, 64 * group if how == 2 else 0)
        b = simd.load_short(bias, 32 * group)
        s = simd.mul_f32(simd.load_f32(scale, 64 * group), simd.splat_f32(unit))
        for column in range(starts[group], starts[group + 1], 32):
            at = (column >> 5) * (64 * bits)
            for j in range(8):
                word = simd.i8_as_i32(unsigned(quad(tiles, at, j, bits), values, masks, more, how))
                for c in range(4):
                    u = simd.and_i32(simd.shr_i32(word, 8 * c), simd.splat_i32(255))
                    value = simd.to_f32(simd.sub_i32(u, b))
                    simd.store(out, (column + 4 * j + c) * step, simd.mul_f32(value, s))


@cache
def kernel(bits: int, decode: Decode) -> Any:
    """The compiled product for codes of `bits` bits: `product` below.

    It closes over numbers only, so that numba can keep what it compiled.
    """
    how = DECODES.index(decode)

    @jit(parallel=True)
    def product(  # type: ignore[no-untyped-def]
        tiles, table, mask, extra, x, starts, sums, bias, steps, scale, y,
    ):  # fmt: skip
        """All of y, float32 [m, 16 * row tiles].

        tiles, table, mask, extra, starts, bias and scale as in `integer.py`; x, sums and steps as
        `to_limbs` writes them, steps times the unit of the format.
        """
        for tile in prange(tiles.shape[0]):
            for row in range(x.shape[0]):
                _one(
                    tiles[tile], table, mask, extra[tile], x[row], starts, sums[row], bias[tile],
                    steps[row], scale[tile], y[row, ROWS * tile :], bits, how,
                )  # fmt: skip

    return product


@cache
def panel_kernel(bits: int, decode: Decode) -> Any:
    """Decodes tiles to float32 weights: `decode_panel` below."""
    how = DECODES.index(decode)

    @jit(parallel=True)
    def decode_panel(  # type: ignore[no-untyped-def]
        tiles, table, mask, extra, starts, bias, scale, unit, out,
    ):  # fmt: skip
        """out float32 [columns, 16 * row tiles]: transposed weights, each rounded once."""
        for tile in prange(tiles.shape[0]):
            _decode_tile(
                tiles[tile], table, mask, extra[tile], starts, bias[tile], scale[tile], unit,
                out[:, ROWS * tile :], bits, how,
            )  # fmt: skip

    return decode_panel
