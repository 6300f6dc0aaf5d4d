"""The CUDA kernels behind `bitwright.kernels.matmul`.

Method planes: the device gives the int32 sums of each group; zero points and scales are applied as
on every backend. Method float: codes of up to four bits against activations rounded to FP16, eight
rows at a time.
"""

from typing import Any

import numpy as np

from bitwright.kernels import fp16_bits, integers, scaling
from bitwright.quant import InputError, QuantizedTensor

from .matmul import binary_group_sums, weight_only_gemv
from .planes import pack_nibbles, pack_planes

_GROUP = 128  #: columns of which the groups of the bit-plane kernel are multiples
_ROWS = 8  #: of activations in a launch of the weight-only kernel


def pack(w: QuantizedTensor, method: str) -> Any:
    """Weights for a method, "planes" or "float"; called with activations.

    Raises:
        InputError: A format or group size that the kernels do not take.
    """
    return PlanesOnDevice(w) if method == "planes" else FloatOnDevice(w)


class PlanesOnDevice:
    """Integer weights as bit planes."""

    def __init__(self, w: QuantizedTensor) -> None:
        if w.format.kind not in ("int-sym", "int-asym"):
            raise InputError(f"weight format {w.format.name}: the CUDA kernel takes integers")
        if w.groups > 1 and w.group_size % _GROUP:
            raise InputError(
                f"weights have groups of {w.group_size}; the CUDA kernel takes multiples of "
                f"{_GROUP} or one group per row"
            )
        self.size = min(w.group_size, w.k)
        self._signed = w.format.kind == "int-sym"
        _, _, self._bias = integers.plane_numbers(w)
        bits = w.format.bits
        numbers = w.codes.astype(np.int32)
        if self._signed:
            numbers -= (numbers >> bits - 1) << bits
        self._sums = integers.group_sums(numbers, self.size)
        self._lengths = integers.group_lengths(w.k, self.size)
        self._scale = w.scales()
        self._planes = pack_planes(w.codes, bits)

    def __call__(self, x: QuantizedTensor) -> np.ndarray:
        acts = integers.activations_of(x, self.size)
        signed = x.format.kind == "int-sym"
        shift = 128 if not signed and x.format.bits == 8 else 0
        sums = binary_group_sums(
            pack_planes(x.codes, x.format.bits),
            self._planes,
            group_size=None if len(self._lengths) == 1 else self.size,
            x_signed=signed,
            w_signed=self._signed,
        )
        # The device sees the codes themselves: what was taken off them to fit a byte goes back.
        sums = scaling.corrected(
            sums, acts.bias + shift, acts.sums + shift * self._lengths, self._bias, self._sums,
            self._lengths,
        )  # fmt: skip
        return scaling.scaled(sums, acts.scales, self._scale, 1.0)


class FloatOnDevice:
    """Codes of up to four bits with value tables."""

    def __init__(self, w: QuantizedTensor) -> None:
        format = w.format
        if format.bits > 4 or format.kind in ("olive", "dint-asym") or format.choices > 4:
            raise InputError(
                f"weight format {format.name}: the CUDA kernel takes tables of up to 16 values"
            )
        if w.groups > 1 and w.group_size % 32:
            raise InputError(
                f"weights have groups of {w.group_size}; the CUDA kernel takes multiples of 32"
            )
        self._k = w.k
        self._tables = np.zeros((format.choices, 16), np.float32)
        for selector in range(format.choices):
            self._tables[selector, : 1 << format.bits] = format.code_values(selector)
        self._codes = pack_nibbles(w.codes)
        self._scales = w.scales()
        self._selectors = w.selectors
        self._zeros = None if w.zero_points is None else w.zero_points.astype(np.float32)
        self._size = w.group_size if w.groups > 1 else -(-w.k // 32) * 32

    def __call__(self, x: np.ndarray) -> np.ndarray:
        half = fp16_bits(x).view(np.float16)
        parts = [
            weight_only_gemv(
                half[row : row + _ROWS],
                self._codes,
                self._scales,
                self._tables,
                group_size=self._size,
                selectors=self._selectors,
                zeros=self._zeros,
            )
            for row in range(0, len(half), _ROWS)
        ]
        return np.concatenate(parts)
