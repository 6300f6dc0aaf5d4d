"""FP16 activations times integer weights: the weight-only baseline.

The significand of the activation times the integer is exact, 20 bits at most, and so is the product
in binary32; the only rounding is that of the binary32 accumulator, as in the `fp16` PE. Group
scales are applied outside the PE, once per group.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit, prange

from bitwright.quant import InputError, QuantizedTensor

from .activations import decode_fp16_array, fp16_bits
from .bitmod import decode_fp16
from .dot import (
    DotStream,
    DotUnit,
    FloatAccumulator,
    Ports,
    float64_scales,
    group_bounds,
    lane_layout,
    pair_ends,
    pair_ports,
    signed,
)
from .integer import check_shape, twos_complement

_LONGEST = 1 << 30  #: sums of so many products stay far below binary32's largest number


@dataclass(frozen=True, slots=True)
class Fp16IntPE(DotUnit):
    """One FP16 activation times one integer weight a cycle, accumulated in binary32.

    Ports (docs/numerics.md): `act0` 16, finite FP16; `code0` weight_bits, two's complement; `last`
    1, `y` 32, binary32. Sums of up to 2**30 products neither overflow nor become subnormal.

    >>> Fp16IntPE(4).partial({"act0": 0x3C00, "code0": 0xF})  # 1.0 * -1: -1024 * 2**(15 - 25)
    (-1024, 15)
    """

    weight_bits: int = 4  #: 2 .. 8
    stages: int = 2

    accumulator: ClassVar[FloatAccumulator] = FloatAccumulator(unit=25)

    def __post_init__(self) -> None:
        check_shape(1, self.stages)
        if not 2 <= self.weight_bits <= 8:
            raise InputError(f"weight_bits (={self.weight_bits}) must be in 2 .. 8")

    @property
    def name(self) -> str:
        return f"fp16xint{self.weight_bits}"

    @property
    def lanes(self) -> int:
        return 1

    @property
    def ports(self) -> Mapping[str, int]:
        return {"act0": 16, "code0": self.weight_bits}

    @property
    def act_format(self) -> str:
        return "fp16"

    @property
    def weight_formats(self) -> tuple[str, ...]:
        return tuple(f"int{bits}-sym" for bits in range(2, self.weight_bits + 1))

    def partial(self, step: Mapping[str, int]) -> tuple[int, int]:
        sign, exponent, significand = decode_fp16(step["act0"])
        product = significand * twos_complement(step["code0"], self.weight_bits)
        return -product if sign else product, exponent

    def partials(self, ports: Ports) -> tuple[np.ndarray, np.ndarray]:
        significand, exponent = decode_fp16_array(ports["act0"].astype(np.uint16))
        weight = signed(ports["code0"], self.weight_bits)
        return significand.astype(np.int64) * weight, exponent.astype(np.int64)

    def check(self, w: QuantizedTensor) -> None:
        self.check_format(w.format)
        if w.k > _LONGEST:
            raise InputError(f"k (={w.k}) is more than {_LONGEST}, the longest dot product")

    def activations(self, x: Any, w: QuantizedTensor) -> np.ndarray:
        """FP16 patterns uint16 [m, k].

        Raises:
            InputError: A value is not finite in FP16, or k differs.
        """
        bits = x if isinstance(x, np.ndarray) and x.dtype == np.uint16 else fp16_bits(x)
        if bits.ndim != 2 or bits.shape[1] != w.k:
            raise InputError(f"x has shape {bits.shape}; it must be [m, k] with k = {w.k}")
        return bits

    def tensor_stream(self, x: np.ndarray, w: QuantizedTensor) -> DotStream:
        codes = (_integers(w) & ((1 << self.weight_bits) - 1)).astype(np.uint8)
        acts = lane_layout(x, w.group_size, 1)
        ports = pair_ports(acts, lane_layout(codes, w.group_size, 1))
        return DotStream(ports, pair_ends(w, 1, len(x)))

    def results(self, x: np.ndarray, w: QuantizedTensor) -> Iterator[np.ndarray]:
        acts = x.view(np.float16).astype(np.float32)
        weights = _integers(w).astype(np.float32)
        for start, stop in group_bounds(w.k, w.group_size):
            out = np.empty((len(x), w.n), np.float32)
            columns = slice(start, stop)
            _multiply(acts[:, columns].copy(), weights[:, columns].copy(), out)
            yield out

    def outer_scales(
        self, x: np.ndarray, w: QuantizedTensor, exact: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Those of the weights; FP16 activations have none."""
        right = float64_scales(w) if exact else w.scales()
        return np.ones((len(x), 1), right.dtype), right


def _integers(w: QuantizedTensor) -> np.ndarray:
    return signed(w.codes, w.format.bits)


@njit(cache=True, parallel=True)
def _multiply(x, w, out):  # type: ignore[no-untyped-def]
    """x float32 [m, k], w float32 [n, k], out float32 [m, n].

    Products are exact in float32; no fastmath, since the order of the sums is the definition.
    """
    for j in prange(w.shape[0]):
        for i in range(x.shape[0]):
            acc = np.float32(0)
            for c in range(w.shape[1]):
                acc += x[i, c] * w[j, c]
            out[i, j] = acc
