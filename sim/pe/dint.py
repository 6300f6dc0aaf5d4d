"""The dINT multiply-accumulate PE: integers with two extra levels next to zero, times INT8.

After dINT (Lee et al., EMNLP 2023, arXiv 2311.05161): a weight is a uniform level or one of two
special values, plus and minus half a step, which keeps small weights from rounding to 0. The paper
publishes no code table; the tables here are this project's own (docs/numerics.md, "dINT").

Weights are decoded to integers in half units, so that a MAC is exact and needs no shift.
"""

from dataclasses import dataclass, field

from bitwright.quant import InputError

from .dot import IntAccumulator, LaneUnit
from .integer import check_shape, dot_name, twos_complement


@dataclass(frozen=True, slots=True)
class DintPE(LaneUnit):
    """dINT weights times INT8 activations, in half units; one step a cycle.

    Ports (docs/numerics.md): `act0 ..` 8, `code0 ..` bits, `zero` bits (asymmetric), `last` 1, `y`
    32. Overflow of the accumulator wraps.

    >>> pe = DintPE()
    >>> [pe.decode_weight(code, 0) for code in range(16)]
    [0, 2, 4, 6, 8, 10, 12, 1, 0, -1, -12, -10, -8, -6, -4, -2]
    >>> asymmetric = DintPE(asymmetric=True)
    >>> [asymmetric.decode_weight(code, 3) for code in (0, 13, 14, 15)]  # 2q, then 2z + 1, 2z - 1
    [0, 26, 7, 5]
    """

    bits: int = 4  #: width of a weight code, 3 .. 8
    asymmetric: bool = False  #: 2**bits - 2 levels with a zero point, else symmetric
    lanes: int = 1  #: 1 .. 64
    stages: int = 2
    accumulator: IntAccumulator = field(default_factory=IntAccumulator)

    unit_value = 0.5
    zero_weight = 2
    act_bits = 8

    def __post_init__(self) -> None:
        check_shape(self.lanes, self.stages)
        if not 3 <= self.bits <= 8:
            raise InputError(f"bits (={self.bits}) of a dINT weight must be in 3 .. 8")

    @property
    def weight_bits(self) -> int:  # type: ignore[override]
        return self.bits

    @property
    def zero_bits(self) -> int:  # type: ignore[override]
        return self.bits if self.asymmetric else 0

    @property
    def value_bits(self) -> int:
        """Width of a decoded weight, two's complement: 5 for dINT4, 6 with a zero point."""
        return self.bits + (2 if self.asymmetric else 1)

    @property
    def name(self) -> str:
        """`dint4`, `dint4-asym`, `-dot16` behind it for 16 lanes."""
        return dot_name(f"dint{self.bits}{'-asym' if self.asymmetric else ''}", self.lanes)

    @property
    def act_format(self) -> str:
        return "int8-sym"

    @property
    def weight_formats(self) -> tuple[str, ...]:
        return (f"dint{self.bits}-{'asym' if self.asymmetric else 'sym'}",)

    @property
    def largest_zero(self) -> int:
        """The largest zero point: the top level, 13 for dINT4."""
        return (1 << self.bits) - 3

    @property
    def limits(self) -> dict[str, tuple[int, int]]:
        return {"zero": (0, self.largest_zero)} if self.asymmetric else {}

    def decode_act(self, code: int) -> int:
        return twos_complement(code, 8)

    def decode_weight(self, code: int, zero: int) -> int:
        top = (1 << self.bits) - 1
        if self.asymmetric:
            if code >= top - 1:  # the two highest codes are the special values
                return 2 * zero + (1 if code == top - 1 else -1)
            return 2 * code
        value = twos_complement(code, self.bits)
        special = (1 << self.bits - 1) - 1
        if abs(value) == special:
            return 1 if value > 0 else -1
        return 0 if value < -special else 2 * value
