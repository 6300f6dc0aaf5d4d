"""Quantised tensors as integers: what the exact methods multiply, whatever does it.

A tensor is `unit * scale * (number - bias)` with integers `number` and a bias per row and group, so
that a dot product of a group is exact in integers; see `cpu/integer.py` for the algebra.
"""

from dataclasses import dataclass

import numpy as np

from bitwright.quant import Format, QuantizedTensor


@dataclass(frozen=True)
class Activations:
    """Integer activations as signed bytes."""

    numbers: np.ndarray  #: int8 [m, k]
    bias: np.ndarray  #: int32 [m, groups]: to be taken off the numbers
    scales: np.ndarray  #: float32 [m, groups]
    sums: np.ndarray  #: int32 [m, groups]: sums of the numbers of each group


def activations_of(x: QuantizedTensor, group_size: int) -> Activations:
    """Activations in the groups of the weights; one group per row serves all of them."""
    bits = x.format.bits
    groups = -(-x.k // group_size)
    if x.format.kind == "int-sym":
        numbers = (x.codes << (8 - bits)).view(np.int8) >> (8 - bits)
        bias = np.zeros((x.n, 1), np.int32)
    else:
        assert x.zero_points is not None
        shift = 128 if bits == 8 else 0  # so that 0 .. 255 fit a signed byte
        numbers = (x.codes ^ shift).view(np.int8)
        bias = x.zero_points.astype(np.int32) - shift
    scales = x.scales()
    if scales.shape[1] < groups:
        scales = np.repeat(scales, groups, axis=1)
    if bias.shape[1] < groups:
        bias = np.repeat(bias, groups, axis=1)
    return Activations(numbers, bias, scales, group_sums(numbers, group_size))


def unit_of(format: Format) -> float:
    """The power of two of which all values of a format are multiples.

    >>> from bitwright.quant import FORMATS
    >>> [unit_of(FORMATS[name]) for name in ("int4-sym", "dint4-asym", "fp4", "flint5", "fp6-e3m2")]
    [1.0, 0.5, 0.5, 1.0, 0.0625]
    """
    if format.kind in ("int-sym", "int-asym", "olive"):
        return 1.0
    if format.kind == "dint-asym":
        return 0.5
    tables = [format.code_values(selector) for selector in range(format.choices)]
    values = np.array(tables)
    unit = 1.0
    while (values / unit % 1).any():
        unit /= 2
    return unit


def values_in_units(w: QuantizedTensor) -> np.ndarray:
    """The weights before the scale, as integers in units of `unit_of`: int32 [n, k]."""
    return (w.values() / np.float32(unit_of(w.format))).astype(np.int32)


def plane_numbers(w: QuantizedTensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights as bit planes.

    Returns:
        Codes whose bits are the planes, uint8 [n, k]; the planes' weights, int64 [planes]; the bias
        to take off, int32 [n, groups]. Ternary weights are the planes of +1 and of -1, binary ones
        2 bit - 1.
    """
    bits, name = w.format.bits, w.format.name
    bias = np.zeros((w.n, w.groups), np.int32)
    if name == "ternary":  # codes 1 and 3: bits 1 and 2
        return np.array([0, 1, 0, 2], np.uint8)[w.codes], np.array([1, -1], np.int64), bias
    weights = 1 << np.arange(bits, dtype=np.int64)
    if name == "binary":
        return w.codes, 2 * weights, bias + 1
    if w.format.kind == "int-sym":
        weights[-1] *= -1
        return w.codes, weights, bias
    assert w.zero_points is not None
    return w.codes, weights, w.zero_points.astype(np.int32)


def group_sums(numbers: np.ndarray, group_size: int) -> np.ndarray:
    """Sums over each group's columns: int32 [rows, groups] of [rows, k]."""
    if group_size >= numbers.shape[1]:  # several times as fast as reduceat
        return numbers.sum(axis=1, dtype=np.int32)[:, None]
    starts = np.arange(0, numbers.shape[1], group_size)
    return np.add.reduceat(numbers, starts, axis=1, dtype=np.int32)


def group_lengths(k: int, group_size: int) -> np.ndarray:
    """Columns of each group, int32 [groups]."""
    starts = np.arange(0, k, group_size)
    return np.minimum(group_size, k - starts).astype(np.int32)
