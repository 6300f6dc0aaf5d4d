"""Block-scaled dot-product PEs: MXFP4, MXINT8 and NVFP4.

One step is one block of each operand: the products of all elements are added exactly, the two
scales of the blocks shift (or multiply) the sum, and it joins a binary32 accumulator. Formats: OCP
Microscaling Formats (MX) v1.0 for MXFP4 and MXINT8, whose section 6.2 leaves the order and the
precision of the sums to the implementation; NVFP4 as in "Pretraining Large Language Models with
NVFP4" (arXiv 2509.25149).
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit, prange

from bitwright.quant import InputError, QuantizedTensor

from .bitmod import FP4_HALF_UNITS
from .dot import DotStream, FloatAccumulator, LaneUnit, Ports, lane_layout, pair_ends, pair_ports
from .integer import check_shape, twos_complement

#: E8M0 codes that the MX PEs take: 2**-57 .. 2**43. Neither subnormal nor infinite sums can arise
#: from them in dot products of up to 2**31 blocks.
E8M0_RANGE = (70, 170)
E4M3_RANGE = (0, 126)  #: all finite non-negative E4M3 codes


class BlockUnit(LaneUnit):
    """A PE whose step is one block; ports `act_scale` and `weight_scale` go with it."""

    scale_range: ClassVar[tuple[int, int]]
    format_name: ClassVar[str]
    accumulator: FloatAccumulator

    @property
    def name(self) -> str:
        return self.format_name

    @property
    def ports(self) -> Mapping[str, int]:
        return {**super().ports, "act_scale": 8, "weight_scale": 8}

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return {"act_scale": self.scale_range, "weight_scale": self.scale_range}

    @property
    def act_format(self) -> str:
        return self.format_name

    @property
    def weight_formats(self) -> tuple[str, ...]:
        return (self.format_name,)

    def decode_weight(self, code: int, zero: int) -> int:
        return self.decode_act(code)

    @abstractmethod
    def decode_scale(self, code: int) -> tuple[int, int]:
        """Significand and exponent of a scale code."""

    def partial(self, step: Mapping[str, int]) -> tuple[int, int]:
        total, _ = super().partial(step)
        act, act_exponent = self.decode_scale(step["act_scale"])
        weight, weight_exponent = self.decode_scale(step["weight_scale"])
        return total * act * weight, act_exponent + weight_exponent

    def scale_tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Significand and exponent of every scale code, int64 [256]."""
        pairs = np.array([self.decode_scale(code) for code in range(256)], np.int64)
        return pairs[:, 0].copy(), pairs[:, 1].copy()

    def partials(self, ports: Ports) -> tuple[np.ndarray, np.ndarray]:
        total, _ = super().partials(ports)
        significand, exponent = self.scale_tables()
        act, weight = ports["act_scale"], ports["weight_scale"]
        return total * significand[act] * significand[weight], exponent[act] + exponent[weight]

    # -------------------------------------------------------------- tensors

    def check(self, w: QuantizedTensor) -> None:
        self.check_format(w.format)
        self.scales(w, "weight")

    def activations(self, x: Any, w: QuantizedTensor) -> QuantizedTensor:
        """Activations in blocks like the weights'."""
        from bitwright.quant import quantize

        if not isinstance(x, QuantizedTensor):
            x = quantize(x, self.format_name)
        if x.format.name != self.format_name:
            raise InputError(
                f"the {self.name} PE cannot run activation format {x.format.name}; "
                f"it runs {self.format_name}"
            )
        if x.k != w.k:
            raise InputError(f"x has shape {(x.n, x.k)}; it must be [m, k] with k = {w.k}")
        self.scales(x, "activation")
        return x

    def scales(self, t: QuantizedTensor, what: str) -> np.ndarray:
        """Scale codes as the ports take them, uint8 [rows, blocks].

        A block of zeros is the same under every scale and gets that of 1.

        Raises:
            InputError: A scale that the PE does not take.
        """
        codes = np.asarray(t.group_scales)
        starts = np.arange(0, t.k, t.group_size)
        empty = ~np.bitwise_or.reduceat(t.codes, starts, axis=1).astype(bool)
        neutral = 127 if self.scale_range == E8M0_RANGE else 56
        codes = np.where(empty, neutral, codes).astype(np.uint8)
        low, high = self.scale_range
        wrong = (codes < low) | (codes > high)
        if wrong.any():
            row, block = np.argwhere(wrong)[0]
            raise InputError(
                f"{what} scale code {codes[row, block]} of row {row}, block {block} is outside "
                f"{low} .. {high}, which the {self.name} PE takes; rescale the tensor"
            )
        return codes

    def tensor_stream(self, x: QuantizedTensor, w: QuantizedTensor) -> DotStream:
        acts = lane_layout(x.codes, w.group_size, self.lanes)
        ports = pair_ports(acts, lane_layout(w.codes, w.group_size, self.lanes))
        left, right = self.scales(x, "activation"), self.scales(w, "weight")
        shape = (x.n, w.n, w.groups)
        ports["act_scale"] = np.broadcast_to(left[:, None], shape).reshape(-1)
        ports["weight_scale"] = np.broadcast_to(right[None], shape).reshape(-1)
        last = np.zeros(shape, bool)
        last[:, :, -1] = True
        assert last.size == len(pair_ends(w, self.lanes, x.n))
        return DotStream(ports, last.reshape(-1))

    def results(self, x: QuantizedTensor, w: QuantizedTensor) -> Iterator[np.ndarray]:
        """The one accumulator of all blocks."""
        significand, exponent = self.scale_tables()
        left, right = self.scales(x, "activation"), self.scales(w, "weight")
        out = np.empty((x.n, w.n), np.float32)
        values = self.act_table()
        _multiply_blocks(
            values[x.codes],
            values[w.codes],
            significand[left].astype(np.int32),
            significand[right].astype(np.int32),
            np.ldexp(np.float32(1), exponent[left] - self.accumulator.unit // 2),
            np.ldexp(np.float32(1), exponent[right] - (self.accumulator.unit + 1) // 2),
            w.group_size,
            out,
        )
        yield out

    def outer_scales(
        self, x: QuantizedTensor, w: QuantizedTensor, exact: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Those of the whole tensors; MX formats have none."""

        def column(t: QuantizedTensor) -> np.ndarray:
            scale = np.float32(1) if t.tensor_scale is None else t.tensor_scale[0]
            return np.full((t.n, 1), scale, np.float64 if exact else np.float32)

        return column(x), column(w)


@dataclass(frozen=True, slots=True)
class Mxfp4PE(BlockUnit):
    """Dot product of 32 MXFP4 elements (E2M1) with E8M0 scales; one block a cycle.

    Ports (docs/numerics.md): `act0 .. act31`, `code0 .. code31` 4, `act_scale`, `weight_scale` 8,
    `last` 1, `y` 32, binary32. Scale codes outside 70 .. 170 are refused before they get here.

    >>> pe = Mxfp4PE()
    >>> [pe.decode_act(code) for code in (0, 1, 7, 8, 15)]  # in half units
    [0, 1, 12, 0, -12]
    """

    lanes: int = 32
    stages: int = 2

    act_bits = 4
    weight_bits = 4
    format_name = "mxfp4"
    scale_range = E8M0_RANGE
    accumulator: ClassVar[FloatAccumulator] = FloatAccumulator(unit=254 + 2)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_shape(self.lanes, self.stages)

    def decode_act(self, code: int) -> int:
        return e2m1(code)

    def decode_scale(self, code: int) -> tuple[int, int]:
        return 1, code


@dataclass(frozen=True, slots=True)
class Mxint8PE(BlockUnit):
    """Dot product of 32 MXINT8 elements (code / 64) with E8M0 scales; one block a cycle.

    Ports (docs/numerics.md): as `Mxfp4PE`, with operands of 8 bits.
    """

    lanes: int = 32
    stages: int = 2

    act_bits = 8
    weight_bits = 8
    format_name = "mxint8"
    scale_range = E8M0_RANGE
    accumulator: ClassVar[FloatAccumulator] = FloatAccumulator(unit=254 + 12)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_shape(self.lanes, self.stages)

    def decode_act(self, code: int) -> int:
        return twos_complement(code, 8)

    def decode_scale(self, code: int) -> tuple[int, int]:
        return 1, code


@dataclass(frozen=True, slots=True)
class Nvfp4PE(BlockUnit):
    """Dot product of 16 NVFP4 elements (E2M1) with E4M3 scales; one block a cycle.

    Ports (docs/numerics.md): `act0 .. act15`, `code0 .. code15` 4, `act_scale`, `weight_scale` 8,
    E4M3 codes 0 .. 126; `last` 1, `y` 32, binary32. The float32 scale of each tensor is applied
    outside the PE.

    >>> Nvfp4PE().decode_scale(0x38)  # 1.0 = 8 * 2**(7 - 10)
    (8, 7)
    """

    lanes: int = 16
    stages: int = 3

    act_bits = 4
    weight_bits = 4
    format_name = "nvfp4"
    scale_range = E4M3_RANGE
    accumulator: ClassVar[FloatAccumulator] = FloatAccumulator(unit=20 + 2)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_shape(self.lanes, self.stages)

    def decode_act(self, code: int) -> int:
        return e2m1(code)

    def decode_scale(self, code: int) -> tuple[int, int]:
        exponent = code >> 3 & 15
        return (code & 7) | (8 if exponent else 0), max(exponent, 1)


def e2m1(code: int) -> int:
    """The number of half units of an E2M1 code {sign, exponent 2, mantissa 1}; minus zero is 0."""
    magnitude = FP4_HALF_UNITS[code & 7]
    return -magnitude if code & 8 else magnitude


@njit(cache=True, parallel=True)
def _multiply_blocks(x, w, x_significand, w_significand, x_power, w_power, block, out):  # type: ignore[no-untyped-def]
    """Integers x, w int16 [rows, k]; significands int32, powers of two float32 [rows, blocks].

    The integer of a block is exact in float32, and so is its product with the powers of two; the
    sum is rounded once per block, in order. No fastmath.
    """
    k = w.shape[1]
    for j in prange(w.shape[0]):
        for i in range(x.shape[0]):
            acc = np.float32(0)
            for b in range(x_power.shape[1]):
                total = np.int32(0)
                for c in range(b * block, min((b + 1) * block, k)):
                    total += np.int32(x[i, c]) * np.int32(w[j, c])
                total *= x_significand[i, b] * w_significand[j, b]
                acc += np.float32(total) * x_power[i, b] * w_power[j, b]
            out[i, j] = acc
