"""PyRTL generator of the look-up-table PE, after docs/numerics.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from pyrtl import Block, Const, Input, Output, WireVector, mux

from bitwright.rtl import Stream
from bitwright.sim import lut

from .dot import DotDesign, Wires
from .heap import BitHeap
from .logic import design, register, to_verilog

LutPE = lut.LutPE
LANES = lut.LANES
_ENTRY_BITS = 10  #: the sum of four 8-bit numbers


@dataclass(frozen=True)
class LutDesign(DotDesign[LutPE]):
    """`LutPE` in hardware: a table that PEs share, and per PE two look-ups and an accumulator."""

    unit: LutPE = field(default_factory=LutPE)

    shared: ClassVar[tuple[str, ...]] = ("table",)

    def decode(self, ports: Wires) -> list[WireVector]:
        """The table's entries 1 .. 15 and the two indices."""
        return [*table([ports[f"act{i}"] for i in range(LANES)]), ports["plus"], ports["minus"]]

    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, None]:
        *entries, plus, minus = operands
        return look_up(entries, plus, minus), None

    @property
    def modes(self) -> tuple[str, ...]:
        return ("ternary", "binary")

    def lane_groups(self) -> list[list[str]]:
        return [["plus", "minus"]]

    def blocks(self) -> dict[str, str]:
        """The shared table with its registers, and the PE: look-ups, sum register, accumulator."""
        with design() as shared:
            entries = table([Input(8, f"act{i}") for i in range(LANES)])
            for i, entry in enumerate(entries, 1):
                out = Output(len(entry), f"t{i}")
                out <<= register(entry, f"entry{i}") if self.unit.stages > 2 else entry
        parts = {"table": shared, "total": self._pe_without_table()}
        return {
            name: to_verilog(part, f"{self.top}_{'pe' if name == 'total' else name}")
            for name, part in parts.items()
        }

    def _pe_without_table(self) -> Block:
        """Ports: t1 .. t15 8 to 10 (see `table`), plus 4, minus 4, clear 1; out: y."""
        with design() as scratch:
            widths = [len(e) for e in table([Input(8, f"act{i}") for i in range(LANES)])]
            del scratch
        with design() as block:
            entries = [Input(bits, f"t{i}") for i, bits in enumerate(widths, 1)]
            indices = [Input(4, name) for name in ("plus", "minus")]
            if self.unit.stages > 2:
                indices = [register(wire, f"index{i}") for i, wire in enumerate(indices)]
            total, _ = self.combine([*entries, *indices])
            if self.unit.stages > 1:
                total = register(total, "total")
            out = Output(self.unit.accumulator.bits, "y")
            out <<= self.accumulate(total, None, Input(1, "clear"))
        return block

    def kernel(self, function: Callable[..., np.ndarray], stream: Stream) -> np.ndarray:
        ports, lanes = stream.ports, range(LANES)
        acts = np.stack([ports[f"act{i}"].view(np.int8) for i in lanes], axis=1)
        plus, minus = (np.stack([ports[p] >> i & 1 for i in lanes], 1) for p in ("plus", "minus"))
        weights = plus.astype(float) - minus.astype(float)
        return function(acts, weights, stream.ends, acc_bits=self.unit.accumulator.bits)


def table(acts: Sequence[WireVector]) -> list[WireVector]:
    """Entries 1 .. 15, two's complement; each is the sum of a smaller one and an activation."""
    entries: list[WireVector] = []
    for index in range(1, 1 << len(acts)):
        top = index.bit_length() - 1
        rest = index ^ 1 << top
        if rest:
            other = entries[rest - 1]
            width = min(max(len(other), 8) + 1, _ENTRY_BITS)
            entries.append((acts[top].sign_extended(width) + other.sign_extended(width))[:width])
        else:
            entries.append(acts[top])
    return entries


def look_up(entries: Sequence[WireVector], plus: WireVector, minus: WireVector) -> WireVector:
    """D = T[plus] - T[minus], 11 bits."""
    wide = [Const(0, _ENTRY_BITS), *(entry.sign_extended(_ENTRY_BITS) for entry in entries)]
    heap = BitHeap(_ENTRY_BITS + 1)
    heap.signed(mux(plus, *wide))
    heap.signed(~mux(minus, *wide))
    heap.constant(1)
    return heap.total()
