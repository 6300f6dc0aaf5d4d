"""PyRTL generator of the ternary PE, after docs/numerics.md."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pyrtl import Const, WireVector

from bitwright.sim import ternary

from .decoders import Decoder, decoder
from .heap import BitHeap
from .lanes import LaneDesign

TernaryPE = ternary.TernaryPE


@dataclass(frozen=True)
class TernaryDesign(LaneDesign[TernaryPE]):
    """`TernaryPE` in hardware: an AND and an XOR per activation bit, then one heap."""

    unit: TernaryPE = field(default_factory=TernaryPE)

    def decoders(self) -> list[Decoder]:
        """A weight times an activation of 1."""

        def value(code: WireVector) -> WireVector:
            one_lane = TernaryDesign(TernaryPE(lanes=1))
            return one_lane.combine([Const(1, 8), code])[0]

        return [decoder(f"{self.top}_weight", {"code": 2}, value, self.weight_value)]

    def decode_weight(self, code: WireVector, zero: WireVector | None) -> WireVector:
        return code

    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, None]:
        heap = BitHeap(self.sum_bits)
        for act, code in zip(operands[::2], operands[1::2], strict=True):
            minus, live = code[1] & code[0], code[0]
            chosen = (act & live.sign_extended(8)) ^ minus.sign_extended(8)
            heap.signed(chosen)
            heap.bit(minus, 0)
        return heap.total(), None
