"""PyRTL generator of the FP16 x integer PE, after docs/numerics.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pyrtl import Const, WireVector, concat

from bitwright.rtl import ACTIVATION_CORNERS, Stream, random_activations
from bitwright.sim import fp16int

from .decoders import Decoder
from .dot import DotDesign, Wires
from .floating import Float, decode_fp16, fp16_decoder
from .fp16 import ACC_BIAS, Fp16Config, accumulate_stage
from .heap import BitHeap
from .logic import any_bit, normalised
from .typed import sign_magnitude

Fp16IntPE = fp16int.Fp16IntPE


@dataclass(frozen=True)
class Fp16IntDesign(DotDesign[Fp16IntPE]):
    """`Fp16IntPE` in hardware: significand times magnitude, then the `fp16` PE's accumulator."""

    unit: Fp16IntPE = field(default_factory=Fp16IntPE)

    def decode(self, ports: Wires) -> list[WireVector]:
        """Sign, exponent, significand, weight."""
        return [*decode_fp16(ports["act0"]), ports["code0"]]

    def decoders(self) -> list[Decoder]:
        return [fp16_decoder(f"{self.top}_act")]

    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, WireVector]:
        """The product, {sign, significand}, and the exponent as the accumulator stores it.

        The weight is brought to its highest one instead of the product, so that a product of a
        normal activation has at most one leading zero. Those of subnormal ones may have more, but
        their lowest bit weighs 2**-24 at most and no accumulator has bits below that.
        """
        sign, exponent, significand, weight = operands
        bits = len(weight)
        negative, magnitude = sign_magnitude(weight)
        moved, places = normalised(magnitude)
        heap = BitHeap(11 + bits)
        for i, bit in enumerate(moved):
            heap.unsigned(significand & bit.sign_extended(11), i)
        product = heap.total()
        # Its highest bit weighs 2**(E - 15 + bits - places).
        e = (exponent.zero_extended(7) + Const(bits - 15 + 127 - ACC_BIAS, 7) - places)[:7]
        present = moved[-1] & any_bit(significand)
        return concat(sign ^ negative, product), e & present.sign_extended(7)

    def addend(self, operands: Sequence[WireVector]) -> tuple[WireVector, WireVector | None]:
        return self.combine(operands)

    def accumulate(
        self, total: WireVector, exponent: WireVector | None, clear: WireVector
    ) -> WireVector:
        """The binary32 accumulator of the FP16 PE: sums are in its range."""
        assert exponent is not None
        padded = concat(total[:-1], Const(0, 23 - len(total)))
        return accumulate_stage(Fp16Config(), Float(total[-1], exponent, padded), clear)

    # ------------------------------------------------------------------ vectors

    def patterns(self, port: str, compact: bool) -> np.ndarray:
        if port == "act0":
            return ACTIVATION_CORNERS[::4] if compact else ACTIVATION_CORNERS
        return super().patterns(port, compact and self.unit.weight_bits > 4)

    def random_port(
        self, port: str, rng: np.random.Generator, dot: np.ndarray, along: np.ndarray
    ) -> np.ndarray:
        if port == "act0":
            return random_activations(rng, dot, along, 1)[:, 0]
        return super().random_port(port, rng, dot, along)

    def kernel(self, function: Callable[..., np.ndarray], stream: Stream) -> np.ndarray:
        acts = stream.ports["act0"].view(np.float16).astype(np.float32)
        shift = 8 - self.unit.weight_bits
        weights = (stream.ports["code0"].astype(np.uint8) << shift).view(np.int8) >> shift
        return function(acts * weights.astype(np.float32), stream.ends)
