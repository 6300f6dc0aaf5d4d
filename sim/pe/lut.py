"""The look-up-table PE: partial sums of four activations, indexed by four weights.

One table holds the 16 sums that four INT8 activations can form with weights of 0 and 1; the PEs of
a column share it. A PE looks up the sum of the activations with weight +1 and that of those with
weight -1 and accumulates the difference. Ternary weights leave both bits 0 for a weight of 0,
binary weights set exactly one. Table look-up in place of multiplication follows bitnet.cpp's TL1
(arXiv 2410.16144) and LUT Tensor Core (arXiv 2408.06003).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from bitwright.quant import QuantizedTensor

from .dot import (
    DotStream,
    DotUnit,
    IntAccumulator,
    Ports,
    check_length,
    exact_products,
    lane_layout,
    pair_ends,
    signed,
)
from .integer import check_shape, twos_complement

LANES = 4  #: weights that form an index


@dataclass(frozen=True, slots=True)
class LutPE(DotUnit):
    """Ternary or binary weights times INT8 activations, four at a time; one step a cycle.

    Ports (docs/numerics.md): `act0 .. act3` 8, `plus` 4, `minus` 4, `last` 1, `y` 32. Bit i of
    `plus` (`minus`) adds (subtracts) activation i. Overflow of the accumulator wraps.

    >>> acts = {"act0": 1, "act1": 2, "act2": 4, "act3": 8}
    >>> LutPE().partial({**acts, "plus": 0b0011, "minus": 0b1000})  # 1 + 2 - 8
    (-5, 0)
    """

    stages: int = 3
    accumulator: IntAccumulator = field(default_factory=IntAccumulator)

    def __post_init__(self) -> None:
        check_shape(LANES, self.stages)

    @property
    def name(self) -> str:
        return "lut"

    @property
    def lanes(self) -> int:
        return LANES

    @property
    def ports(self) -> Mapping[str, int]:
        return {**{f"act{i}": 8 for i in range(LANES)}, "plus": 4, "minus": 4}

    @property
    def act_format(self) -> str:
        return "int8-sym"

    @property
    def weight_formats(self) -> tuple[str, ...]:
        return ("ternary", "int2-sym", "binary")

    def table(self, acts: tuple[int, ...]) -> list[int]:
        """The 16 sums of the activations (8-bit patterns); bit i of the index takes the i-th."""
        values = [twos_complement(act, 8) for act in acts]
        return [sum(v for i, v in enumerate(values) if index >> i & 1) for index in range(16)]

    def partial(self, step: Mapping[str, int]) -> tuple[int, int]:
        table = self.table(tuple(step[f"act{i}"] for i in range(LANES)))
        return table[step["plus"]] - table[step["minus"]], 0

    def partials(self, ports: Ports) -> tuple[np.ndarray, np.ndarray]:
        total = np.zeros(len(ports["plus"]), np.int64)
        for i in range(LANES):
            weight = (ports["plus"] >> i & 1).astype(np.int64) - (ports["minus"] >> i & 1)
            total += signed(ports[f"act{i}"], 8) * weight
        return total, np.zeros_like(total)

    def check(self, w: QuantizedTensor) -> None:
        self.check_format(w.format)
        longest = ((1 << self.accumulator.bits - 1) - 1) // 128
        check_length(self.name, self.accumulator.bits, longest, min(w.group_size, w.k))

    def tensor_stream(self, x: QuantizedTensor, w: QuantizedTensor) -> DotStream:
        values = weight_signs(w)
        weighted = 1 << np.arange(LANES)
        plus, minus = (
            (lane_layout((values == sign).astype(np.uint8), w.group_size, LANES) * weighted).sum(2)
            for sign in (1, -1)
        )
        acts = lane_layout(x.codes, w.group_size, LANES)
        shape = (x.n, w.n, acts.shape[1])
        left = np.broadcast_to(acts[:, None], (*shape, LANES)).reshape(-1, LANES)
        ports = {f"act{i}": left[:, i] for i in range(LANES)}
        for name, index in (("plus", plus), ("minus", minus)):
            ports[name] = np.broadcast_to(index[None], shape).reshape(-1).astype(np.uint8)
        return DotStream(ports, pair_ends(w, LANES, x.n))

    def results(self, x: QuantizedTensor, w: QuantizedTensor) -> Iterator[np.ndarray]:
        acts = signed(x.codes, 8).astype(np.int16)
        return exact_products(acts, weight_signs(w).astype(np.int16), w.group_size)


def weight_signs(w: QuantizedTensor) -> np.ndarray:
    """-1, 0 or +1 of each weight, int8 [n, k]: binary code b is 2b - 1, ternary {sign, live}."""
    codes = w.codes.astype(np.int8)
    if w.format.bits == 1:
        return 2 * codes - 1
    return (codes & 1) * (1 - (codes & 2))
