"""Designs whose operands are a sign, an integer and an exponent: what ANT and OliVe share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from pyrtl import Const, WireVector, concat

from bitwright.rtl import Stream
from bitwright.sim import typed

from .dot import DotDesign
from .heap import BitHeap
from .logic import shift_left

Unit = TypeVar("Unit", bound=typed.TypedUnit)


class Operand(NamedTuple):
    """(-1)**sign * base << exponent."""

    sign: WireVector
    base: WireVector
    exponent: WireVector


class TypedDesign(DotDesign[Unit]):
    """A `TypedUnit` in hardware; operands are sign, base and exponent of a0, w0, a1, w1, ... ."""

    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, None]:
        lanes = [Operand(*operands[i : i + 3]) for i in range(0, len(operands), 3)]
        largest = self.unit.largest**2
        heap = BitHeap((largest * self.unit.lanes).bit_length() + 1)
        for a, w in zip(lanes[::2], lanes[1::2], strict=True):
            heap.negated_if(a.sign ^ w.sign, magnitude(a, w, largest.bit_length()))
        return heap.total(), None

    def values(self, prefix: str, stream: Stream) -> np.ndarray:
        """What the codes on the ports are worth by `quant`'s tables, [steps, lanes]."""
        raise NotImplementedError

    def kernel(self, function: Callable[..., np.ndarray], stream: Stream) -> np.ndarray:
        acts, weights = self.values("act", stream), self.values("code", stream)
        return function(acts, weights, stream.ends, acc_bits=self.unit.accumulator.bits)


def magnitude(a: Operand, w: Operand, bits: int) -> WireVector:
    """base * base << exponent + exponent, in `bits` bits."""
    width = len(a.base) + len(w.base)
    product = BitHeap(width)
    for i, bit in enumerate(a.base):
        product.unsigned(w.base & bit.sign_extended(len(w.base)), i)
    shift = a.exponent + w.exponent
    wide = concat(Const(0, 1), product.total())
    return shift_left(wide, shift, max(bits, width) + 1)[:bits]


def sign_magnitude(code: WireVector) -> tuple[WireVector, WireVector]:
    """Sign and magnitude of a two's complement number, the magnitude as wide as the number."""
    sign = code[-1]
    flipped = code ^ sign.sign_extended(len(code))
    return sign, (flipped + sign)[: len(code)]
