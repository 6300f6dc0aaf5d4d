"""Exact products for many rows of activations, on the processor's matrix tiles (AMX INT8).

One instruction multiplies 16 rows of 64 activations with 16 rows of 64 weights and adds the 256
sums to a tile of int32: sixteen times what a four-way byte product does. Weights are decoded group
by group into bytes u, which serve all rows of activations; sums of a group leave the tiles and go
the way of `integer.py` or `fixed_point.py`, with the same operations in the same order, so that the
results are the same to the last bit.

Groups are padded to whole steps of 64 columns. Weights of a step are uint8 [16, 64], four columns
of 16 rows in each line, as in a tile of codes. Activations are int8 [m, columns], m a multiple of
16: 16 lines of 64 columns are loaded where they lie.

Tile registers: 0 to 3 sums, 4 activations, 5 weights.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.extending import intrinsic

from . import simd
from .fixed_point import less_bias
from .integer import DECODES, Decode, finished, quad, unsigned
from .layouts import ROWS, aligned, padded
from .simd import inlined, jit

#: From so many rows of activations on a product on tiles is faster.
FROM_ROWS = 8
STEP = 64  #: columns of a tile of activations or weights
BLOCK = 16  #: rows of a tile
_ACTIVATIONS, _WEIGHTS = 4, 5  # tile registers
_LINE = 64  # bytes
_CACHE = 1 << 20  #: bytes of activations: half of a core's second-level cache


def _configuration() -> np.ndarray:
    """Palette 1: eight tiles of 16 rows of 64 bytes (Intel's manual, volume 1, section 18.3)."""
    config = aligned((64,), np.uint8)
    config[:] = 0
    config[0] = 1
    config[16:32].view(np.uint16)[:] = _LINE
    config[48:56] = BLOCK
    return config


CONFIGURATION = _configuration()


# ------------------------------------------------------------------ instructions


def _instruction(name: str, *tiles: int) -> Any:
    """An instruction on tile registers alone."""

    @intrinsic
    def run(typing: Any) -> Any:
        def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            numbers = [ir.IntType(8)(tile) for tile in tiles]
            simd.call(b, f"llvm.x86.{name}", ir.VoidType(), *numbers)
            return ctx.get_dummy_value()

        return types.void(), code

    return run


def _transfer(name: str, tile: int) -> Any:
    """move(array, offset, stride): 16 lines of 64 bytes, `stride` bytes from one to the next, from
    `offset` bytes behind the array's start."""

    @intrinsic
    def move(typing: Any, array: Any, offset: Any, stride: Any) -> Any:
        def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            place = simd.address(ctx, b, sig.args[0], args[0], args[1])
            simd.call(b, f"llvm.x86.{name}", ir.VoidType(), ir.IntType(8)(tile), place, args[2])
            return ctx.get_dummy_value()

        return types.void(array, types.intp, types.int64), code

    return move


@intrinsic
def _configure(typing: Any, config: Any) -> Any:
    """Give this thread its tile registers."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        place = simd.address(ctx, b, sig.args[0], args[0], ir.IntType(64)(0))
        simd.call(b, "llvm.x86.ldtilecfg", ir.VoidType(), place)
        return ctx.get_dummy_value()

    return types.void(config), code


_release = _instruction("tilerelease")
_zero0, _zero1, _zero2, _zero3 = (_instruction("tilezero", i) for i in range(4))
# Signed bytes of activations times unsigned bytes of weights.
_add0, _add1, _add2, _add3 = (_instruction("tdpbsud", i, _ACTIVATIONS, _WEIGHTS) for i in range(4))
_load_weights = _transfer("tileloadd64", _WEIGHTS)
_load_activations = _transfer("tileloadd64", _ACTIVATIONS)
_store0, _store1, _store2, _store3 = (_transfer("tilestored64", i) for i in range(4))


# ------------------------------------------------------------------ products


def activations(m: int, limbs: int, columns: int) -> np.ndarray:
    """Room for int8 [m, limbs, columns] as zeros: whole blocks of rows, and columns to spare.

    Lines a multiple of 4 KiB apart would share the same places of the first-level cache.
    """
    spare = STEP if limbs * columns % 4096 == 0 else 0
    return aligned((padded(m, BLOCK), limbs, columns + spare), np.int8)


def chunks(x: np.ndarray, m: int) -> Iterator[tuple[slice, slice]]:
    """Rows of `activations` that stay in a core's cache while weights go by: with and without those
    that fill blocks."""
    many = max(4 * BLOCK, _CACHE // (x[0].nbytes * 4 * BLOCK) * 4 * BLOCK)
    for first in range(0, len(x), many):
        yield slice(first, first + many), slice(first, min(first + many, m))


@inlined
def _aligned_start(array):  # type: ignore[no-untyped-def]
    """Bytes up to the first line."""
    return -array.ctypes.data & 63


@inlined
def _decoded(tiles, values, masks, more, first, last, out, at_out, bits, how):  # type: ignore[no-untyped-def]
    """Bytes u of a group, columns first to last - 1 of a tile of codes, as whole steps."""
    for column in range(first, last, 32):
        at = (column >> 5) * (64 * bits)
        for j in range(8):
            u = unsigned(quad(tiles, at, j, bits), values, masks, more, how)
            simd.store(out, at_out + 16 * (column - first) + 64 * j, u)
    if (last - first) & 32:  # meets zeros
        for j in range(8):
            simd.store(out, at_out + 16 * (last - first) + 64 * j, simd.splat_i8(0))


@inlined
def _longest(starts):  # type: ignore[no-untyped-def]
    length = 0
    for g in range(starts.shape[0] - 1):
        length = max(length, starts[g + 1] - starts[g])
    return length


@inlined
def _written(totals, at, y, first_column):  # type: ignore[no-untyped-def]
    """Totals of a tile of rows of weights, [m, 16], to their columns of y [m, n]."""
    for row in range(y.shape[0]):
        line = simd.load_f32(totals, at + 64 * row)
        simd.store(y, 4 * (row * y.shape[1] + first_column), line)


@inlined
def _all_rows(  # type: ignore[no-untyped-def]
    config, w, table, mask, e, x, starts, wide, s_sum, b, z, us, x_scale, ws, unit, y, tile, bits,
    how,
):  # fmt: skip
    """All rows of activations times one tile of rows of weights.

    config is CONFIGURATION; x int8 [m in whole blocks, columns] with the groups of `wide`; starts
    of the groups in the tile's columns; s_sum, z and x_scale [groups, m]; y float32 [m, n]; the
    rest as in `integer.py`.
    """
    m, length = y.shape[0], x.shape[1]
    values, masks = simd.repeat_16_bytes(table, 0), simd.repeat_16_bytes(mask, 0)
    codes = np.empty(16 * _longest(wide) + 64, np.uint8)
    sums, totals = np.empty(4 * 256 + 16, np.int32), np.zeros(16 * m + 16, np.float32)
    at_u, at_sum, at_y = _aligned_start(codes), _aligned_start(sums), _aligned_start(totals)
    _configure(config)
    for g in range(starts.shape[0] - 1):
        more = simd.load_i8(e, 64 * g if how == 2 else 0)
        _decoded(w, values, masks, more, starts[g], starts[g + 1], codes, at_u, bits, how)
        bias, scale = simd.load_short(b, 32 * g), simd.load_f32(ws, 64 * g)
        for first in range(0, x.shape[0], 4 * BLOCK):
            many = x.shape[0] - first
            _zero0()
            _zero1()
            _zero2()
            _zero3()
            for column in range(wide[g], wide[g + 1], STEP):
                _load_weights(codes, at_u + 16 * (column - wide[g]), 64)
                at = first * length + column
                _load_activations(x, at, length)
                _add0()
                if many > BLOCK:
                    _load_activations(x, at + BLOCK * length, length)
                    _add1()
                if many > 2 * BLOCK:
                    _load_activations(x, at + 2 * BLOCK * length, length)
                    _add2()
                if many > 3 * BLOCK:
                    _load_activations(x, at + 3 * BLOCK * length, length)
                    _add3()
            _store0(sums, at_sum, 64)
            _store1(sums, at_sum + 1024, 64)
            _store2(sums, at_sum + 2048, 64)
            _store3(sums, at_sum + 3072, 64)
            for row in range(first, min(first + 4 * BLOCK, m)):
                place = at_y + 64 * row
                done = finished(
                    simd.load_i32(sums, at_sum + 64 * (row - first)), s_sum[g, row], bias,
                    z[g, row], us, g, x_scale[g, row], scale, unit, simd.load_f32(totals, place),
                )  # fmt: skip
                simd.store(totals, place, done)
    _release()
    _written(totals, at_y, y, ROWS * tile)


@cache
def kernel(bits: int, decode: Decode) -> Any:
    """The compiled product for codes of `bits` bits: `product` below."""
    how = DECODES.index(decode)

    @jit(parallel=True)
    def product(  # type: ignore[no-untyped-def]
        config, tiles, table, mask, extra, x, starts, wide, s_sum, bias, z, u_sum, x_scale,
        w_scale, unit, y,
    ):  # fmt: skip
        """All of y, float32 [m, 16 * row tiles]; see `_all_rows` and `integer.py`."""
        for tile in prange(tiles.shape[0]):
            _all_rows(
                config, tiles[tile], table, mask, extra[tile], x, starts, wide, s_sum, bias[tile],
                z, u_sum[tile], x_scale, w_scale[tile], unit, y, tile, bits, how,
            )  # fmt: skip

    return product


@cache
def fixed_kernel(bits: int, decode: Decode) -> Any:
    """The same for activations in fixed point, three limbs each: `product` below."""
    how = DECODES.index(decode)

    @jit(parallel=True)
    def product(  # type: ignore[no-untyped-def]
        config, tiles, table, mask, extra, x, starts, wide, limb_sums, bias, x_steps, scale, y,
    ):  # fmt: skip
        """All of y, float32 [m, 16 * row tiles]; x int8 [m in whole blocks, 3, columns], limb_sums
        [3, groups, m], x_steps [groups, m], the rest as in `fixed_point.py`.
        """
        m, length = y.shape[0], x.shape[2]
        for tile in prange(tiles.shape[0]):
            w, e, b, ws = tiles[tile], extra[tile], bias[tile], scale[tile]
            values, masks = simd.repeat_16_bytes(table, 0), simd.repeat_16_bytes(mask, 0)
            place256, none = simd.splat_f32(np.float32(256)), simd.splat_i32(0)
            codes = np.empty(16 * _longest(wide) + 64, np.uint8)
            sums, totals = np.empty(3 * 256 + 16, np.int32), np.zeros(16 * m + 16, np.float32)
            at_u, at_sum, at_y = _aligned_start(codes), _aligned_start(sums), _aligned_start(totals)
            _configure(config)
            for g in range(starts.shape[0] - 1):
                more = simd.load_i8(e, 64 * g if how == 2 else 0)
                _decoded(w, values, masks, more, starts[g], starts[g + 1], codes, at_u, bits, how)
                group_bias = simd.to_f32(simd.load_short(b, 32 * g))
                group_scale = simd.load_f32(ws, 64 * g)
                for first in range(0, x.shape[0], BLOCK):
                    _zero0()
                    _zero1()
                    _zero2()
                    for column in range(wide[g], wide[g + 1], STEP):
                        _load_weights(codes, at_u + 16 * (column - wide[g]), 64)
                        at = 3 * first * length + column
                        _load_activations(x, at, 3 * length)
                        _add0()
                        _load_activations(x, at + length, 3 * length)
                        _add1()
                        _load_activations(x, at + 2 * length, 3 * length)
                        _add2()
                    _store0(sums, at_sum, 64)
                    _store1(sums, at_sum + 1024, 64)
                    _store2(sums, at_sum + 2048, 64)
                    for row in range(first, min(first + BLOCK, m)):
                        at = at_sum + 64 * (row - first)
                        low = less_bias(
                            simd.load_i32(sums, at), none, group_bias, limb_sums[0, g, row]
                        )
                        middle = less_bias(
                            simd.load_i32(sums, at + 1024), none, group_bias, limb_sums[1, g, row]
                        )
                        high = less_bias(
                            simd.load_i32(sums, at + 2048), none, group_bias, limb_sums[2, g, row]
                        )
                        total = simd.fma_f32(simd.fma_f32(high, place256, middle), place256, low)
                        factor = simd.mul_f32(group_scale, simd.splat_f32(x_steps[g, row]))
                        place = at_y + 64 * row
                        before = simd.load_f32(totals, place)
                        simd.store(totals, place, simd.add_f32(before, simd.mul_f32(total, factor)))
            _release()
            _written(totals, at_y, y, ROWS * tile)

    return product
