"""PyRTL generators of the block-scaled PEs MXFP4, MXINT8 and NVFP4, after docs/numerics.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pyrtl import Const, WireVector, concat

from bitwright.quant import FORMATS
from bitwright.rtl import Stream, Trace, TraceRecorder
from bitwright.sim import blocks

from .decoders import Decoder, decoder, product_of_powers
from .dot import Wires
from .heap import BitHeap
from .integer import signed_products
from .lanes import LaneDesign
from .logic import any_bit, shift_left

Mxfp4PE, Mxint8PE, Nvfp4PE = blocks.Mxfp4PE, blocks.Mxint8PE, blocks.Nvfp4PE


class BlockDesign(LaneDesign[blocks.BlockUnit]):
    """A `BlockUnit` in hardware; behind the operands of the lanes come those of the scales."""

    def decode_weight(self, code: WireVector, zero: WireVector | None) -> WireVector:
        return self.decode_act(code)

    def decoders(self) -> list[Decoder]:
        """Every E2M1 code in half units; integers are used as they come."""
        if self.unit.act_bits > 4:
            return []

        def value(code: WireVector) -> WireVector:
            decoded = decode_e2m1(code)
            return product_of_powers(decoded[4], decoded[:2], decoded[2:4])

        def table(code: int) -> int:
            return int(2 * FORMATS[self.unit.format_name].code_values()[code])

        return [decoder(f"{self.top}_code", {"code": 4}, value, table)]

    def decode(self, ports: Wires) -> list[WireVector]:
        return [*super().decode(ports), ports["act_scale"], ports["weight_scale"]]

    def traces(self, mode: str, rng: np.random.Generator) -> list[Trace]:
        """As other designs, and blocks followed by their opposites, so that sums cancel."""
        values = self.unit.act_table()
        opposite = np.array([int((values == -value).argmax()) for value in values])
        blocks = self.random(mode, 20, rng)
        ports = {name: np.repeat(blocks.ports[name], 2) for name in self.unit.ports}
        for name in ports:
            if name.startswith("act") and name != "act_scale":
                ports[name][1::2] = opposite[ports[name][1::2]]
        recorder = TraceRecorder(self.reference())
        ends = np.arange(2 * blocks.steps) % 2 == 1
        recorder.stream(self.stream(mode, ports, ends))
        return [*super().traces(mode, rng), recorder.trace("cancelling")]

    def group_size(self, mode: str, k: int) -> int | None:
        return None  # the format's own

    def kernel(self, function: Callable[..., np.ndarray], stream: Stream) -> np.ndarray:
        acts, weights = self.values(dict(stream.ports))
        scale = scale_values(self.unit.format_name)
        factor = scale[stream.ports["act_scale"]] * scale[stream.ports["weight_scale"]]
        # Exact in float64, and in float32: the integer of a block has at most 24 bits.
        return function(((acts * weights).sum(1) * factor).astype(np.float32), stream.ends)


def scale_values(name: str) -> np.ndarray:
    """The value of every scale code, float64 [256]."""
    codes = np.arange(256)
    if FORMATS[name].scale_format == "e8m0":
        return np.ldexp(1.0, codes - 127)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    return np.ldexp(mantissa / 8 + (exponent > 0), np.maximum(exponent, 1) - 7)


@dataclass(frozen=True)
class Mxfp4Design(BlockDesign):
    """`Mxfp4PE` in hardware."""

    unit: blocks.BlockUnit = field(default_factory=Mxfp4PE)

    def decode_act(self, code: WireVector) -> WireVector:
        return decode_e2m1(code)

    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, WireVector]:
        *lanes, act_scale, weight_scale = operands
        return e2m1_products(lanes, self.sum_bits), (act_scale + weight_scale)[:8]


@dataclass(frozen=True)
class Mxint8Design(BlockDesign):
    """`Mxint8PE` in hardware."""

    unit: blocks.BlockUnit = field(default_factory=Mxint8PE)

    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, WireVector]:
        *lanes, act_scale, weight_scale = operands
        return signed_products(lanes, self.sum_bits), (act_scale + weight_scale)[:8]


@dataclass(frozen=True)
class Nvfp4Design(BlockDesign):
    """`Nvfp4PE` in hardware: the sum times the product of the scales' significands."""

    unit: blocks.BlockUnit = field(default_factory=Nvfp4PE)

    def decode_act(self, code: WireVector) -> WireVector:
        return decode_e2m1(code)

    def decoders(self) -> list[Decoder]:
        """As MXFP4, and the scales."""

        def parts(code: WireVector) -> dict[str, WireVector]:
            significand, exponent = decode_e4m3(code)
            return {"significand": significand, "exponent": exponent}

        def table(code: int) -> dict[str, int] | None:
            if code > blocks.E4M3_RANGE[1]:
                return None
            exponent = max(code >> 3, 1)
            value = scale_values("nvfp4")[code]
            return {"significand": int(np.ldexp(value, 10 - exponent)), "exponent": exponent}

        return [*super().decoders(), decoder(f"{self.top}_scale", {"code": 8}, parts, table)]

    def decode(self, ports: Wires) -> list[WireVector]:
        """The sum of the products, and significand and exponent of both scales together.

        The first of three register levels so stands between the two multiplications.
        """
        *lanes, act_scale, weight_scale = super().decode(ports)
        (act, act_exponent), (weight, weight_exponent) = map(decode_e4m3, (act_scale, weight_scale))
        significand = BitHeap(8)
        for i, bit in enumerate(act):
            significand.unsigned(weight & bit.sign_extended(4), i)
        exponent = (act_exponent + weight_exponent)[:5]
        return [e2m1_products(lanes, self.sum_bits), significand.total(), exponent]

    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, WireVector]:
        total, significand, exponent = operands
        product = BitHeap(self.sum_bits + 8)
        product.product(total, concat(Const(0, 1), significand))
        return product.total(), exponent


def decode_e2m1(code: WireVector) -> WireVector:
    """E2M1 as {sign, shift 2, significand 2}: its half units are significand << shift."""
    sign, exponent, mantissa = code[3], code[1:3], code[0]
    normal = any_bit(exponent)
    # Exponents 0 and 1 do not shift, 2 shifts by 1, 3 by 2.
    shift = concat(exponent[1] & exponent[0], exponent[1] & ~exponent[0])
    return concat(sign, shift, normal, mantissa)


def decode_e4m3(code: WireVector) -> tuple[WireVector, WireVector]:
    """Significand (4 bits) and exponent (4 bits, 1 .. 15) of a non-negative E4M3 code."""
    exponent = code[3:7]
    normal = any_bit(exponent)
    return concat(normal, code[:3]), concat(exponent[1:], exponent[0] | ~normal)


def e2m1_products(lanes: Sequence[WireVector], width: int) -> WireVector:
    """Sum of the products of decoded E2M1 operands a0, w0, a1, w1, ..., in quarter units."""
    heap = BitHeap(width)
    for a, w in zip(lanes[::2], lanes[1::2], strict=True):
        small = BitHeap(4)
        small.unsigned(a[:2] & w[0].sign_extended(2))
        small.unsigned(a[:2] & w[1].sign_extended(2), 1)
        shift = (a[2:4] + w[2:4])[:3]
        magnitude = shift_left(concat(Const(0, 1), small.total()), shift, 9)[:8]
        heap.negated_if(a[4] ^ w[4], magnitude)
    return heap.total()
