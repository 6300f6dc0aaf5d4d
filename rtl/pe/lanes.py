"""Designs whose lanes multiply one activation code with one weight code each."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from pyrtl import WireVector

from bitwright.quant import FORMATS
from bitwright.rtl import Stream
from bitwright.sim import dot

from .decoders import Decoder, decoder
from .dot import DotDesign, Wires

Unit = TypeVar("Unit", bound=dot.LaneUnit)


class LaneDesign(DotDesign[Unit]):
    """A `LaneUnit` in hardware; operands are a0, w0, a1, w1, ... ."""

    @abstractmethod
    def decode_weight(self, code: WireVector, zero: WireVector | None) -> WireVector:
        """A weight as the multiplier takes it; combinational."""

    def decode_act(self, code: WireVector) -> WireVector:
        """An activation as the multiplier takes it; combinational."""
        return code

    def decode(self, ports: Wires) -> list[WireVector]:
        zero = ports.get("zero")
        operands = []
        for i in range(self.unit.lanes):
            operands.append(self.decode_act(ports[f"act{i}"]))
            operands.append(self.decode_weight(ports[f"code{i}"], zero))
        return operands

    def decoders(self) -> list[Decoder]:
        """Every weight code, under every zero point, against `quant`'s value table."""
        inputs = {"code": self.unit.weight_bits}
        if self.unit.zero_bits:
            inputs["zero"] = self.unit.zero_bits
        return [decoder(f"{self.top}_weight", inputs, self._decode_weight, self.weight_value)]

    def _decode_weight(self, code: WireVector, zero: WireVector | None = None) -> WireVector:
        return self.decode_weight(code, zero)

    def weight_value(self, code: int, zero: int = 0) -> int | None:
        """What a weight code is worth by `quant`'s table, in the multiplier's units."""
        return int(FORMATS[self.unit.weight_formats[-1]].code_values()[code] / self.unit.unit_value)

    @property
    def sum_bits(self) -> int:
        """Width of D, two's complement: it holds the largest sum of products of all lanes."""
        return sum_bits(self.unit)

    def values(self, ports: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What the codes on the ports are worth by `quant`'s tables: [steps, lanes] twice."""
        act = np.array(FORMATS[self.unit.act_format].code_values())
        weight = FORMATS[self.unit.weight_formats[-1]]
        lanes = range(self.unit.lanes)
        codes = np.stack([ports[f"code{i}"] for i in lanes], axis=1)
        acts = act[np.stack([ports[f"act{i}"] for i in lanes], axis=1)]
        return acts, np.array(weight.code_values())[codes] / self.unit.unit_value

    def kernel(self, function: Callable[..., np.ndarray], stream: Stream) -> np.ndarray:
        acts, weights = self.values(dict(stream.ports))
        return function(acts, weights, stream.ends, acc_bits=self.unit.accumulator.bits)


def sum_bits(unit: dot.LaneUnit) -> int:
    """Two's complement bits that hold D for every input of a unit."""
    acts, weights = unit.act_table().astype(int), unit.weight_table().astype(int)
    ends = [a * w for a in (acts.min(), acts.max()) for w in (weights.min(), weights.max())]
    low, high = unit.lanes * min(ends), unit.lanes * max(ends)
    return max(int(high).bit_length(), int(-low - 1).bit_length() if low < 0 else 0) + 1
