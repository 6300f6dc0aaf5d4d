"""The ternary PE: INT8 activations are added, subtracted or left out.

For weights of -1, 0 and +1 (BitNet b1.58, arXiv 2402.17764) a multiplier is an AND and an XOR.
"""

from dataclasses import dataclass, field

from .dot import IntAccumulator, LaneUnit
from .integer import check_shape, dot_name, twos_complement


@dataclass(frozen=True, slots=True)
class TernaryPE(LaneUnit):
    """Ternary weights times INT8 activations; one step a cycle.

    Ports (docs/numerics.md): `act0 ..` 8, `code0 ..` 2, `last` 1, `y` 32. A code is {sign, live}.
    Overflow of the accumulator wraps.

    >>> pe = TernaryPE()
    >>> pe.name, [pe.decode_weight(code, 0) for code in range(4)]
    ('ternary', [0, 1, 0, -1])
    """

    lanes: int = 16  #: 1 .. 64
    stages: int = 2
    accumulator: IntAccumulator = field(default_factory=IntAccumulator)

    act_bits = 8
    weight_bits = 2

    def __post_init__(self) -> None:
        check_shape(self.lanes, self.stages)

    @property
    def name(self) -> str:
        """`ternary` with 16 lanes, else with their number behind it."""
        return "ternary" if self.lanes == 16 else dot_name("ternary", self.lanes)

    @property
    def act_format(self) -> str:
        return "int8-sym"

    @property
    def weight_formats(self) -> tuple[str, ...]:
        return ("int2-sym", "ternary")

    def decode_act(self, code: int) -> int:
        return twos_complement(code, 8)

    def decode_weight(self, code: int, zero: int) -> int:
        return (code & 1) * (-1 if code & 2 else 1)
