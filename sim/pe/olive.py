"""The OliVe PE: 4-bit integers, and outliers that take their neighbour's place.

OliVe (Guo et al., ISCA 2023, arXiv 2304.07493): codes come in pairs. If one of a pair is an
outlier, its neighbour, the victim, is dropped: the victim's place holds an identifier, and the
outlier is an abfloat, a float without subnormals whose exponent has a bias that starts its range
just above the integers'. The value set is that of the authors' code (clevercool/ANT-Quantization,
olive_quantization); that code has no bit patterns and no hardware, so the field order and the
widths here are this project's own and reproduce that set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bitwright.quant import InputError, QuantizedTensor

from .dot import IntAccumulator
from .integer import check_shape, dot_name, twos_complement
from .typed import TypedUnit

IDENTIFIER = 8  #: the code of a victim: 1000, -8 in two's complement
BIAS = 2  #: abfloat values 12 .. 96, just above the integers' 7


@dataclass(frozen=True, slots=True)
class OlivePE(TypedUnit):
    """Outlier-victim pairs times outlier-victim pairs; one step a cycle.

    Ports (docs/numerics.md): `act0 ..`, `code0 ..` 4, two lanes a pair; `last` 1, `y` 32. Overflow
    of the accumulator wraps.

    >>> pe = OlivePE()
    >>> pe.decode((3, 9), 0), pe.decode((8, 1), 0), pe.decode((0xF, 8), 0)
    ((3, -7), (0, 12), (-96, 0))
    """

    lanes: int = 2  #: even, 2 .. 64
    stages: int = 2
    accumulator: IntAccumulator = field(default_factory=IntAccumulator)

    def __post_init__(self) -> None:
        check_shape(self.lanes, self.stages)
        if self.lanes % 2:
            raise InputError(f"lanes (={self.lanes}) must be even: outliers and victims are pairs")

    @property
    def name(self) -> str:
        """`olive`, `-dot16` behind it for 16 lanes."""
        return "olive" if self.lanes == 2 else dot_name("olive", self.lanes)

    @property
    def ports(self) -> Mapping[str, int]:
        acts = {f"act{i}": 4 for i in range(self.lanes)}
        return {**acts, **{f"code{i}": 4 for i in range(self.lanes)}}

    @property
    def act_format(self) -> str:
        return "olive4"

    @property
    def weight_formats(self) -> tuple[str, ...]:
        return ("olive4",)

    @property
    def largest(self) -> int:
        return 96

    def lane(self, code: int, partner: int) -> tuple[int, int, int]:
        """Sign, integer and exponent of a code beside its partner's."""
        if code == IDENTIFIER:
            return 0, 0, 0
        if partner == IDENTIFIER:
            # Exponent 0 with mantissa 0 is no outlier; the decoder gives what the rule gives.
            return code >> 3, 2 + (code & 1), BIAS + (code >> 1 & 3)
        value = twos_complement(code, 4)
        return int(value < 0), abs(value), 0

    def decode(self, codes: tuple[int, ...], kind: int) -> tuple[int, ...]:
        lanes = [self.lane(code, codes[i ^ 1]) for i, code in enumerate(codes)]
        return tuple((-base if sign else base) << exponent for sign, base, exponent in lanes)

    def decode_array(self, codes: np.ndarray, kind: np.ndarray) -> np.ndarray:
        table = np.array(
            [[self.decode((code, partner), 0)[0] for partner in range(16)] for code in range(16)],
            np.int16,
        )
        return table[codes, codes[..., np.arange(codes.shape[-1]) ^ 1]]

    def kinds(self, t: QuantizedTensor) -> np.ndarray:
        return np.zeros((t.n, t.groups), np.uint8)
