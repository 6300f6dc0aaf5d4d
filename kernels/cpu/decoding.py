"""All blocks of a Llama-family model in one compiled call, on packed weights and int8 activations.

A token of a small model takes a few hundred small operations; calling each from Python would cost
more than computing it. Weights of all layers are stacked, so that this is one loop over layers.
Linears are those of `integer.py`; what lies between them is float32, one rounding an operation, in
the order of `decoder_reference.py`. No order depends on how many tokens are computed together.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core.extending import intrinsic

from . import simd
from .integer import DECODES, Decode, four_rows, one_row
from .layouts import ROWS
from .simd import inlined, jit

ROUNDER = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, half to even
EXP_RANGE = np.float32(87.0)
LOG2_E = np.float32(1.44269504)
#: ln 2 in two parts: the first has few bits, so that its products with small integers are exact.
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
TAYLOR = np.array([1 / math.factorial(7 - i) for i in range(8)], np.float32)


@intrinsic
def _half(typing: Any, x: Any) -> Any:
    """float32 rounded to float16 and back; numba has no float16 on processors."""

    def code(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.fpext(b.fptrunc(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.float32), code


@inlined
def _exp(x):  # type: ignore[no-untyped-def]
    """exp of 16 float32, of x clipped to -87 .. 87, to 2 units in the last place.

    x = n ln 2 + r with ln 2 in two parts, and the Taylor polynomial of degree 7 of exp r, whose
    remainder is below 2**-26 for |r| <= ln 2 / 2. Multiplications and additions are rounded one by
    one, so that numpy can repeat them (`decoder_reference.py`).
    """
    x = simd.max_f32(simd.min_f32(x, simd.splat_f32(EXP_RANGE)), simd.splat_f32(-EXP_RANGE))
    shifted = simd.add_f32(simd.mul_f32(x, simd.splat_f32(LOG2_E)), simd.splat_f32(ROUNDER))
    n = simd.sub_f32(shifted, simd.splat_f32(ROUNDER))
    r = simd.sub_f32(x, simd.mul_f32(n, simd.splat_f32(LN2_HIGH)))
    r = simd.sub_f32(r, simd.mul_f32(n, simd.splat_f32(LN2_LOW)))
    p = simd.splat_f32(TAYLOR[0])
    for i in range(1, 8):
        p = simd.add_f32(simd.mul_f32(p, r), simd.splat_f32(TAYLOR[i]))
    # The low bits of `shifted` are n; as an exponent they scale p by 2**n.
    power = simd.shl_i32(simd.f32_as_i32(shifted), 23)
    return simd.i32_as_f32(simd.add_i32(simd.f32_as_i32(p), power))


@inlined
def quantise_row(  # type: ignore[no-untyped-def]
    x, starts, group_size, qmax, numbers, sums, scales,
):  # fmt: skip
    """One row as int8 with one scale, as `quantize_activations` for "a8".

    numbers int8 [columns] in the groups of `starts`; sums int32 [at least groups] of the numbers;
    scales float32 [the same], all of them the scale.
    """
    whole = x.shape[0] // 16 * 16
    minus = simd.splat_f32(np.float32(0))
    most = minus
    for j in range(0, whole, 16):
        v = simd.load_f32(x, 4 * j)
        most = simd.max_f32(most, simd.max_f32(v, simd.sub_f32(minus, v)))
    lanes = np.empty(16, np.float32)
    simd.store(lanes, 0, most)
    largest = lanes.max()
    for j in range(whole, x.shape[0]):
        largest = max(largest, abs(x[j]))
    top = np.float32(qmax)
    delta = largest / top
    scales[:] = _half(delta)  # codes follow from the scale before it is rounded
    divisor = delta if delta > 0 else np.float32(np.inf)
    for group in range(starts.shape[0] - 1):
        first, count = group * group_size, min(group_size, x.shape[0] - group * group_size)
        place = starts[group]
        whole = count // 16 * 16
        for j in range(0, whole, 16):
            q = simd.div_f32(simd.load_f32(x, 4 * (first + j)), simd.splat_f32(divisor))
            simd.store_bytes(numbers, place + j, _rounded(q, top))
        for j in range(whole, count):
            q = (x[first + j] / divisor + ROUNDER) - ROUNDER
            numbers[place + j] = np.int8(np.int32(min(max(q, -top), top)))
        total = np.int32(0)
        for j in range(count):
            total += np.int32(numbers[place + j])
        sums[group] = total


@inlined
def _rounded(q, top):  # type: ignore[no-untyped-def]
    """The nearest integers to 16 numbers, half to even, clipped to -top .. top; an `I32`."""
    shifted = simd.add_f32(q, simd.splat_f32(ROUNDER))
    q = simd.sub_f32(shifted, simd.splat_f32(ROUNDER))
    q = simd.max_f32(simd.min_f32(q, simd.splat_f32(top)), simd.splat_f32(-top))
    # As a number of 2**23 and more, the low bits of a float32 are an integer.
    return simd.f32_as_i32(simd.add_f32(q, simd.splat_f32(ROUNDER)))


@jit()
def quantise_rows(x, starts, group_size, qmax, numbers, sums, scales):  # type: ignore[no-untyped-def]
    """`quantise_row` for every row of x."""
    for row in range(x.shape[0]):
        quantise_row(x[row], starts, group_size, qmax, numbers[row], sums[row], scales[row])


@inlined
def _rms_norm(x, weight, eps, out):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for j in range(x.shape[0]):
        total += x[j] * x[j]
    factor = np.float32(1) / np.sqrt(total / np.float32(x.shape[0]) + eps)
    for j in range(x.shape[0]):
        out[j] = x[j] * factor * weight[j]


@inlined
def _normed(  # type: ignore[no-untyped-def]
    x, row, weight, eps, h, starts, group_size, qmax, numbers, sums, scales,
):  # fmt: skip
    """A row of the residual stream, normed and quantised."""
    _rms_norm(x[row], weight, eps, h[row])
    quantise_row(h[row], starts, group_size, qmax, numbers[row], sums[row], scales[row])


@inlined
def _added(x, row, y):  # type: ignore[no-untyped-def]
    for j in range(x.shape[1]):
        x[row, j] += y[row, j]


@inlined
def _tile_rows(  # type: ignore[no-untyped-def]
    w, layer, tile, table, mask, unit, numbers, sums, zeros, scales, y, bits, how,
):  # fmt: skip
    """All rows of activations times 16 rows of weights of one layer."""
    tiles, extra, bias, u_sums, w_scale, starts, _ = w
    a, e, b = tiles[layer, tile], extra[layer, tile], bias[layer, tile]
    us, ws = u_sums[layer, tile], w_scale[layer, tile]
    m = numbers.shape[0]
    for row in range(0, m - 3, 4):
        end = row + 4
        four_rows(
            a, table, mask, e, numbers[row:end], starts, sums[row:end], b, zeros[row:end], us,
            scales[row:end], ws, unit, y[row:end, ROWS * tile :], bits, how,
        )  # fmt: skip
    for row in range(m // 4 * 4, m):
        one_row(
            a, table, mask, e, numbers[row], starts, sums[row], b, zeros[row], us, scales[row], ws,
            unit, y[row, ROWS * tile :], bits, how,
        )  # fmt: skip


@inlined
def _attend(q, keys, values, count, scores, out):  # type: ignore[no-untyped-def]
    """One head of one token: q, out [head_dim], keys [head_dim, room], values [room, head_dim]."""
    head_dim, room = keys.shape
    shrink = np.float32(1 / math.sqrt(head_dim))
    for first in range(0, count, 16):
        total = simd.splat_f32(np.float32(0))
        for d in range(head_dim):
            key = simd.load_f32(keys, 4 * (d * room + first))
            total = simd.add_f32(total, simd.mul_f32(simd.splat_f32(q[d]), key))
        simd.store(scores, 4 * first, simd.mul_f32(total, simd.splat_f32(shrink)))
    largest = scores[0]
    for t in range(1, count):
        largest = max(largest, scores[t])
    for t in range(0, count, 16):
        less = simd.sub_f32(simd.load_f32(scores, 4 * t), simd.splat_f32(largest))
        simd.store(scores, 4 * t, _exp(less))
    total_weight = np.float32(0)
    for t in range(count):
        total_weight += scores[t]
    for d in range(0, head_dim, 16):
        mixed = simd.splat_f32(np.float32(0))
        for t in range(count):
            value = simd.load_f32(values, 4 * (t * head_dim + d))
            mixed = simd.add_f32(mixed, simd.mul_f32(simd.splat_f32(scores[t]), value))
        simd.store(out, 4 * d, mixed)
    for d in range(head_dim):
        out[d] /= total_weight


@inlined
def _silu_times(both, ffn, out):  # type: ignore[no-untyped-def]
    """out = g / (1 + exp(-g)) * u; g and u lie behind each other in `both`, with room for 16."""
    one, none = simd.splat_f32(np.float32(1)), simd.splat_f32(np.float32(0))
    for j in range(0, ffn, 16):
        g = simd.load_f32(both, 4 * j)
        silu = simd.div_f32(g, simd.add_f32(one, _exp(simd.sub_f32(none, g))))
        simd.store(out, 4 * j, simd.mul_f32(silu, simd.load_f32(both, 4 * (ffn + j))))


@inlined
def _rotated(row, start, half, cos, sin):  # type: ignore[no-untyped-def]
    """Turn pair (i, i + half) of a head that starts at `start`, in place."""
    for i in range(half):
        a, b = row[start + i], row[start + half + i]
        row[start + i] = a * cos[i] - b * sin[i]
        row[start + half + i] = b * cos[i] + a * sin[i]


@cache
def forward(bits: int, decode: Decode) -> Any:
    """The compiled pass for weights of `bits` bits: `blocks` below."""
    how = DECODES.index(decode)

    @jit(parallel=True)
    def blocks(  # type: ignore[no-untyped-def]
        x, position, norms, biases, qkv, o, gate_up, down, table, mask, unit, qmax, cos, sin,
        keys, values, eps, heads, ffn,
    ):  # fmt: skip
        """The residual stream x float32 [m, hidden] of m tokens becomes that behind all blocks.

        norms float32 [layers, 2, hidden]; biases float32 [layers, rows of qkv]; qkv, o, gate_up and
        down are tuples (tiles, extra, bias, sums, scale, starts, group size) of `IntegerTiles` with
        an axis for the layer in front of the first five; cos, sin float32 [positions, head_dim/2];
        keys float32 [layers, kv_heads, head_dim, room], values [layers, kv_heads, room, head_dim],
        room, for tokens, a multiple of 16 and head_dim too; they go there from `position` on.
        """
        m, hidden = x.shape
        layers, kv_heads, head_dim, room = keys.shape
        width, half = heads * head_dim, head_dim // 2
        share = heads // kv_heads
        h = np.empty((m, hidden), np.float32)
        mixed = np.empty((m, width), np.float32)
        y_qkv = np.empty((m, qkv[0].shape[1] * ROWS), np.float32)
        y_out = np.empty((m, max(o[0].shape[1], down[0].shape[1]) * ROWS), np.float32)
        y_ffn = np.empty((m, gate_up[0].shape[1] * ROWS + 16), np.float32)
        gated = np.empty((m, ffn + 16), np.float32)
        scores = np.empty((m * heads, room), np.float32)
        longest = max(qkv[5][-1], o[5][-1], down[5][-1])
        most = max(qkv[5].shape[0], o[5].shape[0], down[5].shape[0])
        numbers = np.zeros((m, longest), np.int8)
        sums, zeros = np.zeros((m, most), np.int32), np.zeros((m, most), np.int32)
        scales = np.zeros((m, most), np.float32)
        for layer in range(layers):
            # Starting threads for a single row would cost more than the row.
            if m == 1:
                _normed(x, 0, norms[layer, 0], eps, h, qkv[5], qkv[6], qmax, numbers, sums, scales)
            else:
                for row in prange(m):
                    _normed(
                        x, row, norms[layer, 0], eps, h, qkv[5], qkv[6], qmax, numbers, sums,
                        scales,
                    )  # fmt: skip
            for tile in prange(qkv[0].shape[1]):
                _tile_rows(
                    qkv, layer, tile, table, mask, unit, numbers, sums, zeros, scales, y_qkv, bits,
                    how,
                )  # fmt: skip
            for row in range(m):
                at = position + row
                for j in range(biases.shape[1]):
                    y_qkv[row, j] += biases[layer, j]
                for head in range(heads + kv_heads):
                    _rotated(y_qkv[row], head * head_dim, half, cos[at], sin[at])
                for head in range(kv_heads):
                    start = width + head * head_dim
                    for d in range(head_dim):
                        keys[layer, head, d, at] = y_qkv[row, start + d]
                        values[layer, head, at, d] = y_qkv[row, start + kv_heads * head_dim + d]
            for item in prange(m * heads):
                row, head = item // heads, item % heads
                _attend(
                    y_qkv[row, head * head_dim :], keys[layer, head // share],
                    values[layer, head // share], position + row + 1, scores[item],
                    mixed[row, head * head_dim : (head + 1) * head_dim],
                )  # fmt: skip
            if m == 1:
                quantise_row(mixed[0], o[5], o[6], qmax, numbers[0], sums[0], scales[0])
            else:
                for row in prange(m):
                    quantise_row(mixed[row], o[5], o[6], qmax, numbers[row], sums[row], scales[row])
            for tile in prange(o[0].shape[1]):
                _tile_rows(
                    o, layer, tile, table, mask, unit, numbers, sums, zeros, scales, y_out, bits,
                    how,
                )  # fmt: skip
            if m == 1:
                _added(x, 0, y_out)
                _normed(x, 0, norms[layer, 1], eps, h, qkv[5], qkv[6], qmax, numbers, sums, scales)
            else:
                for row in prange(m):
                    _added(x, row, y_out)
                    _normed(
                        x, row, norms[layer, 1], eps, h, qkv[5], qkv[6], qmax, numbers, sums,
                        scales,
                    )  # fmt: skip
            for tile in prange(gate_up[0].shape[1]):
                _tile_rows(
                    gate_up, layer, tile, table, mask, unit, numbers, sums, zeros, scales, y_ffn,
                    bits, how,
                )  # fmt: skip
            if m == 1:
                _silu_times(y_ffn[0], ffn, gated[0])
                quantise_row(gated[0, :ffn], down[5], down[6], qmax, numbers[0], sums[0], scales[0])
            else:
                for row in prange(m):
                    _silu_times(y_ffn[row], ffn, gated[row])
                    quantise_row(
                        gated[row, :ffn], down[5], down[6], qmax, numbers[row], sums[row],
                        scales[row],
                    )  # fmt: skip
            for tile in prange(down[0].shape[1]):
                _tile_rows(
                    down, layer, tile, table, mask, unit, numbers, sums, zeros, scales, y_out, bits,
                    how,
                )  # fmt: skip
            for row in range(m):
                _added(x, row, y_out)

    return blocks
