"""PyRTL generator of the OliVe PE, after docs/numerics.md."""

from dataclasses import dataclass, field

import numpy as np
from pyrtl import Const, WireVector, concat, select

from bitwright.quant import olive_pair_values
from bitwright.rtl import Stream
from bitwright.sim import olive

from .decoders import Decoder, decoder, product_of_powers
from .dot import Wires
from .typed import Operand, TypedDesign, sign_magnitude

OlivePE = olive.OlivePE


@dataclass(frozen=True)
class OliveDesign(TypedDesign[OlivePE]):
    """`OlivePE` in hardware: a decoder per pair, an integer multiplier and a shifter per lane."""

    unit: OlivePE = field(default_factory=OlivePE)

    def decode(self, ports: Wires) -> list[WireVector]:
        operands: list[WireVector] = []
        for i in range(self.unit.lanes):
            for side in ("act", "code"):
                operands += decode_lane(ports[f"{side}{i}"], ports[f"{side}{i ^ 1}"])
        return operands

    def decoders(self) -> list[Decoder]:
        """Every code beside every partner against the format's pairs."""

        def value(code: WireVector, partner: WireVector) -> WireVector:
            return product_of_powers(*decode_lane(code, partner))

        def table(code: int, partner: int) -> int:
            return int(olive_pair_values(code, partner)[0])

        return [decoder(f"{self.top}_code", {"code": 4, "partner": 4}, value, table)]

    def lane_groups(self) -> list[list[str]]:
        """Both codes of a pair with both of the other operand's."""
        return [
            [f"act{i}", f"act{i + 1}", f"code{i}", f"code{i + 1}"]
            for i in range(0, self.unit.lanes, 2)
        ]

    def values(self, prefix: str, stream: Stream) -> np.ndarray:
        codes = [stream.ports[f"{prefix}{i}"] for i in range(self.unit.lanes)]
        table = np.array([[olive_pair_values(a, b) for b in range(16)] for a in range(16)])
        pairs = [table[codes[i], codes[i + 1]] for i in range(0, self.unit.lanes, 2)]
        return np.concatenate(pairs, axis=1)


def decode_lane(code: WireVector, partner: WireVector) -> Operand:
    """Sign, base (3 bits) and exponent (3 bits) of a code beside its partner's."""
    victim, outlier = code == olive.IDENTIFIER, partner == olive.IDENTIFIER
    sign, magnitude = sign_magnitude(code)
    # BIAS is 2: {1, m} << 2 + e.
    exponent = (code[1:3].zero_extended(3) + olive.BIAS)[:3] & outlier.sign_extended(3)
    base = select(outlier, concat(Const(1, 2), code[0]), magnitude[:3])
    return Operand(sign, base & (~victim).sign_extended(3), exponent)
