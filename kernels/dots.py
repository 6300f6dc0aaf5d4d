"""The arithmetic of the dot-product PEs in torch, written a second time from docs/numerics.md.

Streams hold dot products one after the other; `ends` marks the last step of each. These functions
share no code with the PEs' models in `sim`: operands are numbers from `quant`'s value tables rather
than decoded bits, and all dot products of a stream advance together.
"""

from collections.abc import Sequence

import numpy as np
import torch

from bitwright.quant import InputError

Tensor = torch.Tensor


def integer_dots(
    acts: np.ndarray, weights: np.ndarray, ends: np.ndarray, *, acc_bits: int = 32
) -> np.ndarray:
    """Sums of products in an accumulator of `acc_bits` bits that wraps; its bits, uint32 [dots].

    Args:
        acts: Integers [steps, lanes], of any type.
        weights: Integers [steps, lanes].
        ends: bool [steps].
        acc_bits: Width of the accumulator, two's complement.

    Raises:
        InputError: A value is not an integer, or the last step ends no dot product.

    >>> [int(y) for y in integer_dots(np.ones((3, 1)), np.array([[1], [2], [-3]]), [0, 1, 1])]
    [3, 4294967293]
    """
    products = (_integers("acts", acts) * _integers("weights", weights)).sum(1)
    return _wrapped(_segment_sums(products, ends), acc_bits)


def plane_dots(
    pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    ends: np.ndarray,
    *,
    acc_bits: int = 32,
) -> np.ndarray:
    """Sums of factor * popcount(x AND w) over pairs of bit planes; accumulator bits, uint32 [dots].

    Args:
        pairs: Per pair the words of x and w, uint32 [steps, words], and the factor of each step.
        ends: bool [steps].
        acc_bits: Width of the accumulator, two's complement; it wraps.
    """
    total = torch.zeros(len(ends), dtype=torch.int64)
    for x, w, factor in pairs:
        ones = torch.zeros(len(ends), dtype=torch.int64)
        for bit in range(32):
            both = (x >> np.uint32(bit) & 1, w >> np.uint32(bit) & 1)
            left, right = (torch.from_numpy(plane.astype(np.int8)) for plane in both)
            ones += (left * right).sum(1)
        total += torch.from_numpy(factor.astype(np.int64)) * ones
    return _wrapped(_segment_sums(total, ends), acc_bits)


def float_dots(addends: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sums of float32 addends, one rounding each, in order; binary32 bits, uint32 [dots].

    Args:
        addends: float32 [steps].
        ends: bool [steps].
    """

    def add(acc: Tensor, addend: Tensor) -> Tensor:
        return acc + addend

    return _in_order(addends, ends, add).numpy().view(np.uint32)


def half_dots(acts: np.ndarray, weights: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Dot products with every product and every sum rounded to FP16, saturating at +-65504.

    Args:
        acts: FP16 values, float32 [steps].
        weights: FP16 values, float32 [steps].
        ends: bool [steps].

    Returns:
        Binary16 bits, uint32 [dots]. A product of two FP16 numbers is exact in float32, and so is
        the rounding of a sum of two FP16 numbers by way of float32 (24 >= 2 * 11 + 2 bits).
    """

    def rounded(value: Tensor) -> Tensor:
        # Clamped first: 65504 .. 65520 rounds to 65504 anyway, and nothing becomes infinite.
        return value.clamp(-65504, 65504).to(torch.float16).to(torch.float32) + 0.0

    products = rounded(torch.from_numpy(acts) * torch.from_numpy(weights))
    total = _in_order(products.numpy(), ends, lambda acc, p: rounded(acc + p))
    return total.to(torch.float16).numpy().view(np.uint16).astype(np.uint32)


def _in_order(addends, ends, add) -> Tensor:  # type: ignore[no-untyped-def]
    """Fold `add` over the steps of each dot product, all dot products side by side."""
    stops = np.flatnonzero(ends) + 1
    starts = np.concatenate([[0], stops[:-1]])
    lengths = stops - starts
    # Longest first, so that those still running are the first ones.
    order = np.argsort(-lengths, kind="stable")
    values = torch.from_numpy(np.ascontiguousarray(addends, np.float32))
    acc = torch.zeros(len(stops))
    first = torch.from_numpy(starts[order])
    running = np.searchsorted(-lengths[order], -np.arange(int(lengths.max(initial=0))), "left")
    for step, count in enumerate(running):
        acc[:count] = add(acc[:count], values[first[:count] + step])
    result = torch.empty_like(acc)
    result[torch.from_numpy(order)] = acc
    return result


def _integers(name: str, values: np.ndarray) -> Tensor:
    values = np.asarray(values)
    integers = values.astype(np.int64)
    if not np.array_equal(integers, values):
        wrong = values[integers != values].flat[0]
        raise InputError(f"{name} holds {wrong}; integer dot products need integers")
    return torch.from_numpy(integers)


def _segment_sums(values: Tensor, ends: np.ndarray) -> Tensor:
    ends = np.asarray(ends, bool)
    if len(ends) and not ends[-1]:
        raise InputError("ends[-1] is 0; the last step must end its dot product")
    dot = torch.from_numpy(np.cumsum(ends) - ends)
    return torch.zeros(int(ends.sum()), dtype=torch.int64).index_add_(0, dot, values)


def _wrapped(sums: Tensor, bits: int) -> np.ndarray:
    return (sums & ((1 << bits) - 1)).numpy().astype(np.uint32)
