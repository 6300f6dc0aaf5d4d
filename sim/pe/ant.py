"""The ANT PE: integers, powers of two and flint through one integer multiplier.

ANT (Guo et al., MICRO 2022, arXiv 2208.14286) gives each tensor the type that fits it best. A
decoder turns every code into a base integer and an exponent; the PE multiplies the bases, shifts by
the sum of the exponents and accumulates integers. The value sets are those of the authors' code
(clevercool/ANT-Quantization, quant_modules.py); that code has no bit patterns and no hardware, so
the codes of flint and the widths here are this project's own and reproduce those sets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bitwright.quant import InputError, QuantizedTensor

from .dot import IntAccumulator
from .integer import check_shape, dot_name, twos_complement
from .typed import TypedUnit

INT, FLINT, POT = 0, 1, 2  #: types, in the order of the selectors of the format `ant4`


@dataclass(frozen=True, slots=True)
class AntPE(TypedUnit):
    """ANT codes times ANT codes; one step a cycle.

    Ports (docs/numerics.md): `act0 ..`, `code0 ..` 4, `act_type`, `weight_type` 2 (0 integer, 1
    flint, 2 power of two), `last` 1, `y` 32. Overflow of the accumulator wraps.

    >>> [AntPE().decode((code,), FLINT)[0] for code in range(8)]
    [0, 1, 2, 3, 16, 8, 4, 6]
    """

    bits: int = 4  #: 4, or 5 (integer and flint only)
    lanes: int = 1  #: 1 .. 64
    stages: int = 2
    accumulator: IntAccumulator = field(default_factory=IntAccumulator)

    def __post_init__(self) -> None:
        check_shape(self.lanes, self.stages)
        if self.bits not in (4, 5):
            raise InputError(f"bits (={self.bits}) of an ANT code must be 4 or 5")

    @property
    def name(self) -> str:
        """`ant`, `ant5` for 5-bit codes, `-dot16` behind it for 16 lanes."""
        return dot_name("ant" if self.bits == 4 else "ant5", self.lanes)

    @property
    def types(self) -> tuple[int, ...]:
        """The types that the decoders know."""
        return (INT, FLINT, POT) if self.bits == 4 else (INT, FLINT)

    @property
    def ports(self) -> Mapping[str, int]:
        acts = {f"act{i}": self.bits for i in range(self.lanes)}
        codes = {f"code{i}": self.bits for i in range(self.lanes)}
        return {**acts, **codes, "act_type": 2, "weight_type": 2}

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return {"act_type": (0, self.types[-1]), "weight_type": (0, self.types[-1])}

    @property
    def act_format(self) -> str:
        return "ant4" if self.bits == 4 else "flint5"

    @property
    def weight_formats(self) -> tuple[str, ...]:
        if self.bits == 4:
            return ("int4-sym", "flint4", "pot4", "ant4")
        return ("int5-sym", "flint5")

    @property
    def largest(self) -> int:
        return 64

    def pair(self, code: int, kind: int) -> tuple[int, int, int]:
        """Sign, base and exponent of a code: its value is (-1)**sign * base << exponent."""
        if kind == INT:
            value = twos_complement(code, self.bits)
            return int(value < 0), abs(value), 0
        sign, magnitude = code >> self.bits - 1, code & (1 << self.bits - 1) - 1
        if kind == POT:
            return sign, int(magnitude > 0), max(magnitude - 1, 0)
        # Flint: below a leading 1, leading zeros are the exponent and what follows the base.
        low_bits = self.bits - 2
        low = magnitude & (1 << low_bits) - 1
        if not magnitude >> low_bits:
            return sign, low, 0
        return sign, low << 1 if low else 1, 2 * (low_bits - low.bit_length())

    def decode(self, codes: tuple[int, ...], kind: int) -> tuple[int, ...]:
        pairs = [self.pair(code, kind) for code in codes]
        return tuple((-base if sign else base) << exponent for sign, base, exponent in pairs)

    def decode_array(self, codes: np.ndarray, kind: np.ndarray) -> np.ndarray:
        every = tuple(range(1 << self.bits))
        table = np.array([self.decode(every, k) for k in self.types], np.int16)
        return table[kind[..., None], codes]

    def kinds(self, t: QuantizedTensor) -> np.ndarray:
        """The selector of `ant4`, else the format's own type."""
        if t.selectors is not None:
            return t.selectors
        name = t.format.name
        kind = FLINT if name.startswith("flint") else POT if name.startswith("pot") else INT
        return np.full((t.n, t.groups), kind, np.uint8)
