"""Integer multiply-accumulate PEs: INT8 x INT8, INT4 x INT8 and INT4 x INT4.

The baselines that low-bit PEs are compared with. Codes are two's complement; the products of all
lanes are added exactly and accumulated in INT32.
"""

from dataclasses import dataclass, field

import numpy as np

from bitwright.quant import InputError, QuantizedTensor

from .dot import STAGES, IntAccumulator, LaneUnit


@dataclass(frozen=True, slots=True)
class IntegerPE(LaneUnit):
    """An integer dot-product PE; one step a cycle.

    Ports (docs/numerics.md): `act0 ..` act_bits, `code0 ..` weight_bits, `last` 1, `y` 32. Overflow
    of the accumulator wraps.

    >>> pe = IntegerPE(8, 4)
    >>> pe.name, pe.partial({"act0": 0x80, "code0": 0xF})  # -128 * -1
    ('int4x8', (128, 0))
    """

    act_bits: int = 8  #: 2 .. 8
    weight_bits: int = 8  #: 2 .. 8
    lanes: int = 1  #: 1 .. 64
    stages: int = 2
    accumulator: IntAccumulator = field(default_factory=IntAccumulator)

    def __post_init__(self) -> None:
        check_shape(self.lanes, self.stages)
        for what in ("act_bits", "weight_bits"):
            bits = getattr(self, what)
            if not 2 <= bits <= 8:
                raise InputError(f"{what} (={bits}) must be in 2 .. 8")

    @property
    def name(self) -> str:
        """`int8`, `int4`, `int4x8` (weights x activations), `-dot16` behind it for 16 lanes."""
        w, a = self.weight_bits, self.act_bits
        return dot_name(f"int{w}" if w == a else f"int{w}x{a}", self.lanes)

    @property
    def act_format(self) -> str:
        return f"int{self.act_bits}-sym"

    @property
    def weight_formats(self) -> tuple[str, ...]:
        """Symmetric integers of at most the PE's width; narrower ones are sign-extended."""
        return tuple(f"int{bits}-sym" for bits in range(2, self.weight_bits + 1))

    def decode_act(self, code: int) -> int:
        return twos_complement(code, self.act_bits)

    def decode_weight(self, code: int, zero: int) -> int:
        return twos_complement(code, self.weight_bits)

    def weight_codes(self, w: QuantizedTensor) -> np.ndarray:
        shift = 8 - w.format.bits
        mask = (1 << self.weight_bits) - 1
        return ((w.codes << shift).view(np.int8) >> shift).view(np.uint8) & np.uint8(mask)


def twos_complement(code: int, bits: int) -> int:
    """The number that `bits` bits of two's complement stand for."""
    return code - (1 << bits) if code >> bits - 1 & 1 else code


def dot_name(base: str, lanes: int) -> str:
    """`base` for one lane, else `base-dot16`."""
    return base if lanes == 1 else f"{base}-dot{lanes}"


def check_shape(lanes: int, stages: int) -> None:
    """Refuse a PE that cannot be built.

    Raises:
        InputError: It cannot.
    """
    if not 1 <= lanes <= 64:
        raise InputError(f"lanes (={lanes}) must be in 1 .. 64")
    if stages not in STAGES:
        raise InputError(f"stages (={stages}) must be one of {', '.join(map(str, STAGES))}")
