"""PyRTL generator of the dINT multiply-accumulate PE, after docs/numerics.md."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyrtl
from pyrtl import Const, WireVector, concat, select

from bitwright.quant import FORMATS
from bitwright.sim import dint

from .integer import signed_products
from .lanes import LaneDesign

DintPE = dint.DintPE


@dataclass(frozen=True)
class DintDesign(LaneDesign[DintPE]):
    """`DintPE` in hardware: a decoder per lane, then an integer dot product in half units."""

    unit: DintPE = field(default_factory=DintPE)

    def decode_weight(self, code: WireVector, zero: WireVector | None) -> WireVector:
        """The weight in half units, `value_bits` bits, two's complement."""
        return decode_symmetric(code) if zero is None else decode_asymmetric(code, zero)

    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, None]:
        return signed_products(operands, self.sum_bits), None

    def weight_value(self, code: int, zero: int = 0) -> int | None:
        if not self.unit.asymmetric:
            return super().weight_value(code)
        if zero > self.unit.largest_zero:
            return None
        # The PE leaves the zero point in: levels are 2q, special values 2z + 1 and 2z - 1.
        special = code > self.unit.largest_zero
        value = FORMATS[self.unit.weight_formats[-1]].code_values()[code]
        return int(2 * value) + special * 2 * zero

    def values(self, ports: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        acts, weights = super().values(ports)
        if self.unit.asymmetric:
            # The PE leaves the zero point in: a special value, free of it, gets it added.
            codes = np.stack([ports[f"code{i}"] for i in range(self.unit.lanes)], axis=1)
            special = codes > self.unit.largest_zero
            weights = weights + special * 2.0 * ports["zero"][:, None]
        return acts, weights


def decode_symmetric(code: WireVector) -> WireVector:
    """Half units of a symmetric code: 2q, or +-1 for the largest magnitude but one, or 0.

    Of the low bits, 0111 (+7) and 1001 (-7) are special and 1000 (-8) is 0.
    """
    sign, low = code[-1], code[:-1]
    positive = ~sign & pyrtl.and_all_bits(low)
    negative = sign & low[0] & ~pyrtl.or_all_bits(low[1:])
    lowest = sign & ~pyrtl.or_all_bits(low)
    # +7: 0_0001; -7: 1_1111; -8: 0_0000; else {code, 0}.
    upper = (low & (~positive).sign_extended(len(low))) | negative.sign_extended(len(low))
    return concat(sign & ~lowest, upper, positive | negative)


def decode_asymmetric(code: WireVector, zero: WireVector) -> WireVector:
    """Half units of an asymmetric code: 2q, or 2z + 1 and 2z - 1 for the two highest codes."""
    special = pyrtl.and_all_bits(code[1:])
    width = len(code) + 2
    below = (concat(zero, Const(0, 1)).zero_extended(width) - 1)[:width]  # 2z - 1
    above = concat(Const(0, 1), zero, Const(1, 1))  # 2z + 1
    level = concat(Const(0, 1), code, Const(0, 1))
    return select(special, select(code[0], below, above), level)
