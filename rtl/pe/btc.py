"""PyRTL generator of the Binary-TensorCore PE, after docs/numerics.md."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pyrtl import Const, WireVector, concat, concat_list

from bitwright.rtl import Stream
from bitwright.sim import btc

from .dot import DotDesign, Wires
from .heap import BitHeap
from .logic import negated_if, shift_left

BtcPE = btc.BtcPE


@dataclass(frozen=True)
class BtcDesign(DotDesign[BtcPE]):
    """`BtcPE` in hardware: AND gates, a popcount tree, a shifter; unrolled, a heap of all pairs."""

    unit: BtcPE = field(default_factory=BtcPE)

    @property
    def modes(self) -> tuple[str, ...]:
        if self.unit.unrolled:
            return tuple(f"int{self.unit.unrolled[1]}-{kind}" for kind in ("sym", "asym"))
        return ("int2-asym", "int4-sym", "int8-sym")

    @property
    def macs(self) -> float:
        """Of 8-bit activations and 4-bit weights, or of the unrolled widths, a cycle."""
        return self.unit.k_slice / (1 if self.unit.unrolled else 32)

    @property
    def _count_bits(self) -> int:
        return self.unit.k_slice.bit_length()

    def decode(self, ports: Wires) -> list[WireVector]:
        """ANDed planes and, behind them, what places each; the first stage is the AND gates."""
        words = range(len(self.unit.words))
        if self.unit.unrolled is None:
            both = concat_list([ports[f"x{i}"] & ports[f"w{i}"] for i in words])
            return [both, ports["shift"], ports["negative"]]
        p, q = self.unit.unrolled
        planes = [
            concat_list([ports[f"x{i}_{word}"] & ports[f"w{j}_{word}"] for word in words])
            for i in range(p)
            for j in range(q)
        ]
        return [*planes, ports["x_signed"], ports["w_signed"]]

    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, None]:
        if self.unit.unrolled is None:
            both, shift, negative = operands
            count = concat(Const(0, 1), popcount(both, self._count_bits))
            # Negated before the shift: the adder is as narrow as the count.
            return shift_left(negated_if(negative, count), shift, self._count_bits + 15), None
        *planes, x_signed, w_signed = operands
        p, q = self.unit.unrolled
        heap = BitHeap(self._count_bits + p + q)
        for number, both in enumerate(planes):
            i, j = divmod(number, q)
            signs = [s for s, top in ((x_signed, i == p - 1), (w_signed, j == q - 1)) if top]
            count = popcount(both, self._count_bits)
            if signs:
                heap.negated_if(signs[0] if len(signs) == 1 else signs[0] ^ signs[1], count, i + j)
            else:
                heap.unsigned(count, i + j)
        return heap.total(), None

    # ------------------------------------------------------------------ vectors

    def patterns(self, port: str, compact: bool) -> np.ndarray:
        bits = self.unit.ports[port]
        if bits < 8 or bits > 32 or port == "shift":
            return super().patterns(port, compact)
        mask = (1 << bits) - 1
        chosen = {0, 1, mask, 1 << bits - 1, 0x5555_5555 & mask, 0x0F0F_0F0F & mask}
        if not compact:
            chosen |= {mask ^ 1, 0xAAAA_AAAA & mask, 0xFFFF & mask, 0xDEAD_BEEF & mask}
        return np.array(sorted(chosen), np.uint64)

    def lane_groups(self) -> list[list[str]]:
        """Word i of one activation plane with word i of one weight plane."""
        if self.unit.unrolled is None:
            return [[f"x{i}", f"w{i}"] for i in range(len(self.unit.words))]
        p, q = self.unit.unrolled
        return [
            [f"x{i % p}_{word}", f"w{i % q}_{word}"]
            for i in range(max(p, q))
            for word in range(len(self.unit.words))
        ]

    def corners(self, mode: str, compact: bool = False) -> Stream:
        """As other designs, and full planes under every shift and sign."""
        base = super().corners(mode, compact)
        small = ["x_signed", "w_signed"] if self.unit.unrolled else ["shift", "negative"]
        sets = [self.patterns(port, compact) for port in small]
        rows = np.array(list(itertools.product(*sets)))
        ports = {}
        for port, bits in self.unit.ports.items():
            full = np.full(len(rows), (1 << bits) - 1, np.uint64)
            ports[port] = rows[:, small.index(port)] if port in small else full
        joined = {p: np.concatenate([ports[p], base.ports[p]]) for p in self.unit.ports}
        return self.stream(mode, joined, np.ones(len(rows) + base.steps, bool))

    def kernel(self, function: Callable[..., np.ndarray], stream: Stream) -> np.ndarray:
        ports, bits = stream.ports, self.unit.accumulator.bits
        words = range(len(self.unit.words))

        def plane(prefix: str) -> np.ndarray:
            return np.stack([ports[f"{prefix}{i}"].astype(np.uint32) for i in words], axis=1)

        if self.unit.unrolled is None:
            factor = (1 - 2 * ports["negative"].astype(np.int64)) << ports["shift"]
            pairs = [(plane("x"), plane("w"), factor)]
        else:
            p, q = self.unit.unrolled
            sides = []
            for side, count in (("x", p), ("w", q)):
                negative = 1 - 2 * ports[f"{side}_signed"].astype(np.int64)
                weights = [np.int64(1 << i) * np.ones_like(negative) for i in range(count)]
                weights[-1] *= negative
                sides.append([(plane(f"{side}{i}_"), weights[i]) for i in range(count)])
            one = np.ones(stream.steps, np.int64)
            pairs = [(x, w, one * a * b) for x, a in sides[0] for w, b in sides[1]]
        return function(pairs, stream.ends, acc_bits=bits)


def popcount(bits: WireVector, width: int) -> WireVector:
    """Ones among the bits, `width` bits."""
    heap = BitHeap(width)
    for bit in bits:
        heap.bit(bit, 0)
    return heap.total()
