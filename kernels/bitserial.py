"""The bit-serial PE's arithmetic in torch, written a second time from docs/numerics.md.

It shares no code with the PE's reference and model in `sim`: weights are split into terms by
arithmetic on their values rather than by tables, and all dot products advance together, one term
cycle at a time, in int32 tensors.
"""

from typing import Any

import numpy as np
import torch

from bitwright.quant import QuantizedTensor

from .steps import weight_steps

Tensor = torch.Tensor


def _jam(x: Tensor, n: Tensor) -> Tensor:
    """Shift right; the last bit of the result is set if anything was lost (rounding to odd)."""
    q = x >> n
    return torch.where(x != q << n, q | 1, q)


def _booth_term(value: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Sign (-1, 0, 1) and shift of radix-4 Booth digit t of two's complement values."""
    below = (value >> 2 * t - 1 & 1) if t else torch.zeros_like(value)
    digit = below + (value >> 2 * t & 1) - 2 * (value >> 2 * t + 1 & 1)
    return digit.sign(), (digit.abs() == 2).to(value.dtype)


def _leading_one(x: Tensor) -> Tensor:
    """Position of the highest one of a 4-bit number; 0 for 0."""
    return (x >= 2).to(x.dtype) + (x >= 4).to(x.dtype) + (x >= 8).to(x.dtype)


def _float_term(half_units: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Sign and shift of the lower (t = 0) or upper (t = 1) term of values in half units."""
    magnitude = half_units.abs()
    upper = magnitude >> 1
    shift = _leading_one(upper)
    if t == 0:
        taken = torch.where(upper > 0, 2 << shift, torch.zeros_like(shift))
        upper = magnitude & 15 & ~taken
        shift = _leading_one(upper)
    return half_units.sign() * (upper > 0), shift


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

    Args:
        act_bits: FP16 patterns, uint16 [..., steps, lanes].
        values: Weights as signed integers (half units for the floating-point formats),
            [..., steps, lanes]; leading axes broadcast against those of `act_bits`.
        group_end: bool [..., steps]; True where a step ends its group. Steps after a dot product's
            last group must have zero activations.
        scale: Group scales 0..255 [..., steps], read where a group ends.
        terms: Term cycles of a step.
        half_units: True for the floating-point formats.

    Returns:
        float32 [...], the broadcast leading axes.
    """
    bits = torch.from_numpy(np.asarray(act_bits).astype(np.int32))
    weights = torch.from_numpy(np.asarray(values).astype(np.int32))
    ends = torch.from_numpy(np.asarray(group_end))
    scales = torch.from_numpy(np.asarray(scale).astype(np.int32))
    shape = torch.broadcast_shapes(bits.shape[:-2], weights.shape[:-2])
    exponent = (bits >> 10) & 31
    significand = (bits & 0x3FF) + torch.where(exponent > 0, 1024, 0)
    signed = torch.where(bits >> 15 > 0, -significand, significand) << 3
    exponent = exponent.clamp(min=1)
    a = torch.zeros(shape, dtype=torch.int32)
    e_a = torch.zeros(shape, dtype=torch.int32)
    acc = torch.zeros(shape, dtype=torch.float32)
    for s in range(bits.shape[-2]):
        m, e_act, w = signed[..., s, :], exponent[..., s, :], weights[..., s, :]
        for t in range(terms):
            sign, shift = _float_term(w, t) if half_units else _booth_term(w, t)
            bsig = t if half_units else 2 * t
            addend = m * sign
            e = torch.where(addend != 0, e_act + shift, 0)
            e_max = e.amax(-1)
            total = _jam(addend, (e_max[..., None] - e).clamp(max=14)).sum(-1, dtype=torch.int32)
            common = torch.maximum(e_max, e_a)
            v = _jam(total << bsig, (common - e_max).clamp(max=23))
            v = v + _jam(a, (common - e_a).clamp(max=23))
            # The smallest r with v >> r in 16 bits; float64 holds v exactly, so frexp counts bits.
            reach = torch.where(v < 0, ~v, v)
            r = (torch.frexp(reach.double()).exponent - 15).clamp(min=0).to(torch.int32)
            q = v >> r
            rest = v - (q << r)
            half = (1 << r) >> 1
            up = (r > 0) & ((rest > half) | ((rest == half) & (q & 1 == 1)))
            q = q + up.to(torch.int32)
            over = q == 1 << 15
            a = torch.where(over, 1 << 14, q).to(torch.int32)
            e_a = (common + r + over).to(torch.int32)
        done = ends[..., s]
        if done.any():
            product = torch.ldexp((a * scales[..., s]).to(torch.float32), e_a - 28)
            acc = torch.where(done, acc + product, acc)
            a = torch.where(done, 0, a)
            e_a = torch.where(done, 0, e_a)
    return acc.numpy()


def bitserial_matmul(x: Any, qt: QuantizedTensor) -> np.ndarray:
    """y[m, n] = x[m, k] @ w[n, k].T with the numerics of the bit-serial PE.

    Args:
        x: Activations, FP16 or rounded to it.
        qt: Weights with INT8 second-level scales.

    Raises:
        InputError: The scale format is not int8, the values have no terms, or an activation is not
            finite in FP16.
    """
    return weight_steps(qt).product(x, bitserial_dots)
