"""Products of quantised weights in JAX, on its default device.

Thin, as the torch backend: `operands.py` lays weights out and scales exact sums. No 64-bit types
are needed: sums of a group lie below 2**31 (packing refuses what would not). XLA compiles a
function for each shape that comes. On the processor it contracts a * b + c to a fused multiply-add
and counts subnormal numbers as 0, which is why sums are not scaled here.

The bit-serial PE's arithmetic is written here again with `lax.scan` over the steps, all dot
products side by side, in int32. Its only float32 operations are a product of an integer below
2**24 with a power of two, which is exact, and the sum of the column; a fused multiply-add gives
the same bits, and no number is subnormal.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bitwright.quant import QuantizedTensor

from . import operands
from .steps import weight_steps

Array = jax.Array


def pack(w: QuantizedTensor, method: str) -> Callable[[Any], np.ndarray]:
    """Weights prepared for a method of `bitwright.kernels.planner`.

    Args:
        w: Weights.
        method: "float" (called with float32 [m, k]), "integer", "planes" or "lookup" (with a
            QuantizedTensor of activations), or "bitserial" (with real numbers [m, k]).

    Returns:
        Called with activations, gives y float32 [m, n] in numpy.

    Raises:
        InputError: The method does not take the weights.
    """
    if method == "bitserial":
        steps = weight_steps(w)
        return lambda x: steps.product(x, bitserial_dots)
    return operands.pack(w, method, _LIBRARY)


# ------------------------------------------------------------------ functions; see operands.py


def _decoded(words: Array, grid: Array, tables: Array) -> Array:
    """Numbers [n, G, L] from bytes of codes."""
    rows = grid[..., None].astype(jnp.int32) * 256 + words
    numbers = jnp.take(tables, rows, axis=0, mode="clip")
    return numbers.reshape(*words.shape[:2], -1)


@jax.jit
def _float(x: Array, scale: Array, words: Array, grid: Array, tables: Array) -> Array:
    weights = _decoded(words, grid, tables) * scale[..., None]
    return jnp.matmul(x, weights.reshape(len(weights), -1).T, precision=lax.Precision.HIGHEST)


@jax.jit
def _integer(x: Array, words: Array, grid: Array, tables: Array) -> Array:
    weights = _decoded(words, grid, tables)
    return lax.dot_general(
        x.astype(weights.dtype),
        weights,
        (((2,), (2,)), ((1,), (1,))),  # over the columns of a group, for every group
        preferred_element_type=jnp.int32,
    )


@jax.jit
def _planes(x: Array, x_weights: Array, w: Array, w_weights: Array) -> Array:
    both = x[:, None, :, None] & w[None, :, None]  # [m, n, P, Q, G, W]
    factors = (x_weights[:, None] * w_weights)[..., None, None]
    return (lax.population_count(both) * factors).sum((2, 3, 5)).transpose(2, 0, 1)


@jax.jit
def _lookup(x: Array, indices: Array, signs: Array | None, patterns: Array) -> Array:
    groups, sets = x.shape[1:3]
    n = len(indices)
    # Sums by set and index, all rows of activations side by side: [G J 16, m].
    tables = (x[:, :, :, None].astype(jnp.int32) * patterns).sum(-1).reshape(len(x), -1).T
    index = jnp.stack([indices & 15, indices >> 4], -1).reshape(n, -1).astype(jnp.int32)
    sums = jnp.take(tables, index + 16 * jnp.arange(groups * sets), axis=0, mode="clip")
    if signs is not None:
        bits = (signs[..., None] >> jnp.arange(8, dtype=jnp.uint8) & 1).reshape(n, -1)
        sums = sums * (1 - 2 * bits[:, : groups * sets, None].astype(jnp.int32))
    return sums.reshape(n, groups, sets, -1).sum(2).transpose(1, 2, 0)


_LIBRARY = operands.Library(
    name="jax",
    put=jnp.asarray,
    get=np.asarray,
    functions={"float": _float, "integer": _integer, "planes": _planes, "lookup": _lookup},
    word=np.int32,
    # Signed bytes have instructions of their own; the rest multiplies in 32 bits.
    number=lambda low, high: np.int8 if low >= -128 and high <= 127 else np.int32,
    sum_bits=31,
    panel=1 << 62,  # XLA fuses what torch would store, and compiles for every number of rows
)


# ------------------------------------------------------------------ bit-serial


def bitserial_dots(
    act_bits: np.ndarray,
    values: np.ndarray,
    group_end: np.ndarray,
    scale: np.ndarray,
    *,
    terms: int,
    half_units: bool,
) -> np.ndarray:
    """Column accumulators of many dot products, before the channel scale.

    Arguments and result are those of `bitwright.kernels.bitserial_dots`, to the bit.
    """
    acc = _dots(
        *(jnp.asarray(np.asarray(a).astype(np.int32)) for a in (act_bits, values)),
        jnp.asarray(np.asarray(group_end, bool)),
        jnp.asarray(np.asarray(scale).astype(np.int32)),
        terms=terms,
        half_units=half_units,
    )
    return np.asarray(acc)


@partial(jax.jit, static_argnames=("terms", "half_units"))
def _dots(
    bits: Array, weights: Array, ends: Array, scales: Array, *, terms: int, half_units: bool
) -> Array:
    exponent = bits >> 10 & 31
    significand = jnp.where(exponent > 0, 1024, 0) + (bits & 0x3FF)
    signed = jnp.where(bits >> 15 & 1 > 0, -significand, significand) << 3
    shape = jnp.broadcast_shapes(bits.shape[:-2], weights.shape[:-2])
    # The axis of steps first.
    streams = (
        jnp.moveaxis(signed, -2, 0),
        jnp.moveaxis(jnp.maximum(exponent, 1), -2, 0),
        jnp.moveaxis(weights, -2, 0),
        jnp.moveaxis(ends, -1, 0),
        jnp.moveaxis(scales, -1, 0),
    )

    def step(state: tuple[Array, Array, Array], now: tuple[Array, ...]) -> Any:
        a, e_a, acc = state
        signed, exponent, weight, end, scale = now
        for t in range(terms):
            sign, shift = _float_term(weight, t) if half_units else _booth_term(weight, t)
            a, e_a = _accumulate(
                a, e_a, signed * sign, exponent + shift, t if half_units else 2 * t
            )
        # The exponent field of a binary32 number: 2**(e_a - 28).
        power = lax.bitcast_convert_type(e_a - 28 + 127 << 23, jnp.float32)
        acc = jnp.where(end, acc + (a * scale).astype(jnp.float32) * power, acc)
        return (jnp.where(end, 0, a), jnp.where(end, 0, e_a), acc), None

    zero = jnp.zeros(shape, jnp.int32)
    state, _ = lax.scan(step, (zero, zero, jnp.zeros(shape, jnp.float32)), streams)
    return state[2]


def _accumulate(
    a: Array, e_a: Array, addends: Array, exponents: Array, significance: int
) -> tuple[Array, Array]:
    """One cycle: accumulator and its exponent [...] after the addends of the lanes [..., 4]."""
    exponents = jnp.where(addends != 0, exponents, 0)
    e_max = exponents.max(-1)
    aligned = _jam(addends, jnp.minimum(e_max[..., None] - exponents, 14))
    common = jnp.maximum(e_max, e_a)
    v = _jam(aligned.sum(-1) << significance, jnp.minimum(common - e_max, 23))
    v = v + _jam(a, jnp.minimum(common - e_a, 23))
    # The smallest r with v >> r in 16 bits: a number and its complement have the same width.
    width = 32 - lax.clz(v ^ v >> 31)
    r = jnp.maximum(width - 15, 0)
    floor = v >> r
    rest = v - (floor << r)
    half = jnp.int32(1) << r >> 1
    up = (r > 0) & ((rest > half) | ((rest == half) & (floor & 1 > 0)))
    rounded = floor + up
    over = rounded == 1 << 15
    return jnp.where(over, 1 << 14, rounded), common + r + over


def _jam(x: Array, n: Array) -> Array:
    """Shift right, the last bit set if any that went was (rounding to odd)."""
    return x >> n | ((x & (jnp.int32(1) << n) - 1) != 0)


def _booth_term(value: Array, t: int) -> tuple[Array, Array]:
    """Sign (-1, 0, 1) and shift of radix-4 Booth digit t of two's complement values."""
    below = value >> 2 * t - 1 & 1 if t else 0
    digit = below + (value >> 2 * t & 1) - 2 * (value >> 2 * t + 1 & 1)
    return jnp.sign(digit), jnp.abs(digit) >> 1


def _float_term(half_units: Array, t: int) -> tuple[Array, Array]:
    """Sign and shift of the lower (t = 0) or upper (t = 1) term of values in half units."""
    magnitude = jnp.abs(half_units)
    top = _leading_one(magnitude >> 1)
    if t == 0:
        # What the upper term takes is cleared, so that no bit counts twice.
        magnitude = magnitude & ~jnp.where(magnitude > 1, 2 << top, 0) & 15
        return jnp.sign(half_units) * (magnitude > 0), _leading_one(magnitude)
    return jnp.sign(half_units) * (magnitude > 1), top


def _leading_one(x: Array) -> Array:
    """Position of the highest one; 0 for 0."""
    return jnp.maximum(31 - lax.clz(x), 0)
