"""PyRTL generator of the integer multiply-accumulate PEs, after docs/numerics.md."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pyrtl import WireVector

from bitwright.sim import integer

from .heap import BitHeap
from .lanes import LaneDesign

IntegerPE = integer.IntegerPE


@dataclass(frozen=True)
class IntegerDesign(LaneDesign[IntegerPE]):
    """`IntegerPE` in hardware: one heap of partial products, one carry chain, the accumulator."""

    unit: IntegerPE = field(default_factory=IntegerPE)

    def decode_weight(self, code: WireVector, zero: WireVector | None) -> WireVector:
        return code

    def weight_value(self, code: int, zero: int = 0) -> int | None:
        half = 1 << self.unit.weight_bits - 1
        return (code ^ half) - half

    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, None]:
        return signed_products(operands, self.sum_bits), None


def signed_products(operands: Sequence[WireVector], width: int) -> WireVector:
    """Sum of the products of two's complement operands a0, w0, a1, w1, ..., `width` bits."""
    heap = BitHeap(width)
    for a, w in zip(operands[::2], operands[1::2], strict=True):
        heap.product(a, w)
    return heap.total()
