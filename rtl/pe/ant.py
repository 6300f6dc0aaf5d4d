"""PyRTL generator of the ANT PE, after docs/numerics.md."""

from dataclasses import dataclass, field

import numpy as np
from pyrtl import Const, WireVector, concat, select

from bitwright.quant import FORMATS
from bitwright.rtl import Stream
from bitwright.sim import ant

from .decoders import Decoder, decoder, product_of_powers
from .dot import Wires
from .logic import any_bit
from .typed import Operand, TypedDesign, sign_magnitude

AntPE = ant.AntPE


@dataclass(frozen=True)
class AntDesign(TypedDesign[AntPE]):
    """`AntPE` in hardware: a decoder per operand, an integer multiplier and a shifter."""

    unit: AntPE = field(default_factory=AntPE)

    def decode(self, ports: Wires) -> list[WireVector]:
        operands: list[WireVector] = []
        for i in range(self.unit.lanes):
            operands += decode_ant(ports[f"act{i}"], ports["act_type"], ant.POT in self.unit.types)
            operands += decode_ant(
                ports[f"code{i}"], ports["weight_type"], ant.POT in self.unit.types
            )
        return operands

    def decoders(self) -> list[Decoder]:
        """Every code of every type against `quant`'s value tables."""
        tables = [FORMATS[name].code_values() for name in self._formats()]

        def value(code: WireVector, kind: WireVector) -> WireVector:
            return product_of_powers(*decode_ant(code, kind, ant.POT in self.unit.types))

        def table(code: int, kind: int) -> int | None:
            lowest = 1 << self.unit.bits - 1
            if kind >= len(tables):
                return None
            # No format produces the lowest integer, and the table leaves its value out.
            return -lowest if (kind, code) == (ant.INT, lowest) else int(tables[kind][code])

        inputs = {"code": self.unit.bits, "kind": 2}
        return [decoder(f"{self.top}_code", inputs, value, table)]

    def _formats(self) -> list[str]:
        names = {ant.INT: "int{}-sym", ant.FLINT: "flint{}", ant.POT: "pot{}"}
        return [names[kind].format(self.unit.bits) for kind in self.unit.types]

    @property
    def modes(self) -> tuple[str, ...]:
        return self.unit.weight_formats[1:]

    def values(self, prefix: str, stream: Stream) -> np.ndarray:
        table = np.array([FORMATS[name].code_values() for name in self._formats()])
        kind = stream.ports["act_type" if prefix == "act" else "weight_type"]
        codes = np.stack([stream.ports[f"{prefix}{i}"] for i in range(self.unit.lanes)], axis=1)
        return table[kind[:, None], codes]


def decode_ant(code: WireVector, kind: WireVector, powers: bool) -> Operand:
    """Sign, base and exponent of a code; `kind` 2 bits: integer, flint or power of two.

    Args:
        code: 4 or 5 bits.
        kind: 0, 1 or 2.
        powers: Whether kind 2 occurs.
    """
    width = len(code)
    flint, power = kind[0], kind[1]
    sign, integer = sign_magnitude(code)
    magnitude, low = code[:-1], code[:-2]
    # Flint: pairs of leading zeros behind a leading one.
    one = magnitude[-1]
    zeros = leading_zeros(low)
    shifted = concat(low, ~any_bit(low))
    base = select(one, shifted, concat(Const(0, 1), low)).zero_extended(width)
    count = concat(zeros & one.sign_extended(len(zeros)), Const(0, 1))
    bits = max(len(count), 3 if powers else 0)
    chosen = select(flint, base, integer)
    exponent = (count & flint.sign_extended(len(count))).zero_extended(bits)
    if powers:
        present = any_bit(magnitude)
        below = (magnitude - present)[: len(magnitude)].zero_extended(bits)
        chosen = select(power, present.zero_extended(width), chosen)
        exponent = select(power, below, exponent)
    return Operand(sign, chosen, exponent)


def leading_zeros(value: WireVector) -> WireVector:
    """Number of zeros above the highest one; the width of `value` if there is none."""
    bits = len(value).bit_length()
    count: WireVector = Const(len(value), bits)
    for i, bit in enumerate(value):
        count = select(bit, Const(len(value) - 1 - i, bits), count)
    return count
